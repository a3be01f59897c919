"""What a person may do to a host from the page: what it is called, what would come of it, and doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from resty_upstream.api import UpstreamAPI
from resty_upstream.errors import InvalidConfig, Problem, UpstreamNotFound
from resty_upstream.moments import read_moment
from resty_upstream.status.data import HostStatus, PoolStatus, UpstreamStatus
from resty_upstream.status.words import percent
from resty_upstream.upstream import Upstream


class Verb(NamedTuple):
    """One of the actions."""

    label: str
    """In menus and on the button."""
    question: str
    done: str
    """What was done, with the ids of host and pool to be filled in."""
    may_end: bool = True
    """Whether it can end by itself."""


VERBS: Final[Mapping[str, Verb]] = {
    "down": Verb("Take down", "Take {host} down?", "{host} in {pool} is down"),
    "drain": Verb("Drain", "Drain {host}?", "{host} in {pool} is drained"),
    "weight": Verb("Set weight", "Set the weight of {host}", "The weight of {host} in {pool} is {weight}"),
    "up": Verb("Put back", "Put {host} back?", "{host} in {pool} is up", may_end=False),
}


class Order(NamedTuple):
    """What somebody wants done, as the fields of a form say it."""

    do: str
    upstream: str
    pool: str
    host: str
    reason: str = ""
    until: str = ""
    """Empty, a duration like ``30m``, a time like ``15:00`` in the server's zone, or ISO 8601."""
    weight: str = ""

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Order:
        """An order from the fields of a form, or of a query.

        :raises InvalidConfig: when it names no action.
        """
        order = cls(*(fields.get(name, "").strip() for name in cls._fields))
        if order.do not in VERBS:
            raise InvalidConfig(Problem(f"do must be one of {', '.join(VERBS)}"))
        return order

    @property
    def verb(self) -> Verb:
        """The action."""
        return VERBS[self.do]

    def filled(self, text: str) -> str:
        """``text`` of the verb with the ids in it."""
        return text.format_map({**self._asdict(), "weight": self.weight or "0"})


def perform(upstreams: Mapping[str, Upstream], order: Order, by: str) -> str:
    """Do it.

    :param by: who does it.
    :returns: what was done, as a sentence.
    :raises InvalidConfig: for a value that is not allowed.
    :raises LookupError: when there is no such upstream, pool or host.
    :raises StoreError: when the store cannot be used; nothing was done then.
    """
    if order.upstream not in upstreams:
        raise UpstreamNotFound(f"there is no upstream {order.upstream!r}")
    api = UpstreamAPI(upstreams[order.upstream])
    until = read_until(order.until, time.time()) if order.verb.may_end else None
    if order.do == "drain":
        _require_others(api, order)
    if order.do == "down":
        api.down_host(order.pool, order.host, reason=order.reason, by=by, **({"until": until} if until else {}))
    elif order.do == "up":
        api.up_host(order.pool, order.host, reason=order.reason, by=by)
    else:
        weight = order.weight if order.do == "weight" else "0"
        api.set_weight(order.pool, order.host, weight, reason=order.reason, by=by, until=until)
    return f"{order.filled(order.verb.done)}."


def _require_others(api: UpstreamAPI, order: Order) -> None:
    """Refuse to drain a host whose weight of 0 would be as good as those of all others."""
    hosts = api.get_pools().get(order.pool, {}).get("hosts", {})
    if order.host in hosts and not any(host["weight"] for id, host in hosts.items() if id != order.host):
        what = (
            f"no other host of pool {order.pool} has a weight, so that none can be drained: take it down instead"
        )
        raise InvalidConfig(Problem(what))


def read_until(text: str, now: float) -> float | str | None:
    """When a change is to end: epoch seconds of a time that can be read, else the text as it is; None: never."""
    try:
        return read_moment(text, now) if text else None
    except ValueError:
        return text  # a duration, or nothing that the API takes


def consequence(order: Order, upstream: UpstreamStatus, pool: PoolStatus, host: HostStatus) -> str:
    """What would come of it, for the person to confirm."""
    if order.do == "up":
        back = "It begins with a clean state" + (", at its share." if pool.up else "; but its pool is out of use.")
        return back if host.status != "up" else "It is up; failures that were counted are forgotten."
    if order.do == "weight":
        together = sum(each.weight for each in pool.hosts if each.status == "up")
        return f"Its weight is {host.weight} of {together} together in pool {pool.id}. A weight of 0 drains it."
    left = sum(each.status == "up" and each.id != host.id for each in pool.hosts)
    if order.do == "drain" and not any(each.weight for each in pool.hosts if each.id != host.id):
        return f"No other host of pool {pool.id} has a weight, so that none can be drained: take it down instead."
    if left:
        capacity = f"{percent(host.capacity_without)} (now {percent(pool.capacity)})"
        return f"Remaining capacity of pool {pool.id}: {capacity}, {left} of {len(pool.hosts)} hosts."
    return f"Nothing is left of pool {pool.id}: {_next_pool(upstream, pool)}"


def _next_pool(upstream: UpstreamStatus, pool: PoolStatus) -> str:
    others = [each for each in upstream.pools if each.id != pool.id and each.up and each.hosts_up]
    if others:
        return f"its requests go to pool {others[0].id}."
    return "no host of any pool is available, and requests fail."
