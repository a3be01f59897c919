"""The clients that have a transport, behind one way to use them."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from resty_upstream import Upstream
from resty_upstream.contrib.httpx import AsyncUpstreamTransport, UpstreamTransport

NAME = "users.internal"
"""The name in all URLs."""


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    host: str
    """The id of the host that answered."""
    headers: Mapping[str, str]


Streamed = contextlib.AbstractContextManager[tuple[Reply, Iterator[bytes]]]
"""An answer without its body, and the parts of that."""


AsyncStreamed = contextlib.AbstractAsyncContextManager[tuple[Reply, AsyncIterator[bytes]]]


class Client(Protocol):
    """A client that blocks."""

    error: type[Exception] | tuple[type[Exception], ...]
    """What it raises when the network fails."""
    late: type[Exception]
    """What it raises when a body stalls."""

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
        timeout: float | None = None,
        follow: bool = False,
    ) -> Reply: ...

    def stream(self, method: str, path: str) -> Streamed: ...


class AsyncClient:
    """A client of asyncio, whose event loop runs while something is asked for."""

    error: type[Exception] | tuple[type[Exception], ...]
    late: type[Exception]

    def __init__(self, runner: asyncio.Runner) -> None:
        self.run = runner.run

    def request(self, method: str, path: str, **options: Any) -> Reply:
        reply: Reply = self.run(self.arequest(method, path, **options))
        return reply

    @contextlib.contextmanager
    def stream(self, method: str, path: str) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        manager = self.astream(method, path)
        reply, parts = self.run(manager.__aenter__())

        def each() -> Iterator[bytes]:
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    yield self.run(anext(parts))

        try:
            yield reply, each()
        finally:
            self.run(manager.__aexit__(None, None, None))

    async def arequest(self, method: str, path: str, **options: Any) -> Reply:
        """What ``request`` runs."""
        raise NotImplementedError

    def astream(self, method: str, path: str) -> AsyncStreamed:
        """What ``stream`` runs."""
        raise NotImplementedError


Opened = Callable[..., contextlib.AbstractContextManager[Client]]


class _Httpx:
    def __init__(self, name: str, client: Any) -> None:
        hx = importlib.import_module(name)
        self.error, self.late = hx.TransportError, hx.ReadTimeout
        self._client = client

    def request(
        self, method: str, path: str, *, timeout: float | None = None, follow: bool = False, **options: Any
    ) -> Reply:
        response = self._client.request(method, path, timeout=timeout, follow_redirects=follow, **options)
        return _reply(response, response.content)

    @contextlib.contextmanager
    def stream(self, method: str, path: str) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        with self._client.stream(method, path, timeout=None) as response:
            yield _reply(response, b""), response.iter_raw()


def _reply(response: Any, body: bytes) -> Reply:
    return Reply(response.status_code, body, response.extensions["upstream"].host.id, response.headers)


def _httpx(name: str) -> Opened:
    @contextlib.contextmanager
    def opened(upstream: Upstream, verify: ssl.SSLContext | None = None) -> Iterator[Client]:
        hx = importlib.import_module(name)
        transport = UpstreamTransport(upstream, verify=verify)
        with hx.Client(transport=transport, base_url=_base(verify)) as client:
            yield _Httpx(name, client)

    return opened


def _base(verify: ssl.SSLContext | None) -> str:
    return f"{'https' if verify else 'http'}://{NAME}"


class _AsyncHttpx(AsyncClient):
    def __init__(self, name: str, client: Any, runner: asyncio.Runner) -> None:
        super().__init__(runner)
        hx = importlib.import_module(name)
        self.error, self.late = hx.TransportError, hx.ReadTimeout
        self._client = client

    async def arequest(
        self,
        method: str,
        path: str,
        *,
        content: Any = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of reads
        follow: bool = False,
        **options: Any,
    ) -> Reply:
        response = await self._client.request(
            method, path, content=async_body(content), timeout=timeout, follow_redirects=follow, **options
        )
        return _reply(response, response.content)

    @contextlib.asynccontextmanager
    async def astream(self, method: str, path: str) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        async with (
            self._client.stream(method, path, timeout=None) as response,
            contextlib.aclosing(response.aiter_raw()) as parts,
        ):
            yield _reply(response, b""), parts


def async_body(content: bytes | Iterator[bytes] | None) -> Any:
    """A body as a client of asyncio takes it."""
    return content if content is None or isinstance(content, bytes) else _parts(content)


async def _parts(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _async_httpx(name: str) -> Opened:
    @contextlib.contextmanager
    def opened(upstream: Upstream, verify: ssl.SSLContext | None = None) -> Iterator[Client]:
        hx = importlib.import_module(name)
        with asyncio.Runner() as runner:
            client = hx.AsyncClient(
                transport=AsyncUpstreamTransport(upstream, verify=verify), base_url=_base(verify)
            )
            try:
                yield _AsyncHttpx(name, client, runner)
            finally:
                runner.run(client.aclose())

    return opened


def _from(module: str, name: str) -> Opened:
    def opened(upstream: Upstream, verify: ssl.SSLContext | None = None) -> Any:
        return getattr(importlib.import_module(module), name)(upstream, verify)

    return opened


CLIENTS: dict[str, Opened] = {
    "aiohttp": _from("tests.http.clients_aiohttp", "aiohttp_client"),
    "httpx2": _httpx("httpx2"),
    "httpx": _httpx("httpx"),
    "httpx2 async": _async_httpx("httpx2"),
    "httpx async": _async_httpx("httpx"),
    "requests": _from("tests.http.clients_requests", "requests_client"),
    "urllib3": _from("tests.http.clients_requests", "urllib3_client"),
}

ASYNC_CLIENTS = [name for name in CLIENTS if name == "aiohttp" or "async" in name]
