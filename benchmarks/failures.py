"""Recording what went wrong with a host: what an outage costs the store, and each worker."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from itertools import cycle

from benchmarks.harness import Group, Sample, Variant, at_least_per_s, at_most_times, calling
from benchmarks.upstreams import in_sqlite, private_directory
from resty_upstream import Upstream
from resty_upstream.selection import Target
from resty_upstream.state import Failure, Success

# Nothing goes down, and no failure is forgotten before the next.
_PATIENT = {"max_fails": 1_000_000, "failed_timeout": "1d"}


@contextlib.contextmanager
def failures() -> Iterator[list[Group]]:
    """A failure after others, a first failure, and taking in the news."""
    with private_directory() as directory, contextlib.closing(_bare(f"{directory}/bare.db")) as db:
        yield [_one_more(directory, db), _first(directory)]


def _one_more(directory: str, db: sqlite3.Connection) -> Group:
    few, many, one_of_many = (_failed_once(in_sqlite(directory, n, **_PATIENT)) for n in (3, 1000, 1000))
    return Group(
        "A failure recorded after the response: one commit in SQLite each",
        1000,  # as many as SQLite commits before it empties its log into the database: part of the cost
        [
            Variant("3 hosts in turn", _checked(few), at_least_per_s(10_000)),
            Variant("1,000 hosts in turn", _checked(many), at_most_times(1.3)),
            Variant("one host of 1,000", _checked(one_of_many, only=1), at_least_per_s(10_000)),
            Variant("the bare commit of such a record", calling(lambda: _write(db))),
        ],
    )


def _first(directory: str) -> Group:
    return Group(
        "A first failure and the success that clears it: two commits, the news of both taken in",
        2,
        [
            Variant(f"{hosts:,} hosts", _flapping(in_sqlite(directory, hosts, **_PATIENT)))
            for hosts in (3, 1000, 10_000)
        ],
    )


def _targets(upstream: Upstream) -> list[Target]:
    return list(upstream.replica.snapshot().targets.values())


def _fail(upstream: Upstream, target: Target) -> None:
    """What a request does that failed on this host."""
    context = upstream.context()
    now = upstream.store.now()
    context.observe(target, Failure(now, now, time.time(), 0.0, "ECONNREFUSED"), probe=False)
    context.post_process()


def _succeed(upstream: Upstream, target: Target) -> None:
    context = upstream.context()
    now = upstream.store.now()
    context.observe(target, Success(now, now), probe=False)
    context.post_process()


def _failed_once(upstream: Upstream) -> Upstream:
    """A first failure moves the routing generation; those that follow are the ones that come in masses."""
    pools = upstream.get_pools()
    for host in pools["primary"]["hosts"].values():
        host.update(failcount=1, lastfail=time.time())
    upstream.save_pools(pools)
    return upstream


def _checked(upstream: Upstream, only: int | None = None) -> Sample:
    next_target = cycle(_targets(upstream)[:only]).__next__
    sample = calling(lambda: _fail(upstream, next_target()))

    def checked(calls: int) -> int:
        before = _count(upstream)
        took = sample(calls)
        assert _count(upstream) == before + calls, "each failure was committed"
        return took

    return checked


def _count(upstream: Upstream) -> int:
    return sum(host["failcount"] for host in upstream.get_pools()["primary"]["hosts"].values())


def _flapping(upstream: Upstream) -> Sample:
    next_target = cycle(_targets(upstream)).__next__

    def flap() -> None:
        target = next_target()
        _fail(upstream, target)
        _succeed(upstream, target)

    return calling(flap)


def _bare(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE record (ns TEXT, key TEXT, data BLOB, PRIMARY KEY (ns, key)) WITHOUT ROWID")
    return db


def _write(db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.execute("SELECT data FROM record WHERE ns = ? AND key = ?", ("default", "primary a")).fetchone()
    db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", ("default", "primary a", b"x" * 120))
    db.execute("COMMIT")
