"""What ``connect`` and ``aconnect`` make of each kind of client, on real sockets."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import http.client
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest

from resty_upstream import Attempt, Connected, NoHostAvailable, Upstream, register_connector
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import (
    Peer,
    answer_http,
    greet,
    hanging,
    health,
    no_descriptors_left,
    open_upstream,
    open_workers,
    read_head,
    refusing,
    take_down,
)

StartPeer = Callable[..., Peer]

TIMEOUT_MS = 100
PEM = Path(__file__).with_name("service.test.pem")


def live(*peers: dict[str, Any], timeout_ms: int = TIMEOUT_MS, **options: Any) -> Upstream:
    """An upstream on real time with a pool for each peer, to be tried in this order; one failure takes down."""
    pools = {
        f"p{n}": {"priority": n, "max_fails": 1, "timeout": timeout_ms, "hosts": {"h": peer}}
        for n, peer in enumerate(peers)
    }
    upstream = Upstream(MemoryStore(), **options)
    upstream.configure(pools)
    return upstream


def is_up(upstream: Upstream, number: int = 0) -> bool:
    return bool(health(upstream, "h", f"p{number}")["up"])


@contextmanager
def missing_unix_socket() -> Iterator[dict[str, Any]]:
    yield {"host": "unix:/nowhere/at/all.sock"}


BAD_PEERS: list[Callable[[], AbstractContextManager[dict[str, Any]]]] = [refusing, hanging, missing_unix_socket]


# ── nothing given ─────────────────────────────────────────────────────────────────────────────


def test_without_a_client_a_new_socket_comes_back_connected_with_the_pools_timeout(start_peer: StartPeer) -> None:
    upstream = live(start_peer().options)
    sock, info = upstream.connect()
    with sock:
        assert sock.recv(9) == b"hello"
        assert sock.gettimeout() == TIMEOUT_MS / 1000
    assert (info.host.id, info.pool.id, info.last_resort) == ("h", "p0", False)
    assert [attempt.outcome for attempt in info.attempts] == ["ok"]


def test_what_connect_returns_has_names(start_peer: StartPeer) -> None:
    connected = live(start_peer().options).connect()
    assert isinstance(connected, Connected)
    assert connected.client is connected[0]
    assert connected.info is connected[1]
    connected.client.close()


@pytest.mark.parametrize("bad", BAD_PEERS)
def test_a_host_that_is_dead_is_followed_by_the_next(
    start_peer: StartPeer, bad: Callable[[], AbstractContextManager[dict[str, Any]]]
) -> None:
    with bad() as peer:
        upstream = live(peer, start_peer().options)
        sock, info = upstream.connect()
    with sock:
        assert sock.recv(9) == b"hello"
    assert [(attempt.pool.id, attempt.outcome) for attempt in info.attempts] == [("p0", "failed"), ("p1", "ok")]
    assert not is_up(upstream)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "[::1]", "localhost"])
def test_ipv4_ipv6_and_names_are_connected(start_peer: StartPeer, address: str) -> None:
    peer = start_peer(host={"localhost": "127.0.0.1", "[::1]": "::1"}.get(address, address))
    sock, _ = live({"host": address, "port": peer.port}).connect()
    with sock:
        assert sock.recv(9) == b"hello"


def test_a_unix_socket_is_connected(start_peer: StartPeer, tmp_path: Path) -> None:
    sock, _ = live(start_peer(path=str(tmp_path / "s")).options).connect()
    with sock:
        assert sock.family == socket.AF_UNIX
        assert sock.recv(9) == b"hello"


@contextmanager
def full_unix_socket(path: Path) -> Iterator[dict[str, Any]]:
    """A unix socket whose queue takes no more."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(str(path))
        listener.listen(0)
        filler.connect(str(path))
        yield {"host": f"unix:{path}"}


