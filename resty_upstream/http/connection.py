"""A connection of asyncio that is read and written in turn, as httpcore does.

Its own, anyio's, goes through the event loop once more for each write and makes a cancel scope for each read:
that costs more than all that choosing a host does.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Callable
from typing import Any, Final

from resty_upstream.aconnectors import open_socket, shake_hands, transport_of
from resty_upstream.attempts import Attempt

_MOST_BYTES: Final = 262_144  # that are taken in before anybody reads them


class Connection(asyncio.Protocol):
    """One of them; at most one task reads and one writes at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._is_over = False
        """Whether nothing more will be received."""
        self._error: Exception | None = None
        self._is_held = False
        self._is_paused = False
        self._reader: asyncio.Future[bool] | None = None
        self._writer: asyncio.Future[bool] | None = None
        self._transport: Any = None

    @classmethod
    async def open(cls, attempt: Attempt, timeout_s: float | None) -> Connection:
        """One to the host of an attempt.

        :raises OSError: what went wrong; ``TimeoutError`` when it took too long.
        """
        async with asyncio.timeout(timeout_s):
            connection = cls()
            await transport_of(await open_socket(attempt), connection)
            return connection

    async def secure(self, context: ssl.SSLContext, name: str | None, timeout_s: float | None) -> Connection:
        """The same with TLS, after the handshake; this one is of no use any more.

        :raises OSError: what went wrong; ``TimeoutError`` when it took too long.
        """
        connection = type(self)()
        async with asyncio.timeout(timeout_s):
            await shake_hands(self._transport, connection, context, name, (timeout_s or 60.0) + 1.0)
        return connection

    async def read(self, max_bytes: int, timeout_s: float | None) -> bytes:
        """What was received; empty at its end.

        :raises OSError: what went wrong; ``TimeoutError`` when nothing came in time.
        """
        received = self._received
        if not received and not self._is_over:
            self._reader = self._loop.create_future()
            await self._wait(self._reader, timeout_s)
        if received:
            data = bytes(received[:max_bytes])
            del received[:max_bytes]
            if self._is_held and len(received) < _MOST_BYTES:
                self._is_held = False
                self._transport.resume_reading()
            return data
        if self._error is not None:
            raise self._lost()
        return b""

    async def write(self, data: bytes, timeout_s: float | None) -> None:
        """Send it, and wait while the host takes nothing more.

        :raises OSError: what went wrong; ``TimeoutError`` when the host took nothing in time.
        """
        if self._transport.is_closing():
            raise self._lost()
        self._transport.write(data)
        if self._is_paused:
            self._writer = self._loop.create_future()
            await self._wait(self._writer, timeout_s)
            if self._transport.is_closing():
                raise self._lost()

    async def close(self) -> None:
        """Close it at once, whatever was not sent."""
        self._transport.abort()
        await asyncio.sleep(0)  # in which the event loop closes the socket

    @property
    def is_readable(self) -> bool:
        """Whether the host sent anything, or closed it."""
        if self._received or self._is_over or self._transport.is_closing():
            return True
        poll = select.poll()  # the event loop may not have seen it yet
        poll.register(self.about("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def about(self, name: str) -> Any:
        """See ``asyncio.BaseTransport.get_extra_info``."""
        return self._transport.get_extra_info(name)

    async def _wait(self, waiter: asyncio.Future[bool], timeout_s: float | None) -> None:
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _be_late, waiter)
        try:
            if await waiter:
                raise TimeoutError("timed out")
        finally:
            if timer is not None:
                timer.cancel()

    def _lost(self) -> Exception:
        """Why it was closed; told once, as an error that is kept with its frames would wait for the collector."""
        error, self._error = self._error, None
        return error or ConnectionResetError("the connection is closed")

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self._received += data
        if len(self._received) >= _MOST_BYTES and not self._is_held:
            self._is_held = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        """Nothing more will come; what is still to be sent may go on, but for TLS, which has no such state."""
        self._is_over = True
        _wake(self._reader)
        return self.about("ssl_object") is None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._is_over, self._error, self._is_paused = True, self._error or exc, False
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        """The host takes nothing more for now."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It takes more."""
        self._is_paused = False
        _wake(self._writer)


def _wake(waiter: asyncio.Future[bool] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(False)


def _be_late(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(True)


def network_stream(core: Any, heard: Callable[[], Any]) -> Any:
    """A class of streams for httpcore or httpcore2.

    :param heard: the progress of the request that is on its way.
    """

    class Stream(core.AsyncNetworkStream):  # type: ignore[misc]
        def __init__(self, connection: Connection) -> None:
            self._connection = connection

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
            progress = heard()
            try:
                data = await self._connection.read(max_bytes, progress.bounded(timeout))
            except OSError as error:
                raise _kind(error, core.ReadTimeout, core.ReadError)(str(error)) from error
            if data:
                progress.answered = True
            return data

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
            if not buffer:
                return
            try:
                await self._connection.write(buffer, timeout)
            except OSError as error:
                raise _kind(error, core.WriteTimeout, core.WriteError)(str(error)) from error

        async def aclose(self) -> None:
            await self._connection.close()

        async def start_tls(
            self,
            ssl_context: ssl.SSLContext,
            server_hostname: str | None = None,
            timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        ) -> Stream:
            return await opened(self._connection.secure(ssl_context, server_hostname, timeout))

        def get_extra_info(self, info: str) -> Any:
            if info == "is_readable":
                return self._connection.is_readable
            return self._connection.about(_INFOS.get(info, info))

    async def opened(opening: Any) -> Stream:
        try:
            return Stream(await opening)
        except OSError as error:
            raise _kind(error, core.ConnectTimeout, core.ConnectError)(str(error)) from error

    return opened


_INFOS: Final = {"client_addr": "sockname", "server_addr": "peername"}


def _kind(error: OSError, timeout: type[Exception], other: type[Exception]) -> type[Exception]:
    # One with an errno is the kernel's.
    return timeout if isinstance(error, TimeoutError) and error.errno is None else other
