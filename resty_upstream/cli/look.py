"""An upstream as its store has it, looked at without creating or changing anything.

A request, and a change, would first bring what is declared in this process into the store; and a process that
remembers a store that was lost would write it back. Who only looks must do neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from random import Random
from typing import Final, NamedTuple

from resty_upstream.errors import StoreFormatError
from resty_upstream.health.results import CHECKER_LEASE, LastCheck, read_results
from resty_upstream.methods import Key
from resty_upstream.model import Config, Pool, Pools, decode_config, record_key
from resty_upstream.selection import Explanation, Snapshot, build, explain
from resty_upstream.state import HostState, as_of, decode_state, rebooted
from resty_upstream.stores import Document
from resty_upstream.upstream import Upstream


class Checks(NamedTuple):
    """What is known of active checks."""

    running: bool
    """Whether a process makes them now."""
    last: Mapping[str, LastCheck]
    """The last one of each host, by :func:`~resty_upstream.model.record_key`."""


NO_CHECKS: Final = Checks(False, {})


class Stored(NamedTuple):
    """What a store holds of one upstream."""

    snapshot: Snapshot
    declared: Pools
    """What was declared last."""
    identity: str
    """The same as long as nobody begins the configuration anew."""
    checks: Checks = NO_CHECKS


class Look(NamedTuple):
    """An upstream at one moment."""

    pools: Pools
    """In the order in which they are kept."""
    explanation: Explanation
    """The pools in the order in which they are tried, and all hosts."""
    declared: Pools
    now: float
    """The moment, on the store's clock."""
    identity: str
    """See :class:`Stored`."""
    checks: Checks = NO_CHECKS
    wall: float = 0.0
    """``now`` in epoch seconds."""

    def states(self) -> dict[str, HostState]:
        """The states of all hosts, by :func:`~resty_upstream.model.record_key`."""
        return {
            record_key(pool.pool.id, host.host.id): host.state
            for pool in self.explanation.pools
            for host in pool.hosts
        }

    def declared_pool(self, pool_id: str) -> Pool | None:
        """The pool as it was declared; None where it was not."""
        return next((pool for pool in self.declared if pool.id == pool_id), None)


def has_checks(pools: Iterable[Pool]) -> bool:
    """Whether any host of these pools is to be checked."""
    return any(pool.check_of(host) is not None for pool in pools for host in pool.hosts)


def look(upstream: Upstream, key: Key | None = None) -> Look:
    """An upstream as it is now; as it is declared, where nothing is stored yet.

    :param key: what methods hash.
    :raises StoreError: when the store cannot be used.
    """
    stored = read(upstream) if upstream.store.examine() else None
    return look_at(upstream, stored or _only_declared(upstream), key)


def look_at(upstream: Upstream, stored: Stored, key: Key | None = None) -> Look:
    """What :func:`read` found, at this moment: what was to end by now has ended, written or not."""
    wall, snapshot = time.time(), stored.snapshot
    if wall >= snapshot.next_end:
        states = {target.key: target.state for target in snapshot.targets.values()}
        pools, states = as_of(snapshot.pools, states, upstream.store.now(), wall)
        stored = stored._replace(snapshot=_snapshot(upstream, pools, states, stored.identity))
    return look_as_stored(upstream, stored, key)


def look_as_stored(upstream: Upstream, stored: Stored, key: Key | None = None) -> Look:
    """What :func:`read` found, as it was written."""
    now, wall = upstream.store.now(), time.time()
    explanation = explain(
        stored.snapshot,
        lambda _pool: key,
        now,
        wall=wall,
        excluded=set(),
        last_resort=upstream.last_resort,
        checking=stored.checks.running,
    )
    return Look(stored.snapshot.pools, explanation, stored.declared, now, stored.identity, stored.checks, wall)


def read(upstream: Upstream) -> Stored | None:
    """What the store holds of an upstream; None when that is nothing.

    :raises StoreError: when the store cannot be used, or what it holds not be read.
    """
    document = upstream.store.read(upstream.id)
    if not document.config:
        return None
    config = decode_config(document.config)
    if config is None:
        raise StoreFormatError(f"the stored configuration of upstream {upstream.id} is damaged")
    states = _states(document, config, upstream.store.clock_id)
    snapshot = _snapshot(upstream, config.pools, states, config.secret)
    return Stored(snapshot, config.declared, config.secret, read_checks(upstream, config.pools))


def read_checks(upstream: Upstream, pools: Pools) -> Checks:
    """What the store says of checks of these pools; nothing is read where there are none.

    :raises StoreError: when the store cannot be used.
    """
    if not has_checks(pools):
        return NO_CHECKS
    running = bool(upstream.store.holder(upstream.id, CHECKER_LEASE))
    return Checks(running, read_results(upstream.store, upstream.id))


def _only_declared(upstream: Upstream) -> Stored:
    declared = upstream.replica.declared or ()
    return Stored(_snapshot(upstream, declared, upstream.replica.declared_states(), ""), declared, "")


def _snapshot(upstream: Upstream, pools: Pools, states: Mapping[str, HostState], secret: str) -> Snapshot:
    return build(pools, states, random=Random(0), secret=bytes.fromhex(secret), now=upstream.store.now)


def _states(document: Document, config: Config, clock_id: str) -> dict[str, HostState]:
    states = {key: _state(data) for key, data in document.records.items()}
    if config.clock == clock_id:
        return states
    return {key: rebooted(state) for key, state in states.items()}


def _state(data: bytes) -> HostState:
    try:
        return decode_state(data)
    except StoreFormatError:
        return HostState()  # as requests take it
