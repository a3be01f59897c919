"""Changing pools and hosts at run time. Each call is one transaction, seen by the next request of every worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec import UNSET
from msgspec.structs import replace

from resty_upstream.errors import HostExists, HostNotFound, PoolExists, PoolNotFound
from resty_upstream.methods import find_method
from resty_upstream.model import (
    Host,
    Pool,
    WeightEnd,
    host_from_options,
    identifier,
    pool_from_options,
    record_key,
    remark,
)
from resty_upstream.moments import Until, parse_until
from resty_upstream.state import Down, Fact, Rules, Up, added, by_hand, given

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resty_upstream.replica import Edit
    from resty_upstream.upstream import Upstream

Id = str | int


class UpstreamAPI:
    """The configuration of an upstream, to be changed while it is in use.

    Every method raises :class:`InvalidConfig` for a value that is wrong, :class:`PoolNotFound` or
    :class:`HostNotFound` for what is not there, and :class:`StoreError` when the store cannot be used; nothing
    is changed then. Ids are turned into text.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    # ── pools ─────────────────────────────────────────────────────────────────────────────────

    def create_pool(self, /, id: Id, **options: Any) -> None:
        """Add a pool without hosts.

        :param options: ``method``, ``timeout`` (milliseconds), ``priority``, ``max_fails``, ``failed_timeout`` and
            ``failed_timeout_max`` (seconds), ``up``, ``healthcheck`` (true or a mapping), ``slow_start``
            (seconds), and all others of a pool.
        :raises PoolExists: when there is one of that id.
        """
        pool_id = identifier(id, "the id of a pool")
        pool = pool_from_options(pool_id, options)
        find_method(pool.method, path=f"pools.{pool_id}.method")

        def change(edit: Edit) -> None:
            config = edit.config
            if any(existing.id == pool_id for existing in config.pools):
                raise PoolExists(f"pools.{pool_id} exists already")
            edit.save(replace(config, pools=(*config.pools, pool)))

        self.upstream.commit(change)

    def remove_pool(self, pool_id: Id) -> None:
        """Remove a pool and its hosts."""

        def change(edit: Edit) -> None:
            pool = _pool(edit, pool_id)
            for host in pool.hosts:
                edit.view.delete(record_key(pool.id, host.id))
            config = edit.config
            edit.save(replace(config, pools=tuple(p for p in config.pools if p.id != pool.id)))

        self.upstream.commit(change)

    def set_method(self, pool_id: Id, method: str) -> None:
        """Set the balancing method of a pool.

        :raises MethodNotFound: when this process knows no method of that name.
        """
        self._set(pool_id, method=method)

    def set_priority(self, pool_id: Id, priority: int) -> None:
        """Set the priority of a pool; the lowest is tried first."""
        self._set(pool_id, priority=priority)

    def down_pool(self, pool_id: Id) -> None:
        """Take a pool out of use; its hosts keep their state."""
        self._set(pool_id, up=False)

    def up_pool(self, pool_id: Id) -> None:
        """Put a pool back into use."""
        self._set(pool_id, up=True)

    def _set(self, pool_id: Id, **options: Any) -> None:
        key = identifier(pool_id, "the id of a pool")
        checked = pool_from_options(key, options)
        find_method(checked.method, path=f"pools.{key}.method")
        changes = {name: getattr(checked, name) for name in options}

        def change(edit: Edit) -> None:
            edit.put_pool(replace(_pool(edit, key), **changes))

        self.upstream.commit(change)

    # ── hosts ─────────────────────────────────────────────────────────────────────────────────

    def add_host(
        self,
        /,
        pool_id: Id,
        *,
        host: str,
        port: int | str = 80,
        weight: int | str = 0,
        id: Id | None = None,
        **options: Any,
    ) -> str:
        """Add a host to a pool.

        :param host: a name, an IP address, or ``unix:/absolute/path``.
        :param weight: its share of the pool's traffic.
        :param id: the count of hosts + 1 if not given, or the next number that is free.
        :param options: ``healthcheck`` (true, false or a mapping), ``up``, ``failcount``, ``lastfail``.
        :returns: the id.
        :raises HostExists: when the pool has a host of that id.
        """
        key = identifier(pool_id, "the id of a pool")
        host_id = None if id is None else identifier(id, f"an id in pools.{key}.hosts")
        given_options = {"host": host, "port": port, "weight": weight} | options
        new, health = host_from_options(key, host_id or "(new)", given_options)

        def change(edit: Edit) -> str:
            pool = _pool(edit, key)
            if host_id is not None and pool.find(host_id):
                raise HostExists(f"pools.{key}.hosts.{host_id} exists already")
            added_host = replace(new, id=host_id or _free_id(pool))
            edit.put_pool(replace(pool, hosts=(*pool.hosts, added_host)))
            state = added(self.upstream.store.now())
            if health is not None:
                state = given(state, health, self.upstream.store.now(), Rules.of(pool))
            edit.put(pool.id, added_host.id, state)
            return added_host.id

        return self.upstream.commit(change)

    def remove_host(self, pool_id: Id, host_id: Id) -> None:
        """Remove a host from a pool."""

        def change(edit: Edit) -> None:
            pool, host = _host(edit, pool_id, host_id)
            edit.put_pool(replace(pool, hosts=tuple(h for h in pool.hosts if h.id != host.id)))
            edit.view.delete(record_key(pool.id, host.id))

        self.upstream.commit(change)

    def set_weight(
        self,
        pool_id: Id,
        host_id: Id,
        weight: int | str,
        *,
        reason: str = "",
        by: str = "",
        until: Until | None = None,
    ) -> None:
        """Set the weight of a host; 0 drains it while another host of the pool has a weight.

        :param reason: why, for those who look.
        :param by: who does it, for :meth:`Upstream.history`.
        :param until: when the weight is what it was again; see :meth:`down_host`. It stays as it is where the
            weight was set, or declared, to another one meanwhile.
        """
        keys = identifier(pool_id, "the id of a pool"), identifier(host_id, "the id of a host")
        checked, _ = host_from_options(*keys, {"host": "checked.invalid", "weight": weight})
        end_at = parse_until(until, "until", time.time())
        reason, by = remark(reason, "reason"), remark(by, "by")

        def change(edit: Edit) -> None:
            pool, host = _host(edit, pool_id, host_id)
            before = host.weight_end.weight if host.weight_end else host.weight
            end = WeightEnd(until=end_at, weight=before, reason=reason, by=by) if end_at else UNSET
            changed = replace(host, weight=checked.weight, weight_end=end)
            edit.put_host(pool, host, changed, by_hand(reason), by=by)

        self.upstream.commit(change)

    def down_host(
        self, pool_id: Id, host_id: Id, *, reason: str = "", by: str = "", until: Until | None = None
    ) -> None:
        """Take a host down by hand: nothing but :meth:`up_host`, or the end of that time, brings it back.

        Called again, what was said last counts.

        :param reason: why, for those who look.
        :param by: who does it, for :meth:`Upstream.history`.
        :param until: when it is up again, with a clean state: a datetime with a time zone, seconds since 1970, or
            how long from now (a timedelta, or text like ``"30m"``), up to a year. It is a time of the wall clock,
            and is kept over a reboot. The next request of any process that comes after it finds the host up.
        """
        end_at = parse_until(until, "until", time.time())
        by = remark(by, "by")
        self._apply(pool_id, host_id, Down(self.upstream.store.now(), remark(reason, "reason"), by, end_at), by)

    def up_host(self, pool_id: Id, host_id: Id, *, reason: str = "", by: str = "") -> None:
        """Put a host back, with a clean state, whatever took it down.

        :param reason: why, for those who look.
        :param by: who does it, for :meth:`Upstream.history`.
        """
        fact = Up(self.upstream.store.now(), remark(reason, "reason"))
        self._apply(pool_id, host_id, fact, remark(by, "by"))

    def _apply(self, pool_id: Id, host_id: Id, fact: Fact, by: str) -> None:
        def change(edit: Edit) -> None:
            edit.apply(*_host(edit, pool_id, host_id), fact, by=by)

        self.upstream.commit(change)

    # ── everything at once ────────────────────────────────────────────────────────────────────

    def get_pools(self) -> dict[str, dict[str, Any]]:
        """See :meth:`resty_upstream.Upstream.get_pools`."""
        return self.upstream.get_pools()

    def save_pools(self, pools: Mapping[Any, Any]) -> None:
        """See :meth:`resty_upstream.Upstream.save_pools`."""
        self.upstream.save_pools(pools)

    def sort_pools(self, pools: Mapping[Any, Any]) -> list[str]:
        """See :meth:`resty_upstream.Upstream.sort_pools`."""
        return self.upstream.sort_pools(pools)


def _pool(edit: Edit, pool_id: Id) -> Pool:
    key = identifier(pool_id, "the id of a pool")
    for pool in edit.config.pools:
        if pool.id == key:
            return pool
    known = ", ".join(pool.id for pool in edit.config.pools) or "none"
    raise PoolNotFound(f"there is no pool {key!r}; pools: {known}")


def _host(edit: Edit, pool_id: Id, host_id: Id) -> tuple[Pool, Host]:
    pool = _pool(edit, pool_id)
    key = identifier(host_id, "the id of a host")
    host = pool.find(key)
    if host is None:
        known = ", ".join(host.id for host in pool.hosts[:20]) or "none"
        raise HostNotFound(f"there is no host {key!r} in pool {pool.id!r}; hosts: {known}")
    return pool, host


def _free_id(pool: Pool) -> str:
    taken = {host.id for host in pool.hosts}
    number = len(pool.hosts) + 1
    while str(number) in taken:
        number += 1
    return str(number)
