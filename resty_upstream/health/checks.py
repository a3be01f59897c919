"""One check of one host. A connection of its own each time: what keeps old ones says nothing of new ones."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import inspect
import io
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from resty_upstream.aconnectors import Streams, dial, streams_of
from resty_upstream.attempts import classify
from resty_upstream.connectors import (
    Address,
    last_known_addresses,
    most_telling,
    parse_address,
    remember_addresses,
)
from resty_upstream.health.functions import CheckFunction
from resty_upstream.health.results import Result
from resty_upstream.model import HealthCheck, Host, Pool

if TYPE_CHECKING:
    import ssl

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: .*)?\r?\n", re.DOTALL)
_LINE_BYTES: Final = 65_536
_LINES: Final = 100  # as many as http.client reads
_BODY_BYTES: Final = 256 << 10
_REASON_CHARACTERS: Final = 120
_DEFAULT_PORTS: Final = {False: 80, True: 443}


InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function in a thread that nobody waits for at the end of the process, for it may hang."""


class NotOurTurn(Exception):
    """Somebody else checks by now: nothing was asked of the host."""


async def run_check(
    pool: Pool,
    host: Host,
    check: HealthCheck,
    *,
    is_our_turn: Callable[[], bool],
    in_thread: InThread,
    function: CheckFunction | None = None,
) -> Result:
    """Check a host once.

    :param is_our_turn: asked again once the host is connected, before anything is asked of it.
    :param in_thread: runs what may hang: look-ups of names, and functions that are no coroutine functions.
    :param function: what to call for a check that is neither ``http`` nor ``tcp``.
    :raises NotOurTurn: when it was not any more.
    """
    try:
        if check.type == "http":
            return await _http(pool, host, check, is_our_turn, in_thread)
        if check.type == "tcp":
            async with _connection(pool, host, check, in_thread):
                return Result(True, "connected")
        if function is None:
            return Result(None, f"{check.type} is not called here")
        return await _call(function, pool, host, check, in_thread)
    except NotOurTurn:
        raise
    except Exception as error:
        return _failed(error, host)
    except SystemExit as error:  # of a function; it would end the thread that checks all hosts
        return Result(False, f"SystemExit: {error}"[:_REASON_CHARACTERS])


def _failed(error: Exception, host: Host) -> Result:
    verdict = classify(error, unix=host.unix_path is not None)
    if verdict.reason.startswith("unclassified"):
        return Result(False, f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS])
    return Result(False if verdict.counts else None, verdict.reason)


# ── connecting ────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def _connection(pool: Pool, host: Host, check: HealthCheck, in_thread: InThread) -> AsyncIterator[Streams]:
    timeout_s = _connect_s(pool, check)
    async with asyncio.timeout(timeout_s):
        sock = await _connect(host, timeout_s, in_thread)
        tls = (_tls(pool.ssl_verify), _name(pool, host), timeout_s) if pool.ssl else ()
        reader, writer = await streams_of(sock, *tls, limit=_LINE_BYTES)
    try:
        yield reader, writer
    finally:
        # Not close(), with which one side of TLS waits for the other.
        writer.transport.abort()


def _connect_s(pool: Pool, check: HealthCheck) -> float:
    return (pool.timeout if check.timeout is None else check.timeout) / 1000


async def _connect(host: Host, timeout_s: float, in_thread: InThread) -> socket.socket:
    address = parse_address(host)
    addresses = [address] if address else await in_thread(functools.partial(_look_up, host))
    errors: list[OSError] = []
    for each in addresses:
        try:
            return await dial(each, timeout_s / len(addresses))
        except OSError as error:
            errors.append(error)
    raise most_telling(errors, host)


def _look_up(host: Host) -> list[Address]:
    try:
        found = socket.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return last_known_addresses(host, error)
    return remember_addresses(found, host)


def _name(pool: Pool, host: Host) -> str:
    """The name by which the host is to be known."""
    return pool.sni_host or ("localhost" if host.unix_path is not None else host.host)


@functools.cache
def _tls(verify: bool) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# ── HTTP ──────────────────────────────────────────────────────────────────────────────────────


