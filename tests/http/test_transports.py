"""What all transports have to do, each on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import errno
import gc
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme

from resty_upstream import NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.http import exchange as exchanges
from resty_upstream.http.retries import RetryBudget
from resty_upstream.testing import FakeClock
from tests.contrib.cancelling import sockets_to
from tests.e2e.processes import ROOT, python, wait_until
from tests.helpers import open_upstream, refused, visit_in_vain
from tests.http.clients import ASYNC_CLIENTS, CLIENTS, NAME, AsyncClient, Opened
from tests.http.server import PART, Server, silent

Serve = Callable[..., tuple[Server, ...]]
IDEMPOTENT = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]
OTHERS = ["POST", "PATCH"]


@pytest.fixture(params=CLIENTS)
def opened(request: pytest.FixtureRequest) -> Opened:
    return CLIENTS[request.param]


@pytest.fixture(autouse=True)
def budget(monkeypatch: pytest.MonkeyPatch) -> RetryBudget:
    """One for each test: they fail more than any process should."""
    fresh = RetryBudget()
    monkeypatch.setattr(exchanges, "budget", fresh)
    return fresh


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of these names."""
    with contextlib.ExitStack() as stack:
        yield lambda *names, **options: tuple(stack.enter_context(Server(name, **options)) for name in names)


def pool(*servers: Server, **options: Any) -> dict[str, Any]:
    hosts = {server.name: {"host": "127.0.0.1", "port": server.port} for server in servers}
    return {"max_fails": 2, "failed_timeout": 300, **options, "hosts": hosts}


def upstream_of(*servers: Server, first: str = "", **options: Any) -> Upstream:
    """One pool, whose first host is asked first, if any is named."""
    if not first:
        return Upstream("memory://", pools={"p": pool(*servers, **options)})
    one = [server for server in servers if server.name == first]
    others = [server for server in servers if server.name != first]
    return Upstream(
        "memory://", pools={"first": pool(*one, **options), "then": pool(*others, priority=5, **options)}
    )


def fails(upstream: Upstream) -> dict[str, int]:
    return {
        host_id: host["failcount"]
        for each in upstream.get_pools().values()
        for host_id, host in each["hosts"].items()
        if host["failcount"]
    }


def methods(server: Server) -> list[str]:
    return [request.method for request in server.received]


def counted(upstream: Upstream, host_id: str, pool_id: str) -> tuple[int, int, dict[str, int]]:
    """Successes, retries, and those kinds of failures of which there were any."""
    counts = upstream.counts().hosts[pool_id, host_id]
    assert counts.in_flight == counts.ignored == 0
    return counts.successes, counts.retries, {kind: times for kind, times in counts.failures.items() if times}


# ── requests pass through ─────────────────────────────────────────────────────────────────────


def test_requests_pass_through_as_they_are(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    with opened(upstream_of(a)) as client:
        reply = client.request("PUT", "/echo?x=1&y=%2F", headers={"X-One": "1"}, content=b"body")
    assert (reply.status, reply.body, reply.host, reply.headers["X-Host"]) == (200, b"body", "a", "a")
    (request,) = a.received
    assert (request.method, request.path, request.body) == ("PUT", "/echo?x=1&y=%2F", b"body")
    assert (request.headers["host"], request.headers["x-one"]) == (NAME, "1")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("HEAD", "/", b""),
        ("GET", "/status/204", b""),
        ("GET", "/gzip", b"packed"),
        ("GET", "/chunked/3", 3 * PART),
        ("GET", "/status/404", b"status 404 of a"),
    ],
)
def test_answers_pass_through_as_they_are(
    opened: Opened, serve: Serve, method: str, path: str, body: bytes
) -> None:
    (a,) = serve("a")
    with opened(upstream_of(a)) as client:
        replies = [client.request(method, path) for _ in range(3)]
    assert [reply.body for reply in replies] == [body] * 3
    assert a.accepted == 1, "the connection is kept alive"


def test_all_hosts_are_used_by_weight(opened: Opened, serve: Serve) -> None:
    """At each request, though connections are kept alive."""
    a, b = serve("a", "b")
    pools = {"p": pool(a, b)}
    pools["p"]["hosts"]["a"]["weight"] = 3
    pools["p"]["hosts"]["b"]["weight"] = 1
    with opened(Upstream("memory://", pools=pools)) as client:
        for _ in range(40):
            client.request("GET", "/")
    assert (len(a.received), len(b.received)) == (30, 10)
    assert (a.accepted, b.accepted) == (1, 1)


