"""What one request may use, and in which order. Pure.

Pools by priority; in a pool first the host that the request's session stays at, then the failed host whose
probe this request was granted, then the hosts in the order of the pool's method; when no pool has anything
left, the last resort. A host is never offered twice to one request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.structs import replace

from resty_upstream.counts import Row
from resty_upstream.load import Load
from resty_upstream.methods import (
    BY_LOAD,
    Candidate,
    Key,
    Method,
    RoundRobin,
    Setting,
    find_method,
    is_registered,
    ramp,
    with_slow_start,
)
from resty_upstream.model import Host, Pool, Pools, record_key
from resty_upstream.state import HostState, Rules, Status, told_of_down, told_of_weight

if TYPE_CHECKING:
    from random import Random

LAST_RESORT_ATTEMPTS: Final = 3


class Target:
    """A host in its pool, with its state: what a method picks."""

    __slots__ = (
        "address",
        "available",
        "back_at",
        "due_at",
        "end",
        "failed",
        "host",
        "id",
        "key",
        "load",
        "parsed",
        "pool",
        "quiet",
        "read_timeout_s",
        "row",
        "spotless",
        "state",
        "status_codes",
        "timeout_s",
        "weight",
    )

    def __init__(self, pool: Pool, host: Host, state: HostState) -> None:
        self.pool = pool
        """A newer one of the same options, where only other hosts of it changed."""
        self.host = host
        self.state = state
        self.key = record_key(pool.id, host.id)
        self.id = host.id
        self.weight = host.weight
        self.timeout_s = pool.timeout_s
        self.read_timeout_s = pool.read_timeout_s
        self.status_codes = pool.status_codes_of(host)
        """The masks of statuses with which the host fails, for requests of HTTP."""
        self.available = state.up
        self.failed = state.failed
        self.due_at = state.due_at
        self.back_at = state.back_at
        self.end = min(state.ends_at, host.weight_end.until) if host.weight_end else state.ends_at
        """When what a person did to it is over, in epoch seconds; never, mostly."""
        self.load: Load | None = None
        """What this process has under way there, in pools that ask for it."""
        self.row: Row | None = None
        """Where attempts are counted, once there was one."""
        self.spotless = state.up and not state.failcount
        """Whether a success here says nothing that is not known."""
        self.quiet = self.spotless and pool.sticky is None
        """Whether nobody needs to hear of a success here: not the others, no session, and no :class:`Load`."""
        self.parsed = False
        self.address: object = None
        """What the connectors make of the host's address, once they were asked."""

    def now(self, state: HostState) -> Target:
        """The same host in another state."""
        target = Target(self.pool, self.host, state)
        target.parsed, target.address = self.parsed, self.address
        target.row = self.row
        if self.load is not None:
            target.note_load(self.load)
        return target

    def note_load(self, load: Load) -> None:
        """Have attempts tell of their load."""
        self.load, self.quiet = load, False

    def __repr__(self) -> str:
        return f"<Target {self.pool.id}/{self.id} {self.state.status}>"


class PoolPlan:
    """A pool that is up, ready for picking."""

    __slots__ = ("failed", "hosts", "method", "pool")

    def __init__(self, pool: Pool, hosts: tuple[Target, ...], method: Method) -> None:
        self.pool = pool
        self.hosts = hosts
        self.method = method
        failed = [host for host in hosts if host.failed]
        # A host that would get no traffic if it were up is not worth a request to find out.
        someone_weighted = bool(failed) and any(host.available and host.weight for host in hosts)
        worth_it = [host for host in failed if host.weight > 0 or not someone_weighted]
        self.failed = tuple(sorted(worth_it, key=attrgetter("due_at")))
        """Those that requests probe, the first one due in front."""

    def due(self, now: float) -> Target | None:
        """The first failed host that a request may probe."""
        return self.failed[0] if self.failed and now >= self.failed[0].due_at else None

    def pick(self, key: Callable[[Pool], Key | None], tried: Container[Candidate]) -> Target | None:
        """The method's next host."""
        method = self.method
        picked: Candidate | None = method.pick(key(self.pool) if method.uses_key else None, tried)
        return picked  # type: ignore[return-value]  # a method is built with targets and picks one of them


