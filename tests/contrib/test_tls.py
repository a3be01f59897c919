"""Connections with TLS whose handshake is part of the attempt."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream import NoHostAvailable, OverTLS, Upstream
from tests.contrib.cancelling import cancel_at_every_point, sockets_to
from tests.contrib.mailhost import MailHost
from tests.contrib.tls import (
    BAD,
    NAME,
    certificate,
    certified,
    echo,
    fails,
    in_order,
    never_answer,
    over_tls,
    reset,
    trusting,
)
from tests.helpers import Peer, hanging, refusing

StartPeer = Callable[..., Peer]
Talk = Callable[..., str]

GOOD = over_tls(certified(), echo)


def talk(upstream: Upstream, word: bytes = b"hello" * 1000, answer: bytes = b"") -> str:
    """Say something over TLS; the id of the pool that answered."""
    sock, info = upstream.connect(OverTLS(trusting(), NAME))
    assert isinstance(sock, ssl.SSLSocket)
    with sock:
        assert sock.gettimeout() == info.pool.timeout_s
        sock.sendall(word)  # not in a thread: before Python 3.13 a TLS socket is for one at a time
        expected = answer or word
        got = b""
        while len(got) < len(expected):
            got += sock.recv(len(expected) - len(got))
        assert got == expected
    return info.pool.id


def talk_async(upstream: Upstream, word: bytes = b"hello" * 100_000, answer: bytes = b"") -> str:
    """The same with asyncio."""

    async def run() -> str:
        (reader, writer), info = await upstream.aconnect(OverTLS(trusting(), NAME))
        writer.write(word)  # more than the reader takes in at once
        expected = answer or word
        assert await reader.readexactly(len(expected)) == expected
        assert writer.get_extra_info("ssl_object").version()
        writer.close()
        with contextlib.suppress(ssl.SSLError):  # the host may have more to say
            await writer.wait_closed()
        return info.pool.id

    return asyncio.run(run())


both = pytest.mark.parametrize("talk", [talk, talk_async], ids=["sync", "async"])


@both
def test_the_certificate_is_checked_for_the_logical_name(start_peer: StartPeer, talk: Talk) -> None:
    upstream = in_order(start_peer(GOOD).options)
    assert talk(upstream) == "p0"
    assert fails(upstream) == 0


@both
@pytest.mark.parametrize("how", BAD)
def test_a_host_whose_handshake_fails_counts_and_is_followed_by_the_next(
    start_peer: StartPeer, talk: Talk, how: str
) -> None:
    upstream = in_order(start_peer(BAD[how]).options, start_peer(GOOD).options)
    assert talk(upstream) == "p1"
    assert [fails(upstream, n) for n in (0, 1)] == [1, 0]


@both
def test_a_host_that_refuses_or_never_accepts_is_followed_by_the_next(start_peer: StartPeer, talk: Talk) -> None:
    with refusing() as dead, hanging() as full:
        upstream = in_order(dead, full, start_peer(GOOD).options, timeout="300ms")
        assert talk(upstream) == "p2"
    assert [fails(upstream, n) for n in (0, 1, 2)] == [1, 1, 0]


@both
def test_the_timeout_bounds_connecting_and_the_handshake_together(start_peer: StartPeer, talk: Talk) -> None:
    upstream = in_order(start_peer(never_answer).options, timeout="200ms", last_resort=False)
    with pytest.raises(NoHostAvailable) as caught:
        talk(upstream)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert caught.value.status_hint == 504
    assert fails(upstream) == 1


@both
def test_when_no_host_is_left_the_error_of_tls_is_the_cause(start_peer: StartPeer, talk: Talk) -> None:
    upstream = in_order(start_peer(BAD["wrong name"]).options)
    with pytest.raises(NoHostAvailable) as caught:
        talk(upstream)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert caught.value.status_hint == 502


@both
def test_a_deadline_of_all_attempts_that_cuts_the_handshake_short_counts_for_nobody(
    start_peer: StartPeer, talk: Talk
) -> None:
    upstream = in_order(start_peer(never_answer).options, timeout="1h", total_timeout=200)
    with pytest.raises(NoHostAvailable):
        talk(upstream)
    assert fails(upstream) == 0


@both
def test_handshakes_that_fail_leave_no_socket_open(start_peer: StartPeer, talk: Talk) -> None:
    peers = [start_peer(serve) for serve in (*BAD.values(), never_answer)]
    upstream = in_order(*(peer.options for peer in peers), timeout="300ms")
    with pytest.raises(NoHostAvailable):
        talk(upstream)
    assert not sockets_to(*(peer.port for peer in peers))


@both
def test_hosts_are_killed_stopped_and_brought_back(start_host: Callable[..., MailHost], talk: Talk) -> None:
    a, b = start_host("tls", certificate(NAME)), start_host("tls", certificate(NAME))
    upstream = in_order(a.options, b.options, timeout="1s")
    greeted = functools.partial(talk, upstream, b"EHLO me\r\n", b"220 app.example")
    assert greeted() == "p0"
    a.kill()
    assert greeted() == "p1"
    a.start()
    b.process.signal(signal.SIGSTOP)
    assert greeted() == "p0"  # b is silent, and a the last resort
    b.process.signal(signal.SIGCONT)
    assert [fails(upstream, n) for n in (0, 1)] == [0, 1]


def test_what_a_host_says_with_the_handshake_and_before_it_hangs_up_is_read(
    start_peer: StartPeer, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be there before the streams are."""
    peer = start_peer(over_tls(certified(), lambda tls: tls.sendall(b"x" * 300_000)))
    upstream = in_order(peer.options)

    async def read() -> bytes:
        (reader, writer), _ = await upstream.aconnect(OverTLS(trusting(), NAME))
        data = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return data

    for _ in range(20):
        assert asyncio.run(read()) == b"x" * 300_000
    assert not caplog.records


