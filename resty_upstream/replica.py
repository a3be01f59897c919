"""One process's copy of what the store says, and its way of telling the store what happened.

Reading: a snapshot is decoded once per change of routing and shared by all threads. Writing: facts about
hosts are committed together; what cannot be written now waits in a queue, one short list per host, that
the next commit takes along. No error of the store leaves through the request path: the last snapshot
serves, facts are applied to it in this process, and the store is tried again every second (*fail static*).
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from resty_upstream.counts import EXHAUSTED, SIZE, Row, UpstreamCounts, host_counts, row_key
from resty_upstream.errors import StoreBusy, StoreError, StoreFormatError
from resty_upstream.events import HostEvent, Listeners, fields
from resty_upstream.health.functions import CheckFunction, Functions
from resty_upstream.health.results import CHECKER_LEASE, LastCheck, read_results
from resty_upstream.history import Transition, encode_transition, standing
from resty_upstream.loops import in_loop
from resty_upstream.methods import is_registered
from resty_upstream.model import (
    Config,
    Definition,
    GivenHealth,
    Host,
    Pool,
    Pools,
    decode_config,
    encode_config,
    merge,
    pools_to_dicts,
    record_key,
    split_key,
    with_weights_as_of,
)
from resty_upstream.selection import EMPTY, PoolPlan, Snapshot, Target, build, update
from resty_upstream.state import (
    Change,
    Eject,
    Expire,
    Fact,
    Failure,
    HostState,
    Probe,
    Rules,
    Status,
    Success,
    added,
    apply,
    as_of,
    decode_state,
    done_by_hand,
    encode_state,
    given,
    may_eject,
    over,
    rebooted,
    shown,
)
from resty_upstream.stores import WAIT_S, Changes, Store, View

if TYPE_CHECKING:
    from resty_upstream.health.runner import Checker

T = TypeVar("T")

_PATIENCE_S: Final = 0.005  # what a request waits for the store's lock after its response
_READ_WAIT_S: Final = 0.25
_RETRY_S: Final = 1.0
_CLAIM_AGAIN_S: Final = 1.0
_FAILURES_KEPT: Final = 10_000
_BUSY_AGAIN_S: Final = 0.05
_ALIKE_S: Final = 5.0
_SAID_S: Final = 60.0
_WRITE_ENDS_S: Final = 1.0

_log = logging.getLogger("resty_upstream.store")
_failover_log = logging.getLogger("resty_upstream.failover")


class Observation(NamedTuple):
    """A fact about the host of a target."""

    target: Target
    fact: Fact


class Known(NamedTuple):
    """Pools, and by :func:`~resty_upstream.model.record_key` what is known of their hosts."""

    pools: Pools
    states: Mapping[str, HostState]
    checks: Mapping[str, LastCheck]
    """The last check of each host that was ever checked."""

    @property
    def are_checked(self) -> bool:
        """Whether there is a host to be checked."""
        return _are_checked(self.pools)


class Edit:
    """A transaction on one upstream, with the store's bytes decoded."""

    def __init__(self, view: View, upstream_id: str, found: Callable[[], Config]) -> None:
        self.view = view
        self.events: list[HostEvent] = []
        self._upstream_id = upstream_id
        self._found = found
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        """The configuration document; a new one where there is none, or none that can be read."""
        if self._config is None:
            if self.view.has_config:
                self._config = decode_config(self.view.config)
                if self._config is None:
                    _log.error(
                        "the stored configuration of upstream %s is damaged: begun anew",
                        self._upstream_id,
                        extra=fields("config_damaged", id=self._upstream_id),
                    )
            if self._config is None:
                self.save(self._found())
        return self._config  # type: ignore[return-value]  # set by save

    @property
    def states(self) -> dict[str, HostState]:
        """All host records, by key."""
        found = {key: self.view.get(key) for key in self.view.keys()}  # noqa: SIM118 - a view is not a mapping
        return {key: _decode_state(data) for key, data in found.items() if data is not None}

    def save(self, config: Config) -> None:
        """Replace the configuration document."""
        self._config = config
        self.view.config = encode_config(config)

    def state(self, pool_id: str, host_id: str) -> HostState | None:
        """The state of a host; None when there is no such host."""
        data = self.view.get(record_key(pool_id, host_id))
        return None if data is None else _decode_state(data)

    def put(self, pool_id: str, host_id: str, state: HostState) -> None:
        """Write the state of a host; routing changes."""
        self.view.put(record_key(pool_id, host_id), encode_state(state))
        self.view.touch()

    def apply(self, pool: Pool, host: Host, fact: Fact, *, by: str = "") -> HostState | None:
        """Let a fact work on a host: write, record and note the event if it changes something.

        :param by: who did it.
        """
        state = self.state(pool.id, host.id)
        if state is None:
            return None
        if isinstance(fact, Eject) and not self._may_eject(pool.id):
            return state
        if isinstance(fact, Expire):
            self._end_weight(pool.id, host.id, fact.wall)
        change = apply(state, fact, Rules.of(pool))
        if change.state is not state:
            self.view.put(record_key(pool.id, host.id), encode_state(change.state))
        if change.routing:
            self.view.touch()
        self.note(pool, host, state, change, by=by)
        return change.state

    def _may_eject(self, pool_id: str) -> bool:
        """Whether a soft rule may take one more host of the pool, as all workers have it now."""
        pool = self._pool(pool_id)
        states = [self.state(pool_id, host.id) for host in pool.hosts] if pool else []
        return may_eject(sum(state is not None and state.up for state in states), len(states))

    def _end_weight(self, pool_id: str, host_id: str, wall: float) -> None:
        """Have the weight of a host be what it was before, if it is time."""
        pool = self._pool(pool_id)
        host = pool.find(host_id) if pool else None
        if pool and host and host.weight_end and host.weight_end.until <= wall:
            self.put_host(pool, host, host.with_weight_as_of(wall), over(host.weight_end.until, wall))

    def _pool(self, pool_id: str) -> Pool | None:
        return next((pool for pool in self.config.pools if pool.id == pool_id), None)

    def put_pool(self, changed: Pool) -> None:
        """Replace the pool of that id."""
        config = self.config
        pools = tuple(changed if pool.id == changed.id else pool for pool in config.pools)
        self.save(replace(config, pools=pools))

    def put_host(self, pool: Pool, before: Host, after: Host, reason: str, *, by: str = "") -> None:
        """Replace a host of a pool, as they are stored, and record what becomes of its weight."""
        self.put_pool(replace(pool, hosts=tuple(after if host is before else host for host in pool.hosts)))
        self.record_weight(pool, before, after, reason, by=by)

    def record_weight(self, pool: Pool, before: Host, after: Host, reason: str, *, by: str = "") -> None:
        """Put what became of the weight of a host into the history, if it is another one."""
        if before.weight != after.weight:
            self._log(pool.id, after.id, f"weight {before.weight}", f"weight {after.weight}", reason, by)

    def note(self, pool: Pool, host: Host, before: HostState, change: Change, *, by: str = "") -> None:
        """Record a transition, and remember its event, to be emitted after the commit."""
        reason = change.reason or change.state.reason
        self.record(record_key(pool.id, host.id), before, change.state, reason, by=by)
        if change.event:
            self.events.append(HostEvent(change.event, self._upstream_id, pool, host, change.reason, time.time()))

    def record(self, key: str, before: HostState, after: HostState, reason: str, *, by: str = "") -> None:
        """Put what happened to a host into the history, if it is a transition."""
        was, became = standing(before.status), standing(after.status)
        if was != became:
            self._log(*split_key(key), was, became, reason, by)

    def _log(self, pool_id: str, host_id: str, before: str, after: str, reason: str, by: str) -> None:
        transition = Transition(
            at=time.time(),
            pool=pool_id,
            host=host_id,
            before=before,
            after=after,
            reason=reason,
            process=os.getpid(),
            by=by,
        )
        self.view.log(encode_transition(transition))


