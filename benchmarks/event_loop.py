"""What a request on an event loop waits for the store with 1,000 hosts, and all other requests with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Final, cast

from benchmarks.harness import Group, Sample, Variant, at_most_us
from benchmarks.upstreams import in_sqlite, private_directory
from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.selection import Target
from resty_upstream.state import Failure, Success
from resty_upstream.stores.sqlite import SqliteStore

_HOSTS: Final = 1000
_CALLS: Final = 20
_LIMIT: Final = at_most_us(1000)

Step = Callable[[], object]


@contextlib.contextmanager
def event_loop() -> Iterator[list[Group]]:
    """Taking in what another process did, and telling what a request saw."""
    logging.getLogger("resty_upstream").setLevel(logging.ERROR)  # hosts go up and down all the time
    with private_directory() as directory, asyncio.Runner() as runner:
        upstream = in_sqlite(directory, _HOSTS, max_fails=1, weights=(10, 20, 50))
        other = UpstreamAPI(Upstream(SqliteStore(cast("SqliteStore", upstream.store).path)))
        yield [_group(upstream, other, runner)]


def _group(upstream: Upstream, other: UpstreamAPI, runner: asyncio.Runner) -> Group:
    look = upstream.replica.snapshot
    next_id = cycle(f"h{number}" for number in range(_HOSTS)).__next__
    next_weight = cycle((10, 20, 50, 30)).__next__

    def down_and_up(turn: int) -> None:
        (other.down_host if turn % 2 else other.up_host)("primary", "h0")

    steps: dict[str, tuple[Callable[[int], object], Step]] = {
        "nothing is new": (lambda _turn: None, look),
        "another took a host down, or put it back": (down_and_up, look),
        "another changed a weight": (
            lambda _turn: other.set_weight("primary", next_id(), next_weight()),
            look,
        ),
        "this one saw a host fail, or answer": _telling(upstream),
    }
    variants = [Variant(name, _slowest(runner, *pair), _LIMIT) for name, pair in steps.items()]
    return Group(
        f"On an event loop, {_HOSTS:,} hosts in SQLite: the slowest of {_CALLS} requests", _CALLS, variants
    )


def _telling(upstream: Upstream) -> tuple[Callable[[int], object], Step]:
    """A host fails in one request and answers in the next; each is told, and taken in by the next request."""
    context = upstream.context()

    def see(turn: int) -> None:
        nonlocal context
        context = upstream.context()
        target: Target = upstream.replica.snapshot().targets["primary\x1fh1"]
        now = upstream.store.now()
        fact = Failure(now, now, time.time(), 0.0, "ECONNREFUSED") if turn % 2 else Success(now, now)
        context.observe(target, fact, probe=False)

    def tell() -> None:
        context.post_process()
        upstream.replica.snapshot()

    return see, tell


def _slowest(runner: asyncio.Runner, prepare: Callable[[int], object], step: Step) -> Sample:
    async def sample(calls: int) -> int:
        took = []
        for turn in range(calls):
            prepare(turn)
            began = time.perf_counter_ns()
            step()
            took.append(time.perf_counter_ns() - began)
        return max(took) * calls

    return lambda calls: runner.run(sample(calls))