@both
def test_a_host_that_is_a_unix_socket_or_a_name_will_do(start_peer: StartPeer, talk: Talk, tmp_path: Any) -> None:
    assert talk(in_order(start_peer(GOOD, path=str(tmp_path / "s")).options)) == "p0"
    port = start_peer(GOOD).port
    assert talk(in_order({"host": "localhost", "port": port})) == "p0"


def test_one_value_serves_many_threads_and_both_worlds(start_peer: StartPeer) -> None:
    upstream, tls = in_order(start_peer(GOOD).options), OverTLS(trusting(), server_hostname=NAME)
    seen = []

    def use() -> None:
        with upstream.connect(tls).client as sock:
            sock.sendall(b"hi")
            seen.append(sock.recv(9))

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"hi"] * 5
    assert repr(tls) == "<OverTLS app.example>"


def test_what_cannot_work_is_said_where_it_is_written() -> None:
    with pytest.raises(TypeError, match=r"context must be an ssl\.SSLContext, not NoneType: ssl\.create_default"):
        OverTLS(None, "app.example")  # type: ignore[arg-type]
    for bad in ("", None):
        with pytest.raises(ValueError, match="server_hostname must be the name in the certificates"):
            OverTLS(trusting(), bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"TLS to '\.example' is not possible: "):
        OverTLS(trusting(), ".example")
    with pytest.raises(ValueError, match="is not possible"):
        OverTLS(trusting(), "x" * 300)
    with pytest.raises(ValueError, match=r"PROTOCOL_TLS_SERVER"):
        OverTLS(certified(), "app.example")


@pytest.mark.anyio
@pytest.mark.parametrize("serve", [GOOD, never_answer, reset], ids=["good", "silent", "reset"])
async def test_cancelled_at_any_point_nothing_is_left_open_and_nothing_counts(
    start_peer: StartPeer, serve: Any
) -> None:
    peer, last = start_peer(serve), start_peer(GOOD)
    upstream = in_order(peer.options, last.options, timeout="400ms")
    await upstream.current_context.aload()
    tls = OverTLS(trusting(), NAME)

    async def close(connected: Any) -> None:
        connected.client[1].transport.abort()

    def check() -> None:
        assert not sockets_to(peer.port, last.port)

    cancelled = await cancel_at_every_point(functools.partial(upstream.aconnect, tls), close, check)
    assert cancelled >= 3
    assert fails(upstream) == (0 if serve is GOOD else 1)  # once, by the call that was let to its end
    assert fails(upstream, 1) == 0
