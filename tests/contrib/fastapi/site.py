"""A FastAPI site that tells a journal what happens in it, and does all that is hard for ``post_process``."""

# Without `from __future__ import annotations`: FastAPI reads them where they stand.

import gc
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Response, WebSocket
from fastapi.concurrency import run_in_threadpool
from fastapi.requests import HTTPConnection
from fastapi.responses import FileResponse, StreamingResponse

from resty_upstream.contrib.fastapi import UpstreamDep, UpstreamMiddleware, UpstreamsDep
from tests.contrib.bed import bodies
from tests.contrib.bed.asgi import Inner
from tests.contrib.bed.upstreams import of_this_site
from tests.contrib.bed.visits import Visit, tell_of_post_process


async def visit(connection: HTTPConnection, upstream: UpstreamDep) -> Visit:
    return Visit(lambda: upstream, connection.query_params)


VisitDep = Annotated[Visit, Depends(visit)]


def unused() -> Response:
    """Does not use the upstream."""
    return Response(b"unused")


def collect() -> Response:
    """Whatever waits for the garbage collector happens before this answers."""
    gc.collect()
    return Response(b"collected")


def plain(visit: VisitDep) -> Response:
    visit.call()
    return Response(bodies.ONE_BODY)


async def aplain(connection: HTTPConnection, upstreams: UpstreamsDep) -> Response:
    await Visit(lambda: upstreams["default"], connection.query_params).acall()
    return Response(bodies.ONE_BODY)


async def hops(visit: VisitDep) -> Response:
    """Calls the upstream in a thread of the pool."""
    await run_in_threadpool(visit.call)
    return Response(bodies.ONE_BODY)


def thread(visit: VisitDep) -> Response:
    visit.call_in_thread()
    return Response(bodies.ONE_BODY)


def raises(visit: VisitDep) -> Response:
    visit.call()
    raise RuntimeError("the endpoint")


async def araises(visit: VisitDep) -> Response:
    await visit.acall()
    raise RuntimeError("the endpoint")


def missing(visit: VisitDep) -> Response:
    visit.call()
    raise HTTPException(404)


def file(visit: VisitDep) -> Response:
    visit.call()
    return FileResponse(bodies.FILE)


def background(visit: VisitDep, tasks: BackgroundTasks) -> Response:
    """Calls the upstream when the response has been sent."""
    tasks.add_task(visit.call)
    return Response(bodies.ONE_BODY)


async def calls_in_the_end(visit: VisitDep) -> AsyncIterator[None]:
    yield
    await visit.acall()


async def teardown(_: Annotated[None, Depends(calls_in_the_end)]) -> Response:
    """Has a dependency that calls the upstream when the response has been sent."""
    return Response(bodies.ONE_BODY)


# ── streams ───────────────────────────────────────────────────────────────────────────────────


def stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.stream(visit))


def astream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.astream(visit))


def broken_stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.broken_stream(visit))


def abroken_stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.abroken_stream(visit))


def long_stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.long_stream(visit))


def along_stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.along_stream(visit))


def aheld_stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.aheld_stream(visit))


def late_stream(visit: VisitDep) -> Response:
    return StreamingResponse(bodies.late_stream(visit))


# ── endpoints that the client does not wait for ───────────────────────────────────────────────


def held(visit: VisitDep) -> Response:
    visit.call_and_wait()
    return Response(b"held")


async def aheld(visit: VisitDep) -> Response:
    await visit.acall_and_wait()
    return Response(b"held")


def late(visit: VisitDep) -> Response:
    visit.wait_and_call()
    return Response(b"late")


# ── requests that go on when they are over, and requests at once ──────────────────────────────


def thread_goes_on(visit: VisitDep) -> Response:
    visit.leave_thread()
    return Response(b"over")


async def task_goes_on(visit: VisitDep) -> Response:
    visit.leave_task()
    return Response(b"over")


def meets(visit: VisitDep) -> Response:
    return Response(visit.meet())


async def ameets(visit: VisitDep) -> Response:
    return Response(await visit.ameet())


# ── websockets ────────────────────────────────────────────────────────────────────────────────


async def listens(websocket: WebSocket, visit: VisitDep) -> None:
    """Listens until the client closes."""
    await websocket.accept()
    await visit.acall()
    await websocket.send_text("called")
    async for _ in websocket.iter_text():
        pass


async def closes(websocket: WebSocket, visit: VisitDep) -> None:
    await websocket.accept()
    await visit.acall()
    await websocket.close()


async def rejects(websocket: WebSocket, visit: VisitDep) -> None:
    """Closes before it accepts."""
    await visit.acall()
    await websocket.close()


async def breaks(websocket: WebSocket, visit: VisitDep) -> None:
    await websocket.accept()
    await visit.acall()
    visit.tell("raises")
    raise RuntimeError("the endpoint")


async def waits(websocket: WebSocket, visit: VisitDep) -> None:
    """Calls the upstream only when the test opens a gate."""
    await websocket.accept()
    await visit.await_and_call()


ENDPOINTS: list[Callable[..., Any]] = [
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
    teardown,
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


def router() -> APIRouter:
    """Each endpoint at the address of its name."""
    router = APIRouter()
    for endpoint in ENDPOINTS:
        router.add_api_route(f"/{endpoint.__name__}", endpoint, methods=["GET", "HEAD"])
    for endpoint in WEBSOCKETS:
        router.add_api_websocket_route(f"/{endpoint.__name__}", endpoint)
    return router


tell_of_post_process()
upstreams = {"default": of_this_site()}
mounted, own, app = FastAPI(), FastAPI(), FastAPI()
for each in (mounted, own, app):
    each.include_router(router())
own.add_middleware(UpstreamMiddleware, upstreams=upstreams)
app.mount("/mounted", mounted)
app.mount("/own", own)
app.add_middleware(Inner)
app.add_middleware(UpstreamMiddleware, upstreams=upstreams)