def test_a_unix_socket_that_is_stale_or_full_counts(start_peer: StartPeer, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale, full_unix_socket(tmp_path / "full") as full:
        stale.bind(str(tmp_path / "stale"))
        upstream = live({"host": f"unix:{tmp_path}/stale"}, full, start_peer().options)
        upstream.connect().client.close()
        assert not is_up(upstream, 0)
        assert not is_up(upstream, 1)


def test_a_timeout_of_our_own_waiting_counts_whatever_another_clock_says(start_peer: StartPeer) -> None:
    with hanging() as dead:
        pools = {"p": {"timeout": TIMEOUT_MS, "max_fails": 1, "hosts": {"a": dead}}}
        upstream = open_upstream(pools | {"q": {"priority": 1, "hosts": {"b": start_peer().options}}})
        upstream.connect().client.close()
    assert not health(upstream, "a")["up"]


def test_when_nobody_answers_the_error_says_504_and_is_a_connection_error() -> None:
    with refusing() as first, hanging() as second, pytest.raises(ConnectionError) as caught:
        live(first, second).connect()
    assert isinstance(caught.value, NoHostAvailable)
    assert caught.value.status_hint == 504
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_the_pools_timeout_is_set_although_less_was_left_for_connecting(start_peer: StartPeer) -> None:
    peer = start_peer()
    upstream = Upstream(MemoryStore(), total_timeout="2s")
    upstream.configure({"p": {"timeout": "1h", "hosts": {"a": peer.options}}})
    sock, _ = upstream.connect()
    with sock:
        assert sock.gettimeout() == 3600


def test_this_process_having_no_descriptor_left_is_raised_and_counts_for_nothing(start_peer: StartPeer) -> None:
    upstream = live(start_peer().options, start_peer().options)
    upstream.connect().client.close()
    with no_descriptors_left(), pytest.raises(OSError, match="Too many open files") as caught:
        upstream.connect()
    assert caught.value.errno == errno.EMFILE
    assert is_up(upstream, 0)
    assert is_up(upstream, 1)


def test_connections_that_failed_leave_no_descriptor_open() -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with refusing() as first, hanging() as second:
        upstream = live(first, second)
        before = descriptors()
        for client in (None, lambda host, port, timeout_s: socket.create_connection((host, port), timeout_s)):
            with pytest.raises(NoHostAvailable):
                upstream.connect(client)
        with pytest.raises(NoHostAvailable):
            asyncio.run(upstream.aconnect())
        assert descriptors() == before


# ── names ─────────────────────────────────────────────────────────────────────────────────────


class Resolver:
    """Stands for the resolver, which tests must not ask: names have the addresses given, or an error."""

    def __init__(self) -> None:
        self.names: dict[str, list[tuple[str, int]] | socket.gaierror] = {}

    def __call__(self, host: Any, port: Any, *_args: Any, **_options: Any) -> list[Any]:
        known = self.names[host]
        if isinstance(known, socket.gaierror):
            raise known
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in known]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


def connect_by(mode: str, upstream: Upstream) -> str:
    """The id of the pool that answered, by connect or aconnect."""
    if mode == "sync":
        sock, info = upstream.connect()
        sock.close()
        return info.pool.id

    async def main() -> str:
        (_, writer), info = await upstream.aconnect()
        writer.close()
        await writer.wait_closed()
        return info.pool.id

    return asyncio.run(main())


def address_of(options: dict[str, Any]) -> tuple[str, int]:
    return options["host"], options["port"]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("bad", [refusing, hanging])
def test_all_addresses_of_a_name_are_tried_in_one_attempt(
    start_peer: StartPeer, resolver: Resolver, mode: str, bad: Callable[[], AbstractContextManager[dict[str, Any]]]
) -> None:
    with bad() as dead:
        resolver.names["many.test"] = [address_of(dead), address_of(start_peer().options)]
        upstream = live({"host": "many.test"}, timeout_ms=1000)
        assert connect_by(mode, upstream) == "p0"
    assert is_up(upstream)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_name_none_of_whose_addresses_answers_counts(
    start_peer: StartPeer, resolver: Resolver, mode: str
) -> None:
    with refusing() as first, refusing() as second:
        resolver.names["dead.test"] = [address_of(first), address_of(second)]
        upstream = live({"host": "dead.test"}, start_peer().options)
        assert connect_by(mode, upstream) == "p1"
    assert not is_up(upstream)


