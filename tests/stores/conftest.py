"""Fixtures for the tests of stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import Worker


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a store may be: its directory does not exist yet."""
    return str(tmp_path / "private" / "upstreams.db")


@pytest.fixture
def open_store(path: str, clock: FakeClock) -> Iterator[Callable[..., SqliteStore]]:
    """Makes SQLite stores that are closed when the test is over."""
    with ExitStack() as stack:

        def make(at: str | Path = path, clock: Callable[[], float] | None = clock) -> SqliteStore:
            store = SqliteStore(at, clock=clock)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture
def store(open_store: Callable[..., SqliteStore]) -> SqliteStore:
    """A SQLite store on a clock that stands still: what it learns, the doorbell told."""
    return open_store()


@pytest.fixture
def start_worker(path: str) -> Iterator[Callable[..., Worker]]:
    """Starts processes that have ended when the test is over."""
    with ExitStack() as stack:
        yield lambda at=path: stack.enter_context(Worker(str(at)))


@pytest.fixture
def worker(start_worker: Callable[..., Worker]) -> Worker:
    """Another process at the same path."""
    return start_worker()
