"""aiohttp, behind the way in which all clients of :mod:`tests.http.clients` are used."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping

import aiohttp
import yarl

from resty_upstream import Upstream
from resty_upstream.contrib.aiohttp import UpstreamConnector, UpstreamMiddleware, upstream_of
from tests.http.clients import NAME, AsyncClient, Reply, async_body


class _Aiohttp(AsyncClient):
    error = (aiohttp.ClientError, TimeoutError)
    late = aiohttp.SocketTimeoutError

    def __init__(self, session: aiohttp.ClientSession, base: str, runner: asyncio.Runner) -> None:
        super().__init__(runner)
        self._session = session
        self._base = base

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
                data=async_body(content),
                timeout=aiohttp.ClientTimeout(sock_read=timeout),
                allow_redirects=follow,
            ) as response:
                return _reply(response, await response.read())
        except aiohttp.ClientConnectionError as error:
            if type(error) is aiohttp.ClientConnectionError and type(error.__cause__) is KeyError:
                raise error.__cause__ from error  # aiohttp wraps what the caller's body raises
            raise

    @contextlib.asynccontextmanager
    async def astream(self, method: str, path: str) -> AsyncIterator[tuple[Reply, AsyncIterator[bytes]]]:
        async with self._session.request(method, self._url(path)) as response:
            yield _reply(response, b""), response.content.iter_any()

    def _url(self, path: str) -> yarl.URL:
        return yarl.URL(self._base + path, encoded=True)


def _reply(response: aiohttp.ClientResponse, body: bytes) -> Reply:
    return Reply(response.status, body, upstream_of(response).host.id, response.headers)


@contextlib.contextmanager
def aiohttp_client(upstream: Upstream, verify: ssl.SSLContext | None = None) -> Iterator[_Aiohttp]:
    """A session that blocks; its event loop runs while something is asked for."""

    async def opened() -> aiohttp.ClientSession:
        connector = UpstreamConnector(ssl=verify or True)
        return aiohttp.ClientSession(connector=connector, middlewares=[UpstreamMiddleware(upstream)])

    with asyncio.Runner() as runner:
        session = runner.run(opened())
        try:
            yield _Aiohttp(session, f"{'https' if verify else 'http'}://{NAME}", runner)
        finally:
            runner.run(session.close())
