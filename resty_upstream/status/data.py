"""The whole state of upstreams as frozen values: what ``status.json`` says, and what the page is made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from resty_upstream.counts import BOUNDS_S, HostCounts, UpstreamCounts
from resty_upstream.errors import StoreError
from resty_upstream.health.results import CHECKER_LEASE
from resty_upstream.history import Transition
from resty_upstream.model import Host, Pool, Pools, changed_options, record_key
from resty_upstream.replica import Known
from resty_upstream.selection import HostReason, PoolReason
from resty_upstream.state import done_by_hand
from resty_upstream.upstream import Upstream

T = TypeVar("T")
S = TypeVar("S", Pool, Host)

TRANSITIONS_SHOWN: Final = 100

Part = Annotated[float, Meta(ge=0, le=1)]
Number = Annotated[int, Meta(ge=0)]
Epoch = Annotated[float, Meta(ge=0, description="Seconds since 1970; 0 is none.")]


class Setting(Struct, frozen=True, kw_only=True):
    """An option that is not as it was declared: somebody changed it at run time."""

    name: str
    value: Any
    declared: Any


class Latency(Struct, frozen=True, kw_only=True):
    """How long attempts that succeeded took, in seconds: estimates from a histogram, at most its last bound."""

    p50: float
    p90: float
    p99: float


class HostStatus(Struct, frozen=True, kw_only=True):
    """A host of a pool."""

    id: str
    address: str
    status: Annotated[
        Literal["up", "failed", "probing", "manual"], Meta(description="'manual' was taken down by a person.")
    ]
    share: Annotated[Part, Meta(description="Its part of all traffic now.")]
    share_of_pool: Annotated[Part, Meta(description="Its part of what its pool gets, or would get.")]
    weight: Number
    why: Annotated[str, Meta(description="Why it is taken or passed over by the next request.")]
    by_hand: Annotated[str, Meta(description="What a person gave as the reason of a change.")]
    by: Annotated[str, Meta(description="Who made that change.")]
    until: Annotated[
        Epoch, Meta(description="When that change ends by itself, in seconds since 1970; 0 is never.")
    ]
    failcount: Annotated[Number, Meta(description="Failures in a row.")]
    last_failure: Epoch
    last_failure_reason: str
    probe_in_s: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Until a request may probe it, of a host that failed; none where checks bring it back."),
    ]
    checked: Annotated[bool, Meta(description="Whether it is to be checked.")]
    last_check: Epoch
    last_result: str
    requests: Number
    errors: Annotated[Number, Meta(description="Of the requests, those that failed by the host's fault.")]
    in_flight: Number
    latency: Latency | None
    declared: Annotated[bool, Meta(description="Whether it is declared, and was not added at run time.")]
    settings: tuple[Setting, ...]
    capacity_without: Annotated[Part, Meta(description="The pool's capacity that would remain without the host.")]

    @property
    def drained(self) -> bool:
        """Whether a weight of 0 was set at run time."""
        return not self.weight and any(setting.name == "weight" for setting in self.settings)


class PoolStatus(Struct, frozen=True, kw_only=True):
    """A pool and its hosts."""

    id: str
    priority: int
    method: str
    up: Annotated[bool, Meta(description="False where a person took the pool out of use.")]
    used: Annotated[bool, Meta(description="Whether it is the one that the next request tries first.")]
    why: str
    max_fails: Number
    capacity: Annotated[
        Part, Meta(description="The part of its weights that is up; of its hosts, without weights.")
    ]
    hosts_up: Number
    declared: bool
    settings: tuple[Setting, ...]
    removed_hosts: Annotated[tuple[str, ...], Meta(description="Declared, but removed at run time.")]
    hosts: tuple[HostStatus, ...]


class UpstreamStatus(Struct, frozen=True, kw_only=True):
    """An upstream."""

    id: str
    name: Annotated[str, Meta(description="What the application calls it.")]
    summary: Annotated[str, Meta(description="What the next request does.")]
    store_trouble: Annotated[str, Meta(description="Why the store cannot be used now; empty where it can.")]
    checks: Annotated[
        Literal["none", "running", "missing"],
        Meta(description="Whether hosts are checked; 'missing' where they should be, and no process does it."),
    ]
    checked_by: Annotated[str, Meta(description="The process that checks them.")]
    exhausted: Annotated[Number, Meta(description="How often no host was left for a request.")]
    pools: Annotated[tuple[PoolStatus, ...], Meta(description="In the order in which they are tried.")]
    transitions: Annotated[tuple[Transition, ...], Meta(description="The last ones, the newest at the end.")]

    def find(self, pool_id: str, host_id: str) -> tuple[PoolStatus, HostStatus] | None:
        """The host of that id, with its pool; None where there is none."""
        hosts = ((pool, host) for pool in self.pools if pool.id == pool_id for host in pool.hosts)
        return next((found for found in hosts if found[1].id == host_id), None)


class Status(Struct, frozen=True, kw_only=True):
    """Upstreams at one moment, as one process sees them."""

    version: Literal[1] = 1
    at: Annotated[float, Meta(description="The moment, in seconds since 1970.")]
    upstreams: tuple[UpstreamStatus, ...]


def schema() -> dict[str, Any]:
    """The JSON Schema of ``status.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Status)}


