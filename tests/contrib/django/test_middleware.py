"""What views get from the middleware, in this process."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import types
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path

from resty_upstream import RequestContext, RequestUpstreams, Upstream, UpstreamNotFound
from resty_upstream.contrib.django import UpstreamHttpRequest, UpstreamMiddleware, get_upstream
from tests.contrib.bed.upstreams import pools

MIDDLEWARE = ["resty_upstream.contrib.django.UpstreamMiddleware"]
WAIT_S = 10.0

View = Callable[[Any], Any]


@contextmanager
def site(view: View, **settings: Any) -> Iterator[None]:
    """Inside, ``view`` answers at ``/``."""
    urls = types.ModuleType("urls")
    urls.urlpatterns = [path("", view)]  # type: ignore[attr-defined]  # what makes it a URLconf
    with override_settings(ROOT_URLCONF=urls, **{"MIDDLEWARE": MIDDLEWARE, **settings}):
        yield


def ask(view: View, address: str = "192.0.2.1") -> Any:
    """The answer of ``view`` behind the middleware: through the asynchronous stack if it is asynchronous."""
    with site(view):
        if not iscoroutinefunction(view):
            return Client(REMOTE_ADDR=address).get("/")
        scope = {"path": "/", "query_string": "", "headers": [], "client": [address, 1] if address else None}
        return asyncio.run(AsyncClient().request(**scope))


def in_both_stacks(view: Callable[[UpstreamHttpRequest], HttpResponse]) -> list[View]:
    """The view as it is, and as a coroutine function."""

    async def asynchronous(request: UpstreamHttpRequest) -> HttpResponse:
        return view(request)

    return [view, asynchronous]


def call(request: HttpRequest, alias: str = "default") -> list[str]:
    """One call of an upstream; the hosts that it tried."""
    client, info = request.upstreams[alias].connect()  # type: ignore[attr-defined]  # the middleware put it there
    client.close()
    return [attempt.host.id for attempt in info.attempts]


def failures(upstream: Upstream | None = None) -> int:
    """How many failures the store has been told of."""
    return int((upstream or get_upstream()).get_pools()["primary"]["hosts"]["dead"]["failcount"])


@pytest.fixture
def upstream(dead_port: int, alive_port: int) -> Iterator[Upstream]:
    """The default upstream: a host that refuses, and one that answers behind it."""
    options = {"STORE": "memory://", "POOLS": pools(dead_port, alive_port)}
    with override_settings(UPSTREAMS={"default": options, "other": {**options, "STORE": "memory://"}}):
        get_upstream().get_pools()
        get_upstream("other").get_pools()
        yield get_upstream()


@pytest.fixture
def processed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose ``post_process`` ran, by upstream."""
    ids: list[str] = []
    original = RequestContext.post_process

    def post_process(self: RequestContext) -> None:
        ids.append(self.upstream.id)
        original(self)

    monkeypatch.setattr(RequestContext, "post_process", post_process)
    return ids


# ── what a request has ────────────────────────────────────────────────────────────────────────


def test_upstream_is_the_one_named_default(upstream: Upstream) -> None:
    """Both names mean one context: where a call by one failed, a call by the other does not try."""

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        assert isinstance(request.upstream, RequestContext)
        assert request.upstream.upstream is upstream
        client, info = request.upstream.connect()
        client.close()
        assert [attempt.host.id for attempt in info.attempts] == ["dead", "alive"]
        assert call(request) == ["alive"]
        return HttpResponse()

    for each in in_both_stacks(view):
        assert ask(each).status_code == 200
    assert failures() == 2


def test_upstreams_is_a_mapping_by_the_names_in_the_setting(upstream: Upstream) -> None:
    """Names, membership and look-up are those of a dict of all upstreams; looking does not use any of them."""

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        upstreams = request.upstreams
        assert isinstance(upstreams, RequestUpstreams)
        assert isinstance(upstreams, Mapping)
        assert list(upstreams) == ["default", "other"]
        assert len(upstreams) == 2
        assert "other" in upstreams
        assert "another" not in upstreams
        assert upstreams.get("another") is None
        assert upstreams["other"] is upstreams["other"]
        assert upstreams["other"].upstream is get_upstream("other")
        assert {name: context.upstream.id for name, context in upstreams.items()} == {
            "default": "default",
            "other": "other",
        }
        return HttpResponse()

    for each in in_both_stacks(view):
        assert ask(each).status_code == 200


