"""Fixtures for the tests of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import Upstream
from resty_upstream.stores import Store
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.stores.sqlite import SqliteStore
from tests.health import functions
from tests.health.support import Site
from tests.helpers import Peer


@pytest.fixture
def start_site(start_peer: Callable[..., Peer]) -> Iterator[Callable[..., tuple[Site, dict[str, Any]]]]:
    """Starts a :class:`Site`: itself, and where it is as options of a host."""
    sites: list[Site] = []

    def start(answer: bytes | None = None, **where: Any) -> tuple[Site, dict[str, Any]]:
        site = Site() if answer is None else Site(answer)
        sites.append(site)
        return site, start_peer(site, **where).options

    yield start
    for site in sites:
        site.goes_on.set()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each kind, on a clock that runs."""
    store: Store = (
        MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "private" / "upstreams.db")
    )
    yield store
    store.close()


@pytest.fixture
def open_upstream() -> Iterator[Callable[..., Upstream]]:
    """Opens upstreams that are closed, and check no more, when the test is over."""
    with ExitStack() as stack:

        def start(pools: Mapping[str, Any] | None = None, store: Store | None = None, **options: Any) -> Upstream:
            upstream = Upstream(store or MemoryStore(), pools=pools, **options)
            stack.callback(upstream.close)
            return upstream

        yield start


@pytest.fixture(autouse=True)
def _functions() -> Iterator[None]:
    functions.reset()
    yield
    functions.leave.set()
