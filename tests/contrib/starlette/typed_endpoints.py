"""What a checker must know of endpoints of Starlette: checked by mypy in ``test_typing.py``, never run.

``assert_type`` fails where another type is inferred; an ``ignore`` fails where nothing is wrong.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, assert_type

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from resty_upstream import RequestContext, RequestUpstreams, Upstream, Upstreams
from resty_upstream.contrib.starlette import (
    UpstreamMiddleware,
    UpstreamRequest,
    UpstreamState,
    get_upstream,
    get_upstreams,
)


def endpoint(request: Request[UpstreamState]) -> Response:
    assert_type(request.state.upstream, RequestContext)
    assert_type(request.state.upstreams, RequestUpstreams)
    assert_type(request.state.upstreams["other"], RequestContext)
    assert_type(request.state.upstream.connect().client, socket.socket)
    assert_type(get_upstream(request), RequestContext)
    assert_type(get_upstreams(request), RequestUpstreams)
    return JSONResponse(list(request.state.upstreams))


async def asynchronous(request: Request[UpstreamState]) -> Response:
    (reader, writer), info = await request.state.upstream.aconnect()
    assert_type(reader, asyncio.StreamReader)
    assert_type(writer, asyncio.StreamWriter)
    return JSONResponse(info.host.id)


async def websocket(websocket: WebSocket[UpstreamState]) -> None:
    assert_type(websocket.state.upstream, RequestContext)
    assert_type(get_upstream(websocket), RequestContext)


def plain(request: Request, connection: HTTPConnection[Any]) -> Response:
    assert_type(get_upstream(request), RequestContext)
    assert_type(get_upstream(connection), RequestContext)
    own = UpstreamRequest(request.scope)
    assert_type(own.upstream, RequestContext)
    assert_type(own.upstreams, RequestUpstreams)
    assert_type(own.state.upstream, RequestContext)
    return Response()


routes = [
    Route("/", endpoint),
    Route("/asynchronous", asynchronous),
    Route("/plain", plain),
    WebSocketRoute("/websocket", websocket),
    Mount("/own", UpstreamMiddleware(Starlette(), Upstream("memory://"))),
]
app = Starlette(routes=routes, middleware=[Middleware(UpstreamMiddleware, upstreams="upstreams.toml")])
app.add_middleware(UpstreamMiddleware, upstreams={"default": {"store": "memory://"}})
wrapped = UpstreamMiddleware(app, Upstreams("upstreams.toml"))


def wrong(request: Request[UpstreamState]) -> None:
    request.state.upstreams["other"] = request.state.upstream  # type: ignore[index]  # read only
    request.state.upstream.conect()  # type: ignore[attr-defined]  # a typing error is seen
    UpstreamMiddleware(app, 5)  # type: ignore[arg-type]  # nothing that could be upstreams
    UpstreamMiddleware(app)  # type: ignore[call-arg]  # they must be given
