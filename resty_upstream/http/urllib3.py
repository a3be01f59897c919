"""The transport for urllib3, which the one for requests is built on.

Each host has keep-alive connections of its own, so that weights count for every request, and so that a connection
that was verified for one name is never used for another. They are urllib3's pools of connections; the
connections in them note how far a request got.
"""

from __future__ import annotations

import functools
import io
import math
import os
import queue
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from http.client import HTTPResponse as Head
from http.client import RemoteDisconnected
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool, PoolManager
from urllib3 import exceptions as errors
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Retry, Timeout
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version

from resty_upstream import errors as ours
from resty_upstream.attempts import BadAnswer, Excused
from resty_upstream.connectors import limit
from resty_upstream.http.exchange import NOBODYS, Exchange, Progress, culprit, raise_judged

if TYPE_CHECKING:
    from resty_upstream.attempts import Attempt, Info
    from resty_upstream.context import RequestContext
    from resty_upstream.selection import Target
    from resty_upstream.upstream import Upstream

Context = Callable[[], ssl.SSLContext]

_ONCE: Final = Retry(total=False, redirect=False, respect_retry_after_header=False)
_BROKEN: Final = (errors.ProtocolError, errors.ReadTimeoutError, errors.SSLError)
_FOUND: Final = 64
_PIECE: Final = 65_536
_PORTS: Final = {"http": 80, "https": 443}


# ── how far a request got ─────────────────────────────────────────────────────────────────────


class _Sending(NamedTuple):
    """A request on its way, for the connection that it goes through."""

    progress: Progress
    name: str
    """For ``Host``."""
    write_s: float | None
    """How long each write may take."""


_NOBODYS: Final = _Sending(NOBODYS, "", None)
_sending: ContextVar[_Sending] = ContextVar("resty_upstream.http.urllib3", default=_NOBODYS)


class _NotTheHosts(Exception):
    """Neither the connection nor the host is to blame for what went wrong: a body that raised, a bad header."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Reader(io.RawIOBase):
    """What an answer is read from: a socket, within the time that there is."""

    def __init__(self, sock: socket.socket, progress: Progress, read_s: float | None) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # which keeps the socket open
        self._progress = progress
        self._read_s = read_s

    def makefile(self, *_mode: object) -> io.BufferedReader:
        """As that of a socket, for http.client."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        progress = self._progress
        limit(self._sock, progress.bounded(self._read_s))
        count = self._file.readinto(buffer)
        if count:
            progress.answered = True
        elif progress.answered and progress.until != math.inf:  # which http.client takes for an answer
            raise RemoteDisconnected("Remote end closed connection in the middle of the head")
        return count

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()


class _Timeouts(Timeout):
    """Those of one request, which are known to be good, and do not change."""

    connect_timeout = 0.0
    read_timeout = 0.0

    def __init__(self, connect_s: float, read_s: float) -> None:
        self.connect_timeout = connect_s
        self.read_timeout = read_s

    def clone(self) -> Timeout:
        """Itself."""
        return self

    def start_connect(self) -> float:
        """Nothing to do: there is no total."""
        return 0.0


class _Connection(HTTPConnection):
    """A connection that notes in the progress of the request what happens."""

    idle_until = math.inf
    """When it is too old to be used again, by ``time.monotonic``."""

    def __init__(self, *args: Any, unix_path: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unix_path = unix_path
        self._sending = _NOBODYS
        self._failed = False

    def connect(self) -> None:
        _sending.get().progress.is_fresh = True
        try:
            super().connect()
        except Exception:
            self._failed = True
            raise

    def _new_conn(self) -> socket.socket:
        if self._unix_path is None:
            return super()._new_conn()
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self._unix_path)
        except OSError as error:
            sock.close()
            kind = errors.ConnectTimeoutError if isinstance(error, TimeoutError) else errors.NewConnectionError
            raise kind(self, f"{self._unix_path}: {error}") from error
        return sock

    @property
    def is_connected(self) -> bool:
        return time.monotonic() < self.idle_until and super().is_connected

    def request(self, *args: Any, **options: Any) -> None:
        self._sending = sending = _sending.get()
        self._failed = False
        if self.sock is not None:
            self.timeout = sending.write_s
        try:
            super().request(*args, **options)
        except Exception as error:
            if self._failed:
                raise
            raise _NotTheHosts(error) from error

    def putrequest(
        self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False
    ) -> None:
        name = self._sending.name
        super().putrequest(method, url, skip_host or bool(name), skip_accept_encoding)
        if name and not skip_host:
            self.putheader("Host", name)

    def send(self, data: Any) -> None:
        try:
            if self.sock is None:
                self.connect()
            progress, _, write_s = self._sending
            progress.sent = True
            for piece in (data,) if len(data) <= _PIECE else _pieces(data):
                limit(self.sock, write_s)
                super().send(piece)
        except Exception:
            self._failed = True
            raise

    # Called by http.client, as the class that it is there.
    def response_class(self, sock: Any, *args: Any, **options: Any) -> Head:  # type: ignore[override]
        source: Any = _Reader(sock, self._sending.progress, self.timeout)
        return Head(source, *args, **options)


