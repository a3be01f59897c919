"""FastAPI: the upstreams of a request as dependencies.

::

    app.add_middleware(UpstreamMiddleware, upstreams="upstreams.toml")


    @app.get("/users")
    async def users(upstream: UpstreamDep) -> list[User]:
        (reader, writer), info = await upstream.aconnect()
"""

# Without `from __future__ import annotations`: FastAPI reads them where they stand.

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from resty_upstream import RequestContext, RequestUpstreams
from resty_upstream.asgi import UpstreamMiddleware, upstreams_of

__all__ = ["UpstreamDep", "UpstreamMiddleware", "UpstreamsDep", "get_upstream", "get_upstreams"]

# Coroutine functions, although they wait for nothing: FastAPI calls any other in a thread.


async def get_upstream(connection: HTTPConnection) -> RequestContext:
    """The upstream named ``default`` of a request or websocket, for ``Depends(get_upstream)``.

    :raises UpstreamError: naming the middleware, where it is missing.
    """
    return upstreams_of(connection.scope)["default"]


async def get_upstreams(connection: HTTPConnection) -> RequestUpstreams:
    """All upstreams of a request or websocket, by name, for ``Depends(get_upstreams)``.

    :raises UpstreamError: naming the middleware, where it is missing.
    """
    return upstreams_of(connection.scope)


UpstreamDep = Annotated[RequestContext, Depends(get_upstream)]
UpstreamsDep = Annotated[RequestUpstreams, Depends(get_upstreams)]