NO_ROUTE = ("127.255.255.255", 9)  # a broadcast address: ENETUNREACH for TCP


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_name_counts_when_any_of_its_addresses_says_that_the_host_is_dead(
    start_peer: StartPeer, resolver: Resolver, mode: str, order: int
) -> None:
    """Where there is no route for one family of a name with two, it is the other that tells."""
    with refusing() as dead:
        resolver.names["dual.test"] = [address_of(dead), NO_ROUTE][::order]
        upstream = live({"host": "dual.test"}, start_peer().options)
        assert connect_by(mode, upstream) == "p1"
    assert not is_up(upstream)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_host_to_which_there_is_no_route_counts_for_nothing_and_the_next_is_tried(
    start_peer: StartPeer, mode: str
) -> None:
    upstream = live({"host": NO_ROUTE[0], "port": NO_ROUTE[1]}, start_peer().options)
    assert connect_by(mode, upstream) == "p1"
    assert is_up(upstream)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_when_the_resolver_fails_the_last_known_addresses_are_used(
    start_peer: StartPeer, resolver: Resolver, mode: str
) -> None:
    name = f"known-{mode}.test"
    resolver.names[name] = [address_of(start_peer().options)]
    upstream = live({"host": name})
    assert connect_by(mode, upstream) == "p0"
    resolver.names[name] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert connect_by(mode, upstream) == "p0"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_name_that_cannot_be_looked_up_counts_for_nothing_and_the_next_host_is_tried(
    start_peer: StartPeer, resolver: Resolver, mode: str
) -> None:
    resolver.names["unknown.test"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    upstream = live({"host": "unknown.test"}, start_peer().options)
    assert connect_by(mode, upstream) == "p1"
    assert is_up(upstream)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_name_that_does_not_exist_any_more_counts(start_peer: StartPeer, resolver: Resolver, mode: str) -> None:
    name = f"gone-{mode}.test"
    resolver.names[name] = [address_of(start_peer().options)]
    upstream = live({"host": name}, start_peer().options)
    assert connect_by(mode, upstream) == "p0"
    resolver.names[name] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert connect_by(mode, upstream) == "p1"
    assert not is_up(upstream)


def test_a_literal_address_is_never_looked_up(start_peer: StartPeer, resolver: Resolver) -> None:
    upstream = live(start_peer().options)
    assert connect_by("sync", upstream) == connect_by("async", upstream) == "p0"


# ── a socket ──────────────────────────────────────────────────────────────────────────────────

OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 17),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12_345),
    (socket.SOL_SOCKET, socket.SO_RCVBUF, 40_000),
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000),
    (socket.SOL_SOCKET, socket.SO_PRIORITY, 3),
    (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
]


def read_options(sock: socket.socket) -> list[int]:
    values = [sock.getsockopt(level, name) for level, name, _ in OPTIONS]
    return [*values, *sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)]


@pytest.fixture
def tuned_socket() -> Iterator[socket.socket]:
    """A socket on which every option differs from its default."""
    with socket.socket() as sock:
        for option in OPTIONS:
            sock.setsockopt(*option)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\5\0\0\0")
        yield sock


@pytest.mark.parametrize("bad", BAD_PEERS)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_same_socket_comes_back_connected_with_its_options_although_the_first_host_was_dead(
    start_peer: StartPeer,
    tuned_socket: socket.socket,
    mode: str,
    bad: Callable[[], AbstractContextManager[dict[str, Any]]],
) -> None:
    expected, number = read_options(tuned_socket), tuned_socket.fileno()
    with bad() as dead:
        upstream = live(dead, start_peer().options)
        client, info = connect_socket_by(mode, upstream, tuned_socket)
    assert client is tuned_socket
    assert client.fileno() == number
    assert info.pool.id == "p1"
    assert read_options(client) == expected
    assert client.gettimeout() == (TIMEOUT_MS / 1000 if mode == "sync" else 0)
    client.settimeout(5)
    assert client.recv(9) == b"hello"
    assert not is_up(upstream)


def connect_socket_by(mode: str, upstream: Upstream, sock: socket.socket) -> Connected[socket.socket]:
    if mode == "sync":
        return upstream.connect(sock)
    return asyncio.run(upstream.aconnect(sock))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_same_socket_can_be_connected_after_all_hosts_failed_and_one_came_back(
    start_peer: StartPeer, mode: str
) -> None:
    with socket.socket() as sock:
        with hanging() as first, refusing() as second, pytest.raises(NoHostAvailable):
            connect_socket_by(mode, live(first, second), sock)
        connect_socket_by(mode, live(start_peer().options), sock)
        sock.settimeout(5)
        assert sock.recv(9) == b"hello"


