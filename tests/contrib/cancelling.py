"""Coroutines that are cancelled at each point at which they wait, on asyncio and on trio."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

try:
    import trio  # noqa: F401
except ImportError:
    HAS_TRIO = False
else:
    HAS_TRIO = True

BACKENDS = ["asyncio", pytest.param("trio", marks=pytest.mark.skipif(not HAS_TRIO, reason="trio is missing"))]


def sockets_to(*ports: int) -> list[str]:
    """Sockets of this process that are, or were to be, connected to these ports; not those of their servers."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        with sock:
            options = (socket.SO_ACCEPTCONN, socket.SO_REUSEADDR)  # those of servers, and of servers to be
            if sock.family == socket.AF_UNIX or any(sock.getsockopt(socket.SOL_SOCKET, each) for each in options):
                continue
            if sock.getsockname()[1] in ports:
                continue
            try:
                ours = sock.getpeername()[1] in ports
            except OSError:  # not connected yet, or no longer
                ours = True
            if ours:
                found.append(f"{name}: {sock}")
    return found


async def cancel_at_every_point(
    begin: Callable[[], Awaitable[Any]], close: Callable[[Any], Awaitable[object]], check: Callable[[], None]
) -> int:
    """Run ``begin()`` again and again, cancelled a little later each time; at last not at all.

    First one turn of the event loop later, then a millisecond, for those who wait for somebody else.

    :param close: closes what it gave.
    :param check: called after each time.
    :returns: how often it was cancelled before it was done.
    """
    cancelled = 0
    for step in range(35):
        results: list[Any] = []

        async def work(results: list[Any] = results) -> None:
            results.append(await begin())

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            for _ in range(min(step, 20)):
                await anyio.lowlevel.checkpoint()
            if step > 20:
                await anyio.sleep((step - 20) / 1000)
            group.cancel_scope.cancel()
        await _settle(results, close, check)
        cancelled += not results
    await _settle([await begin()], close, check)
    return cancelled


async def _settle(
    results: list[Any], close: Callable[[Any], Awaitable[object]], check: Callable[[], None]
) -> None:
    for result in results:
        await close(result)
    for _ in range(5):  # transports close a turn later
        await anyio.lowlevel.checkpoint()
    check()
