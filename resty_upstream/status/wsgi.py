"""The status page as a WSGI application.

::

    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/upstreams": StatusApp(upstream, token=...)})  # Flask
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from resty_upstream.status.access import Request
from resty_upstream.status.site import BODY_LIMIT, StatusSite, too_much

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


class StatusApp(StatusSite):
    """The status page of one upstream, or of several by name.

    It answers to its own machine alone, and changes nothing, unless it is told whom to let in; see
    :class:`~resty_upstream.status.site.StatusSite`.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = _request(environ)
        body = _body(environ)
        answer = too_much(request) if body is None else self.answer(request._replace(body=body))
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", answer.headers)
        return [] if request.method == "HEAD" else [answer.body]


def _request(environ: WSGIEnvironment) -> Request:
    headers = {
        name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")
    }
    return Request(
        method=environ["REQUEST_METHOD"],
        mount=environ.get("SCRIPT_NAME", "").rstrip("/"),
        path=environ.get("PATH_INFO", ""),
        query=environ.get("QUERY_STRING", ""),
        headers=headers,
        peer=environ.get("REMOTE_ADDR", ""),
        secure=environ.get("wsgi.url_scheme") == "https",
        http_version=environ.get("SERVER_PROTOCOL", "").partition("/")[2],
        native=environ,
    )


def _body(environ: WSGIEnvironment) -> bytes | None:
    """The body; None for one that is too long."""
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        length = 0
    if length > BODY_LIMIT:
        return None
    body: bytes = environ["wsgi.input"].read(length) if length > 0 else b""
    return body