def test_a_socket_keeps_the_local_address_it_was_bound_to(start_peer: StartPeer) -> None:
    with socket.socket() as sock, hanging() as dead:
        sock.bind(("127.0.0.7", 0))
        local = sock.getsockname()
        live(dead, start_peer().options).connect(sock)
        assert sock.getsockname() == local


def test_a_socket_stays_inheritable_or_not(start_peer: StartPeer) -> None:
    for inheritable in (False, True):
        with socket.socket() as sock, refusing() as dead:
            sock.set_inheritable(inheritable)
            live(dead, start_peer().options).connect(sock)
            assert sock.get_inheritable() is inheritable


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_socket_becomes_one_of_the_hosts_family(start_peer: StartPeer, tmp_path: Path, mode: str) -> None:
    for peer in (start_peer(host="::1"), start_peer(path=str(tmp_path / "s")), start_peer()):
        with socket.socket() as sock, refusing() as dead:
            connect_socket_by(mode, live(dead, peer.options), sock)
            assert sock.family == (
                socket.AF_UNIX if "unix" in peer.host else socket.AF_INET6 if ":" in peer.host else socket.AF_INET
            )
            sock.settimeout(5)
            assert sock.recv(9) == b"hello"


def test_a_socket_of_a_users_own_class_stays_one(start_peer: StartPeer) -> None:
    class Mine(socket.socket):
        note = "kept"

    with Mine() as sock, refusing() as dead:
        client, _ = live(dead, start_peer().options).connect(sock)
        assert type(client) is Mine
        assert client.recv(9) == b"hello"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_datagram_socket_is_a_type_error_and_counts_for_nothing(start_peer: StartPeer, mode: str) -> None:
    upstream = live(start_peer().options)
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(TypeError, match="stream socket"):
        connect_socket_by(mode, upstream, sock)
    assert is_up(upstream)


def test_a_tls_socket_is_a_type_error_that_says_what_to_do(start_peer: StartPeer) -> None:
    upstream = live(start_peer().options)
    context = ssl.create_default_context()
    with context.wrap_socket(socket.socket(), server_hostname="service.test") as sock:
        for mode in ("sync", "async"):
            with pytest.raises(TypeError, match=r"pass a resty_upstream\.OverTLS"):
                connect_socket_by(mode, upstream, sock)