async def _http(
    pool: Pool, host: Host, check: HealthCheck, is_our_turn: Callable[[], bool], in_thread: InThread
) -> Result:
    async with _connection(pool, host, check, in_thread) as (reader, writer):
        if not is_our_turn():
            raise NotOurTurn
        async with asyncio.timeout(check.read_timeout / 1000):
            writer.write(request_bytes(pool, host, check))
            status, head = await _read_head(reader)
            if status is None:
                return Result(False, "it does not speak HTTP")
            if check.is_bad(status):
                return Result(False, f"status {status}")
            if check.body is not None and not await _has_text(reader, head, check.body.encode()):
                return Result(False, f"status {status}, without the text that must appear")
            return Result(True, str(status))


def request_bytes(pool: Pool, host: Host, check: HealthCheck) -> bytes:
    """The request that a check sends."""
    fields = {
        "host": ("Host", _authority(pool, host)),
        "user-agent": ("User-Agent", "resty_upstream (health check)"),
        "accept": ("Accept", "*/*"),
        "accept-encoding": ("Accept-Encoding", "identity"),
        "connection": ("Connection", "close"),
    }
    fields |= {name.lower(): (name, value) for name, value in check.headers}
    lines = [f"{check.method} {check.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.values())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _authority(pool: Pool, host: Host) -> str:
    name = _name(pool, host)
    name = f"[{name.partition('%')[0]}]" if ":" in name else name.encode("idna").decode()
    if host.unix_path is not None or host.port == _DEFAULT_PORTS[pool.ssl]:
        return name
    return f"{name}:{host.port}"


async def _read_head(reader: asyncio.StreamReader) -> tuple[int | None, bytes]:
    """The status of the answer and its header lines; None for what is no HTTP."""
    while True:
        line = await reader.readline()
        if not line:
            raise EOFError
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            return None, b""
        head = await _read_lines(reader)
        status = int(match[1])
        if status == 101 or status >= 200:  # others announce that there will be one
            return status, head


async def _read_lines(reader: asyncio.StreamReader) -> bytes:
    lines = []
    for _ in range(_LINES):
        line = await reader.readline()
        lines.append(line)
        if line in (b"\r\n", b"\n"):
            return b"".join(lines)
        if not line:
            raise EOFError
    raise http.client.HTTPException(f"more than {_LINES} lines of headers")


async def _has_text(reader: asyncio.StreamReader, head: bytes, text: bytes) -> bool:
    """Whether the text appears in the first part of the body; reading ends where it does."""
    body = bytearray()
    async for part in _body(reader, http.client.parse_headers(io.BytesIO(head))):
        before = max(0, len(body) - len(text))  # the text may begin in the part before
        body += part
        if body.find(text, before) >= 0:
            return True
        if len(body) >= _BODY_BYTES:
            break
    return False


async def _body(reader: asyncio.StreamReader, headers: http.client.HTTPMessage) -> AsyncIterator[bytes]:
    if headers.get("Transfer-Encoding", "").lower().endswith("chunked"):
        while size := int((await reader.readline()).partition(b";")[0].strip() or b"0", 16):
            yield await reader.readexactly(min(size, _BODY_BYTES))
            await reader.readline()
        return
    length = headers.get("Content-Length", "")
    left = int(length) if length.isascii() and length.isdigit() else _BODY_BYTES
    while left > 0 and (part := await reader.read(min(left, _LINE_BYTES))):
        left -= len(part)
        yield part


# ── functions of the application ──────────────────────────────────────────────────────────────


async def _call(
    function: CheckFunction, pool: Pool, host: Host, check: HealthCheck, in_thread: InThread
) -> Result:
    timeout_s = _connect_s(pool, check) + check.read_timeout / 1000
    call = functools.partial(function, host.host, host.port, timeout_s)
    async with asyncio.timeout(timeout_s):
        returned = call() if inspect.iscoroutinefunction(function) else await in_thread(call)
        if inspect.isawaitable(returned):
            returned = await returned
    return Result(False, "returned False") if returned is False else Result(True, "passed")
