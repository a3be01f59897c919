"""Django's database, with real servers of MariaDB behind it."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.db.utils import ConnectionHandler
from django.test import override_settings

from resty_upstream import NoHostAvailable
from resty_upstream.contrib.django import get_upstream
from resty_upstream.stores.memory import MemoryStore
from tests.contrib.mysql import LOGIN, DataDirectories, Mysql, find_driver
from tests.e2e.processes import Ports
from tests.helpers import Peer, health, refusing

find_driver()

Servers = tuple[Mysql, Mysql]
Connect = Callable[..., Any]


def pools(first: dict[str, Any], second: dict[str, Any], timeout: int = 7000, **options: Any) -> dict[str, Any]:
    """Those that go to ``a`` as long as they can, for ``timeout`` milliseconds, and then to ``b``."""
    return {
        "p": {"timeout": timeout, **options, "hosts": {"a": first}},
        "q": {"timeout": 7000, "priority": 1, "hosts": {"b": second}},
    }


def of(servers: Servers, **options: Any) -> dict[str, Any]:
    return pools(servers[0].options, servers[1].options, **options)


def failures() -> tuple[int, int]:
    """The failcounts of ``a`` and ``b``."""
    upstream = get_upstream("databases")
    return health(upstream, "a")["failcount"], health(upstream, "b", "q")["failcount"]


@pytest.fixture(scope="module")
def directories() -> Iterator[DataDirectories]:
    """Makes servers."""
    with closing(DataDirectories()) as directories:
        yield directories


@pytest.fixture(scope="module")
def lasting_servers(directories: DataDirectories, ports: Ports) -> Iterator[Servers]:
    """See ``servers``, which has them running."""
    with directories.make(ports.reserve()) as a, directories.make(ports.reserve()) as b:
        yield a, b


@pytest.fixture
def servers(lasting_servers: Servers) -> Servers:
    """Two servers that run, whatever earlier tests did to them."""
    for server in lasting_servers:
        server.start_again()
    return lasting_servers


@pytest.fixture
def server(directories: DataDirectories, ports: Ports) -> Iterator[Mysql]:
    """A server for this test alone, to be started by it."""
    with directories.make(ports.reserve()) as server:
        yield server


@pytest.fixture
def connect(django_db_blocker: Any) -> Iterator[Connect]:
    """Makes a database of Django over an upstream with these pools."""
    with django_db_blocker.unblock(), ExitStack() as stack:

        def make(
            upstream_pools: dict[str, Any],
            options: dict[str, Any] | None = None,
            store: Any = "memory://",
            **settings: Any,
        ) -> Any:
            upstreams = {"databases": {"STORE": store, "POOLS": upstream_pools}}
            stack.enter_context(override_settings(UPSTREAMS=upstreams))
            given = {"upstream": "databases", **(options or {})}
            engine = "resty_upstream.contrib.django.db.mysql"
            database = {"ENGINE": engine, **LOGIN, "OPTIONS": given, **settings}
            return stack.enter_context(closing(ConnectionHandler({"default": database})["default"]))

        yield make


def ask(wrapper: Any, query: str = "SELECT @@port") -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


INSERT = "INSERT INTO written VALUES (@@port)"


def write(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS written (at int)")
        cursor.execute(INSERT)


def next_request(wrapper: Any) -> None:
    """What Django does between requests."""
    wrapper.close_if_unusable_or_obsolete()


# ── a server fails ────────────────────────────────────────────────────────────────────────────


def test_the_first_connection_goes_to_a_server_that_works(servers: Servers, connect: Connect) -> None:
    with refusing() as dead:
        wrapper = connect(pools(dead, servers[1].options))
        assert ask(wrapper) == servers[1].port
        assert wrapper.connection.upstream_info.host.id == "b"
        assert failures() == (1, 0)


def test_a_server_that_dies_fails_the_request_and_the_next_is_served_by_another(
    servers: Servers, connect: Connect
) -> None:
    wrapper = connect(of(servers), CONN_MAX_AGE=None)
    assert ask(wrapper) == servers[0].port
    servers[0].kill()
    with pytest.raises(OperationalError):
        ask(wrapper)
    next_request(wrapper)
    assert ask(wrapper) == servers[1].port
    assert failures() == (1, 0)
    servers[0].start()
    wrapper.close()
    assert ask(wrapper) == servers[0].port
    assert failures() == (0, 0)


def test_with_health_checks_no_request_fails(servers: Servers, connect: Connect) -> None:
    wrapper = connect(of(servers), CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True)
    assert ask(wrapper) == servers[0].port
    servers[0].kill()
    next_request(wrapper)
    assert ask(wrapper) == servers[1].port


def test_a_stopped_server_is_left_in_time_and_queries_may_take_longer(servers: Servers, connect: Connect) -> None:
    wrapper = connect(of(servers, timeout=400))
    servers[0].signal(signal.SIGSTOP)
    assert ask(wrapper) == servers[1].port
    assert failures() == (1, 0)
    assert ask(wrapper, "SELECT SLEEP(1.1)") == 0


def test_a_stopped_server_is_used_again_when_it_goes_on_and_its_time_is_over(
    servers: Servers, connect: Connect
) -> None:
    passed_s = 0
    store = MemoryStore(lambda: time.monotonic() + passed_s)
    wrapper = connect(of(servers, timeout=500, max_fails=1), store=store, CONN_MAX_AGE=0)
    assert ask(wrapper) == servers[0].port
    next_request(wrapper)
    servers[0].signal(signal.SIGSTOP)
    assert ask(wrapper) == servers[1].port
    next_request(wrapper)
    servers[0].signal(signal.SIGCONT)
    assert ask(wrapper) == servers[1].port
    assert failures() == (1, 0)
    next_request(wrapper)
    passed_s = 60
    assert ask(wrapper) == servers[0].port
    assert failures() == (0, 0)


def test_a_server_with_too_many_connections_counts_as_failed(
    servers: Servers, server: Mysql, connect: Connect
) -> None:
    server.start(max_connections="10")
    full = connect(pools(server.options, server.options))
    with ExitStack() as stack:
        for _ in range(10):
            copy = stack.enter_context(closing(full.copy()))
            copy.ensure_connection()
        wrapper = connect(pools(server.options, servers[1].options))
        assert ask(wrapper) == servers[1].port
        first, _ = wrapper.connection.upstream_info.attempts
        assert "Too many connections" in str(first.error)
        assert failures() == (1, 0)


def test_what_is_no_server_of_mysql_counts_as_failed(
    servers: Servers, connect: Connect, start_peer: Callable[..., Peer]
) -> None:
    wrapper = connect(pools(start_peer(lambda connection: None).options, servers[1].options))
    assert ask(wrapper) == servers[1].port
    assert failures() == (1, 0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # PyMySQL leaves a unix socket that cannot connect
def test_a_unix_socket_is_a_host(servers: Servers, connect: Connect) -> None:
    wrapper = connect(pools({"host": f"unix:{servers[0].directory}/none"}, {"host": f"unix:{servers[1].socket}"}))
    assert ask(wrapper) == servers[1].port
    assert failures() == (1, 0)
    wrapper.close()
    gc.collect()


def test_when_no_server_is_left_it_is_djangos_error_that_says_what_was_tried(connect: Connect) -> None:
    with refusing() as dead:
        wrapper = connect(pools(dead, dead))
        with pytest.raises(OperationalError, match=r"no host is available after p/a: .* q/b: ") as caught:
            ask(wrapper)
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__.__cause__, NoHostAvailable)


@pytest.mark.parametrize(
    ("wrong", "number"), [({"PASSWORD": "wrong"}, 1045), ({"NAME": "missing"}, 1044)], ids=["password", "database"]
)
def test_what_the_caller_did_wrong_is_raised_as_it_is_and_counts_against_nobody(
    servers: Servers, connect: Connect, wrong: dict[str, str], number: int
) -> None:
    wrapper = connect(of(servers), **wrong)
    with pytest.raises(OperationalError) as caught:
        ask(wrapper)
    assert caught.value.args[0] == number
    assert failures() == (0, 0)


# ── a server that is read-only ────────────────────────────────────────────────────────────────


def test_a_write_that_meets_a_read_only_server_is_raised_and_what_follows_in_the_request_goes_elsewhere(
    servers: Servers, server: Mysql, connect: Connect
) -> None:
    server.start(read_only="on")
    wrapper = connect(pools(server.options, servers[1].options), CONN_MAX_AGE=0)
    assert ask(wrapper) == server.port
    with pytest.raises(OperationalError, match="read-only"):
        write(wrapper)
    assert wrapper.connection is None
    write(wrapper)
    assert ask(wrapper) == servers[1].port
    next_request(wrapper)
    assert ask(wrapper) == server.port
    assert failures() == (0, 0)  # it can be read all the time


def test_a_transaction_that_the_application_made_read_only_keeps_its_connection(
    servers: Servers, connect: Connect
) -> None:
    wrapper = connect(of(servers))
    write(wrapper)
    kept = wrapper.connection
    with wrapper.cursor() as cursor:
        cursor.execute("START TRANSACTION READ ONLY")
        with pytest.raises(OperationalError, match="READ ONLY transaction"):
            cursor.execute(INSERT)
    assert wrapper.connection is kept


# ── the settings, and the shell ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["HOST", "PORT"])
def test_a_host_beside_the_upstream_is_named_by_its_path(connect: Connect, name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=rf"^DATABASES\['default'\]\['{name}'\] must be left out: .*"):
        ask(connect({}, **{name: "3306"}))


def test_a_wrong_upstream_is_named_by_its_path(connect: Connect) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"^DATABASES\['default'\]\['OPTIONS'\]\['upstream'\]: .*'other'"
    ):
        ask(connect({}, {"upstream": "other"}))


def test_dbshell_goes_to_a_server_that_works(
    servers: Servers, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    with refusing() as dead:
        wrapper = connect(pools(dead, servers[1].options))
        wrapper.client.runshell(["--batch", "--skip-column-names", "--execute=SELECT @@port"])
    assert capfd.readouterr().out.strip() == str(servers[1].port)
    assert wrapper.settings_dict["HOST"] == ""
