"""What a checker must know of views and calls: checked by mypy in ``test_typing.py``, never run.

``assert_type`` fails where another type is inferred; an ``ignore`` fails where nothing is wrong.
"""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
from http.client import HTTPConnection, HTTPSConnection
from typing import assert_type

from django.dispatch import Signal, receiver
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods
from django.views.generic import TemplateView

from resty_upstream import (
    Attempt,
    Attempts,
    Connected,
    Host,
    HostEvent,
    Info,
    Pool,
    RequestContext,
    RequestUpstreams,
    Upstream,
)
from resty_upstream.contrib.django import UpstreamHttpRequest, get_upstream
from resty_upstream.contrib.django.signals import host_down, host_up

CONTEXT = ssl.create_default_context()


def tls(host: str, port: int, timeout_s: float) -> ssl.SSLSocket:
    sock = socket.create_connection((host, port), timeout=timeout_s)
    return CONTEXT.wrap_socket(sock, server_hostname="logical.example")


async def exchange(host: str, port: int, timeout_s: float) -> bytes:
    async with asyncio.timeout(timeout_s):
        reader, _ = await asyncio.open_connection(host, port)
        return await reader.read()


class RestyClient:
    """An object with the contract of lua-resty modules."""

    def connect(self, host: str, port: int) -> bool:
        return bool(host and port)

    def set_timeout(self, seconds: float) -> None: ...


def view(request: UpstreamHttpRequest) -> HttpResponse:
    assert_type(request.upstream, RequestContext)
    assert_type(request.upstreams, RequestUpstreams)
    assert_type(request.upstreams["other"], RequestContext)
    assert_type(request.upstreams.get("other"), RequestContext | None)
    assert_type(list(request.upstreams), list[str])
    assert_type(request.method, str | None)

    connected = request.upstream.connect()
    assert_type(connected, Connected[socket.socket])
    sock, info = connected
    assert_type(sock, socket.socket)
    assert_type(info, Info)
    assert_type(info.host, Host)
    assert_type(info.host.port, int)
    assert_type(info.pool, Pool)
    assert_type(info.attempts, tuple[Attempt, ...])
    assert_type(info.last_resort, bool)

    assert_type(request.upstream.connect(None).client, socket.socket)
    assert_type(request.upstream.connect(socket.socket()).client, socket.socket)
    assert_type(request.upstream.connect(HTTPConnection("logical.example")).client, HTTPConnection)
    assert_type(request.upstream.connect(HTTPSConnection("logical.example")).client, HTTPSConnection)
    assert_type(request.upstream.connect(tls).client, ssl.SSLSocket)
    assert_type(request.upstream.connect(RestyClient()).client, RestyClient)
    assert_type(request.upstream.connect(smtplib.SMTP(), key="user").client, smtplib.SMTP)
    assert_type(request.upstream.connect(lambda host, port, timeout_s: f"{host}{port + timeout_s}").client, str)

    attempts = request.upstream.attempts(key=b"user")
    assert_type(attempts, Attempts)
    for attempt in attempts:
        assert_type(attempt, Attempt)
        with attempt as host:
            assert_type(host, Host)
            assert_type(attempt.timeout_s, float)
    return JsonResponse({"host": info.host.id})


async def asynchronous(request: UpstreamHttpRequest) -> HttpResponse:
    reader, writer = (await request.upstream.aconnect()).client
    assert_type(reader, asyncio.StreamReader)
    assert_type(writer, asyncio.StreamWriter)
    assert_type((await request.upstream.aconnect(exchange)).client, bytes)
    assert_type((await request.upstream.aconnect(socket.socket())).client, socket.socket)
    return HttpResponse()


@require_GET
@never_cache
def decorated(request: UpstreamHttpRequest, number: int) -> HttpResponse:
    assert_type(request.upstream, RequestContext)
    return HttpResponse(str(number))


@require_http_methods(["GET", "HEAD"])
async def decorated_and_asynchronous(request: UpstreamHttpRequest) -> HttpResponse:
    assert_type(request.upstream, RequestContext)
    return HttpResponse()


class ClassBased(View):
    request: UpstreamHttpRequest

    def get(self, request: UpstreamHttpRequest) -> HttpResponse:
        assert_type(request.upstream, RequestContext)
        assert_type(self.request.upstreams["other"], RequestContext)
        return HttpResponse()


class ClassBasedAndAsynchronous(View):
    async def get(self, request: UpstreamHttpRequest) -> HttpResponse:
        assert_type((await request.upstream.aconnect(exchange)).client, bytes)
        return HttpResponse()


@method_decorator(never_cache, name="dispatch")
class Generic(TemplateView):
    request: UpstreamHttpRequest

    def get_context_data(self, **kwargs: object) -> dict[str, object]:
        assert_type(self.request.upstream, RequestContext)
        return {**super().get_context_data(**kwargs), "host": self.request.upstream.connect().info.host.id}


def outside_a_request() -> None:
    upstream = get_upstream()
    assert_type(upstream, Upstream)
    assert_type(get_upstream("other"), Upstream)
    assert_type(upstream.connect().client, socket.socket)
    assert_type(upstream.connect(tls).client, ssl.SSLSocket)
    with upstream.context(key="user") as context:
        assert_type(context, RequestContext)


@receiver([host_up, host_down])
def hears(sender: type[Upstream], event: HostEvent, **kwargs: object) -> None:
    assert_type(event.host, Host)
    assert_type(event.upstream, str)


async def hears_asynchronously(event: HostEvent, **kwargs: object) -> None:
    assert_type(event.pool, Pool)


assert_type(host_down, Signal)
host_down.connect(hears_asynchronously, sender=Upstream)

urlpatterns = [
    path("", view),
    path("async", asynchronous),
    path("decorated/<int:number>", decorated),
    path("decorated/async", decorated_and_asynchronous),
    path("class", ClassBased.as_view()),
    path("class/async", ClassBasedAndAsynchronous.as_view()),
    path("generic", Generic.as_view(template_name="hosts.html")),
]


def wrong(request: UpstreamHttpRequest, plain: HttpRequest) -> None:
    request.upstream.connect(5)  # type: ignore[call-overload]  # neither a client nor callable
    request.upstream.connect(key=5)  # type: ignore[call-overload]  # keys are text or bytes
    request.upstream.connect(lambda host: host)  # type: ignore[arg-type,misc]  # takes three arguments
    request.upstreams["other"] = request.upstream  # type: ignore[index]  # read only
    request.upstream.conect()  # type: ignore[attr-defined]  # a typing error is seen
    plain.upstream  # type: ignore[attr-defined]  # noqa: B018 - a request of the wrong type is seen
