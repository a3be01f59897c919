"""A whole ``connect`` with a connector that does nothing: what the balancing itself takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import cycle

from benchmarks.harness import Group, Sample, Variant, at_most_times, at_most_us, calling
from benchmarks.upstreams import do_nothing, in_memory, in_sqlite, private_directory
from resty_upstream import Pool, Upstream
from resty_upstream.selection import Target

_KEYS = [f"192.0.2.{number}" for number in range(256)]


@contextlib.contextmanager
def balancing() -> Iterator[list[Group]]:
    """By number of hosts, healthy and not; by method; and the methods alone."""
    with private_directory() as directory:
        yield [_by_hosts(directory), _with_failed_hosts(), _by_method(), _methods_alone()]


def _by_hosts(directory: str) -> Group:
    return Group(
        "A whole connect, healthy, round robin, a connector that does nothing",
        500,
        [
            Variant("SQLite, 3 hosts", _connect(in_sqlite(directory, 3)), at_most_us(4)),
            Variant("SQLite, 10,000 hosts", _connect(in_sqlite(directory, 10_000)), at_most_times(1.2)),
            Variant("memory, 3 hosts", _connect(in_memory(3))),
            Variant("memory, 10,000 hosts", _connect(in_memory(10_000))),
        ],
    )


def _with_failed_hosts() -> Group:
    return Group(
        "The same while hosts are down, none of them to be probed yet, memory store",
        500,
        [
            Variant("none of 3", _connect(in_memory(3))),
            Variant("1 of 3", _connect(in_memory(3, failed=1))),
            Variant("1 of 10,000", _connect(in_memory(10_000, failed=1))),
            Variant("1,000 of 10,000", _connect(in_memory(10_000, failed=1000))),
        ],
    )


def _by_method() -> Group:
    return Group(
        "The same by method, memory store",
        500,
        [
            Variant("round_robin, 3 hosts", _connect(in_memory(3))),
            Variant("random, 3 hosts", _connect(in_memory(3, method="random"))),
            Variant("random, 10,000 hosts", _connect(in_memory(10_000, method="random"))),
            Variant("hash, 3 hosts", _connect_with_key(in_memory(3, method="hash"))),
            Variant("hash, 1,000 hosts", _connect_with_key(in_memory(1000, method="hash"))),
            Variant("least_conn, 3 hosts", _connect(in_memory(3, method="least_conn"))),
            Variant("least_conn, 1,000 hosts", _connect(in_memory(1000, method="least_conn"))),
            Variant("p2c, 3 hosts", _connect(in_memory(3, method="p2c"))),
            Variant("p2c, 10,000 hosts", _connect(in_memory(10_000, method="p2c"))),
        ],
    )


def _methods_alone() -> Group:
    weighted = in_memory(1000, method="hash", weights=(10, 20, 50, 100))
    return Group(
        "The pick of a method alone",
        500,
        [
            Variant("round_robin, 3 hosts", _pick(in_memory(3))),
            Variant("random, 10,000 hosts", _pick(in_memory(10_000, method="random"))),
            Variant("hash, 1,000 hosts", _pick(in_memory(1000, method="hash")), at_most_us(10)),
            Variant("hash, 1,000 hosts, weights 10 to 100", _pick(weighted), at_most_us(10)),
        ],
    )


def _connect(upstream: Upstream) -> Sample:
    connect = upstream.connect
    return calling(lambda: connect(do_nothing))


def _connect_with_key(upstream: Upstream) -> Sample:
    connect, next_key = upstream.connect, cycle(_KEYS).__next__
    return calling(lambda: connect(do_nothing, key=next_key()))


def _pick(upstream: Upstream) -> Sample:
    (plan,) = upstream.replica.snapshot().plans
    pick, next_key, tried = plan.pick, cycle(_KEYS).__next__, frozenset[Target]()

    def key(_pool: Pool) -> str:
        return next_key()

    return calling(lambda: pick(key, tried))