# ── http.client ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", BAD_PEERS)
def test_an_http_connection_is_connected_and_keeps_its_own_name(
    start_peer: StartPeer, bad: Callable[[], AbstractContextManager[dict[str, Any]]]
) -> None:
    heads = []

    def serve(connection: socket.socket) -> None:
        heads.append(read_head(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    mine = http.client.HTTPConnection("service.test", 8080)
    with bad() as dead:
        connection, info = live(dead, start_peer(serve).options).connect(mine)
    assert connection is mine
    assert info.pool.id == "p1"
    connection.request("GET", "/x")
    assert connection.getresponse().read() == b"ok"
    assert b"Host: service.test:8080\r\n" in heads[0]
    assert connection.sock.gettimeout() == TIMEOUT_MS / 1000
    connection.close()


def test_an_http_connection_keeps_its_own_timeout(start_peer: StartPeer) -> None:
    connection, _ = live(start_peer().options).connect(http.client.HTTPConnection("service.test", timeout=7))
    assert connection.sock.gettimeout() == 7
    connection.close()


def test_an_http_connection_that_is_lost_is_not_opened_again_past_the_pools(start_peer: StartPeer) -> None:
    peer = start_peer(answer_http(b"ok"))
    connection, _ = live(peer.options).connect(http.client.HTTPConnection("localhost", peer.port))
    connection.request("GET", "/")
    connection.getresponse().read()
    with pytest.raises(http.client.NotConnected):
        connection.request("GET", "/")
    assert peer.hits == 1


def test_an_http_connection_can_be_connected_again_and_again(start_peer: StartPeer) -> None:
    peer = start_peer(answer_http(b"ok"))
    upstream, mine = live(peer.options), http.client.HTTPConnection("service.test")
    for _ in range(3):
        connection, _ = upstream.connect(mine)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
    assert peer.hits == 3


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    return context


def answer_https(body: bytes) -> Callable[[socket.socket], None]:
    context = server_context()

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            answer_http(body)(tls)

    return serve


def https(name: str, **options: Any) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(PEM))
    return http.client.HTTPSConnection(name, context=context, **options)


def patient(*peers: dict[str, Any], **options: Any) -> Upstream:
    """As ``live``, with time enough for a handshake on a loaded machine."""
    upstream = live(*peers, **options)
    upstream.save_pools({pool_id: pool | {"timeout": "5s"} for pool_id, pool in upstream.get_pools().items()})
    return upstream


def test_an_https_connection_checks_the_certificate_for_its_own_name(start_peer: StartPeer) -> None:
    with refusing() as dead:
        connection, _ = patient(dead, start_peer(answer_https(b"safe")).options).connect(https("service.test"))
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"safe"
    connection.close()


def test_a_certificate_for_another_name_counts_and_hints_at_502(start_peer: StartPeer) -> None:
    upstream = patient(start_peer(answer_https(b"safe")).options)
    with pytest.raises(NoHostAvailable) as caught:
        upstream.connect(https("other.test"))
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert caught.value.status_hint == 502
    assert not is_up(upstream)


def test_a_host_that_answers_a_tls_handshake_with_something_else_counts(start_peer: StartPeer) -> None:
    plain = start_peer(
        lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n") or connection.recv(1)
    )
    upstream = patient(plain.options, start_peer(answer_https(b"safe")).options)
    connection, info = upstream.connect(https("service.test"))
    connection.close()
    assert info.pool.id == "p1"
    assert not is_up(upstream)


def test_a_tls_handshake_that_hangs_ends_with_the_deadline(start_peer: StartPeer) -> None:
    over = threading.Event()
    silent = start_peer(lambda _connection: over.wait(10))
    upstream = Upstream(MemoryStore(), total_timeout=100)
    upstream.configure({"p": {"timeout": "1h", "hosts": {"a": silent.options}}})
    with pytest.raises(NoHostAvailable) as caught:
        upstream.connect(https("service.test"))
    over.set()
    assert caught.value.attempts[0].duration_s < 10


def test_a_tls_handshake_that_takes_the_attempts_time_counts(start_peer: StartPeer) -> None:
    over = threading.Event()
    upstream = live(start_peer(lambda _connection: over.wait(10)).options)
    with pytest.raises(NoHostAvailable):
        upstream.connect(https("service.test"))
    over.set()
    assert not is_up(upstream)


# ── objects that connect themselves ───────────────────────────────────────────────────────────


class RestyClient:
    """A client as the modules of lua-resty are: the contract of the seed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.sock: socket.socket | None = None
        self.timeout_s: float | None = None

    def set_timeout(self, timeout_s: float) -> None:
        self.calls.append(("set_timeout", timeout_s))
        self.timeout_s = timeout_s

    def connect(self, host: str, port: int) -> str:
        self.calls.append(("connect", host, port))
        self.sock = socket.create_connection((host, port), self.timeout_s)
        return "the client's own result"


@pytest.mark.parametrize("bad", [refusing, hanging])
def test_an_object_with_connect_and_set_timeout_is_connected_and_comes_back(
    start_peer: StartPeer, bad: Callable[[], AbstractContextManager[dict[str, Any]]]
) -> None:
    mine, peer = RestyClient(), start_peer()
    with bad() as dead:
        client, info = live(dead, peer.options).connect(mine)
    assert client is mine
    assert info.pool.id == "p1"
    assert mine.sock
    assert mine.sock.recv(9) == b"hello"
    mine.sock.close()
    assert mine.calls == [
        ("set_timeout", 0.1),
        ("connect", dead["host"], dead["port"]),
        ("set_timeout", 0.1),
        ("connect", peer.host, peer.port),
    ]


def test_settimeout_will_do_as_well(start_peer: StartPeer) -> None:
    class Client:
        timeout_s = 0.0
        where: tuple[str, int] | None = None

        def settimeout(self, timeout_s: float) -> None:
            self.timeout_s = timeout_s

        def connect(self, host: str, port: int) -> None:
            self.where = (host, port)

    peer = start_peer()
    client, _ = live(peer.options).connect(Client())
    assert (client.timeout_s, client.where) == (0.1, (peer.host, peer.port))


def test_an_object_gets_what_is_left_to_connect_and_the_pools_timeout_afterwards() -> None:
    upstream = Upstream(MemoryStore(FakeClock()), total_timeout="2s")
    upstream.configure({"p": {"timeout": "10s", "hosts": {"a": {"host": "a.test"}}}})

    class Recorder(RestyClient):
        def connect(self, host: str, port: int) -> str:
            return ""

    client, _ = upstream.connect(Recorder())
    assert client.calls == [("set_timeout", 2), ("set_timeout", 10)]


# ── callables ─────────────────────────────────────────────────────────────────────────────────


def test_a_callable_is_called_for_each_attempt_and_what_it_returns_comes_back(start_peer: StartPeer) -> None:
    calls = []

    def dial(host: str, port: int, timeout_s: float) -> bytes:
        calls.append((host, port, timeout_s))
        with socket.create_connection((host, port), timeout_s) as sock:
            return sock.recv(9)

    peer = start_peer(greet(b"whole exchange"))
    with refusing() as dead:
        result, info = live(dead, peer.options).connect(dial)
    assert result == b"whole exc"
    assert info.pool.id == "p1"
    assert calls == [(*address_of(dead), 0.1), (peer.host, peer.port, 0.1)]


def test_a_callable_may_wrap_tls(start_peer: StartPeer) -> None:
    context = ssl.create_default_context(cafile=str(PEM))

    def dial(host: str, port: int, timeout_s: float) -> ssl.SSLSocket:
        raw = socket.create_connection((host, port), timeout_s)
        try:
            return context.wrap_socket(raw, server_hostname="service.test")
        except BaseException:
            raw.close()
            raise

    plain = start_peer(greet(b"this is no TLS at all"))
    upstream = patient(plain.options, start_peer(answer_https(b"safe")).options)
    tls, _ = upstream.connect(dial)
    with tls:
        assert tls.version()
    assert not is_up(upstream)


class Built:
    """A client that is built connected; it could connect itself again, too."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.built_with = (host, port, timeout_s)

    def connect(self, host: str, port: int) -> None:
        raise AssertionError("an object of a class that was called is connected already")

    def set_timeout(self, timeout_s: float) -> None:
        raise AssertionError("an object of a class that was called has its timeout already")

    def method(self, host: str, port: int, timeout_s: float) -> str:
        return f"{host}:{port}"

    def __call__(self, host: str, port: int, timeout_s: float) -> str:
        return f"{host}:{port}"


def test_a_class_is_a_callable_that_builds_a_client_per_attempt() -> None:
    upstream = open_upstream({"p": {"timeout": 250, "hosts": {"a": {"host": "a.test", "port": 81}}}})
    client, _ = upstream.connect(Built)
    assert isinstance(client, Built)
    assert client.built_with == ("a.test", 81, 0.25)


@pytest.mark.parametrize(
    "client",
    [
        lambda host, port, timeout_s: f"{host}:{port}",
        Built("", 0, 0).method,
        functools.partial(lambda scheme, host, port, timeout_s: f"{host}:{port}", "http"),
        "{0}:{1}".format,
        type("Callable", (), {"__call__": lambda self, host, port, timeout_s: f"{host}:{port}"})(),
    ],
    ids=["function", "method", "partial", "builtin", "object"],
)
def test_everything_that_can_be_called_is_a_callable(client: Any) -> None:
    upstream = open_upstream({"p": {"hosts": {"a": {"host": "a.test", "port": 81}}}})
    assert upstream.connect(client).client == "a.test:81"


def test_an_exception_of_a_callable_that_says_nothing_of_the_host_is_raised_as_it_is() -> None:
    error = LookupError("bad credentials")

    def dial(host: str, port: int, timeout_s: float) -> None:
        raise error

    upstream = open_upstream({"p": {"max_fails": 1, "hosts": {"a": {"host": "a.test"}}}})
    with pytest.raises(LookupError) as caught:
        upstream.connect(dial)
    assert caught.value is error
    assert health(upstream, "a")["up"]


def test_a_coroutine_function_given_to_connect_is_a_type_error_that_names_aconnect() -> None:
    async def dial(host: str, port: int, timeout_s: float) -> None: ...

    class Client:
        def set_timeout(self, timeout_s: float) -> None: ...

        async def connect(self, host: str, port: int) -> None: ...

    upstream = open_upstream({"p": {"hosts": {"a": {"host": "a.test"}}}})
    for client in (dial, Client()):
        with pytest.raises(TypeError, match="aconnect"):
            upstream.connect(client)


# ── the registry, and what nobody knows ───────────────────────────────────────────────────────


class Foreign:
    """A client of a library that connects in a way of its own."""

    addresses: ClassVar[list[tuple[str, int]]] = []


class ForeignSubclass(Foreign):
    pass


def test_a_registered_type_is_connected_by_its_connector_and_so_are_its_subclasses(start_peer: StartPeer) -> None:
    def connect(client: Foreign, attempt: Attempt) -> str:
        client.addresses.append((attempt.host.host, attempt.host.port))
        socket.create_connection((attempt.host.host, attempt.host.port), attempt.timeout_s).close()
        return f"connected {type(client).__name__}"

    async def aconnect(client: Foreign, attempt: Attempt) -> str:
        return f"awaited {type(client).__name__}"

    register_connector(Foreign, connect, aconnect=aconnect)
    with refusing() as dead:
        upstream = live(dead, start_peer().options)
        result, info = upstream.connect(ForeignSubclass())
    assert (result, info.pool.id) == ("connected ForeignSubclass", "p1")
    assert len(Foreign.addresses) == 2
    assert asyncio.run(upstream.aconnect(Foreign())).client == "awaited Foreign"


@pytest.mark.parametrize("kind", [None, "Foreign", Foreign()])
def test_only_a_class_can_be_registered(kind: Any) -> None:
    with pytest.raises(TypeError, match="takes a class"):
        register_connector(kind, lambda client, attempt: None)


_OWN_CONNECTOR = """
import http.client
from resty_upstream import Upstream, register_connector
register_connector(http.client.HTTPConnection, lambda client, attempt: "mine")
upstream = Upstream("memory://")
upstream.configure({"p": {"hosts": {"a": {"host": "127.0.0.1"}}}})
print(upstream.connect(http.client.HTTPConnection("service.test")).client)
"""


def test_a_users_own_connector_for_a_known_type_wins() -> None:
    """Also before the first connect, hence in a process of its own."""
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", _OWN_CONNECTOR], env=env, stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"mine"


@pytest.mark.parametrize("client", [object(), 5, "127.0.0.1:80", ("127.0.0.1", 80), [], True])
def test_a_client_of_an_unknown_kind_is_a_type_error_that_says_what_is_accepted(client: Any) -> None:
    upstream = open_upstream({"p": {"max_fails": 1, "hosts": {"a": {"host": "a.test"}}}})
    accepted = r"connect accepts nothing, a socket\.socket, .*; not " + type(client).__name__
    with pytest.raises(TypeError, match=accepted):
        upstream.connect(client)
    with pytest.raises(TypeError, match=accepted):
        asyncio.run(upstream.aconnect(client))
    assert health(upstream, "a")["up"]


def test_connect_without_a_way_to_set_a_timeout_is_not_enough() -> None:
    client = type("Client", (), {"connect": lambda self, host, port: None})()
    with pytest.raises(TypeError, match="and set_timeout or settimeout"):
        open_upstream({}).connect(client)


# ── asyncio ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.anyio
@pytest.mark.parametrize("bad", [nullcontext, *BAD_PEERS])
async def test_without_a_client_streams_come_back_connected(start_peer: StartPeer, bad: Callable[[], Any]) -> None:
    with bad() as dead:
        upstream = live(*([dead] if dead else []), start_peer().options)
        (reader, writer), info = await upstream.aconnect()
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()
    assert [attempt.outcome for attempt in info.attempts] == [*(["failed"] if dead else []), "ok"]


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["::1", "localhost", "unix"])
async def test_streams_over_ipv6_names_and_unix_sockets(
    start_peer: StartPeer, tmp_path: Path, address: str
) -> None:
    peer = (
        start_peer(path=str(tmp_path / "s"))
        if address == "unix"
        else start_peer(host=address.replace("localhost", "127.0.0.1"))
    )
    options = peer.options | ({"host": "localhost"} if address == "localhost" else {})
    (reader, writer), _ = await live(options).aconnect()
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


