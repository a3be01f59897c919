"""Connections to hosts for httpcore: they are made as all others here are, and note how far a request got.

Its own ones set a timeout for each read and write by a system call, or, those of anyio, make a cancel scope for
each and go through the event loop once more for a write: that costs more than all that choosing a host does.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from resty_upstream.aconnectors import open_socket, shake_hands, transport_of
from resty_upstream.attempts import Attempt
from resty_upstream.connectors import dial, is_readable, limit

if TYPE_CHECKING:
    from resty_upstream.http.exchange import Progress

_MOST_BYTES: Final = 262_144  # that are taken in before anybody reads them


class Connection(asyncio.Protocol):
    """One of asyncio's, read and written in turn: at most one task reads and one writes at a time."""

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
    async def open(cls, attempt: Attempt, timeout_s: float) -> Connection:
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
        return is_readable(self.about("socket"))  # the event loop may not have seen it yet

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


# ── as streams of httpcore ────────────────────────────────────────────────────────────────────


def streams(core: Any, heard: Callable[[], Progress]) -> tuple[Any, Any]:
    """What makes streams for httpcore or httpcore2 of connections, sync and async.

    :param heard: the progress of the request that is on its way.
    """

    class Stream(core.NetworkStream):  # type: ignore[misc]
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock
            self.close = sock.close

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            progress = heard()
            try:
                limit(self._sock, progress.bounded(timeout))
                data: bytes = self._sock.recv(max_bytes)
            except OSError as error:
                raise _kind(error, core.ReadTimeout, core.ReadError)(str(error)) from error
            if data:
                progress.answered = True
            return data

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            if not buffer:
                return
            try:
                limit(self._sock, timeout)
                sent = self._sock.send(buffer)
                if sent < len(buffer):
                    self._write_rest(memoryview(buffer)[sent:])
            except OSError as error:
                raise _kind(error, core.WriteTimeout, core.WriteError)(str(error)) from error

        def _write_rest(self, left: memoryview) -> None:
            while left:
                left = left[self._sock.send(left) :]

        def start_tls(
            self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
        ) -> Stream:
            try:
                self._sock.settimeout(timeout)
                return Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname))
            except BaseException as error:
                self.close()
                if isinstance(error, OSError):
                    raise _kind(error, core.ConnectTimeout, core.ConnectError)(str(error)) from error
                raise

        def get_extra_info(self, info: str) -> Any:
            return _about(self._sock, info)

    class AStream(core.AsyncNetworkStream):  # type: ignore[misc]
        def __init__(self, connection: Connection) -> None:
            self._connection = connection
            self.aclose = connection.close

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

        async def start_tls(
            self,
            ssl_context: ssl.SSLContext,
            server_hostname: str | None = None,
            timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        ) -> AStream:
            return await aopened(self._connection.secure(ssl_context, server_hostname, timeout))

        def get_extra_info(self, info: str) -> Any:
            if info == "is_readable":
                return self._connection.is_readable
            return self._connection.about(_INFOS.get(info, info))

    def opened(attempt: Attempt, timeout_s: float) -> Stream:
        try:
            sock = dial(attempt, timeout_s)
        except OSError as error:
            raise _kind(error, core.ConnectTimeout, core.ConnectError)(str(error)) from error
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(sock)

    async def aopened(opening: Awaitable[Connection]) -> AStream:
        try:
            return AStream(await opening)
        except OSError as error:
            raise _kind(error, core.ConnectTimeout, core.ConnectError)(str(error)) from error

    return opened, aopened


def _about(sock: socket.socket, info: str) -> Any:
    if info == "is_readable":
        return sock.fileno() < 0 or is_readable(sock)
    if info == "ssl_object":
        return sock if isinstance(sock, ssl.SSLSocket) else None
    if info == "client_addr":
        return sock.getsockname()
    if info == "server_addr":
        return sock.getpeername()
    return sock if info == "socket" else None


_INFOS: Final = {"client_addr": "sockname", "server_addr": "peername"}


def _kind(error: OSError, timeout: type[Exception], other: type[Exception]) -> type[Exception]:
    # One with an errno is the kernel's.
    return timeout if isinstance(error, TimeoutError) and error.errno is None else other