def _pieces(data: Any) -> Iterator[memoryview]:
    whole = memoryview(data).cast("B")  # a timeout is for all of what one call sends
    for start in range(0, len(whole), _PIECE):
        yield whole[start : start + _PIECE]


class _TLSConnection(_Connection, HTTPSConnection):
    """The same with TLS."""


# ── the connections to a host ─────────────────────────────────────────────────────────────────


class _Idle:
    """The idle connections of a pool, in place of its queue: the last one first, and none that is too old.

    :param keepalive_s: how long one may be idle.
    :param maxsize: how many are kept.
    """

    def __init__(self, keepalive_s: float, maxsize: int) -> None:
        self._keepalive_s = keepalive_s
        self._maxsize = maxsize
        self._idle: deque[_Connection] = deque()

    def get(self, **_waiting: object) -> _Connection:
        """The one that was used last.

        :raises queue.Empty: at once, where there is none.
        """
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None

    def put(self, connection: _Connection | None, **_waiting: object) -> None:
        """Keep a connection, or close it where there are enough."""
        if connection is None or connection.sock is None:
            return
        now = time.monotonic()
        connection.idle_until = now + self._keepalive_s
        idle = self._idle
        idle.append(connection)
        if len(idle) > self._maxsize or idle[0].idle_until < now:
            try:
                idle.popleft().close()
            except IndexError:  # other threads took them
                return

    def qsize(self) -> int:
        """How many there are."""
        return len(self._idle)

    def clear(self) -> None:
        """Close them."""
        try:
            while True:
                self._idle.pop().close()
        except IndexError:
            return


class HostPool(HTTPConnectionPool):
    """Connections to one host, for one name and kind of TLS."""

    ConnectionCls = _Connection

    def __init__(self, *args: Any, keepalive_s: float, **options: Any) -> None:
        self.QueueCls = cast("Any", functools.partial(_Idle, keepalive_s))
        super().__init__(*args, **options)


class TLSHostPool(HostPool, HTTPSConnectionPool):
    """The same with TLS."""

    ConnectionCls = _TLSConnection

    def _validate_conn(self, conn: Any) -> None:
        # Without the warning about hosts that are not verified: the upstream's pool says so.
        if conn.is_closed:
            conn.connect()


class TLS:
    """How to speak TLS; contexts are made when they are used.

    :param verified: for pools with ``ssl_verify``.
    :param unverified: for other pools.
    :param options: more options of urllib3's pools of connections, for pools with ``ssl_verify``.
    """

    def __init__(self, verified: Context, unverified: Context, **options: Any) -> None:
        self._contexts = functools.cache(verified), functools.cache(unverified)
        self._options = options

    def options(self, *, verify: bool) -> dict[str, Any]:
        """For urllib3's pool of connections."""
        verified, unverified = self._contexts
        return {**self._options, "ssl_context": verified()} if verify else {"ssl_context": unverified()}