@pytest.mark.anyio
async def test_a_full_unix_socket_counts_for_coroutines_too(start_peer: StartPeer, tmp_path: Path) -> None:
    with full_unix_socket(tmp_path / "full") as full:
        upstream = live(full, start_peer().options)
        (_, writer), info = await upstream.aconnect()
    writer.close()
    await writer.wait_closed()
    assert info.pool.id == "p1"
    assert not is_up(upstream)


@pytest.mark.anyio
async def test_an_object_whose_connect_is_a_coroutine_is_connected(start_peer: StartPeer) -> None:
    class Client:
        timeout_s = 0.0
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

        def set_timeout(self, timeout_s: float) -> None:
            self.timeout_s = timeout_s

        async def connect(self, host: str, port: int) -> None:
            self.streams = await asyncio.open_connection(host, port)

    with refusing() as first, hanging() as second:
        client, info = await live(first, second, start_peer().options).aconnect(Client())
    assert info.pool.id == "p2"
    assert client.timeout_s == 0.1
    assert client.streams
    reader, writer = client.streams
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    await writer.wait_closed()


@pytest.mark.anyio
async def test_an_object_whose_connect_is_no_coroutine_is_connected_too() -> None:
    class Client:
        where: tuple[str, int] | None = None

        def set_timeout(self, timeout_s: float) -> None: ...

        def connect(self, host: str, port: int) -> None:
            self.where = (host, port)

    upstream = open_upstream({"p": {"hosts": {"a": {"host": "a.test", "port": 81}}}})
    assert (await upstream.aconnect(Client())).client.where == ("a.test", 81)