def nothing(_edit: Edit) -> None:
    """The transaction that only takes along what waits."""


class Replica:
    """The shared state of one upstream as this process knows it."""

    def __init__(self, store: Store, upstream_id: str, listeners: Listeners) -> None:
        self.store = store
        self.id = upstream_id
        self.now = store.now
        self.listeners = listeners
        self.configured: bool | None = None
        """Whether pools were stored already when the store was first read; None until then."""
        self.is_checked = False
        """Whether some host has an active check, as far as this process knows."""
        self.functions = Functions()
        self._declared: Definition | None = None
        self._declared_is_new = False
        self._mark: object = None  # how far this process knows the store
        self._config: Config | None = None
        self._states: dict[str, HostState] = {}  # as stored; the snapshot also has what is queued
        self._on_top: set[str] = set()  # hosts for which the snapshot has what is queued
        self._snapshot = EMPTY
        # No property: every request asks, and that would cost as much as all else that a middleware does.
        self.asks_visitors = EMPTY.asks_visitors
        """Whether pools go by who makes a request, as far as this process knows: the store is not looked at."""
        self.is_loaded = False
        """Whether :meth:`snapshot` has something to give without opening the store."""
        self._secret = b""
        self._trouble: StoreError | None = None
        self._complaints: set[str] = set()
        self._row: Row | None = None
        self._queue: dict[str, list[Observation]] = {}
        self._reset()
        _replicas.add(self)

    def _reset(self) -> None:
        """What a process must have of its own: locks, randomness, its queue, its positions."""
        self._loaded: int | None = None  # the version that was taken in last
        self._seen: int | None = None  # the same, where there is nothing to look for until there is another one
        self._write_ends_at = float("inf")
        self._retry_at = float("-inf")
        self._reload_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._random = Random()
        self._queue = {}
        self._in_flight: tuple[dict[str, list[Observation]], ...] = ()
        self._shows_in_flight = False
        self._flush_again_at = float("-inf")
        self._claim_again_at: dict[str, float] = {}
        self._said_at: dict[str, float] = {}
        self.checker: Checker | None = None
        """What checks hosts from this process."""
        self._forked = True  # the next snapshot starts at positions of its own
        self._pid = os.getpid()

    def own(self) -> None:
        """Notice a fork that ran no hooks (uWSGI). Off the hot path: such a process comes by here first."""
        if self._pid != os.getpid():
            with _fork_guard:
                if self._pid != os.getpid():
                    self._reset()

    def declare(self, definition: Definition) -> None:
        """Have the next transaction of this process merge these pools into the stored ones."""
        self._declared = definition
        self._declared_is_new = True
        self.functions = Functions()
        self.is_checked = self.is_checked or _are_checked(definition.pools)

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    @property
    def secret(self) -> bytes:
        """What all processes that share the store know, and nobody else; empty as long as it was never read."""
        return self._secret

    def snapshot(self) -> Snapshot:
        """What this process knows; as new as the store's version. Never raises for the store.

        While a person's change of a host has an end, each call reads the wall clock, and none does otherwise.
        """
        version = self.store.version(self.id)
        if version == self._seen:
            return self._snapshot
        if version != self._loaded:
            self._reload(version)
        wall = time.time()
        if wall >= self._snapshot.next_end:
            self._end_due(wall)
        elif wall >= self._write_ends_at:
            self._write_ends(wall)
        return self._snapshot

    def _end_due(self, wall: float) -> None:
        """Have over what was to be until now: at once in this process, and for all with the next commit."""
        if not self._reload_lock.acquire(timeout=_patience_s()):
            return  # another thread is at it
        try:
            snapshot = self._snapshot
            due = [key for key, end in snapshot.ends.items() if end <= wall]
            for key in due:
                self._enqueue(Observation(snapshot.targets[key], Expire(self.now(), wall)))
            self._write_ends_at = min(self._write_ends_at, wall + _WRITE_ENDS_S)
            self._rebuild(with_weights_as_of(snapshot.pools, wall), self._secret, due)
        finally:
            self._reload_lock.release()

    def _write_ends(self, wall: float) -> None:
        """Write what was found to be over a while ago, where no request has done it after its response."""
        if self.has_queue:
            self.flush()
        self._write_ends_at = wall + _WRITE_ENDS_S if self.has_queue else float("inf")
        self._forget_version()

    def _forget_version(self) -> None:
        """Have the next snapshot look at the store."""
        self._loaded = self._seen = None

    def _reload(self, version: int) -> None:
        self.own()
        if self.now() < self._retry_at:
            return
        events: list[HostEvent] = []
        # Who has nothing yet waits for it. The others do not wait for long, and on an event loop not at all.
        patience_s, wait_s = (-1.0, _RETRY_S) if self._snapshot is EMPTY else (_patience_s(), _READ_WAIT_S)
        wait_s = wait_s if patience_s else 0.0
        if not self._reload_lock.acquire(timeout=patience_s):
            return  # another thread is at it
        try:
            if self._loaded != version:
                self._take_in(*self._settled_changes(events, wait_s))
                self._loaded = version
                self._seen = version if self._snapshot.next_end == self._write_ends_at == float("inf") else None
                self._recover()
        except StoreBusy as error:
            self._retry_at = self.now() + (_RETRY_S if wait_s else _BUSY_AGAIN_S)
            if self._snapshot is EMPTY:
                self._suffer(error)
        except StoreError as error:
            self._suffer(error)
        finally:
            self._reload_lock.release()
        self.listeners.emit(events)

    def _settled_changes(self, events: list[HostEvent], wait_s: float) -> tuple[Changes, Config | None]:
        """What is new, once what this process has to say about it is in the store."""
        changes = self.store.changes(self.id, self._mark, wait_s=wait_s)
        if self.configured is None:
            self.configured = bool(changes.config)
        config = self._config_after(changes)
        if self._must_settle(changes, config):
            events += self._transact(self._settle, wait_s)[1]
            changes = self.store.changes(self.id, self._mark, wait_s=wait_s)
            config = self._config_after(changes)
        return changes, config

    def _config_after(self, changes: Changes) -> Config | None:
        if changes.config is None:
            return self._config
        return decode_config(changes.config) if changes.config else None

    def _must_settle(self, changes: Changes, config: Config | None) -> bool:
        if config is None:
            return bool(changes.config) or self._config is not None or self._declared is not None
        if config.clock != self.store.clock_id or self._to_merge(config) is not None:
            return True
        return self._is_foreign(config) and self._knows_more_than(config, _decode_states(changes.records))

    def _to_merge(self, config: Config) -> Definition | None:
        """What was declared in this process and is news to the store."""
        # Once per declaration: two releases of an application, side by side, must not undo each other for ever.
        new = self._declared if self._declared_is_new else None
        return new if new is not None and new.pools != config.declared else None

    def _is_foreign(self, config: Config) -> bool:
        """Whether a configuration was begun anew since this process took its copy."""
        return self._config is not None and self._config.secret != config.secret

    def _knows_more_than(self, config: Config, states: Mapping[str, HostState]) -> bool:
        """Whether this process's copy has changes made at run time, and the other has none."""
        own = self._config
        return own is not None and _was_changed(own, self._states) and not _was_changed(config, states)

    def _take_in(self, changes: Changes, config: Config | None) -> None:
        """Make what is new this process's truth."""
        states = _decode_states(changes.records)
        if config is not self._config:
            for pool in config.pools if config else ():
                self._complain_of_unknown_method(pool)
        self._mark, self._config = changes.mark, config
        if changes.is_all:
            self._states = states
        else:
            self._states.update(states)
        pools, secret = (config.pools, bytes.fromhex(config.secret)) if config else ((), b"")
        self._rebuild(pools, secret, None if changes.is_all else states)

    def _rebuild(self, pools: Pools, secret: bytes, changed: Iterable[str] | None) -> None:
        """A new snapshot of the stored states, with what is queued on top.

        :param changed: the hosts whose stored state is another one than before; None: any of them may be.
        """
        self._shows_in_flight |= bool(self._in_flight)
        queued = {key for queue in (*self._in_flight, self._queue) for key in list(queue)}
        begin_anew, self._forked = self._forked, False
        if changed is None or begin_anew or pools is not self._snapshot.pools or secret != self._secret:
            states = self._states | self._with_queue(queued)
            previous = EMPTY if begin_anew else self._snapshot
            self._snapshot = build(
                pools, states, random=self._random, secret=secret, previous=previous, now=self.now
            )
            self.is_checked = _are_checked(pools)
        else:
            # Also those of which something was queued, which may have come to nothing.
            states = self._with_queue({*changed, *queued, *self._on_top})
            self._snapshot = update(self._snapshot, states, random=self._random, secret=secret, now=self.now)
        self._secret, self._on_top = secret, queued
        self.asks_visitors, self.is_loaded = self._snapshot.asks_visitors, True

    def _show_queued(self, keys: Iterable[str]) -> None:
        """Let what is queued of these hosts work in this process."""
        self._shows_in_flight |= bool(self._in_flight)
        states = self._with_queue(keys)
        self._on_top |= states.keys()
        self._snapshot = update(self._snapshot, states, random=self._random, secret=self._secret, now=self.now)

    def _with_queue(self, keys: Iterable[str]) -> dict[str, HostState]:
        """The states of these hosts, with what is queued or being written of them on top."""
        states = {}
        queues = (*self._in_flight, self._queue)
        for key in keys:
            state = self._states.get(key)
            if state is not None:
                states[key] = state
                for target, fact in [o for queue in queues for o in tuple(queue.get(key, ()))]:
                    if not isinstance(fact, Eject) or self._may_eject(target.pool, states):
                        states[key] = apply(states[key], fact, Rules.of(target.pool)).state
        return states

    def _may_eject(self, pool: Pool, newer: Mapping[str, HostState]) -> bool:
        """Whether a soft rule may take one more host of the pool, as far as this process knows.

        :param newer: states that are worked out just now.
        """
        states = [
            newer.get(key) or self._known_state(key) for key in (record_key(pool.id, h.id) for h in pool.hosts)
        ]
        return may_eject(sum(state.up for state in states), len(states))

    def _known_state(self, key: str) -> HostState:
        shows_queued = self._snapshot.targets.get(key) if key in self._on_top else None
        return shows_queued.state if shows_queued else self._states.get(key) or HostState()

    def _complain_of_unknown_method(self, pool: Pool) -> None:
        if not is_registered(pool.method) and pool.method not in self._complaints:
            self._complaints.add(pool.method)
            _log.error(
                "pool %s wants the method %r, which this process did not register: served by round_robin",
                pool.id,
                pool.method,
                extra=fields("method_unknown", id=self.id, pool=pool.id, method=pool.method),
            )

    # ── writing ───────────────────────────────────────────────────────────────────────────────

    def commit(self, fn: Callable[[Edit], T], *, wait_s: float = WAIT_S) -> T:
        """Run ``fn`` and whatever is queued in one transaction; then tell the listeners.

        ``fn`` may run more than once, and sees the upstream as configured.

        :raises StoreError: nothing of ``fn`` was stored then; what was queued still is.
        """
        result, events = self._transact(fn, wait_s)
        self.listeners.emit(events)
        if any(event.name == "host_down" for event in events):
            self._say_if_all_failed_alike({event.pool.id for event in events if event.name == "host_down"})
        return result

    def _say_if_all_failed_alike(self, pool_ids: Collection[str]) -> None:
        """Say of pools whose last host has just gone down that it may be this machine's fault."""
        now = self.now()
        for plan in self.snapshot().plans:
            pool_id = plan.pool.id
            if pool_id in pool_ids and now >= self._said_at.get(pool_id, float("-inf")) + _SAID_S:
                alike = _failed_alike(plan)
                if alike:
                    self._said_at[pool_id] = now
                    _failover_log.warning(
                        "upstream %s: %s",
                        self.id,
                        alike,
                        extra=fields("hosts_failed_alike", id=self.id, pool=pool_id, reason=alike),
                    )

    def _transact(self, fn: Callable[[Edit], T], wait_s: float) -> tuple[T, list[HostEvent]]:
        self.own()
        queued = self._take_queue()
        declared = self._declared

        def work(view: View) -> tuple[T, list[HostEvent]]:
            edit = Edit(view, self.id, self._begin)
            if self._declared_is_new or not view.has_config:
                self._settle(edit)
            for observations in queued.values():
                for target, fact in observations:
                    edit.apply(target.pool, target.host, fact)
            return fn(edit), edit.events

        try:
            done = self.store.transact(self.id, work, wait_s=wait_s)
        except BaseException:
            self._put_back(queued)
            raise
        self._landed(queued)
        if self._declared is declared:
            self._declared_is_new = False
        self._recover()
        return done

    def _settle(self, edit: Edit) -> None:
        """Bring the stored document up to what this process must insist on."""
        if edit.config.clock != self.store.clock_id:
            self._after_reboot(edit)
        own = self._config
        if own is not None and (
            edit.config is own
            or (self._is_foreign(edit.config) and self._knows_more_than(edit.config, edit.states))
        ):
            self._write_back(edit, own)
        declared = self._to_merge(edit.config)
        if declared is not None:
            self._merge_declared(edit, declared)

    def _begin(self) -> Config:
        """What an empty store, or one whose document is damaged, begins with."""
        if self._config is not None:
            return self._config
        return Config(clock=self.store.clock_id, secret=secrets.token_hex(16))

    def _write_back(self, edit: Edit, own: Config) -> None:
        """The store lost what this process still knows."""
        _log.warning(
            "the store of upstream %s is new: written back from this process's copy",
            self.id,
            extra=fields("store_written_back", id=self.id),
        )
        declared = edit.config.declared
        config = replace(own, pools=merge(own.declared, declared, own.pools)).declaring(declared)
        for key in edit.view.keys():  # noqa: SIM118 - a view is not a mapping
            edit.view.delete(key)
        for pool in config.pools:
            for host in pool.hosts:
                state = self._states.get(record_key(pool.id, host.id)) or added(self.now())
                edit.put(pool.id, host.id, state)
        edit.save(config)

    def _after_reboot(self, edit: Edit) -> None:
        """Times of another boot mean nothing now: forget health, keep what a person did."""
        for key, state in edit.states.items():
            edit.view.put(key, encode_state(rebooted(state)))
            edit.record(key, state, rebooted(state), "the machine was started again")
        edit.save(replace(edit.config, clock=self.store.clock_id))

    def _merge_declared(self, edit: Edit, declared: Definition) -> None:
        config = edit.config
        pools = merge(config.declared, declared.pools, config.pools)
        self.put_pools(edit, replace(config, pools=pools).declaring(declared.pools), declared, keep=True)

    def put_pools(self, edit: Edit, config: Config, definition: Definition, *, keep: bool) -> None:
        """Save the configuration, and make the records those of its hosts.

        A new host gets the health that was given with it. One that stays keeps its own; unless ``keep``,
        what was given for it is honoured too.
        """
        now = self.now()
        wanted = {record_key(p.id, h.id): (p, h) for p in config.pools for h in p.hosts}
        before = {record_key(p.id, h.id): (p, h) for p in edit.config.pools for h in p.hosts}
        for key in before.keys() - wanted.keys():
            edit.view.delete(key)
        for key, (pool, host) in wanted.items():
            old = edit.state(pool.id, host.id) if key in before else None
            health = definition.health.get(key)
            if old is None:
                # A process that had to serve without the store knows more of the host than nothing.
                known = self._states.get(key) if self._config is None else None
                state = known or _first_state(health, now, pool)
            elif health is None or keep:
                state = old
            else:
                state = given(old, health, now, Rules.of(pool))
            if state is not old:
                edit.put(pool.id, host.id, state)
            if old is not None:
                edit.note(pool, host, old, _change_by_hand(old, state))
                edit.record_weight(pool, before[key][1], host, "declared" if keep else "by hand")
        edit.save(config)

    def observe(self, observations: Iterable[Observation]) -> None:
        """Tell the store what was seen of hosts. Never raises for the store, never waits long."""
        current = self.snapshot().targets
        news = set()
        for observation in observations:
            key = observation.target.key
            if self._is_news(observation, current.get(key)):
                self._enqueue(observation)
                news.add(key)
        if news or self.has_queue:
            self.flush(news=news)

    @property
    def has_queue(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._queue)

    def flush(self, *, news: Collection[str] = ()) -> None:
        """Write what is queued, or let it work in this process alone until it can be written.

        :param news: hosts of which something was queued that this process's snapshot does not have yet.
        """
        if self.now() >= self._flush_again_at:
            try:
                self.commit(nothing, wait_s=_patience_s())
            except StoreBusy:
                self._flush_again_at = self.now() + _BUSY_AGAIN_S
            except StoreError as error:
                self._flush_again_at = self.now() + _RETRY_S
                self._suffer(error)
            else:
                return
        if news and self._reload_lock.acquire(timeout=_patience_s()):
            try:
                self._show_queued(news)
            finally:
                self._reload_lock.release()

    def claim(self, target: Target) -> str:
        """Ask for the lease to probe a host: the name of its owner, or "" when it is refused."""
        now = self.now()
        if now < self._claim_again_at.get(target.key, float("-inf")):
            return ""
        if target.pool.check_of(target.host) is not None and self.is_somebody_checking():
            self._claim_again_at[target.key] = now + _CLAIM_AGAIN_S
            return ""
        prober = f"{os.getpid()}-{secrets.token_hex(6)}"
        lease_s = max(target.timeout_s, float(target.pool.failed_timeout)) + 1.0
        fact = Probe(now, prober, lease_s)
        wait_s = _CLAIM_AGAIN_S
        try:
            state = self.commit(lambda edit: edit.apply(target.pool, target.host, fact), wait_s=_patience_s())
            if state is not None and state.prober == prober:
                return prober
        except StoreBusy:
            wait_s = _BUSY_AGAIN_S
        except StoreError as error:
            self._suffer(error)
            self._claim_again_at[target.key] = now + lease_s  # a lease in this process alone
            return prober
        self._claim_again_at[target.key] = now + wait_s
        return ""

    # ── active checks ─────────────────────────────────────────────────────────────────────────

    def is_somebody_checking(self) -> bool:
        """Whether a process of all checks hosts now: requests leave it to that one to find out who is back."""
        try:
            return bool(self.store.holder(self.id, CHECKER_LEASE, wait_s=_patience_s()))
        except StoreError:
            return False

    def check_function(self, name: str) -> CheckFunction | None:
        """The application's function of that name, if this process may call it."""
        return self.functions.find(name, self.declared or ())

    def would_change(self, key: str, fact: Fact) -> bool:
        """Whether a fact changes the state of a host, as far as this process knows."""
        target = self.snapshot().targets.get(key)
        return target is not None and self._is_news(Observation(target, fact), target)

    def _is_news(self, observation: Observation, current: Target | None) -> bool:
        if current is not None and isinstance(observation.fact, Eject) and not self._may_eject(current.pool, {}):
            return False
        return _is_news(observation, current)

    # ── the queue ─────────────────────────────────────────────────────────────────────────────

    def _enqueue(self, observation: Observation) -> None:
        self.own()
        with self._queue_lock:
            _coalesce(self._queue.setdefault(observation.target.key, []), observation)

    def _take_queue(self) -> dict[str, list[Observation]]:
        if not self._queue:
            return {}
        with self._queue_lock:
            queue, self._queue = self._queue, {}
            self._in_flight = (*self._in_flight, queue)
            return queue

    def _landed(self, queue: dict[str, list[Observation]]) -> None:
        if queue:
            with self._queue_lock:
                self._in_flight = tuple(other for other in self._in_flight if other is not queue)
            if self._shows_in_flight:
                # A snapshot was built meanwhile, perhaps of states that had these facts already: build again.
                self._shows_in_flight = False
                self._forget_version()

    def _put_back(self, queue: dict[str, list[Observation]]) -> None:
        if not queue:
            return
        self._landed(queue)
        with self._queue_lock:
            for key, observations in self._queue.items():
                older = queue.setdefault(key, [])
                for observation in observations:
                    _coalesce(older, observation)
            self._queue = queue

    # ── counting ──────────────────────────────────────────────────────────────────────────────

    def count_at(self, target: Target) -> Row:
        """The row of a host, found at the first attempt there, and again where it is ours no more."""
        row = target.row
        if row is None or not row.ours[0]:
            key = row_key(self.id, target.pool.id, target.id)
            target.row = row = self.store.counters(key, self._keys_in_use)
        return row

    def count_exhausted(self) -> None:
        """No host was left to a call."""
        row = self._row
        if row is None or not row.ours[0]:
            self._row = row = self.store.counters(row_key(self.id), self._keys_in_use)
        row.cells[EXHAUSTED] += 1.0

    def _keys_in_use(self) -> set[bytes]:
        targets = self._snapshot.targets.values()
        return {row_key(self.id), *(row_key(self.id, target.pool.id, target.id) for target in targets)}

    def counts(self) -> UpstreamCounts:
        """What all processes have counted of the hosts that are configured now."""
        pools, sums = self.snapshot().pools, self.store.sums()
        none = [0.0] * SIZE
        hosts = {
            (pool.id, host.id): host_counts(sums.get(row_key(self.id, pool.id, host.id), none))
            for pool in pools
            for host in pool.hosts
        }
        return UpstreamCounts(hosts, int(sums.get(row_key(self.id), none)[EXHAUSTED]))

    # ── when the store fails ──────────────────────────────────────────────────────────────────

    def _suffer(self, error: StoreError) -> None:
        """Say once that the store fails, and serve without it."""
        self._retry_at = self.now() + _RETRY_S
        if self._trouble is None:
            _log.error(
                "StoreDegraded: %s; serving upstream %s from what is known",
                error,
                self.id,
                extra=fields("store_degraded", id=self.id, reason=str(error)),
            )
        self._trouble = error
        if self._snapshot is EMPTY and self._declared is not None:
            self._states = self.declared_states()
            self._rebuild(self._declared.pools, b"", None)

    def _recover(self) -> None:
        self._retry_at = float("-inf")
        if self._trouble is not None:
            _log.warning(
                "the store of upstream %s works again", self.id, extra=fields("store_recovered", id=self.id)
            )
            self._trouble = None

    @property
    def trouble(self) -> StoreError | None:
        """Why the store cannot be used now; None when it can."""
        return self._trouble

    # ── for people ────────────────────────────────────────────────────────────────────────────

    def read_configured(self) -> bool:
        """Whether pools were stored when the upstream was opened.

        :raises StoreError: when the store cannot be read.
        """
        if self.configured is None:
            self.configured = bool(self.store.read(self.id).config)
        return self.configured

    def examine(self) -> Config | None:
        """What the store holds, looked at without creating or changing anything; None when it holds nothing.

        :raises StoreError: when the store could not be used.
        """
        if not self.store.examine():
            return None
        data = self.store.read(self.id).config
        return decode_config(data) if data else None

    @property
    def declared(self) -> Pools | None:
        """What was declared in this process; None when nothing was."""
        return None if self._declared is None else self._declared.pools

    def declared_states(self) -> dict[str, HostState]:
        """The states that the hosts that were declared in this process begin with."""
        pools, health = self._declared or ((), {})
        now = self.now()
        keys = {record_key(pool.id, host.id): pool for pool in pools for host in pool.hosts}
        return {key: _first_state(health.get(key), now, pool) for key, pool in keys.items()}

    def look(self) -> Known:
        """All pools, with states and checks as of now; as this process knows them, while the store fails."""
        snapshot = self.snapshot()
        pools: Pools = snapshot.pools
        checks: Mapping[str, LastCheck] = {}
        states: dict[str, HostState] = {key: target.state for key, target in snapshot.targets.items()}
        if self._trouble is None:
            try:
                changes = self.store.changes(self.id, self._mark, wait_s=_READ_WAIT_S)
                config = self._config_after(changes)
                if config is not None:
                    pools = config.pools
                    states = ({} if changes.is_all else self._states) | _decode_states(changes.records)
                checks = read_results(self.store, self.id) if _are_checked(pools) else {}
            except StoreBusy:
                pass  # what is known must do
            except StoreError as error:
                self._suffer(error)
                self._forget_version()  # look again, though the version may stay as it is
        pools, states = as_of(pools, states, self.now(), time.time())
        return Known(pools, states, checks)

    def describe(self) -> dict[str, dict[str, Any]]:
        """All pools as plain dicts, counts as of now."""
        pools, states, checks = self.look()
        plain = pools_to_dicts(pools, lambda key: shown(states.get(key) or added(0)))
        for pool in pools:
            for host in pool.hosts:
                key, options = record_key(pool.id, host.id), plain[pool.id]["hosts"][host.id]
                options |= done_by_hand(host, states.get(key) or added(0))
                last = checks.get(key)
                if last is not None and pool.check_of(host) is not None:
                    options |= {"last_check": last.wall, "last_result": str(last.result)}
        return plain


