"""Django's cache contract over the hosts of an upstream, against Redis processes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import InvalidCacheBackendError
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import override_settings
from redis.exceptions import AuthenticationError, ConnectionError, ReadOnlyError

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.django import get_upstream
from resty_upstream.contrib.django.cache import RedisCache
from tests.contrib.servers import Server, Servers, failcounts, servers
from tests.e2e.processes import ROOT, python, wait_until
from tests.helpers import refusing

__all__ = ["servers"]

AT_ONCE = ("--repl-diskless-sync-delay", "0")  # replicas get their data
BACKEND = "resty_upstream.contrib.django.cache.RedisCache"


def upstreams_setting(*hosts: Server | dict[str, Any], **pool: Any) -> dict[str, Any]:
    """The setting, with an upstream that tries its hosts in the order given."""
    pools = {
        str(index): {
            "priority": index,
            "timeout": 500,
            **pool,
            "hosts": {"abcdef"[index]: host.options if isinstance(host, Server) else host},
        }
        for index, host in enumerate(hosts)
    }
    return {"cache": {"STORE": "memory://", "POOLS": pools}}


Configure = Callable[..., Any]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Sets ``UPSTREAMS`` and ``CACHES``, and gives the default cache."""
    with ExitStack() as stack:

        def make(
            upstreams: dict[str, Any], location: Any = "upstream://cache", options: Any = None, **params: Any
        ) -> Any:
            entry = {"BACKEND": BACKEND, "LOCATION": location, "OPTIONS": options or {}, **params}
            stack.enter_context(override_settings(UPSTREAMS=upstreams, CACHES={"default": entry}))
            cache = caches["default"]
            stack.callback(disconnect, cache)
            return cache

        yield make


def disconnect(cache: Any) -> None:
    for _, pool in cache._cache._pools_of.values():
        pool.disconnect()


@pytest.fixture
def cache(configure: Configure, servers: Servers) -> Any:
    """A cache whose first host is dead."""
    return configure(upstreams_setting({"host": "127.0.0.1", "port": 1}, servers.redis()))


def port_of(cache: Any) -> int:
    """The port of the Redis that answers."""
    return int(cache._cache.get_client(write=True).config_get("port")["port"])


# ── the contract ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["text", b"bytes", 1, -1, 1.5, True, None, [1, {"a": (2,)}], {"key": "value"}])
def test_what_is_set_is_got(cache: Any, value: object) -> None:
    cache.set("key", value)
    got = cache.get("key", "default")
    assert got == value
    assert type(got) is type(value)


def test_what_is_not_there_is_the_default(cache: Any) -> None:
    assert cache.get("none") is None
    assert cache.get("none", "default") == "default"
    assert not cache.has_key("none")
    assert "none" not in cache
    assert cache.delete("none") is False
    assert cache.touch("none") is False
    with pytest.raises(ValueError, match="none"):
        cache.incr("none")


def test_adding_sets_only_what_is_not_there(cache: Any) -> None:
    assert cache.add("key", 1)
    assert not cache.add("key", 2)
    assert cache.get("key") == 1
    assert cache.delete("key") is True
    assert cache.get_or_set("key", lambda: 3) == 3


def test_numbers_are_counted(cache: Any) -> None:
    cache.set("key", 41)
    assert cache.incr("key") == 42
    assert cache.decr("key", 2) == 40
    assert cache.get("key") == 40


def test_many_at_once(cache: Any) -> None:
    assert cache.set_many({"a": 1, "b": [2], "c": "3"}) == []
    assert cache.get_many(["a", "b", "none"]) == {"a": 1, "b": [2]}
    cache.delete_many(["a", "b"])
    assert cache.get_many(["a", "b", "c"]) == {"c": "3"}
    cache.clear()
    assert cache.get_many(["a", "b", "c"]) == {}


def test_timeouts(cache: Any) -> None:
    def ttl(key: str) -> int:
        return int(cache._cache.get_client().ttl(cache.make_key(key)))

    cache.set("default", 1)
    cache.set("short", 1, timeout=10)
    cache.set("always", 1, timeout=None)
    cache.set("gone", 1, timeout=0)
    cache.set_many({"many": 1}, timeout=20)
    assert 290 < ttl("default") <= 300
    assert 0 < ttl("short") <= 10
    assert ttl("always") == -1
    assert cache.get("gone") is None
    assert 0 < ttl("many") <= 20
    assert cache.touch("short", 100)
    assert 10 < ttl("short") <= 100
    assert cache.touch("short", None)
    assert ttl("short") == -1
    assert cache.touch("short", 0)
    assert cache.get("short") is None
    assert cache.add("added", 1, timeout=0)
    assert cache.get("added") is None


