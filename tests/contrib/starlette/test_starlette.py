"""What endpoints of Starlette get from the middleware, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from resty_upstream import Upstream, UpstreamError, UpstreamNotFound
from resty_upstream.contrib.starlette import (
    UpstreamMiddleware,
    UpstreamRequest,
    UpstreamState,
    get_upstream,
    get_upstreams,
)
from tests.helpers import health, hosts, open_upstream, refused, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"max_fails": 1000, "hosts": hosts("a")}}
HASHED: dict[str, Any] = {"p": {"method": "hash", "hosts": hosts(*"abcdefgh")}}

Endpoint = Callable[[Request[UpstreamState]], Response]


def client_of(endpoint: Endpoint, upstreams: Any, **options: Any) -> TestClient:
    """A client of an application with one endpoint."""
    middleware = [Middleware(UpstreamMiddleware, upstreams=upstreams)]
    return TestClient(Starlette(routes=[Route("/", endpoint)], middleware=middleware), **options)


def failcount(upstream: Upstream) -> int:
    return int(health(upstream, "a")["failcount"])


# ── what a connection has ─────────────────────────────────────────────────────────────────────


def test_a_request_has_its_upstreams_in_its_state_and_by_functions() -> None:
    upstream, other = open_upstream(ONE), open_upstream(ONE, id="other")

    def endpoint(request: Request[UpstreamState]) -> Response:
        own = UpstreamRequest(request.scope)
        assert request.state.upstream.upstream is upstream
        assert request.state.upstream is get_upstream(request) is own.upstream
        assert request.state.upstreams is get_upstreams(request) is own.upstreams
        assert request.state.upstreams["other"].upstream is other
        return PlainTextResponse(str(list(request.state.upstreams)))

    client = client_of(endpoint, {"default": upstream, "other": other})
    assert client.get("/").text == "['default', 'other']"


def test_a_websocket_has_the_same() -> None:
    upstream = open_upstream(ONE)

    async def endpoint(websocket: WebSocket[UpstreamState]) -> None:
        await websocket.accept()
        assert websocket.state.upstream is get_upstream(websocket)
        assert websocket.state.upstreams is get_upstreams(websocket)
        visit_in_vain(websocket.state.upstream, {"a": refused})
        await websocket.send_text(str(failcount(upstream)))
        await websocket.close()

    middleware = [Middleware(UpstreamMiddleware, upstreams=upstream)]
    app = Starlette(routes=[WebSocketRoute("/", endpoint)], middleware=middleware)
    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "0"
    assert failcount(upstream) == 1


def test_what_stands_between_the_middleware_and_the_endpoint_has_the_same() -> None:
    """Also what makes requests of its own, as Starlette's base class for middleware does."""
    upstream = open_upstream({**ONE, "reserve": {"priority": 10, "hosts": hosts("b")}})

    class Between(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            assert visit(request.state.upstream, {"a": refused}) == ["a", "b"]
            return await call_next(request)

    def endpoint(request: Request[UpstreamState]) -> Response:
        return PlainTextResponse(" ".join(visit(request.state.upstream)))

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UpstreamMiddleware, upstreams=upstream), Middleware(Between)],
    )
    assert TestClient(app).get("/").text == "b"
    assert failcount(upstream) == 1


def test_a_mounted_application_has_its_own_or_those_of_the_one_around_it() -> None:
    outer, inner = open_upstream(ONE, id="outer"), open_upstream(ONE, id="inner")

    def endpoint(request: Request[UpstreamState]) -> Response:
        visit_in_vain(request.state.upstream, {"a": refused})
        return PlainTextResponse(request.state.upstream.upstream.id)

    mounted = Starlette(routes=[Route("/", endpoint)])
    routes = [Mount("/mounted", mounted), Mount("/own", UpstreamMiddleware(mounted, inner)), Route("/", endpoint)]
    client = TestClient(Starlette(routes=routes, middleware=[Middleware(UpstreamMiddleware, upstreams=outer)]))
    assert client.get("/mounted/").text == "outer"
    assert (failcount(outer), failcount(inner)) == (1, 0)
    assert client.get("/own/").text == "inner"
    assert (failcount(outer), failcount(inner)) == (1, 1)
    assert client.get("/").text == "outer"
    assert (failcount(outer), failcount(inner)) == (2, 1)


