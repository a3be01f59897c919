"""The transport for urllib3, and what it shares with the one for requests."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import urllib3

from resty_upstream import NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.contrib.urllib3 import UpstreamPoolManager
from tests.helpers import hanging, health, no_descriptors_left, refusing
from tests.http.clients import Reply
from tests.http.clients_requests import requests_client, urllib3_client
from tests.http.server import Server

URL = "http://users.internal"

both = pytest.mark.parametrize("opened", [requests_client, urllib3_client])


def open_upstream(hosts: dict[str, Any], *, total_timeout: str = "15s", **pool: Any) -> Upstream:
    """An upstream of servers, or of options of hosts, that fail at once."""
    upstream = Upstream("memory://", total_timeout=total_timeout)
    options = {
        host_id: host if isinstance(host, dict) else {"host": "127.0.0.1", "port": host.port}
        for host_id, host in hosts.items()
    }
    defaults = {"timeout": 2000, "read_timeout": 5000, "status_codes": ["5xx"], "method": "round_robin"}
    upstream.configure({"p": {**defaults, **pool, "hosts": options}})
    return upstream


def first(upstream: Upstream, *host_ids: str) -> None:
    """Let the next request begin at one of these hosts: the others are spare."""
    for host_id in upstream.get_pools()["p"]["hosts"]:
        UpstreamAPI(upstream).set_weight("p", host_id, 10 if host_id in host_ids else 0)


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts a server that is stopped when the test is over."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Server(*args, **options))


@pytest.fixture
def pair(start: Callable[..., Server]) -> tuple[Upstream, Server, Server]:
    """An upstream of two servers, of which ``a`` is asked first."""
    a, b = start("a"), start("b")
    upstream = open_upstream({"a": a, "b": b})
    first(upstream, "a")
    return upstream, a, b


Pair = tuple[Upstream, Server, Server]


def failcounts(upstream: Upstream) -> dict[str, int]:
    return {host_id: health(upstream, host_id)["failcount"] for host_id in upstream.get_pools()["p"]["hosts"]}


# ── failover ──────────────────────────────────────────────────────────────────────────────────


@both
def test_a_body_that_raises_is_the_callers_fault(opened: Any, pair: Pair) -> None:
    upstream, _, _ = pair

    def body() -> Iterator[bytes]:
        yield b"one"
        raise ConnectionResetError("where the body comes from")

    with opened(upstream) as client, pytest.raises(ConnectionResetError, match="where the body comes from"):
        client.request("PUT", "/x", content=body())
    assert failcounts(upstream) == {"a": 0, "b": 0}


@both
def test_where_no_host_is_left_the_clients_error_has_the_attempts(opened: Any) -> None:
    with refusing() as dead, refusing() as dead2:
        upstream = open_upstream({"a": dead, "b": dead2})
        with opened(upstream) as client, pytest.raises(NoHostAvailable) as caught:
            client.request("POST", "/x", content=b"data")
    assert isinstance(caught.value, client.error)
    assert caught.value.status_hint == 504
    assert [attempt.outcome for attempt in caught.value.attempts] == ["failed", "failed"]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.status_hint) == (type(caught.value), str(caught.value), 504)


@both
def test_a_host_that_does_not_accept_is_given_up_after_the_pools_timeout(opened: Any, start: Any) -> None:
    b = start("b")
    with hanging() as stuck:
        upstream = open_upstream({"a": stuck, "b": b}, timeout=100)
        first(upstream, "a")
        with opened(upstream) as client:
            assert client.request("POST", "/x", content=b"data").host == "b"
    assert failcounts(upstream) == {"a": 1, "b": 0}


@both
@pytest.mark.parametrize("how", ["close", "reset", "hang"])
def test_a_body_that_breaks_off_is_raised_and_counts(opened: Any, how: str, pair: Pair) -> None:
    upstream = open_upstream({"a": pair[1]}, read_timeout=200)
    with (
        opened(upstream) as client,
        client.stream("GET", f"/half/{how}") as (reply, parts),
        pytest.raises(client.error),
    ):
        list(parts)
    assert reply.status == 200
    assert failcounts(upstream) == {"a": 1}


@both
def test_what_this_process_lacks_is_raised_and_counts_against_nobody(opened: Any, pair: Pair) -> None:
    upstream, _, _ = pair
    with opened(upstream) as client:
        upstream.get_pools()
        with no_descriptors_left(), pytest.raises(client.error, match="Too many open files"):
            client.request("GET", "/x")
    assert failcounts(upstream) == {"a": 0, "b": 0}


# ── connections ───────────────────────────────────────────────────────────────────────────────


@both
def test_connections_are_kept_alive(opened: Any, pair: Pair) -> None:
    upstream, a, _ = pair
    with opened(upstream) as client:
        for path in ("/x", "/gzip", "/chunked/2", "/status/204", "/echo"):
            client.request("GET", path)
        client.request("HEAD", "/x")
        client.request("POST", "/echo", content=b"data")
    assert {request.connection for request in a.received} == {1}


@both
def test_a_connection_that_was_seen_to_be_closed_is_not_used(opened: Any, pair: Pair) -> None:
    upstream, a, _ = pair
    with opened(upstream) as client:
        for _ in range(3):
            assert client.request("POST", "/close", content=b"x").host == "a"
            while a.open_connections:
                pass
    assert failcounts(upstream) == {"a": 0, "b": 0}


@both
def test_a_host_can_be_a_socket_in_the_file_system(opened: Any, start: Any, tmp_path: Path) -> None:
    a = start("a", path=str(tmp_path / "a.sock"))
    missing = {"host": f"unix:{tmp_path / 'missing.sock'}"}
    upstream = open_upstream({"missing": missing, "a": {"host": f"unix:{tmp_path / 'a.sock'}"}})
    first(upstream, "missing")
    with opened(upstream) as client:
        assert client.request("POST", "/echo", content=b"data") == Reply(
            200, b"data", "a", {"X-Host": "a", "Content-Length": "4"}
        )
    assert a.received[0].headers["host"] == "users.internal"
    assert failcounts(upstream) == {"missing": 1, "a": 0}


@both
def test_a_child_process_has_connections_of_its_own(opened: Any, start: Any) -> None:
    a = start("a")
    upstream = open_upstream({"a": a})
    with opened(upstream) as client:
        client.request("GET", "/parent")
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if client.request("GET", "/child").body == b"ok" else 1
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.request("GET", "/parent")
    assert [(request.path, request.connection) for request in a.received] == [
        ("/parent", 1), ("/child", 2), ("/parent", 1),
    ]  # fmt: skip


@both
def test_threads_share_a_client(opened: Any, start: Any) -> None:
    a, b = start("a"), start("b")
    upstream = open_upstream({"a": a, "b": b}, keepalive_pool=2)
    wrong: list[object] = []
    with opened(upstream) as client:

        def work(number: int) -> None:
            for count in range(20):
                data = f"{number} {count}".encode()
                reply = client.request("POST", "/echo", content=data)
                if reply.body != data:
                    wrong.append(reply)

        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(a.received) + len(b.received) == 160


@both
def test_what_is_known_of_hosts_that_are_gone_is_forgotten(opened: Any, start: Any) -> None:
    a = start("a")
    upstream = open_upstream({"a": a})
    api = UpstreamAPI(upstream)
    with opened(upstream) as client:
        for number in range(200):
            api.set_weight("p", "a", number)  # which makes new targets
            client.request("GET", "/x")
        engine = engine_of(client)
        assert len(engine._peers._found) <= 66
        assert len(engine._peers._peers) == 1
    assert a.accepted == 1


def engine_of(client: Any) -> Any:
    if hasattr(client, "manager"):
        return client.manager.engine
    return client.session.get_adapter(f"{URL}/")._engine


@both
def test_the_load_of_a_host_ends_with_the_answer(opened: Any, start: Any) -> None:
    a, b = start("a"), start("b")
    upstream = open_upstream({"a": a, "b": b}, method="least_conn")
    with opened(upstream) as client:
        with client.stream("GET", "/chunked/3") as (reply, parts):
            next(parts)
            others = {client.request("GET", "/x").host for _ in range(4)}
            assert others == {"a", "b"} - {reply.host}
        assert {client.request("GET", "/x").host for _ in range(4)} == {"a", "b"}


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


def tls_of(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@both
def test_certificates_are_for_the_name_in_the_url(
    opened: Any, start: Any, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    wrong = start("wrong", tls=tls_of(authority, "other.internal"))
    right = start("right", tls=tls_of(authority, "users.internal"))
    upstream = open_upstream({"wrong": wrong, "right": right})
    first(upstream, "wrong")
    with opened(upstream, trusting) as client:
        for _ in range(2):
            assert client.request("POST", "/echo", content=b"x" * 200_000).host == "right"
    assert failcounts(upstream)["wrong"] == 2
    assert not wrong.received


@both
def test_names_never_share_a_connection(
    opened: Any, start: Any, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    a = start("a", tls=tls_of(authority, "users.internal"))
    upstream = open_upstream({"a": a})
    with opened(upstream, trusting) as client:
        assert client.request("GET", "/x").status == 200
        if hasattr(client, "manager"):
            with pytest.raises(NoHostAvailable, match="certificate"):
                client.manager.request("GET", "https://other.internal/")
        else:
            with pytest.raises(NoHostAvailable, match="certificate"):
                client.session.get("https://other.internal/")
    assert len(a.received) == 1


@both
def test_a_pool_can_speak_tls_under_a_name_of_its_own_and_without_verification(
    opened: Any, start: Any, authority: trustme.CA
) -> None:
    a = start("a", tls=tls_of(authority, "users.internal"))
    upstream = open_upstream({"a": a}, ssl=True, ssl_verify=False)
    with opened(upstream) as client:
        assert client.request("GET", "/x").body == b"ok"


def test_the_servers_name_is_the_pools_where_it_has_one(
    start: Any, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    a = start("a", tls=tls_of(authority, "real.internal"))
    upstream = open_upstream({"a": a}, ssl=True, sni_host="real.internal")
    with UpstreamPoolManager(upstream, ssl_context=trusting) as manager:
        assert manager.request("GET", f"{URL}/x").status == 200
    assert a.received[0].headers["host"] == "users.internal"


def test_certificates_can_be_given_as_urllib3_has_them(start: Any, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    upstream = open_upstream({"a": start("a", tls=tls_of(authority, "users.internal"))})
    with UpstreamPoolManager(upstream, ca_certs=str(tmp_path / "ca.pem")) as manager:
        assert manager.request("GET", "https://users.internal/").status == 200
    with UpstreamPoolManager(upstream) as manager, pytest.raises(NoHostAvailable, match="certificate"):
        manager.request("GET", "https://users.internal/")


# ── the manager ───────────────────────────────────────────────────────────────────────────────


def test_redirects_are_followed_at_the_upstreams_hosts(pair: Pair) -> None:
    upstream, a, _ = pair
    with UpstreamPoolManager(upstream) as manager:
        response = manager.request("GET", f"{URL}/redirect/to/other.internal:81/x", headers={"Authorization": "x"})
        assert response.status == 200
        assert response.geturl() == "http://other.internal:81/x"
        assert manager.request("GET", f"{URL}/redirect/x", redirect=False).status == 302
        with pytest.raises(urllib3.exceptions.MaxRetryError, match="too many redirects"):
            manager.request("GET", f"{URL}/redirect/redirect/x", retries=urllib3.Retry(redirect=1))
    assert [request.headers["host"] for request in a.received[:2]] == ["users.internal", "other.internal:81"]
    assert "authorization" in a.received[0].headers
    assert "authorization" not in a.received[1].headers


def test_an_answer_says_where_it_came_from(pair: Pair) -> None:
    upstream, _, _ = pair
    with UpstreamPoolManager(upstream) as manager:
        response: Any = manager.request("GET", f"{URL}/x")
    assert (response.upstream.host.id, response.upstream.pool.id, len(response.upstream.attempts)) == ("a", "p", 1)


def test_headers_are_as_they_were_given(pair: Pair) -> None:
    upstream, a, _ = pair
    with UpstreamPoolManager(upstream, headers={"X-All": "1"}) as manager:
        manager.request("GET", f"{URL}/x")
        several = urllib3.HTTPHeaderDict({"X-One": "1"})
        several.add("X-One", "2")
        manager.request("GET", f"{URL}/x", headers=several)
        manager.request("GET", f"{URL}/x", headers={"Host": "mine", "Expect": "100-continue"}, body=b"x")
    assert a.received[0].headers["x-all"] == "1"
    assert a.received[1].headers["x-one"] in ("2", "1, 2")
    assert a.received[2].headers["host"] == "mine"


def test_a_file_is_streamed(pair: Pair) -> None:
    upstream, a, _ = pair
    with UpstreamPoolManager(upstream) as manager:
        manager.request("PUT", f"{URL}/echo", body=io.BytesIO(b"x" * 100_000))
    assert len(a.received[0].body) == 100_000


@pytest.mark.parametrize("name", ["maxsize", "block", "num_pools", "server_hostname", "proxy_url"])
def test_options_that_are_the_upstreams_are_refused(name: str, pair: Pair) -> None:
    with pytest.raises(TypeError, match=f"{name} is not an option of an upstream's: "):
        UpstreamPoolManager(pair[0], **{name: 1})


def test_timeouts_can_be_the_managers(pair: Pair) -> None:
    """The shorter one counts, of these and those of the pool."""
    with UpstreamPoolManager(pair[0], timeout=0.1, socket_options=[]) as manager:
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            manager.request("GET", f"{URL}/hang")
        assert manager.request("GET", f"{URL}/x", timeout=None).status == 200
    assert failcounts(pair[0]) == {"a": 0, "b": 0}


def test_large_bodies_are_sent_in_pieces(pair: Pair) -> None:
    """A timeout is for each of them."""
    upstream, _, _ = pair
    with UpstreamPoolManager(upstream) as manager:
        body = bytearray(os.urandom(3_000_000))
        assert manager.request("PUT", f"{URL}/echo", body=body).data == body
        assert manager.request("PUT", f"{URL}/echo", body=memoryview(body)).data == body


def test_urls_that_are_not_of_http_are_refused(pair: Pair) -> None:
    with UpstreamPoolManager(pair[0]) as manager, pytest.raises(urllib3.exceptions.URLSchemeUnknown):
        manager.request("GET", "ftp://users.internal/x")


def test_a_request_is_of_the_context_that_it_was_made_with(start: Any) -> None:
    a, b = start("a"), start("b")
    upstream = open_upstream({"a": a, "b": b}, status_codes=["503"])
    first(upstream, "a")
    with upstream.context() as context, UpstreamPoolManager(context) as manager:
        a.statuses.append(503)
        assert manager.request("GET", f"{URL}/x").upstream.host.id == "b"  # type: ignore[attr-defined]
        assert manager.request("GET", f"{URL}/x").upstream.host.id == "b"  # type: ignore[attr-defined]


def test_nothing_waits_for_the_garbage_collector(pair: Pair) -> None:
    upstream, _, _ = pair
    with UpstreamPoolManager(upstream) as manager:
        manager.request("GET", f"{URL}/x")
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                manager.request("GET", f"{URL}/x")
            assert gc.collect() == 0
        finally:
            gc.enable()
