"""What upstreams tell monitoring, whichever system that is: a table of metrics, and their values at one moment.

What is told is of the store: the same from each process that shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from resty_upstream.counts import HostCounts
from resty_upstream.model import Host, Pool, record_key
from resty_upstream.state import HostState, Status
from resty_upstream.upstream import Upstream

Given = Upstream | Mapping[str, Upstream] | Iterable[Upstream]
"""An upstream, several by name, or several that are named by their ids."""


def by_name(given: Given) -> Mapping[str, Upstream]:
    """Upstreams by the names that they have in metrics.

    :raises ValueError: where two would have the same name.
    """
    if isinstance(given, Mapping):
        return given
    upstreams = [given] if isinstance(given, Upstream) else list(given)
    named = {upstream.id: upstream for upstream in upstreams}
    if len(named) < len(upstreams):
        raise ValueError("two upstreams have the same id: give a mapping, by names that differ")
    return named


class HostReading(NamedTuple):
    """A host at one moment."""

    labels: tuple[str, str, str]
    """The names of upstream, pool and host."""
    host: Host
    state: HostState
    last_check: float | None
    """Epoch seconds; None where it was never checked."""
    counts: HostCounts | None
    """None for one that is newer than the counts."""


class PoolReading(NamedTuple):
    """A pool at one moment."""

    labels: tuple[str, str]
    """The names of upstream and pool."""
    pool: Pool
    hosts: tuple[HostReading, ...]


class Reading(NamedTuple):
    """An upstream at one moment."""

    labels: tuple[str]
    pools: tuple[PoolReading, ...]
    exhausted: int
    store_up: bool
    checked: bool | None
    """Whether a process checks hosts; None where there is none to be checked."""


def read(name: str, upstream: Upstream) -> Reading:
    """An upstream as its store has it now; as this process knows it, while the store fails.

    :param name: what it is called.
    """
    replica = upstream.replica
    known, counts = replica.look(), upstream.counts()

    def host_reading(pool: Pool, host: Host) -> HostReading:
        key = record_key(pool.id, host.id)
        last = known.checks.get(key) if pool.check_of(host) else None
        return HostReading(
            (name, pool.id, host.id),
            host,
            known.states.get(key) or HostState(),
            last.wall if last else None,
            counts.hosts.get((pool.id, host.id)),
        )

    pools = tuple(
        PoolReading((name, pool.id), pool, tuple(host_reading(pool, host) for host in pool.hosts))
        for pool in known.pools
    )
    checked = replica.is_somebody_checking() if known.are_checked else None
    return Reading((name,), pools, counts.exhausted, replica.trouble is None, checked)


# ── the metrics ───────────────────────────────────────────────────────────────────────────────

Values = Iterable[tuple[tuple[str, ...], float]]
"""Pairs of labels and value."""


class Metric(NamedTuple):
    """One metric of the table."""

    name: str
    """Without a prefix, and without its unit."""
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    values: Callable[[Reading], Values]
    unit: Literal["", "seconds"] = ""


_OF_UPSTREAM: Final = ("upstream",)
_OF_POOL: Final = ("upstream", "pool")
OF_HOST: Final = ("upstream", "pool", "host")


def _hosts(reading: Reading) -> Iterator[HostReading]:
    for pool in reading.pools:
        yield from pool.hosts


def _each_upstream(value: Callable[[Reading], float | None]) -> Callable[[Reading], Values]:
    """The value of an upstream, unless it is None."""

    def values(reading: Reading) -> Values:
        number = value(reading)
        return () if number is None else ((reading.labels, number),)

    return values


def _each_pool(value: Callable[[PoolReading], float]) -> Callable[[Reading], Values]:
    return lambda reading: ((pool.labels, value(pool)) for pool in reading.pools)


def _each_host(value: Callable[[HostReading], float | None]) -> Callable[[Reading], Values]:
    """The value of each host for which it is not None."""

    def values(reading: Reading) -> Values:
        for host in _hosts(reading):
            number = value(host)
            if number is not None:
                yield host.labels, number

    return values


def _each_host_by(numbers: Callable[[HostReading], Mapping[str, float]]) -> Callable[[Reading], Values]:
    """The values of each host by one more label."""

    def values(reading: Reading) -> Values:
        for host in _hosts(reading):
            for label, number in numbers(host).items():
                yield (*host.labels, label), number

    return values


def _of_counts(value: Callable[[HostCounts], float]) -> Callable[[Reading], Values]:
    return _each_host(lambda host: None if host.counts is None else value(host.counts))


def _outcomes(host: HostReading) -> Mapping[str, float]:
    counts = host.counts
    if counts is None:
        return {}
    return {"ok": counts.successes, "failed": sum(counts.failures.values()), "ignored": counts.ignored}


def _states(host: HostReading) -> Mapping[str, float]:
    return {status: status is host.state.status for status in Status}


METRICS: Final = (
    Metric(
        "attempts",
        "counter",
        "Attempts that are over. Failed ones count against the host, ignored ones say nothing of it.",
        (*OF_HOST, "outcome"),
        _each_host_by(_outcomes),
    ),
    Metric(
        "failures",
        "counter",
        "Attempts that failed in a way that counts against the host, by kind.",
        (*OF_HOST, "kind"),
        _each_host_by(lambda host: host.counts.failures if host.counts else {}),
    ),
    Metric(
        "retries",
        "counter",
        "Attempts after another one of the same call.",
        OF_HOST,
        _of_counts(lambda counts: counts.retries),
    ),
    Metric(
        "last_resorts",
        "counter",
        "Attempts at a host that was thought to be down, because no other was left.",
        OF_HOST,
        _of_counts(lambda counts: counts.last_resorts),
    ),
    Metric(
        "attempts_in_flight",
        "gauge",
        "Attempts under way in all processes.",
        OF_HOST,
        _of_counts(lambda counts: counts.in_flight),
    ),
    Metric(
        "host_up",
        "gauge",
        "Whether the host takes traffic.",
        OF_HOST,
        _each_host(lambda host: host.state.up),
    ),
    Metric(
        "host_state",
        "gauge",
        "1 for the state that the host is in, 0 for the others. Manual is taken down by hand.",
        (*OF_HOST, "state"),
        _each_host_by(_states),
    ),
    Metric(
        "host_weight",
        "gauge",
        "The host's share of its pool, beside the weights of the others.",
        OF_HOST,
        _each_host(lambda host: host.host.weight),
    ),
    Metric(
        "host_failcount",
        "gauge",
        "Consecutive failures.",
        OF_HOST,
        _each_host(lambda host: host.state.failcount),
    ),
    Metric(
        "host_last_failure_timestamp",
        "gauge",
        "When the host failed last; absent where it did not since it was put back.",
        OF_HOST,
        _each_host(lambda host: host.state.lastfail or None),
        "seconds",
    ),
    Metric(
        "host_last_check_timestamp",
        "gauge",
        "When the host was checked last; absent where it is not checked.",
        OF_HOST,
        _each_host(lambda host: host.last_check),
        "seconds",
    ),
    Metric(
        "pool_up",
        "gauge",
        "Whether the pool is in use at all.",
        _OF_POOL,
        _each_pool(lambda pool: pool.pool.up),
    ),
    Metric(
        "pool_hosts",
        "gauge",
        "Hosts of the pool.",
        _OF_POOL,
        _each_pool(lambda pool: len(pool.hosts)),
    ),
    Metric(
        "pool_hosts_up",
        "gauge",
        "Hosts of the pool that take traffic.",
        _OF_POOL,
        _each_pool(lambda pool: sum(host.state.up for host in pool.hosts)),
    ),
    Metric(
        "pool_priority",
        "gauge",
        "Pools of the lowest priority are tried first.",
        _OF_POOL,
        _each_pool(lambda pool: pool.pool.priority),
    ),
    Metric(
        "exhausted",
        "counter",
        "Calls for which no host was left.",
        _OF_UPSTREAM,
        _each_upstream(lambda reading: reading.exhausted),
    ),
    Metric(
        "checked",
        "gauge",
        "Whether a process checks hosts now; absent where there is none to be checked.",
        _OF_UPSTREAM,
        _each_upstream(lambda reading: reading.checked),
    ),
    Metric(
        "store_up",
        "gauge",
        "Whether this process can use the store; it serves from what it knows while it cannot.",
        _OF_UPSTREAM,
        _each_upstream(lambda reading: reading.store_up),
    ),
)


def durations(reading: Reading) -> Iterator[tuple[tuple[str, str, str], HostCounts]]:
    """The counts of each host, for a histogram of how long attempts take that succeed."""
    for host in _hosts(reading):
        if host.counts is not None:
            yield host.labels, host.counts
