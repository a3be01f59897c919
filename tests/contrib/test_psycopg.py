"""psycopg on real servers of PostgreSQL that die, hang, start up, are full, or are not who they should be."""

from __future__ import annotations

import asyncio
import functools
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trustme
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool, NullConnectionPool, PoolTimeout

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.psycopg import AsyncUpstreamConnection, UpstreamConnection
from resty_upstream.testing import FakeClock
from tests.contrib.cancelling import cancel_at_every_point, sockets_to
from tests.contrib.postgres import LOGIN, Clusters, Postgres
from tests.contrib.servers import failcounts, in_order
from tests.e2e.processes import Ports, Silence, wait_until
from tests.helpers import Peer, greet, hanging, health, no_descriptors_left, refusing

pytestmark = pytest.mark.anyio

Servers = tuple[Postgres, Postgres]
Connect = Callable[..., Awaitable[Any]]


def over(first: dict[str, Any], second: dict[str, Any], *, timeout: int = 7000, **options: Any) -> Upstream:
    """An upstream that goes to ``a`` as long as it can, for ``timeout`` milliseconds, and then to ``b``."""
    upstream = Upstream("memory://", **options)
    pools = {
        "p": {"timeout": timeout, "hosts": {"a": first}},
        "q": {"timeout": 7000, "priority": 1, "hosts": {"b": second}},
    }
    upstream.configure(pools)
    return upstream


def over_both(servers: Servers, **options: Any) -> Upstream:
    return over(servers[0].options, servers[1].options, **options)


def failures(upstream: Upstream) -> tuple[int, int]:
    """The failcounts of ``a`` and ``b``."""
    return health(upstream, "a")["failcount"], health(upstream, "b", "q")["failcount"]


