"""Starlette: ``request.state.upstream`` and ``request.state.upstreams``.

::

    app = Starlette(routes=[...], middleware=[Middleware(UpstreamMiddleware, upstreams="upstreams.toml")])


    async def endpoint(request: Request[UpstreamState]) -> Response:
        (reader, writer), info = await request.state.upstream.aconnect()
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import State
from starlette.requests import HTTPConnection, Request

from resty_upstream import RequestContext, RequestUpstreams
from resty_upstream.asgi import UpstreamMiddleware, upstreams_of

__all__ = ["UpstreamMiddleware", "UpstreamRequest", "UpstreamState", "get_upstream", "get_upstreams"]


class UpstreamState(State):
    """The type of ``request.state`` behind the middleware: annotate endpoints with ``Request[UpstreamState]``."""

    upstream: RequestContext
    """The upstream named ``default``."""
    upstreams: RequestUpstreams
    """All upstreams, by name."""


class UpstreamRequest(Request[UpstreamState]):
    """A request with ``upstream`` and ``upstreams``, for code that makes its requests itself.

    Starlette makes plain ones for endpoints, which find the same in ``request.state``.
    """

    @property
    def upstream(self) -> RequestContext:
        """The upstream named ``default``."""
        return get_upstream(self)

    @property
    def upstreams(self) -> RequestUpstreams:
        """All upstreams, by name."""
        return get_upstreams(self)


def get_upstream(connection: HTTPConnection[Any]) -> RequestContext:
    """The upstream named ``default`` of a request or websocket.

    :raises UpstreamError: naming the middleware, where it is missing.
    """
    return upstreams_of(connection.scope)["default"]


def get_upstreams(connection: HTTPConnection[Any]) -> RequestUpstreams:
    """All upstreams of a request or websocket, by name.

    :raises UpstreamError: naming the middleware, where it is missing.
    """
    return upstreams_of(connection.scope)
