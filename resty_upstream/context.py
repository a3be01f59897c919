"""What one request knows: where it failed, and what it has to tell the others when it is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from resty_upstream import connectors
from resty_upstream.attempts import Attempts, Connecting
from resty_upstream.connectors import Connectable, Connected
from resty_upstream.load import Flight
from resty_upstream.replica import Observation
from resty_upstream.selection import Explanation, Snapshot, Target, explain
from resty_upstream.state import Fact, Failure
from resty_upstream.sticky import Cookie, Session
from resty_upstream.visitors import Visitor, key_of

if TYPE_CHECKING:
    import asyncio
    import socket
    import ssl
    from types import TracebackType

    import httpx2

    from resty_upstream.methods import Key
    from resty_upstream.model import Pool
    from resty_upstream.tls import OverTLS
    from resty_upstream.upstream import Upstream

T = TypeVar("T")
C = TypeVar("C", bound=Connectable)

_KEPT_S: Final = 1.0
_UNREACHABLE: Final = "the loop over attempts returns or raises"
_new_tuple = tuple.__new__

entered: ContextVar[tuple[RequestContext, ...]] = ContextVar("resty_upstream", default=())
"""The contexts that were entered here, the innermost last."""


class RequestContext:
    """One request's view of an upstream.

    Framework plugins make one per request and call :meth:`post_process` when the response is over; anyone
    else uses it as a context manager, which does the same. A host on which this request failed is not tried
    again by it (until the pool's ``failed_timeout`` is over, for a context that lives that long). What is
    seen of hosts is kept until :meth:`post_process`; what is seen after it is recorded at once, and so is what
    is seen in a context that has been in use for a second: a websocket, a stream or a task may go on for hours.
    """

    # Most requests connect at most once, and to healthy hosts: what they do without is made when it is needed.
    began: float | None = None
    """When it was first used, on the store's clock."""
    _finished = False
    _facts: deque[Observation] | None = None
    _token: Any = None
    _session: Session | None = None
    _flights: dict[str, Flight] | None = None
    _is_request = False
    _has_clients = False
    failed: Mapping[str, float] = MappingProxyType({})
    """When this request failed, by host."""

    def __init__(
        self,
        upstream: Upstream,
        key: Key | Callable[[], Key | None] | None = None,
        visitor: Visitor | None = None,
    ) -> None:
        self.upstream = upstream
        self._key = key
        self._visitor = visitor

    @property
    def current_context(self) -> Self:
        """Itself: where an upstream will do, so will a context of it."""
        return self

    def key(self, pool: Pool) -> Key | None:
        """The request's key for a pool whose method hashes it: what was given, or what the pool goes by."""
        if self._key is not None:
            return self._key() if callable(self._key) else self._key
        if self._visitor is None:
            return None
        return key_of(self._visitor, pool.key, self.upstream.trusted_proxies)

    # ── the session ───────────────────────────────────────────────────────────────────────────

    def host_of_session(self, pool: Pool) -> str | None:
        """The id of the host of a sticky pool that the visitor's session is at; None where there is none."""
        session = self._find_session()
        return session.host_of(pool) if session is not None else None

    def stay(self, target: Target) -> None:
        """A host of a sticky pool answered: the visitor's session is there now."""
        session = self._find_session()
        if session is not None:
            session.stay(target)

    def cookies(self) -> list[Cookie]:
        """Those that the response should set, so that the visitor's session stays where it is."""
        return self._session.cookies() if self._session is not None else []

    def _find_session(self) -> Session | None:
        # What is no web request has none: a task that goes on for hours is not to stay at one host.
        if self._session is None and self._visitor is not None:
            # Of two threads that are here, both get the first one's.
            self.__dict__.setdefault("_session", Session(self._visitor, self.upstream.find_signer, time.time))
        return self._session

    # ── connecting ────────────────────────────────────────────────────────────────────────────

    @overload
    def connect(self, client: None = None, *, key: Key | None = None) -> Connected[socket.socket]: ...
    @overload
    def connect(self, client: OverTLS, *, key: Key | None = None) -> Connected[ssl.SSLSocket]: ...
    @overload
    def connect(self, client: C, *, key: Key | None = None) -> Connected[C]: ...
    @overload
    def connect(self, client: Callable[[str, int, float], T], *, key: Key | None = None) -> Connected[T]: ...

    def connect(self, client: Any = None, *, key: Key | None = None) -> Connected[Any]:
        """See :meth:`resty_upstream.Upstream.connect`."""
        connector = connectors.find(client)
        for attempt in Connecting(self, key):
            with attempt:
                # As Connected(…), in half the time.
                return _new_tuple(Connected, (connector(client, attempt), attempt.info))
        raise AssertionError(_UNREACHABLE)

    @overload
    async def aconnect(
        self, client: OverTLS | None = None, *, key: Key | None = None
    ) -> Connected[tuple[asyncio.StreamReader, asyncio.StreamWriter]]: ...
    @overload
    async def aconnect(self, client: C, *, key: Key | None = None) -> Connected[C]: ...
    @overload
    async def aconnect(
        self, client: Callable[[str, int, float], Awaitable[T]], *, key: Key | None = None
    ) -> Connected[T]: ...

    async def aconnect(self, client: Any = None, *, key: Key | None = None) -> Connected[Any]:
        """See :meth:`resty_upstream.Upstream.aconnect`."""
        connector = connectors.find_async(client)
        await self.aload()
        for attempt in Connecting(self, key):
            with attempt:
                return _new_tuple(Connected, (await connector(client, attempt), attempt.info))
        raise AssertionError(_UNREACHABLE)

    async def aload(self) -> None:
        """Have the upstream ready, without keeping the event loop waiting for its store."""
        if not self.upstream.replica.is_loaded:
            from resty_upstream.aconnectors import in_thread

            await in_thread(self.upstream.replica.snapshot)

    def attempts(self, *, key: Key | None = None) -> Attempts:
        """See :meth:`resty_upstream.Upstream.attempts`."""
        return Attempts(self, key)

    @cached_property
    def http(self) -> httpx2.Client:
        """A client of httpx2 (or httpx, where that is what is installed) for the hosts of this upstream.

        ::

            response = request.upstream.http.get("/users/1")
            response.extensions["upstream"].host.id

        What it sees of hosts belongs to this request. See
        :class:`resty_upstream.contrib.httpx.UpstreamTransport`.

        :raises ImportError: where neither is installed.
        """
        from resty_upstream.http.httpx import client_for

        self._has_clients = True
        client: httpx2.Client = client_for(self)
        return client

    @cached_property
    def ahttp(self) -> httpx2.AsyncClient:
        """As :attr:`http`, for asynchronous code."""
        from resty_upstream.http.httpx import async_client_for

        self._has_clients = True
        client: httpx2.AsyncClient = async_client_for(self)
        return client

    # ── what this request saw ─────────────────────────────────────────────────────────────────

    def observe(self, target: Target, fact: Fact, *, probe: bool) -> None:
        """Keep a fact for :meth:`post_process`; a probe's result is shared at once, for it holds a lease."""
        observation = Observation(target, fact)
        # Made by whichever thread is first: several may share the context.
        if not self._finished and isinstance(fact, Failure):
            self.__dict__.setdefault("failed", {})[target.key] = fact.at
        if probe:
            self.upstream.replica.observe((observation,))
            return
        self.__dict__.setdefault("_facts", deque()).append(observation)
        if self._finished or (self.began is not None and fact.at - self.began > _KEPT_S):
            self._tell()

    def hold(self, target: Target, flight: Flight) -> None:
        """What is connected counts as in flight until the response is over, or the host is connected again."""
        if self._is_request and not self._finished:
            self.__dict__.setdefault("_flights", {})[target.key] = flight
        # else it is not known when it ends: it does here, with the last reference

    def excluded(self, snapshot: Snapshot) -> set[Target]:
        """The hosts that this request does not try again."""
        if not self.failed:
            return set()
        now = self.upstream.now()
        targets = [(snapshot.targets.get(key), at) for key, at in list(self.failed.items())]
        return {target for target, at in targets if target and now - at < target.pool.failed_timeout}

    def post_process(self) -> None:
        """Share what this request saw of hosts with all workers.

        May be called again, from any thread: it finds nothing then. Never raises for the store.
        """
        self._finished = True
        if self._flights:
            self._flights.clear()
        if self._has_clients:
            for name in ("http", "ahttp"):  # which have this context: a cycle would wait for the garbage collector
                self.__dict__.pop(name, None)
        if self._facts or self.upstream.replica.has_queue:
            self._tell()

    def _tell(self) -> None:
        facts = self._facts
        if facts:
            # Appending and popping are atomic: each fact is told once, whichever thread gets here first.
            seen = []
            with suppress(IndexError):
                while True:
                    seen.append(facts.popleft())
            self.upstream.replica.observe(seen)
        elif self.upstream.replica.has_queue:
            self.upstream.replica.flush()

    def explain(self, key: Key | None = None) -> Explanation:
        """See :meth:`resty_upstream.Upstream.explain`."""
        replica = self.upstream.replica
        snapshot = replica.snapshot()
        return explain(
            snapshot,
            self.key if key is None else lambda _pool: key,
            self.upstream.now(),
            wall=time.time(),
            excluded=self.excluded(snapshot),
            last_resort=self.upstream.last_resort,
            session=self.host_of_session,
            checking=replica.is_checked and replica.is_somebody_checking(),
        )

    def get_pools(self) -> dict[str, dict[str, Any]]:
        """See :meth:`resty_upstream.Upstream.get_pools`."""
        return self.upstream.get_pools()

    # ── as a context manager ──────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._token = entered.set((*entered.get(), self))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        entered.reset(self._token)
        self.post_process()


class _OfRequest(RequestContext):
    """The context of a web request, which is known to end."""

    _is_request = True


class RequestUpstreams(Mapping[str, RequestContext]):
    """The upstreams of one web request, by name; each context is made when it is first used.

    What framework plugins give a request, and end with :meth:`post_process` when its response is over.

    :param upstreams: the upstreams of the application, by name.
    :param visitor: who makes the request: what pools go by that hash a key, or where sessions stay.
    :param default: the one named default, for plugins that hand its context out with every request.
    :raises UpstreamNotFound: (a ``KeyError``) for a name that ``upstreams`` does not have.
    """

    __slots__ = ("__weakref__", "_contexts", "_finished", "_upstreams", "_visitor")

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        visitor: Visitor | None = None,
        default: Upstream | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._visitor = visitor
        self._contexts: dict[str, RequestContext] = (
            {} if default is None else {"default": _OfRequest(default, None, visitor)}
        )
        self._finished = False

    def __getitem__(self, name: str) -> RequestContext:
        context = self._contexts.get(name)
        if context is None:
            context = _OfRequest(self._upstreams[name], None, self._visitor)
            # Of two threads that are here, both get the first one's.
            context = self._contexts.setdefault(name, context)
            if self._finished:
                context.post_process()  # from now on it tells at once what it sees
        return context

    def __iter__(self) -> Iterator[str]:
        return iter(self._upstreams)

    def __len__(self) -> int:
        return len(self._upstreams)

    @property
    def used(self) -> bool:
        """Whether any of them was asked for."""
        return bool(self._contexts)

    def cookies(self) -> list[Cookie]:
        """Those that the response should set: of sessions that moved, or whose cookies are to be renewed."""
        return [cookie for context in tuple(self._contexts.values()) for cookie in context.cookies()]

    def post_process(self) -> None:
        """Share what the request saw of hosts with all workers. A second call does nothing."""
        if not self._finished:
            self._finished = True
            for context in tuple(self._contexts.values()):
                context.post_process()
                if context.upstream.replica.is_checked:
                    context.upstream.serve()