def ask(connection: psycopg.Connection[Any], query: str = "SELECT inet_server_port()") -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """``connect`` of one of the two classes, to be awaited; what it returns is closed by its ``aclose``."""

    async def call(upstream: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {**LOGIN, **kwargs}
        if request.param == "async":
            connection: Any = await AsyncUpstreamConnection.connect(*args, upstream=upstream, **kwargs)
            await connection.close()
        else:
            connection = UpstreamConnection.connect(*args, upstream=upstream, **kwargs)
            connection.close()
        return connection

    return call


# ── a server fails ────────────────────────────────────────────────────────────────────────────


async def test_a_connection_is_psycopgs_own_and_says_where_it_went(servers: Servers) -> None:
    upstream = over_both(servers)
    with UpstreamConnection.connect(
        make_conninfo(**LOGIN), upstream=upstream, autocommit=True, row_factory=psycopg.rows.dict_row
    ) as connection:
        assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        assert connection.autocommit
        assert connection.upstream_info.host.id == "a"
        assert connection.info.port == servers[0].port
    async with await AsyncUpstreamConnection.connect(**LOGIN, upstream=upstream) as aconnection:
        cursor = await aconnection.execute("SELECT inet_server_port()")
        assert await cursor.fetchone() == (servers[0].port,)
        assert aconnection.upstream_info.host.id == "a"
    assert failures(upstream) == (0, 0)


async def test_a_killed_server_counts_as_failed_and_is_used_again_when_it_is_back(
    servers: Servers, connect: Connect
) -> None:
    upstream = over_both(servers)
    servers[0].kill()
    connection = await connect(upstream)
    assert [attempt.outcome for attempt in connection.upstream_info.attempts] == ["failed", "ok"]
    assert failures(upstream) == (1, 0)
    servers[0].start()
    assert (await connect(upstream)).upstream_info.host.id == "a"
    assert failures(upstream) == (0, 0)


async def test_a_stopped_server_is_waited_for_as_long_as_the_pool_says_and_not_whole_seconds(
    servers: Servers, connect: Connect
) -> None:
    # libpq and psycopg would take 2 s for it, and nothing would be left for the other.
    upstream = over_both(servers, timeout=300, total_timeout=1900)
    servers[0].signal(signal.SIGSTOP)
    connection = await connect(upstream, connect_timeout=1)
    assert connection.upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_a_stopped_server_is_used_again_when_it_goes_on_and_its_time_is_over(
    servers: Servers, connect: Connect, clock: FakeClock
) -> None:
    upstream = in_order(*(server.options for server in servers), clock=clock, pool={"max_fails": 1})
    servers[0].signal(signal.SIGSTOP)
    assert (await connect(upstream)).upstream_info.host.id == "b"
    servers[0].signal(signal.SIGCONT)
    assert (await connect(upstream)).upstream_info.host.id == "b"
    assert failcounts(upstream) == [1, 0]
    clock.advance(60)
    assert (await connect(upstream)).upstream_info.host.id == "a"
    assert failcounts(upstream) == [0, 0]


async def test_a_host_that_does_not_even_accept_is_left_in_time(servers: Servers, connect: Connect) -> None:
    with hanging() as options:
        upstream = over(options, servers[1].options, timeout=300, total_timeout=1900)
        assert (await connect(upstream)).upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_a_server_that_dies_in_the_middle_raises_and_the_next_connection_goes_elsewhere(
    servers: Servers,
) -> None:
    upstream = over_both(servers)
    connection = UpstreamConnection.connect(**LOGIN, upstream=upstream)
    assert ask(connection) == servers[0].port
    servers[0].kill()
    with pytest.raises(psycopg.OperationalError):
        ask(connection)
    assert connection.closed
    assert failures(upstream) == (0, 0)
    with UpstreamConnection.connect(**LOGIN, upstream=upstream) as connection:
        assert ask(connection) == servers[1].port


async def test_when_no_server_is_left_psycopgs_error_says_what_was_tried(connect: Connect) -> None:
    with refusing() as first, refusing() as second:
        upstream = over(first, second)
        with pytest.raises(psycopg.OperationalError, match=r"p/a: .*refused.* q/b: .*refused") as caught:
            await connect(upstream)
    cause = caught.value.__cause__
    assert isinstance(cause, NoHostAvailable)
    assert cause.status_hint == 504
    assert failures(upstream) == (1, 1)


async def test_a_connection_of_a_request_passes_over_the_host_that_failed_for_it(servers: Servers) -> None:
    with refusing() as dead:
        upstream = over(dead, servers[1].options)
        with upstream.context() as context:
            for number_of_attempts in (2, 1):
                with UpstreamConnection.connect(**LOGIN, upstream=context) as connection:
                    assert len(connection.upstream_info.attempts) == number_of_attempts


# ── a server says no ──────────────────────────────────────────────────────────────────────────


async def test_a_server_that_takes_no_connections_yet_counts_as_failed(
    servers: Servers, server: Postgres, connect: Connect
) -> None:
    server.start(standby=True, answers=False, hot_standby="off")
    upstream = over(server.options, servers[1].options)
    connection = await connect(upstream)
    assert connection.upstream_info.host.id == "b"
    assert "the database system is" in str(connection.upstream_info.attempts[0].error)
    assert failures(upstream) == (1, 0)


async def test_a_server_that_shuts_down_counts_as_failed(
    servers: Servers, server: Postgres, connect: Connect
) -> None:
    server.start()
    upstream = over(server.options, servers[1].options)
    with server.connect():
        server.signal(signal.SIGTERM)  # which waits for those who are connected

        def shuts_down() -> bool:
            try:
                server.connect().close()
            except psycopg.OperationalError as error:
                return "shutting down" in str(error)
            return False

        wait_until(shuts_down, "it shuts down")
        assert (await connect(upstream)).upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_a_server_with_too_many_clients_counts_as_failed(
    servers: Servers, server: Postgres, connect: Connect
) -> None:
    server.start(max_connections="2")
    upstream = over(server.options, servers[1].options)

    def connect_once_more() -> bool:
        try:
            stack.enter_context(server.connect())
        except psycopg.OperationalError:
            return True
        return False

    with ExitStack() as stack:
        wait_until(connect_once_more, "it is full")
        connection = await connect(upstream)
    assert "too many clients" in str(connection.upstream_info.attempts[0].error)
    assert connection.upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_the_reserve_of_superusers_is_too_many_clients_as_well(
    servers: Servers, server: Postgres, connect: Connect
) -> None:
    server.start(max_connections="3", superuser_reserved_connections="2")
    for each in (server, servers[1]):
        with each.connect() as connection:
            connection.execute("DROP ROLE IF EXISTS plain")
            connection.execute("CREATE ROLE plain LOGIN PASSWORD 'secret'")
    upstream = over(server.options, servers[1].options)
    wait_until(lambda: server.sessions() == 0, "the server has forgotten who was there")
    with server.connect(user="plain"):
        assert (await connect(upstream, user="plain")).upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"password": None}, "no password supplied"),
        ({"user": "nobody"}, "authentication failed"),
        ({"dbname": "missing"}, 'database "missing" does not exist'),
        ({"options": "-c nonsense=1"}, "unrecognized configuration parameter"),
        ({"sslmode": "nonsense"}, "invalid sslmode"),
        ({"nonsense": "1"}, "nonsense"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
async def test_what_the_caller_did_wrong_is_raised_as_it_is_and_counts_against_nobody(
    servers: Servers,
    connect: Connect,
    wrong: dict[str, Any],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    upstream = over_both(servers)
    with pytest.raises(psycopg.Error, match=text) as caught:
        await connect(upstream, **wrong)
    assert not isinstance(caught.value.__cause__, NoHostAvailable)
    assert failures(upstream) == (0, 0)


async def test_what_this_machine_lacks_is_raised_as_it_is_and_counts_against_nobody(servers: Servers) -> None:
    upstream = over_both(servers)
    upstream.open()
    with UpstreamConnection.connect(**LOGIN, upstream=upstream):
        pass  # whatever is imported or read the first time
    with no_descriptors_left(), pytest.raises((psycopg.OperationalError, OSError)) as caught:
        UpstreamConnection.connect(**LOGIN, upstream=upstream)
    assert not isinstance(caught.value.__cause__, NoHostAvailable)
    assert failures(upstream) == (0, 0)


def answer_startup(severity: str, text: str) -> Callable[[socket.socket], None]:
    """Serve a connection as a server that refuses a session, in any language."""

    def serve(connection: socket.socket) -> None:
        while True:
            length, code = struct.unpack("!II", connection.recv(8, socket.MSG_WAITALL))
            connection.recv(length - 8, socket.MSG_WAITALL)
            if code not in (80877103, 80877104):  # those ask for TLS, or GSSAPI
                break
            connection.sendall(b"N")
        fields = (
            b"".join(field + value.encode() + b"\0" for field, value in [(b"S", severity), (b"M", text)]) + b"\0"
        )
        connection.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        connection.recv(1)

    return serve


async def test_a_refusal_in_another_language_counts_against_nobody_and_the_next_host_is_tried(
    servers: Servers, connect: Connect, start_peer: Callable[..., Peer]
) -> None:
    peer = start_peer(answer_startup("SCHWERWIEGEND", "das Datenbanksystem startet"))
    upstream = over(peer.options, servers[1].options)
    connection = await connect(upstream)
    assert [attempt.outcome for attempt in connection.upstream_info.attempts] == ["ignored", "ok"]
    assert failures(upstream) == (0, 0)


@pytest.mark.parametrize(
    "serve", [greet(b"HTTP/1.1 400 Bad Request\r\n\r\n"), lambda connection: None], ids=["http", "closes"]
)
async def test_what_is_no_server_of_postgresql_counts_as_failed(
    servers: Servers, connect: Connect, start_peer: Callable[..., Peer], serve: Callable[[socket.socket], None]
) -> None:
    upstream = over(start_peer(serve).options, servers[1].options)
    connection = await connect(upstream)
    assert connection.upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


# ── the kind of server ────────────────────────────────────────────────────────────────────────


async def test_a_standby_is_passed_over_where_one_that_can_be_written_to_is_asked_for(
    servers: Servers, server: Postgres, connect: Connect
) -> None:
    server.start(standby=True)
    upstream = over(server.options, servers[1].options)
    connection = await connect(upstream, target_session_attrs="read-write")
    assert [attempt.outcome for attempt in connection.upstream_info.attempts] == ["ignored", "ok"]
    assert (await connect(upstream, target_session_attrs="standby")).upstream_info.host.id == "a"
    assert failures(upstream) == (0, 0)


async def test_hosts_to_be_avoided_are_passed_over(servers: Servers, connect: Connect) -> None:
    upstream = over_both(servers)
    assert (await connect(upstream, avoid={("p", "a")})).upstream_info.host.id == "b"
    with pytest.raises(psycopg.OperationalError):
        await connect(upstream, avoid={("p", "a"), ("q", "b")})
    assert failures(upstream) == (0, 0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"hostaddr": "127.0.0.1"}, "leave hostaddr out"),
        ({"host": "a,b"}, "host must be the one name"),
        ({"host": "/run/postgresql"}, "host must be the one name"),
        ({"target_session_attrs": "prefer-standby"}, "prefer-standby is for"),
    ],
    ids=["hostaddr", "hosts", "directory", "prefer-standby"],
)
async def test_what_cannot_be_said_of_an_upstream_is_an_error_that_says_so(
    servers: Servers, connect: Connect, given: dict[str, str], text: str
) -> None:
    with pytest.raises(psycopg.ProgrammingError, match=text):
        await connect(over_both(servers), **given)
    with pytest.raises(psycopg.ProgrammingError, match=text):
        await connect(over_both(servers), make_conninfo(**given))


