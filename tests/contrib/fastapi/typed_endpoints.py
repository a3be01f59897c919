"""What a checker must know of endpoints of FastAPI: checked by mypy in ``test_typing.py``, never run.

``assert_type`` fails where another type is inferred; an ``ignore`` fails where nothing is wrong.
"""

# Without `from __future__ import annotations`: FastAPI reads them where they stand.

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI, WebSocket

from resty_upstream import RequestContext, RequestUpstreams
from resty_upstream.contrib.fastapi import (
    UpstreamDep,
    UpstreamMiddleware,
    UpstreamsDep,
    get_upstream,
    get_upstreams,
)

app = FastAPI()
app.add_middleware(UpstreamMiddleware, upstreams="upstreams.toml")


@app.get("/")
def endpoint(upstream: UpstreamDep, upstreams: UpstreamsDep) -> list[str]:
    assert_type(upstream, RequestContext)
    assert_type(upstreams, RequestUpstreams)
    assert_type(upstreams["other"], RequestContext)
    assert_type(upstream.connect().client, socket.socket)
    return list(upstreams)


@app.get("/asynchronous")
async def asynchronous(
    upstream: Annotated[RequestContext, Depends(get_upstream)],
    upstreams: Annotated[RequestUpstreams, Depends(get_upstreams)],
) -> str:
    (reader, _), info = await upstream.aconnect()
    assert_type(reader, asyncio.StreamReader)
    assert_type(upstreams.get("other"), RequestContext | None)
    return info.host.id


@app.websocket("/websocket")
async def websocket(websocket: WebSocket, upstream: UpstreamDep) -> None:
    assert_type(upstream, RequestContext)
    await websocket.accept()


async def resource(upstream: UpstreamDep) -> AsyncIterator[RequestContext]:
    yield upstream


@app.get("/resource")
async def with_resource(resource: Annotated[RequestContext, Depends(resource)]) -> None:
    assert_type(resource, RequestContext)


def wrong(upstream: UpstreamDep) -> None:
    upstream.conect()  # type: ignore[attr-defined]  # a typing error is seen
    upstream.connect(5)  # type: ignore[call-overload]  # neither a client nor callable
