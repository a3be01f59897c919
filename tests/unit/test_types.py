"""What a type checker knows of the public calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import resty_upstream

_CALLS = """
import asyncio
import http.client
import socket
import ssl
from typing import assert_type

from resty_upstream import (
    Attempt,
    Connected,
    HostEvent,
    Info,
    NoHostAvailable,
    OverTLS,
    Pool,
    Upstream,
    UpstreamAPI,
)


class Client:
    def set_timeout(self, timeout_s: float) -> None:
        pass

    def connect(self, host: str, port: int) -> bool:
        return True


class AsyncClient:
    def settimeout(self, timeout_s: float) -> None:
        pass

    async def connect(self, host: str, port: int) -> bool:
        return True


class Built:
    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        pass


def dial(host: str, port: int, timeout_s: float) -> bytes:
    return b""


async def adial(host: str, port: int, timeout_s: float) -> bytes:
    return b""


def sync(upstream: Upstream, connection: http.client.HTTPSConnection, context: ssl.SSLContext) -> None:
    assert_type(upstream.connect(), Connected[socket.socket])
    assert_type(upstream.connect(socket.socket()), Connected[socket.socket])
    assert_type(upstream.connect(connection), Connected[http.client.HTTPSConnection])
    assert_type(upstream.connect(Client(), key=b"k"), Connected[Client])
    assert_type(upstream.connect(dial, key="k"), Connected[bytes])
    assert_type(upstream.connect(Built), Connected[Built])
    assert_type(upstream.connect(OverTLS(context, "app.example")), Connected[ssl.SSLSocket])
    sock, info = upstream.connect()
    assert_type(sock, socket.socket)
    assert_type(info, Info)
    with upstream.context() as request:
        assert_type(request.connect(Client()), Connected[Client])
        assert_type(request.connect(OverTLS(context, "app.example")), Connected[ssl.SSLSocket])
    for attempt in upstream.attempts():
        with attempt as host:
            assert_type(host.port, int)
    assert_type(UpstreamAPI(upstream).add_host("p", host="a.test", port="80"), str)


async def coroutines(upstream: Upstream, tls: OverTLS) -> None:
    assert_type(await upstream.aconnect(tls), Connected[tuple[asyncio.StreamReader, asyncio.StreamWriter]])
    assert_type(await upstream.aconnect(), Connected[tuple[asyncio.StreamReader, asyncio.StreamWriter]])
    assert_type(await upstream.aconnect(socket.socket()), Connected[socket.socket])
    assert_type(await upstream.aconnect(AsyncClient()), Connected[AsyncClient])
    assert_type(await upstream.aconnect(adial), Connected[bytes])


def wrong(upstream: Upstream) -> None:
    upstream.connect(5)  # type: ignore[call-overload]
    upstream.bind("host_sideways", print)  # type: ignore[call-overload]
    upstream.bind("attempt", listener)  # type: ignore[call-overload]


def listener(event: HostEvent) -> None:
    assert_type(event.host.host, str)


def hears(attempt: Attempt) -> None:
    assert_type(attempt.pool, Pool)


def despairs(error: NoHostAvailable) -> None:
    assert_type(error.status_hint, int)


def listens(upstream: Upstream) -> None:
    upstream.bind("host_up", listener)
    upstream.bind("attempt", hears)
    upstream.bind("exhausted", despairs)
"""


def test_a_checker_knows_what_every_call_returns_for_every_kind_of_client(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(_CALLS)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "calls.py"]
    env = {"MYPYPATH": str(Path(resty_upstream.__file__).parent.parent), "PYTHONPATH": ""}
    done = subprocess.run(mypy, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