def status(upstreams: Mapping[str, Upstream]) -> Status:
    """These upstreams as they are now. While a store fails, what this process knows."""
    return Status(at=time.time(), upstreams=tuple(_upstream(name, each) for name, each in upstreams.items()))


class _Seen(NamedTuple):
    """What is looked up for each host."""

    now: float
    known: Known
    counts: UpstreamCounts
    declared: Pools
    failures: Mapping[tuple[str, str], Transition]
    """The last one of each host that took it down."""
    checking: bool


def _upstream(name: str, upstream: Upstream) -> UpstreamStatus:
    explanation = upstream.context().explain()  # as for a request that knows nothing
    known = upstream.replica.look()
    declared = _or(upstream.replica.declared or (), lambda: _declared(upstream))
    transitions: Sequence[Transition] = _or((), upstream.history)
    checker = (
        _or("", lambda: upstream.store.holder(upstream.id, CHECKER_LEASE)) if _checked(explanation.pools) else ""
    )
    failures = {(each.pool, each.host): each for each in transitions if each.after == "failed"}
    counts = upstream.counts()
    seen = _Seen(upstream.now(), known, counts, declared, failures, bool(checker))
    return UpstreamStatus(
        id=upstream.id,
        name=name,
        summary=explanation.summary,
        store_trouble=str(upstream.replica.trouble or ""),
        checks="running" if checker else "missing" if _checked(explanation.pools) else "none",
        checked_by=checker and f"process {checker.partition('-')[0]}",
        exhausted=counts.exhausted,
        pools=tuple(_pool(seen, pool) for pool in explanation.pools),
        transitions=tuple(transitions[-TRANSITIONS_SHOWN:]),
    )


def _or(otherwise: T, read: Callable[[], T]) -> T:
    """What the store says; ``otherwise`` while it fails."""
    try:
        return read()
    except StoreError:
        return otherwise


def _declared(upstream: Upstream) -> Pools:
    config = upstream.replica.examine()
    return config.declared if config else ()


def _checked(pools: Iterable[PoolReason]) -> bool:
    return any(pool.pool.check_of(host.host) is not None for pool in pools for host in pool.hosts)


def _pool(seen: _Seen, pool: PoolReason) -> PoolStatus:
    declared = next((each for each in seen.declared if each.id == pool.pool.id), None)
    before = {host.id: host for host in declared.hosts} if declared else {}
    weights = _Weights(pool.hosts, before)
    present = {host.host.id for host in pool.hosts}
    return PoolStatus(
        id=pool.pool.id,
        priority=pool.pool.priority,
        method=pool.pool.method,
        up=pool.pool.up,
        used=pool.used,
        why=pool.reason,
        max_fails=pool.pool.max_fails,
        capacity=weights.capacity(),
        hosts_up=sum(host.up for host in pool.hosts),
        declared=declared is not None,
        settings=_settings(declared, pool.pool),
        removed_hosts=tuple(host_id for host_id in before if host_id not in present),
        hosts=tuple(_host(seen, pool, host, before.get(host.host.id), weights) for host in pool.hosts),
    )