def test_an_unknown_name_is_a_key_error_that_names_those_there_are(upstream: Upstream) -> None:
    """So that a typing error is found at once."""

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        with pytest.raises(UpstreamNotFound, match=r"'defualt'.*'default', 'other'") as caught:
            request.upstreams["defualt"]
        assert isinstance(caught.value, KeyError)
        return HttpResponse()

    for each in in_both_stacks(view):
        assert ask(each).status_code == 200


@override_settings(UPSTREAMS={"other": {"STORE": "memory://"}})
def test_without_an_upstream_named_default_only_its_use_is_an_error() -> None:
    """``request.upstream`` says which names there are; the others work."""

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        assert request.upstreams["other"].get_pools() == {}
        with pytest.raises(UpstreamNotFound, match=r"'default'.*'other'"):
            request.upstream.get_pools()
        return HttpResponse()

    assert ask(view).status_code == 200


def test_without_the_middleware_the_error_names_it() -> None:
    """A request that did not pass the middleware has no upstream, and says what is missing."""
    request = RequestFactory().get("/")
    with pytest.raises(AttributeError, match="UpstreamMiddleware"):
        request.upstream  # type: ignore[attr-defined]  # noqa: B018 - what is tested
    assert not hasattr(request, "upstreams")


def test_the_middleware_is_for_both_stacks() -> None:
    """Django asks these; a middleware that is synchronous alone would cost asynchronous views a thread."""
    assert UpstreamMiddleware.sync_capable
    assert UpstreamMiddleware.async_capable

    async def get_response(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    assert iscoroutinefunction(UpstreamMiddleware(get_response))
    assert not iscoroutinefunction(UpstreamMiddleware(lambda request: HttpResponse()))


# ── the key of methods that hash ──────────────────────────────────────────────────────────────

HASHED = {"p": {"method": "hash", "hosts": {f"h{i}": {"host": "192.0.2.9", "port": 1000 + i} for i in range(8)}}}


def pick(request: UpstreamHttpRequest, key: str | None = None) -> str:
    """The host of a call that connects to nothing."""
    return request.upstream.connect(lambda host, port, timeout_s: port, key=key).info.host.id


@pytest.fixture
def _hashed() -> Iterator[None]:
    with override_settings(UPSTREAMS={"default": {"STORE": "memory://", "POOLS": HASHED}}):
        yield


@pytest.mark.usefixtures("_hashed")
def test_hash_goes_by_the_client_address() -> None:
    """One client stays at one host, in both stacks; different clients are spread."""
    views = in_both_stacks(lambda request: HttpResponse(" ".join(pick(request) for _ in range(3))))
    homes = {}
    for number in range(30):
        address = f"192.0.2.{number}"
        picked = {host for view in views for host in ask(view, address).content.decode().split()}
        assert len(picked) == 1, address
        homes[address] = picked.pop()
    assert len(set(homes.values())) > 3


@pytest.mark.usefixtures("_hashed")
def test_a_key_that_is_given_wins_over_the_client_address() -> None:
    """Two clients with the same key meet at one host."""
    view: View = lambda request: HttpResponse(pick(request, "the key"))  # noqa: E731 - a view in one line
    assert len({ask(view, f"192.0.2.{number}").content for number in range(10)}) == 1


@pytest.mark.usefixtures("_hashed")
def test_clients_without_an_address_are_spread() -> None:
    """A server on a unix socket gives the address ``""``, or none: hashing that would send all to one host."""
    view: View = lambda request: HttpResponse(pick(request))  # noqa: E731 - a view in one line
    assert len({ask(view, "").content for _ in range(16)}) == 8

    def without_address(request: UpstreamHttpRequest) -> HttpResponse:
        request.META.pop("REMOTE_ADDR")
        return HttpResponse(pick(request))

    assert len({ask(without_address).content for _ in range(16)}) == 8


# ── exactly once ──────────────────────────────────────────────────────────────────────────────


def test_the_first_request_to_a_fresh_store_is_told_too(dead_port: int, alive_port: int) -> None:
    """That it had to create the pools makes what it saw of them no less true."""
    setting = {"default": {"STORE": "memory://", "POOLS": pools(dead_port, alive_port)}}
    with override_settings(UPSTREAMS=setting):
        ask(lambda request: HttpResponse(call(request)))
        assert failures() == 1


def test_each_upstream_that_was_used_is_told_once(upstream: Upstream, processed: list[str]) -> None:
    """And one that was not is left alone."""

    def both(request: UpstreamHttpRequest) -> HttpResponse:
        return HttpResponse(call(request) + call(request, "other"))

    def other(request: UpstreamHttpRequest) -> HttpResponse:
        return HttpResponse(call(request, "other"))

    for view in in_both_stacks(both):
        processed.clear()
        ask(view)
        assert sorted(processed) == ["default", "other"]
    for view in in_both_stacks(other):
        processed.clear()
        ask(view)
        assert processed == ["other"]
    assert failures(upstream) == 2
    assert failures(get_upstream("other")) == 4


def test_what_the_threads_of_a_view_see_is_told_once_each(upstream: Upstream, processed: list[str]) -> None:
    """They share the context of the request."""

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        together = threading.Barrier(4)

        def one_call() -> None:
            context = request.upstream
            together.wait(WAIT_S)
            for attempt in context.attempts():
                with attempt as host:
                    together.wait(WAIT_S)  # all four have begun
                    if host.id == "dead":
                        raise ConnectionResetError

        threads = [threading.Thread(target=one_call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        return HttpResponse()

    ask(view)
    assert processed == ["default"]
    assert failures() == 4


def test_a_thread_that_outlives_its_request_is_heard(upstream: Upstream) -> None:
    """What it sees after ``post_process`` is told at once."""
    over = threading.Event()
    threads = []

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        def later() -> None:
            over.wait(WAIT_S)
            call(request)

        threads.append(threading.Thread(target=later))
        threads[0].start()
        return HttpResponse()

    ask(view)
    assert failures() == 0
    over.set()
    threads[0].join(WAIT_S)
    assert failures() == 1


def test_streams_of_the_test_clients_are_told_when_read(upstream: Upstream, processed: list[str]) -> None:
    """Users' own tests see what production does."""

    def parts(request: UpstreamHttpRequest) -> Iterator[str]:
        yield "begin "
        yield from call(request)

    async def aparts(request: UpstreamHttpRequest) -> AsyncIterator[str]:
        for part in parts(request):
            yield part

    response = ask(lambda request: StreamingHttpResponse(parts(request)))
    assert not processed
    assert b"".join(response) == b"begin deadalive"
    assert processed == ["default"]

    async def read() -> bytes:
        response: Any = await AsyncClient().get("/")
        assert processed == ["default"]
        return b"".join([part async for part in response])

    async def view(request: UpstreamHttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(aparts(request))

    with site(view):
        assert asyncio.run(read()) == b"begin deadalive"
    assert processed == ["default", "default"]
    assert failures() == 2


# ── servers that do not do what others do ─────────────────────────────────────────────────────


def start_response(status: str, headers: list[tuple[str, str]], error: Any = None, /) -> Callable[[bytes], object]:
    """What a WSGI server gives to an application."""
    return bytes


def environ() -> dict[str, Any]:
    """A WSGI request for ``/``."""
    return dict(RequestFactory().get("/").META)


def test_a_wsgi_server_that_closes_without_reading(upstream: Upstream, processed: list[str]) -> None:
    """The client left before the first byte: WSGI servers then call ``close`` alone."""

    def view(request: UpstreamHttpRequest) -> StreamingHttpResponse:
        call(request)
        return StreamingHttpResponse(iter(["never read"]))

    with site(view):
        response: Any = WSGIHandler()(environ(), start_response)
        assert not processed
        response.close()
    assert processed == ["default"]
    assert failures() == 1


def test_a_file_that_the_wsgi_server_sends_by_itself(upstream: Upstream, processed: list[str]) -> None:
    """With ``wsgi.file_wrapper`` the server never sees the response, and closes the file alone."""

    def view(request: UpstreamHttpRequest) -> FileResponse:
        call(request)
        return FileResponse(io.BytesIO(b"content"))

    with site(view):
        wrapper = WSGIHandler()({**environ(), "wsgi.file_wrapper": FileWrapper}, start_response)
        assert isinstance(wrapper, FileWrapper)
        assert b"".join(wrapper) == b"content"
        assert not processed
        wrapper.close()
    assert processed == ["default"]
    assert failures() == 1


class ClientGone(OSError):
    """What some ASGI servers raise from ``send`` when the client has gone."""


# Django leaves the body of such a request open, too.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SpooledTemporaryFile")
@pytest.mark.parametrize("sends", [0, 1, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_asgi_server_whose_send_raises(
    upstream: Upstream, processed: list[str], streaming: bool, sends: int
) -> None:
    """Django closes nothing then, and nothing is left to hook: what was seen is told when the request is freed."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    async def view(request: UpstreamHttpRequest) -> HttpResponse | StreamingHttpResponse:
        call(request)
        return StreamingHttpResponse(parts()) if streaming else HttpResponse(bytes(200_000))

    async def run() -> None:
        messages = iter([{"type": "http.request"}])
        sent: list[Mapping[str, Any]] = []

        async def receive() -> Mapping[str, Any]:
            message = next(messages, None)
            return message or await asyncio.get_running_loop().create_future()

        async def send(message: Mapping[str, Any]) -> None:
            if len(sent) == sends:
                raise ClientGone
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        with pytest.raises(ClientGone):
            await ASGIHandler()(scope, receive, send)

    with site(view):
        asyncio.run(run())
    gc.collect()
    assert processed == ["default"]
    assert failures() == 1


# ── nothing for those who do not use it ───────────────────────────────────────────────────────


class Untouchable:
    """A store that must not be used."""

    clock_id = "none"

    def __init__(self) -> None:
        self.used: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def use(*args: Any, **options: Any) -> Any:
            self.used.append(name)
            raise AssertionError(name)

        return use


def test_a_request_that_does_not_use_it_touches_no_store(processed: list[str]) -> None:
    """Neither does one that looks at the names."""
    store = Untouchable()
    seen = []

    def unused(request: UpstreamHttpRequest) -> HttpResponse:
        return HttpResponse()

    def only_names(request: UpstreamHttpRequest) -> HttpResponse:
        seen.append(list(request.upstreams))
        return HttpResponse()

    with override_settings(UPSTREAMS={"default": {"STORE": store, "POOLS": HASHED}}):
        get_upstream()
        processed.clear()
        for view in in_both_stacks(unused) + in_both_stacks(only_names):
            assert ask(view).status_code == 200
    assert seen == [["default"], ["default"]]
    assert store.used == []
    assert processed == []


@override_settings(UPSTREAMS={"default": {"STORE": 5}})
def test_a_wrong_setting_harms_only_who_uses_it() -> None:
    """Requests that use no upstream do not look at it."""
    for view in in_both_stacks(lambda request: HttpResponse(b"fine")):
        assert ask(view).content == b"fine"


def test_a_request_is_freed_without_the_collector(upstream: Upstream) -> None:
    """Used or not, the middleware leaves no cycle behind."""
    requests: list[weakref.ref[HttpRequest]] = []

    def used(request: UpstreamHttpRequest) -> HttpResponse:
        requests.append(weakref.ref(request))
        request.upstream.connect(lambda host, port, timeout_s: port)
        return HttpResponse()

    def unused(request: UpstreamHttpRequest) -> HttpResponse:
        requests.append(weakref.ref(request))
        return HttpResponse()

    gc.collect()
    gc.disable()
    try:
        for view in (used, unused):
            with site(view):
                response: Any = WSGIHandler()(environ(), start_response)
                response.close()
                del response
        assert [request() for request in requests] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("checked", [True, False])
def test_the_first_request_has_hosts_checked_where_any_is_to_be(tmp_path: Path, checked: bool) -> None:
    """Also one that does not use the upstream; nothing begins before it."""

    def unused(request: UpstreamHttpRequest) -> HttpResponse:
        return HttpResponse()

    declared = {"p": {"healthcheck": checked, "hosts": {"a": {"host": "127.0.0.1", "port": 1}}}}
    with override_settings(UPSTREAMS={"default": {"STORE": f"sqlite://{tmp_path}/s/u.db", "POOLS": declared}}):
        for view in in_both_stacks(unused):
            replica = get_upstream().replica
            assert replica.checker is None
            assert ask(view).status_code == 200
            assert (replica.checker is not None) is checked
            get_upstream().stop_checker()
