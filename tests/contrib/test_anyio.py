"""Streams of anyio, and ``aconnect`` itself, in asyncio and in trio."""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.tls import TLSAttribute, TLSStream

from resty_upstream import NoHostAvailable, OverTLS, Upstream
from resty_upstream.contrib.anyio import anyio_stream
from resty_upstream.loops import in_loop, in_trio
from tests.contrib.cancelling import BACKENDS, HAS_TRIO, cancel_at_every_point, sockets_to
from tests.contrib.mailhost import MailHost
from tests.contrib.tls import (
    BAD,
    NAME,
    certificate,
    certified,
    echo,
    fails,
    hang_up,
    in_order,
    never_answer,
    over_tls,
    reset,
    trusting,
)
from tests.e2e.processes import ROOT, python, wait_until
from tests.helpers import Peer, hanging, refusing

StartPeer = Callable[..., Peer]

GOOD = over_tls(certified(), echo)
SECURE = OverTLS(trusting(), NAME)

pytestmark = pytest.mark.anyio
only_trio = pytest.mark.skipif(not HAS_TRIO, reason="trio is missing")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both of them."""
    return str(request.param)


async def talk(upstream: Upstream, tls: OverTLS | None = None, **options: Any) -> str:
    """Say something; the id of the pool that answered."""
    make: Any = anyio_stream if tls is None else functools.partial(anyio_stream, tls, **options)
    stream, info = await upstream.aconnect(make())
    async with stream:
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
    return str(info.pool.id)


# ── streams ───────────────────────────────────────────────────────────────────────────────────


async def test_a_host_that_is_dead_or_full_is_followed_by_the_next(start_peer: StartPeer) -> None:
    good = start_peer(echo)
    with refusing() as dead, hanging() as full:
        upstream = in_order(dead, full, good.options, timeout="300ms")
        assert await talk(upstream) == "p2"
        assert [fails(upstream, n) for n in (0, 1, 2)] == [1, 1, 0]
    assert not sockets_to(good.port)


async def test_a_stream_of_anyio_it_is(start_peer: StartPeer, tmp_path: Path) -> None:
    plain, info = await in_order(start_peer(echo).options).aconnect(anyio_stream())
    async with plain:
        assert isinstance(plain, anyio.abc.SocketStream)
        assert plain.extra(anyio.abc.SocketAttribute.remote_port) == info.host.port
    secure, _ = await in_order(start_peer(GOOD).options).aconnect(anyio_stream(SECURE))
    async with secure:
        assert isinstance(secure, TLSStream)
        assert secure.extra(TLSAttribute.standard_compatible)
    secure, _ = await in_order(start_peer(GOOD).options).aconnect(anyio_stream(SECURE, standard_compatible=False))
    async with secure:
        assert not secure.extra(TLSAttribute.standard_compatible)
    assert await talk(in_order(start_peer(echo, path=str(tmp_path / "s")).options)) == "p0"
    assert await talk(in_order(start_peer(GOOD, path=str(tmp_path / "t")).options), SECURE) == "p0"
    assert await talk(in_order({"host": "localhost", "port": start_peer(echo).port})) == "p0"
    assert await talk(in_order({"host": "[::1]", "port": start_peer(echo, host="::1").port})) == "p0"


@pytest.mark.parametrize("standard_compatible", [True, False])
@pytest.mark.parametrize("how", BAD)
async def test_a_host_whose_handshake_fails_counts_and_is_followed_by_the_next(
    start_peer: StartPeer, how: str, standard_compatible: bool
) -> None:
    bad, good = start_peer(BAD[how]), start_peer(GOOD)
    upstream = in_order(bad.options, good.options)
    assert await talk(upstream, SECURE, standard_compatible=standard_compatible) == "p1"
    assert [fails(upstream, n) for n in (0, 1)] == [1, 0]
    assert not sockets_to(bad.port, good.port)


async def test_the_timeout_bounds_connecting_and_the_handshake_together(start_peer: StartPeer) -> None:
    peer = start_peer(never_answer)
    upstream = in_order(peer.options, timeout="200ms", last_resort=False)
    with pytest.raises(NoHostAvailable) as caught:
        await talk(upstream, SECURE)
    assert caught.value.status_hint == 504
    assert fails(upstream) == 1
    assert not sockets_to(peer.port)


async def test_a_deadline_of_all_attempts_that_cuts_the_handshake_short_counts_for_nobody(
    start_peer: StartPeer,
) -> None:
    upstream = in_order(start_peer(never_answer).options, timeout="1h", total_timeout=200)
    with pytest.raises(NoHostAvailable):
        await talk(upstream, SECURE)
    assert fails(upstream) == 0


async def test_a_timeout_of_the_caller_counts_for_nobody(start_peer: StartPeer) -> None:
    peer = start_peer(never_answer)
    upstream = in_order(peer.options, timeout="30s")
    with pytest.raises(TimeoutError), anyio.fail_after(0.1):
        await talk(upstream, SECURE)
    assert fails(upstream) == 0
    assert not sockets_to(peer.port)


@pytest.mark.parametrize(
    ("serve", "tls"),
    [(echo, None), (GOOD, SECURE), (never_answer, SECURE), (reset, SECURE), (hang_up, SECURE)],
    ids=["plain", "tls", "silent", "reset", "closed"],
)
async def test_cancelled_at_any_point_nothing_is_left_open_and_nothing_counts(
    start_peer: StartPeer, serve: Any, tls: OverTLS | None
) -> None:
    peer, last = start_peer(serve), start_peer(GOOD if tls else echo)
    upstream = in_order(peer.options, last.options, timeout="400ms")
    await upstream.current_context.aload()

    async def begin() -> Any:
        return await upstream.aconnect(anyio_stream() if tls is None else anyio_stream(tls))

    async def close(connected: Any) -> None:
        await anyio.aclose_forcefully(connected.client)

    def check() -> None:
        wait_until(lambda: not sockets_to(peer.port, last.port), "all sockets are closed", timeout_s=0.0)

    assert await cancel_at_every_point(begin, close, check) >= 3
    assert fails(upstream, 1) == 0


_CALLS = """
from typing import assert_type