class _Peers:
    """The hosts that this process has asked."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.pid = os.getpid()
        self._options = options
        self._found: dict[tuple[Target, str, str, TLS], HostPool] = {}
        self._peers: dict[tuple[Any, ...], HostPool] = {}

    def find(self, attempt: Attempt, asked: Asked) -> HostPool:
        """The connections of an attempt."""
        wanted = (attempt.target, asked.scheme, asked.host, asked.tls)
        peer = self._found.get(wanted)
        if peer is None:
            if len(self._found) >= max(_FOUND, 4 * len(attempt.pool.hosts)):
                self._forget()
            peer = self._found[wanted] = self._make(attempt, asked)
        return peer

    def _make(self, attempt: Attempt, asked: Asked) -> HostPool:
        pool, host = attempt.pool, attempt.host
        is_tls = pool.ssl or asked.scheme == "https"
        name = (pool.sni_host or asked.host) if is_tls else ""
        tls = asked.tls if is_tls else None
        key = (host.host, host.port, name, pool.ssl_verify, tls, pool.keepalive_pool, pool.keepalive_timeout)
        peer = self._peers.get(key)
        if peer is None:
            options = {
                **self._options,
                "maxsize": pool.keepalive_pool,
                "keepalive_s": pool.keepalive_timeout / 1000,
            }
            address = host.host
            if host.unix_path is not None:
                address, options["unix_path"] = "localhost", host.unix_path
            kind = HostPool
            if tls is not None:
                kind = TLSHostPool
                options |= {"server_hostname": name, **tls.options(verify=pool.ssl_verify)}
            made = kind(address, host.port, **options)
            # Of two threads that are here, both get the first one's.
            peer = self._peers.setdefault(key, made)
        return peer

    def close(self) -> None:
        """Close all idle connections; those in use are closed when they are not any more."""
        for peer in list(self._peers.values()):
            peer.close()

    def _forget(self) -> None:
        """Drop what targets of long ago asked for, and connections that nobody found since the last time.

        Connections are closed with their pool, when the last answer is read that came through it.
        """
        found = set(map(id, self._found.values()))
        for key, peer in list(self._peers.items()):
            if id(peer) not in found:
                self._peers.pop(key, None)
        self._found.clear()


# ── requests ──────────────────────────────────────────────────────────────────────────────────


class Asked(NamedTuple):
    """A request of a user."""

    method: str
    scheme: str
    host: str
    """The name in its URL."""
    name: str
    """The name, and the port if it is not the usual one: for ``Host``."""
    target: str
    """Path and query."""
    headers: Any
    """A mapping with ``copy``."""
    body: Any
    chunked: bool
    connect_s: float | None
    read_s: float | None
    tls: TLS
    options: dict[str, Any]
    """More of them, for ``urlopen``."""


class UpstreamResponse(HTTPResponse):
    """urllib3's, with what a body means for the host that it comes from."""

    _exchange: Exchange | None = None
    _attempt: Attempt
    _is_broken = False

    @classmethod
    def of(cls, answer: Any, exchange: Exchange, attempt: Attempt) -> UpstreamResponse:
        """Make an answer of urllib3's one of these."""
        answer.__class__ = cls  # urllib3 makes it itself, of its own class
        answer._exchange = exchange
        answer._attempt = attempt
        return cast("UpstreamResponse", answer)

    @property
    def upstream(self) -> Info:
        """Where it came from."""
        return self._attempt.info

    def read(self, *args: Any, **options: Any) -> bytes:
        """As ever."""
        try:
            return super().read(*args, **options)
        except _BROKEN as error:
            self._broke(error)
            raise

    def read1(self, *args: Any, **options: Any) -> bytes:
        """As ever."""
        try:
            return super().read1(*args, **options)
        except _BROKEN as error:
            self._broke(error)
            raise

    def read_chunked(self, *args: Any, **options: Any) -> Generator[bytes, None, None]:
        """As ever."""
        try:
            yield from super().read_chunked(*args, **options)
        except _BROKEN as error:
            self._broke(error)
            raise

    def _broke(self, error: Exception) -> None:
        if self._exchange is not None and not self._is_broken:
            self._is_broken = True
            self._exchange.broke(self._attempt, error, timed_out=_is_timeout(error))

    def release_conn(self) -> None:
        """It is read."""
        super().release_conn()
        if self._exchange is not None and self._exchange.is_pending:
            self._exchange.land()

    def close(self) -> None:
        """It is given up."""
        super().close()
        if self._exchange is not None and self._exchange.is_pending:
            self._exchange.land()


