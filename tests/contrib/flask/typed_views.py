"""What a checker must know of views of Flask: checked by mypy in ``test_typing.py``, never run.

``assert_type`` fails where another type is inferred; an ``ignore`` fails where nothing is wrong.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import assert_type
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask, Request, Response
from werkzeug.wrappers import Request as WerkzeugRequest

from resty_upstream import RequestContext, RequestUpstreams, Upstream
from resty_upstream.contrib.flask import Upstreams, current_upstream, current_upstreams
from resty_upstream.contrib.werkzeug import UpstreamMiddleware, UpstreamRequestMixin


class SiteRequest(UpstreamRequestMixin, Request):
    """As users write it."""


class BareRequest(UpstreamRequestMixin, WerkzeugRequest):
    """As users of Werkzeug write it."""


class Site(Flask):
    request_class = SiteRequest


app = Site(__name__)
Upstreams(app)
Upstreams(app, Upstream("memory://"))
Upstreams(app, {"default": {"store": "memory://"}})
extension = Upstreams(upstreams=Path("upstreams.toml"))
extension.init_app(app)


@app.get("/")
def view() -> Response:
    assert_type(current_upstream, RequestContext)
    assert_type(current_upstreams, RequestUpstreams)
    assert_type(current_upstreams["other"], RequestContext)
    assert_type(current_upstream.connect().client, socket.socket)
    return Response()


@app.get("/asynchronous")
async def asynchronous() -> str:
    (reader, _), info = await current_upstream.aconnect()
    assert_type(reader, asyncio.StreamReader)
    return info.host.id


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    request = BareRequest(environ)
    assert_type(request.upstream, RequestContext)
    assert_type(request.upstreams, RequestUpstreams)
    assert_type(SiteRequest(environ).upstream, RequestContext)
    return []


wrapped = UpstreamMiddleware(UpstreamMiddleware(application, "upstreams.toml"), Upstream("memory://"))
app.wsgi_app = UpstreamMiddleware(app.wsgi_app, "upstreams.toml")  # type: ignore[method-assign]  # Flask's own way


def wrong() -> None:
    current_upstream.conect()  # type: ignore[attr-defined]  # a typing error is seen
    current_upstreams["other"] = current_upstream  # type: ignore[index]  # read only
    Upstreams(app, 5)  # type: ignore[arg-type]  # nothing that could be upstreams
    UpstreamMiddleware(application)  # type: ignore[call-arg]  # they must be given
