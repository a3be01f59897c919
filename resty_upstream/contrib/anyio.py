"""anyio: streams of a host, in asyncio and in trio.

::

    stream, info = await upstream.aconnect(anyio_stream())
    stream, info = await upstream.aconnect(anyio_stream(OverTLS(context, server_hostname="app.example")))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, overload

import anyio
from anyio.abc import ByteStream, SocketStream
from anyio.streams.tls import TLSStream

from resty_upstream import Attempt, OverTLS, register_connector

if TYPE_CHECKING:
    from anyio.abc import UNIXSocketStream

__all__ = ["anyio_stream"]


@overload
def anyio_stream() -> Callable[[str, int, float], Awaitable[SocketStream]]: ...
@overload
def anyio_stream(
    tls: OverTLS, *, standard_compatible: bool = True
) -> Callable[[str, int, float], Awaitable[TLSStream]]: ...


def anyio_stream(
    tls: OverTLS | None = None, *, standard_compatible: bool = True
) -> Callable[[str, int, float], Awaitable[ByteStream]]:
    """What ``aconnect`` makes a stream of anyio of: a ``SocketStream``, or a ``TLSStream``.

    The pool's timeout bounds connecting and the handshake together; reading and writing have the timeouts that
    you give them, as ``anyio.fail_after``. A host that fails in either is followed by the next. May be used any
    number of times.

    :param tls: speak TLS, with the one name that the certificates of all hosts have.
    :param standard_compatible: whether both ends say in TLS that they close, as ``tls_standard_compatible`` of
        ``anyio.connect_tcp``; False for HTTP.
    :raises TypeError: where ``tls`` is something else.
    """
    if tls is not None and not isinstance(tls, OverTLS):
        raise TypeError(f"anyio_stream takes a resty_upstream.OverTLS, not {type(tls).__name__}")
    return _Stream(tls, standard_compatible)


class _Stream:
    def __init__(self, tls: OverTLS | None, standard_compatible: bool) -> None:
        self._tls = tls
        self._standard_compatible = standard_compatible

    async def __call__(self, host: str, port: int, timeout_s: float) -> ByteStream:
        with anyio.fail_after(timeout_s):
            stream = await _dial(host, port)
            if self._tls is None:
                return stream
            try:
                return await TLSStream.wrap(
                    stream,
                    server_side=False,
                    hostname=self._tls.server_hostname,
                    ssl_context=self._tls.context,
                    standard_compatible=self._standard_compatible,
                )
            except BaseException:
                await anyio.aclose_forcefully(stream)
                raise


async def _dial(host: str, port: int) -> SocketStream | UNIXSocketStream:
    if host.startswith("unix:"):
        return await anyio.connect_unix(host.removeprefix("unix:"))
    return await anyio.connect_tcp(host, port)


async def _connect(stream: _Stream, attempt: Attempt) -> ByteStream:
    attempt.bounded = True
    return await stream(attempt.host.host, attempt.host.port, attempt.timeout_s)


register_connector(_Stream, aconnect=_connect)
