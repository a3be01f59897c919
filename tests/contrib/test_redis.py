"""redis-py, sync and asyncio, against Redis processes."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import redis.asyncio
import trustme
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ReadOnlyError, ResponseError
from redis.retry import Retry

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.redis import (
    AsyncUpstreamConnection,
    AsyncUpstreamConnectionPool,
    UpstreamConnection,
    UpstreamConnectionPool,
)
from resty_upstream.testing import FakeClock
from tests.contrib.cancelling import cancel_at_every_point, sockets_to
from tests.contrib.servers import Server, Servers, failcounts, in_order, servers
from tests.e2e.processes import wait_until
from tests.helpers import Peer, health, no_descriptors_left, open_upstream, refusing

__all__ = ["servers"]

LONG = {"socket_timeout": 10.0}
"""What no test waits for."""


class Client:
    """A synchronous client, whose calls tests may await all the same."""

    def __init__(self, upstream: Any, **options: Any) -> None:
        self.redis: Any = redis.Redis.from_pool(UpstreamConnectionPool(upstream, **LONG | options))

    async def do(self, *command: Any) -> Any:
        return self.redis.execute_command(*command)

    async def close(self) -> None:
        self.redis.close()


class AsyncClient:
    """An asynchronous one."""

    def __init__(self, upstream: Any, **options: Any) -> None:
        pool = AsyncUpstreamConnectionPool(upstream, **LONG | options)
        self.redis: Any = redis.asyncio.Redis.from_pool(pool)

    async def do(self, *command: Any) -> Any:
        return await self.redis.execute_command(*command)

    async def close(self) -> None:
        await self.redis.aclose()


class Clients:
    """Makes clients of one kind."""

    def __init__(self, kind: type[Client | AsyncClient]) -> None:
        self._kind = kind
        self.made: list[Client | AsyncClient] = []

    def __call__(self, upstream: Any, **options: Any) -> Client | AsyncClient:
        client = self._kind(upstream, **options)
        self.made.append(client)
        return client


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> Any:
    """Makes clients, each test with sync and with asynchronous ones."""
    clients = Clients(request.param)
    yield clients
    for client in clients.made:
        await client.close()


pytestmark = pytest.mark.anyio


async def port_of(client: Any) -> int:
    """The port of the Redis that answers."""
    return int((await client.do("CONFIG GET", "port")).popitem()[1])


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ── hosts that do not work ────────────────────────────────────────────────────────────────────


async def test_commands_go_to_a_host_with_the_database_that_was_asked_for(connect: Any, servers: Servers) -> None:
    a = servers.redis()
    upstream = in_order(a)
    client = connect(upstream, db=3, decode_responses=True)
    await client.do("SET", "key", "value")
    assert await client.do("GET", "key") == "value"
    assert await connect(upstream).do("GET", "key") is None
    assert failcounts(upstream) == [0]


async def test_a_host_that_refuses_is_counted_and_the_next_one_used(connect: Any, servers: Servers) -> None:
    b = servers.redis()
    with refusing() as a:
        upstream = in_order(a, b)
        assert await port_of(connect(upstream)) == b.port
        assert failcounts(upstream) == [1, 0]


async def test_a_host_killed_between_commands_is_noticed_before_the_next_one(
    connect: Any, servers: Servers, clock: FakeClock
) -> None:
    """The idle connection broke: nothing was sent, so nothing is lost, and no command fails."""
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b, clock=clock, pool={"max_fails": 1})
    client = connect(upstream)
    assert await port_of(client) == a.port
    a.kill()
    assert await port_of(client) == b.port
    assert failcounts(upstream) == [1, 0]
    a.start()
    clock.advance(60)
    assert await port_of(connect(upstream)) == a.port
    assert failcounts(upstream) == [0, 0]


async def test_a_host_killed_in_the_middle_of_a_command_fails_that_command_only(
    connect: Any, servers: Servers
) -> None:
    """It may have run, and is not sent again."""
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b)
    client = connect(upstream)
    assert await port_of(client) == a.port
    killer = threading.Thread(target=lambda: (wait_until(lambda: blocked(a), "a blocked client"), a.kill()))
    killer.start()
    with pytest.raises(redis.ConnectionError):
        await asyncio.wait_for(client.do("BLPOP", "nothing", 0), 10.0)
    killer.join()
    assert b"blocked_clients:0" in b.ask(b"INFO clients")
    assert await port_of(client) == b.port
    assert failcounts(upstream) == [1, 0]


def blocked(server: Server) -> bool:
    return b"blocked_clients:1" in server.ask(b"INFO clients")


@pytest.mark.parametrize("options", [{}, {"protocol": 2, "driver_info": None}], ids=["usual", "says nothing"])
async def test_a_host_that_is_stopped_accepts_and_is_counted_all_the_same(
    connect: Any, servers: Servers, options: dict[str, Any]
) -> None:
    a, b = servers.redis(), servers.redis()
    a.stop()
    upstream = in_order(a, b, pool={"timeout": 150})
    client = connect(upstream, **options)
    assert await client.do("SET", "key", "value")
    assert b.ask(b"GET key") == b"$5\r\nvalue\r\n"
    assert failcounts(upstream) == [1, 0]
    a.go_on()


async def test_a_host_stopped_in_the_middle_of_use_fails_one_command(connect: Any, servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b, pool={"timeout": 150})
    client = connect(upstream, socket_timeout=0.2)
    assert await port_of(client) == a.port
    a.stop()
    with pytest.raises(redis.TimeoutError):
        await client.do("GET", "key")
    assert await port_of(client) == b.port
    assert failcounts(upstream) == [1, 0]
    a.go_on()


async def test_no_host_is_left(connect: Any, servers: Servers) -> None:
    a = servers.redis()
    with refusing() as b:
        upstream = in_order(a, b)
        a.kill()
        with pytest.raises(redis.ConnectionError, match=r"no host is available after 0/a: .*, 1/b: ") as caught:
            await connect(upstream).do("GET", "key")
    assert isinstance(caught.value.__cause__, NoHostAvailable)
    assert [attempt.host.id for attempt in caught.value.__cause__.attempts] == ["a", "b"]
    assert failcounts(upstream) == [1, 1]


async def test_a_host_with_too_many_clients_is_counted(connect: Any, servers: Servers) -> None:
    a, b = servers.redis("--maxclients", "1"), servers.redis()
    upstream = in_order(a, b)
    with socket.create_connection(("127.0.0.1", a.port)) as only:
        only.sendall(b"PING\r\n")
        only.recv(100)
        assert await port_of(connect(upstream)) == b.port
        assert failcounts(upstream) == [1, 0]


async def test_a_host_that_closes_at_once_is_counted(connect: Any, servers: Servers) -> None:
    b = servers.redis()
    with Peer(lambda connection: connection.recv(10_000)) as a:
        upstream = in_order(a.options, b)
        try:
            raise OSError("what the caller was about when it called")
        except OSError:
            assert await port_of(connect(upstream)) == b.port
        assert failcounts(upstream) == [1, 0]


async def test_a_host_that_speaks_something_else_is_counted(connect: Any, servers: Servers) -> None:
    b = servers.redis()

    def serve(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Peer(serve) as a:
        upstream = in_order(a.options, b)
        assert await port_of(connect(upstream)) == b.port
        assert failcounts(upstream) == [1, 0]


async def test_a_host_that_loads_its_data_is_counted_until_it_is_done(
    connect: Any, servers: Servers, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = servers.redis("--enable-debug-command", "local"), servers.redis()
    a.ask(b"DEBUG POPULATE 20000 key 100")
    a.ask(b"SAVE")
    a.kill()
    a.start("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    assert a.ask(b"PING").startswith(b"-LOADING")
    upstream = in_order(a, b, clock=clock, pool={"max_fails": 1, "timeout": 5000})
    assert await port_of(connect(upstream)) == b.port
    assert failcounts(upstream) == [1, 0]
    assert "Redis is loading the dataset in memory)" in caplog.text
    a.ask(b"CONFIG SET key-load-delay 0")
    wait_until(lambda: a.ask(b"PING") == b"+PONG\r\n", "the end of loading")
    clock.advance(60)
    assert await port_of(connect(upstream)) == a.port
    assert failcounts(upstream) == [0, 0]


async def test_a_name_and_a_unix_socket_are_hosts_too(connect: Any, servers: Servers, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    a = servers.redis("--unixsocket", str(path))
    for host in ({"host": "localhost", "port": a.port}, {"host": f"unix:{path}"}):
        upstream = in_order(host)
        assert await port_of(connect(upstream)) == a.port
        assert failcounts(upstream) == [0]


# ── whose fault it is ─────────────────────────────────────────────────────────────────────────


async def test_a_wrong_password_is_raised_as_it_is_and_counts_against_nobody(
    connect: Any, servers: Servers
) -> None:
    a, b = (servers.redis("--requirepass", "right") for _ in range(2))
    upstream = in_order(a, b)
    for options in ({"password": "wrong"}, {"password": "wrong", "protocol": 2}, {}, {"protocol": 2}):
        with pytest.raises(AuthenticationError):
            await connect(upstream, **options).do("GET", "key")
    assert failcounts(upstream) == [0, 0]
    with redis.Redis(port=b.port, password="right") as other:
        received = other.info("stats")["total_connections_received"]
    assert received == 2  # the question whether it had started, and this one
    assert await port_of(connect(upstream, password="right")) == a.port


async def test_a_database_that_there_is_not_is_the_callers_fault(connect: Any, servers: Servers) -> None:
    upstream = in_order(servers.redis(), servers.redis())
    with pytest.raises(ResponseError, match="DB index is out of range"):
        await connect(upstream, db=99).do("GET", "key")
    assert failcounts(upstream) == [0, 0]


async def test_a_user_who_may_not_ping_is_served(connect: Any, servers: Servers) -> None:
    a = servers.redis()
    a.ask(b"ACL SETUSER web on >secret ~* +get +hello +client")
    upstream = in_order(a)
    client = connect(upstream, username="web", password="secret")
    assert await client.do("GET", "key") is None


async def test_having_no_descriptors_left_is_nobodys_fault(connect: Any, servers: Servers) -> None:
    upstream = in_order(servers.redis(), servers.redis())
    client = connect(upstream)
    await client.do("GET", "key")
    await connect_again(client)
    with no_descriptors_left(), pytest.raises(redis.ConnectionError, match="24"):
        await client.do("GET", "key")
    assert failcounts(upstream) == [0, 0]
    await client.do("GET", "key")


# ── replicas ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair(servers: Servers) -> tuple[Server, Server]:
    """A replica, and its master."""
    master = servers.redis("--repl-diskless-sync-delay", "0")
    replica = servers.redis("--replicaof", f"127.0.0.1 {master.port}")
    wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication"), "a replica in sync")
    return replica, master


async def test_a_write_that_a_replica_refuses_is_raised_and_the_next_one_goes_on(
    connect: Any, pair: tuple[Server, Server], clock: FakeClock
) -> None:
    replica, master = pair
    upstream = in_order(replica, master, clock=clock)
    client = connect(upstream)
    with pytest.raises(ReadOnlyError):
        await client.do("SET", "key", 1)
    assert failcounts(upstream) == [1, 0]
    await client.do("SET", "key", 2)
    assert await port_of(client) == master.port
    for _ in range(3):  # new connections do not have to find out again, nor take a connection for a success
        await connect_again(client)
        await client.do("SET", "key", 3)
    assert not health(upstream, "a", "0")["up"]
    replica.ask(b"REPLICAOF NO ONE")
    clock.advance(60)
    await connect_again(client)
    await client.do("SET", "key", 4)
    assert await port_of(client) == replica.port
    assert failcounts(upstream) == [0, 0]


async def connect_again(client: Any) -> None:
    """Have a client forget its connections."""
    pool = client.redis.connection_pool
    await pool.disconnect() if isinstance(pool, redis.asyncio.ConnectionPool) else pool.disconnect()


async def test_a_write_is_tried_again_on_another_host_where_retries_say_so(
    connect: Any, pair: tuple[Server, Server]
) -> None:
    replica, master = pair
    kind = redis.asyncio.retry.Retry if isinstance(connect(in_order(master)), AsyncClient) else Retry
    retry = kind(NoBackoff(), 1, (ReadOnlyError,))
    upstream = in_order(replica, master)
    client = connect(upstream, retry=retry)
    await client.do("SET", "key", 1)
    assert b"1" in master.ask(b"GET key")
    assert failcounts(upstream) == [2, 0]  # by the write, and when it was still a replica


async def test_reading_from_a_replica_is_no_failure(connect: Any, pair: tuple[Server, Server]) -> None:
    replica, master = pair
    upstream = in_order(replica, master)
    assert await connect(upstream).do("GET", "key") is None
    assert failcounts(upstream) == [0, 0]


@pytest.mark.parametrize("transaction", [False, True])
async def test_a_pipeline_reads_all_answers_of_a_replica(
    connect: Any, pair: tuple[Server, Server], transaction: bool
) -> None:
    upstream = in_order(*pair)
    client = connect(upstream)

    async def run() -> Any:
        pipeline = client.redis.pipeline(transaction=transaction)
        answers = pipeline.get("key").set("key", 1).set("key", 2).get("key").execute()
        return await answers if isinstance(client, AsyncClient) else answers

    with pytest.raises(ReadOnlyError):
        await run()
    assert await run() == [None, True, True, b"2"]
    assert failcounts(upstream) == [2, 0]  # by the write, and when it was still a replica


def test_a_client_with_a_single_connection_goes_on_too(pair: tuple[Server, Server]) -> None:
    upstream = in_order(*pair)
    with UpstreamConnectionPool(upstream) as pool:
        client = redis.Redis(connection_pool=pool, single_connection_client=True)
        with pytest.raises(ReadOnlyError):
            client.set("key", 1)
        assert client.set("key", 2)
        client.close()
    assert failcounts(upstream) == [2, 0]


async def test_a_replica_that_lost_its_master_and_serves_nothing_stale_is_counted(
    connect: Any, servers: Servers
) -> None:
    b = servers.redis()
    with refusing() as nobody:
        a = servers.redis("--replicaof", f"127.0.0.1 {nobody['port']}", "--replica-serve-stale-data", "no")
        upstream = in_order(a, b)
        assert await port_of(connect(upstream)) == b.port
    assert failcounts(upstream) == [1, 0]


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


class Certificates:
    """A certificate authority, and what it issued."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.file = str(directory / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)
        self.good = self._ca.issue_cert("cache.internal")
        self.of_another = self._ca.issue_cert("else.internal")
        self.of_address = self._ca.issue_cert("127.0.0.1")
        then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        self.expired = self._ca.issue_cert("cache.internal", not_before=then, not_after=then.replace(year=2021))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("bad", ["of_another", "expired"])