async def test_an_upstream_must_be_given() -> None:
    with pytest.raises(TypeError, match="upstream"):
        UpstreamConnection.connect("dbname=postgres")


# ── addresses ─────────────────────────────────────────────────────────────────────────────────


async def test_a_unix_socket_is_a_host_by_its_path_or_its_directory(servers: Servers, connect: Connect) -> None:
    a, b = servers
    upstream = over({"host": f"unix:{a.socket}"}, {"host": f"unix:{b.directory}", "port": b.port})
    assert (await connect(upstream, host="db.internal")).upstream_info.host.id == "a"
    a.kill()
    assert (await connect(upstream)).upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_each_address_of_a_name_is_tried(
    servers: Servers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host != "db.test":
            return getaddrinfo(host, port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.9", "127.0.0.1")]

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr("socket.getaddrinfo", look_up)
    upstream = over({"host": "db.test", "port": servers[0].port}, servers[1].options)
    connection = await connect(upstream)
    assert connection.upstream_info.host.id == "a"
    servers[0].kill()
    assert (await connect(upstream)).upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_where_the_resolver_fails_the_last_known_address_is_used(
    servers: Servers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_args: Any, **_kwargs: Any) -> Any:
        if answers:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", servers[0].port))]
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    answers = True
    monkeypatch.setattr("socket.getaddrinfo", look_up)
    upstream = over({"host": "known.test", "port": servers[0].port}, servers[1].options)
    for answers in (True, False):  # noqa: B007 - which `look_up` sees
        assert (await connect(upstream)).upstream_info.host.id == "a"
    assert failures(upstream) == (0, 0)


async def test_a_name_that_is_none_counts_as_failed(servers: Servers, connect: Connect) -> None:
    upstream = over({"host": "nowhere.invalid", "port": 5432}, servers[1].options)
    assert (await connect(upstream)).upstream_info.attempts[-1].host.id == "b"


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    """One that signs certificates, and its own certificate's file."""
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return ca, path


@pytest.fixture(scope="module")
def tls_servers(
    clusters: Clusters, ports: Ports, authority: tuple[trustme.CA, Path]
) -> Iterator[tuple[Postgres, Postgres]]:
    """One whose certificate is for another name, and one for ``db.internal``."""
    with clusters.make(ports.reserve()) as other, clusters.make(ports.reserve()) as right:
        for server, name in ((other, "other.internal"), (right, "db.internal")):
            server.start_with_certificate(authority[0].issue_cert(name))
        yield other, right


async def test_a_server_with_a_certificate_for_another_name_counts_as_failed(
    tls_servers: Servers, authority: tuple[trustme.CA, Path], connect: Connect
) -> None:
    upstream = over_both(tls_servers)
    tls = {"sslmode": "verify-full", "sslrootcert": str(authority[1])}
    connection = await connect(upstream, host="db.internal", **tls)
    assert connection.upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        await connect(upstream, **tls)  # by the address, which is in no certificate
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        await connect(upstream, sslmode="verify-ca", sslrootcert=str(_of_a_stranger(authority[1])))


def _of_a_stranger(beside: Path) -> Path:
    path = beside.with_name("stranger.pem")
    trustme.CA().cert_pem.write_to_path(path)
    return path


async def test_a_server_without_tls_counts_as_failed_where_it_is_required(
    servers: Servers, tls_servers: Servers, connect: Connect
) -> None:
    upstream = over(servers[0].options, tls_servers[1].options)
    assert (await connect(upstream, sslmode="require")).upstream_info.host.id == "b"
    assert failures(upstream) == (1, 0)


async def test_a_missing_file_of_certificates_is_the_callers_fault(
    tls_servers: Servers, connect: Connect, tmp_path: Path
) -> None:
    upstream = over_both(tls_servers)
    with pytest.raises(psycopg.OperationalError, match="root certificate file"):
        await connect(upstream, sslmode="verify-ca", sslrootcert=str(tmp_path / "none"))
    assert failures(upstream) == (0, 0)


# ── pools ─────────────────────────────────────────────────────────────────────────────────────


def open_pool(upstream: Upstream, kind: type[ConnectionPool[Any]] = ConnectionPool, **options: Any) -> Any:
    kwargs = {**LOGIN, "upstream": upstream}
    return kind(connection_class=UpstreamConnection, kwargs=kwargs, open=True, timeout=10, **options)


async def test_a_pool_goes_elsewhere_when_a_server_dies_and_comes_back_to_it(servers: Servers) -> None:
    upstream = over_both(servers)
    with open_pool(upstream, min_size=1, max_size=2, check=ConnectionPool.check_connection) as pool:
        with pool.connection() as connection:
            assert ask(connection) == servers[0].port
        servers[0].kill()
        for _ in range(4):
            with pool.connection() as connection:
                assert ask(connection) == servers[1].port
        servers[0].start()
        servers[1].kill()
        with pool.connection() as connection:
            assert ask(connection) == servers[0].port


async def test_a_pool_that_keeps_nothing_connects_through_the_upstream_each_time(servers: Servers) -> None:
    upstream = over_both(servers)
    with open_pool(upstream, NullConnectionPool, max_size=2) as pool:
        for dead, alive in ((1, 0), (0, 1)):
            servers[dead].kill()
            servers[alive].start_again()
            with pool.connection() as connection:
                assert ask(connection) == servers[alive].port


async def test_a_pool_of_asyncio_goes_elsewhere_when_a_server_dies(servers: Servers) -> None:
    upstream = over_both(servers)
    pool: AsyncConnectionPool[AsyncUpstreamConnection[Any]] = AsyncConnectionPool(
        connection_class=AsyncUpstreamConnection,
        kwargs={**LOGIN, "upstream": upstream},
        min_size=1,
        open=False,
        check=AsyncConnectionPool.check_connection,
    )
    async with pool:
        async with pool.connection() as connection:
            assert connection.upstream_info.host.id == "a"
        servers[0].kill()
        async with pool.connection() as connection:
            assert connection.upstream_info.host.id == "b"
            await connection.execute("SELECT 1")


async def test_a_pool_with_no_server_says_so_in_time(caplog: pytest.LogCaptureFixture) -> None:
    with refusing() as dead, open_pool(over(dead, dead), min_size=1) as pool, pytest.raises(PoolTimeout):
        pool.wait(timeout=0.5)
    assert "no host is available" in caplog.text


# ── what ends early ───────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_connection_leaves_no_socket_and_counts_for_nothing(
    start_peer: Callable[..., Peer], servers: Servers
) -> None:
    asked, loop, silence = asyncio.Event(), asyncio.get_running_loop(), Silence()

    def serve(connection: socket.socket) -> None:
        loop.call_soon_threadsafe(asked.set)
        silence(connection)

    upstream = over(start_peer(serve).options, servers[1].options)
    task = asyncio.create_task(AsyncUpstreamConnection.connect(**LOGIN, upstream=upstream))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    wait_until(lambda: silence.total and not silence.open, "the socket is closed")
    assert caught.value is not None  # nor does its traceback keep it open
    assert failures(upstream) == (0, 0)


async def test_cancelled_at_any_point_nothing_is_left_open_and_nothing_counts(servers: Servers) -> None:
    upstream = over_both(servers)
    await upstream.current_context.aload()

    def check() -> None:
        assert not sockets_to(*(server.port for server in servers))

    begin = functools.partial(AsyncUpstreamConnection.connect, **LOGIN, upstream=upstream)
    assert await cancel_at_every_point(begin, AsyncUpstreamConnection.close, check) >= 3
    assert failures(upstream) == (0, 0)


async def test_a_caller_with_less_time_than_the_pool_counts_for_nothing(servers: Servers) -> None:
    upstream = over_both(servers)
    servers[0].signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await AsyncUpstreamConnection.connect(**LOGIN, upstream=upstream)
    assert failures(upstream) == (0, 0)


async def test_hosts_that_failed_leave_no_socket_behind(
    start_peer: Callable[..., Peer], servers: Servers, connect: Connect
) -> None:
    silence = Silence()
    upstream = over(start_peer(silence).options, servers[1].options, timeout=300)
    connection = await connect(upstream)
    assert connection.upstream_info.host.id == "b"
    wait_until(lambda: silence.total and not silence.open, "the socket is closed")
    assert failures(upstream) == (1, 0)