def _is_timeout(error: BaseException) -> bool:
    """Whether it is a timeout of ours, not one that the kernel reported."""
    if isinstance(error, errors.NewConnectionError):  # which is a timeout by its class
        return False
    return isinstance(error, errors.TimeoutError) or any(
        isinstance(cause, TimeoutError) and cause.errno is None for cause in (error.__cause__, *error.args)
    )


class _Exchange(Exchange):
    """The hosts of one request of urllib3."""

    def is_replayable(self) -> bool:
        """Whether its body is there a second time."""
        body = self.request.body
        return body is None or isinstance(body, bytes | str | bytearray | memoryview)


class Engine:
    """Sends requests to hosts of an upstream, over urllib3.

    :param options: of urllib3's pools of connections.
    """

    def __init__(self, upstream: Upstream | RequestContext, options: Mapping[str, Any] | None = None) -> None:
        self._upstream = upstream
        self._options = options or {}
        self._peers: _Peers | None = None

    def send(self, asked: Asked) -> UpstreamResponse:
        """One answer; its body is not read yet.

        :raises urllib3.exceptions.HTTPError: where no other host may be asked.
        :raises NoHostAvailable: where there is none.
        """
        exchange = _Exchange(self._upstream.current_context, asked)
        kept = None
        try:
            for attempt in exchange:
                with attempt:
                    response = self._ask(exchange, attempt, asked)
                    kept, earlier = response, kept
                    if earlier is not None:
                        earlier.close()
                    if not exchange.is_bad(attempt, response.status, response.headers):
                        return response
                    raise BadAnswer(f"status {response.status}")
                if not exchange.may_go_on():
                    if kept is None:
                        raise culprit(attempt) or errors.ProtocolError("failed")
                    break
        except ours.NoHostAvailable:
            if kept is None:
                raise
        except BaseException as error:
            if kept is not None:
                kept.close()
            if isinstance(error, Excused):
                raise error.error from error.error.__cause__
            raise
        return cast("UpstreamResponse", kept)

    def _ask(self, exchange: Exchange, attempt: Attempt, asked: Asked) -> UpstreamResponse:
        """One host's answer."""
        peers = self._peers
        if peers is None or peers.pid != os.getpid():
            peers = self._peers = _Peers(self._options)
        peer = peers.find(attempt, asked)
        connect_s = attempt.timeout_s
        if asked.connect_s is not None and asked.connect_s < connect_s:
            connect_s = asked.connect_s
        while True:
            read_s = exchange.begin(attempt, asked.read_s)
            _sending.set(_Sending(exchange.progress, asked.name, read_s))
            try:
                answer = peer.urlopen(
                    asked.method,
                    asked.target,
                    asked.body,
                    asked.headers,
                    _ONCE,
                    False,
                    False,
                    _Timeouts(connect_s, read_s),
                    chunked=asked.chunked,
                    preload_content=False,
                    **asked.options,
                )
            except _NotTheHosts as error:
                raise Excused(error.error) from error.error
            except errors.HTTPError as error:
                timed_out = _is_timeout(error)
                if timed_out or not exchange.is_stale():
                    raise_judged(exchange.judged(attempt, error, timed_out=timed_out), error)
                cast("_Idle", peer.pool).clear()  # for a new one
            else:
                exchange.progress.until = math.inf
                return UpstreamResponse.of(answer, exchange, attempt)

    def close(self) -> None:
        """Close all connections."""
        peers, self._peers = self._peers, None
        if peers is not None and peers.pid == os.getpid():
            peers.close()


@functools.cache
def unverified() -> ssl.SSLContext:
    """For hosts whose certificates do not matter."""
    return create_urllib3_context(cert_reqs=ssl.CERT_NONE)


# ── the client ────────────────────────────────────────────────────────────────────────────────


