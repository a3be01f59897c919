"""How a client is connected in coroutines: what :mod:`resty_upstream.connectors` does.

Callables, and objects that connect themselves, may be of asyncio or of trio; sockets and streams are asyncio's.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from resty_upstream.connectors import (
    Address,
    bound_address,
    fit,
    last_known_addresses,
    literal_address,
    most_telling,
    remember_addresses,
    renew,
    settle_object,
    start_object,
)
from resty_upstream.loops import in_loop, in_trio

if TYPE_CHECKING:
    import ssl

    from resty_upstream.attempts import Attempt
    from resty_upstream.model import Host

T = TypeVar("T")
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_NON_BLOCKING_STREAM: Final = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)


async def in_thread(func: Callable[[], object]) -> None:
    """Call what waits for a disk in a thread, unless the event loop is neither of asyncio nor of trio."""
    if in_trio():
        await sys.modules["trio"].to_thread.run_sync(func)
    elif in_loop():
        await asyncio.to_thread(func)
    else:
        func()


def timeout(seconds: float) -> AbstractAsyncContextManager[object]:
    """As ``asyncio.timeout``, in whatever event loop this is."""
    return _trio_timeout(seconds) if in_trio() else asyncio.timeout(seconds)


@asynccontextmanager
async def _trio_timeout(seconds: float) -> AsyncIterator[None]:
    trio: Any = sys.modules["trio"]
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:  # which is no TimeoutError
        raise TimeoutError from error


def _refuse_trio() -> None:
    if in_trio():
        raise TypeError(
            "without a client, with a socket, or with TLS aconnect is for asyncio: in trio pass anyio_stream() of "
            "resty_upstream.contrib.anyio, or a callable (host, port, timeout_s) that returns an awaitable"
        )


async def connect_callable(client: Any, attempt: Attempt) -> Any:
    """Call ``client(host, port, timeout_s)`` and await what it returns."""
    host = attempt.host
    result = client(host.host, host.port, attempt.timeout_s)
    if not inspect.isawaitable(result):
        raise TypeError(f"{client!r} returned {type(result).__name__}, not an awaitable: use connect for it")
    async with timeout(attempt.timeout_s):
        return await result


async def connect_object(client: Any, attempt: Attempt) -> Any:
    """Connect an object by its own ``connect``, a coroutine function or not."""
    result = start_object(client, attempt)
    if inspect.isawaitable(result):
        async with timeout(attempt.timeout_s):
            await result
    return settle_object(client, attempt)


async def connect_streams(_client: None, attempt: Attempt) -> Streams:
    """A new connection as streams."""
    _refuse_trio()
    attempt.bounded = True
    return await streams_of(await open_socket(attempt))


async def open_socket(attempt: Attempt) -> socket.socket:
    """A new socket, connected to the host of an attempt and non-blocking."""
    address = literal_address(attempt)
    if address is None:
        return await _resolve_and_try_each(attempt, dial)
    return await dial(address, attempt.timeout_s)


class _Unread(asyncio.Protocol):
    """Leaves what comes where it is, for whoever is next."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.pause_reading()  # type: ignore[attr-defined]  # that of a stream


async def transport_of(
    sock: socket.socket,
    protocol: asyncio.Protocol,
    context: ssl.SSLContext | None = None,
    name: str | None = None,
    timeout_s: float = 60.0,
) -> asyncio.Transport:
    """A transport for a connected socket, which is closed where that fails.

    :param context: for TLS, whose handshake is over then.
    :param name: what certificates are checked for.
    :param timeout_s: the caller's, within which all this happens; asyncio's for the handshake is a little longer.
    """
    make: Callable[[], asyncio.Protocol] = _Unread if context is not None else lambda: protocol
    try:
        raw, _ = await asyncio.get_running_loop().create_connection(make, sock=sock)
    except BaseException:
        sock.close()
        raise
    return raw if context is None else await shake_hands(raw, protocol, context, name, timeout_s + 1.0)


