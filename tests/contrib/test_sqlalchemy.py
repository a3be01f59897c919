"""SQLAlchemy on real servers of PostgreSQL that die."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import Any

import anyio
import anyio.lowlevel
import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, exc, text

from resty_upstream import NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.contrib.sqlalchemy import async_creator, creator
from resty_upstream.testing import FakeClock
from tests.contrib.cancelling import cancel_at_every_point, sockets_to
from tests.contrib.postgres import LOGIN, Postgres
from tests.e2e.processes import wait_until
from tests.helpers import health, open_upstream, refused, refusing, visit_in_vain

pytestmark = pytest.mark.anyio

Servers = tuple[Postgres, Postgres]
URL = "postgresql+psycopg://"
PORT = text("SELECT inet_server_port()")


@pytest.fixture
def upstream(servers: Servers) -> Upstream:
    """Goes to the first server as long as it can, and then to the other."""
    upstream = Upstream("memory://")
    options = [server.options for server in servers]
    upstream.configure(
        {
            "p": {"timeout": 7000, "hosts": {"a": options[0]}},
            "q": {"timeout": 7000, "priority": 1, "hosts": {"b": options[1]}},
        }
    )
    return upstream


@pytest.mark.parametrize("pre_ping", [False, True])
def test_an_engine_goes_elsewhere_when_a_server_dies(upstream: Upstream, servers: Servers, pre_ping: bool) -> None:
    engine = create_engine(URL, creator=creator(upstream, **LOGIN), pool_pre_ping=pre_ping)
    with engine.connect() as connection:
        assert connection.scalar(PORT) == servers[0].port
    servers[0].kill()
    if not pre_ping:
        with engine.connect() as connection, pytest.raises(exc.OperationalError) as caught:
            connection.scalar(PORT)
        assert caught.value.connection_invalidated
    with engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE written (at int)"))
        assert connection.scalar(PORT) == servers[1].port
    assert health(upstream, "a")["failcount"] == 1
    engine.dispose()


def test_an_engine_follows_servers_that_are_killed_stopped_and_brought_back(servers: Servers) -> None:
    upstream = Upstream("memory://")
    hosts = {str(server.port): server.options for server in servers}
    upstream.configure({"p": {"timeout": 500, "max_fails": 1, "failed_timeout": 300, "hosts": hosts}})
    engine = create_engine(URL, creator=creator(upstream, **LOGIN), poolclass=NullPool)

    def port() -> Any:
        with engine.connect() as connection:
            return connection.scalar(PORT)

    servers[0].kill()
    assert {port() for _ in range(3)} == {servers[1].port}
    servers[0].start()
    servers[1].signal(signal.SIGSTOP)
    assert {port() for _ in range(3)} == {servers[0].port}  # the last resort, and back
    servers[1].signal(signal.SIGCONT)
    assert not upstream.get_pools()["p"]["hosts"][str(servers[1].port)]["up"]
    UpstreamAPI(upstream).up_host("p", str(servers[1].port))
    assert {port() for _ in range(2)} == {server.port for server in servers}


async def test_an_asynchronous_engine_goes_elsewhere_when_a_server_dies(
    upstream: Upstream, servers: Servers
) -> None:
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs it")
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(
        URL, async_creator=async_creator(upstream, "dbname=postgres", **LOGIN), pool_pre_ping=True
    )
    async with engine.connect() as connection:
        assert await connection.scalar(PORT) == servers[0].port
    servers[0].kill()
    async with engine.connect() as connection:
        assert await connection.scalar(PORT) == servers[1].port
    assert health(upstream, "a")["failcount"] == 1
    await engine.dispose()


def to_be_probed(server: Postgres) -> Upstream:
    """An upstream whose only host was down, and may be tried by one at a time."""
    clock = FakeClock()
    pool = {"method": "least_conn", "max_fails": 1, "timeout": 7000, "hosts": {"a": server.options}}
    upstream = open_upstream({"p": pool}, clock, last_resort=False)
    visit_in_vain(upstream, {"a": refused})
    clock.advance(600)
    return upstream


async def test_an_asynchronous_engine_cancelled_at_any_point_leaves_nothing_and_goes_on(servers: Servers) -> None:
    """No socket, nothing under way, no failure, no lease of the only one who may probe."""
    pytest.importorskip("greenlet", reason="SQLAlchemy's asyncio needs it")
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

    port, refusals = servers[0].port, []

    async def ask(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            assert await connection.scalar(PORT) == port

    async def go_on(engine: AsyncEngine, upstream: Upstream) -> None:
        pool: Any = engine.pool  # which gets the connection back behind the back of what was cancelled
        await asyncio.to_thread(wait_until, lambda: pool.checkedout() == 0, "nothing is checked out")
        (host,) = upstream.replica.snapshot().targets.values()
        assert host.load is not None
        assert not host.load.running
        await ask(engine)
        await engine.dispose()
        refusals.append(sum(upstream.counts().hosts["p", "a"].failures.values()))

    async def begin() -> None:
        upstream = to_be_probed(servers[0])
        engine = create_async_engine(URL, async_creator=async_creator(upstream, **LOGIN))
        try:
            await ask(engine)
        finally:
            with anyio.CancelScope(shield=True):
                await go_on(engine, upstream)

    def check() -> None:
        gc.collect()  # psycopg leaves it the socket by which it was asking the server to cancel
        assert not sockets_to(port)

    assert await cancel_at_every_point(begin, lambda _: anyio.lowlevel.checkpoint(), check) >= 3
    assert set(refusals) == {1}, "that of `to_be_probed`"


def test_when_no_server_is_left_it_is_sqlalchemys_error() -> None:
    upstream = Upstream("memory://")
    with refusing() as dead:
        upstream.configure({"p": {"hosts": {"a": dead}}})
        engine = create_engine(URL, creator=creator(upstream, **LOGIN))
        with pytest.raises(exc.OperationalError, match="no host is available") as caught:
            engine.connect()
    assert isinstance(caught.value.orig, psycopg.OperationalError)
    assert isinstance(caught.value.orig.__cause__, NoHostAvailable)
    engine.dispose()
