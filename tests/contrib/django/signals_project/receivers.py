"""What hears the signals: a function that blocks at a gate and uses the database, and a coroutine function."""

from __future__ import annotations

import asyncio
import os

from django.db import connection
from django.dispatch import receiver

from resty_upstream import HostEvent
from resty_upstream.contrib.django.signals import host_down, host_up
from tests.contrib.bed import journal

gates: dict[str, int] = {}
"""The port of the gate at which the next signal of an upstream waits."""


@receiver([host_up, host_down])
def hear(event: HostEvent, **kwargs: object) -> None:
    """Needs a thread that may block."""
    if event.upstream in gates:
        journal.pass_gate(gates.pop(event.upstream))
    used_before = connection.connection is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    journal.write(f"{event.name} with {'an old' if used_before else 'a new'} connection", whose(event))


@receiver([host_up, host_down])
async def ahear(event: HostEvent, **kwargs: object) -> None:
    """Needs an event loop."""
    await asyncio.sleep(0)
    journal.write(f"{event.name} on a loop", whose(event))


def whose(event: HostEvent) -> str:
    """The upstream, and in which processes it was heard."""
    return f"{event.upstream} in {os.environ['SITE_ROLE']}"
