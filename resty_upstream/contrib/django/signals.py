"""Signals: a host went down, a host came up.

::

    from django.dispatch import receiver
    from resty_upstream import HostEvent
    from resty_upstream.contrib.django.signals import host_down


    @receiver(host_down)
    def alert(event: HostEvent, **kwargs: object) -> None:
        mail_admins(f"{event.upstream}: {event.host.id} is down", event.reason)

Receivers are given ``sender``, the class :class:`~resty_upstream.Upstream`, and ``event``, a
:class:`~resty_upstream.HostEvent`; ``event.upstream`` is the name in ``UPSTREAMS``. (The sender is not that name:
Django tells senders apart by identity, which equal strings need not have.)

Each transition is sent once across all workers, in the process that caused it, after its commit and outside every
lock: from requests, tasks and commands alike. A receiver may be a coroutine function; one that raises is logged,
and harms nobody.

On an event loop a signal is sent soon after, by a task of that loop, one after the other, in the order of the
events. Coroutine functions run there, other receivers in a thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from contextvars import Context
from typing import Final

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.dispatch import Signal

from resty_upstream import HostEvent, Upstream

host_up = Signal()
"""A host came up."""
host_down = Signal()
"""A host went down."""

_SIGNALS: Final = {"host_up": host_up, "host_down": host_down}

_waiting: dict[asyncio.AbstractEventLoop, deque[HostEvent]] = {}
_tasks: set[asyncio.Task[None]] = set()  # a loop keeps none of its tasks


def send(event: HostEvent) -> None:
    """Send the signal of an event; on an event loop, without waiting for its receivers."""
    if not _SIGNALS[event.name].has_listeners(Upstream):
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _send(event)
        return
    if loop in _waiting:
        _waiting[loop].append(event)
    else:
        _start(loop, deque([event]))


def _send(event: HostEvent) -> None:
    _SIGNALS[event.name].send_robust(sender=Upstream, event=event)


def _start(loop: asyncio.AbstractEventLoop, events: deque[HostEvent]) -> None:
    _waiting[loop] = events
    # In a context of its own: in the request's, receivers would hold up the end of the request, and its loop.
    task = loop.create_task(_asend_all(events), context=Context())
    _tasks.add(task)

    def ended(task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        del _waiting[loop]
        if events and task.cancelled():  # as are all tasks of a loop that ends
            threading.Thread(target=_send_all, args=[events], name="resty_upstream signals").start()
        elif events:
            _start(loop, events)

    task.add_done_callback(ended)


async def _asend_all(events: deque[HostEvent]) -> None:
    while events:
        await _aclose_old_connections()
        # Not before, for a loop may end while the thread of the receivers is not free.
        event = events.popleft()
        await _SIGNALS[event.name].asend_robust(sender=Upstream, event=event)
        await _aclose_old_connections()


async def _aclose_old_connections() -> None:
    """As before and after a request: the thread of the receivers keeps the connections that they open."""
    with suppress(Exception):
        await sync_to_async(close_old_connections)()


def _send_all(events: deque[HostEvent]) -> None:
    while events:
        _send(events.popleft())