from anyio.abc import SocketStream
from anyio.streams.tls import TLSStream

from resty_upstream import Connected, OverTLS, Upstream
from resty_upstream.contrib.anyio import anyio_stream


async def use(upstream: Upstream, tls: OverTLS) -> None:
    assert_type(await upstream.aconnect(anyio_stream()), Connected[SocketStream])
    assert_type(await upstream.aconnect(anyio_stream(tls)), Connected[TLSStream])
    anyio_stream(standard_compatible=False)  # type: ignore[call-overload]
"""


def test_a_checker_knows_what_stream_it_is(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(_CALLS)
    command = python("-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "calls.py")
    env = {"MYPYPATH": str(ROOT), "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_something_else_than_over_tls_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"anyio_stream takes a resty_upstream\.OverTLS, not SSLContext"):
        anyio_stream(trusting())  # type: ignore[call-overload]


async def test_connect_says_that_it_is_for_aconnect(start_peer: StartPeer) -> None:
    with pytest.raises(TypeError, match="aconnect"):
        in_order(start_peer(echo).options).connect(anyio_stream())


async def test_streams_go_on_while_hosts_are_killed_stopped_and_brought_back(
    start_host: Callable[..., MailHost],
) -> None:
    a, b = start_host("tls", certificate(NAME)), start_host("tls", certificate(NAME))
    upstream = in_order(a.options, b.options, timeout="1s")

    async def greeted() -> str:
        stream, info = await upstream.aconnect(anyio_stream(SECURE))
        assert (await stream.receive()).startswith(b"220 ")
        await anyio.aclose_forcefully(stream)
        return str(info.pool.id)

    assert await greeted() == "p0"
    a.kill()
    assert await greeted() == "p1"
    a.start()
    assert await greeted() == "p1"  # a is down for an hour
    b.process.signal(signal.SIGSTOP)
    assert await greeted() == "p0"  # b is silent, and a the last resort
    b.process.signal(signal.SIGCONT)
    assert [fails(upstream, n) for n in (0, 1)] == [0, 1]


# ── aconnect itself ───────────────────────────────────────────────────────────────────────────


async def test_it_is_known_which_loop_runs(anyio_backend: str) -> None:
    def here() -> tuple[bool, bool]:
        return in_loop(), in_trio()

    assert here() == (True, anyio_backend == "trio")
    assert await anyio.to_thread.run_sync(here) == (False, False)


async def test_a_callable_of_the_users_own_has_the_timeout_of_its_loop(start_peer: StartPeer) -> None:
    good = start_peer(echo)
    upstream = in_order(start_peer(never_answer).options, good.options, timeout="200ms")

    async def dial(host: str, port: int, _timeout_s: float) -> anyio.abc.SocketStream:
        stream = await anyio.connect_tcp(host, port)
        try:
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return stream

    stream, info = await upstream.aconnect(dial)
    await stream.aclose()
    assert info.pool.id == "p1"
    assert isinstance(info.attempts[0].error, TimeoutError)
    assert fails(upstream) == 1


async def test_an_object_that_connects_itself_has_the_timeout_of_its_loop() -> None:
    class Client:
        def settimeout(self, timeout_s: float) -> None: ...

        async def connect(self, host: str, port: int) -> None:
            if host == "a.test":
                await anyio.sleep_forever()

    upstream = in_order({"host": "a.test"}, {"host": "b.test"}, timeout="100ms")
    _, info = await upstream.aconnect(Client())
    assert [attempt.outcome for attempt in info.attempts] == ["failed", "ok"]


async def test_the_store_is_opened_by_a_thread(start_peer: StartPeer, tmp_path: Path) -> None:
    peer = start_peer(echo)
    upstream = Upstream(f"sqlite://{tmp_path}/run/upstreams.db")
    upstream.configure({"p": {"hosts": {"a": peer.options}}})
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        assert await talk(upstream) == "p"
        group.cancel_scope.cancel()
    assert turns > 1
    upstream.close()


@only_trio
def test_in_trio_what_is_of_asyncio_says_so(tmp_path: Path) -> None:
    """Also where nothing imported asyncio before."""
    code = """
import socket, ssl, sys, trio
from resty_upstream import OverTLS, Upstream

async def main():
    upstream = Upstream("memory://")
    upstream.configure({"p": {"hosts": {"a": {"host": "127.0.0.1", "port": 1}}}})
    for client in (None, socket.socket(), OverTLS(ssl.create_default_context(), "app.example")):
        try:
            await upstream.aconnect(client)
        except TypeError as error:
            print(error)
    print(upstream.get_pools()["p"]["hosts"]["a"]["failcount"])

trio.run(main)
"""
    done = subprocess.run(python("-c", code), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    *errors, count = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("in trio pass anyio_stream() of resty_upstream.contrib.anyio" in error for error in errors)
    assert count == "0"