def test_versions(cache: Any) -> None:
    cache.set("key", "one")
    cache.set("key", "two", version=2)
    assert (cache.get("key"), cache.get("key", version=2)) == ("one", "two")
    assert cache.incr_version("key") == 2
    assert (cache.get("key"), cache.get("key", version=2)) == (None, "one")


def test_prefixes_and_other_parameters(configure: Configure, servers: Servers) -> None:
    upstreams = upstreams_setting(servers.redis())
    cache = configure(upstreams, KEY_PREFIX="site", VERSION=7, TIMEOUT=None)
    cache.set("key", 1)
    client = cache._cache.get_client()
    assert client.keys("*") == [b"site:7:key"]
    assert client.ttl("site:7:key") == -1


@pytest.mark.anyio
async def test_the_asynchronous_methods(cache: Any) -> None:
    await cache.aset("key", 1)
    assert await cache.aincr("key") == 2
    assert await cache.aget("key") == 2


# ── failover ──────────────────────────────────────────────────────────────────────────────────


def upstream() -> Upstream:
    return get_upstream("cache")


def test_hosts_that_are_killed_and_come_back(configure: Configure, servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    cache = configure(upstreams_setting(a, b))
    cache.set("key", "a")
    a.kill()
    assert cache.get("key") is None
    assert port_of(cache) == b.port
    assert failcounts(upstream()) == [1, 0]
    a.start()
    disconnect(cache)
    assert port_of(cache) == a.port
    assert failcounts(upstream()) == [0, 0]


def test_a_host_that_is_stopped(configure: Configure, servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    cache = configure(upstreams_setting(a, b, timeout=150), options={"socket_timeout": 0.2})
    assert port_of(cache) == a.port
    a.stop()
    with pytest.raises(Exception, match="Timeout"):
        cache.get("key")
    assert cache.get("key") is None
    assert port_of(cache) == b.port
    assert failcounts(upstream()) == [1, 0]
    a.go_on()


def test_a_host_that_became_a_replica(configure: Configure, servers: Servers) -> None:
    a, b = servers.redis(), servers.redis(*AT_ONCE)
    cache = configure(upstreams_setting(a, b))
    cache.set("key", 1)
    a.ask(b"REPLICAOF 127.0.0.1 %d" % b.port)
    wait_until(lambda: b"master_link_status:up" in a.ask(b"INFO replication"), "a replica in sync")
    with pytest.raises(ReadOnlyError):
        cache.set("key", 2)
    cache.set("key", 3)
    assert port_of(cache) == b.port


def test_no_host_is_left(configure: Configure) -> None:
    with refusing() as a:
        cache = configure(upstreams_setting(a))
        with pytest.raises(ConnectionError, match="upstream cache: no host is available") as caught:
            cache.get("key")
    assert isinstance(caught.value.__cause__, NoHostAvailable)


def test_reads_go_to_the_other_locations(configure: Configure, servers: Servers) -> None:
    """As with Django's own: the first location is written to."""
    master = servers.redis(*AT_ONCE)
    replica = servers.redis("--replicaof", f"127.0.0.1 {master.port}")
    wait_until(lambda: b"master_link_status:up" in replica.ask(b"INFO replication"), "a replica in sync")
    setting = {
        "primary": upstreams_setting(master)["cache"],
        "replicas": upstreams_setting({"host": "127.0.0.1", "port": 1}, replica)["cache"],
    }
    cache = configure(setting, ["upstream://primary/0", "upstream://replicas/0"])
    cache.set("key", 1)
    wait_until(lambda: cache.get("key") == 1, "the value at the replica")
    assert cache._cache.get_client().config_get("port")["port"] == str(replica.port)
    assert port_of(cache) == master.port


# ── the location ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("upstream://web:s%40crt@cache/3?socket_timeout=5", {}),
        ("upstream://cache/3", {"username": "web", "password": "s@crt"}),
        ("upstream://cache?db=3", {"username": "web", "password": "s@crt"}),
        ("upstream://cache", {"username": "web", "password": "s@crt", "db": 3}),
    ],
)
def test_users_and_databases(
    configure: Configure, servers: Servers, location: str, options: dict[str, Any]
) -> None:
    a = servers.redis()
    a.ask(b"ACL SETUSER web on >s@crt ~* +@all")
    a.ask(b"ACL SETUSER default -@all +ping +info")
    cache = configure(upstreams_setting(a), location, options)
    cache.set("key", 1)
    client = cache._cache.get_client()
    assert client.acl_whoami() == "web"
    assert list(client.info("keyspace")) == ["db3"]


