"""The http check: what it asks, and what it makes of any answer."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resty_upstream.health.checks import NotOurTurn, request_bytes
from resty_upstream.health.results import Result
from tests.health.support import OK, Site, check_once, checked, forever, pool_of, status
from tests.helpers import WAIT_S, Peer, hanging, no_descriptors_left, read_head, refusing

StartPeer = Callable[..., Peer]
StartSite = Callable[..., tuple[Site, dict[str, Any]]]


def asked(host: dict[str, Any], check: object = True, **options: Any) -> bytes:
    """What a check of a host would send."""
    pool = pool_of(host, check, **options)
    only = pool.hosts[0]
    its = pool.check_of(only)
    assert its is not None
    return request_bytes(pool, only, its)


def host_header(host: dict[str, Any], **options: Any) -> str:
    """What the check says as ``Host``."""
    return asked(host, **options).split(b"\r\n")[1].removeprefix(b"Host: ").decode()


# ── what is asked ─────────────────────────────────────────────────────────────────────────────


def test_a_check_is_one_plain_get_of_the_root_and_nothing_more(start_site: StartSite) -> None:
    site, host = start_site()
    assert checked(host) == Result(True, "200")
    assert site.heads == [
        b"GET / HTTP/1.1\r\n"
        b"Host: 127.0.0.1:%d\r\n"
        b"User-Agent: resty_upstream (health check)\r\n"
        b"Accept: */*\r\n"
        b"Accept-Encoding: identity\r\n"
        b"Connection: close\r\n\r\n" % host["port"]
    ]


def test_method_path_and_headers_are_those_of_the_check(start_site: StartSite) -> None:
    site, host = start_site()
    checked(host, {"method": "POST", "path": "/health?full=1", "headers": {"X-Check": "1", "X-Name": "é"}})
    lines = site.heads[0].split(b"\r\n")
    assert lines[0] == b"POST /health?full=1 HTTP/1.1"
    assert lines[-4:-2] == [b"X-Check: 1", b"X-Name: \xe9"]


def test_headers_of_the_check_take_the_place_of_those_that_it_sends_anyway() -> None:
    sent = asked(
        {"host": "a.test"}, {"headers": {"host": "other.test", "USER-AGENT": "me", "Accept": "text/html"}}
    )
    assert sent.split(b"\r\n")[1:4] == [b"host: other.test", b"USER-AGENT: me", b"Accept: text/html"]
    assert sent.lower().count(b"host:") == sent.lower().count(b"user-agent:") == 1


@pytest.mark.parametrize(
    ("host", "options", "name"),
    [
        ({"host": "a.test"}, {}, "a.test"),
        ({"host": "a.test", "port": 8080}, {}, "a.test:8080"),
        ({"host": "a.test", "port": 443}, {"ssl": True}, "a.test"),
        ({"host": "a.test", "port": 443}, {}, "a.test:443"),
        ({"host": "a.test", "port": 80}, {"ssl": True}, "a.test:80"),
        ({"host": "10.0.0.1", "port": 8080}, {"sni_host": "app.test"}, "app.test:8080"),
        ({"host": "::1", "port": 8080}, {}, "[::1]:8080"),
        ({"host": "fe80::1%eth0"}, {}, "[fe80::1]"),
        ({"host": "unix:/run/app.sock"}, {}, "localhost"),
        ({"host": "unix:/run/app.sock", "port": 8080}, {"sni_host": "app.test"}, "app.test"),
        ({"host": "bücher.test"}, {}, "xn--bcher-kva.test"),
        ({"host": "пример.test", "port": 8080}, {}, "xn--e1afmkfd.test:8080"),
    ],
)
def test_host_names_what_is_checked_with_the_port_where_it_is_not_the_usual_one(
    host: dict[str, Any], options: dict[str, Any], name: str
) -> None:
    assert host_header(host, **options) == name


def test_hosts_are_checked_wherever_they_are(start_site: StartSite, tmp_path: Path) -> None:
    for where in ({"host": "127.0.0.2"}, {"host": "::1"}, {"path": str(tmp_path / "app.sock")}):
        site, host = start_site(**where)
        assert checked(host) == Result(True, "200")
        assert site.hits == 1


def test_a_name_is_looked_up(start_site: StartSite) -> None:
    site, host = start_site()
    assert checked({**host, "host": "localhost"}) == Result(True, "200")
    assert b"Host: localhost:" in site.heads[0]


def test_who_is_connected_when_his_turn_is_over_asks_nothing(start_peer: StartPeer) -> None:
    received: list[bytes] = []
    peer = start_peer(lambda connection: received.append(read_head(connection)))
    with pytest.raises(NotOurTurn):
        asyncio.run(check_once(pool_of(peer.options), is_our_turn=False))
    peer.stop()
    assert received in ([b""], [])


# ── statuses ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("code", "ok"), [(200, True), (204, True), (302, True), (399, True)])
def test_an_answer_from_200_to_399_is_good(start_site: StartSite, code: int, ok: bool) -> None:
    assert checked(start_site(status(code))[1]) == Result(ok, str(code))


@pytest.mark.parametrize("code", [101, 400, 404, 429, 500, 503, 999])
def test_any_other_status_is_bad_and_the_reason_names_it(start_site: StartSite, code: int) -> None:
    assert checked(start_site(status(code))[1]) == Result(False, f"status {code}")


@pytest.mark.parametrize(
    ("code", "ok"), [(500, True), (503, False), (507, False), (404, False), (403, True), (200, True)]
)
def test_statuses_that_count_as_bad_may_be_given(start_site: StartSite, code: int, ok: bool) -> None:
    check = {"status_codes": ["503", "507", "404"]}
    assert checked(start_site(status(code))[1], check).ok is ok


def test_answers_that_only_announce_one_are_passed_over(start_site: StartSite) -> None:
    announced = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert checked(start_site(announced + status(503))[1]) == Result(False, "status 503")
    assert checked(start_site(announced + OK)[1]) == Result(True, "200")
    assert not checked(start_site(announced)[1]).ok


@pytest.mark.parametrize("head", [b"HTTP/1.1 200\r\n\r\n", b"HTTP/1.0 200 \r\n\r\n", b"HTTP/1.1 200 OK\n\n"])
def test_an_answer_may_be_as_short_as_servers_send_it(start_site: StartSite, head: bytes) -> None:
    assert checked(start_site(head)[1]) == Result(True, "200")


# ── bodies ────────────────────────────────────────────────────────────────────────────────────

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 12\r\n\r\nall is well.",
        HEAD + b"Content-Length: 1000\r\n\r\nall is well",
        HEAD + b"\r\nall is well",
        CHUNKED + b"b\r\nall is well\r\n0\r\n\r\n",
        CHUNKED + b"B;name=value\r\nall is well\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nall\r\n4\r\n is \r\n1\r\nw\r\n3\r\nell\r\n0\r\n\r\n",
        CHUNKED + b"".join(b"1\r\n%c\r\n" % each for each in b"yes, all is well"),
        HEAD + b"Transfer-Encoding: gzip, Chunked\r\n\r\nb\r\nall is well\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\nall is well",
    ],
    ids=["length", "cut", "to the end", "chunk", "extension", "chunks", "bytes", "gzip, chunked", "after 100"],
)
def test_text_that_must_appear_is_found_in_any_kind_of_body(start_site: StartSite, answer: bytes) -> None:
    assert checked(start_site(answer)[1], {"body": "all is well"}) == Result(True, "200")


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 5\r\n\r\nall is well",
        HEAD + b"Content-Length: 0\r\n\r\n",
        HEAD + b"X-Text: all is well\r\n\r\n",
        HEAD + b"\r\nall is not well",
        CHUNKED + b"3\r\nall\r\n4\r\n is \r\n0\r\n\r\nwell",
        CHUNKED + b"0\r\n\r\nall is well",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    ids=["behind the length", "none", "in a header", "other", "half", "behind the end", "204"],
)
def test_an_answer_without_the_text_is_bad(start_site: StartSite, answer: bytes) -> None:
    result = checked(start_site(answer)[1], {"body": "all is well"})
    assert not result.ok
    assert result.reason.endswith(", without the text that must appear")


@pytest.mark.parametrize("size", [b"-5", b"x", b"5\r\nab", b"ffffffffffffffffff"])
def test_chunks_that_are_none_are_bad(start_site: StartSite, size: bytes) -> None:
    assert checked(start_site(CHUNKED + size + b"\r\nall is")[1], {"body": "all is well"}).ok is False


def test_text_outside_ascii_is_looked_for_as_utf8(start_site: StartSite) -> None:
    assert checked(start_site(HEAD + "\r\nalles möglich".encode())[1], {"body": "möglich"}).ok


def test_only_the_first_256_kib_of_a_body_are_looked_at(start_site: StartSite) -> None:
    for size, ok in ((255, True), (400, False)):
        body = b"x" * (size << 10) + b"here"
        lengths = b"Content-Length: %d\r\n\r\n" % len(body)
        assert checked(start_site(HEAD + lengths + body)[1], {"body": "here", "read_timeout": "10s"}).ok is ok
        chunk = b"%x\r\n" % len(body) + body
        assert checked(start_site(CHUNKED + chunk)[1], {"body": "here", "read_timeout": "10s"}).ok is ok


@pytest.mark.parametrize(
    ("first", "data"),
    [(HEAD + b"\r\n", b"x" * 65_536), (CHUNKED, b"4\r\nxxxx\r\n" * 10_000)],
    ids=["plain", "small chunks"],
)
def test_a_body_without_end_ends_the_check_soon(start_peer: StartPeer, first: bytes, data: bytes) -> None:
    peer = start_peer(forever(data, first=first))
    began = time.monotonic()
    result = checked(peer.options, {"body": "never", "read_timeout": "30s"})
    assert result == Result(False, "status 200, without the text that must appear")
    assert time.monotonic() - began < 15


def test_without_a_text_the_body_is_not_read(start_peer: StartPeer) -> None:
    peer = start_peer(forever(b"x" * 65_536, first=HEAD + b"\r\n"))
    assert checked(peer.options, {"read_timeout": "30s"}) == Result(True, "200")


def test_after_the_head_of_an_answer_to_head_nothing_is_waited_for(start_peer: StartPeer) -> None:
    gone = threading.Event()

    def serve(connection: socket.socket) -> None:
        assert read_head(connection).startswith(b"HEAD / ")
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(WAIT_S)
        connection.recv(1)
        gone.set()

    assert checked(start_peer(serve).options, {"method": "HEAD", "read_timeout": "30s"}) == Result(True, "200")
    assert gone.wait(WAIT_S)


# ── what is no answer ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"\x00" * 100 + b"\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"<html>ok</html>",
    ],
)
def test_what_is_no_http_is_bad(start_site: StartSite, answer: bytes) -> None:
    assert checked(start_site(answer)[1]) == Result(False, "it does not speak HTTP")


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"],
    ids=["nothing", "an announcement", "no end of headers", "half a header"],
)
def test_half_an_answer_is_bad(start_site: StartSite, answer: bytes) -> None:
    assert checked(start_site(answer)[1]) == Result(False, "EOFError")


@pytest.mark.parametrize(
    "data",
    [b"X-Header: again\r\n", b"x" * 4096, b"HTTP/1.1 100 Continue\r\n\r\n"],
    ids=["headers", "a header", "announcements"],
)
def test_a_head_without_end_is_bad(start_peer: StartPeer, data: bytes) -> None:
    peer = start_peer(forever(data, first=b"HTTP/1.1 200 OK\r\n" if not data.startswith(b"HTTP") else b""))
    assert checked(peer.options, {"read_timeout": 500}).ok is False


def test_what_a_host_sends_makes_no_long_reason(start_site: StartSite) -> None:
    chunks = CHUNKED + b"z" * 5000 + b"\r\n"
    assert len(checked(start_site(chunks)[1], {"body": "ok"}).reason) <= 120


@pytest.mark.parametrize(
    ("first", "data"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X"),
        (b"", b"H"),
        (HEAD + b"\r\n", b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
    ],
    ids=["header", "status", "body", "chunks"],
)
def test_who_answers_a_byte_at_a_time_has_read_timeout_for_all_of_it(
    start_peer: StartPeer, first: bytes, data: bytes
) -> None:
    peer = start_peer(forever(data, 0.02, first))
    began = time.monotonic()
    result = checked(peer.options, {"read_timeout": 150, "body": "never"})
    assert result == Result(False, "timed out")
    assert 0.1 < time.monotonic() - began < 5


def test_silence_is_bad_when_read_timeout_is_over(start_peer: StartPeer) -> None:
    peer = start_peer(lambda connection: [read_head(connection), connection.recv(1)])
    assert checked(peer.options, {"read_timeout": 100}) == Result(False, "timed out")


# ── connecting ────────────────────────────────────────────────────────────────────────────────


def test_a_host_that_refuses_is_bad() -> None:
    with refusing() as dead:
        assert checked(dead) == Result(False, "ECONNREFUSED")


@pytest.mark.parametrize("options", [{"timeout": 100}, {}], ids=["of the check", "of the pool"])
def test_a_host_that_neither_accepts_nor_refuses_is_bad_when_timeout_is_over(options: dict[str, Any]) -> None:
    began = time.monotonic()
    with hanging() as host:
        assert checked(host, options, timeout="60s" if options else 100).ok is False
    assert time.monotonic() - began < 10


def test_a_unix_socket_that_is_not_there_is_bad(tmp_path: Path) -> None:
    assert checked({"host": f"unix:{tmp_path / 'none.sock'}"}).ok is False


@pytest.mark.parametrize("kind", ["http", "tcp"])
def test_a_process_without_descriptors_says_nothing_of_its_hosts(start_site: StartSite, kind: str) -> None:
    _, host = start_site()

    async def check() -> Result:
        with no_descriptors_left():
            return await check_once(pool_of(host, {"type": kind}))

    assert asyncio.run(check()) == Result(None, "EMFILE")


# ── tcp ───────────────────────────────────────────────────────────────────────────────────────


def test_a_tcp_check_is_good_once_connected_and_sends_nothing(start_peer: StartPeer) -> None:
    received: list[bytes] = []
    peer = start_peer(lambda connection: received.append(connection.recv(100)))
    assert checked(peer.options, {"type": "tcp"}) == Result(True, "connected")
    peer.stop()
    assert received in ([b""], [])


def test_a_tcp_check_of_a_host_that_refuses_is_bad() -> None:
    with refusing() as dead:
        assert checked(dead, {"type": "tcp"}) == Result(False, "ECONNREFUSED")
