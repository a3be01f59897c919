"""What endpoints of FastAPI get from the dependencies, in this process."""

# Without `from __future__ import annotations`: FastAPI reads them where they stand.

import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.testclient import TestClient

from resty_upstream import RequestContext, RequestUpstreams, Upstream, UpstreamError
from resty_upstream.contrib.fastapi import (
    UpstreamDep,
    UpstreamMiddleware,
    UpstreamsDep,
    get_upstream,
    get_upstreams,
)
from tests.helpers import health, hosts, open_upstream, refused, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"max_fails": 1000, "hosts": hosts("a")}}


def client_of(endpoint: Callable[..., Any], *upstreams: Upstream) -> TestClient:
    """A client of an application with one endpoint; without upstreams, also without the middleware."""
    app = FastAPI()
    app.get("/")(endpoint)
    if upstreams:
        app.add_middleware(UpstreamMiddleware, upstreams={upstream.id: upstream for upstream in upstreams})
    return TestClient(app)


def failcount(upstream: Upstream) -> int:
    return int(health(upstream, "a")["failcount"])


def test_all_dependencies_of_a_request_are_given_the_same() -> None:
    upstream, other = open_upstream(ONE), open_upstream(ONE, id="other")

    async def endpoint(
        connection: HTTPConnection,
        short: UpstreamDep,
        several: UpstreamsDep,
        long: Annotated[RequestContext, Depends(get_upstream)],
        several_long: Annotated[RequestUpstreams, Depends(get_upstreams)],
    ) -> list[str]:
        assert short is long is connection.state.upstream
        assert several is several_long is connection.state.upstreams
        assert short is several["default"]
        assert short.upstream is upstream
        assert several["other"].upstream is other
        return list(several)

    assert client_of(endpoint, upstream, other).get("/").json() == ["default", "other"]


def test_a_websocket_is_given_the_same() -> None:
    upstream = open_upstream(ONE)
    app = FastAPI()
    app.add_middleware(UpstreamMiddleware, upstreams=upstream)

    @app.websocket("/")
    async def endpoint(websocket: WebSocket, upstream: UpstreamDep, upstreams: UpstreamsDep) -> None:
        await websocket.accept()
        assert upstream is upstreams["default"]
        visit_in_vain(upstream, {"a": refused})
        await websocket.send_text("seen")

    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        assert websocket.receive_text() == "seen"
        assert failcount(upstream) in {0, 1}
    assert failcount(upstream) == 1


def test_a_dependency_may_use_it_when_the_response_has_been_sent() -> None:
    upstream = open_upstream(ONE)

    async def closing(upstream: UpstreamDep) -> AsyncIterator[RequestContext]:
        yield upstream
        visit_in_vain(upstream, {"a": refused})

    def endpoint(closing: Annotated[RequestContext, Depends(closing)], upstream: UpstreamDep) -> list[str]:
        assert closing is upstream
        return visit(upstream)

    assert client_of(endpoint, upstream).get("/").json() == ["a"]
    assert failcount(upstream) == 1


def test_a_dependency_needs_no_thread() -> None:
    """FastAPI calls what is no coroutine function in a thread of a pool, which may have none left."""
    threads: list[str] = []

    async def endpoint(upstream: UpstreamDep, upstreams: UpstreamsDep) -> None:
        threads.extend(thread.name for thread in threading.enumerate())

    client_of(endpoint, open_upstream(ONE)).get("/")
    assert threads
    assert not [name for name in threads if "AnyIO worker" in name]


def test_dependencies_can_be_overridden_in_tests_of_an_application() -> None:
    fake = open_upstream({"fake": {"hosts": hosts("b")}}).context()

    def endpoint(upstream: UpstreamDep) -> list[str]:
        return visit(upstream)

    client = client_of(endpoint)
    client.app.dependency_overrides[get_upstream] = lambda: fake  # type: ignore[attr-defined]  # of FastAPI
    assert client.get("/").json() == ["b"]


def test_dependencies_are_no_parameters_of_the_api() -> None:
    async def endpoint(upstream: UpstreamDep, upstreams: UpstreamsDep) -> None:
        pass

    schema = client_of(endpoint, open_upstream(ONE)).get("/openapi.json").json()
    assert "parameters" not in schema["paths"]["/"]["get"]


async def needs_upstream(upstream: UpstreamDep) -> None:
    pass


async def needs_upstreams(upstreams: UpstreamsDep) -> None:
    pass


@pytest.mark.parametrize("endpoint", [needs_upstream, needs_upstreams])
def test_without_the_middleware_the_error_names_it(endpoint: Callable[..., Any]) -> None:
    with pytest.raises(UpstreamError, match="UpstreamMiddleware"):
        client_of(endpoint).get("/")
