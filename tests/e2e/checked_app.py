"""An application whose hosts are checked, for WSGI and ASGI servers: it calls one, or says how it sees them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

from resty_upstream import RequestContext, Upstreams
from resty_upstream.asgi import UpstreamMiddleware as AsgiMiddleware
from resty_upstream.wsgi import UpstreamMiddleware as WsgiMiddleware

upstreams = Upstreams(
    {"default": {"store": os.environ["E2E_STORE"], "pools": json.loads(os.environ["E2E_POOLS"])}}
)


def _fetch(host: str, port: int, timeout_s: float) -> bytes:
    with socket.create_connection((host, port), timeout_s) as connection:
        connection.sendall(b"GET /call HTTP/1.0\r\n\r\n")
        answer = connection.recv(100)
    if not answer:
        raise ConnectionResetError
    return answer


def _seen(upstream: RequestContext) -> dict[str, bool]:
    return {host.host.id: host.up for pool in upstream.explain().pools for host in pool.hosts}


def _answer(upstream: RequestContext, path: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"worker": os.getpid()}
    if path == "/call":
        return {**answer, "host": upstream.connect(_fetch).info.host.id}
    return {**answer, "up": _seen(upstream)}


def _wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = json.dumps(_answer(environ["resty_upstream"], environ["PATH_INFO"])).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def _asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": message["type"] + ".complete"})
        return
    answer = await asyncio.to_thread(_answer, scope["state"]["upstream"], scope["path"])
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


wsgi = WsgiMiddleware(_wsgi, upstreams)
asgi = AsgiMiddleware(_asgi, upstreams)
