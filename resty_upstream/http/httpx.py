"""Transports for httpx2 and httpx: failover under a client that knows nothing of it.

Each host has keep-alive connections of its own, so that weights count for every request, and so that a connection
that was verified for one name is never used for another. Underneath are the connection pools of httpcore, whose
network back ends tell how far a request got.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import re
import ssl
import sys
import weakref
from asyncio import _get_running_loop
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from resty_upstream.attempts import Attempt, BadAnswer, Excused
from resty_upstream.errors import NoHostAvailable
from resty_upstream.http.connection import Connection, streams
from resty_upstream.http.exchange import NOBODYS, Exchange, Progress, culprit, raise_judged

if TYPE_CHECKING:
    from resty_upstream.context import RequestContext
    from resty_upstream.selection import Target
    from resty_upstream.upstream import Upstream


_OURS: Final = "upstream"
_FOUND: Final = 64
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63}){0,10}")
_CORES: Final = {"httpx2": "httpcore2", "httpx": "httpcore"}

_progress: ContextVar[Progress] = ContextVar("resty_upstream.http")


class Library(NamedTuple):
    """One of the libraries, whose names are the same."""

    hx: Any
    """The client: httpx2 or httpx."""
    core: Any
    """What it is built on: httpcore2 or httpcore."""
    backend: Any
    """Of :func:`_network`."""
    abackend: Any
    answer: Any
    """Of :func:`_streams`."""
    aanswer: Any
    none: Any
    """A ``ConnectError`` that is a :class:`NoHostAvailable`, too."""
    of_connecting: tuple[type[Exception], ...]
    """Errors of the core by which nothing was sent yet."""
    of_network: tuple[type[Exception], ...]
    """Those and others that say something about a host."""
    others: tuple[type[Exception], ...]
    """Its other errors."""

    @classmethod
    def of(cls, request: Any) -> Library:
        """The library that a request is of."""
        kind = type(request)
        found = _libraries.get(kind)
        if found is None:
            found = _libraries[kind] = cls.load(kind.__module__.partition(".")[0])
        return found

    @classmethod
    @functools.cache
    def load(cls, name: str) -> Library:
        """The library of that name.

        :raises ImportError: where it is not installed.
        """
        if name not in _CORES:
            raise TypeError(f"a request of {' or '.join(_CORES)} was expected, not one of {name}")
        hx, core = importlib.import_module(name), importlib.import_module(_CORES[name])
        of_connecting = (core.ConnectError, core.ConnectTimeout)
        of_network = (core.TimeoutException, core.NetworkError, core.RemoteProtocolError)
        others = (core.ProtocolError, core.UnsupportedProtocol, core.ConnectionNotAvailable)
        made = (*_network(core), *_streams(hx), _none_available(hx))
        return cls(hx, core, *made, of_connecting, of_network, others)

    def translated(self, error: Exception) -> Exception:
        """An error of the core as one of the client: their names are the same."""
        kind = getattr(self.hx, type(error).__name__, None) or self.hx.TransportError
        translated: Exception = kind(str(error))
        translated.__cause__ = error
        return translated


_libraries: dict[type, Library] = {}
"""By the class of their requests."""


def _none_available(hx: Any) -> Any:
    def initialise(self: Any, error: NoHostAvailable) -> None:
        hx.ConnectError.__init__(self, str(error))
        self.attempts, self.status_hint = error.attempts, error.status_hint
        self.__cause__ = error.__cause__

    return type("NoHostAvailable", (hx.ConnectError, NoHostAvailable), {"__init__": initialise})


# ── how far a request got ─────────────────────────────────────────────────────────────────────


def _network(core: Any) -> tuple[Any, Any]:
    """Network back ends that note in the progress of the request what happens."""
    opened, aopened = streams(core, functools.partial(_progress.get, NOBODYS))

    class Backend(core.SyncBackend):  # type: ignore[misc]
        def connect_tcp(self, *_address: Any, timeout: float, **_options: Any) -> Any:
            progress = _progress.get(NOBODYS)
            progress.is_fresh = True
            return opened(progress.attempt, timeout)

        connect_unix_socket = connect_tcp

    class AStream(core.AsyncNetworkStream):  # type: ignore[misc]
        """Of Trio."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner
            self.write = inner.write
            self.aclose = inner.aclose
            self.get_extra_info = inner.get_extra_info

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            progress = _progress.get(NOBODYS)
            data: bytes = await self._inner.read(max_bytes, progress.bounded(timeout))
            if data:
                progress.answered = True
            return data

        async def start_tls(self, *args: Any, **options: Any) -> AStream:
            try:
                return AStream(await self._inner.start_tls(*args, **options))
            except BaseException:
                await self._inner.aclose()  # the core leaves it to the collector when it is cancelled
                raise

    class ABackend(core.AnyIOBackend):  # type: ignore[misc]
        async def connect_tcp(self, *address: Any, timeout: float, **options: Any) -> Any:
            return await connected(super().connect_tcp, address, timeout, options)

        async def connect_unix_socket(self, *address: Any, timeout: float, **options: Any) -> Any:
            return await connected(super().connect_unix_socket, address, timeout, options)

    async def connected(connect: Any, address: tuple[Any, ...], timeout_s: float, options: dict[str, Any]) -> Any:
        progress = _progress.get(NOBODYS)
        progress.is_fresh = True
        if _get_running_loop() is None:
            return AStream(await connect(*address, timeout=timeout_s, **options))
        return await aopened(Connection.open(progress.attempt, timeout_s))

    return Backend(), ABackend()