async def shake_hands(
    raw: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, name: str | None, later_s: float
) -> asyncio.Transport:
    """A transport of TLS over another, after the handshake; both are closed where that fails."""
    # A step of its own: create_connection(ssl=…) that is cancelled before its handshake began, or just when it is
    # over, leaves a transport that cannot be reached and goes on; closing the socket beneath it would leave its
    # descriptor, soon another connection's, with the event loop.
    loop = asyncio.get_running_loop()
    try:
        transport = await loop.start_tls(
            raw, protocol, context, server_hostname=name, ssl_handshake_timeout=later_s
        )
    except BaseException:
        raw.abort()
        raise
    if transport is None:  # closed meanwhile
        raise ConnectionResetError(errno.ECONNRESET, "the connection was lost in the handshake")
    protocol.connection_made(transport)
    return transport


async def streams_of(sock: socket.socket, *tls: Any, limit: int = 65_536) -> Streams:
    """A connected socket as streams.

    :param tls: see :func:`transport_of`.
    :param limit: the reader's.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = await transport_of(sock, protocol, *tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def connect_tls(context: ssl.SSLContext, server_hostname: str, attempt: Attempt) -> Streams:
    """A new connection as streams, after the handshake of TLS."""
    _refuse_trio()
    attempt.bounded = True
    async with asyncio.timeout(attempt.timeout_s):
        sock = await open_socket(attempt)
        return await streams_of(sock, context, server_hostname, attempt.timeout_s)


async def connect_socket(sock: socket.socket, attempt: Attempt) -> socket.socket:
    """Connect the socket given, whatever became of it in earlier attempts; non-blocking."""
    _refuse_trio()
    attempt.bounded = True
    bound = bound_address(sock)

    async def dial(address: Address, timeout_s: float) -> socket.socket:
        fit(sock, address)
        sock.setblocking(False)
        try:
            if not _at_once(sock, address):
                await _finish_connecting(sock, address, timeout_s)
        except BaseException:
            renew(sock, sock.family, bound)
            sock.setblocking(False)
            raise
        return sock

    address = literal_address(attempt)
    if address is not None:
        return await dial(address, attempt.timeout_s)
    return await _resolve_and_try_each(attempt, dial)


async def dial(address: Address, timeout_s: float) -> socket.socket:
    """A new socket, connected and non-blocking.

    :raises OSError: what went wrong; ``TimeoutError`` after ``timeout_s`` seconds.
    """
    sock = socket.socket(address.family, _NON_BLOCKING_STREAM)
    try:
        if not _at_once(sock, address):
            await _finish_connecting(sock, address, timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def _at_once(sock: socket.socket, address: Address) -> bool:
    """Begin to connect; whether that was all, as it is on this machine."""
    for _ in range(2):  # begin, and look: a round through the event loop costs more than a second call
        try:
            sock.connect(address.sockaddr)
        except BlockingIOError:
            if address.family == socket.AF_UNIX:
                raise  # its queue is full; asyncio would take it for connected
        except OSError as error:
            if error.errno == errno.EISCONN:  # what systems other than Linux say the second time
                return True
            raise
        else:
            return True
    return False


async def _finish_connecting(sock: socket.socket, address: Address, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)


async def _resolve_and_try_each(attempt: Attempt, dial: Callable[[Address, float], Awaitable[T]]) -> T:
    """Look the name up and dial its addresses, all within the attempt's time; each gets its part of the rest."""
    deadline = time.monotonic() + attempt.timeout_s
    async with asyncio.timeout(attempt.timeout_s):
        addresses = await _resolve(attempt.host)
        errors: list[OSError] = []
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                return await dial(address, max(0.001, (deadline - time.monotonic()) / left))
            except OSError as error:
                errors.append(error)
    raise most_telling(errors, attempt.host)


async def _resolve(host: Host) -> list[Address]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return last_known_addresses(host, error)
    return remember_addresses(found, host)
