"""What is particular about aiohttp: two parts that belong together, bodies, cancellation, what a session does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.aiohttp import UpstreamConnector, UpstreamMiddleware, upstream_of
from resty_upstream.http import exchange as exchanges
from resty_upstream.http.retries import RetryBudget
from tests.e2e.processes import wait_until
from tests.helpers import hanging, refusing
from tests.http.server import PART, Server, silent

NAME = "users.internal"
URL = f"http://{NAME}"


@pytest.fixture(autouse=True)
def budget(monkeypatch: pytest.MonkeyPatch) -> RetryBudget:
    """One for each test: they fail more than any process should."""
    fresh = RetryBudget()
    monkeypatch.setattr(exchanges, "budget", fresh)
    return fresh


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts a server of that name."""
    with contextlib.ExitStack() as stack:
        yield lambda name="a", **options: stack.enter_context(Server(name, **options))


Serve = Callable[..., Server]


def at(*servers: Server, **options: Any) -> Upstream:
    hosts = {server.name: {"host": "127.0.0.1", "port": server.port} for server in servers}
    return Upstream("memory://", pools={"p": {"max_fails": 100, **options, "hosts": hosts}})


def fails(upstream: Upstream) -> dict[str, int]:
    hosts = upstream.get_pools()["p"]["hosts"]
    return {host_id: host["failcount"] for host_id, host in hosts.items() if host["failcount"]}


def under_way(upstream: Upstream) -> int:
    targets = upstream.replica.snapshot().targets.values()
    return sum(len(target.load.running) for target in targets if target.load is not None)


def idle(session: aiohttp.ClientSession) -> set[Any]:
    """Connections to hosts that are kept for later."""
    return {protocol for kept in session.connector._to_hosts._idle.values() for protocol, _ in kept}


def busy(session: aiohttp.ClientSession) -> set[Any]:
    """Connections to hosts that a request has."""
    return {protocol for protocol in session.connector._to_hosts._all if protocol.connected} - idle(session)