async def test_a_host_with_a_bad_certificate_is_counted(
    connect: Any, servers: Servers, certificates: Certificates, bad: str
) -> None:
    a, b = servers.redis(tls=getattr(certificates, bad)), servers.redis(tls=certificates.good)
    upstream = in_order(a, b, pool={"timeout": 5000})
    options = {"ssl": True, "ssl_ca_certs": certificates.file, "server_hostname": "cache.internal"}
    client = connect(upstream, **options)
    assert await tls_port_of(client) == b.port
    assert failcounts(upstream) == [1, 0]


async def tls_port_of(client: Any) -> int:
    return int((await client.do("CONFIG GET", "tls-port")).popitem()[1])


async def test_certificates_are_for_the_address_where_no_name_is_given(
    connect: Any, servers: Servers, certificates: Certificates
) -> None:
    a, b = servers.redis(tls=certificates.good), servers.redis(tls=certificates.of_address)
    upstream = in_order(a, b, pool={"timeout": 5000})
    client = connect(upstream, ssl=True, ssl_ca_certs=certificates.file)
    assert await tls_port_of(client) == b.port
    assert failcounts(upstream) == [1, 0]
    client = connect(in_order(a), ssl=True, ssl_ca_certs=certificates.file, ssl_check_hostname=False)
    assert await tls_port_of(client) == a.port