class NoHostAvailable(errors.MaxRetryError, ours.NoHostAvailable):
    """What urllib3 raises after its last try, and a :class:`~resty_upstream.NoHostAvailable`."""

    def __init__(self, pool: HTTPConnectionPool, url: str, error: ours.NoHostAvailable) -> None:
        reason = error.__cause__ if isinstance(error.__cause__, Exception) else None
        errors.MaxRetryError.__init__(self, pool, url, reason)
        self.args = (str(error),)
        self.attempts, self.status_hint = error.attempts, error.status_hint
        self.__cause__ = error.__cause__

    def __reduce__(self) -> Any:
        return _unpickled, (str(self), self.url, self.attempts, self.status_hint)


def _unpickled(text: str, url: str, attempts: tuple[Attempt, ...], status_hint: int) -> NoHostAvailable:
    return NoHostAvailable(
        cast("Any", None), url, ours.NoHostAvailable(text, list(attempts), cast("Any", status_hint))
    )


class _Name(HTTPConnectionPool):
    """What a manager takes for the connections to a name: they are the upstream's."""

    def __init__(self, manager: UpstreamPoolManager, scheme: str, host: str, port: int, **options: Any) -> None:
        super().__init__(host, port, maxsize=0, **options)
        self.scheme = scheme
        self._manager = manager
        self._seconds = seconds(self.timeout)
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self._shown = shown if port == _PORTS[scheme] else f"{shown}:{port}"

    def urlopen(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        retries: Any = None,
        redirect: bool = True,
        assert_same_host: bool = True,  # noqa: ARG002 - urllib3's signature; the manager says False
        timeout: Any = Timeout.DEFAULT_TIMEOUT,
        pool_timeout: float | None = None,  # noqa: ARG002 - there is no bound to wait for
        release_conn: bool | None = None,  # noqa: ARG002 - it is when it is read
        chunked: bool = False,
        body_pos: Any = None,
        preload_content: bool = True,
        decode_content: bool = True,
        **options: Any,
    ) -> Any:
        """As ever, at hosts of the upstream."""
        if not isinstance(retries, Retry):
            retries = Retry.from_int(retries, redirect=redirect, default=self.retries)
        connect_s, read_s = self._seconds
        if timeout is not Timeout.DEFAULT_TIMEOUT:
            connect_s, read_s = seconds(timeout)
        options["decode_content"] = decode_content
        if body_pos is not None:
            options["body_pos"] = body_pos
        headers = self.headers if headers is None else headers
        if not hasattr(headers, "copy"):
            headers = dict(headers)
        manager = self._manager
        asked = Asked(
            method, self.scheme, self.host, self._shown, url, headers, body, chunked,
            connect_s, read_s, manager.tls, options,
        )  # fmt: skip
        try:
            response = manager.engine.send(asked)
        except ours.NoHostAvailable as error:
            raise NoHostAvailable(self, url, error) from error.__cause__
        response.retries = retries
        if preload_content:
            response.read(decode_content=decode_content, cache_content=True)
        return response


def seconds(timeout: Timeout | float | None) -> tuple[float | None, float | None]:
    """How long connecting and each read may take, as the caller says.

    :raises ValueError: for what is no timeout.
    """
    timeout = timeout.clone() if isinstance(timeout, Timeout) else Timeout.from_float(timeout)
    timeout.start_connect()
    return timeout.resolve_default_timeout(timeout.connect_timeout), timeout.read_timeout


_TLS_OPTIONS: Final = (
    "ca_certs", "ca_cert_dir", "ca_cert_data", "cert_file", "key_file", "key_password", "cert_reqs", "ssl_version",
    "ssl_minimum_version", "ssl_maximum_version", "assert_hostname", "assert_fingerprint",
)  # fmt: skip
_OPTIONS: Final = ("retries", "timeout", "blocksize", "source_address", "socket_options")
_INSTEAD: Final = {
    "maxsize": "that is the pools' keepalive_pool",
    "block": "there are as many connections as requests",
    "server_hostname": "that is the name in the URL, or the pools' sni_host",
    "num_pools": "there is one for each host",
}


