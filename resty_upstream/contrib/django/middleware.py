"""The middleware: contexts on the request, ended when the response is closed."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest

from resty_upstream.contrib.django.conf import aliases, get_upstream

if TYPE_CHECKING:
    from django.http import StreamingHttpResponse
    from django.http.response import HttpResponseBase

    from resty_upstream import RequestContext


class RequestUpstreams(Mapping[str, "RequestContext"]):
    """The upstreams of one request, by their name in ``UPSTREAMS``; each context is made on first use.

    :raises UpstreamNotFound: (a ``KeyError``) for a name that the setting does not have.
    """

    __slots__ = ("_contexts", "_finished", "_meta")

    def __init__(self, meta: Mapping[str, Any]) -> None:
        self._meta = meta
        self._contexts: dict[str, RequestContext] = {}
        self._finished = False

    def __getitem__(self, alias: str) -> RequestContext:
        context = self._contexts.get(alias)
        if context is None:
            # A key that holds META alone: one that holds this object would leave it to the garbage collector.
            meta = self._meta
            made = get_upstream(alias).context(key=lambda: meta.get("REMOTE_ADDR") or None)  # "" at a unix socket
            context = self._contexts.setdefault(alias, made)
            if self._finished:
                context.post_process()  # from now on it tells at once what it sees
        return context

    def __iter__(self) -> Iterator[str]:
        return iter(aliases())

    def __len__(self) -> int:
        return len(aliases())

    def finish(self) -> None:
        """The response is over: share what was seen of hosts. A second call does nothing."""
        if not self._finished:
            self._finished = True
            for context in list(self._contexts.values()):
                context.post_process()

    def finish_after(self, request: HttpRequest, response: HttpResponseBase) -> None:
        """Finish when the response is closed, after its last byte."""
        if not self._contexts and not response.streaming:
            self._finished = True  # whatever comes later, from an outer middleware, is told at once
            return
        self._finish_at_close_of(response)
        # An outer middleware may answer with another response; whichever it is, it closes the request.
        self._finish_at_close_of(request)

    def _finish_at_close_of(self, closed: HttpRequest | HttpResponseBase) -> None:
        close = closed.close

        def close_and_finish() -> None:
            closed.__dict__.pop("close", None)  # a cycle would wait for the garbage collector
            try:
                close()
            finally:
                self.finish()

        closed.close = close_and_finish  # type: ignore[method-assign]  # Django has no other hook that is public

    def __del__(self) -> None:
        # A server whose `send` raises leaves a response that nobody closes.
        if not self._finished:
            self.finish()


class UpstreamHttpRequest(HttpRequest):
    """The type of a request behind :class:`UpstreamMiddleware`, for annotations of views."""

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
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._acall(request)
        upstreams = _attach(request)
        try:
            response: HttpResponseBase = self._get_response(request)
        except BaseException:
            upstreams.finish()
            raise
        upstreams.finish_after(request, response)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        upstreams = _attach(request)
        try:
            response: HttpResponseBase = await self._get_response(request)
        except BaseException:  # a client that leaves during the view cancels it; there is no response then
            upstreams.finish()
            raise
        upstreams.finish_after(request, response)
        if response.streaming:
            _finish_if_broken(cast("StreamingHttpResponse", response), upstreams)
        return response


def _attach(request: HttpRequest) -> RequestUpstreams:
    # The request's META and not the request: a cycle would leave every request to the garbage collector.
    upstreams = RequestUpstreams(request.META)
    cast("UpstreamHttpRequest", request).upstreams = upstreams
    return upstreams


def _finish_if_broken(response: StreamingHttpResponse, upstreams: RequestUpstreams) -> None:
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
        upstreams.finish()
        raise


async def _watched_async(content: AsyncIterable[bytes], upstreams: RequestUpstreams) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    except BaseException:
        upstreams.finish()
        raise


class _FromMiddleware:
    """An attribute of every ``HttpRequest``: what the middleware gave this one, or an error that names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, request: HttpRequest | None, owner: type) -> RequestContext:
        upstreams = getattr(request, "__dict__", {}).get("upstreams")
        if upstreams is None:
            raise AttributeError(
                f"request.{self._name} needs 'resty_upstream.contrib.django.UpstreamMiddleware' in MIDDLEWARE"
            )
        context: RequestContext = upstreams["default"]
        return context


# Made when it is asked for: most requests do without, and should not pay for it.
for _name in ("upstream", "upstreams"):
    setattr(HttpRequest, _name, _FromMiddleware(_name))
