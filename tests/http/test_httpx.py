"""What is particular about the transports for httpx2 and httpx."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import ssl
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trustme

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.httpx import AsyncUpstreamTransport, UpstreamTransport
from tests.e2e.processes import Ports, Process, python, wait_until
from tests.helpers import refusing
from tests.http.server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("a") as started:
        yield started


def upstream_of(*servers: Server, **options: Any) -> Upstream:
    hosts = {server.name: {"host": "127.0.0.1", "port": server.port} for server in servers}
    return Upstream("memory://", pools={"p": {"max_fails": 2, **options, "hosts": hosts}})


# ── clients of a request ──────────────────────────────────────────────────────────────────────


def test_a_request_has_a_client_of_its_own(server: Server) -> None:
    """With cookies of its own, and connections that the next request uses again."""
    upstream = upstream_of(server)
    for _ in range(2):
        with upstream.context() as request:
            assert request.http is request.http
            assert request.http.get("/cookie").status_code == 200
            assert request.http.get("/then").extensions["upstream"].host.id == "a"
    first, then, other_first, _ = server.received
    assert ("cookie" in first.headers, then.headers["cookie"]) == (False, "seen=1")
    assert "cookie" not in other_first.headers
    assert server.accepted == 1
    assert first.headers["host"] == "default"


def test_what_its_client_sees_belongs_to_the_request(server: Server) -> None:
    """It is told when the request is over, and the host is not tried again by it."""
    with Server("b") as other:
        upstream = upstream_of(server, other)
        with upstream.context() as request:
            server.stop()
            hosts = {request.http.get("/").extensions["upstream"].host.id for _ in range(4)}
            assert hosts == {"b"}
            assert upstream.get_pools()["p"]["hosts"]["a"]["failcount"] == 0
        assert upstream.get_pools()["p"]["hosts"]["a"]["failcount"] == 1


def test_asynchronous_code_has_one_too(server: Server) -> None:
    upstream = upstream_of(server)

    async def ask() -> None:
        for _ in range(2):
            with upstream.context() as request:
                response = await request.ahttp.get("/x")
                assert response.extensions["upstream"].host.id == "a"

    for _ in range(2):  # each event loop has connections of its own
        asyncio.run(ask())
    assert server.accepted == 2


def test_a_request_with_a_client_is_freed_without_the_collector(server: Server) -> None:
    upstream = upstream_of(server)
    gc.disable()
    try:
        with upstream.context() as request:
            request.http.get("/")
        gone = weakref.ref(request)
        del request
        assert gone() is None
    finally:
        gc.enable()


def test_an_upstream_that_is_gone_leaves_no_connection(server: Server) -> None:
    upstream = upstream_of(server)
    with upstream.context() as request:
        request.http.get("/")
    assert server.open_connections == 1
    gone = weakref.ref(upstream)
    del upstream, request
    gc.collect()
    assert gone() is None
    wait_until(lambda: server.open_connections == 0, "its connection is closed")


def test_hosts_are_called_as_the_pool_says(server: Server) -> None:
    with upstream_of(server, sni_host="users.internal").context() as request:
        request.http.get("/")
    assert server.received[0].headers["host"] == "users.internal"
    hosts = {"a": {"host": "127.0.0.1", "port": server.port}}
    with Upstream("memory://", id="no name/", pools={"p": {"hosts": hosts}}).context() as request:
        request.http.get("/")
    assert server.received[1].headers["host"] == "upstream"


# ── errors ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["httpx2", "httpx"])
def test_errors_are_the_clients_own(server: Server, name: str) -> None:
    hx = importlib.import_module(name)
    upstream = upstream_of(server)
    with hx.Client(transport=UpstreamTransport(upstream), base_url="http://users.internal") as client:
        with pytest.raises(hx.RemoteProtocolError) as raised:
            client.post("/drop")
        assert raised.value.request.url == "http://users.internal/drop"
        server.stop()
        with pytest.raises(hx.ConnectError, match=r"no host is available after p/a: ") as none:
            client.post("/")
    assert isinstance(none.value, NoHostAvailable)
    assert isinstance(none.value.__cause__, Exception)
    assert none.value.__cause__.__cause__ is not none.value.__cause__
    assert isinstance(none.value.__cause__.__context__, ConnectionRefusedError)


def test_a_request_of_another_library_is_refused(server: Server) -> None:
    with pytest.raises(TypeError, match="a request of httpx2 or httpx"):
        UpstreamTransport(upstream_of(server)).handle_request(object())


# ── HTTP/2, and names ─────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def two(tmp_path: Path, authority: trustme.CA) -> Iterator[tuple[Upstream, Process]]:
    """An upstream of two hosts with HTTP/2, and the one of them that is asked first."""
    authority.issue_cert("users.internal").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    ports, processes = Ports(), []
    pools = {}
    with contextlib.ExitStack() as stack:
        stack.callback(ports.release)
        for priority, name in enumerate("ab"):
            port, pem = ports.reserve(), str(tmp_path / "pem")
            address = ["--bind", f"127.0.0.1:{port}", "--certfile", pem, "--keyfile", pem]
            command = python("-m", "hypercorn", *address, "tests.http.app:app")
            processes.append(stack.enter_context(Process(command, {}, tmp_path / name)))
            pools[name] = {"priority": priority, "hosts": {name: {"host": "127.0.0.1", "port": port}}}
        for process in processes:
            wait_until(lambda process=process: "Running on" in process.printed(), "it serves")
        yield Upstream("memory://", pools=pools), processes[0]


def answers(responses: list[Any]) -> list[tuple[str, str, str]]:
    return [(each.extensions["upstream"].host.id, each.http_version, each.text) for each in responses]


@pytest.mark.parametrize("name", ["httpx2", "httpx"])
def test_http2_is_spoken_where_both_can(name: str, two: tuple[Upstream, Process], authority: trustme.CA) -> None:
    """With a request after the other and many at once, the name in the URL, and a host that is killed."""
    hx, (upstream, process), trusted = importlib.import_module(name), two, ssl.create_default_context()
    authority.configure_trust(trusted)

    async def ask() -> list[Any]:
        transport = AsyncUpstreamTransport(upstream, verify=trusted, http2=True)
        async with hx.AsyncClient(transport=transport, base_url="https://users.internal") as client:
            first = [await client.get("/"), *await asyncio.gather(*(client.post("/") for _ in range(20)))]
            process.kill_group()
            return [*first, *await asyncio.gather(*(client.get("/") for _ in range(5)))]

    transport = UpstreamTransport(upstream, verify=trusted, http2=True)
    with hx.Client(transport=transport, base_url="https://users.internal") as client:
        assert answers([client.post("/", content=b"body")]) == [("a", "HTTP/2", "users.internal body")]
        by_a, by_b = ("a", "HTTP/2", "users.internal "), ("b", "HTTP/2", "users.internal ")
        assert answers(asyncio.run(ask())) == [by_a] * 21 + [by_b] * 5
        assert answers([client.get("/")]) == [by_b]


def test_names_without_end_are_not_kept(authority: trustme.CA) -> None:
    """Whoever chooses names in URLs cannot have this process keep something for each."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("*.users.internal").configure_cert(tls)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with Server("t", tls=tls) as secure, UpstreamTransport(upstream_of(secure), verify=trusted) as transport:
        client = httpx2.Client(transport=transport)
        for number in range(150):
            assert client.get(f"https://n{number}.users.internal/").status_code == 200
        assert secure.open_connections <= 130


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("name", ["httpx2", "httpx"])
def test_it_works_on_trio_too(name: str, tls: bool, authority: trustme.CA) -> None:
    """The next host after one that refuses, connections that are kept, and a read that takes too long."""
    hx = importlib.import_module(name)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("users.internal").configure_cert(context)

    async def ask() -> list[str]:
        transport = AsyncUpstreamTransport(upstream, verify=trusted)
        async with hx.AsyncClient(transport=transport, base_url="http://users.internal") as client:
            answers = [await client.get("/") for _ in range(4)]
            with pytest.raises(NoHostAvailable):
                await client.get("/hang")
            return [answer.extensions["upstream"].host.id for answer in answers]

    with refusing() as dead, Server("a", tls=context if tls else None) as alive:
        hosts = {"dead": dead, "a": {"host": "127.0.0.1", "port": alive.port}}
        pools = {"p": {"max_fails": 0, "ssl": tls, "read_timeout": "300ms", "hosts": hosts}}
        upstream = Upstream("memory://", pools=pools)
        assert trio.run(ask) == ["a"] * 4
        assert alive.accepted <= 3
        assert upstream.get_pools()["p"]["hosts"]["dead"]["failcount"] > 0


@pytest.mark.parametrize("name", ["httpx2", "httpx"])
def test_how_long_connections_are_kept_is_not_the_clients_to_say(server: Server, name: str) -> None:
    hx = importlib.import_module(name)
    limits = hx.Limits(max_connections=1, max_keepalive_connections=0, keepalive_expiry=0)
    with hx.Client(transport=UpstreamTransport(upstream_of(server)), limits=limits) as client:
        for _ in range(3):
            client.get("http://users.internal/")
    assert server.accepted == 1


# ── processes, and changes ────────────────────────────────────────────────────────────────────


def test_a_child_process_has_connections_of_its_own(server: Server) -> None:
    with httpx2.Client(
        transport=UpstreamTransport(upstream_of(server)), base_url="http://users.internal"
    ) as client:
        client.get("/parent")
        child = os.fork()
        if not child:
            os._exit(client.get("/child").status_code != 200)
        assert os.waitpid(child, 0)[1] == 0
        assert client.get("/parent").status_code == 200
    assert [request.connection for request in server.received] == [1, 2, 1]
