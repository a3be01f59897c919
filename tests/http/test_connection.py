"""A connection of asyncio, read and written in turn."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from resty_upstream import Upstream
from resty_upstream.http.connection import Connection
from tests.contrib.cancelling import sockets_to
from tests.contrib.tls import NAME, certified, echo, in_order, never_answer, over_tls, reset, trusting
from tests.e2e.processes import wait_until
from tests.helpers import WAIT_S, Peer, hanging

StartPeer = Callable[..., Peer]
MANY = b"x" * 32_000_000  # more than the kernel keeps for either side


def with_connection(host: dict[str, Any], use: Callable[[Connection], Awaitable[object]]) -> None:
    """Use a connection to a host."""
    upstream: Upstream = in_order(host)

    async def run() -> None:
        for attempt in upstream.attempts():
            with attempt:
                async with aclosing(_Closing(await Connection.open(attempt, 1.0))) as closing:
                    await use(closing.connection)

    asyncio.run(run())


class _Closing:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def aclose(self) -> None:
        await self.connection.close()


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


async def read_all(connection: Connection) -> int:
    size = 0
    while part := await connection.read(65_536, 1.0):
        size += len(part)
    return size


def test_what_was_sent_before_the_end_is_read_and_then_the_end(start_peer: StartPeer) -> None:
    async def use(connection: Connection) -> None:
        assert await connection.read(3, 1.0) == b"hel"
        assert await connection.read(100, 1.0) == b"lo"
        assert [await connection.read(100, 1.0) for _ in range(2)] == [b"", b""]

    with_connection(start_peer().options, use)


def test_a_host_that_says_nothing_is_waited_for_no_longer_than_asked(start_peer: StartPeer) -> None:
    async def use(connection: Connection) -> None:
        for _ in range(2):
            with pytest.raises(TimeoutError, match="timed out"):
                await connection.read(1, 0.02)
        await connection.write(b"and may be spoken to", 1.0)

    with_connection(start_peer(never_answer).options, use)


def test_a_host_that_sends_more_than_is_read_is_held_back(start_peer: StartPeer) -> None:
    """All of it arrives, and little of it is ever in memory."""
    sent = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(MANY)
        sent.set()

    async def use(connection: Connection) -> None:
        await until(lambda: connection._is_held, "it is held back")
        assert not sent.is_set()
        assert len(connection._received) < 2_000_000
        assert await read_all(connection) == len(MANY)

    with_connection(start_peer(serve).options, use)


def test_a_host_that_takes_nothing_is_waited_for_and_goes_on_when_it_does(start_peer: StartPeer) -> None:
    go_on = threading.Event()
    taken = []

    def serve(connection: socket.socket) -> None:
        go_on.wait(WAIT_S)
        while data := connection.recv(1 << 20):
            taken.append(len(data))

    async def use(connection: Connection) -> None:
        with pytest.raises(TimeoutError):
            await connection.write(MANY, 0.05)
        go_on.set()
        await connection.write(b"!", WAIT_S)
        await until(lambda: sum(taken) == len(MANY) + 1, "all is taken")

    with_connection(start_peer(serve).options, use)


def test_a_reset_is_told_once_and_after_it_nothing_can_be_sent(start_peer: StartPeer) -> None:
    async def use(connection: Connection) -> None:
        await connection.write(b"?", 1.0)
        with pytest.raises(ConnectionResetError):
            await read_all(connection)
        with pytest.raises(ConnectionResetError):
            await connection.write(b"!", 1.0)
        assert await connection.read(1, 1.0) == b""

    with_connection(start_peer(reset).options, use)


def test_an_idle_one_tells_whether_the_host_said_or_closed_anything(start_peer: StartPeer) -> None:
    go_on = threading.Event()

    async def use(connection: Connection) -> None:
        assert not connection.is_readable
        go_on.set()
        await until(lambda: connection.is_readable, "it is closed")

    with_connection(start_peer(lambda _connection: go_on.wait(WAIT_S)).options, use)


def test_with_tls_what_is_sent_comes_back_and_all_is_closed(start_peer: StartPeer) -> None:
    peer = start_peer(over_tls(certified(), echo))

    async def use(plain: Connection) -> None:
        connection = await plain.secure(trusting(), NAME, 1.0)
        assert isinstance(connection.about("ssl_object"), ssl.SSLObject)
        await connection.write(b"hello", 1.0)
        assert await connection.read(100, 1.0) == b"hello"
        await connection.close()
        await until(lambda: not sockets_to(peer.port), "all is closed")

    with_connection(peer.options, use)


def test_connecting_takes_no_longer_than_asked() -> None:
    async def open_one(host: dict[str, Any]) -> None:
        for attempt in in_order(host, last_resort=False).attempts():
            with attempt:
                await Connection.open(attempt, 0.05)

    with hanging() as host, pytest.raises(TimeoutError):
        asyncio.run(open_one(host))


def test_one_that_was_reset_is_freed_without_the_collector(start_peer: StartPeer) -> None:
    seen = []

    async def use(connection: Connection) -> None:
        seen.append(weakref.ref(connection))
        await connection.write(b"?", 1.0)
        with pytest.raises(ConnectionResetError):
            await read_all(connection)

    gc.collect()
    gc.disable()
    try:
        with_connection(start_peer(reset).options, use)
        assert seen[0]() is None
    finally:
        gc.enable()