class UpstreamPoolManager(PoolManager):
    """A ``urllib3.PoolManager`` whose requests go to the hosts of an upstream.

    ::

        http = UpstreamPoolManager(upstream)
        response = http.request("GET", "http://users.internal/users/1")
        response.upstream.host.id

    All of them do, redirects too, whatever their URLs say; the name in the URL is for ``Host``, SNI and
    certificates (of ``https`` URLs, and of pools with ``ssl``). A request that failed is sent to the next host
    when nothing of it was sent, or when it is GET, HEAD, OPTIONS, TRACE, PUT or DELETE or has an
    ``Idempotency-Key``, and has a body that is there a second time: bytes or text. So is one that was answered
    with one of the pool's ``status_codes``. When every host answered like that, the last answer is returned.

    :param upstream: an upstream, or the context of a request.
    :param headers: for all requests that have none of their own.
    :param ssl_context: instead of one with the system's certificates, for pools with ``ssl_verify``.
    :param options: ``timeout`` (beside those of the pools, the shorter one counts), ``retries`` (for redirects
        only), ``blocksize``, ``source_address``, ``socket_options``, and those about certificates, as of
        ``urllib3.PoolManager``.
    :raises urllib3.exceptions.MaxRetryError: which is a :class:`~resty_upstream.NoHostAvailable`, when no host is
        left.
    """

    def __init__(
        self,
        upstream: Upstream | RequestContext,
        headers: Mapping[str, str] | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        for name in options:
            if name not in _OPTIONS and name not in _TLS_OPTIONS:
                known = f"options are {', '.join(['headers', 'ssl_context', *_OPTIONS, *_TLS_OPTIONS])}"
                raise TypeError(f"{name} is not an option of an upstream's: {_INSTEAD.get(name, known)}")
        tls_options: dict[str, Any] = {name: options.pop(name) for name in _TLS_OPTIONS if name in options}
        super().__init__(headers=headers, **options)
        self._names: dict[tuple[str, str, int], _Name] = {}
        self._of_names = {
            name: self.connection_pool_kw.pop(name)
            for name in ("retries", "timeout")
            if name in self.connection_pool_kw
        }
        self.tls = _tls(ssl_context, tls_options)
        self.engine = Engine(upstream, self.connection_pool_kw)

    def connection_from_host(
        self,
        host: str | None,
        port: int | None = None,
        scheme: str | None = "http",
        pool_kwargs: dict[str, Any] | None = None,
    ) -> HTTPConnectionPool:
        """The connections of the upstream, under a name."""
        scheme = (scheme or "http").lower()
        if scheme not in _PORTS:
            raise errors.URLSchemeUnknown(scheme)
        if not host:
            raise errors.LocationValueError("No host specified.")
        if pool_kwargs:
            raise TypeError("options are given to the manager: connections are the upstream's")
        key = (scheme, host, port or _PORTS[scheme])
        name = self._names.get(key)
        if name is None:
            if len(self._names) >= 64:
                self._names.clear()
            name = self._names[key] = _Name(self, *key, headers=self.headers, **self._of_names)
        return name

    def clear(self) -> None:
        """Close all connections."""
        self.engine.close()


def _tls(context: ssl.SSLContext | None, options: dict[str, Any]) -> TLS:
    """How to speak TLS, from options of urllib3's."""
    more = {name: options.pop(name) for name in ("assert_hostname", "assert_fingerprint") if name in options}
    if context is None and not options:
        return TLS(_default, unverified, **more)
    if context is None:
        context = create_urllib3_context(
            resolve_ssl_version(options.get("ssl_version")),
            resolve_cert_reqs(options.get("cert_reqs")),
            ssl_minimum_version=options.get("ssl_minimum_version"),
            ssl_maximum_version=options.get("ssl_maximum_version"),
        )
        authorities = [options.get(name) for name in ("ca_certs", "ca_cert_dir", "ca_cert_data")]
        if any(authorities):
            context.load_verify_locations(*authorities)
        else:
            context.load_default_certs()
    if options.get("cert_file"):
        context.load_cert_chain(options["cert_file"], options.get("key_file"), options.get("key_password"))
    given = context
    return TLS(lambda: given, unverified, **more)


def _default() -> ssl.SSLContext:
    context = create_urllib3_context()
    context.load_default_certs()
    return context
