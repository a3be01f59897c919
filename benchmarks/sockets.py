"""Real connections on the loopback interface, against what the standard library takes for them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import repeat

from benchmarks.harness import Group, Sample, Variant, at_most_times
from benchmarks.upstreams import on_loopback

_CALLS = 50  # fewer than the backlog of a listener: nobody accepts while the clock runs
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, and leaves no TIME_WAIT to run out of ports

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.contextmanager
def sync_sockets() -> Iterator[list[Group]]:
    """``connect()``."""
    with _listening() as listener:
        address = listener.getsockname()
        connect = on_loopback(address[1]).connect
        yield [
            Group(
                "connect() on loopback",
                _CALLS,
                [
                    Variant(
                        "socket.create_connection(…, timeout=2)",
                        _connecting(lambda: socket.create_connection(address, timeout=2), listener),
                    ),
                    Variant("connect()", _connecting(lambda: connect().client, listener), at_most_times(1)),
                    Variant("socket(), settimeout, connect", _connecting(lambda: _by_hand(address), listener)),
                ],
            )
        ]


@contextlib.contextmanager
def async_sockets() -> Iterator[list[Group]]:
    """``aconnect()``."""
    with asyncio.Runner() as runner, _listening() as listener:
        host, port = listener.getsockname()
        aconnect = on_loopback(port).aconnect

        async def ours() -> Streams:
            return (await aconnect()).client

        async def with_a_timeout() -> Streams:
            async with asyncio.timeout(2):
                return await asyncio.open_connection(host, port)

        yield [
            Group(
                "aconnect() on loopback",
                _CALLS,
                [
                    Variant(
                        "asyncio.open_connection",
                        _opening(lambda: asyncio.open_connection(host, port), listener, runner),
                    ),
                    Variant("aconnect()", _opening(ours, listener, runner), at_most_times(1)),
                    Variant("asyncio.open_connection in a timeout", _opening(with_a_timeout, listener, runner)),
                ],
            )
        ]


@contextlib.contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4 * _CALLS) as listener:
        yield listener


def _by_hand(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(2)
    sock.connect(address)
    return sock


def _connecting(connect: Callable[[], socket.socket], listener: socket.socket) -> Sample:
    def sample(calls: int) -> int:
        began = time.perf_counter_ns()
        connected = [connect() for _ in repeat(None, calls)]
        took = time.perf_counter_ns() - began
        for sock in connected:
            _reset(sock, listener)
            sock.close()
        return took

    return sample


def _opening(connect: Callable[[], Awaitable[Streams]], listener: socket.socket, runner: asyncio.Runner) -> Sample:
    async def sample(calls: int) -> int:
        began = time.perf_counter_ns()
        connected = [await connect() for _ in repeat(None, calls)]
        took = time.perf_counter_ns() - began
        for _, writer in connected:
            _reset(writer.get_extra_info("socket"), listener)
            writer.transport.abort()
        await asyncio.sleep(0)  # the transports close in the next turn of the loop
        return took

    return lambda calls: runner.run(sample(calls))


def _reset(sock: socket.socket, listener: socket.socket) -> None:
    """Take the other end off the backlog, and have both gone without a trace."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    listener.accept()[0].close()
