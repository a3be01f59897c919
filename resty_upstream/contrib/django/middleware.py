"""The middleware: contexts on the request, ended when the response is closed."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest

from resty_upstream import InvalidConfig, RequestContext, RequestUpstreams
from resty_upstream.contrib.django.conf import upstreams as configured
from resty_upstream.visitors import WsgiVisitor

if TYPE_CHECKING:
    from django.http import StreamingHttpResponse
    from django.http.response import HttpResponseBase


class _DjangoUpstreams(RequestUpstreams):
    __slots__ = ()

    def __del__(self) -> None:
        # Under ASGI, a response that was not sent to its end because `send` raised is closed by nobody.
        self.post_process()


class UpstreamHttpRequest(HttpRequest):
    """The type of a request behind :class:`UpstreamMiddleware`, for annotations of views.

    ::

        def users(request: UpstreamHttpRequest) -> HttpResponse: ...


        class Users(TemplateView):
            request: UpstreamHttpRequest  # and then self.request.upstream
    """

    upstream: RequestContext
    """The upstream named ``default``."""
    upstreams: RequestUpstreams
    """All upstreams, by name."""


class UpstreamMiddleware:
    """Gives each request ``upstream`` and ``upstreams``.

    What a request sees of hosts is shared with all workers when its response is closed: also when the view
    raised, the response streamed, or the client went away. A request that uses neither pays next to nothing.
    """

    sync_capable: ClassVar[bool] = True
    async_capable: ClassVar[bool] = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_serving = False
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if not self._is_serving:
            self._is_serving = True
            _serve()
        if self._is_async:
            return self._acall(request)
        upstreams = _attach(request)
        try:
            response: HttpResponseBase = self._get_response(request)
        except BaseException:
            upstreams.post_process()
            raise
        _set_cookies(request, response, upstreams)
        _post_process_after(request, response, upstreams)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        upstreams = _attach(request)
        try:
            response: HttpResponseBase = await self._get_response(request)
        except BaseException:  # a client that leaves during the view cancels it; there is no response then
            upstreams.post_process()
            raise
        _set_cookies(request, response, upstreams)
        _post_process_after(request, response, upstreams)
        if response.streaming:
            _post_process_if_broken(cast("StreamingHttpResponse", response), upstreams)
        return response


def _serve() -> None:
    """At the first request, and not sooner: a master that forks serves none."""
    with suppress(InvalidConfig):  # which is said where an upstream is used
        for upstream in configured.values():
            upstream.serve()


def _attach(request: HttpRequest) -> RequestUpstreams:
    # Of META and not of the request: a cycle would leave every request to the garbage collector.
    upstreams = _DjangoUpstreams(configured, WsgiVisitor(request.META))
    cast("UpstreamHttpRequest", request).upstreams = upstreams
    return upstreams


def _set_cookies(request: HttpRequest, response: HttpResponseBase, upstreams: RequestUpstreams) -> None:
    """Those of sticky sessions: of hosts that were picked before the response streams."""
    if upstreams.used:
        for name, value, max_age in upstreams.cookies():
            response.set_cookie(
                name, value, max_age=max_age, secure=request.is_secure(), httponly=True, samesite="Lax"
            )


def _post_process_after(request: HttpRequest, response: HttpResponseBase, upstreams: RequestUpstreams) -> None:
    """Post-process when the response is closed, after its last byte."""
    if not upstreams.used and not response.streaming:
        upstreams.post_process()  # whatever comes later, from an outer middleware, is told at once
        return
    # Whichever response an outer middleware answers with instead, it closes the request.
    close = request.close

    def close_and_post_process() -> None:
        request.__dict__.pop("close", None)  # a cycle would wait for the garbage collector
        try:
            close()
        finally:
            upstreams.post_process()

    request.close = close_and_post_process  # type: ignore[method-assign]  # Django has no other hook that is public


def _post_process_if_broken(response: StreamingHttpResponse, upstreams: RequestUpstreams) -> None:
    """Under ASGI, Django does not close a response whose stream raises."""
    content = response.streaming_content
    if response.is_async:
        response.streaming_content = _watched_async(cast("AsyncIterable[bytes]", content), upstreams)
    else:
        response.streaming_content = _watched(cast("Iterable[bytes]", content), upstreams)


def _watched(content: Iterable[bytes], upstreams: RequestUpstreams) -> Iterator[bytes]:
    try:
        yield from content
    except BaseException:
        upstreams.post_process()
        raise


async def _watched_async(content: AsyncIterable[bytes], upstreams: RequestUpstreams) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    except BaseException:
        upstreams.post_process()
        raise


class _FromMiddleware:
    """An attribute of every ``HttpRequest``: what the middleware gave this one, or an error that names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, request: HttpRequest | None, owner: type) -> RequestContext:
        upstreams = getattr(request, "__dict__", {}).get("upstreams")
        if upstreams is None:
            raise AttributeError(
                f"request.{self._name} needs 'resty_upstream.contrib.django.UpstreamMiddleware' in MIDDLEWARE, "
                "above all middleware that uses it"
            )
        context: RequestContext = upstreams["default"]
        return context


# Made when it is asked for: most requests do without, and should not pay for it.
for _name in ("upstream", "upstreams"):
    setattr(HttpRequest, _name, _FromMiddleware(_name))