async def test_a_host_without_tls_is_counted(connect: Any, servers: Servers, certificates: Certificates) -> None:
    a, b = servers.redis(), servers.redis(tls=certificates.good)
    upstream = in_order(a, b, pool={"timeout": 1000})
    options = {"ssl": True, "ssl_ca_certs": certificates.file, "server_hostname": "cache.internal"}
    assert await tls_port_of(connect(upstream, **options)) == b.port
    assert failcounts(upstream) == [1, 0]


async def test_a_handshake_that_hangs_is_part_of_the_attempt(
    connect: Any, servers: Servers, certificates: Certificates
) -> None:
    a, b = servers.redis(tls=certificates.good), servers.redis(tls=certificates.good)
    a.stop()
    upstream = open_upstream(
        {
            "0": {"timeout": 150, "hosts": {"a": a.options}},
            "1": {"timeout": 5000, "priority": 1, "hosts": {"b": b.options}},
        }
    )
    options = {"ssl": True, "ssl_ca_certs": certificates.file, "server_hostname": "cache.internal"}
    assert await tls_port_of(connect(upstream, **options)) == b.port
    assert failcounts(upstream) == [1, 0]
    a.go_on()


async def test_certificate_authorities_that_are_not_there_are_the_callers_fault(
    connect: Any, servers: Servers, certificates: Certificates
) -> None:
    upstream = in_order(servers.redis(tls=certificates.good))
    with pytest.raises((redis.ConnectionError, FileNotFoundError), match="No such file"):
        await connect(upstream, ssl=True, ssl_ca_certs="/nowhere.pem").do("GET", "key")
    assert failcounts(upstream) == [0]


