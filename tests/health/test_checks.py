"""One check of one host: what is sent, and which answers are good."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream.health import checks
from resty_upstream.health.checks import NotOurTurn, request_bytes, run_check
from resty_upstream.health.results import Result
from resty_upstream.model import HealthCheck, pools_from_dicts
from tests.helpers import WAIT_S, Peer, hanging, no_descriptors_left, read_head, refusing

StartPeer = Callable[..., Peer]


async def in_thread(call: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(call)


def check(options: dict[str, Any], pool: dict[str, Any] | None = None, **given: Any) -> Result:
    """Check a host once; ``options`` are those of the host, ``pool`` those of its pool."""
    (checked,) = pools_from_dicts({"p": {**(pool or {}), "hosts": {"a": options}}}).pools
    (host,) = checked.hosts
    healthcheck = checked.check_of(host)
    assert healthcheck is not None
    given = {"is_our_turn": lambda: True, "in_thread": in_thread, **given}
    return asyncio.run(run_check(checked, host, healthcheck, **given))


def answering(*parts: bytes, requests: list[bytes] | None = None) -> Callable[[socket.socket], None]:
    """Serve a connection: read the request, and send these parts one after the other."""

    def serve(connection: socket.socket) -> None:
        head = read_head(connection)
        if requests is not None:
            requests.append(head)
        for part in parts:
            connection.sendall(part)

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


# ── what is sent ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("healthcheck", [True, {}])
def test_the_default_check_asks_for_the_root(start_peer: StartPeer, healthcheck: Any) -> None:
    requests: list[bytes] = []
    peer = start_peer(answering(OK, requests=requests))
    assert check({**peer.options, "healthcheck": healthcheck}) == Result(True, "200")
    (request,) = requests
    assert request == (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: resty_upstream (health check)\r\nAccept: */*\r\n"
        b"Accept-Encoding: identity\r\nConnection: close\r\n\r\n" % peer.port
    )


def test_path_method_and_headers_are_as_configured(start_peer: StartPeer) -> None:
    requests: list[bytes] = []
    peer = start_peer(answering(OK, requests=requests))
    table = {"path": "/health?full=1", "method": "HEAD", "headers": {"X-Check": "1", "host": "app.test"}}
    assert check({**peer.options, "healthcheck": table}).ok
    lines = requests[0].decode().split("\r\n")
    assert lines[0] == "HEAD /health?full=1 HTTP/1.1"
    assert "X-Check: 1" in lines
    assert [line for line in lines if line.lower().startswith("host:")] == ["host: app.test"]


@pytest.mark.parametrize(
    ("host", "pool", "authority"),
    [
        ({"host": "app.test"}, {}, b"app.test"),
        ({"host": "app.test", "port": 8080}, {}, b"app.test:8080"),
        ({"host": "::1", "port": 8080}, {}, b"[::1]:8080"),
        ({"host": "fe80::1%eth0"}, {}, b"[fe80::1]"),
        ({"host": "app.test", "port": 443}, {"ssl": True}, b"app.test"),
        ({"host": "10.0.0.1"}, {"sni_host": "app.test"}, b"app.test"),
        ({"host": "unix:/run/app.sock"}, {}, b"localhost"),
    ],
)
def test_the_host_header_names_the_host(host: dict[str, Any], pool: dict[str, Any], authority: bytes) -> None:
    (checked,) = pools_from_dicts({"p": {**pool, "hosts": {"a": host}}}).pools
    assert b"\r\nHost: %b\r\n" % authority in request_bytes(checked, checked.hosts[0], HealthCheck())


# ── which answers are good ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "table", "result"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", {}, Result(True, "204")),
        (b"HTTP/1.0 302\r\n\r\n", {}, Result(True, "302")),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", {}, Result(False, "status 404")),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", {"status_codes": ["5xx"]}, Result(True, "404")),
        (b"HTTP/1.1 503 Oh\r\n\r\n", {"status_codes": ["50x", 404]}, Result(False, "status 503")),
        (b"HTTP/1.1 500 Oh\r\n\r\n", {"status_codes": []}, Result(True, "500")),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            {},
            Result(True, "200"),
        ),
        (b"SSH-2.0-OpenSSH_9\r\n", {}, Result(False, "it does not speak HTTP")),
        (b"", {}, Result(False, "EOFError")),
        (b"HTTP/1.1 200 OK\r\nHalf: a head", {}, Result(False, "EOFError")),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300, {}, Result(False, "HTTPException")),
        (b"HTTP/1.1 200 OK\r\n\r\nall is well", {"body": "well"}, Result(True, "200")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", {"body": "fine"}, Result(True, "200")),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine, not counted: well",
            {"body": "well"},
            Result(False, "status 200, without the text that must appear"),
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nall is\r\n5;x=y\r\n well\r\n0\r\n\r\n",
            {"body": "is well"},
            Result(True, "200"),
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000 + b"well",
            {"body": "well"},
            Result(False, "status 200, without the text that must appear"),
        ),
    ],
)
def test_an_answer_is_good_or_bad_for_what_it_says(
    start_peer: StartPeer, answer: bytes, table: dict[str, Any], result: Result
) -> None:
    peer = start_peer(answering(answer))
    assert check({**peer.options, "healthcheck": table}) == result


def test_an_answer_that_comes_drop_by_drop_ends_with_its_time(start_peer: StartPeer) -> None:
    def drip(connection: socket.socket) -> None:
        read_head(connection)
        for _ in range(1000):
            connection.sendall(b"H")
            time.sleep(0.02)

    peer = start_peer(drip)
    began = time.monotonic()
    assert check({**peer.options, "healthcheck": {"read_timeout": 150}}) == Result(False, "timed out")
    assert time.monotonic() - began < 5


def test_who_does_not_accept_is_bad_after_the_timeout_of_the_check_or_else_of_the_pool() -> None:
    with hanging() as host:
        assert check({**host, "healthcheck": {"timeout": 100}}) == Result(False, "timed out")
        assert check({**host, "healthcheck": True}, {"timeout": 100}) == Result(False, "timed out")


@given(st.sampled_from(["5xx", "50x", "503", "x0x", "404"]), st.integers(100, 599))
def test_a_mask_counts_the_statuses_that_it_looks_like(mask: str, status: int) -> None:
    matches = all(a in ("x", b) for a, b in zip(mask, str(status), strict=True))
    assert HealthCheck(status_codes=(mask,)).is_bad(status) is matches


def test_unix_sockets_and_names_are_checked_as_well(start_peer: StartPeer, tmp_path: Path) -> None:
    assert check({**start_peer(answering(OK), path=str(tmp_path / "s")).options, "healthcheck": True}).ok
    peer = start_peer(answering(OK))
    assert check({"host": "localhost", "port": peer.port, "healthcheck": True}).ok
    missing = check({"host": f"unix:{tmp_path}/missing", "healthcheck": True})
    assert missing == Result(False, "ENOENT")


# ── TCP ───────────────────────────────────────────────────────────────────────────────────────


def test_a_tcp_check_connects_and_sends_nothing(start_peer: StartPeer) -> None:
    received: list[bytes] = []
    peer = start_peer(lambda connection: received.append(connection.recv(100)))
    assert check({**peer.options, "healthcheck": {"type": "tcp"}}) == Result(True, "connected")
    peer.stop()
    assert not any(received)
    with refusing() as host:
        assert check({**host, "healthcheck": {"type": "tcp"}}) == Result(False, "ECONNREFUSED")


# ── who is to blame ───────────────────────────────────────────────────────────────────────────


def test_a_machine_without_descriptors_says_nothing_of_a_host(start_peer: StartPeer) -> None:
    peer = start_peer(answering(OK))
    (pool,) = pools_from_dicts({"p": {"healthcheck": True, "hosts": {"a": peer.options}}}).pools

    async def run() -> Result:
        with no_descriptors_left():
            return await run_check(
                pool, pool.hosts[0], HealthCheck(), is_our_turn=lambda: True, in_thread=in_thread
            )

    assert asyncio.run(run()) == Result(None, "EMFILE")


def test_nothing_is_asked_when_it_is_not_our_turn_any_more(start_peer: StartPeer) -> None:
    """A process may have been stopped between connecting and asking."""
    received: list[bytes] = []
    peer = start_peer(lambda connection: received.append(connection.recv(100)))
    with pytest.raises(NotOurTurn):
        check({**peer.options, "healthcheck": True}, is_our_turn=lambda: False)
    peer.stop()
    assert not any(received)


# ── functions ─────────────────────────────────────────────────────────────────────────────────

PING = {"host": "10.0.0.1", "port": 8001, "healthcheck": {"type": "myapp.ping", "timeout": 50, "read_timeout": 50}}


def test_a_function_is_given_the_address_and_the_time_that_it_has() -> None:
    given_to: list[tuple[str, int, float]] = []
    assert check(PING, function=lambda *arguments: given_to.append(arguments)) == Result(True, "passed")
    assert given_to == [("10.0.0.1", 8001, 0.1)]


def test_a_function_says_no_by_false_or_by_raising() -> None:
    def wrong(*_arguments: object) -> None:
        raise ValueError("the queue is full")

    assert check(PING, function=lambda *_: False) == Result(False, "returned False")
    assert check(PING, function=wrong) == Result(False, "ValueError: the queue is full")


def test_a_coroutine_function_is_awaited_and_ended_when_its_time_is_over() -> None:
    async def well(*_arguments: object) -> None:
        await asyncio.sleep(0)

    async def hangs(*_arguments: object) -> None:
        await asyncio.Event().wait()

    assert check(PING, function=well) == Result(True, "passed")
    assert check(PING, function=hangs) == Result(False, "timed out")


def test_a_function_that_hangs_in_a_thread_is_bad_in_time() -> None:
    over = threading.Event()
    try:
        loops: list[bool] = []

        async def daemon(call: Callable[[], Any]) -> Any:
            loops.append(True)
            threading.Thread(target=call, daemon=True).start()
            await asyncio.Event().wait()

        assert check(PING, function=lambda *_: over.wait(WAIT_S), in_thread=daemon) == Result(False, "timed out")
        assert loops
    finally:
        over.set()


def test_a_function_that_may_not_be_called_here_says_nothing_of_the_host() -> None:
    assert check(PING, function=None) == Result(None, "myapp.ping is not called here")


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def serve_tls(start_peer: StartPeer, certificates: Callable[..., Path]) -> Callable[[str], tuple[Peer, list[str]]]:
    """Starts a peer with a certificate for a name; it notes the names that clients ask for."""

    def start(name: str) -> tuple[Peer, list[str]]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates(name))
        asked: list[str] = []
        context.sni_callback = lambda _socket, asked_for, _context: asked.append(asked_for)  # type: ignore[assignment]

        def serve(connection: socket.socket) -> None:
            with ExitStack() as stack:
                try:
                    wrapped = stack.enter_context(context.wrap_socket(connection, server_side=True))
                except ssl.SSLError:
                    return
                answering(OK)(wrapped)

        return start_peer(serve), asked

    return start


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Has checks trust a certificate."""

    def trust_it(path: Path) -> None:
        plain = checks._tls.__wrapped__

        @functools.cache
        def tls(verify: bool) -> ssl.SSLContext:
            context: ssl.SSLContext = plain(verify)
            context.load_verify_locations(path)
            return context

        monkeypatch.setattr(checks, "_tls", tls)

    return trust_it


TlsPeer = Callable[[str], tuple[Peer, list[str]]]


@pytest.mark.parametrize("type_", ["http", "tcp"])
def test_the_name_of_the_pool_is_asked_for_and_verified(
    serve_tls: TlsPeer, certificates: Callable[..., Path], trust: Callable[[Path], None], type_: str
) -> None:
    trust(certificates("app.test"))
    peer, asked = serve_tls("app.test")
    options = {**peer.options, "healthcheck": {"type": type_}}
    assert check(options, {"ssl": True, "sni_host": "app.test"}).ok
    assert asked == ["app.test"]
    assert check(options, {"ssl": True, "sni_host": "other.test"}) == Result(
        False, "TLS: SSLCertVerificationError"
    )


def test_a_certificate_that_nobody_trusts_is_bad_unless_it_is_not_verified(serve_tls: TlsPeer) -> None:
    peer, _ = serve_tls("app.test")
    options, tls = {**peer.options, "healthcheck": True}, {"ssl": True, "sni_host": "app.test"}
    assert check(options, tls) == Result(False, "TLS: SSLCertVerificationError")
    assert check(options, {**tls, "ssl_verify": False}).ok
    assert check(options, {}).ok is False
