"""Fixtures for all tests."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

from resty_upstream.testing import FakeClock
from tests.e2e.processes import Ports
from tests.helpers import Peer

settings.register_profile(
    "default",
    derandomize=False,
    deadline=None,  # a loaded machine is no fault of the code
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


def pytest_collection_finish() -> None:
    """Many tests collect garbage: what is there before them all need not be looked at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    """Coroutines are tested on asyncio."""
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    """Time that stands still until it is told to move."""
    return FakeClock()


@pytest.fixture(scope="session")
def ports() -> Iterator[Ports]:
    """Loopback ports that stay ours."""
    ports = Ports()
    yield ports
    ports.release()


@pytest.fixture
def start_peer() -> Iterator[Callable[..., Peer]]:
    """Starts a :class:`Peer` that is stopped when the test is over."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Peer(*args, **options))


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """The wall clock, which stands still at 13:00 of a day in Berlin until it is told to move."""
    wall = FakeClock(1_795_694_400.0)
    monkeypatch.setattr(time, "time", wall)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield wall
    monkeypatch.undo()  # all, in one order: what a test put in place of the clock stands on this
    time.tzset()
