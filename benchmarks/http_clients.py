"""Requests of HTTP through an upstream, against the same client that talks to one host."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import aiohttp
import httpx
import httpx2
import requests
import urllib3

from benchmarks.harness import Group, Sample, Variant, at_most_more_us, calling
from benchmarks.upstreams import on_loopback
from resty_upstream.contrib.aiohttp import UpstreamConnector, UpstreamMiddleware
from resty_upstream.contrib.httpx import AsyncUpstreamTransport, UpstreamTransport
from resty_upstream.contrib.requests import UpstreamAdapter
from resty_upstream.contrib.urllib3 import UpstreamPoolManager

_CALLS = 20
_NAME = "http://users.internal"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.contextmanager
def http_clients() -> Iterator[list[Group]]:
    """A GET on a connection that is kept alive, of each client."""
    with _server() as port, asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        direct, upstream = f"http://127.0.0.1:{port}", on_loopback(port)
        groups = []
        for hx in (httpx2, httpx):
            transport = UpstreamTransport(upstream)
            plain = stack.enter_context(hx.Client(base_url=direct))
            balanced = stack.enter_context(hx.Client(transport=transport, base_url=_NAME))
            groups.append(_group(hx.__name__, calling(_getting(plain)), calling(_getting(balanced))))
            atransport = AsyncUpstreamTransport(upstream)
            aplain = hx.AsyncClient(base_url=direct)
            abalanced = hx.AsyncClient(transport=atransport, base_url=_NAME)
            for client in (aplain, abalanced):
                stack.callback(_ending(client.aclose, runner))
            name = f"{hx.__name__}.AsyncClient"
            groups.append(_group(name, _awaiting(aplain, runner), _awaiting(abalanced, runner)))
        session = stack.enter_context(requests.Session())
        session.mount(f"{_NAME}/", UpstreamAdapter(upstream))
        urls = [f"{direct}/users/1", f"{_NAME}/users/1"]
        groups.append(_group("requests", *(calling(functools.partial(session.get, url)) for url in urls)))
        managers = [urllib3.PoolManager(), UpstreamPoolManager(upstream)]
        asking = [
            calling(functools.partial(manager.request, "GET", url))
            for manager, url in zip(managers, urls, strict=True)
        ]
        groups.append(_group("urllib3", *asking))
        plain_session = runner.run(_session(direct))
        balanced_session = runner.run(_session(_NAME, UpstreamConnector, [UpstreamMiddleware(upstream)]))
        for each in (plain_session, balanced_session):
            stack.callback(_ending(each.close, runner))
        groups.append(_group("aiohttp", _reading(plain_session, runner), _reading(balanced_session, runner)))
        yield groups


def _group(name: str, plain: Sample, balanced: Sample) -> Group:
    return Group(
        f"GET by {name} on loopback",
        _CALLS,
        [Variant("one host, directly", plain), Variant("through an upstream", balanced, at_most_more_us(15))],
        "difference",
    )


def _ending(close: Callable[[], Coroutine[Any, Any, object]], runner: asyncio.Runner) -> Callable[[], object]:
    return lambda: runner.run(close())


async def _session(
    url: str, connector: Callable[[], aiohttp.BaseConnector] | None = None, middlewares: Sequence[Any] = ()
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, connector=connector() if connector else None, middlewares=middlewares)


def _reading(session: aiohttp.ClientSession, runner: asyncio.Runner) -> Sample:
    async def sample(calls: int) -> int:
        began = time.perf_counter_ns()
        for _ in range(calls):
            async with session.get("/users/1") as response:
                await response.read()
        return time.perf_counter_ns() - began

    return lambda calls: runner.run(sample(calls))


def _getting(client: Any) -> Callable[[], object]:
    return lambda: client.get("/users/1")


def _awaiting(client: Any, runner: asyncio.Runner) -> Sample:
    async def sample(calls: int) -> int:
        began = time.perf_counter_ns()
        for _ in range(calls):
            await client.get("/users/1")
        return time.perf_counter_ns() - began

    return lambda calls: runner.run(sample(calls))


@contextlib.contextmanager
def _server() -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, "-m", "benchmarks.http_clients"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _serve() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while connection.recv(65_536):
        connection.sendall(_ANSWER)


if __name__ == "__main__":
    _serve()
