"""aiohttp: a middleware that has the failover loop, and a connector that has the connections.

The middleware sees requests and answers, and may send a request again; what it cannot see is how far one got,
and it has no say in timeouts. The connector can do both, and keeps connections by host, so that weights count for
every request. The request is not changed: cookies, redirects and ``response.url`` are of the name in the URL.
"""

from __future__ import annotations

import asyncio
import functools
import math
import select
import ssl
from collections.abc import Callable, Collection, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakSet

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError

from resty_upstream.aconnectors import open_socket, transport_of
from resty_upstream.attempts import Attempt, BadAnswer, Excused
from resty_upstream.errors import NoHostAvailable
from resty_upstream.http.exchange import NOBODYS, Exchange, Progress, culprit, raise_judged

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientTimeout
    from aiohttp.tracing import Trace

    from resty_upstream.attempts import Info
    from resty_upstream.context import RequestContext
    from resty_upstream.model import Pool
    from resty_upstream.upstream import Upstream

    Tls = ssl.SSLContext | aiohttp.Fingerprint | None
    Key = tuple[str, int, str, Tls]
    """Of connections that are as good as each other: host and port, and the name and kind of TLS."""

_OURS: Final = "_resty_upstream"
_TICK_S: Final = 0.001
_NEVER: Final = math.inf
_SENT_AGAIN_BY_SESSIONS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class _NoHostAvailable(aiohttp.ClientConnectionError, NoHostAvailable):
    """What is raised when no host is left."""

    def __init__(self, error: NoHostAvailable) -> None:
        NoHostAvailable.__init__(self, str(error), error.attempts, error.status_hint)


_NoHostAvailable.__name__ = _NoHostAvailable.__qualname__ = "NoHostAvailable"


# ── connections ───────────────────────────────────────────────────────────────────────────────