def test_hash_goes_by_the_client_address() -> None:
    def endpoint(request: Request[UpstreamState]) -> Response:
        return PlainTextResponse(visit(request.state.upstream)[0])

    upstream = open_upstream(HASHED)
    homes = {
        number: {
            client_of(endpoint, upstream, client=(f"192.0.2.{number}", port)).get("/").text for port in (1, 2)
        }
        for number in range(20)
    }
    assert {len(hosts_of_one) for hosts_of_one in homes.values()} == {1}
    assert len(set().union(*homes.values())) > 3


# ── what is missing is named ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "use",
    [
        get_upstream,
        get_upstreams,
        lambda request: UpstreamRequest(request.scope).upstream,
        lambda request: UpstreamRequest(request.scope).upstreams,
    ],
)
def test_without_the_middleware_the_error_names_it(use: Callable[[HTTPConnection], Any]) -> None:
    def endpoint(request: Request) -> Response:
        use(request)
        return PlainTextResponse("never")

    with pytest.raises(UpstreamError, match=r"contrib\.starlette\.UpstreamMiddleware"):
        TestClient(Starlette(routes=[Route("/", endpoint)])).get("/")


def test_an_upstream_that_is_not_there_is_an_error_that_names_those_there_are() -> None:
    def endpoint(request: Request[UpstreamState]) -> Response:
        assert not hasattr(request.state, "upstream")
        with pytest.raises(UpstreamNotFound, match=r"'default'.*'other'"):
            get_upstream(request)
        return PlainTextResponse("fine")

    assert client_of(endpoint, {"other": open_upstream(ONE)}).get("/").text == "fine"


# ── start and end ─────────────────────────────────────────────────────────────────────────────


def test_the_application_has_its_own_start_and_end_and_the_state_it_makes_there(tmp_path: Path) -> None:
    """Inside of them the stores are open."""
    store = tmp_path / "store" / "upstreams.db"
    heard: list[object] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        heard.append(store.exists())
        yield {"database": "connected"}
        heard.append("end")

    def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"{request.state.database} {visit(request.state.upstream)}")

    upstreams = {"default": {"store": f"sqlite://{store}", "pools": ONE}}
    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(UpstreamMiddleware, upstreams=upstreams)],
        lifespan=lifespan,
    )
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").text == "connected ['a']"
    assert heard == [True, "end"] * 2


# ── sticky sessions ───────────────────────────────────────────────────────────────────────────


def test_a_session_stays_at_its_host() -> None:
    """Of requests and of websockets, which share the cookie."""
    upstream = open_upstream({"p": {"sticky": True, "hosts": hosts(*"abcdefgh")}})

    def endpoint(request: Request[UpstreamState]) -> Response:
        return PlainTextResponse(visit(request.state.upstream)[0])

    async def talk(websocket: WebSocket) -> None:
        home = visit(get_upstream(websocket))[0]
        await websocket.accept()
        await websocket.send_text(home)
        await websocket.close()

    app = Starlette(
        routes=[Route("/", endpoint), WebSocketRoute("/talk", talk)],
        middleware=[Middleware(UpstreamMiddleware, upstreams=upstream)],
    )
    clients = [TestClient(app) for _ in range(16)]
    homes = [client.get("/").text for client in clients]
    assert len(set(homes)) == 8
    for client, home in zip(clients, homes, strict=True):
        again = client.get("/")
        assert (again.text, "set-cookie" in again.headers) == (home, False)
        with client.websocket_connect("/talk") as websocket:
            assert websocket.receive_text() == home