# ── asyncio ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_a_task_cancelled_while_it_connects_leaves_no_socket_and_no_failure(
    certificates: Certificates, is_tls: bool
) -> None:
    arrived, gone = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(10_000)
        arrived.set()
        while connection.recv(10_000):
            pass
        gone.set()

    options = {"ssl": True, "ssl_ca_certs": certificates.file} if is_tls else {}
    with Peer(serve) as silent:
        upstream = in_order(silent.options, silent.options, pool={"timeout": 10_000})
        client = AsyncClient(upstream, **options)
        before = open_descriptors()
        task = asyncio.create_task(client.do("GET", "key"))
        await asyncio.to_thread(arrived.wait, 10.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(gone.wait, 10.0)
        await client.close()
        await asyncio.to_thread(wait_until, lambda: open_descriptors() <= before, "no socket left open")
        assert silent.hits == 1
        assert failcounts(upstream) == [0, 0]


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
async def test_cancelled_at_any_point_nothing_is_left_open_and_nothing_counts(
    certificates: Certificates, servers: Servers, is_tls: bool
) -> None:
    a = servers.redis(tls=certificates.good if is_tls else None)
    names = {"ssl": True, "ssl_ca_certs": certificates.file, "server_hostname": "cache.internal"}
    upstream = in_order(a, pool={"max_fails": 1, "timeout": 5000}, last_resort=False)
    await upstream.current_context.aload()

    async def begin() -> AsyncUpstreamConnectionPool:
        pool = AsyncUpstreamConnectionPool(upstream, **LONG | (names if is_tls else {}))
        try:
            await pool.get_connection()
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await pool.disconnect()  # of one that it had, and was not to give any more
            raise
        return pool

    def check() -> None:
        assert not sockets_to(a.port)

    assert await cancel_at_every_point(begin, AsyncUpstreamConnectionPool.aclose, check) >= 3
    assert failcounts(upstream) == [0]


async def test_a_deadline_of_the_callers_own_counts_against_nobody(servers: Servers) -> None:
    a = servers.redis()
    a.stop()
    upstream = in_order(a, pool={"timeout": 10_000})
    client = AsyncClient(upstream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.do("GET", "key")
    assert failcounts(upstream) == [0]
    a.go_on()
    await client.do("GET", "key")
    await client.close()


async def test_many_tasks_share_a_pool_while_a_host_dies(servers: Servers) -> None:
    """Commands in flight may fail; all that begin afterwards succeed."""
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b)
    client = AsyncClient(upstream)
    await asyncio.gather(*(client.do("GET", "key") for _ in range(20)))
    a.kill()
    assert await asyncio.gather(*(client.do("GET", "key") for _ in range(20))) == [None] * 20
    await client.close()


# ── redis-py's other ways ─────────────────────────────────────────────────────────────────────


def test_subscriptions_go_on_at_another_host(servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b)
    with redis.Redis.from_pool(UpstreamConnectionPool(upstream, retry=Retry(NoBackoff(), 1))) as client:
        pubsub = client.pubsub()
        pubsub.subscribe("news")
        assert pubsub.get_message(timeout=10.0)["type"] == "subscribe"
        a.kill()
        assert pubsub.get_message(timeout=10.0)["type"] == "subscribe"
        b.ask(b"PUBLISH news hello")
        assert pubsub.get_message(timeout=10.0)["data"] == b"hello"
        pubsub.close()
    assert failcounts(upstream) == [1, 0]


def test_a_blocking_pool_takes_the_connection_class(servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b)
    options: dict[str, Any] = {"connection_class": UpstreamConnection, "upstream": upstream}
    with redis.BlockingConnectionPool(max_connections=2, **options) as pool:
        client = redis.Redis(connection_pool=pool)
        assert client.set("key", 1)
        a.kill()
        assert client.get("key") is None
    assert failcounts(upstream) == [1, 0]


async def test_an_asynchronous_blocking_pool_takes_the_connection_class(servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    upstream = in_order(a, b)
    options: dict[str, Any] = {"connection_class": AsyncUpstreamConnection, "upstream": upstream}
    pool = redis.asyncio.BlockingConnectionPool(max_connections=2, **options)
    client = redis.asyncio.Redis(connection_pool=pool)
    assert await client.set("key", 1)
    a.kill()
    assert await client.get("key") is None
    await pool.disconnect()
    assert failcounts(upstream) == [1, 0]


def test_weights_count_for_connections(servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    upstream = open_upstream({"p": {"hosts": {"a": a.options | {"weight": 3}, "b": b.options | {"weight": 1}}}})
    connected = []
    for _ in range(8):
        with redis.Redis.from_pool(UpstreamConnectionPool(upstream)) as client:
            connected.append(client.config_get("port")["port"])
    assert connected.count(str(a.port)) == 6


def test_what_a_request_saw_is_told_when_it_is_over(servers: Servers) -> None:
    b = servers.redis()
    with refusing() as a:
        upstream = in_order(a, b)
        with upstream.context() as context:
            with redis.Redis.from_pool(UpstreamConnectionPool(context)) as client:
                client.get("key")
            with redis.Redis.from_pool(UpstreamConnectionPool(upstream)) as client:
                client.get("key")
            assert failcounts(upstream) == [0, 0]
        assert failcounts(upstream) == [1, 0]  # the second time the request knew


# ── wrong use ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def upstream() -> Upstream:
    return in_order({"host": "a.test"})


@pytest.mark.parametrize("pool", [UpstreamConnectionPool, AsyncUpstreamConnectionPool])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "127.0.0.1"}, "host is not an option of connections to an upstream: the upstream has the hosts"),
        ({"port": 6379}, "port is not an option .*: the upstream has the hosts"),
        ({"path": "/run/redis.sock"}, r"path is not an option .*unix:/path"),
        ({"socket_connect_timeout": 1}, "the `timeout` of the upstream's pools says how long connecting may take"),
        ({"server_hostname": "cache.internal"}, "give ssl=True with it"),
    ],
)
def test_options_that_the_upstream_decides_are_refused(
    pool: Any, upstream: Upstream, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        pool(upstream, **options)


@pytest.mark.parametrize("pool", [UpstreamConnectionPool, AsyncUpstreamConnectionPool])
def test_what_is_no_upstream_is_refused(pool: Any) -> None:
    with pytest.raises(TypeError, match="upstream must be an Upstream or a RequestContext, not str"):
        pool("cache")


@pytest.mark.parametrize("pool", [UpstreamConnectionPool, AsyncUpstreamConnectionPool])
def test_passwords_are_in_no_repr(pool: Any, upstream: Upstream) -> None:
    assert "secret" not in repr(pool(upstream, password="secret", username="web"))
