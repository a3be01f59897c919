"""Checks of hosts that speak TLS: which certificates are good, and which name is asked for."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resty_upstream.health import checks
from resty_upstream.health.results import Result
from tests.health.support import Site, checked
from tests.helpers import Peer

StartPeer = Callable[..., Peer]

GOOD = Path(__file__).parents[1] / "unit" / "service.test.pem"
EXPIRED = Path(__file__).with_name("expired.test.pem")
NAMED = {"ssl": True, "sni_host": "service.test", "timeout": "10s"}


class TlsSite:
    """A site behind TLS, that notes which names it is asked for."""

    def __init__(self, pem: Path = GOOD) -> None:
        self.names: list[str | None] = []
        self.site = Site()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)

    def __call__(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) as tls:
            self.site(tls)


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes a certificate one that this machine trusts."""

    def trust(pem: Path) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        checks._tls.cache_clear()

    yield trust
    checks._tls.cache_clear()


Trusting = Callable[[Path], None]


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_a_certificate_of_a_trusted_authority_for_that_name_is_good(
    start_peer: StartPeer, trusting: Trusting, kind: str
) -> None:
    trusting(GOOD)
    site = TlsSite()
    assert checked(start_peer(site).options, {"type": kind}, **NAMED).ok is True
    assert site.names == ["service.test"]
    assert len(site.site.heads) == (kind == "http")


def test_sni_and_host_have_the_same_name(start_peer: StartPeer, trusting: Trusting) -> None:
    trusting(GOOD)
    site = TlsSite()
    host = start_peer(site).options
    checked(host, **NAMED)
    assert f"Host: service.test:{host['port']}\r\n".encode() in site.site.heads[0]


def test_without_sni_host_the_name_is_that_of_the_host(start_peer: StartPeer, trusting: Trusting) -> None:
    trusting(GOOD)
    site = TlsSite()
    result = checked({**start_peer(site).options, "host": "localhost"}, ssl=True, timeout="10s")
    assert (result.ok, site.names) == (False, ["localhost"])


@pytest.mark.parametrize("kind", ["http", "tcp"])
@pytest.mark.parametrize(
    ("pem", "trusted", "name"),
    [(GOOD, GOOD, "other.test"), (EXPIRED, EXPIRED, "service.test"), (GOOD, EXPIRED, "service.test")],
    ids=["of another name", "expired", "of nobody"],
)
def test_a_certificate_that_is_not_right_is_bad_and_nothing_is_asked(
    start_peer: StartPeer, trusting: Trusting, pem: Path, trusted: Path, name: str, kind: str
) -> None:
    trusting(trusted)
    site = TlsSite(pem)
    result = checked(start_peer(site).options, {"type": kind}, **NAMED | {"sni_host": name})
    assert result == Result(False, "TLS: SSLCertVerificationError")
    assert site.site.heads == []


@pytest.mark.parametrize("name", ["service.test", "other.test", ""])
def test_where_certificates_are_not_verified_any_is_good(start_peer: StartPeer, name: str) -> None:
    site = TlsSite(EXPIRED)
    options: dict[str, Any] = NAMED | {"ssl_verify": False, "sni_host": name}
    assert checked(start_peer(site).options, **options) == Result(True, "200")


def test_a_host_that_does_not_speak_tls_is_bad(start_peer: StartPeer) -> None:
    result = checked(
        start_peer(lambda tls: [tls.recv(1), tls.sendall(b"HTTP/1.1 400 No\r\n\r\n")]).options, **NAMED
    )
    assert result.ok is False


def test_a_handshake_that_never_ends_is_bad_when_timeout_is_over(start_peer: StartPeer) -> None:
    peer = start_peer(lambda connection: [connection.recv(65_536), connection.recv(1)])
    began = time.monotonic()
    assert checked(peer.options, {"timeout": 100}, **NAMED).ok is False
    assert time.monotonic() - began < 5


def test_a_host_with_tls_is_no_host_without_it(start_peer: StartPeer) -> None:
    assert checked(start_peer(TlsSite()).options).ok is False