def test_bodies_are_streamed_in_both_directions(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    with opened(upstream_of(a)) as client:
        assert client.request("POST", "/echo", content=iter([b"one", b"two"])).body == b"onetwo"
        assert a.received[0].headers["transfer-encoding"] == "chunked"
        with client.stream("GET", "/chunked/200") as (reply, parts):
            assert reply.status == 200
            assert sum(map(len, parts)) == 200 * len(PART)
        assert client.request("GET", "/").status == 200


@pytest.mark.parametrize("name", CLIENTS)
def test_a_gibibyte_goes_through_in_constant_memory(serve: Serve, name: str) -> None:
    """In a process of its own, whose memory nobody else needs; and a quarter of that the other way."""
    (a,) = serve("a")
    is_slow = "async" in name and "E2E_KILLS" not in os.environ
    size = 2**28 if is_slow else 2**30
    command = python("-m", "tests.http.large", name, a.port, size)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    received, sent, grown = map(int, done.stdout.split())
    assert (received, sent) == (size, size // 4)
    assert grown < 32 * 2**20


def test_a_host_may_say_that_a_body_is_welcome(opened: Opened, serve: Serve) -> None:
    a, b = serve("a", "b")
    a.statuses[:] = [503]
    upstream = upstream_of(a, b, first="a", status_codes=["503"])
    with opened(upstream) as client:
        for method, path in [("PUT", "/echo"), ("POST", "/echo")]:
            reply = client.request(method, path, headers={"Expect": "100-continue"}, content=b"body")
            assert reply.body == b"body"
    assert [(request.method, request.body) for request in a.received] == [("PUT", b"body"), ("POST", b"body")]
    assert [(request.method, request.body) for request in b.received] == [("PUT", b"body")]


def test_cookies_are_the_names_and_not_the_hosts(opened: Opened, serve: Serve) -> None:
    """What one host sets the next one gets, where the client keeps cookies at all."""
    a, b = serve("a", "b")
    with opened(upstream_of(a, b)) as client:
        reply = client.request("GET", "/cookie")
        assert reply.headers["Set-Cookie"] == "seen=1; Path=/"
        client.request("GET", "/")
    ((first,), (second,)) = (a.received, b.received) if reply.host == "a" else (b.received, a.received)
    assert "cookie" not in first.headers
    assert second.headers.get("cookie") == (None if opened is CLIENTS["urllib3"] else "seen=1")


def test_a_stream_that_is_left_harms_nothing(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    upstream = upstream_of(a, method="least_conn")
    with opened(upstream) as client:
        with client.stream("GET", "/chunked/2000") as (_, parts):
            next(iter(parts))
        assert client.request("GET", "/").status == 200
    assert not fails(upstream)
    assert under_way(upstream) == {"a": 0}


def under_way(upstream: Upstream) -> dict[str, int]:
    targets = upstream.replica.snapshot().targets.values()
    return {target.id: len(target.load.running) for target in targets if target.load is not None}


def test_a_request_is_under_way_until_its_answer_is_read(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    upstream = upstream_of(a, method="least_conn")
    with opened(upstream) as client, client.stream("GET", "/chunked/50") as (_, parts):
        assert under_way(upstream) == {"a": 1}
        assert len(b"".join(parts)) == 50 * len(PART)
    assert under_way(upstream) == {"a": 0}


def test_hosts_at_sockets_of_the_file_system(opened: Opened, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Server(path=path):
        upstream = Upstream("memory://", pools={"p": {"hosts": {"a": {"host": f"unix:{path}"}}}})
        with opened(upstream) as client:
            assert client.request("GET", "/").body == b"ok"


def test_redirects_stay_with_the_upstream(opened: Opened, serve: Serve) -> None:
    """Also to what has another name: hosts cannot send a client elsewhere."""
    a, elsewhere = serve("a", "elsewhere")
    with opened(upstream_of(a)) as client:
        assert client.request("GET", "/redirect/next/page", follow=True).body == b"ok"
        assert client.request("GET", f"/redirect/to/127.0.0.1:{elsewhere.port}/x", follow=True).body == b"ok"
    assert [request.path for request in a.received][1::2] == ["/next/page", "/x"]
    assert not elsewhere.received


def test_the_environment_has_no_say(opened: Opened, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    a, proxy = serve("a", "proxy")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    with opened(upstream_of(a)) as client:
        assert client.request("GET", "/").host == "a"
    assert not proxy.received


# ── failures ──────────────────────────────────────────────────────────────────────────────────

FATES = ["/drop", "/reset", "/garbage", "/half_head", "/hang", "/status/503"]


def test_a_host_that_refuses_is_left_by_any_method_and_any_body(opened: Opened, serve: Serve) -> None:
    """Nothing was sent: the body is untouched."""
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, first="a", max_fails=100)
    a.stop()
    with opened(upstream) as client:
        for method in [*IDEMPOTENT, *OTHERS]:
            assert client.request(method, "/").host == "b"
        assert client.request("POST", "/echo", content=iter([b"one", b"two"])).body == b"onetwo"
    assert methods(b) == [*IDEMPOTENT, *OTHERS, "POST"]
    assert fails(upstream) == {"a": 9}


@pytest.mark.parametrize("fate", FATES)
def test_what_may_be_repeated_goes_to_the_next_host(opened: Opened, serve: Serve, fate: str) -> None:
    a, b = serve("a", "b")
    a.paths[:] = [fate, fate]
    bad = pool(a, max_fails=100, read_timeout=200, status_codes=["503"])
    upstream = Upstream("memory://", pools={"first": bad, "then": pool(b, priority=5)})
    with opened(upstream) as client:
        reply = client.request("GET", "/")
        assert (reply.status, reply.body, reply.host, reply.headers["X-Host"]) == (200, b"ok", "b", "b")
        reply = client.request("POST", "/echo", headers={"Idempotency-Key": "7"}, content=b"body")
        assert (reply.body, reply.host) == (b"body", "b")
    assert [request.body for request in a.received] == [request.body for request in b.received] == [b"", b"body"]
    assert fails(upstream) == {"a": 2}


def _tuple(errors: Any) -> tuple[type[Exception], ...]:
    return errors if isinstance(errors, tuple) else (errors,)


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(("method", "content"), [("POST", b"body"), ("PUT", "parts")])
def test_what_may_not_be_repeated_is_sent_once(
    opened: Opened, serve: Serve, fate: str, method: str, content: Any
) -> None:
    """A method that is not idempotent, or a body that is there only once; the failure counts."""
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, max_fails=100, read_timeout=200, status_codes=["5xx"])
    body = iter([b"one", b"two"]) if content == "parts" else content
    with opened(upstream) as client:
        if fate.startswith("/status"):
            assert client.request(method, fate, content=body).status == 503
        else:
            with pytest.raises(client.error) as raised:
                client.request(method, fate, content=body)
            assert not isinstance(raised.value, NoHostAvailable)
    assert len(a.received) + len(b.received) == 1
    assert fails(upstream) == {(a.received and "a") or "b": 1}


def test_a_bad_status_moves_to_the_next_pool(opened: Opened, serve: Serve) -> None:
    a, b = serve("a", "b")
    a.statuses[:] = [503, 500, 404]
    upstream = upstream_of(a, b, first="a", max_fails=100, status_codes=["50x"])
    with opened(upstream) as client:
        replies = [client.request("GET", "/") for _ in range(3)]
    assert [(reply.host, reply.status) for reply in replies] == [("b", 200), ("b", 200), ("a", 404)]


def test_by_default_every_status_is_an_answer(opened: Opened, serve: Serve) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b)
    with opened(upstream) as client:
        assert client.request("GET", "/status/503").status == 503
    assert not fails(upstream)


def test_a_hosts_own_check_says_which_statuses_are_bad(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    pools = {"p": pool(a, status_codes=["503"])}
    pools["p"]["hosts"]["a"]["healthcheck"] = {"type": "http", "status_codes": ["404"], "interval": 86_400}
    upstream = Upstream("memory://", pools=pools)
    with opened(upstream) as client:
        client.request("GET", "/status/503")
        assert not fails(upstream)
        client.request("GET", "/status/404")
    assert fails(upstream) == {"a": 1}


def test_when_all_answer_badly_the_last_answer_is_returned(opened: Opened, serve: Serve) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, first="a", max_fails=100, status_codes=["5xx"])
    with opened(upstream) as client:
        reply = client.request("GET", "/status/502")
        assert (reply.status, reply.body, reply.host) == (502, b"status 502 of b", "b")
        b.stop()
        reply = client.request("GET", "/status/502")
        assert (reply.status, reply.body, reply.host) == (502, b"status 502 of a", "a"), "it is a real one"


@pytest.mark.parametrize("after", ["30", "date"])
def test_a_host_that_asks_to_be_left_alone_is(opened: Opened, serve: Serve, after: str) -> None:
    a, b = serve("a", "b")
    if after == "date":
        moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=10)
        after = quote(moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    upstream = upstream_of(a, b, max_fails=100, failed_timeout=1, failed_timeout_max=30, status_codes=["503"])
    with opened(upstream) as client:
        client.request("GET", "/status/503/" + after)
        up = [host["up"] for host in upstream.get_pools()["p"]["hosts"].values()]
    assert up.count(False) == 1, "and never more than half of a pool"


@pytest.mark.parametrize(("fate", "hint"), [("refused", 504), ("/hang", 504), ("/drop", 502), ("/garbage", 502)])
def test_the_hint_says_whether_any_host_was_reached(opened: Opened, serve: Serve, fate: str, hint: int) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, read_timeout=100)
    if fate == "refused":
        a.stop()
        b.stop()
    with opened(upstream) as client, pytest.raises(client.error) as raised:
        client.request("GET", fate)
    assert isinstance(raised.value, NoHostAvailable)
    assert raised.value.status_hint == hint
    assert {attempt.host.id for attempt in raised.value.attempts} == {"a", "b"}


def test_the_deadline_is_for_all_attempts(opened: Opened, serve: Serve) -> None:
    """Also where a host sends a byte now and then."""
    a, b, c = serve("a", "b", "c")
    pools = {"p": pool(a, b, c, read_timeout=10_000)}
    upstream = Upstream("memory://", pools=pools, total_timeout=250)
    with opened(upstream) as client:
        for fate in ("/hang", "/drip"):
            with pytest.raises(client.error):
                client.request("GET", fate)
            assert sum(len(server.received) for server in (a, b, c)) == 1
            for server in (a, b, c):
                server.received.clear()


def test_a_host_that_accepts_and_never_answers_is_out_after_max_fails(opened: Opened, serve: Serve) -> None:
    """And each request is answered by another."""
    (b,) = serve("b")
    with silent() as options:
        first = {"max_fails": 2, "failed_timeout": 300, "read_timeout": 100, "hosts": {"a": options}}
        upstream = Upstream("memory://", pools={"first": first, "then": pool(b, priority=5)})
        with opened(upstream) as client:
            assert [client.request("GET", "/").host for _ in range(2)] == ["b", "b"]
            assert upstream.get_pools()["first"]["hosts"]["a"]["up"] is False
            assert client.request("POST", "/").host == "b"


def test_an_upload_that_takes_too_long_is_no_failure_of_the_host(opened: Opened, serve: Serve) -> None:
    def body() -> Iterator[bytes]:
        yield b"one"
        time.sleep(0.2)
        yield b"two"

    (a,) = serve("a")
    upstream = Upstream("memory://", pools={"p": pool(a)}, total_timeout=100)
    with opened(upstream) as client, contextlib.suppress(*_tuple(client.error)):
        client.request("POST", "/hang", content=body())
    assert not fails(upstream)


def test_the_callers_own_timeout_counts_for_nothing(opened: Opened, serve: Serve) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b)
    with opened(upstream) as client, pytest.raises(client.error):
        client.request("GET", "/hang", timeout=0.1)
    assert len(a.received) + len(b.received) == 1
    assert not fails(upstream)


def test_a_body_that_drips_takes_as_long_as_it_likes(opened: Opened, serve: Serve) -> None:
    """Longer than one read and than all attempts up to its head: the host is well, and so is the connection."""
    (a,) = serve("a")
    upstream = Upstream("memory://", pools={"p": pool(a, read_timeout=300, max_fails=1)}, total_timeout=320)
    with opened(upstream) as client:
        assert client.request("GET", "/trickle/17").body == 17 * b"x"
        assert not fails(upstream)
        assert client.request("GET", "/").host == "a"
    assert a.accepted == 1
    assert counted(upstream, "a", "p") == (2, 0, {})


def test_a_body_that_stalls_is_the_clients_own_timeout_and_not_repeated(
    opened: Opened, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """And a failure of the host, whether the body is read at once or in parts."""
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, first="a", read_timeout=200)
    with opened(upstream) as client:
        with pytest.raises(client.late):
            client.request("GET", "/half/hang")
        assert fails(upstream) == {"a": 1}
        with client.stream("GET", "/half/hang") as (reply, parts), pytest.raises(client.late):
            list(parts)
    assert (reply.status, reply.host) == (200, "a")
    assert [request.path for request in a.received] == ["/half/hang", "/half/hang"]
    assert not b.received
    assert not upstream.get_pools()["first"]["hosts"]["a"]["up"]
    assert "in the middle of an answer: timed out" in caplog.text


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_body_that_breaks_off_is_a_failure_and_not_repeated(opened: Opened, serve: Serve, how: str) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b)
    with opened(upstream) as client, pytest.raises(client.error):
        client.request("GET", f"/half/{how}")
    assert len(a.received) + len(b.received) == 1
    assert sum(fails(upstream).values()) == 1