class _Protocol(ResponseHandler):
    """A connection, which notes how far a request got, and how long nothing happens.

    There is one alarm, which is late: it looks whether it is time, and is set anew. A timer for each request and
    each read would cost more than all else that is done here.
    """

    progress: Progress = NOBODYS
    """Of the request that is sent on it."""
    _read_s = _NEVER
    """What one read of that may take."""
    is_lost = False
    """Whether it ended by itself."""
    _alarm_at = _NEVER
    """By ``time.monotonic``, as all times in here."""
    _since = _NEVER
    """Since when nothing has come, while it is the host's turn."""
    _is_written = False
    """Whether all of the request is."""
    _is_asked = False
    """Whether it is to say that a body may be sent."""
    _is_held = False
    _alarm: asyncio.TimerHandle | None = None
    _poll: Callable[[float], list[tuple[int, int]]]

    def is_usable(self) -> bool:
        """Whether it is still as it was left; the event loop may not have seen yet that the host closed it."""
        return self._since == _NEVER and not (self.is_lost or self._poll(0))

    @property
    def is_awaited(self) -> bool:
        """Whether it is the host's turn."""
        return self._is_written or self._is_asked or self.writing_paused

    def begin(self, progress: Progress, read_s: float) -> None:
        """It is used for a request."""
        self.progress = progress
        self._read_s = read_s
        self._is_written = self._is_asked = False
        if progress.until < self._alarm_at:
            self._watch()

    def ask(self) -> None:
        """The body of the request has to wait for the host's permission."""
        self._is_asked = True
        self._await_host()

    def receive(self, content: aiohttp.StreamReader) -> None:
        """The head of an answer is there."""
        if self.is_lost:
            return
        self.progress.until, self.progress.content = _NEVER, content
        if self.upgraded:
            self._is_written, self._since = False, _NEVER  # a WebSocket has timeouts of its own
        elif not self._is_held and not content.is_eof():
            self._await_host()

    def rest(self) -> None:
        """It is used for none any more."""
        self.progress = NOBODYS
        self._is_held = False
        self._is_written = True  # so that, if anything comes now, that will be seen
        self._since = _NEVER

    # Called by the request and the answer.

    def start_timeout(self) -> None:
        """All of the request is written. (What this would start is not needed: the alarm knows what was asked.)"""
        self._is_written = True
        self._since = now = monotonic()
        if now + self._read_s < self._alarm_at:
            self._watch()

    def pause_reading(self) -> None:
        """It is not the host that makes us wait, until reading goes on."""
        super().pause_reading()
        self._is_held = True
        self._since = _NEVER

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called after each read of a body: mostly nothing was paused, and there is nothing to do."""
        if self._is_held:
            self._is_held = False
            if resume_parser and not self.upgraded:
                self._await_host()
            super().resume_reading(resume_parser)

    def abort(self) -> None:
        """It is to be closed at once."""
        self._drop()
        super().abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        super().connection_made(transport)
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._poll = poll.poll

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed."""
        self.is_lost = True
        self._drop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Part of an answer, or nothing."""
        if data:
            self.progress.answered = True
            if self._is_held or not self._is_written:
                self._is_asked, self._since = False, _NEVER
            else:
                self._since = monotonic()
        ResponseHandler.data_received(self, data)  # in half the time of super()

    def pause_writing(self) -> None:
        """The host takes nothing more for now."""
        super().pause_writing()
        if not self.progress.answered:
            self._await_host()

    def resume_writing(self) -> None:
        """It takes more."""
        super().resume_writing()
        if not self.progress.answered:
            self._await_host()

    # Time.

    def _await_host(self) -> None:
        """Its time begins now, if it is its turn."""
        self._since = monotonic() if self.is_awaited else _NEVER
        self._watch()

    @property
    def _deadline(self) -> float:
        """For the head of an answer no longer than all attempts may take."""
        return min(self._since + self._read_s, self.progress.until)

    def _watch(self) -> None:
        """See to it that the alarm is not later than it may have to be."""
        deadline = self._deadline
        if deadline >= self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._loop.call_later(deadline - monotonic(), self._look)

    def _look(self) -> None:
        self._alarm, self._alarm_at = None, _NEVER
        if self._deadline > monotonic() + _TICK_S:
            self._watch()
            return
        error = aiohttp.SocketTimeoutError("Timeout on reading data from socket")
        self.set_exception(error)
        if self.progress.content is not None:
            self.progress.content.set_exception(error)

    def _drop(self) -> None:
        self.progress = NOBODYS
        self._since = self._alarm_at = _NEVER
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


class _Connections:
    """Connections to hosts; what aiohttp's ``Connection`` takes for a connector."""

    force_close = False

    def __init__(self, loop: asyncio.AbstractEventLoop, trust: Tls | bool) -> None:
        self._loop = loop
        self._trust = trust
        self._as_connector: Any = self
        self._all: WeakSet[_Protocol] = WeakSet()
        self._idle: dict[Key, list[tuple[_Protocol, float]]] = {}
        """With the time until which they are kept."""
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_at = _NEVER
        self._closed = False

    async def connect(
        self, request: ClientRequest, exchange: Exchange, traces: list[Trace], limits: ClientTimeout
    ) -> Connection:
        """A connection to the host of the attempt at hand."""
        attempt = exchange.log[-1]
        read_s = exchange.begin(attempt, limits.sock_read or None)
        progress, target = exchange.progress, attempt.target
        host, pool = target.host, target.pool
        name, tls = "", None
        if pool.ssl or request.url.scheme in ("https", "wss"):
            name = (pool.sni_host or request.server_hostname or request.url.raw_host or "").rstrip(".")
            tls = self._tls(request.ssl, pool)
        key: Any = (host.host, host.port, name, tls)
        idle = self._idle.get(key)
        while idle and not exchange.stale:
            protocol, until = idle.pop()
            if monotonic() < until and protocol.is_usable():
                break
            protocol.abort()
        else:
            progress.is_fresh = True
            for trace in traces:
                await trace.send_connection_create_start()
            asked_s = [seconds for seconds in (limits.sock_connect, limits.connect) if seconds]
            async with asyncio.timeout(min([attempt.timeout_s, *asked_s])):
                protocol = await self._connected(attempt, name, tls)
        connection = Connection(self._as_connector, key, protocol, self._loop)
        protocol.begin(progress, read_s)
        if hdrs.EXPECT in request.headers:
            protocol.ask()
        progress.connection = protocol
        if traces:
            await _tell(traces, connection, progress)
        progress.sent = True
        return connection

    async def _connected(self, attempt: Attempt, name: str, tls: Tls) -> _Protocol:
        fingerprint = tls if isinstance(tls, aiohttp.Fingerprint) else None
        context = _unverified() if fingerprint else cast("ssl.SSLContext | None", tls)
        sock = await open_socket(attempt)
        protocol = _Protocol(self._loop)
        transport = await transport_of(sock, protocol, context, name or None, attempt.timeout_s)
        try:
            if fingerprint is not None:
                fingerprint.check(transport)
            if self._closed:
                raise aiohttp.ClientConnectionError("Connector is closed.")
        except BaseException:
            protocol.abort()
            raise
        self._all.add(protocol)
        return protocol

    def _tls(self, asked: Tls | bool, pool: Pool) -> Tls:
        """How to speak TLS: as the request says, the pool, or the connector."""
        if asked is True:
            asked = self._trust if pool.ssl_verify else False
        if asked is True or asked is None:
            return _verified()
        return asked or _unverified()

    def _release(self, key: Key, protocol: _Protocol, *, should_close: bool = False) -> None:
        """Called by a ``Connection``, of which nobody has need any more."""
        if should_close or protocol.should_close:
            protocol.abort()  # not close(), which waits for a host that takes nothing
            return
        pool = protocol.progress.attempt.target.pool
        idle = self._idle.get(key)
        if pool.keepalive_pool <= (len(idle) if idle else 0) or not pool.keepalive_timeout:
            protocol.abort()
            return
        protocol.rest()
        if idle is None:
            idle = self._idle[key] = []
        until = monotonic() + pool.keepalive_timeout / 1000
        idle.append((protocol, until))
        if until < self._sweep_at:
            self._sweep_by(until)

    def _sweep_by(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._sweep_at = until
        self._timer = self._loop.call_later(until - monotonic(), self._sweep)

    def _sweep(self) -> None:
        """Close what was not used for long."""
        self._timer, self._sweep_at = None, _NEVER
        now = monotonic() + _TICK_S
        for key, idle in list(self._idle.items()):
            for protocol, until in idle:
                if until <= now:
                    protocol.abort()
            self._idle[key] = [each for each in idle if each[1] > now]
            if not self._idle[key]:
                del self._idle[key]
        ends = [until for idle in self._idle.values() for _, until in idle]
        if ends:
            self._sweep_by(min(ends))

    async def close(self) -> None:
        """Close all."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()
        protocols = list(self._all)
        ends = [end for end in (protocol.closed for protocol in protocols) if end is not None]
        for protocol in protocols:
            protocol.force_close()
            protocol.abort()
        await asyncio.gather(*ends, return_exceptions=True)


async def _tell(traces: list[Trace], connection: Connection, progress: Progress) -> None:
    """Those who trace the session."""
    try:
        for trace in traces:
            if progress.is_fresh:
                await trace.send_connection_create_end()
            else:
                await trace.send_connection_reuseconn()
    except BaseException:
        connection.close()
        raise


@functools.cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


@functools.cache
def _verified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class UpstreamConnector(aiohttp.TCPConnector):
    """The connector of a session that has an :class:`UpstreamMiddleware`, or several.

    :param ssl: as of ``TCPConnector``; for hosts it counts in pools with ``ssl_verify``.
    :param options: of ``TCPConnector``, for requests that go to no upstream. Connections to hosts are kept as
        their pool says, and there may be any number of them.
    """

    def __init__(self, *, ssl: bool | aiohttp.Fingerprint | ssl.SSLContext = True, **options: Any) -> None:
        super().__init__(ssl=ssl, **options)
        self._to_hosts = _Connections(asyncio.get_running_loop(), ssl)

    def connect(
        self, req: ClientRequest, traces: list[Trace], timeout: ClientTimeout
    ) -> Coroutine[Any, Any, Connection]:
        """Called by the session."""
        exchange: Exchange | None = getattr(req, _OURS, None)
        if exchange is None:
            return super().connect(req, traces, timeout)
        return self._to_hosts.connect(req, exchange, traces, timeout)

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections."""
        await self._to_hosts.close()
        await super().close(abort_ssl=abort_ssl)


# ── requests ──────────────────────────────────────────────────────────────────────────────────


class _Exchange(Exchange):
    """The hosts of one request of aiohttp."""

    def is_replayable(self) -> bool:
        """Whether its body is there a second time."""
        body = self.request.body
        return not body or isinstance(body, aiohttp.BytesPayload)


class UpstreamMiddleware:
    """A middleware for ``aiohttp.ClientSession``, beside an :class:`UpstreamConnector`.

    ::

        async with aiohttp.ClientSession(
            "http://users.internal", connector=UpstreamConnector(), middlewares=[UpstreamMiddleware(upstream)]
        ) as session:
            async with session.get("/users/1") as response:
                upstream_of(response).host.id

    Requests go to hosts of the upstream, whatever their URLs say; the name in the URL is for ``Host``, cookies,
    SNI and certificates (of ``https`` URLs, and of pools with ``ssl``). Proxies are not used.

    A request that failed is sent to the next host when nothing of it was sent, or when it is GET, HEAD, OPTIONS,
    TRACE, PUT or DELETE or has an ``Idempotency-Key``, and has no body or one of bytes, text, JSON or form fields;
    so is one that was answered with one of the pool's ``status_codes``. When every host answered like that, the
    last answer is returned.

    Give it last in ``middlewares``, so that the others see a request once.

    :param upstream: an upstream, or the context of a request.
    :param hosts: names in URLs whose requests go to the upstream; all others go where their URLs say.
    :raises aiohttp.ClientConnectionError: which is a :class:`~resty_upstream.NoHostAvailable`, when no host is
        left.
    """

    def __init__(self, upstream: Upstream | RequestContext, *, hosts: Collection[str] | None = None) -> None:
        if isinstance(hosts, str):
            raise TypeError(f"hosts must be a collection of names, as {{{hosts!r}}}, not a string")
        self._upstream = upstream
        self._names = None if hosts is None else frozenset(name.lower() for name in hosts)

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Called by the session."""
        if self._names is not None and request.url.host not in self._names:
            return await handler(request)
        if not isinstance(request.session.connector, UpstreamConnector):
            raise TypeError(
                "UpstreamMiddleware needs ClientSession(connector=UpstreamConnector(), ...), "
                f"not {type(request.session.connector).__name__}"
            )
        if request.proxy is not None:
            request.update_proxy(None, None, None)
        context = self._upstream.current_context
        if not context.upstream.replica.is_loaded:
            await context.aload()
        exchange = _Exchange(context, request)
        request._resty_upstream = exchange  # type: ignore[attr-defined]
        kept: ClientResponse | None = None
        try:
            for attempt in exchange:
                with attempt:
                    while True:
                        try:
                            response = await handler(request)
                            break
                        except (TimeoutError, OSError, aiohttp.ClientError) as error:
                            _raise_unless_stale(exchange, attempt, error)
                        request.update_expect_continue()
                    response._resty_upstream = attempt  # type: ignore[attr-defined]
                    connection = response.connection
                    if connection is not None and exchange.has_begun(attempt):
                        exchange.progress.connection.receive(response.content)
                    kept, earlier = response, kept
                    if earlier is not None:
                        earlier.close()
                    if exchange.is_bad(attempt, response.status, response.headers):
                        raise BadAnswer(f"status {response.status}")
                if attempt.outcome == "ok":
                    if connection is not None:
                        _follow(response, connection, exchange, attempt)
                    elif exchange.is_pending:
                        exchange.land()
                    return response
                if not exchange.may_go_on():
                    if kept is None:
                        raise culprit(attempt) or aiohttp.ClientConnectionError("failed")
                    break
                request.update_expect_continue()  # if it waits for a "100 Continue", then for another
        except NoHostAvailable as error:
            if kept is None:
                raise _NoHostAvailable(error) from error.__cause__
        except BaseException as error:
            if kept is not None:
                kept.close()
            if isinstance(error, Excused):
                error = error.error
            if request.method in _SENT_AGAIN_BY_SESSIONS and isinstance(
                error, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError
            ):
                # Or the session would begin again with all of it.
                raise aiohttp.ClientConnectionError(str(error)) from error
            raise error
        finally:
            request._resty_upstream = None  # type: ignore[attr-defined]  # it would be a cycle
        assert kept is not None  # noqa: S101
        return kept


def _raise_unless_stale(exchange: Exchange, attempt: Attempt, error: Exception) -> None:
    """Raise what an error means, unless the request is to be sent to the same host once more."""
    if isinstance(error, TimeoutError):
        raise_judged(_judged_timeout(exchange, attempt, error), error)
    if not _is_of_network(exchange, attempt, error):
        raise Excused(error) from error
    if not exchange.is_stale():
        raise_judged(exchange.judged(attempt, error), error)


def _judged_timeout(exchange: Exchange, attempt: Attempt, error: TimeoutError) -> Exception:
    if not exchange.has_begun(attempt):
        return Excused(error)  # what another middleware says
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return exchange.judged(attempt, error)
    protocol: _Protocol | None = exchange.progress.connection
    if protocol is None or not isinstance(error, aiohttp.SocketTimeoutError):
        return Excused(error)  # `total` of the session
    if not protocol.is_awaited:
        return Excused(error)  # a body that takes its time, and a host that takes all that comes
    return exchange.judged(attempt, error, timed_out=True)


def _is_of_network(exchange: Exchange, attempt: Attempt, error: Exception) -> bool:
    """Whether an error says something about the host; else it is of the caller's body, say."""
    if not exchange.has_begun(attempt):
        return False
    cause = error.__cause__
    if isinstance(error, aiohttp.ClientResponseError):
        return isinstance(cause, HttpProcessingError)
    if type(error) is aiohttp.ClientOSError and isinstance(cause, OSError):
        protocol: _Protocol | None = exchange.progress.connection
        is_lost = protocol is None or protocol.is_lost
        return is_lost or isinstance(cause, aiohttp.ClientConnectionResetError)
    return type(error) is not aiohttp.ClientConnectionError


def _follow(response: ClientResponse, connection: Connection, exchange: Exchange, attempt: Attempt) -> None:
    """See an answer to its end."""
    content = response.content

    def ended() -> None:
        error = content.exception()
        if isinstance(error, aiohttp.ClientError) and type(error) is not aiohttp.ClientConnectionError:
            exchange.broke(attempt, error, timed_out=isinstance(error, TimeoutError))
        exchange.land()

    connection.add_callback(ended)


def upstream_of(response: ClientResponse) -> Info:
    """Which host answered.

    :raises LookupError: for an answer that is not of an upstream.
    """
    attempt: Attempt | None = getattr(response, _OURS, None)
    if attempt is None:
        raise LookupError(f"the answer of {response.url} is not of an upstream")
    return attempt.info