@pytest.mark.anyio
async def test_a_coroutine_function_is_called_for_each_attempt_and_ended_when_its_time_is_over() -> None:
    calls = []

    async def dial(host: str, port: int, timeout_s: float) -> str:
        calls.append(host)
        if host == "slow.test":
            await asyncio.Event().wait()
        return "connected"

    upstream = live({"host": "slow.test"}, {"host": "fast.test"})
    result, info = await upstream.aconnect(dial)
    assert (result, info.pool.id, calls) == ("connected", "p1", ["slow.test", "fast.test"])
    assert not is_up(upstream)


@pytest.mark.anyio
async def test_a_function_that_returns_no_awaitable_is_a_type_error_that_names_connect() -> None:
    def dial(host: str, port: int, timeout_s: float) -> str:
        return "connected"

    with pytest.raises(TypeError, match="not an awaitable: use connect for it"):
        await open_upstream({"p": {"hosts": {"a": {"host": "a.test"}}}}).aconnect(dial)


@pytest.mark.anyio
async def test_http_client_is_refused_for_it_would_block_the_loop(start_peer: StartPeer) -> None:
    upstream = live(start_peer().options)
    with pytest.raises(TypeError, match=r"http\.client is synchronous: use connect"):
        await upstream.aconnect(http.client.HTTPConnection("service.test"))
    assert is_up(upstream)


