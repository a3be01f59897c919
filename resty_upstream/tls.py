"""TLS: connections whose handshake is part of the attempt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from resty_upstream.connectors import open_socket, register_connector

if TYPE_CHECKING:
    import asyncio
    import ssl

    from resty_upstream.attempts import Attempt


class OverTLS:
    """What ``connect`` and ``aconnect`` make a connection with TLS of.

    ::

        tls = OverTLS(ssl.create_default_context(), server_hostname="app.example")
        sock, info = upstream.connect(tls)  # an ssl.SSLSocket, with the pool's timeout set
        (reader, writer), info = await upstream.aconnect(tls)

    The pool's timeout bounds connecting and handshake together. A handshake that fails, for the certificate or
    anything else, counts against the host, and the next one is tried. May be used any number of times, in any
    thread.

    :param context: how TLS is spoken, and whom it trusts.
    :param server_hostname: the name that the certificates of all hosts have, whatever their addresses are.
    :raises TypeError: where ``context`` is no ``ssl.SSLContext``.
    :raises ValueError: where ``server_hostname`` is no name, or the context is one for servers.
    """

    __slots__ = ("context", "server_hostname")

    def __init__(self, context: ssl.SSLContext, server_hostname: str) -> None:
        import ssl

        given: object = context
        if not isinstance(given, ssl.SSLContext):
            what = f"not {type(given).__name__}: ssl.create_default_context() makes one"
            raise TypeError(f"context must be an ssl.SSLContext, {what}")
        if not server_hostname:
            raise ValueError(f"server_hostname must be the name in the certificates, not {server_hostname!r}")
        try:  # what would else be found out in each attempt
            context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_hostname)
        except (ValueError, ssl.SSLError) as error:
            raise ValueError(f"TLS to {server_hostname!r} is not possible: {error}") from error
        self.context = context
        self.server_hostname = server_hostname

    def __repr__(self) -> str:
        return f"<OverTLS {self.server_hostname}>"


def shake_hands(tls: OverTLS, attempt: Attempt) -> ssl.SSLSocket:
    """Connect to the host of an attempt with TLS."""
    deadline = time.monotonic() + attempt.timeout_s
    raw = open_socket(attempt)
    try:
        # Which takes the descriptor; in two steps, so that it is closed whatever interrupts the handshake.
        sock = tls.context.wrap_socket(raw, server_hostname=tls.server_hostname, do_handshake_on_connect=False)
    except BaseException:
        raw.close()
        raise
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.do_handshake()
        sock.settimeout(attempt.pool.timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


async def _ashake_hands(tls: OverTLS, attempt: Attempt) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    from resty_upstream.aconnectors import connect_tls

    return await connect_tls(tls.context, tls.server_hostname, attempt)


register_connector(OverTLS, shake_hands, aconnect=_ashake_hands)
