"""requests and urllib3 as the tests of all transports use them."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import requests
import urllib3

from resty_upstream import RequestContext, Upstream
from resty_upstream.contrib.requests import UpstreamAdapter
from resty_upstream.contrib.urllib3 import UpstreamPoolManager
from tests.http.clients import NAME, Reply

_PART = 65_536


class RequestsClient:
    """A session with the adapter mounted."""

    error = requests.RequestException
    late = requests.ConnectionError  # by which it says so once a body has begun

    def __init__(self, session: requests.Session, base: str) -> None:
        self.session = session
        self._base = base

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
        timeout: float | None = None,
        follow: bool = False,
    ) -> Reply:
        """A request and its answer, read to the end."""
        response = self.session.request(
            method,
            self._base + path,
            headers=headers,
            data=content,
            timeout=None if timeout is None else (None, timeout),
            allow_redirects=follow,
        )
        return _reply(response, response.content)

    @contextlib.contextmanager
    def stream(self, method: str, path: str) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        """An answer whose body is read in parts."""
        with self.session.request(method, self._base + path, stream=True) as response:
            yield _reply(response, b""), response.iter_content(_PART)


def _reply(response: Any, body: bytes) -> Reply:
    return Reply(response.status_code, body, response.upstream.host.id, response.headers)


@contextlib.contextmanager
def requests_client(
    upstream: Upstream | RequestContext, verify: ssl.SSLContext | None = None
) -> Iterator[RequestsClient]:
    """A client of an upstream, by ``https`` where it is said how to verify."""
    adapter = UpstreamAdapter(upstream, verify=verify)
    with requests.Session() as session:
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        yield RequestsClient(session, f"http{'s' if verify else ''}://{NAME}")


class Urllib3Client:
    """The manager."""

    error = urllib3.exceptions.HTTPError
    late = urllib3.exceptions.ReadTimeoutError

    def __init__(self, manager: UpstreamPoolManager, base: str) -> None:
        self.manager = manager
        self._base = base

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterator[bytes] | None = None,
        timeout: float | None = None,
        follow: bool = False,
    ) -> Reply:
        """A request and its answer, read to the end."""
        response: Any = self.manager.request(
            method,
            self._base + path,
            headers=headers,
            body=content,
            timeout=urllib3.Timeout(read=timeout),
            redirect=follow,
        )
        return Reply(response.status, response.data, response.upstream.host.id, response.headers)

    @contextlib.contextmanager
    def stream(self, method: str, path: str) -> Iterator[tuple[Reply, Iterator[bytes]]]:
        """An answer whose body is read in parts."""
        response: Any = self.manager.request(method, self._base + path, preload_content=False)
        try:
            yield (
                Reply(response.status, b"", response.upstream.host.id, response.headers),
                response.stream(_PART),
            )
        finally:
            response.close()


@contextlib.contextmanager
def urllib3_client(
    upstream: Upstream | RequestContext, verify: ssl.SSLContext | None = None
) -> Iterator[Urllib3Client]:
    """A client of an upstream, by ``https`` where it is said how to verify."""
    with UpstreamPoolManager(upstream, ssl_context=verify) as manager:
        yield Urllib3Client(manager, f"http{'s' if verify else ''}://{NAME}")
