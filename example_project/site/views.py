"""Four ways to call a service through `request.upstream`, and a page that shows what happened.

Every call does the whole exchange inside its attempt: the kernel completes connections to a process that is
stopped, so that only a missing answer shows that it is not there.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple

from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache

from resty_upstream import Info, NoHostAvailable
from resty_upstream.contrib.django import UpstreamHttpRequest

MAX_LINE = 8192


def raw(request: UpstreamHttpRequest) -> JsonResponse:
    """A protocol of our own over a socket: `connect()` with a callable."""
    try:
        answer, info = request.upstream.connect(ask)
    except NoHostAvailable as exc:
        return unavailable(exc)
    return report(answer, info)


def http(request: UpstreamHttpRequest) -> JsonResponse:
    """Any client library: `attempts()` around the call."""
    try:
        for attempt in request.upstream.attempts():
            with attempt as host:
                answer = fetch(host.host, host.port, attempt.timeout_s)
    except NoHostAvailable as exc:
        return unavailable(exc)
    return report(answer, attempt.info)


def client(request: UpstreamHttpRequest) -> JsonResponse:
    """HTTP without a loop of our own: the request's client goes on to the next host by itself."""
    try:
        response = request.upstream.http.get("/")
    except NoHostAvailable as exc:
        return unavailable(exc)
    return report(str(response.json()["answer"]), response.extensions["upstream"])


async def asynchronous(request: UpstreamHttpRequest) -> JsonResponse:
    """As `raw`, with asyncio."""
    try:
        answer, info = await request.upstream.aconnect(aask)
    except NoHostAvailable as exc:
        return unavailable(exc)
    return report(answer, info)


@never_cache
def page(request: UpstreamHttpRequest) -> HttpResponse:
    """Makes a call, and shows who answered and what every worker knows about the hosts."""
    context: dict[str, Any] = {"worker": os.getpid()}
    status = 200
    try:
        answer, info = request.upstream.connect(ask)
        context |= {"answer": answer, "info": info, "attempts": info.attempts}
    except NoHostAvailable as exc:
        status = exc.status_hint
        context |= {"error": str(exc), "status": status, "attempts": exc.attempts}
    # Told to all when the response is over; this page wants to show it already.
    request.upstream.post_process()
    context["rows"] = list(host_rows(request.upstream.get_pools()))
    context["explanation"] = str(request.upstream.explain())
    return render(request, "site/page.html", context, status=status)


def ask(host: str, port: int, timeout_s: float) -> str:
    """Send one line and return the line that comes back; each step may take `timeout_s`."""
    with socket.create_connection((host, port), timeout=timeout_s) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"hello\n")
        return whole_line(lines.readline(MAX_LINE))


async def aask(host: str, port: int, timeout_s: float) -> str:
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"hello\n")
            return whole_line(await reader.readline())
        finally:
            writer.close()


def whole_line(line: bytes) -> str:
    if not line.endswith(b"\n"):
        raise EOFError("the connection was closed before the answer was complete")
    return line.decode().strip()


def fetch(host: str, port: int, timeout_s: float) -> str:
    """GET / and return the `answer` of the JSON that comes back."""
    connection = HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        return str(json.loads(response.read())["answer"])
    finally:
        connection.close()


def report(answer: str, info: Info) -> JsonResponse:
    return JsonResponse(
        {
            "answer": answer,
            "host": info.host.id,
            "pool": info.pool.id,
            "attempts": len(info.attempts),
            "worker": os.getpid(),
        }
    )


def unavailable(exc: NoHostAvailable) -> JsonResponse:
    """What a gateway would answer, 502 or 504; the message names what was tried."""
    answer = {"error": str(exc), "attempts": len(exc.attempts), "worker": os.getpid()}
    return JsonResponse(answer, status=exc.status_hint)


class HostRow(NamedTuple):
    """One line of the page's table."""

    pool_id: str
    pool: dict[str, Any]
    host_id: str
    host: dict[str, Any]
    state: str
    failed_s_ago: int | None


def host_rows(pools: dict[str, dict[str, Any]]) -> Iterator[HostRow]:
    """The hosts of all pools in the order in which pools are tried."""
    now = time.time()
    for pool_id, pool in sorted(pools.items(), key=lambda item: item[1]["priority"]):
        for host_id, host in pool["hosts"].items():
            lastfail = host["lastfail"]
            failed_s_ago = max(0, round(now - lastfail)) if lastfail else None
            yield HostRow(pool_id, pool, host_id, host, state_word(pool, host), failed_s_ago)


def state_word(pool: dict[str, Any], host: dict[str, Any]) -> str:
    if not pool["up"]:
        return "pool down"
    if host["up"]:
        return "up"
    # Only a host that was taken down by hand is down without a failure.
    return "failed" if host["lastfail"] else "down by hand"
