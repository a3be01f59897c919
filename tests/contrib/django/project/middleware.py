"""Middleware around and inside ours, steered by the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from tests.contrib.django.project.visits import visit

GetResponse = Callable[[HttpRequest], Any]


@sync_and_async_middleware
def outer(get_response: GetResponse) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Outside of ours: sees its response."""

    def after(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        match request.GET.get("outer"):
            case "calls":
                visit(request).call()
            case "replaces":
                return HttpResponseNotModified()
            case "raises":
                raise RuntimeError("the outer middleware")
        return response

    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            return after(request, await get_response(request))

        return middleware
    return lambda request: after(request, get_response(request))


@sync_and_async_middleware
def inner(get_response: GetResponse) -> Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]:
    """Inside of ours: may use the upstream, and may answer by itself."""

    def before(request: HttpRequest) -> HttpResponseBase | None:
        if "inner" in request.GET:
            visit(request).call()
        return HttpResponse("early") if request.GET.get("inner") == "answers" else None

    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = before(request) or await get_response(request)
            return response

        return middleware
    return lambda request: before(request) or get_response(request)
