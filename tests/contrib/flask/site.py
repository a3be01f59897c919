"""A Flask site that tells a journal what happens in it, and does all that is hard for ``post_process``."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Request, Response, abort, request, send_file, stream_with_context
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from resty_upstream.contrib.flask import Upstreams, current_upstreams
from resty_upstream.contrib.werkzeug import UpstreamRequestMixin
from tests.contrib.bed import bodies
from tests.contrib.bed.upstreams import of_this_site
from tests.contrib.bed.visits import Visit, tell_of_post_process


class SiteRequest(UpstreamRequestMixin, Request):
    """Flask's own, with ``upstream`` and ``upstreams``."""


def visit() -> Visit:
    """The upstream is looked up where it is used: in the view, or in the body."""
    return Visit(lambda: current_upstreams["default"], request.args)


def visit_of_request() -> Visit:
    """As :func:`visit`, for what is used where Flask's context does not go."""
    upstream = request.upstream  # type: ignore[attr-defined]  # of SiteRequest
    return Visit(lambda: upstream, request.args)


def unused() -> str:
    """Does not use the upstream."""
    return "unused"


def collect() -> str:
    """Whatever waits for the garbage collector happens before this answers."""
    gc.collect()
    return "collected"


def plain() -> bytes:
    visit().call()
    return bodies.ONE_BODY


async def aplain() -> bytes:
    await visit().acall()
    return bodies.ONE_BODY


def thread() -> bytes:
    visit_of_request().call_in_thread()
    return bodies.ONE_BODY


def raises() -> str:
    visit().call()
    raise RuntimeError("the view")


async def araises() -> str:
    await visit().acall()
    raise RuntimeError("the view")


def missing() -> str:
    visit().call()
    abort(404)


def file() -> Response:
    visit().call()
    return send_file(bodies.FILE)


# ── streams ───────────────────────────────────────────────────────────────────────────────────


def stream() -> Response:
    return Response(stream_with_context(bodies.stream(visit())))


def broken_stream() -> Response:
    return Response(stream_with_context(bodies.broken_stream(visit())))


def long_stream() -> Response:
    return Response(stream_with_context(bodies.long_stream(visit())))


def late_stream() -> Response:
    return Response(bodies.late_stream(visit_of_request()))


# ── what the client does not wait for, and requests at once ───────────────────────────────────


def held() -> str:
    visit().call_and_wait()
    return "held"


async def aheld() -> str:
    await visit().acall_and_wait()
    return "held"


def late() -> str:
    visit().wait_and_call()
    return "late"


def thread_goes_on() -> str:
    visit_of_request().leave_thread()
    return "over"


def meets() -> str:
    return visit().meet()


VIEWS: list[Callable[[], Any]] = [
    unused,
    collect,
    plain,
    aplain,
    thread,
    raises,
    araises,
    missing,
    file,
    stream,
    broken_stream,
    long_stream,
    late_stream,
    held,
    aheld,
    late,
    thread_goes_on,
    meets,
]


def inner() -> str | None:
    """May use the upstream, and may answer by itself."""
    if "inner" in request.args:
        visit().call()
    return "early" if request.args.get("inner") == "answers" else None


def make_app() -> Flask:
    """Each view at the address of its name, and in a blueprint."""
    app = Flask(__name__)
    app.request_class = SiteRequest
    app.config["UPSTREAMS"] = {"default": of_this_site()}
    app.before_request(inner)
    blueprint = Blueprint("blueprint", __name__, url_prefix="/blueprint")
    for view in VIEWS:
        app.add_url_rule(f"/{view.__name__}", view_func=view)
        blueprint.add_url_rule(f"/{view.__name__}", view_func=view)
    app.register_blueprint(blueprint)
    return app


def with_upstreams(app: Flask) -> Flask:
    Upstreams(app)
    return app


tell_of_post_process()
app = make_app()
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/own": with_upstreams(make_app())})  # type: ignore[method-assign]
application = DispatcherMiddleware(with_upstreams(app), {"/mounted": with_upstreams(make_app())})