@contextlib.asynccontextmanager
async def session_of(upstream: Upstream, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose requests go to an upstream."""
    options = {"connector": UpstreamConnector(), "middlewares": [UpstreamMiddleware(upstream)], **options}
    async with aiohttp.ClientSession(**options) as session:
        yield session


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Until it is over, with nothing left behind."""
    with asyncio.Runner() as runner:
        result = runner.run(main)
        assert len(asyncio.all_tasks(runner.get_loop())) == 0
    return result


async def body_of(session: aiohttp.ClientSession, method: str, path: str, **options: Any) -> bytes:
    async with session.request(method, URL + path, **options) as response:
        return await response.read()


# ── the parts ─────────────────────────────────────────────────────────────────────────────────


def test_what_a_session_sees_is_of_the_name_in_the_url(serve: Serve) -> None:
    a = serve()

    async def main() -> None:
        async with session_of(at(a)) as session:
            async with session.get(f"{URL}/cookie?x=1") as response:
                assert str(response.url) == str(response.request_info.url) == f"{URL}/cookie?x=1"
                info = upstream_of(response)
                assert (info.host.id, info.pool.id, len(info.attempts)) == ("a", "p", 1)
            await body_of(session, "GET", "/then")
            assert [cookie["domain"] for cookie in session.cookie_jar] == [NAME]

    run(main())
    assert a.received[1].headers["cookie"] == "seen=1"
    assert {request.headers["host"] for request in a.received} == {NAME}


def test_a_session_may_be_shared_with_other_names(serve: Serve) -> None:
    """Each middleware takes the names that it was given; the others go where their URLs say."""
    a, b, elsewhere = serve("a"), serve("b"), serve("elsewhere")
    other = f"http://127.0.0.1:{elsewhere.port}/x"
    middlewares = [
        UpstreamMiddleware(at(a), hosts={"Users.internal"}),
        UpstreamMiddleware(at(b), hosts=["b.test"]),
    ]

    async def main() -> None:
        async with aiohttp.ClientSession(connector=UpstreamConnector(), middlewares=middlewares) as session:
            for url in (f"{URL}/1", "http://b.test/2", f"{URL}/redirect/to/b.test/3", other):
                async with session.get(url) as response:
                    assert response.status == 200
            with pytest.raises(LookupError, match="not of an upstream"):
                upstream_of(response)

    run(main())
    assert [request.path for request in a.received] == ["/1", "/redirect/to/b.test/3"]
    assert [request.path for request in b.received] == ["/2", "/3"]
    assert [request.path for request in elsewhere.received] == ["/x"]


def test_what_another_middleware_asks_for_goes_where_its_url_says(serve: Serve) -> None:
    """Say, for a token."""
    a, tokens = serve("a"), serve("tokens")

    async def authorised(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> Any:
        async with request.session.get(f"http://127.0.0.1:{tokens.port}/token", middlewares=()) as response:
            request.headers["Authorization"] = await response.text()
        return await handler(request)

    async def main() -> None:
        async with session_of(at(a), middlewares=[UpstreamMiddleware(at(a)), authorised]) as session:
            await body_of(session, "GET", "/")

    run(main())
    assert [request.path for request in tokens.received] == ["/token"]
    assert a.received[0].headers["authorization"] == "ok"


def test_names_are_a_collection() -> None:
    with pytest.raises(TypeError, match=r"collection of names, as \{'users.internal'\}"):
        UpstreamMiddleware(Upstream("memory://"), hosts=NAME)


def test_a_session_without_the_connector_is_told_so(serve: Serve) -> None:
    a = serve()

    async def main() -> None:
        async with session_of(at(a), connector=None) as session:
            with pytest.raises(TypeError, match=r"connector=UpstreamConnector\(\).*not TCPConnector"):
                await session.get(URL)

    run(main())
    assert not a.received


def test_a_context_is_told_what_its_requests_meet(serve: Serve) -> None:
    a, b = serve("a"), serve("b")
    upstream = at(a, b)
    a.stop()

    async def main() -> None:
        with upstream.context() as context:
            async with session_of(upstream, middlewares=[UpstreamMiddleware(context)]) as session:
                for _ in range(4):
                    assert await body_of(session, "GET", "/") == b"ok"
            assert not fails(upstream)
        assert fails(upstream) == {"a": 1}

    run(main())


def test_no_host_is_left(serve: Serve) -> None:
    """An error of aiohttp, and of ours; the session does not begin again with all of it."""
    a, b = serve("a"), serve("b")

    async def main() -> None:
        async with session_of(at(a, b)) as session:
            with pytest.raises(aiohttp.ClientConnectionError, match="no host is available") as raised:
                await session.get(f"{URL}/drop")
            assert isinstance(raised.value, NoHostAvailable)
            assert [attempt.outcome for attempt in raised.value.attempts] == ["failed", "failed"]
            assert raised.value.__cause__ is not None

    run(main())
    assert len(a.received) == len(b.received) == 1


def test_a_session_does_not_begin_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would, once, for a connection that was lost; that is for the budget to allow."""
    monkeypatch.setattr(exchanges, "budget", RetryBudget(share=0, per_second=0))
    a, b = serve("a"), serve("b")

    async def main() -> None:
        async with session_of(at(a, b)) as session:
            with pytest.raises(aiohttp.ClientConnectionError) as raised:
                await session.get(f"{URL}/drop")
            assert isinstance(raised.value.__cause__, aiohttp.ServerDisconnectedError)

    run(main())
    assert len(a.received) + len(b.received) == 1


def test_proxies_are_not_used(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    a, proxy = serve("a"), serve("proxy")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")

    async def main() -> None:
        async with session_of(at(a), trust_env=True) as session:
            await body_of(session, "GET", "/x", proxy=f"http://127.0.0.1:{proxy.port}")
            await body_of(session, "GET", "/x")

    run(main())
    assert [request.path for request in a.received] == ["/x", "/x"]
    assert not proxy.received


def test_those_who_trace_a_session_see_its_connections(serve: Serve) -> None:
    a = serve()
    seen: list[str] = []
    traces = aiohttp.TraceConfig()

    def note(name: str) -> Callable[..., Awaitable[None]]:
        async def noted(*_args: Any) -> None:
            seen.append(name)

        return noted

    for name in ("connection_create_start", "connection_create_end", "connection_reuseconn"):
        getattr(traces, f"on_{name}").append(note(name))

    async def main() -> None:
        async with session_of(at(a), trace_configs=[traces]) as session:
            for _ in range(2):
                await body_of(session, "GET", "/")

    run(main())
    assert seen == ["connection_create_start", "connection_create_end", "connection_reuseconn"]


# ── bodies ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"data": b"bytes"}, b"bytes"),
        ({"data": "text"}, b"text"),
        ({"json": {"a": 1}}, b'{"a": 1}'),
        ({"data": {"a": "1"}}, b"a=1"),
        ({}, b""),
    ],
)
def test_bodies_that_are_there_twice_are_sent_again(serve: Serve, options: dict[str, Any], body: bytes) -> None:
    a, b = serve("a"), serve("b")

    async def main() -> None:
        async with session_of(at(a, b)) as session:
            with pytest.raises(NoHostAvailable):
                await session.put(f"{URL}/drop", **options)

    run(main())
    assert [request.body for request in (*a.received, *b.received)] == [body, body]


@pytest.mark.parametrize("kind", ["generator", "file", "multipart"])
@pytest.mark.parametrize("fate", ["/drop", "/status/503"])
def test_bodies_that_may_be_gone_are_not(serve: Serve, tmp_path: Path, kind: str, fate: str) -> None:
    """Neither by us nor by the session: it would be an empty body."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    a, b = serve("a"), serve("b")
    upstream = at(a, b, status_codes=["503"])
    path = tmp_path / "file"
    path.write_bytes(b"onetwo")

    async def main() -> None:
        with path.open("rb") as file:
            data: Any = {"generator": parts, "file": lambda: file, "multipart": lambda: {"x": file}}[kind]()
            async with session_of(upstream) as session:
                if fate == "/drop":
                    with pytest.raises(aiohttp.ClientConnectionError):
                        await session.put(URL + fate, data=data)
                else:
                    async with session.put(URL + fate, data=data) as response:
                        assert response.status == 503

    run(main())
    (request,) = (*a.received, *b.received)
    assert b"onetwo" in request.body
    assert sum(fails(upstream).values()) == 1


@pytest.mark.parametrize("kind", [KeyError, FileNotFoundError])
def test_what_the_callers_body_raises_counts_for_nothing(serve: Serve, kind: type[Exception]) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0)
        raise kind(2, "bug")

    a, b = serve("a"), serve("b")
    upstream = at(a, b)

    async def main() -> None:
        async with session_of(upstream) as session:
            with pytest.raises(aiohttp.ClientConnectionError) as raised:
                await session.put(f"{URL}/echo", data=parts())
            assert not isinstance(raised.value, NoHostAvailable)

    run(main())
    assert not fails(upstream)


def test_a_host_is_asked_before_a_body_is_sent(serve: Serve) -> None:
    """Also the next host, after one that failed."""
    a, b = serve("a"), serve("b")
    upstream = at(a, b)

    async def main() -> None:
        async with session_of(upstream) as session:
            for _ in range(2):
                assert await body_of(session, "PUT", "/echo", data=b"body", expect100=True) == b"body"
            a.statuses[:] = b.statuses[:] = []
            with pytest.raises(NoHostAvailable):
                await session.put(f"{URL}/drop", data=b"body", expect100=True)

    run(main())
    assert [request.body for request in (*a.received, *b.received)] == [b"body"] * 4


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("kind", ["hang", "stuck"])
def test_a_host_that_never_says_to_go_on_is_left(serve: Serve, kind: str) -> None:
    """It takes neither the head, nor a body larger than all buffers."""
    b = serve("b")

    async def main() -> None:
        with silent() as options:
            pools = {
                "first": {"read_timeout": 100, "hosts": {"a": options}},
                "then": {"priority": 1, "hosts": {"b": {"host": "127.0.0.1", "port": b.port}}},
            }
            body = b"x" * (20_000_000 if kind == "stuck" else 1)
            async with (
                session_of(Upstream("memory://", pools=pools)) as session,
                session.put(f"{URL}/count", data=body, expect100=kind == "hang") as response,
            ):
                assert await response.read() == b"%d" % len(body)
                (failed, _) = upstream_of(response).attempts
                assert failed.outcome == "failed"

    run(main())


def test_a_slow_body_of_the_caller_is_no_failure_of_the_host(serve: Serve) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(5)

    a = serve()
    hosts = {"a": {"host": "127.0.0.1", "port": a.port}}
    upstream = Upstream("memory://", pools={"p": {"hosts": hosts}}, total_timeout=200)

    async def main() -> None:
        async with session_of(upstream) as session:
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.put(f"{URL}/echo", data=parts())

    run(main())
    assert not fails(upstream)


# ── cancellation ──────────────────────────────────────────────────────────────────────────────


async def large() -> AsyncIterator[bytes]:
    for _ in range(10_000):
        yield PART


@pytest.mark.parametrize("fate", ["connecting", "/hang", "sending", "/drip", "/half/hang", "/chunked/50", "kept"])
@pytest.mark.parametrize("how", ["cancel", "total"])
def test_a_request_that_is_given_up_leaves_nothing(serve: Serve, fate: str, how: str) -> None:
    """At any moment: no connection, no load, no failure of a host, no task."""
    a, b = serve("a"), serve("b")
    upstream = at(a, b, method="least_conn", status_codes=["503"])

    async def ask(session: aiohttp.ClientSession, total_s: float | None) -> None:
        method, path, data = ("PUT", "/hang", large()) if fate == "sending" else ("GET", fate, None)
        async with session.request(
            method, URL + path, data=data, timeout=aiohttp.ClientTimeout(total=total_s)
        ) as response:
            await response.read()

    async def main() -> None:
        stack = contextlib.ExitStack()
        if fate == "connecting":
            hosts = {name: stack.enter_context(hanging()) for name in "ab"}
            used = Upstream("memory://", pools={"p": {"method": "least_conn", "timeout": "9s", "hosts": hosts}})
        else:
            used = upstream
        if fate == "kept":
            a.statuses[:] = [503]
        with stack:
            async with session_of(used) as session:
                for step in range(25):
                    give_up_s = step * 0.001
                    if how == "total":
                        with contextlib.suppress(TimeoutError):
                            await ask(session, give_up_s or 0.0001)
                    else:
                        task = asyncio.ensure_future(ask(session, None))
                        await asyncio.sleep(give_up_s)
                        task.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await task
                    assert under_way(used) == 0
                    assert not busy(session)
                    assert not fails(used) or fate == "kept"
                await asyncio.to_thread(
                    wait_until, lambda: a.open_connections + b.open_connections <= len(idle(session)), "closed"
                )

    before = len(os.listdir("/proc/self/fd"))
    run(main())
    wait_until(lambda: a.open_connections + b.open_connections == 0, "all connections are closed")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_cancelling_at_each_step_of_the_event_loop(serve: Serve) -> None:
    """Wherever a request waits, also for TLS."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(tls)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    a = serve(tls=tls)
    upstream = at(a, method="least_conn")

    async def ask(session: aiohttp.ClientSession) -> bytes:
        async with session.put(f"https://{NAME}/echo", data=b"body") as response:
            return await response.read()

    async def main() -> int:
        for steps in range(200):
            async with session_of(upstream, connector=UpstreamConnector(ssl=trust)) as session:
                task = asyncio.ensure_future(ask(session))
                for _ in range(steps):
                    await asyncio.sleep(0)
                    if steps % 2:
                        await asyncio.sleep(0.0003)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    assert await task == b"body"
                    return steps
                assert under_way(upstream) == 0
                assert not busy(session)
        raise AssertionError("it is never over")

    assert run(main()) > 2
    assert not fails(upstream)
    wait_until(lambda: a.open_connections == 0, "all connections are closed")


def test_a_timeout_around_it_is_the_callers(serve: Serve) -> None:
    a, b = serve("a"), serve("b")
    upstream = at(a, b)

    async def main() -> None:
        async with session_of(upstream) as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await session.get(f"{URL}/hang")
            with pytest.raises(TimeoutError):
                await session.get(f"{URL}/hang", timeout=aiohttp.ClientTimeout(total=0.1))

    run(main())
    assert not fails(upstream)
    assert len(a.received) + len(b.received) == 2


@pytest.mark.parametrize("limits", [{"sock_connect": 0.05}, {"connect": 0.05}, {}])
def test_the_shorter_limit_for_connecting_holds(limits: dict[str, float]) -> None:
    """And only the pool's own says something about the host."""

    async def main() -> None:
        with hanging() as options:
            pools = {"p": {"timeout": "9s" if limits else 50, "max_fails": 9, "hosts": {"a": options}}}
            upstream = Upstream("memory://", pools=pools, last_resort=False)
            async with session_of(upstream, timeout=aiohttp.ClientTimeout(**limits)) as session:
                with pytest.raises(aiohttp.ClientConnectionError) as raised:
                    await session.post(URL, data=b"")
            assert isinstance(raised.value, NoHostAvailable) is not bool(limits)
            assert fails(upstream) == ({} if limits else {"a": 1})

    run(main())


# ── connections ───────────────────────────────────────────────────────────────────────────────


def test_two_names_never_share_a_connection(serve: Serve) -> None:
    """The certificate was looked at for one of them."""
    authority = trustme.CA()
    names: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(tls)
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    a = serve(tls=tls)

    async def main() -> None:
        async with session_of(at(a), connector=UpstreamConnector(ssl=trust)) as session:
            for _ in range(2):
                async with session.get(f"https://{NAME}/") as response:
                    assert response.status == 200
            with pytest.raises(NoHostAvailable):
                await session.get("https://other.internal/")
            async with session.get("https://other.internal/", ssl=False) as response:
                assert response.status == 200
            async with session.get("https://other.internal/", server_hostname=NAME) as response:
                assert response.status == 200
            wrong = aiohttp.Fingerprint(b"x" * 32)
            with pytest.raises(NoHostAvailable):
                await session.get(f"https://{NAME}/", ssl=wrong)

    run(main())
    assert names == [NAME, "other.internal", "other.internal", NAME]


def test_what_comes_unasked_is_not_taken_for_an_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that says something on an idle connection has left the protocol."""
    a = serve()

    def answer_twice(self: Server, connection: Any, request: Any) -> None:
        self._send(connection, request)
        self._send(connection, request, b"stray")

    monkeypatch.setattr(Server, "_answer_twice", answer_twice, raising=False)

    def usable(connection: Any) -> bool:
        return bool(connection.is_usable())

    async def main() -> None:
        async with session_of(at(a)) as session:
            for _ in range(3):
                assert await body_of(session, "GET", "/twice") == b"ok"
                kept = idle(session)
                await asyncio.to_thread(wait_until, lambda kept=kept: not any(map(usable, kept)), "it has come")
                assert await body_of(session, "GET", "/") == b"ok"

    run(main())


@pytest.mark.parametrize("option", [{"force_close": True}, {"keepalive_timeout": 0}])
def test_how_long_connections_are_kept_is_not_the_connectors_to_say(serve: Serve, option: dict[str, Any]) -> None:
    a = serve()

    async def main() -> None:
        async with session_of(at(a), connector=UpstreamConnector(limit=1, **option)) as session:
            for _ in range(3):
                await body_of(session, "GET", "/")

    run(main())
    assert a.accepted == 1


def test_idle_connections_are_closed_in_time_and_forgotten(serve: Serve) -> None:
    a = serve()

    async def main() -> None:
        async with session_of(at(a, keepalive_timeout=50)) as session:
            await asyncio.gather(*(body_of(session, "GET", "/") for _ in range(5)))
            await asyncio.to_thread(wait_until, lambda: a.open_connections == 0, "idle connections are closed")
            assert not session.connector._to_hosts._idle
            assert not busy(session)

    run(main())


@pytest.mark.parametrize("path", ["/gzip/2000000", "/chunked/1000"])
def test_a_body_that_is_read_slowly_is_paused_and_goes_on(serve: Serve, path: str) -> None:
    """Also where more of it is unpacked than was received; a reader may take longer than a host."""
    a = serve()

    async def main() -> None:
        async with session_of(at(a, read_timeout=700)) as session:
            whole = await body_of(session, "GET", path)
            async with session.get(URL + path) as response:
                parts = [await response.content.readexactly(100_000)]
                await asyncio.sleep(0.8)
                async for part in response.content.iter_chunked(300_000):
                    parts.append(part)
                    await asyncio.sleep(0)
            assert b"".join(parts) == whole
            assert len(whole) > 10_000_000

    run(main())
    assert a.accepted == 1


def test_an_idle_connection_outlives_the_read_timeout(serve: Serve) -> None:
    """Also one whose body was larger than the buffers, so that reading was paused."""
    a = serve()

    async def main() -> None:
        async with session_of(at(a, read_timeout=50)) as session:
            for _ in range(3):
                async with session.get(f"{URL}/chunked/20") as response:
                    await asyncio.sleep(0.15)  # the reader's own time
                    assert len(await response.read()) == 20 * len(PART)
                await asyncio.sleep(0.1)

    run(main())
    assert a.accepted == 1


def test_a_body_that_hangs_is_a_failure_by_the_pools_limit(serve: Serve) -> None:
    a = serve()
    upstream = at(a, read_timeout=100)

    async def main() -> None:
        async with session_of(upstream) as session:
            with pytest.raises(aiohttp.SocketTimeoutError):
                await body_of(session, "GET", "/half/hang")
            assert fails(upstream) == {"a": 1}
            with pytest.raises(aiohttp.SocketTimeoutError):
                await body_of(session, "GET", "/half/hang", timeout=aiohttp.ClientTimeout(sock_read=0.02))
            assert fails(upstream) == {"a": 1}, "the caller's own limit"

    run(main())


def test_websockets_find_their_host() -> None:
    """And may be silent for longer than an answer."""

    async def talk(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(f"{message.data}!")
        return answer

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/talk", talk)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        with refusing() as dead:
            pools = {
                "first": {"hosts": {"a": dead}},
                "then": {"priority": 1, "read_timeout": 50, "hosts": {"b": {"host": "127.0.0.1", "port": port}}},
            }
            upstream = Upstream("memory://", pools=pools)
            async with session_of(upstream) as session, session.ws_connect(f"{URL}/talk") as talking:
                for _ in range(3):
                    await talking.send_str("hello")
                    assert await talking.receive_str() == "hello!"
                    await asyncio.sleep(0.1)
        await runner.cleanup()

    run(main())
