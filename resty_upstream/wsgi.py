"""Any WSGI application: a middleware that gives each request its upstreams.

::

    application = UpstreamMiddleware(application, upstreams="upstreams.toml")
    environ["resty_upstream"]  # in an application
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from resty_upstream.config import Upstreams
from resty_upstream.context import RequestUpstreams
from resty_upstream.errors import UpstreamError
from resty_upstream.visitors import WsgiVisitor

if TYPE_CHECKING:
    import os
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from resty_upstream.upstream import Upstream


class UpstreamMiddleware:
    """Gives each request ``environ["resty_upstream"]`` (the one named default) and ``environ["resty_upstreams"]``.

    What a request sees of hosts is shared with all workers when the server closes its response: after the last
    byte, also when the application raised in the middle of it or the client went away.

    :param upstreams: what :class:`~resty_upstream.Upstreams` takes.
    :raises InvalidConfig: naming every problem.
    """

    def __init__(
        self,
        app: WSGIApplication,
        upstreams: Upstreams | Upstream | Mapping[str, Any] | str | os.PathLike[str],
    ) -> None:
        self.app = app
        self.upstreams = upstreams if isinstance(upstreams, Upstreams) else Upstreams(upstreams)
        self.upstreams.require_signers()
        self._default = self.upstreams.get("default")
        self._is_serving = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._is_serving:
            self._is_serving = True
            self.upstreams.serve()
        if "resty_upstreams" in environ:
            environ = dict(environ)  # of an application around this one, which keeps its own
            environ.pop("resty_upstream", None)
        visitor = WsgiVisitor(environ) if self.upstreams.ask_visitors else None
        kind = RequestUpstreams if visitor is None else _ForgettingUpstreams
        upstreams = kind(self.upstreams, visitor, self._default)
        environ["resty_upstreams"] = upstreams
        if self._default is not None:
            environ["resty_upstream"] = upstreams["default"]
        if visitor is not None:
            start_response = _setting_cookies(
                start_response, upstreams, secure=environ.get("wsgi.url_scheme") == "https"
            )
        try:
            body = self.app(environ, start_response)
        except BaseException:
            upstreams.post_process()
            raise
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(file_wrapper, type) and isinstance(body, file_wrapper) and _hook_close(body, upstreams):
            return body  # the server sends a file by itself, but only while this is the object that it made for it
        return (_SizedBody if hasattr(body, "__len__") else _Body)(body, upstreams)


class _ForgettingUpstreams(RequestUpstreams):
    """Those whose visitor holds the environ that they are in: a cycle until the request is over."""

    __slots__ = ()
    _visitor: WsgiVisitor

    def post_process(self) -> None:
        super().post_process()
        self._visitor.forget()


def _setting_cookies(start_response: StartResponse, upstreams: RequestUpstreams, *, secure: bool) -> StartResponse:
    """``start_response``, with the cookies of sticky sessions: of hosts that are picked before it is called."""

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Callable[[bytes], object]:
        headers = [*headers, *(("Set-Cookie", each.header(secure=secure)) for each in upstreams.cookies())]
        # As it was called: not all servers know of the third.
        return start_response(status, headers, *([exc_info] if exc_info is not None else []))

    return start


class _Body:
    """A response, and what is done when it is over."""

    __slots__ = ("_body", "_upstreams")

    def __init__(self, body: Any, upstreams: RequestUpstreams) -> None:
        self._body = body
        self._upstreams = upstreams

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """The server has sent the last byte, or will send no more."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._upstreams.post_process()


class _SizedBody(_Body):
    """One whose length in parts is known: servers give a response of one part a ``Content-Length``."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)


def _hook_close(body: Any, upstreams: RequestUpstreams) -> bool:
    """Have the server post-process when it closes its own object; whether that allows it."""
    close = getattr(body, "close", None)

    def close_and_post_process() -> None:
        nonlocal close
        original, close = close, None  # a cycle would wait for the garbage collector
        try:
            if original is not None:
                original()
        finally:
            upstreams.post_process()

    try:
        body.close = close_and_post_process
    except AttributeError:  # of a type in C, as in bjoern
        return False
    return True


def upstreams_of(environ: Mapping[str, Any]) -> RequestUpstreams:
    """What the middleware gave a request.

    :raises UpstreamError: naming the middleware, where it is missing.
    """
    upstreams = environ.get("resty_upstreams")
    if upstreams is None:
        raise UpstreamError(
            "this request has no upstreams: wrap the application, as in "
            "app = resty_upstream.contrib.werkzeug.UpstreamMiddleware(app, upstreams=…)"
        )
    return upstreams  # type: ignore[no-any-return]  # the middleware put it there