def _was_changed(config: Config, states: Mapping[str, HostState]) -> bool:
    """Whether a person changed anything at run time."""
    return config.pools != config.declared or any(state.status is Status.MANUAL for state in states.values())


def _failed_alike(plan: PoolPlan) -> str:
    """What to say where all hosts of a pool failed in the same way at nearly the same time; "" elsewhere."""
    if len(plan.hosts) < 2 or any(host.available for host in plan.hosts):
        return ""
    reasons = {host.state.reason.removeprefix("check: ") for host in plan.hosts}
    times = [host.state.failed_at for host in plan.hosts if host.failed]
    if len(times) < len(plan.hosts) or len(reasons) > 1 or max(times) - min(times) > _ALIKE_S:
        return ""
    return (
        f"all {len(plan.hosts)} hosts of pool {plan.pool.id} failed alike ({reasons.pop()}) within "
        f"{max(times) - min(times):.1f} s: probably it is us (network, firewall, certificates), and not they"
    )


def _are_checked(pools: Pools) -> bool:
    return any(pool.check_of(host) is not None for pool in pools for host in pool.hosts)


def _change_by_hand(before: HostState, after: HostState) -> Change:
    if before.up == after.up:
        return Change(after, reason="by hand")
    return Change(after, "host_up" if after.up else "host_down", "by hand")


