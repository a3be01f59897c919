"""The transport for requests, which is built on urllib3's."""

from __future__ import annotations

import logging
import os
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from requests import exceptions as errors
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import exceptions as inner
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from resty_upstream import errors as ours
from resty_upstream.events import fields
from resty_upstream.http.urllib3 import TLS, Asked, Engine, seconds, unverified

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

    from resty_upstream.context import RequestContext
    from resty_upstream.upstream import Upstream

_USUAL_PORT: Final = {"http": ":80", "https": ":443"}
_UNDECODED: Final[dict[str, Any]] = {"decode_content": False}  # requests decodes it itself

_log = logging.getLogger("resty_upstream.failover")


class NoHostAvailable(errors.ConnectionError, ours.NoHostAvailable):
    """What requests raises where it cannot connect, and a :class:`~resty_upstream.NoHostAvailable`."""

    def __init__(self, error: ours.NoHostAvailable, request: PreparedRequest | None = None) -> None:
        errors.ConnectionError.__init__(self, str(error), request=request)
        self.attempts, self.status_hint = error.attempts, error.status_hint
        self.__cause__ = error.__cause__

    def __reduce__(self) -> Any:
        return type(self), (ours.NoHostAvailable(str(self), list(self.attempts), self.status_hint), self.request)


class UpstreamAdapter(HTTPAdapter):
    """An adapter by which a session's requests go to the hosts of an upstream.

    ::

        session.mount("http://users.internal/", UpstreamAdapter(upstream))
        response = session.get("http://users.internal/users/1")
        response.upstream.host.id

    Mount it with a slash at the end: ``http://users.internal`` is the beginning of ``http://users.internal.evil.test``,
    too. All that is sent through it goes to the upstream's hosts; the name in the URL is for ``Host``, SNI and
    certificates (of ``https`` URLs, and of pools with ``ssl``). Proxies, also of the environment, are not used.

    A request that failed is sent to the next host when nothing of it was sent, or when it is GET, HEAD, OPTIONS,
    TRACE, PUT or DELETE or has an ``Idempotency-Key``, and has a body that is there a second time: bytes or text.
    So is one that was answered with one of the pool's ``status_codes``. When every host answered like that, the
    last answer is returned.

    :param upstream: an upstream, or the context of a request.
    :param verify: instead of the session's certificates, for pools with ``ssl_verify``; ``verify=False`` of the
        session or of a request wins.
    :raises requests.ConnectionError: which is a :class:`~resty_upstream.NoHostAvailable`, when no host is left.
    """

    def __init__(self, upstream: Upstream | RequestContext, *, verify: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._engine = Engine(upstream)
        self._verify = verify
        self._tls: dict[Any, TLS] = {}
        self._names: dict[tuple[str, str], str] = {}

    def __getstate__(self) -> Any:
        raise TypeError("an UpstreamAdapter cannot be pickled or copied: mount a new one on the other session")

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,  # noqa: ARG002 - the session reads the body
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> Response:
        """Called by the session."""
        url = urlsplit(str(request.url))
        name = self._names.get((url.scheme, url.netloc)) or self._note(url)
        if proxies:  # a password for one of them is not for the hosts
            request.headers.pop("Proxy-Authorization", None)
        connect_s, read_s = _seconds(timeout)
        chunked = request.body is not None and "Content-Length" not in request.headers
        asked = Asked(
            str(request.method), url.scheme, str(url.hostname), name, request.path_url, request.headers,
            request.body, chunked, connect_s, read_s, self._tls_of(verify, cert), _UNDECODED,
        )  # fmt: skip
        try:
            answer = self._engine.send(asked)
        except ours.NoHostAvailable as error:
            raise NoHostAvailable(error, request) from error.__cause__
        except inner.HTTPError as error:
            raise _translated(error, request) from error
        response = self.build_response(request, answer)
        response.upstream = answer.upstream  # type: ignore[attr-defined]
        return response

    def close(self) -> None:
        """Close all connections."""
        super().close()
        self._engine.close()

    def _note(self, url: SplitResult) -> str:
        """A name that was not seen yet, for ``Host``."""
        host = str(url.hostname)
        shorter = next((seen for seen in self._names.values() if host.startswith(f"{seen}.")), None)
        if shorter is not None:
            _log.warning(
                "a request for %s goes to the upstream that is mounted for %s: mount it with a slash at the end, "
                "as in %s://%s/",
                host, shorter, url.scheme, shorter,
                extra=fields("mounted_without_slash", mounted=shorter, host=host),
            )  # fmt: skip
        if len(self._names) >= 64:
            self._names.clear()
        name = url.netloc.rpartition("@")[2].removesuffix(_USUAL_PORT.get(url.scheme, "/"))
        self._names[url.scheme, url.netloc] = name
        return name

    def _tls_of(self, verify: Any, cert: Any) -> TLS:
        key = (verify, cert)
        tls = self._tls.get(key)
        if tls is None:
            tls = self._tls.setdefault(key, self._make_tls(verify, cert))
        return tls

    def _make_tls(self, verify: Any, cert: Any) -> TLS:
        if verify and self._verify is not None:
            if cert:
                raise ValueError("cert cannot be added to the adapter's verify: load it there, by load_cert_chain")
            given = self._verify
            return TLS(lambda: given, unverified)
        authorities = (DEFAULT_CA_BUNDLE_PATH if verify is True else str(verify)) if verify else ""
        return TLS(partial(_context, authorities, cert), partial(_context, "", cert))


def _context(authorities: str, cert: Any) -> ssl.SSLContext:
    """How to speak TLS.

    :param authorities: a file or directory of certificates; "" to trust anybody.
    :param cert: of the client: a file, or the files of certificate and key; may be None.
    :raises OSError: where there is no such file.
    """
    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED if authorities else ssl.CERT_NONE)
    files = [cert] if isinstance(cert, str) else [*(cert or ())]
    for path in [authorities, *files]:
        if path and not os.path.exists(path):
            raise OSError(f"there is no file of certificates or keys at {path}")
    if os.path.isdir(authorities):
        context.load_verify_locations(capath=authorities)
    elif authorities:
        context.load_verify_locations(authorities)
    if files:
        context.load_cert_chain(*files)
    return context


def _seconds(timeout: Any) -> tuple[float | None, float | None]:
    """How long connecting and each read may take, as the caller says.

    :raises ValueError: for what is no timeout.
    """
    if timeout is None:
        return None, None
    if not isinstance(timeout, tuple):
        return seconds(timeout)
    if len(timeout) != 2:
        raise ValueError(f"timeout must be seconds, or a tuple of those to connect and to read, not {timeout!r}")
    return seconds(Timeout(connect=timeout[0], read=timeout[1]))


def _translated(error: Exception, request: PreparedRequest) -> Exception:
    """An error of urllib3's as ``HTTPAdapter`` has it."""
    kind: type[errors.RequestException] = errors.ConnectionError
    if isinstance(error, inner.ConnectTimeoutError) and not isinstance(error, inner.NewConnectionError):
        kind = errors.ConnectTimeout
    elif isinstance(error, inner.ReadTimeoutError):
        kind = errors.ReadTimeout
    elif isinstance(error, inner.SSLError):
        kind = errors.SSLError
    elif isinstance(error, inner.InvalidHeader):
        kind = errors.InvalidHeader
    elif isinstance(error, inner.LocationValueError):
        kind = errors.InvalidURL
    return kind(error, request=request)
