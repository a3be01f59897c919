"""Django's database, with real servers of PostgreSQL behind it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InternalError, OperationalError, transaction
from django.db.utils import ConnectionHandler
from django.test import override_settings

from resty_upstream import NoHostAvailable
from resty_upstream.contrib.django import get_upstream
from tests.contrib.postgres import PASSWORD, USER, Postgres
from tests.e2e.processes import ROOT, python
from tests.helpers import health, refusing

ENGINE = "resty_upstream.contrib.django.db.postgresql"
Servers = tuple[Postgres, Postgres]
Connect = Callable[..., Any]


def pools(first: dict[str, Any], second: dict[str, Any], timeout: int = 7000) -> dict[str, Any]:
    """Those that go to ``a`` as long as they can, for ``timeout`` milliseconds, and then to ``b``."""
    return {
        "p": {"timeout": timeout, "hosts": {"a": first}},
        "q": {"timeout": 7000, "priority": 1, "hosts": {"b": second}},
    }


def of(servers: Servers) -> dict[str, Any]:
    return pools(servers[0].options, servers[1].options)


def failures() -> tuple[int, int]:
    """The failcounts of ``a`` and ``b``."""
    upstream = get_upstream("databases")
    return health(upstream, "a")["failcount"], health(upstream, "b", "q")["failcount"]


@pytest.fixture
def connect(django_db_blocker: Any) -> Iterator[Connect]:
    """Makes a database of Django over an upstream with these pools."""
    wrappers = []

    def make(upstream_pools: dict[str, Any], options: dict[str, Any] | None = None, **settings: Any) -> Any:
        setting = override_settings(UPSTREAMS={"databases": {"STORE": "memory://", "POOLS": upstream_pools}})
        setting.enable()
        database = {
            "ENGINE": ENGINE,
            "NAME": "postgres",
            "USER": USER,
            "PASSWORD": PASSWORD,
            "OPTIONS": {"upstream": "databases", **(options or {})},
            **settings,
        }
        wrapper = ConnectionHandler({"default": database})["default"]
        wrappers.append((wrapper, setting))
        return wrapper

    with django_db_blocker.unblock():
        yield make
        for wrapper, setting in wrappers:
            wrapper.close()
            if wrapper.settings_dict["OPTIONS"].get("pool"):
                wrapper.close_pool()
            setting.disable()


def ask(wrapper: Any, query: str = "SELECT inet_server_port()") -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def write(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS written (at int)")
        cursor.execute("INSERT INTO written VALUES (inet_server_port())")


def next_request(wrapper: Any) -> None:
    """What Django does between requests."""
    wrapper.close_if_unusable_or_obsolete()


# ── a server dies ─────────────────────────────────────────────────────────────────────────────


def test_the_first_connection_goes_to_a_server_that_works(servers: Servers, connect: Connect) -> None:
    with refusing() as dead:
        wrapper = connect(pools(dead, servers[1].options))
        assert ask(wrapper) == servers[1].port
        assert failures() == (1, 0)


def test_a_server_that_dies_fails_the_request_and_the_next_is_served_by_another(
    servers: Servers, connect: Connect
) -> None:
    wrapper = connect(of(servers), CONN_MAX_AGE=None)
    assert ask(wrapper) == servers[0].port
    kept = wrapper.connection
    next_request(wrapper)
    assert ask(wrapper) == servers[0].port
    assert wrapper.connection is kept
    servers[0].kill()
    with pytest.raises(OperationalError):
        ask(wrapper)
    next_request(wrapper)
    assert ask(wrapper) == servers[1].port
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


def test_a_stopped_server_is_left_in_time_and_used_when_it_goes_on(servers: Servers, connect: Connect) -> None:
    wrapper = connect(pools(servers[0].options, servers[1].options, timeout=300))
    servers[0].signal(signal.SIGSTOP)
    assert ask(wrapper) == servers[1].port
    assert failures() == (1, 0)
    servers[0].signal(signal.SIGCONT)
    wrapper.close()
    assert ask(wrapper) == servers[0].port
    assert failures() == (0, 0)


@pytest.mark.parametrize("pool", [True, {"min_size": 1, "max_size": 2}])
def test_djangos_pool_goes_to_another_server(servers: Servers, connect: Connect, pool: Any) -> None:
    wrapper = connect(of(servers), {"pool": pool}, CONN_HEALTH_CHECKS=True)
    assert ask(wrapper) == servers[0].port
    wrapper.close()
    servers[0].kill()
    for _ in range(2):
        assert ask(wrapper) == servers[1].port
        wrapper.close()
    assert wrapper.pool.get_stats()["pool_size"] >= 1


def test_when_no_server_is_left_it_is_djangos_error_that_says_what_was_tried(connect: Connect) -> None:
    with refusing() as dead:
        wrapper = connect(pools(dead, dead))
        with pytest.raises(OperationalError, match=r"p/a: .*refused.* q/b: .*refused") as caught:
            ask(wrapper)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert isinstance(caught.value.__cause__.__cause__, NoHostAvailable)


def test_a_wrong_password_is_raised_as_it_is_and_counts_against_nobody(servers: Servers, connect: Connect) -> None:
    wrapper = connect(of(servers), PASSWORD="wrong")
    with pytest.raises(OperationalError, match="password authentication failed"):
        ask(wrapper)
    assert failures() == (0, 0)


# ── a standby ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def standby(clusters: Any, ports: Any) -> Iterator[Postgres]:
    """A server that can be read only."""
    with clusters.make(ports.reserve()) as server:
        server.start(standby=True)
        yield server


@pytest.fixture
def with_standby(standby: Postgres, servers: Servers) -> dict[str, Any]:
    """Pools that go to the standby first."""
    return pools(standby.options, servers[1].options)


def test_a_write_that_meets_a_standby_is_raised_and_what_follows_in_the_request_goes_elsewhere(
    with_standby: dict[str, Any], servers: Servers, standby: Postgres, connect: Connect
) -> None:
    wrapper = connect(with_standby, CONN_MAX_AGE=0)
    assert ask(wrapper) == standby.port
    with pytest.raises(InternalError, match="read-only transaction"):
        write(wrapper)
    assert wrapper.connection is None
    write(wrapper)
    assert ask(wrapper) == servers[1].port
    next_request(wrapper)
    assert ask(wrapper) == standby.port
    assert failures() == (0, 0)  # it can be read all the time


def test_a_transaction_that_meets_a_standby_is_over(
    with_standby: dict[str, Any], servers: Servers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = connect(with_standby)
    monkeypatch.setattr(transaction, "get_connection", lambda using=None: wrapper)
    with pytest.raises(InternalError, match="read-only transaction"), transaction.atomic():
        write(wrapper)
    with transaction.atomic():
        write(wrapper)
        assert ask(wrapper) == servers[1].port
    with pytest.raises(DatabaseError), transaction.atomic():
        ask(wrapper, "SELECT 1/0")
    assert ask(wrapper) == servers[1].port


def test_a_transaction_that_the_application_made_read_only_keeps_its_connection(
    servers: Servers, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = connect(of(servers))
    monkeypatch.setattr(transaction, "get_connection", lambda using=None: wrapper)
    assert ask(wrapper) == servers[0].port
    kept = wrapper.connection

    def write_in_read_only_transaction() -> None:
        with transaction.atomic():
            with wrapper.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
            write(wrapper)

    with pytest.raises(InternalError, match="read-only transaction"):
        write_in_read_only_transaction()
    assert ask(wrapper) == servers[0].port
    assert wrapper.connection is kept


def test_a_server_that_was_made_read_only_is_left_as_well(
    servers: Servers, server: Postgres, connect: Connect
) -> None:
    server.start(default_transaction_read_only="on")
    wrapper = connect(pools(server.options, servers[1].options))
    with pytest.raises(InternalError, match="read-only transaction"):
        write(wrapper)
    write(wrapper)
    assert ask(wrapper) == servers[1].port


def test_a_pool_drops_the_connection_to_a_standby(with_standby: dict[str, Any], connect: Connect) -> None:
    wrapper = connect(with_standby, {"pool": {"min_size": 1, "max_size": 1}})
    ask(wrapper)
    dropped = wrapper.connection
    with pytest.raises(InternalError, match="read-only transaction"):
        write(wrapper)
    assert dropped.closed
    assert ask(wrapper, "SELECT 1") == 1
    assert wrapper.connection is not dropped


def test_a_standby_is_never_connected_where_that_is_asked_for(
    with_standby: dict[str, Any], servers: Servers, connect: Connect
) -> None:
    wrapper = connect(with_standby, {"target_session_attrs": "read-write"})
    assert ask(wrapper) == servers[1].port
    assert failures() == (0, 0)


# ── the settings ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("upstream", "text"),
    [
        (
            None,
            r"^DATABASES\['default'\]\['OPTIONS'\]\['upstream'\] is missing: .*UPSTREAMS, which has 'databases'",
        ),
        (5, r"^DATABASES\['default'\]\['OPTIONS'\]\['upstream'\] must be text, not int"),
        ("other", r"^DATABASES\['default'\]\['OPTIONS'\]\['upstream'\]: .*no upstream 'other'.* has 'databases'"),
    ],
)
def test_a_wrong_upstream_is_named_by_its_path(connect: Connect, upstream: object, text: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=text):
        ask(connect({}, {"upstream": upstream}))


def test_a_wrong_setting_of_the_upstream_is_named_by_both_paths(connect: Connect) -> None:
    wrapper = connect({"p": {"timeout": -1}})
    with pytest.raises(ImproperlyConfigured, match=r"\['upstream'\]: UPSTREAMS\['databases'\].*timeout"):
        ask(wrapper)


def test_the_settings_are_left_as_they_are(connect: Connect) -> None:
    settings: dict[str, Any] = {"pool": True}
    wrapper = connect({}, settings)
    assert settings == {"pool": True}
    assert wrapper.copy().settings_dict["OPTIONS"]["upstream"] == "databases"


# ── commands ──────────────────────────────────────────────────────────────────────────────────


def run(command: list[object], servers: Servers, **environment: str) -> str:
    """A command of Django on a site whose first server is dead; what it printed."""
    with refusing() as dead:
        done = subprocess.run(
            python("-m", "django", *command),
            cwd=ROOT,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": ":".join([str(ROOT), *sys.path]),
                "DJANGO_SETTINGS_MODULE": "tests.contrib.django.db_project.settings",
                "DB_POOLS": json.dumps(pools(dead, servers[1].options)),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_migrate_goes_through_the_upstream(servers: Servers) -> None:
    with servers[1].connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS migrated")
        connection.execute("CREATE DATABASE migrated")
    assert "contenttypes.0002" in run(["migrate"], servers, DB_NAME="migrated")
    with closing(servers[1].connect(dbname="migrated")) as connection:
        assert connection.execute("SELECT count(*) FROM django_migrations").fetchone() == (2,)


def test_tests_make_their_database_through_the_upstream(servers: Servers) -> None:
    pattern = ["--pattern", "checks.py", "tests.contrib.django.db_project"]
    assert "Ran 1 test" in run(["test", "--noinput", *pattern], servers)


def test_dbshell_goes_to_a_server_that_works(servers: Servers) -> None:
    query = ["--", "-tAc", "SELECT inet_server_port()"]
    assert run(["dbshell", *query], servers).strip() == str(servers[1].port)