def test_a_wrong_password_counts_against_nobody(configure: Configure, servers: Servers) -> None:
    cache = configure(upstreams_setting(servers.redis("--requirepass", "right")), "upstream://:wrong@cache")
    with pytest.raises(AuthenticationError):
        cache.get("key")
    assert failcounts(upstream()) == [0]


WRONG = [
    ("", "LOCATION must be like 'upstream://cache'.*; not one without a scheme"),
    ("cache", "LOCATION must be like .*; not one without a scheme"),
    ("redis://:secret@127.0.0.1:6379/1", "LOCATION must be like .*; not redis://127.0.0.1:6379/1"),
    ("upstream://", "LOCATION must be like .*; not upstream://$"),
    ("upstream://cache:6379", "LOCATION must be like .*; not upstream://cache:6379"),
    ("upstream://cache:x", "LOCATION must be like .*: Port could not be cast"),
    ("upstream://cache/main", "LOCATION upstream://cache/main: the path must be the number of a database"),
    ("upstream://cache/1/2", "LOCATION upstream://cache/1/2: the path must be the number of a database"),
    ("upstream://cache?socket_timeout=soon", "LOCATION upstream://cache: Invalid value for 'socket_timeout'"),
    ("upstream://cache?ssl=perhaps", "LOCATION upstream://cache: ssl must be true or false, not 'perhaps'"),
    (
        "upstream://cash",
        "LOCATION upstream://cash: there is no upstream 'cash': .* UPSTREAMS has 'cache'",
    ),
    (["upstream://cache", 5], "LOCATION must be like .*; not int"),
    ([], r"LOCATION must be like .*; not \[\]"),
    ("upstream://cache?socket_connect_timeout=1", "upstream://cache: socket_connect_timeout .*`timeout`"),
]


@pytest.mark.parametrize(("location", "message"), WRONG)
def test_a_location_that_is_wrong_is_named(location: Any, message: str) -> None:
    entry = {"BACKEND": BACKEND, "LOCATION": location}
    with override_settings(UPSTREAMS=upstreams_setting({"host": "a.test"}), CACHES={"default": entry}):
        with pytest.raises(ImproperlyConfigured, match=message) as caught:
            caches["default"]
        assert "secret" not in str(caught.value)
        with pytest.raises((ImproperlyConfigured, InvalidCacheBackendError)):
            call_command("check")


def test_options_that_the_upstream_decides_are_named() -> None:
    entry = {"BACKEND": BACKEND, "LOCATION": "upstream://cache", "OPTIONS": {"host": "127.0.0.1"}}
    with override_settings(UPSTREAMS=upstreams_setting({"host": "a.test"})):
        handler = CacheHandler({"default": entry})
        with pytest.raises(ImproperlyConfigured, match="upstream://cache: host is not an option"):
            handler["default"]


def test_the_setting_is_read_when_the_cache_is_used(configure: Configure, servers: Servers) -> None:
    a, b = servers.redis(), servers.redis()
    cache = configure(upstreams_setting(a))
    assert port_of(cache) == a.port
    with override_settings(UPSTREAMS=upstreams_setting(b)):
        assert port_of(cache) == b.port
    with override_settings(UPSTREAMS={}), pytest.raises(ImproperlyConfigured, match="UPSTREAMS has nothing"):
        cache.get("key")


def test_a_serializer_and_a_pool_class_of_the_users_own(configure: Configure, servers: Servers) -> None:
    options = {
        "serializer": "tests.contrib.django.test_cache.Reversed",
        "pool_class": "resty_upstream.contrib.redis.UpstreamConnectionPool",
    }
    cache = configure(upstreams_setting(servers.redis()), options=options)
    cache.set("key", "abc")
    assert cache.get("key") == "abc"
    assert cache._cache.get_client().get(cache.make_key("key")) == b"cba"


class Reversed:
    def dumps(self, value: str) -> bytes:
        return value[::-1].encode()

    def loads(self, data: bytes) -> str:
        return data.decode()[::-1]


def test_a_checker_knows_the_cache() -> None:
    """mypy, strict, infers each type that the file asserts."""
    files = [Path(__file__).with_name("typed_cache.py"), Path(__file__).parent.parent / "typed_clients.py"]
    done = subprocess.run(
        python("-m", "mypy", "--strict", *files),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_one_of_djangos_own() -> None:
    from django.core.cache.backends.redis import RedisCache as OfDjango

    assert issubclass(RedisCache, OfDjango)
