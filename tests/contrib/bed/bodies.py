"""Bodies of responses. What the streams see of hosts, they see while they stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.contrib.bed.visits import Visit

PART = b"x" * 65_536
PARTS = 8  # twice as many fit into a socket's buffer: a client gets them all while the loop is held up
MANY_PARTS = 4000
ONE_BODY = PART * PARTS
FILE = Path(__file__)


def stream(visit: Visit) -> Iterator[bytes]:
    yield from [PART] * PARTS
    visit.call()
    yield from [PART] * PARTS


async def astream(visit: Visit) -> AsyncIterator[bytes]:
    for _ in range(PARTS):
        yield PART
    await visit.acall()
    for _ in range(PARTS):
        yield PART


def broken_stream(visit: Visit) -> Iterator[bytes]:
    yield PART
    visit.call()
    visit.tell("raises")
    raise RuntimeError("the stream")


async def abroken_stream(visit: Visit) -> AsyncIterator[bytes]:
    yield PART
    await visit.acall()
    visit.tell("raises")
    raise RuntimeError("the stream")


def long_stream(visit: Visit) -> Iterator[bytes]:
    """More than fits into any buffer: a client that goes away is noticed."""
    yield PART
    visit.call()
    yield from [PART] * MANY_PARTS
    visit.tell("streamed")


async def along_stream(visit: Visit) -> AsyncIterator[bytes]:
    """As :func:`long_stream`."""
    yield PART
    await visit.acall()
    for _ in range(MANY_PARTS):
        await asyncio.sleep(0.001)  # as something that waits; `send` does not once the client has gone
        yield PART
    visit.tell("streamed")


async def aheld_stream(visit: Visit) -> AsyncIterator[bytes]:
    """Waits in the middle until the test opens a gate."""
    yield PART
    await visit.acall()
    await visit.apass_gate()
    yield PART


def late_stream(visit: Visit) -> Iterator[bytes]:
    """Calls the upstream only when the test opens a gate."""
    yield PART
    visit.pass_gate()
    visit.call()
    visit.tell("goes on")
    yield PART