def test_a_host_whose_bodies_break_off_goes_down(opened: Opened, serve: Serve) -> None:
    """Though it begins every answer well."""
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, first="a", max_fails=3)
    with opened(upstream) as client:
        for _ in range(3):
            with pytest.raises(client.error):
                client.request("GET", "/half/close")
        assert client.request("GET", "/").host == "b"
    assert not upstream.get_pools()["first"]["hosts"]["a"]["up"]


def test_a_host_whose_heads_drip_goes_down(opened: Opened, serve: Serve) -> None:
    """Slow as it is, this process is not to blame."""
    (a,) = serve("a")
    upstream = Upstream(
        "memory://", pools={"p": pool(a, read_timeout=50, timeout=50, max_fails=1)}, total_timeout=1300
    )
    with opened(upstream) as client, pytest.raises(client.error):
        client.request("GET", "/drip")
    assert not upstream.get_pools()["p"]["hosts"]["a"]["up"]


def test_a_success_clears_what_was_counted(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    upstream = upstream_of(a, max_fails=3)
    with opened(upstream) as client:
        with pytest.raises(client.error):
            client.request("GET", "/drop")
        assert fails(upstream) == {"a": 1}
        assert client.request("GET", "/").status == 200
    assert not fails(upstream)


def test_what_is_this_machines_fault_is_the_clients_error_and_counts_for_nothing(
    opened: Opened, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b)

    def no_socket(*_args: Any, **_options: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with opened(upstream) as client:
        monkeypatch.setattr(socket, "socket", no_socket)
        with pytest.raises(client.error):
            client.request("GET", "/")
        monkeypatch.undo()
    assert not fails(upstream)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_socket_of_the_file_system_that_is_missing_could_not_be_reached(opened: Opened, tmp_path: Path) -> None:
    host = {"host": f"unix:{tmp_path}/none"}
    upstream = Upstream("memory://", pools={"p": {"hosts": {"a": host}}})
    with opened(upstream) as client, pytest.raises(client.error) as raised:
        client.request("GET", "/")
    assert isinstance(raised.value, NoHostAvailable)
    assert raised.value.status_hint == 504
    del raised
    gc.collect()  # httpcore leaves the socket to the collector


def test_a_bug_of_the_caller_counts_for_nothing(opened: Opened, serve: Serve) -> None:
    def body() -> Iterator[bytes]:
        yield b"one"
        raise KeyError("bug")

    a, b = serve("a", "b")
    upstream = upstream_of(a, b)
    with opened(upstream) as client, pytest.raises(KeyError):
        client.request("POST", "/echo", content=body())
    assert not fails(upstream)


def test_a_budget_bounds_what_is_sent_again(opened: Opened, serve: Serve, budget: RetryBudget) -> None:
    """When all hosts are in trouble they are not to get twice as much."""
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, max_fails=0, status_codes=["503"])
    with opened(upstream) as client:
        for _ in range(100):
            assert client.request("GET", "/status/503").status == 503
    again = len(a.received) + len(b.received) - 100
    assert 30 <= again <= 0.2 * 100 + 30


# ── connections that were kept alive ──────────────────────────────────────────────────────────


def race(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next requests on connections that are there already meet a host that closes them."""
    serve = Server._answer

    def answer(self: Server, connection: Any, request: Any) -> None:
        if self is server and request.connection <= old and request.path != "/first":
            self._answer_drop(connection, request)
        serve(self, connection, request)

    old = server.accepted
    monkeypatch.setattr(Server, "_answer", answer)


def test_a_connection_that_was_closed_in_the_meantime_is_no_failure(
    opened: Opened, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same host is asked once more, on a new connection."""
    (a,) = serve("a")
    upstream = upstream_of(a, max_fails=1)
    with opened(upstream) as client:
        client.request("GET", "/first")
        race(a, monkeypatch)
        assert client.request("GET", "/then").host == "a"
    assert [(request.path, request.connection) for request in a.received] == [
        ("/first", 1),
        ("/then", 1),
        ("/then", 2),
    ]
    assert not fails(upstream)


def test_what_may_not_be_repeated_is_not_sent_again_on_another_connection(
    opened: Opened, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = serve("a")
    upstream = upstream_of(a, max_fails=1)
    with opened(upstream) as client:
        client.request("GET", "/first")
        race(a, monkeypatch)
        with pytest.raises(client.error):
            client.request("POST", "/then", content=b"body")
    assert methods(a) == ["GET", "POST"]
    assert not fails(upstream)


def test_a_host_that_was_restarted_is_used_at_once(opened: Opened, serve: Serve) -> None:
    a = Server("a").__enter__()
    with opened(upstream_of(a, max_fails=1)) as client:
        client.request("POST", "/first", content=b"body")
        a.stop()
        with Server("a", port=a.port):
            assert client.request("POST", "/then", content=b"body").status == 200


def test_idle_connections_are_kept_as_the_pool_says(opened: Opened, serve: Serve) -> None:
    (a,) = serve("a")
    with opened(upstream_of(a, keepalive_pool=0)) as client:
        for _ in range(3):
            client.request("GET", "/")
    assert a.accepted == 3
    (b,) = serve("b")
    with opened(upstream_of(b, keepalive_timeout=1)) as client:
        for _ in range(3):
            client.request("GET", "/")
            time.sleep(0.02)
    assert b.accepted == 3


def test_nothing_is_left_open_when_a_client_is_closed(opened: Opened, serve: Serve) -> None:
    a, b = serve("a", "b")
    with opened(upstream_of(a, b)) as client:
        for _ in range(4):
            client.request("GET", "/")
        assert a.open_connections + b.open_connections == 2
    wait_until(lambda: a.open_connections + b.open_connections == 0, "all connections are closed")


def test_hosts_that_come_and_go_leave_nothing_behind(opened: Opened, serve: Serve) -> None:
    """Changes of the pool, thousands of them, keep neither connections nor memory."""
    a, b = serve("a", "b")
    upstream = upstream_of(a)
    api = UpstreamAPI(upstream)
    with opened(upstream) as client:
        for number in range(150):
            api.add_host("p", id="b", host="127.0.0.1", port=b.port, weight=1)
            assert client.request("GET", f"/{number}").host == "b"
            api.remove_host("p", "b")
            assert client.request("GET", f"/{number}").host == "a"
        assert b.open_connections <= 1
        assert a.open_connections == 1


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_certificates_are_for_the_name_in_the_url(opened: Opened, serve: Serve, authority: trustme.CA) -> None:
    """Not for the addresses of hosts; one with another name, or that is out of date, is a failure of the host."""
    good, wrong, old, foreign = (
        serve(name, tls=tls)[0]
        for name, tls in {
            "good": certified(authority, NAME),
            "wrong": certified(authority, "other.internal", "127.0.0.1"),
            "old": certified(authority, NAME, not_after=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
            "foreign": certified(trustme.CA(), NAME),
        }.items()
    )
    for bad in (wrong, old, foreign):
        upstream = upstream_of(bad, good, first=bad.name, max_fails=100)
        with opened(upstream, verify=trusting(authority)) as client:
            assert client.request("POST", "/echo", content=b"secret").host == "good"
        assert fails(upstream) == {bad.name: 1}
        assert not bad.received


def test_pools_say_how_to_speak_tls(opened: Opened, serve: Serve, authority: trustme.CA) -> None:
    (a,) = serve("a", tls=certified(authority, "inside.internal"))
    named = upstream_of(a, ssl=True, sni_host="inside.internal")
    with opened(named, verify=trusting(authority)) as client:
        assert client.request("GET", "/").host == "a"
    unverified = upstream_of(a, ssl=True, ssl_verify=False)
    with opened(unverified) as client:
        assert client.request("GET", "/").host == "a"
    with opened(upstream_of(a, ssl=True)) as client, pytest.raises(client.error):
        client.request("GET", "/")


# ── counters ──────────────────────────────────────────────────────────────────────────────────

KINDS = {
    "/drop": "reset",
    "/reset": "reset",
    "/hang": "timeout",
    "/status/503": "bad_answer",
    "/garbage": "bad_answer",
}


@pytest.mark.parametrize("fate", KINDS)
def test_attempts_are_counted_by_what_became_of_them(opened: Opened, serve: Serve, fate: str) -> None:
    a, b = serve("a", "b")
    upstream = upstream_of(a, b, first="a", max_fails=100, read_timeout=200, status_codes=["503"])
    with opened(upstream) as client:
        client.request("GET", "/")
        with contextlib.suppress(*_tuple(client.error)):
            client.request("GET", fate)
    assert counted(upstream, "a", "first") == (1, 0, {KINDS[fate]: 1})
    assert counted(upstream, "b", "then") == (0, 1, {KINDS[fate]: 1})


# ── cancelling ────────────────────────────────────────────────────────────────────────────────


async def cancel(client: AsyncClient, path: str, step: int) -> bool:
    """Cancel a request some turns of the event loop later, and then milliseconds; whether it was not done yet."""
    asking = asyncio.ensure_future(client.arequest("GET", path))
    for _ in range(min(step, 20)):
        await asyncio.sleep(0)
    if step > 20:
        await asyncio.sleep((step - 20) / 1000)
    asking.cancel()
    await asyncio.wait([asking])
    return asking.cancelled()


async def only_one_is_open(server: Server) -> None:
    await asyncio.to_thread(wait_until, lambda: len(sockets_to(server.port)) == 1, "what was cancelled is closed")


@pytest.mark.parametrize("path", ["/", "/hang", "/drip", "/half/hang", "/chunked/1000", "https"])
@pytest.mark.parametrize("name", ASYNC_CLIENTS)
def test_cancelled_at_any_point_nothing_is_left_open_and_nothing_counts(
    name: str, path: str, serve: Serve, authority: trustme.CA
) -> None:
    """No socket, nothing under way, no failure, no lease of the only one who may probe; and the next goes well."""
    is_tls = path == "https"
    (a,) = serve("a", tls=certified(authority, NAME) if is_tls else None)

    async def cancel_and_go_on(client: AsyncClient, step: int) -> bool:
        cancelled = await cancel(client, "/hang" if is_tls else path, step)
        assert under_way(upstream) == {"a": 0}
        assert (await client.arequest("GET", "/")).host == "a"
        await only_one_is_open(a)
        return cancelled

    cancelled = 0
    for step in range(30):
        clock = FakeClock()
        upstream = open_upstream({"p": pool(a, method="least_conn", max_fails=1)}, clock, last_resort=False)
        visit_in_vain(upstream, {"a": refused})
        clock.advance(600)
        with CLIENTS[name](upstream, verify=trusting(authority) if is_tls else None) as client:
            assert isinstance(client, AsyncClient)
            cancelled += client.run(cancel_and_go_on(client, step))
    assert cancelled >= 3
    wait_until(lambda: not sockets_to(a.port), "all sockets are closed")


@pytest.mark.parametrize("name", ASYNC_CLIENTS)
def test_cancelled_just_when_the_handshake_is_over_the_next_goes_well(
    name: str, serve: Serve, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed by nobody but the transport that the event loop knows."""
    (a,) = serve("a", tls=certified(authority, NAME))
    upstream = upstream_of(a, max_fails=1, timeout=10_000)
    shake = ssl.SSLObject.do_handshake

    async def run(client: AsyncClient) -> None:
        asking = asyncio.ensure_future(client.arequest("GET", "/first"))

        def cancelling(of: ssl.SSLObject) -> None:
            shake(of)
            asking.cancel()

        monkeypatch.setattr(ssl.SSLObject, "do_handshake", cancelling)
        await asyncio.wait([asking])
        assert asking.cancelled()
        monkeypatch.undo()
        assert (await client.arequest("GET", "/then")).host == "a"
        await only_one_is_open(a)

    with CLIENTS[name](upstream, verify=trusting(authority)) as client:
        assert isinstance(client, AsyncClient)
        client.run(run(client))
    assert [request.path for request in a.received] == ["/then"]
    assert not fails(upstream)