def _host(seen: _Seen, pool: PoolReason, host: HostReason, declared: Host | None, weights: _Weights) -> HostStatus:
    pool_id, host_id = pool.pool.id, host.host.id
    key = record_key(pool_id, host_id)
    counts = seen.counts.hosts.get((pool_id, host_id))
    checked = pool.pool.check_of(host.host) is not None
    failure = seen.failures.get((pool_id, host_id))
    last_check = seen.known.checks.get(key) if checked else None
    state = host.state
    later = seen.known.states.get(key, state)
    by_hand = done_by_hand(host.host, later)
    failing = state.failed or state.failcount > 0
    return HostStatus(
        id=host_id,
        address=host.host.address,
        status=state.status.value,
        share=host.share if pool.used else 0.0,
        share_of_pool=host.share,
        weight=host.host.weight,
        why=host.reason,
        by_hand=by_hand.get("reason", ""),
        by=by_hand.get("by", ""),
        until=by_hand.get("until", 0),
        failcount=later.failcount,
        last_failure=state.lastfail if failing else failure.at if failure else 0,
        last_failure_reason=state.reason if failing else failure.reason if failure else "",
        probe_in_s=max(0.0, state.due_at - seen.now) if state.failed and not (checked and seen.checking) else None,
        checked=checked,
        last_check=last_check.wall if last_check else 0,
        last_result=str(last_check.result) if last_check else "",
        requests=_requests(counts) if counts else 0,
        errors=sum(counts.failures.values()) if counts else 0,
        in_flight=counts.in_flight if counts else 0,
        latency=_latency(counts) if counts else None,
        declared=declared is not None,
        settings=_settings(declared, host.host),
        capacity_without=weights.capacity(without=host_id),
    )


def _settings(declared: S | None, current: S) -> tuple[Setting, ...]:
    if declared is None:
        return ()
    changed = changed_options(declared, current)
    return tuple(Setting(name=name, value=now, declared=was) for name, was, now in changed)


def _requests(counts: HostCounts) -> int:
    return counts.successes + sum(counts.failures.values()) + counts.ignored


# ── capacity ──────────────────────────────────────────────────────────────────────────────────


class _Weights:
    """What the hosts of a pool can take, by their weights; all the same where none has a weight."""

    def __init__(self, hosts: Sequence[HostReason], declared: Mapping[str, Host]) -> None:
        # A drained host counts as what it was: to drain one of two leaves half.
        full = sum(each.host.weight or _weight(declared.get(each.host.id)) for each in hosts)
        self._hosts = len(hosts)
        self._full = full
        self._up = {each.host.id: each.host.weight for each in hosts if each.up}
        self._now = sum(self._up.values())

    def capacity(self, *, without: str = "") -> float:
        """The part that is up; where only hosts without a weight are left, that of their number.

        :param without: the id of a host that is not to count; ids are not empty.
        """
        is_up = without in self._up
        left = self._now - self._up.get(without, 0)
        if left:
            return min(1.0, left / self._full)
        return (len(self._up) - is_up) / self._hosts if self._hosts else 0.0


def _weight(host: Host | None) -> int:
    return host.weight if host else 0


# ── latency ───────────────────────────────────────────────────────────────────────────────────


def _latency(counts: HostCounts) -> Latency | None:
    if not any(counts.buckets):
        return None
    p50, p90, p99 = (quantile(counts.buckets, part) for part in (0.5, 0.9, 0.99))
    return Latency(p50=p50, p90=p90, p99=p99)


def quantile(buckets: Sequence[int], part: float) -> float:
    """The duration in seconds that ``part`` of the attempts did not exceed: linear inside a bucket.

    :param buckets: how many attempts took up to each of ``BOUNDS_S``, and more than the last; not all 0.
    """
    rank = part * sum(buckets)
    below = 0
    for number, (count, bound) in enumerate(zip(buckets, BOUNDS_S, strict=False)):
        if count and below + count >= rank:
            start = BOUNDS_S[number - 1] if number else 0.0
            return min(bound, start + (bound - start) * (rank - below) / count)
        below += count
    return BOUNDS_S[-1]
