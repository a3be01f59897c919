"""Hosts that speak TLS in good and bad ways, and upstreams of them."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final

import trustme

from resty_upstream import Upstream
from resty_upstream.stores.memory import MemoryStore

NAME: Final = "app.example"
"""The name in the certificates of hosts that are as they should be."""

AUTHORITY: Final = trustme.CA()


def trusting(authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    """How a client speaks TLS that trusts an authority and nobody else."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def certificate(*names: str) -> bytes:
    """Key and certificate for ``names``, as a server's file."""
    return AUTHORITY.issue_cert(*names).private_key_and_cert_chain_pem.bytes()


def certified(*names: str, authority: trustme.CA = AUTHORITY, **options: Any) -> ssl.SSLContext:
    """How a server speaks TLS whose certificate is for ``names``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names or (NAME,), **options).configure_cert(context)
    return context


def expired() -> ssl.SSLContext:
    """How a server speaks TLS whose certificate is of yesterday."""
    return certified(not_after=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1))


def self_signed() -> ssl.SSLContext:
    """How a server speaks TLS whose certificate nobody else signed."""
    return certified(authority=trustme.CA())


def over_tls(context: ssl.SSLContext, serve: Callable[[Any], object]) -> Callable[[socket.socket], None]:
    """Serve a connection with TLS; what ends it there is the client's to see."""

    def serve_tls(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            serve(tls)
            with contextlib.suppress(OSError):
                tls.unwrap()

    return serve_tls


def echo(connection: Any) -> None:
    """Serve a connection by sending back what comes."""
    while data := connection.recv(65_536):
        connection.sendall(data)


def reset(connection: socket.socket) -> None:
    """Serve a connection by resetting it once the client spoke."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang_up(connection: socket.socket) -> None:
    """Serve a connection by closing it once the client spoke, having read all."""
    connection.recv(65_536)


def never_answer(connection: socket.socket) -> None:
    """Serve a connection by reading until the client goes."""
    while connection.recv(65_536):
        pass


def speak_plainly(connection: socket.socket) -> None:
    """Serve a connection in another protocol than TLS."""
    connection.sendall(b"220 mail.example ready, no TLS here at all\r\n")
    while connection.recv(65_536):
        pass


BAD: Final[dict[str, Callable[[socket.socket], object]]] = {
    "wrong name": over_tls(certified("other.example"), echo),
    "expired": over_tls(expired(), echo),
    "self-signed": over_tls(self_signed(), echo),
    "reset": reset,
    "closed": hang_up,
    "plain": speak_plainly,
}
"""Hosts with which no handshake succeeds, and that say so."""


def in_order(*peers: dict[str, Any], timeout: str = "5s", **options: Any) -> Upstream:
    """An upstream on real time with a pool for each peer, to be tried in this order; one failure takes down."""
    upstream = Upstream(MemoryStore(), **options)
    upstream.configure(
        {
            f"p{n}": {
                "priority": n,
                "max_fails": 1,
                "failed_timeout": "1h",
                "timeout": timeout,
                "hosts": {"h": peer},
            }
            for n, peer in enumerate(peers)
        }
    )
    return upstream


def fails(upstream: Upstream, number: int = 0) -> int:
    """How many failures count against the host of a pool of :func:`in_order`."""
    return int(upstream.get_pools()[f"p{number}"]["hosts"]["h"]["failcount"])
