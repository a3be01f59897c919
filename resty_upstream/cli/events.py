"""What happened to an upstream between two looks at it.

Nothing tells a process that only looks what happened; but each state of a host says when ``up`` last changed, and
when the last failure was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from resty_upstream.cli.look import Look
from resty_upstream.cli.text import counted
from resty_upstream.model import Host, Pool, changed_options, record_key
from resty_upstream.state import HostState, Status, done_by_hand, said_of, told

States = Mapping[str, HostState]


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened; what does not belong to it is None."""

    event: str
    """``host_down``, ``host_up``, ``host_failed`` (a failure that changed nothing else), ``host_added``,
    ``host_removed``, ``host_changed``; ``pool_down``, ``pool_up``, ``pool_added``, ``pool_removed``,
    ``pool_changed``; ``store_lost``, ``store_back``."""
    pool: str | None = None
    host: str | None = None
    address: str | None = None
    reason: str | None = None
    by: str | None = None
    """Who did it, where a person did and said so."""
    until: float | None = None
    """When it is over, in epoch seconds."""
    failcount: int | None = None
    option: str | None = None
    """What was changed."""
    before: Any = None
    after: Any = None

    def known(self) -> dict[str, Any]:
        """What there is to say of it, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        what, _, happened = self.event.partition("_")
        subject = {"host": f"host {self.pool}/{self.host}", "pool": f"pool {self.pool}"}.get(what, "the store")
        return f"{subject} {self._happened(happened)}"

    def _happened(self, happened: str) -> str:
        why = f": {self.reason}" if self.reason else ""
        if self.by or self.until:
            what = "by hand" if happened == "down" else ""
            why = f" {told(what, self.by or '', self.until or 0, said_of(self.reason or ''), time.time())}"
        if happened == "changed":
            return f"has {self.option} {self.after}, had {self.before}{why}"
        if happened == "failed":
            return f"failed{why} ({counted(self.failcount or 0, 'failure')} in a row)"
        if happened == "down" and self.failcount:
            return f"is down{why} ({counted(self.failcount, 'failure')} in a row)"
        if happened == "added" and self.address:
            return f"was added: {self.address}"
        words = {"added": "was added", "removed": "was removed", "lost": "is lost", "back": "is back"}
        return f"{words.get(happened, f'is {happened}')}{why}"


def events_between(before: Look, after: Look) -> Iterator[Event]:
    """What happened between two looks, pool by pool."""
    old, new = ({pool.id: pool for pool in seen.pools} for seen in (before, after))
    states, now = before.states(), after.states()
    if before.identity != after.identity:
        # All hosts were added to it anew: when their state changed says nothing.
        states = {key: replace(state, changed_at=now.get(key, state).changed_at) for key, state in states.items()}
    for pool_id in old | new:
        yield from _of_pool(pool_id, old.get(pool_id), new.get(pool_id), states, now)


def _of_pool(pool_id: str, old: Pool | None, new: Pool | None, before: States, after: States) -> Iterator[Event]:
    if old is None:
        yield Event(event="pool_added", pool=pool_id)
    elif new is not None:
        yield from _pool_changes(old, new)
    old_hosts, new_hosts = ({host.id: host for host in pool.hosts} if pool else {} for pool in (old, new))
    for host_id in old_hosts | new_hosts:
        key = record_key(pool_id, host_id)
        was, became = old_hosts.get(host_id), new_hosts.get(host_id)
        yield from _of_host(pool_id, was, became, before.get(key, HostState()), after.get(key, HostState()))
    if new is None:
        yield Event(event="pool_removed", pool=pool_id)


def _pool_changes(old: Pool, new: Pool) -> Iterator[Event]:
    for name, before, after in changed_options(old, new):
        if name == "up":
            yield Event(event="pool_up" if after else "pool_down", pool=new.id)
        else:
            yield Event(event="pool_changed", pool=new.id, option=name, before=before, after=after)


def _of_host(
    pool: str, old: Host | None, new: Host | None, before: HostState, after: HostState
) -> Iterator[Event]:
    host = new or old
    if host is None:
        return
    event = functools.partial(Event, pool=pool, host=host.id, address=host.address)
    if old is None:
        yield event(event="host_added")
        before = HostState(changed_at=after.changed_at)  # it begins up
    elif new is None:
        yield event(event="host_removed")
        return
    else:
        for name, was, became in changed_options(old, new):
            said = done_by_hand(new, HostState()) if name == "weight" else {}
            said.pop("weight_then", None)
            yield event(event="host_changed", option=name, before=was, after=became, **said)
    for happened in _of_state(before, after):
        yield event(**happened)


def _of_state(before: HostState, after: HostState) -> Iterator[dict[str, Any]]:
    """What moved a host from one state to the other; both ways where it went and came back."""
    up, down = {"event": "host_up"}, {"event": "host_down"}
    now_down = {
        **down,
        "reason": after.reason or None,
        "failcount": after.failcount or None,
        "by": after.by or None,
        "until": after.until or None,
    }
    if before.up != after.up:
        yield up if after.up else now_down
    elif before.changed_at != after.changed_at:
        yield from (down, up) if after.up else (up, now_down)
    elif after.status is Status.MANUAL and before.status is not Status.MANUAL:
        yield now_down  # failed before, and now down by hand
    elif after.failcount and after.failed_at != before.failed_at:
        yield {"event": "host_failed", "reason": after.reason or None, "failcount": after.failcount}
