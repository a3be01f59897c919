"""What happened to a host, as frozen values, and who wants to hear of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, Literal

from msgspec import Struct

from resty_upstream.model import Host, Pool

EventName = Literal["host_up", "host_down"]
EVENT_NAMES: Final = ("host_up", "host_down")

_log = logging.getLogger("resty_upstream.failover")


class HostEvent(Struct, frozen=True):
    """A host came up or went down; the change is committed when this is seen."""

    name: EventName
    upstream: str
    """The id of the upstream."""
    pool: Pool
    host: Host
    reason: str
    """Why, in a few words: ``ECONNREFUSED``, ``by hand``, ``probe succeeded``."""
    at: float
    """When, in epoch seconds."""


Listener = Callable[[HostEvent], object]


class Listeners:
    """The functions bound to the events of one upstream in this process."""

    def __init__(self) -> None:
        self._bound: dict[str, list[Listener]] = {name: [] for name in EVENT_NAMES}

    def bind(self, event: EventName, func: Listener) -> None:
        """Call ``func(event)`` on every ``event``; see :meth:`Upstream.bind` for the errors."""
        if event not in self._bound:
            raise ValueError(f"unknown event {event!r}: use one of {', '.join(EVENT_NAMES)}")
        if not callable(func):
            raise TypeError(f"what is bound to {event!r} must be callable, not {type(func).__name__}")
        self._bound[event].append(func)

    def emit(self, events: Iterable[HostEvent]) -> None:
        """Log each event and hand it to its listeners; one that raises is logged and harms nobody."""
        for event in events:
            _log.warning(
                "upstream.%s: pool %s, host %s (%s)",
                event.name,
                event.pool.id,
                event.host.id,
                event.reason,
                extra={
                    "upstream_event": event.name,
                    "upstream_id": event.upstream,
                    "upstream_pool": event.pool.id,
                    "upstream_host": event.host.id,
                    "upstream_reason": event.reason,
                },
            )
            for func in tuple(self._bound[event.name]):
                try:
                    func(event)
                except Exception:
                    _log.exception("a listener of %s failed", event.name)