_NO_TIMEOUTS: Final[dict[str, float]] = {}


# ── answers ───────────────────────────────────────────────────────────────────────────────────


class _Answer:
    """The body of an answer, which may break off yet."""

    def __init__(self, library: Library, answer: Any, exchange: Exchange, attempt: Attempt, peer: _Peer) -> None:
        self._library = library
        self._stream = answer.stream
        self._extensions = answer.extensions
        self._exchange: Exchange | None = exchange
        self._attempt = attempt
        self._peer = peer

    def broke(self, error: Exception) -> Exception:
        """What to raise for an error of the core."""
        if self._exchange is not None:  # else it was given up while somebody read it
            is_timeout = isinstance(error, self._library.core.TimeoutException)
            self._exchange.broke(self._attempt, error, timed_out=is_timeout)
        return self._library.translated(error)

    def end(self) -> Any:
        """It is read, or given up: the core's stream, which is to be closed; None the second time.

        A response of httpx is part of a cycle: what is let go of here does not wait for the garbage collector.
        """
        stream, self._stream = self._stream, None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if exchange.is_pending:
                exchange.land()
            self._peer.in_use.discard(exchange)
        return stream


def _streams(hx: Any) -> tuple[Any, Any]:
    class Answer(_Answer, hx.SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._stream or ()
            except self._library.of_network as error:
                raise self.broke(error) from error

        def close(self) -> None:
            stream = self.end()
            if stream is not None:
                stream.close()

    class AAnswer(_Answer, hx.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                if self._stream is not None:
                    async for part in self._stream:
                        yield part
            except self._library.of_network as error:
                raise self.broke(error) from error

        async def aclose(self) -> None:
            stream = self.end()
            if stream is None:
                return
            try:
                await stream.aclose()
            except BaseException:  # cancelled just then, the connection would be neither used again nor closed
                if self._extensions["http_version"] != b"HTTP/2":
                    await self._extensions["network_stream"].aclose()
                raise

    return Answer, AAnswer


# ── connections ───────────────────────────────────────────────────────────────────────────────


class _Peer:
    """The keep-alive connections to one host, for one name and kind of TLS."""

    __slots__ = ("address", "in_use", "pool", "sni")

    def __init__(self, pool: Any, address: tuple[bytes, bytes, int], sni: str) -> None:
        self.pool = pool
        self.address = address
        self.sni = sni
        self.in_use: set[Exchange] = set()


class _Peers:
    """The hosts that this process has asked, of one library and, if it is async, of one event loop."""

    def __init__(self, settings: _Settings, library: Library, *, is_async: bool) -> None:
        self.pid = os.getpid()
        self._settings = settings
        self._library = library
        self._is_async = is_async
        self._found: dict[tuple[Target, bytes], _Peer] = {}
        """By target and, where they speak TLS, by name."""
        self._peers: dict[tuple[Any, ...], _Peer] = {}
        self.unused: list[Any] = []
        """Connection pools to be closed."""
        self.end: AsyncGenerator[None] | None = None

    def find(self, attempt: Attempt, url: Any) -> _Peer:
        """The connections of an attempt."""
        target = attempt.target
        asked = (target, url.raw_host if target.pool.ssl or url.scheme == "https" else b"")
        peer = self._found.get(asked)
        if peer is None:
            if len(self._found) >= max(_FOUND, 4 * len(attempt.pool.hosts)):
                self._forget()
            peer = self._found[asked] = self._make(attempt, url)
        return peer

    def _make(self, attempt: Attempt, url: Any) -> _Peer:
        pool, host = attempt.pool, attempt.host
        is_tls = pool.ssl or url.raw_scheme == b"https"
        sni = (pool.sni_host or url.host) if is_tls else ""
        key = (host.host, host.port, is_tls, sni, pool.ssl_verify, pool.keepalive_pool, pool.keepalive_timeout)
        peer = self._peers.get(key)
        if peer is None:
            core = self._library.core
            kind = core.AsyncConnectionPool if self._is_async else core.ConnectionPool
            connections = kind(
                ssl_context=self._settings.tls(self._library.hx, pool.ssl_verify) if is_tls else _unverified(),
                max_connections=None,
                max_keepalive_connections=pool.keepalive_pool,
                keepalive_expiry=pool.keepalive_timeout / 1000,
                http1=self._settings.http1,
                http2=self._settings.http2,
                uds=host.unix_path,
                network_backend=self._library.abackend if self._is_async else self._library.backend,
            )
            name = "localhost" if host.unix_path is not None else host.host.encode("idna").decode()
            address = (b"https" if is_tls else b"http", name.encode("ascii"), host.port)
            # Of two threads that are here, both get the first one's.
            peer = self._peers.setdefault(key, _Peer(connections, address, sni))
        return peer

    def pools(self) -> list[Any]:
        """All of its connection pools."""
        return [*self.unused, *(peer.pool for peer in self._peers.values())]

    def _forget(self) -> None:
        """Drop what was found, and connections that nobody found since the last time: names come and go."""
        found = set(map(id, self._found.values()))
        for key, peer in list(self._peers.items()):
            if id(peer) not in found and not peer.in_use:
                self.unused.append(self._peers.pop(key).pool)
        self._found.clear()


class _Settings:
    """What a user gave a transport."""

    def __init__(self, verify: ssl.SSLContext | None = None, http1: bool = True, http2: bool = False) -> None:
        self.verify = verify
        self.http1 = http1
        self.http2 = http2

    def tls(self, hx: Any, verify: bool) -> ssl.SSLContext:
        """How to speak TLS with hosts of a pool."""
        if not verify:
            return _unverified()
        return self.verify or _verified(hx)


@functools.cache
def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@functools.cache
def _verified(hx: Any) -> ssl.SSLContext:
    context: ssl.SSLContext = hx.create_ssl_context()
    return context


# ── requests ──────────────────────────────────────────────────────────────────────────────────


class _Exchange(Exchange):
    """The hosts of one request of httpx."""

    def is_replayable(self) -> bool:
        """Whether its body is there a second time."""
        return isinstance(self.request.stream, Library.of(self.request).hx.ByteStream)


class _Engine:
    """What sends requests: the connections, and how they are made."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    def _prepared(self, library: Library, exchange: Exchange, attempt: Attempt, request: Any, peer: _Peer) -> Any:
        """The request as it goes to a host."""
        extensions = dict(request.extensions)
        asked = extensions.get("timeout") or _NO_TIMEOUTS
        connect_s, write_s = asked.get("connect"), asked.get("write")
        read_s = exchange.begin(attempt, asked.get("read"))
        timeout_s = attempt.timeout_s
        extensions["timeout"] = {
            "connect": timeout_s if connect_s is None or connect_s > timeout_s else connect_s,
            "read": read_s,
            "write": read_s if write_s is None or write_s > read_s else write_s,
        }
        extensions["sni_hostname"] = peer.sni
        _progress.set(exchange.progress)
        scheme, host, port = peer.address
        core = library.core
        return core.Request(
            request.method,
            core.URL(scheme=scheme, host=host, port=port, target=request.url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=extensions,
        )

    def _failed(self, library: Library, exchange: Exchange, attempt: Attempt, error: Exception) -> None:
        """Raise what an error of the network means, unless the request is to be sent to the same host again."""
        exchange.progress.sent = not isinstance(error, library.of_connecting)
        timed_out = isinstance(error, library.core.TimeoutException)
        if timed_out or not exchange.is_stale():
            raise_judged(exchange.judged(attempt, error, timed_out=timed_out), error)

    def _response(
        self, library: Library, kind: Any, answer: Any, exchange: Exchange, attempt: Attempt, peer: _Peer
    ) -> Any:
        exchange.progress.sent, exchange.progress.until = True, math.inf
        return library.hx.Response(
            answer.status,
            headers=answer.headers,
            stream=kind(library, answer, exchange, attempt, peer),
            extensions={**answer.extensions, _OURS: attempt.info},
        )


def _error_of(library: Library, attempt: Attempt) -> Exception:
    """What to raise for an attempt after which no other host may be asked."""
    error = culprit(attempt)
    return library.hx.TransportError("failed") if error is None else library.translated(error)


class SyncEngine(_Engine):
    """Sends requests of a ``Client``."""

    _peers: _Peers | None = None

    def send(self, request: Any, context: RequestContext) -> Any:
        """Send a request, in a context."""
        library = Library.of(request)
        exchange = _Exchange(context, request)
        kept = None
        try:
            for attempt in exchange:
                with attempt:
                    response = self._ask(library, exchange, attempt, request)
                    kept, earlier = response, kept
                    if earlier is not None:
                        earlier.close()
                    if not exchange.is_bad(attempt, response.status_code, response.headers):
                        return response
                    raise BadAnswer(f"status {response.status_code}")
                if not exchange.may_go_on():
                    if kept is None:
                        raise _error_of(library, attempt)
                    break
        except NoHostAvailable as error:
            if kept is None:
                raise library.none(error) from error.__cause__
        except BaseException as error:
            if kept is not None:
                kept.close()
            if isinstance(error, Excused):
                error = error.error
            if isinstance(error, library.of_network + library.others):
                raise library.translated(error) from error
            raise
        return kept

    def _ask(self, library: Library, exchange: Exchange, attempt: Attempt, request: Any) -> Any:
        """One host's answer."""
        peers = self._peers
        if peers is None or peers.pid != os.getpid():
            peers = self._peers = _Peers(self._settings, library, is_async=False)
        peer = peers.find(attempt, request.url)
        while peers.unused:
            peers.unused.pop().close()
        peer.in_use.add(exchange)
        answer = None
        try:
            while True:
                prepared = self._prepared(library, exchange, attempt, request, peer)
                try:
                    answer = peer.pool.handle_request(prepared)
                except library.of_network as error:
                    self._failed(library, exchange, attempt, error)
                except library.others as error:
                    raise Excused(error) from error
                else:
                    return self._response(library, library.answer, answer, exchange, attempt, peer)
        finally:
            if answer is None:
                peer.in_use.discard(exchange)

    def close(self) -> None:
        """Close all connections."""
        peers, self._peers = self._peers, None
        if peers is not None and peers.pid == os.getpid():
            for pool in peers.pools():
                pool.close()


class AsyncEngine(_Engine):
    """Sends requests of an ``AsyncClient``; each event loop has connections of its own."""

    def __init__(self, settings: _Settings) -> None:
        super().__init__(settings)
        self._peers: dict[int, _Peers] = {}
        """By the identity of the event loop: a weak dictionary would be slower than all else that is looked up."""

    async def send(self, request: Any, context: RequestContext) -> Any:
        """Send a request, in a context."""
        library = Library.of(request)
        if not context.upstream.replica.is_loaded:
            await context.aload()
        exchange = _Exchange(context, request)
        kept = None
        try:
            for attempt in exchange:
                with attempt:
                    response = await self._ask(library, exchange, attempt, request)
                    kept, earlier = response, kept
                    if earlier is not None:
                        await earlier.aclose()
                    if not exchange.is_bad(attempt, response.status_code, response.headers):
                        return response
                    raise BadAnswer(f"status {response.status_code}")
                if not exchange.may_go_on():
                    if kept is None:
                        raise _error_of(library, attempt)
                    break
        except NoHostAvailable as error:
            if kept is None:
                raise library.none(error) from error.__cause__
        except BaseException as error:
            if kept is not None:
                await kept.aclose()
            if isinstance(error, Excused):
                error = error.error
            if isinstance(error, library.of_network + library.others):
                raise library.translated(error) from error
            raise
        return kept

    async def _ask(self, library: Library, exchange: Exchange, attempt: Attempt, request: Any) -> Any:
        """One host's answer."""
        loop = _get_running_loop() or self._settings  # there is none where Trio runs, say
        peers = self._peers.get(id(loop))
        if peers is None or peers.pid != os.getpid():
            peers = self._peers[id(loop)] = _Peers(self._settings, library, is_async=True)
            weakref.finalize(loop, self._peers.pop, id(loop), None)
            peers.end = _closed_at_the_end(peers)
            await anext(peers.end)
        peer = peers.find(attempt, request.url)
        while peers.unused:
            await peers.unused.pop().aclose()
        peer.in_use.add(exchange)
        answer = None
        try:
            while True:
                prepared = self._prepared(library, exchange, attempt, request, peer)
                try:
                    answer = await peer.pool.handle_async_request(prepared)
                except library.of_network as error:
                    self._failed(library, exchange, attempt, error)
                except library.others as error:
                    raise Excused(error) from error
                else:
                    return self._response(library, library.aanswer, answer, exchange, attempt, peer)
        finally:
            if answer is None:
                peer.in_use.discard(exchange)
                if not isinstance(sys.exception(), Exception):
                    await _close_new(peer.pool)

    async def aclose(self) -> None:
        """Close all connections of this event loop."""
        peers = self._peers.pop(id(_get_running_loop() or self._settings), None)
        if peers is not None and peers.pid == os.getpid() and peers.end is not None:
            await peers.end.aclose()


async def _close_new(pool: Any) -> None:
    """A request was cancelled: close its connection if nothing was sent on it, which httpcore 1 never would.

    Where that is another request's, which is about to be sent, the core makes one more for it.
    """
    for connection in pool.connections:
        if ", NEW, " in connection.info():
            await connection.aclose()


async def _closed_at_the_end(peers: _Peers) -> AsyncGenerator[None]:
    """Closes connections with the event loop, which ends generators that are not at their end."""
    try:
        yield
    finally:
        for pool in peers.pools():
            await pool.aclose()


# ── transports ────────────────────────────────────────────────────────────────────────────────


class UpstreamTransport:
    """A transport for ``httpx2.Client`` and ``httpx.Client`` (``transport=``, or in ``mounts=``).

    ::

        client = httpx2.Client(transport=UpstreamTransport(upstream), base_url="http://users.internal")
        response = client.get("/users/1")
        response.extensions["upstream"].host.id

    All its requests go to hosts of the upstream, whatever their URLs say; the name in the URL is for ``Host``, SNI
    and certificates (of ``https`` URLs, and of pools with ``ssl``). A request that failed is sent to the next host
    when nothing of it was sent, or when it is GET, HEAD, OPTIONS, TRACE, PUT or DELETE or has an
    ``Idempotency-Key``, and has a body that is there a second time; so is one that was answered with one of the
    pool's ``status_codes``. When every host answered like that, the last answer is returned.

    :param upstream: an upstream, or the context of a request.
    :param verify: instead of the client's own trust store, for pools with ``ssl_verify``.
    :raises httpx2.ConnectError: which is a :class:`~resty_upstream.NoHostAvailable`, when no host is left.
    """

    def __init__(
        self,
        upstream: Upstream | RequestContext,
        *,
        verify: ssl.SSLContext | None = None,
        http1: bool = True,
        http2: bool = False,
    ) -> None:
        self._upstream = upstream
        self._engine = SyncEngine(_Settings(verify, http1, http2))

    def handle_request(self, request: Any) -> Any:
        """Called by the client."""
        return self._engine.send(request, self._upstream.current_context)

    def close(self) -> None:
        """Close all connections."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncUpstreamTransport:
    """:class:`UpstreamTransport` for ``httpx2.AsyncClient`` and ``httpx.AsyncClient``.

    Each event loop has connections of its own.
    """

    def __init__(
        self,
        upstream: Upstream | RequestContext,
        *,
        verify: ssl.SSLContext | None = None,
        http1: bool = True,
        http2: bool = False,
    ) -> None:
        self._upstream = upstream
        self._engine = AsyncEngine(_Settings(verify, http1, http2))

    def handle_async_request(self, request: Any) -> Awaitable[Any]:
        """Called by the client."""
        return self._engine.send(request, self._upstream.current_context)

    async def aclose(self) -> None:
        """Close all connections of this event loop."""
        await self._engine.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()


# ── clients ───────────────────────────────────────────────────────────────────────────────────

_engines: weakref.WeakKeyDictionary[Upstream, SyncEngine] = weakref.WeakKeyDictionary()
_async_engines: weakref.WeakKeyDictionary[Upstream, AsyncEngine] = weakref.WeakKeyDictionary()


class _OfContext:
    """A transport for one request: what it sees belongs to its context, the connections to the upstream."""

    def __init__(self, engine: SyncEngine | AsyncEngine, context: RequestContext) -> None:
        self._engine = engine
        self._context = context

    def handle_request(self, request: Any) -> Any:
        return self._engine.send(request, self._context)

    async def handle_async_request(self, request: Any) -> Any:
        return await self._engine.send(request, self._context)

    def close(self) -> None:
        """The connections are the upstream's."""

    async def aclose(self) -> None:
        """The connections are the upstream's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """As :meth:`close`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """As :meth:`aclose`."""


def client_for(context: RequestContext) -> Any:
    """An ``httpx2.Client``, or ``httpx.Client``, whose requests belong to a context.

    :raises ImportError: where neither is installed.
    """
    upstream = context.upstream
    engine = _engines.get(upstream)
    if engine is None:
        engine = _engines.setdefault(upstream, SyncEngine(_Settings()))
        weakref.finalize(upstream, engine.close)
    return _installed().Client(transport=_OfContext(engine, context), **_options(context))


def async_client_for(context: RequestContext) -> Any:
    """As :func:`client_for`, an ``AsyncClient``."""
    upstream = context.upstream
    engine = _async_engines.get(upstream)
    if engine is None:
        engine = _async_engines.setdefault(upstream, AsyncEngine(_Settings()))
    return _installed().AsyncClient(transport=_OfContext(engine, context), **_options(context))


def _options(context: RequestContext) -> dict[str, Any]:
    # Timeouts are the pool's. Nothing of the environment: a proxy, or passwords in .netrc, would go elsewhere.
    return {"base_url": f"http://{_name(context)}", "timeout": None, "trust_env": False}


def _name(context: RequestContext) -> str:
    """What hosts are called in ``Host``: as ``sni_host`` says, or like the upstream."""
    pools = context.upstream.replica.snapshot().pools
    named = next((pool.sni_host for pool in pools if pool.sni_host), context.upstream.id)
    return named if _HOST_NAME.fullmatch(named) else "upstream"


@functools.cache
def _installed() -> Any:
    for name in ("httpx2", "httpx"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name)
    raise ImportError("httpx2 is not installed: pip install 'resty-upstream[httpx]'")
