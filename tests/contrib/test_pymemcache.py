"""pymemcache, against memcached processes."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from pymemcache import KeepaliveOpts, MemcacheClientError, MemcacheUnexpectedCloseError
from pymemcache.client.retrying import RetryingClient

from resty_upstream import NoHostAvailable
from resty_upstream.contrib.pymemcache import UpstreamClient, UpstreamPooledClient
from resty_upstream.testing import FakeClock
from tests.contrib.servers import Server, Servers, failcounts, in_order, servers
from tests.helpers import Peer, no_descriptors_left, refusing

__all__ = ["servers"]


@pytest.fixture(params=[UpstreamClient, UpstreamPooledClient])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients, each test with single and with pooled ones."""
    clients = []

    def make(upstream: Any, **options: Any) -> Any:
        clients.append(request.param(upstream, **{"default_noreply": False, "timeout": 10.0, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def pid_of(client: Any) -> int:
    return int(client.stats()[b"pid"])


def pid(server: Server) -> int:
    return int(server.ask(b"stats").split()[2])


def test_commands_go_to_a_host_that_works(connect: Any, servers: Servers) -> None:
    b = servers.memcached()
    with refusing() as a:
        upstream = in_order(a, b)
        client = connect(upstream, key_prefix=b"site:", no_delay=True, socket_keepalive=KeepaliveOpts())
        assert client.set("key", "value")
        assert client.get("key") == b"value"
        assert client.incr("none", 1) is None
        assert client.add("key", "other") is False
        assert client.get_many(["key", "none"]) == {"key": b"value"}
        assert client.touch("key", 60)
        assert client.delete("key")
        assert pid_of(client) == pid(b)
        assert failcounts(upstream) == [1, 0]


def test_a_host_killed_between_commands_is_noticed_before_the_next_one(
    connect: Any, servers: Servers, clock: FakeClock
) -> None:
    a, b = servers.memcached(), servers.memcached()
    upstream = in_order(a, b, clock=clock, pool={"max_fails": 1})
    client = connect(upstream)
    for command in (lambda: client.get("key"), lambda: client.set("key", 1), lambda: client.delete("none")):
        client.close()
        assert pid_of(client) == pid(a)
        a.kill()
        command()
        assert pid_of(client) == pid(b)
        assert failcounts(upstream) == [1, 0]
        a.start()
        clock.advance(60)


def test_a_host_killed_in_the_middle_of_a_command_fails_that_command_only(connect: Any, servers: Servers) -> None:
    b = servers.memcached()
    asked = threading.Event()

    def serve(connection: socket.socket) -> None:
        assert connection.recv(100) == b"version\r\n"
        connection.sendall(b"VERSION 1.6\r\n")
        connection.recv(100)
        asked.set()

    with Peer(serve) as a:
        upstream = in_order(a.options, b)
        client = connect(upstream)
        with pytest.raises((MemcacheUnexpectedCloseError, ConnectionResetError)):
            client.get("key")
        assert asked.is_set()
        a.stop()
        assert pid_of(client) == pid(b)
        assert failcounts(upstream) == [1, 0]


def test_a_host_that_is_stopped_accepts_and_is_counted_all_the_same(connect: Any, servers: Servers) -> None:
    a, b = servers.memcached(), servers.memcached()
    a.stop()
    upstream = in_order(a, b, pool={"timeout": 150})
    assert pid_of(connect(upstream)) == pid(b)
    assert failcounts(upstream) == [1, 0]
    a.go_on()


@pytest.mark.parametrize("options", [{"timeout": 0.2}, {"timeout": None}], ids=["own", "of the pool"])
def test_a_host_stopped_in_the_middle_of_use_fails_one_command(
    connect: Any, servers: Servers, options: dict[str, Any]
) -> None:
    a, b = servers.memcached(), servers.memcached()
    upstream = in_order(a, b, pool={"timeout": 150})
    client = connect(upstream, **options)
    assert pid_of(client) == pid(a)
    a.stop()
    with pytest.raises(TimeoutError):
        client.get("key")
    assert pid_of(client) == pid(b)
    assert failcounts(upstream) == [1, 0]
    a.go_on()


def test_a_stopped_host_is_used_again_when_it_goes_on_and_its_time_is_over(
    connect: Any, servers: Servers, clock: FakeClock
) -> None:
    a, b = servers.memcached(), servers.memcached()
    upstream = in_order(a, b, clock=clock, pool={"max_fails": 1, "timeout": 250})
    client = connect(upstream)
    a.stop()
    assert pid_of(client) == pid(b)
    a.go_on()
    client.close()
    assert pid_of(client) == pid(b)
    assert failcounts(upstream) == [1, 0]
    clock.advance(60)
    client.close()
    assert pid_of(client) == pid(a)
    assert failcounts(upstream) == [0, 0]


def test_a_host_with_too_many_clients_is_counted(connect: Any, servers: Servers) -> None:
    a, b = servers.memcached("-c", "40"), servers.memcached()
    upstream = in_order(a, b)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            taken = stack.enter_context(socket.create_connection(("127.0.0.1", a.port)))
            taken.sendall(b"version\r\n")
            taken.recv(100)
        assert pid_of(connect(upstream)) == pid(b)
        assert failcounts(upstream) == [1, 0]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 5000])
def test_a_host_that_closes_or_speaks_something_else_is_counted(
    connect: Any, servers: Servers, answer: bytes
) -> None:
    b = servers.memcached()
    with Peer(lambda connection: (connection.recv(100), connection.sendall(answer))) as a:
        upstream = in_order(a.options, b)
        assert pid_of(connect(upstream)) == pid(b)
        assert failcounts(upstream) == [1, 0]


def test_a_host_that_wants_a_password_is_no_failure(connect: Any, servers: Servers, tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.write_text("web:secret\n")
    a, b = servers.memcached("-Y", str(file)), servers.memcached()
    upstream = in_order(a, b)
    with pytest.raises(MemcacheClientError, match="unauthenticated"):
        connect(upstream).set("key", 1)
    assert failcounts(upstream) == [0, 0]


def test_no_host_is_left(connect: Any) -> None:
    with refusing() as a:
        upstream = in_order(a)
        with pytest.raises(NoHostAvailable):
            connect(upstream).get("key")
        with pytest.raises(ConnectionError):
            connect(upstream).set("key", 1)
        assert connect(upstream, ignore_exc=True).get("key", "nothing") == "nothing"
        assert failcounts(upstream) == [3]


def test_having_no_descriptors_left_is_nobodys_fault(connect: Any, servers: Servers) -> None:
    upstream = in_order(servers.memcached(), servers.memcached())
    client = connect(upstream)
    with no_descriptors_left(), pytest.raises(OSError, match="24"):
        client.get("key")
    assert failcounts(upstream) == [0, 0]
    assert client.get("key") is None


def test_the_error_of_a_command_without_reply_is_not_taken_for_the_next_answer(
    connect: Any, servers: Servers
) -> None:
    a = servers.memcached("-I", "1m")
    client = connect(in_order(a), default_noreply=True)
    client.set("key", b"value", noreply=False)
    client.set("large", b"x" * 2_000_000)
    # What is on its way when the next command is sent is not seen; what has come is.
    a.ask(b"version")
    assert client.get("key") == b"value"


def test_a_unix_socket_is_a_host_too(connect: Any, servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "memcached.sock"
    with Peer(greeting, path=str(path)) as a:
        client = connect(in_order(a.options), no_delay=True)
        assert client.version() == b"1.6"


def greeting(connection: socket.socket) -> None:
    while connection.recv(100):
        connection.sendall(b"VERSION 1.6\r\n")


def test_threads_share_a_pool_while_a_host_dies(servers: Servers) -> None:
    a, b = servers.memcached(), servers.memcached()
    upstream = in_order(a, b)
    client = UpstreamPooledClient(upstream, max_pool_size=4, timeout=10.0)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(client.get, ["key"] * 50)) == {None}
        a.kill()
        assert set(threads.map(client.get, ["key"] * 50)) == {None}
    assert failcounts(upstream)[1] == 0
    client.close()


def test_a_client_that_retries_wraps_it(servers: Servers) -> None:
    a, b = servers.memcached(), servers.memcached()
    upstream = in_order(a, b, pool={"timeout": 150})
    client = RetryingClient(UpstreamClient(upstream, timeout=0.2), attempts=2, retry_for=[TimeoutError])
    assert pid_of(client) == pid(a)
    a.stop()
    assert client.get("key") is None
    client.close()
    a.go_on()


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def start_tls() -> Iterator[Callable[..., dict[str, Any]]]:
    """Starts peers that speak memcached behind TLS, with a certificate; their options as hosts."""
    peers = []

    def start(certificate: trustme.LeafCert) -> dict[str, Any]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)

        def serve(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secured:
                greeting(secured)

        peers.append(Peer(serve).__enter__())
        return peers[-1].options

    yield start
    for peer in peers:
        peer.stop()


@pytest.mark.parametrize("bad", ["else.internal", "expired"])
def test_a_host_with_a_bad_certificate_is_counted(start_tls: Any, connect: Any, bad: str) -> None:
    ca = trustme.CA()
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    expired = ca.issue_cert("cache.internal", not_before=then, not_after=then.replace(year=2021))
    a = start_tls(expired if bad == "expired" else ca.issue_cert(bad))
    b = start_tls(ca.issue_cert("cache.internal"))
    context = ssl.create_default_context()
    ca.configure_trust(context)
    upstream = in_order(a, b, pool={"timeout": 5000})
    client = connect(upstream, tls_context=context, server_hostname="cache.internal")
    assert client.version() == b"1.6"
    assert client.version() == b"1.6"
    assert failcounts(upstream) == [1, 0]


# ── wrong use ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [UpstreamClient, UpstreamPooledClient])
def test_what_the_upstream_decides_is_refused(kind: Any) -> None:
    upstream = in_order({"host": "a.test"})
    with pytest.raises(TypeError, match="the `timeout` of the upstream's pools says how long connecting may take"):
        kind(upstream, connect_timeout=1)
    with pytest.raises(TypeError, match="socket_module is not an option"):
        kind(upstream, socket_module=object())
    with pytest.raises(TypeError, match="upstream must be an Upstream or a RequestContext, not tuple"):
        kind(("127.0.0.1", 11211))
