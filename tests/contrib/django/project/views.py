"""Every way in which a response can come to be, and end."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse

from tests.contrib.bed import bodies
from tests.contrib.django.project.visits import visit


def unused(request: HttpRequest) -> HttpResponse:
    """Does not use the upstream."""
    return HttpResponse(b"unused")


def collect(request: HttpRequest) -> HttpResponse:
    """Whatever waits for the garbage collector happens before this answers."""
    gc.collect()
    return HttpResponse(b"collected")


def plain(request: HttpRequest) -> HttpResponse:
    visit(request).call()
    return HttpResponse(bodies.ONE_BODY)


async def aplain(request: HttpRequest) -> HttpResponse:
    await visit(request).acall()
    return HttpResponse(bodies.ONE_BODY)


async def hops(request: HttpRequest) -> HttpResponse:
    """Calls the upstream in a thread of asgiref."""
    await sync_to_async(visit(request).call)()
    return HttpResponse(bodies.ONE_BODY)


def thread(request: HttpRequest) -> HttpResponse:
    visit(request).call_in_thread()
    return HttpResponse(bodies.ONE_BODY)


def raises(request: HttpRequest) -> HttpResponse:
    visit(request).call()
    raise RuntimeError("the view")


async def araises(request: HttpRequest) -> HttpResponse:
    await visit(request).acall()
    raise RuntimeError("the view")


def missing(request: HttpRequest) -> HttpResponse:
    visit(request).call()
    raise Http404


def file(request: HttpRequest) -> FileResponse:
    visit(request).call()
    return FileResponse(bodies.FILE.open("rb"))


# ── streams ───────────────────────────────────────────────────────────────────────────────────


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.stream(visit(request)))


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.astream(visit(request)))


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.broken_stream(visit(request)))


async def abroken_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.abroken_stream(visit(request)))


def long_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.long_stream(visit(request)))


async def along_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.along_stream(visit(request)))


async def aheld_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.aheld_stream(visit(request)))


def late_stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(bodies.late_stream(visit(request)))


# ── views that the client does not wait for ───────────────────────────────────────────────────


def held(request: HttpRequest) -> HttpResponse:
    visit(request).call_and_wait()
    return HttpResponse(b"held")


async def aheld(request: HttpRequest) -> HttpResponse:
    await visit(request).acall_and_wait()
    return HttpResponse(b"held")


def late(request: HttpRequest) -> HttpResponse:
    """Has looked at the upstream before the gate."""
    visit(request).follow()
    visit(request).wait_and_call()
    return HttpResponse(b"late")


def latest(request: HttpRequest) -> HttpResponse:
    """Touches the upstream for the first time after the gate."""
    visit(request).wait_and_call()
    return HttpResponse(b"latest")


# ── requests that go on when they are over, and requests at once ──────────────────────────────


def thread_goes_on(request: HttpRequest) -> HttpResponse:
    visit(request).leave_thread()
    return HttpResponse(b"over")


async def task_goes_on(request: HttpRequest) -> HttpResponse:
    visit(request).leave_task()
    return HttpResponse(b"over")


def meets(request: HttpRequest) -> HttpResponse:
    return HttpResponse(visit(request).meet())


async def ameets(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await visit(request).ameet())


VIEWS: list[Callable[..., Any]] = [
    unused,
    collect,
    plain,
    aplain,
    hops,
    thread,
    raises,
    araises,
    missing,
    file,
    stream,
    astream,
    broken_stream,
    abroken_stream,
    long_stream,
    along_stream,
    aheld_stream,
    late_stream,
    held,
    aheld,
    late,
    latest,
    thread_goes_on,
    task_goes_on,
    meets,
    ameets,
]
