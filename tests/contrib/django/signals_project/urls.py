"""Views that take a host down, or bring it up."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from resty_upstream import UpstreamAPI
from resty_upstream.contrib.django import UpstreamHttpRequest, get_upstream
from tests.contrib.django.signals_project.receivers import gates


def use_gate(request: HttpRequest, alias: str) -> None:
    """Have the next signal of an upstream wait for the test, if the request says so."""
    if "gate" in request.GET:
        gates[alias] = int(request.GET["gate"])


def default(request: UpstreamHttpRequest) -> HttpResponse:
    """A call whose failure is told when the response is closed."""
    use_gate(request, "default")
    client, info = request.upstream.connect()
    client.close()
    return HttpResponse(info.host.id)


async def loop(request: HttpRequest) -> HttpResponse:
    """A call whose failure is told at once, on the event loop."""
    use_gate(request, "loop")
    (_, writer), info = await get_upstream("loop").aconnect()
    writer.close()
    return HttpResponse(info.host.id)


async def up(request: HttpRequest) -> HttpResponse:
    """A change by hand, on the event loop."""
    UpstreamAPI(get_upstream("loop")).up_host("primary", "dead")
    return HttpResponse("up")


async def ping(request: HttpRequest) -> HttpResponse:
    """Answers while the loop can."""
    return HttpResponse("pong")


urlpatterns = [path(view.__name__, view) for view in (default, loop, up, ping)]
