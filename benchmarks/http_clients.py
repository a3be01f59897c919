"""Requests of HTTP through an upstream, against the same client that talks to one host."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
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
    """A GET on a connection that is kept alive, of each client; where there is nginx, through that, too."""
    with (
        _server() as port,
        _proxy(port) as proxy_port,
        asyncio.Runner() as runner,
        contextlib.ExitStack() as stack,
    ):
        upstream = on_loopback(port)
        # A name, as upstreams have: clients take an address apart more than once, which would be to our advantage.
        urls = [f"http://localhost:{each}" for each in (port, proxy_port) if each]
        groups = []
        for hx in (httpx2, httpx):
            clients = [hx.Client(base_url=url) for url in urls]
            clients.insert(1, hx.Client(transport=UpstreamTransport(upstream), base_url=_NAME))
            groups.append(_group(hx.__name__, [calling(_getting(stack.enter_context(each))) for each in clients]))
            aclients = [hx.AsyncClient(base_url=url) for url in urls]
            aclients.insert(1, hx.AsyncClient(transport=AsyncUpstreamTransport(upstream), base_url=_NAME))
            for client in aclients:
                stack.callback(_ending(client.aclose, runner))
            groups.append(_group(f"{hx.__name__}.AsyncClient", [_awaiting(each, runner) for each in aclients]))
        session = stack.enter_context(requests.Session())
        session.mount(f"{_NAME}/", UpstreamAdapter(upstream))
        asked = [f"{url}/users/1" for url in (urls[0], _NAME, *urls[1:])]
        groups.append(_group("requests", [calling(functools.partial(session.get, url)) for url in asked]))
        plain = urllib3.PoolManager()
        managers = [plain, UpstreamPoolManager(upstream), plain]
        asking = [functools.partial(each.request, "GET", url) for each, url in zip(managers, asked, strict=False)]
        groups.append(_group("urllib3", [calling(each) for each in asking]))
        sessions = [runner.run(_session(url)) for url in urls]
        sessions.insert(1, runner.run(_session(_NAME, UpstreamConnector, [UpstreamMiddleware(upstream)])))
        for each in sessions:
            stack.callback(_ending(each.close, runner))
        groups.append(_group("aiohttp", [_reading(each, runner) for each in sessions]))
        yield groups


def _group(name: str, samples: Sequence[Sample]) -> Group:
    plain, balanced, *proxied = samples
    return Group(
        f"GET by {name} on loopback",
        _CALLS,
        [
            Variant("one host, directly", plain),
            Variant("through an upstream", balanced, at_most_more_us(15)),
            *(Variant("through nginx", each) for each in proxied),
        ],
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


_PROXY = """\
daemon off; pid nginx.pid; error_log stderr crit; events {}
http {
    access_log off;
    upstream host { server 127.0.0.1:%(host)d; keepalive 16; }
    server {
        listen 127.0.0.1:%(proxy)d;
        location / { proxy_pass http://host; proxy_http_version 1.1; proxy_set_header Connection ""; }
    }
}
"""


@contextlib.contextmanager
def _proxy(port: int) -> Iterator[int]:
    """What people put in between otherwise; its port, 0 where it is not installed."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        yield 0
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy_port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "nginx.conf").write_text(_PROXY % {"host": port, "proxy": proxy_port}, "ascii")
        with subprocess.Popen([nginx, "-p", directory, "-c", "nginx.conf"]) as process:
            try:
                _wait_for(proxy_port)
                yield proxy_port
            finally:
                process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    raise RuntimeError("nginx did not start")


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
