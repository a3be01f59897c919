"""Requests of HTTP through an upstream, against the same client that talks to one host."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2

from benchmarks.harness import Group, Sample, Variant, at_most_more_us, calling
from benchmarks.upstreams import on_loopback
from resty_upstream.contrib.httpx import AsyncUpstreamTransport, UpstreamTransport

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
                stack.callback(_closing(client, runner))
            name = f"{hx.__name__}.AsyncClient"
            groups.append(_group(name, _awaiting(aplain, runner), _awaiting(abalanced, runner)))
        yield groups


def _group(name: str, plain: Sample, balanced: Sample) -> Group:
    return Group(
        f"GET by {name} on loopback",
        _CALLS,
        [Variant("one host, directly", plain), Variant("through an upstream", balanced, at_most_more_us(15))],
        "difference",
    )


def _closing(client: Any, runner: asyncio.Runner) -> Callable[[], object]:
    return lambda: runner.run(client.aclose())


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
