"""What is particular about the transports for httpx2 and httpx."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import ssl
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.httpx import AsyncUpstreamTransport, UpstreamTransport
from tests.e2e.processes import Ports, Process, python, wait_until
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


# ── HTTP/2, and large bodies ──────────────────────────────────────────────────────────────────


def test_http2_is_spoken_where_both_can(tmp_path: Path) -> None:
    """With a request after the other and many at once on one connection, and the name in the URL."""
    authority = trustme.CA()
    authority.issue_cert("users.internal").private_key_and_cert_chain_pem.write_to_path(tmp_path / "pem")
    ports = Ports()
    port = ports.reserve()
    pem = str(tmp_path / "pem")
    command = python("-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "--certfile", pem, "--keyfile", pem)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    upstream = Upstream("memory://", pools={"p": {"hosts": {"a": {"host": "127.0.0.1", "port": port}}}})

    async def ask() -> list[httpx2.Response]:
        transport = AsyncUpstreamTransport(upstream, verify=trusted, http2=True)
        async with httpx2.AsyncClient(transport=transport, base_url="https://users.internal") as client:
            first = await client.get("/first")
            return [first, *await asyncio.gather(*(client.post("/", content=b"body") for _ in range(20)))]

    with Process([*command, "tests.http.app:app"], {}, tmp_path / "printed") as process:
        wait_until(lambda: "Running on" in process.printed(), "it serves")
        responses = asyncio.run(ask())
    ports.release()
    assert {response.http_version for response in responses} == {"HTTP/2"}
    assert [response.text for response in responses] == ["users.internal "] + ["users.internal body"] * 20
    assert len({response.extensions["upstream"].host.id for response in responses}) == 1


def test_a_gibibyte_goes_through_in_constant_memory(server: Server) -> None:
    """In a process of its own, whose memory nobody else needs."""
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(server.port)], stdout=subprocess.PIPE, check=True, text=True
    )
    received, sent, grown = map(int, done.stdout.split())
    assert (received, sent) == (2**30, 2**26)
    assert grown < 32 * 2**20


_LARGE = """
import resource, sys
import httpx2
from resty_upstream import Upstream
from resty_upstream.contrib.httpx import UpstreamTransport

upstream = Upstream("memory://", pools={"p": {"hosts": {"a": {"host": "127.0.0.1", "port": sys.argv[1]}}}})
client = httpx2.Client(transport=UpstreamTransport(upstream), base_url="http://users.internal", timeout=None)
client.get("/")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
received = 0
with client.stream("GET", f"/chunked/{2**30 // 65536}") as response:
    for part in response.iter_raw():
        received += len(part)
parts = (b"x" * 65536 for _ in range(2**26 // 65536))
sent = int(client.post("/count", content=parts).text)
print(received, sent, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


# ── cancelling ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/hang", "/half/hang", "/drip", "/chunked/4000"])
@pytest.mark.parametrize("after_s", [0, 0.001, 0.005, 0.05])
def test_a_request_that_is_cancelled_leaves_nothing(server: Server, path: str, after_s: float) -> None:
    """No socket, nothing under way, and no failure counted, wherever it was."""
    upstream = upstream_of(server, method="least_conn")

    async def ask() -> None:
        async with httpx2.AsyncClient(
            transport=AsyncUpstreamTransport(upstream), base_url="http://users.internal", timeout=None
        ) as client:
            await client.get("/")
            asking = asyncio.create_task(client.get(path))
            await asyncio.sleep(after_s)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            loads = [target.load for target in upstream.replica.snapshot().targets.values()]
            assert [len(load.running) for load in loads if load] == [0]
            await asyncio.to_thread(wait_until, lambda: server.open_connections <= 1, "the connection is closed")
            assert (await client.get("/")).status_code == 200

    asyncio.run(ask())
    assert upstream.get_pools()["p"]["hosts"]["a"]["failcount"] == 0
    wait_until(lambda: server.open_connections == 0, "all connections are closed")


def test_names_without_end_are_not_kept(server: Server) -> None:
    """Whoever chooses names in URLs cannot have this process keep something for each."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("*.users.internal").configure_cert(tls)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    with Server("t", tls=tls) as secure, UpstreamTransport(upstream_of(secure), verify=trusted) as transport:
        client = httpx2.Client(transport=transport)
        for number in range(150):
            assert client.get(f"https://n{number}.users.internal/").status_code == 200
        assert secure.open_connections <= 130


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