@pytest.mark.anyio
async def test_the_callers_own_deadline_that_is_shorter_counts_for_nothing() -> None:
    with hanging() as dead:
        upstream = patient(dead)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await upstream.aconnect()
        with socket.socket() as sock, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await upstream.aconnect(sock)
    assert is_up(upstream)


@pytest.mark.anyio
async def test_a_cancelled_call_counts_for_nothing_and_gives_its_probe_back_at_once(clock: FakeClock) -> None:
    pools = {"p": {"hosts": {"a": {"host": "a.test"}}}}
    first, second = open_workers(2, pools, clock)
    take_down(first, "a")
    clock.advance(12)
    begun = asyncio.Event()

    async def dial(host: str, port: int, timeout_s: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(first.aconnect(dial))
    await begun.wait()
    assert next(second.attempts()).last_resort, "the probe is taken"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not health(second, "a")["up"]
    clock.advance(2)
    assert not next(second.attempts()).last_resort, "the probe is free"


@pytest.mark.anyio
async def test_a_cancelled_connect_leaves_the_socket_usable(start_peer: StartPeer) -> None:
    with socket.socket() as sock, hanging() as dead:
        task = asyncio.create_task(patient(dead).aconnect(sock))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await live(start_peer().options).aconnect(sock)
        assert await asyncio.get_running_loop().sock_recv(sock, 9) == b"hello"


@pytest.mark.anyio
async def test_many_calls_at_once_are_all_served(start_peer: StartPeer) -> None:
    with refusing() as dead:
        upstream = patient(dead, start_peer().options)
        found = await asyncio.gather(*[upstream.aconnect() for _ in range(50)])
    for (reader, writer), info in found:
        assert info.pool.id == "p1"
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        await writer.wait_closed()