class Choice(NamedTuple):
    """A host to try next."""

    target: Target
    prober: str = ""
    """The lease of the probe that this attempt is."""
    last_resort: bool = False


class Snapshot:
    """Pools and the state of their hosts at one moment; nothing in it changes."""

    __slots__ = ("asks_visitors", "ends", "loads", "next_end", "plans", "pools", "targets", "untroubled")

    def __init__(
        self,
        pools: Pools,
        targets: Mapping[str, Target],
        plans: tuple[PoolPlan, ...],
        loads: Mapping[str, Load] = MappingProxyType({}),
        ends: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.ends = ends
        """When what a person did to a host is over, in epoch seconds; only of hosts with such an end."""
        self.next_end = min(ends.values(), default=math.inf)
        self.loads = loads
        """Of hosts of pools that ask for it; they go on from one snapshot of a process to the next."""
        self.pools = pools
        self.targets = targets
        self.plans = plans
        """Pools that are up, the one to try first in front."""
        first = plans[0] if plans else None
        self.untroubled = first if first and not first.failed and first.pool.sticky is None else None
        """The first pool, when no host of it has failed and no session stays: what nearly every request needs."""
        asking = [plan for plan in plans if plan.pool.sticky is not None or plan.method.uses_key]
        self.asks_visitors = bool(asking) or not plans
        """Whether any pool goes by who makes a request; as long as there are none, the first one may."""

    def rules(self, key: str) -> Rules | None:
        """The rules of a host's pool; None when the host is gone."""
        target = self.targets.get(key)
        return Rules.of(target.pool) if target else None


EMPTY: Final = Snapshot((), {}, ())


def kept_host(snapshot: Snapshot, pool: Pool, host_id: str | None) -> Target | None:
    """The host that a session stays at, while it is up; it may be drained."""
    target = snapshot.targets.get(record_key(pool.id, host_id)) if host_id is not None else None
    return target if target is not None and target.available else None


def build(
    pools: Pools,
    states: Mapping[str, HostState],
    *,
    random: Random,
    secret: bytes,
    previous: Snapshot = EMPTY,
    now: Callable[[], float] = float,
) -> Snapshot:
    """A snapshot; what did not change since ``previous`` is taken over, as are methods' positions.

    A pool whose method only another process registered is served by round robin.
    """
    setting = Setting(random, secret, None, now)
    loads: dict[str, Load] = {}
    old_plans = {plan.pool.id: plan for plan in previous.plans}
    targets: dict[str, Target] = {}
    plans = []
    for pool in pools:
        old = old_plans.get(pool.id)
        hosts = _targets(pool, states, previous, old)
        targets.update([(target.key, target) for target in hosts])
        if _asks_for_load(pool):
            for target in hosts:
                loads[target.key] = load = previous.loads.get(target.key) or Load(pool.timeout_s)
                load.timeout_s = pool.timeout_s
                target.note_load(load)
        if pool.up:
            plans.append(_plan(pool, hosts, old, setting))
    plans.sort(key=lambda plan: plan.pool.priority)  # stable: ties keep the order of creation
    ends = {target.key: target.end for target in targets.values() if target.end < math.inf}
    return Snapshot(pools, targets, tuple(plans), loads, ends)


def _asks_for_load(pool: Pool) -> bool:
    return pool.method in BY_LOAD or pool.outlier_detection is not None


def update(
    previous: Snapshot,
    states: Mapping[str, HostState],
    *,
    random: Random,
    secret: bytes,
    now: Callable[[], float] = float,
) -> Snapshot:
    """``previous`` with these hosts in these states; the others are not looked at."""
    setting = Setting(random, secret, None, now)
    changed: dict[Target, Target] = {}
    for key, state in states.items():
        old = previous.targets.get(key)
        if old is not None and old.state != state:
            changed[old] = old.now(state)
    if not changed:
        return previous
    targets = dict(previous.targets)
    targets.update([(target.key, target) for target in changed.values()])
    pools = {target.pool.id for target in changed}
    plans = [_with(plan, changed, setting) if plan.pool.id in pools else plan for plan in previous.plans]
    candidates = [targets[key] for key in previous.ends] + list(changed.values())
    ends = {target.key: target.end for target in candidates if target.end < math.inf}
    return Snapshot(previous.pools, targets, tuple(plans), previous.loads, ends)


def _with(plan: PoolPlan, changed: Mapping[Target, Target], setting: Setting) -> PoolPlan:
    hosts = tuple([changed.get(target, target) for target in plan.hosts])
    return _plan(plan.pool, hosts, plan, setting)


def _plan(pool: Pool, hosts: tuple[Target, ...], old: PoolPlan | None, setting: Setting) -> PoolPlan:
    if old is not None and old.pool.method != pool.method:
        old = None
    if old is not None and old.hosts == hosts:
        return old if old.pool is pool else PoolPlan(pool, hosts, old.method)
    factory = find_method(pool.method) if is_registered(pool.method) else RoundRobin
    of_pool = setting._replace(
        previous=old.method if old else None, slow_start_s=float(pool.slow_start), load=pool.load
    )
    return PoolPlan(pool, hosts, with_slow_start(factory, hosts, of_pool))


_UNKNOWN: Final = HostState()


def _targets(
    pool: Pool, states: Mapping[str, HostState], previous: Snapshot, old: PoolPlan | None
) -> tuple[Target, ...]:
    """The hosts of a pool; those that are as they were are the same objects."""
    if old is None or (old.pool is not pool and replace(old.pool, hosts=pool.hosts) != pool):
        return tuple([_target(pool, host, states, None) for host in pool.hosts])
    if len(old.hosts) == len(pool.hosts):
        # Nearly all of them are as they were, which is told without a call.
        known = states.get
        pairs = zip(old.hosts, pool.hosts, strict=True)
        hosts = [
            t if t.host == host and known(t.key) is t.state else _target(pool, host, states, previous)
            for t, host in pairs
        ]
    else:
        hosts = [_target(pool, host, states, previous) for host in pool.hosts]
    if old.pool is not pool:
        for target in hosts:
            target.pool = pool
    return tuple(hosts)


def _target(pool: Pool, host: Host, states: Mapping[str, HostState], previous: Snapshot | None) -> Target:
    key = record_key(pool.id, host.id)
    state = states.get(key, _UNKNOWN)
    old = previous.targets.get(key) if previous is not None else None
    if old is not None and old.host == host:
        return old if old.state == state else old.now(state)
    return Target(pool, host, state)


def choices(
    snapshot: Snapshot,
    *,
    key: Callable[[Pool], Key | None],
    tried: set[Target],
    now: Callable[[], float],
    claim: Callable[[Target], str],
    last_resort: bool,
    session: Callable[[Pool], str | None] = lambda _pool: None,
) -> Iterator[Choice]:
    """The hosts that one request tries, in order.

    :param key: works out the request's key for a pool, when its method asks for it.
    :param tried: hosts that are passed over; each host that is offered is added to it.
    :param claim: asks for the lease to probe a host: its owner's name, or "" when refused.
    :param session: the id of the host that the request's session stays at, in a pool that is sticky.
    """
    for plan in snapshot.plans:
        if plan.pool.sticky is not None:
            # Before any probe: a session is not to find out whether another host is back.
            kept = kept_host(snapshot, plan.pool, session(plan.pool))
            if kept is not None and kept not in tried:
                tried.add(kept)
                yield Choice(kept)
        for target in plan.failed:
            if now() < target.due_at:
                break
            if target not in tried and (prober := claim(target)):
                tried.add(target)
                yield Choice(target, prober)
        while (picked := plan.pick(key, tried)) is not None:
            tried.add(picked)
            yield Choice(picked)
        for target in plan.hosts:  # spares: those that have no share while a host with a weight is available
            if target.available and target not in tried:
                tried.add(target)
                yield Choice(target)
    if last_resort:
        failed = (target for plan in snapshot.plans for target in plan.hosts if target.state.failed)
        oldest_first = sorted(failed, key=lambda target: target.state.failed_at)
        for target in [target for target in oldest_first if target not in tried][:LAST_RESORT_ATTEMPTS]:
            tried.add(target)
            yield Choice(target, last_resort=True)


def back_by_checks(target: Target) -> str:
    """What brings a failed host back that checks watch, for people."""
    check = target.pool.check_of(target.host)
    left = max(1, check.rise - target.state.good_checks) if check else 1
    return "one good check brings it back" if left == 1 else f"{left} good checks in a row bring it back"


# ── explain ───────────────────────────────────────────────────────────────────────────────────


class HostReason(NamedTuple):
    """Why a host is taken or passed over."""

    host: Host
    up: bool
    share: float
    """Its part of what the pool gets now, from 0 to 1."""
    reason: str
    state: HostState
    """Its record: status, failures and times."""


class PoolReason(NamedTuple):
    """Why a pool is used or not."""

    pool: Pool
    used: bool
    reason: str
    hosts: tuple[HostReason, ...]


class Explanation(NamedTuple):
    """What ``connect`` would do now; ``str()`` of it is a text for people."""

    pools: tuple[PoolReason, ...]
    summary: str

    def __str__(self) -> str:
        lines = [self.summary]
        for pool, _, reason, hosts in self.pools:
            lines.append(f"pool {pool.id} (priority {pool.priority}, {pool.method}): {reason}")
            lines += [f"  host {host.host.id} {host.host.address}: {host.reason}" for host in hosts]
        return "\n".join(lines)


def explain(
    snapshot: Snapshot,
    key: Callable[[Pool], Key | None],
    now: float,
    *,
    wall: float,
    excluded: set[Target],
    last_resort: bool,
    session: Callable[[Pool], str | None] = lambda _pool: None,
    checking: bool = False,
) -> Explanation:
    """Every pool and host, with the reason it is taken or passed over by a request with this key.

    :param wall: ``now`` in epoch seconds.
    :param excluded: hosts on which the request failed already.
    :param session: as of :func:`choices`.
    :param checking: whether a process checks hosts: those with a check are left to it.
    """
    not_probed = {t for t in snapshot.targets.values() if _is_left_to_checks(t)} if checking else set()
    plans = {plan.pool.id: plan for plan in snapshot.plans}
    used = next((plan for plan in snapshot.plans if _first_choice(plan, now, excluded, not_probed)), None)
    kept = kept_host(snapshot, used.pool, session(used.pool)) if used is not None else None
    kept = None if kept in excluded else kept
    in_order = [plan.pool for plan in snapshot.plans]
    in_order += [pool for pool in snapshot.pools if pool.id not in plans]
    pools = []
    for pool in in_order:
        hosts = tuple(snapshot.targets[record_key(pool.id, host.id)] for host in pool.hosts)
        weighted = any(host.available and host.weight for host in hosts)
        total = sum(_portion(host, weighted, now) for host in hosts if host.available) or 1
        keyed = _keyed_pick(plans.get(pool.id), key, excluded)
        reasons = tuple(
            HostReason(host.host, host.state.up, 0.0, "passed over: this request failed on it", host.state)
            if host in excluded and host.available
            else _of_session(host, total, weighted, kept, now)
            if kept is not None and used is not None and used.pool is pool and host.available
            else _host_reason(
                host,
                total,
                weighted,
                keyed,
                now,
                wall,
                used=used is not None and used.pool is pool,
                left_to_checks=host in not_probed,
            )
            for host in hosts
        )
        reason = _pool_reason(pool, plans.get(pool.id), used)
        pools.append(PoolReason(pool, used is not None and used.pool is pool, reason, reasons))
    return Explanation(tuple(pools), _summary(snapshot, used, kept, excluded, not_probed, now, last_resort))


def _is_left_to_checks(target: Target) -> bool:
    return target.failed and target.pool.check_of(target.host) is not None


def _first_choice(plan: PoolPlan, now: float, excluded: set[Target], not_probed: set[Target]) -> Target | None:
    """A host of the pool that a request would try, were the pool the first."""
    due = _probe(plan, now, excluded | not_probed)
    return due or next((host for host in plan.hosts if host.available and host not in excluded), None)


def _probe(plan: PoolPlan, now: float, passed_over: set[Target]) -> Target | None:
    return next((host for host in plan.failed if now >= host.due_at and host not in passed_over), None)


def _keyed_pick(plan: PoolPlan | None, key: Callable[[Pool], Key | None], excluded: set[Target]) -> Target | None:
    if plan is None or not plan.method.uses_key:
        return None
    value = key(plan.pool)
    return None if value is None else plan.pick(lambda _pool: value, excluded)


def _summary(
    snapshot: Snapshot,
    used: PoolPlan | None,
    kept: Target | None,
    excluded: set[Target],
    not_probed: set[Target],
    now: float,
    last_resort: bool,
) -> str:
    if used is not None:
        if kept is not None:
            return f"connect tries pool {used.pool.id} first, and there host {kept.id}: the host of this session"
        due = _probe(used, now, excluded | not_probed)
        if due is not None:
            return f"connect tries pool {used.pool.id} first, and there host {due.id}: it is time to probe it"
        return f"connect tries pool {used.pool.id} first"
    if not snapshot.pools:
        return "connect fails: there are no pools"
    hosts = (host for plan in snapshot.plans for host in plan.hosts)
    failed = sum(host.state.failed and host not in excluded for host in hosts)
    if failed and last_resort:
        return f"no host is available: as a last resort, connect tries {min(failed, LAST_RESORT_ATTEMPTS)} failed"
    return "connect fails: no host is available"


def _pool_reason(pool: Pool, plan: PoolPlan | None, used: PoolPlan | None) -> str:
    if plan is None:
        return "passed over: the pool is down"
    if not pool.hosts:
        return "passed over: it has no hosts"
    if plan is used:
        return "used: the first in order with a host to try"
    if not any(host.available for host in plan.hosts):
        return "passed over: none of its hosts is available"
    return f"in reserve behind pool {used.pool.id}" if used else "passed over: this request failed on its hosts"


def _portion(target: Target, weighted: bool, now: float) -> float:
    """What counts of a host that is up, beside those of the others."""
    return (target.weight if weighted else 1) * ramp(target, now, float(target.pool.slow_start))


def _of_session(target: Target, total: float, weighted: bool, kept: Target, now: float) -> HostReason:
    """Of a host that is up, in a pool where this session stays at one."""
    share = _portion(target, weighted, now) / total
    reason = "taken: the host of this session" if target is kept else "passed over: not this session's host"
    return HostReason(target.host, target.state.up, share, reason, target.state)


def _host_reason(
    target: Target,
    total: float,
    weighted: bool,
    keyed: Target | None,
    now: float,
    wall: float,
    *,
    used: bool,
    left_to_checks: bool,
) -> HostReason:
    state = target.state
    share = 0.0
    if state.status is Status.MANUAL:
        reason = f"passed over: taken down {told_of_down(state, wall)}"
    elif left_to_checks:
        reason = f"passed over: failed ({state.reason}), {back_by_checks(target)}"
    elif state.status is Status.PROBING and not state.due(now):
        reason = f"passed over: failed ({state.reason}), a request is probing it"
    elif state.failed and state.due(now):
        reason = f"failed ({state.reason}): its time is over, the next request here probes it"
    elif state.failed:
        reason = f"passed over: failed ({state.reason}), probed in {state.down_until - now:.1f} s"
    elif weighted and not target.weight:
        reason = "passed over: weight 0 while another host has a weight"
    else:
        share = _portion(target, weighted, now) / total
        taken = "taken" if used else "ready"
        reason = f"{taken}: {share:.0%} of the pool's traffic"
        if keyed is not None:
            reason = f"{taken}: the host of this key" if keyed is target else "passed over: not this key's host"
        if ramp(target, now, float(target.pool.slow_start)) < 1:
            reason += f" (slow start: back for {now - target.back_at:.0f} s of {target.pool.slow_start:g} s)"
        if state.failcount:
            reason += f" ({state.failcount} of {target.pool.max_fails} failures in a row)"
    if weight := told_of_weight(target.host, wall):
        reason += f" ({weight})"
    return HostReason(target.host, state.up, share, reason, state)
