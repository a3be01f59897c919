"""Every way in which a response can come to be, and end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse

from tests.contrib.django.project import journal
from tests.contrib.django.project.following import call, follow

PART = b"x" * 65_536
PARTS = 8
MANY_PARTS = 4000
FILE = Path(__file__)


def unused(request: HttpRequest) -> HttpResponse:
    """Does not use the upstream."""
    return HttpResponse(b"unused")


def collect(request: HttpRequest) -> HttpResponse:
    """Whatever waits for the garbage collector happens before this answers."""
    gc.collect()
    return HttpResponse(b"collected")


def plain(request: HttpRequest) -> HttpResponse:
    call(request)
    return HttpResponse(PART * PARTS)


async def aplain(request: HttpRequest) -> HttpResponse:
    call(request)
    return HttpResponse(PART * PARTS)


def raises(request: HttpRequest) -> HttpResponse:
    call(request)
    raise RuntimeError("the view")


async def araises(request: HttpRequest) -> HttpResponse:
    call(request)
    raise RuntimeError("the view")


def missing(request: HttpRequest) -> HttpResponse:
    call(request)
    raise Http404


def file(request: HttpRequest) -> FileResponse:
    call(request)
    return FileResponse(FILE.open("rb"))


# ── streams: what they see of hosts, they see while they stream ───────────────────────────────


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield from [PART] * PARTS
        call(request)
        yield from [PART] * PARTS

    return StreamingHttpResponse(parts())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(PARTS):
            yield PART
        call(request)
        for _ in range(PARTS):
            yield PART

    return StreamingHttpResponse(parts())


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield PART
        call(request)
        journal.write("raises", request.GET["name"])
        raise RuntimeError("the stream")

    return StreamingHttpResponse(parts())


async def abroken_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield PART
        call(request)
        journal.write("raises", request.GET["name"])
        raise RuntimeError("the stream")

    return StreamingHttpResponse(parts())


def long_stream(request: HttpRequest) -> StreamingHttpResponse:
    """More than fits into any buffer: a client that goes away is noticed."""

    def parts() -> Iterator[bytes]:
        yield PART
        call(request)
        yield from [PART] * MANY_PARTS
        journal.write("streamed", request.GET["name"])

    return StreamingHttpResponse(parts())


async def along_stream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield PART
        call(request)
        for _ in range(MANY_PARTS):
            await asyncio.sleep(0)  # as something that waits; `send` does not once the client has gone
            yield PART
        journal.write("streamed", request.GET["name"])

    return StreamingHttpResponse(parts())


async def aheld_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Waits in the middle until the test opens a gate."""

    async def parts() -> AsyncIterator[bytes]:
        yield PART
        call(request)
        await journal.apass_gate(int(request.GET["gate"]))
        yield PART

    return StreamingHttpResponse(parts())


def late_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Calls the upstream only when the test opens a gate."""

    def parts() -> Iterator[bytes]:
        yield PART
        journal.pass_gate(int(request.GET["gate"]))
        call(request)
        journal.write("goes on", request.GET["name"])
        yield PART

    return StreamingHttpResponse(parts())


# ── views that the client does not wait for ───────────────────────────────────────────────────


async def aheld(request: HttpRequest) -> HttpResponse:
    """Has called the upstream when it waits at a gate."""
    call(request)
    await journal.apass_gate(int(request.GET["gate"]))
    journal.write("answers", request.GET["name"])
    return HttpResponse(b"held")


def held(request: HttpRequest) -> HttpResponse:
    """Has called the upstream when it waits at a gate."""
    call(request)
    journal.pass_gate(int(request.GET["gate"]))
    journal.write("answers", request.GET["name"])
    return HttpResponse(b"held")


def late(request: HttpRequest) -> HttpResponse:
    """Has looked at the upstream when it waits at a gate, and calls it after that."""
    follow(request)
    journal.pass_gate(int(request.GET["gate"]))
    call(request)
    journal.write("goes on", request.GET["name"])
    return HttpResponse(b"late")


def latest(request: HttpRequest) -> HttpResponse:
    """Touches the upstream for the first time after a gate."""
    journal.pass_gate(int(request.GET["gate"]))
    call(request)
    journal.write("goes on", request.GET["name"])
    return HttpResponse(b"latest")


VIEWS: list[Callable[..., Any]] = [
    unused,
    collect,
    plain,
    aplain,
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
    aheld,
    held,
    late,
    latest,
]