def _is_news(observation: Observation, current: Target | None) -> bool:
    """Whether the fact would change anything, as far as this process knows: an outage is when everyone writes."""
    if current is None:
        return False
    if getattr(observation.fact, "prober", ""):
        return True  # the lease is in the store, and in no snapshot
    return apply(current.state, observation.fact, Rules.of(current.pool)).state is not current.state


def _first_state(health: GivenHealth | None, now: float, pool: Pool) -> HostState:
    return added(now) if health is None else given(added(now), health, now, Rules.of(pool))


def _coalesce(observations: list[Observation], new: Observation) -> None:
    """Add to a host's queue what is not already said by it; the queue stays short.

    A success makes what came before it irrelevant; of failures in a row as many count as take a host down.
    """
    if isinstance(new.fact, Success):
        observations[:] = [o for o in observations if not isinstance(o.fact, Success | Failure)]
    observations.append(new)
    limit = min(max(new.target.pool.max_fails, 1), _FAILURES_KEPT) + 8
    del observations[:-limit]


def _decode_state(data: bytes) -> HostState:
    try:
        return decode_state(data)
    except StoreFormatError as error:
        _log.error("%s: taken as healthy", error, extra=fields("record_damaged", reason=str(error)))
        return HostState()


def _decode_states(records: Mapping[str, bytes]) -> dict[str, HostState]:
    return {key: _decode_state(data) for key, data in records.items()}


def _patience_s() -> float:
    """How long this thread may wait for the store: not at all on an event loop."""
    return 0.0 if in_loop() else _PATIENCE_S


_fork_guard = threading.Lock()
_replicas: weakref.WeakSet[Replica] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for replica in list(_replicas):
        replica._reset()


os.register_at_fork(after_in_child=_after_fork_in_child)
