"""A Starlette site that tells a journal what happens in it, and does all that is hard for ``post_process``."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from resty_upstream.contrib.starlette import UpstreamMiddleware, get_upstream
from tests.contrib.bed import bodies
from tests.contrib.bed.asgi import Inner
from tests.contrib.bed.upstreams import of_this_site
from tests.contrib.bed.visits import Visit, tell_of_post_process


def visit(connection: HTTPConnection) -> Visit:
    return Visit(lambda: get_upstream(connection), connection.query_params)


def unused(request: Request) -> Response:
    """Does not use the upstream."""
    return Response(b"unused")


def collect(request: Request) -> Response:
    """Whatever waits for the garbage collector happens before this answers."""
    gc.collect()
    return Response(b"collected")


def plain(request: Request) -> Response:
    visit(request).call()
    return Response(bodies.ONE_BODY)


async def aplain(request: Request) -> Response:
    await visit(request).acall()
    return Response(bodies.ONE_BODY)


async def hops(request: Request) -> Response:
    """Calls the upstream in a thread of the pool."""
    await run_in_threadpool(visit(request).call)
    return Response(bodies.ONE_BODY)


def thread(request: Request) -> Response:
    visit(request).call_in_thread()
    return Response(bodies.ONE_BODY)


def raises(request: Request) -> Response:
    visit(request).call()
    raise RuntimeError("the endpoint")


async def araises(request: Request) -> Response:
    await visit(request).acall()
    raise RuntimeError("the endpoint")


def missing(request: Request) -> Response:
    visit(request).call()
    raise HTTPException(404)


def file(request: Request) -> Response:
    visit(request).call()
    return FileResponse(bodies.FILE)


def background(request: Request) -> Response:
    """Calls the upstream when the response has been sent."""
    return Response(bodies.ONE_BODY, background=BackgroundTask(visit(request).call))


# ── streams ───────────────────────────────────────────────────────────────────────────────────


def stream(request: Request) -> Response:
    return StreamingResponse(bodies.stream(visit(request)))


def astream(request: Request) -> Response:
    return StreamingResponse(bodies.astream(visit(request)))


def broken_stream(request: Request) -> Response:
    return StreamingResponse(bodies.broken_stream(visit(request)))


def abroken_stream(request: Request) -> Response:
    return StreamingResponse(bodies.abroken_stream(visit(request)))


def long_stream(request: Request) -> Response:
    return StreamingResponse(bodies.long_stream(visit(request)))


def along_stream(request: Request) -> Response:
    return StreamingResponse(bodies.along_stream(visit(request)))


def aheld_stream(request: Request) -> Response:
    return StreamingResponse(bodies.aheld_stream(visit(request)))


def late_stream(request: Request) -> Response:
    return StreamingResponse(bodies.late_stream(visit(request)))


# ── endpoints that the client does not wait for ───────────────────────────────────────────────


def held(request: Request) -> Response:
    visit(request).call_and_wait()
    return Response(b"held")


async def aheld(request: Request) -> Response:
    await visit(request).acall_and_wait()
    return Response(b"held")


def late(request: Request) -> Response:
    visit(request).wait_and_call()
    return Response(b"late")


# ── requests that go on when they are over, and requests at once ──────────────────────────────


def thread_goes_on(request: Request) -> Response:
    visit(request).leave_thread()
    return Response(b"over")


async def task_goes_on(request: Request) -> Response:
    visit(request).leave_task()
    return Response(b"over")


def meets(request: Request) -> Response:
    return Response(visit(request).meet())


async def ameets(request: Request) -> Response:
    return Response(await visit(request).ameet())


# ── websockets ────────────────────────────────────────────────────────────────────────────────


async def listens(websocket: WebSocket) -> None:
    """Listens until the client closes."""
    await websocket.accept()
    await visit(websocket).acall()
    await websocket.send_text("called")
    async for _ in websocket.iter_text():
        pass


async def closes(websocket: WebSocket) -> None:
    await websocket.accept()
    await visit(websocket).acall()
    await websocket.close()


async def rejects(websocket: WebSocket) -> None:
    """Closes before it accepts."""
    await visit(websocket).acall()
    await websocket.close()


async def breaks(websocket: WebSocket) -> None:
    await websocket.accept()
    await visit(websocket).acall()
    visit(websocket).tell("raises")
    raise RuntimeError("the endpoint")


async def waits(websocket: WebSocket) -> None:
    """Calls the upstream only when the test opens a gate."""
    await websocket.accept()
    await visit(websocket).await_and_call()


ENDPOINTS: list[Callable[[Request], Any]] = [
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
    background,
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
    thread_goes_on,
    task_goes_on,
    meets,
    ameets,
]
WEBSOCKETS = [listens, closes, rejects, breaks, waits]


tell_of_post_process()
endpoints = [
    *(Route(f"/{endpoint.__name__}", endpoint) for endpoint in ENDPOINTS),
    *(WebSocketRoute(f"/{endpoint.__name__}", endpoint) for endpoint in WEBSOCKETS),
]
upstreams = {"default": of_this_site()}
routes = [
    *endpoints,
    Mount("/mounted", Starlette(routes=endpoints)),
    Mount("/own", UpstreamMiddleware(Starlette(routes=endpoints), upstreams)),
]
app = Starlette(routes=routes, middleware=[Middleware(UpstreamMiddleware, upstreams=upstreams), Middleware(Inner)])
wrapped = UpstreamMiddleware(Starlette(routes=routes, middleware=[Middleware(Inner)]), upstreams)
