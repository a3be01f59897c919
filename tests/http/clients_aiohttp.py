"""aiohttp, behind the way in which all clients of :mod:`tests.http.clients` are used."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, NamedTuple

import aiohttp
import yarl

from resty_upstream import Upstream
from resty_upstream.contrib.aiohttp import UpstreamConnector, UpstreamMiddleware, upstream_of


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    host: str
    """The id of the host that answered."""
    headers: Mapping[str, str]


class _Aiohttp:
    error = (aiohttp.ClientError, TimeoutError)

    def __init__(self, session: aiohttp.ClientSession, base: str, runner: asyncio.Runner) -> None:
        self._session = session
        self._base = base
        self.run = runner.run

    def request(self, method: str, path: str, **options: Any) -> Reply:
        reply: Reply = self.run(self.arequest(method, path, **options))
        return reply

    async def arequest(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of reads
        follow: bool = False,
    ) -> Reply:
        try:
            async with self._session.request(
                method,
                self._url(path),
                headers=headers,
                data=content if content is None or isinstance(content, bytes) else _parts(content),
                timeout=aiohttp.ClientTimeout(sock_read=timeout),
                allow_redirects=follow,
            ) as response:
                return _reply(response, await response.read())
        except aiohttp.ClientConnectionError as error:
            if type(error) is aiohttp.ClientConnectionError and type(error.__cause__) is KeyError:
                raise error.__cause__ from error  # aiohttp wraps what the caller's body raises
            raise

    @contextlib.contextmanager
    def stream(self, method: str, path: str) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        response = self.run(self._ask(method, path))

        def each() -> Iterator[bytes]:
            while part := self.run(response.content.readany()):
                yield part

        try:
            yield _reply(response, b""), each()
        finally:
            self.run(self._end(response))

    def _url(self, path: str) -> yarl.URL:
        return yarl.URL(self._base + path, encoded=True)

    async def _ask(self, method: str, path: str) -> aiohttp.ClientResponse:
        return await self._session.request(method, self._url(path))

    async def _end(self, response: aiohttp.ClientResponse) -> None:
        async with response:
            pass


def _reply(response: aiohttp.ClientResponse, body: bytes) -> Reply:
    return Reply(response.status, body, upstream_of(response).host.id, response.headers)


async def _parts(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@contextlib.contextmanager
def aiohttp_client(upstream: Upstream, verify: ssl.SSLContext | None = None) -> Iterator[_Aiohttp]:
    """A session that blocks; its event loop runs while something is asked for."""

    async def opened() -> aiohttp.ClientSession:
        connector = UpstreamConnector(ssl=verify or True)
        return aiohttp.ClientSession(connector=connector, middlewares=[UpstreamMiddleware(upstream)])

    with asyncio.Runner() as runner:
        session = runner.run(opened())
        try:
            yield _Aiohttp(session, f"{'https' if verify else 'http'}://users.internal", runner)
        finally:
            runner.run(session.close())
