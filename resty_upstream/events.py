"""What happened to a host, as frozen values, and who wants to hear of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from resty_upstream.model import Host, Pool

if TYPE_CHECKING:
    from resty_upstream.attempts import Attempt
    from resty_upstream.errors import NoHostAvailable

EventName = Literal["host_up", "host_down"]
EVENT_NAMES: Final = ("host_up", "host_down", "attempt", "exhausted")

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
AttemptListener = Callable[["Attempt"], object]
ExhaustedListener = Callable[["NoHostAvailable"], object]


class Listeners:
    """The functions bound to the events of one upstream in this process."""

    def __init__(self) -> None:
        self._bound: dict[str, list[Callable[[Any], object]]] = {name: [] for name in EVENT_NAMES}
        self.hear_attempts = False
        """Whether any is bound to attempts: each request asks, and nearly nobody is."""

    def bind(self, event: str, func: Callable[[Any], object]) -> None:
        """Call ``func(event)`` on every ``event``; see :meth:`Upstream.bind` for the errors."""
        if event not in self._bound:
            raise ValueError(f"unknown event {event!r}: use one of {', '.join(EVENT_NAMES)}")
        if not callable(func):
            raise TypeError(f"what is bound to {event!r} must be callable, not {type(func).__name__}")
        self._bound[event].append(func)
        self.hear_attempts |= event == "attempt"

    def emit(self, events: Iterable[HostEvent]) -> None:
        """Log each event and hand it to its listeners."""
        for event in events:
            _log.warning(
                "upstream.%s: pool %s, host %s (%s)",
                event.name,
                event.pool.id,
                event.host.id,
                event.reason,
                extra=fields(
                    event.name, id=event.upstream, pool=event.pool.id, host=event.host.id, reason=event.reason
                ),
            )
            self.tell(event.name, event)

    def tell(self, name: str, event: object) -> None:
        """Hand an event to its listeners; one that raises is logged and harms nobody."""
        for func in tuple(self._bound[name]):
            try:
                func(event)
            except Exception:
                _log.exception("a listener of %s failed", name, extra=fields("listener_failed", of=name))


def fields(event: str, **more: object) -> dict[str, object]:
    """What structured logs have of an event, as ``extra`` of a record: ``upstream_event`` and the like."""
    return {f"upstream_{name}": value for name, value in {"event": event, **more}.items()}
