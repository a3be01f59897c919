"""What one request knows: where it failed, and what it has to tell the others when it is over."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from resty_upstream import connectors
from resty_upstream.attempts import Attempts
from resty_upstream.connectors import Connectable, Connected
from resty_upstream.replica import Observation
from resty_upstream.selection import Explanation, Snapshot, Target, explain
from resty_upstream.state import Fact, Failure

if TYPE_CHECKING:
    import asyncio
    import socket
    from types import TracebackType

    from resty_upstream.methods import Key
    from resty_upstream.upstream import Upstream

T = TypeVar("T")
C = TypeVar("C", bound=Connectable)

_UNREACHABLE: Final = "the loop over attempts returns or raises"
_new_tuple = tuple.__new__

_active: ContextVar[tuple[RequestContext, ...]] = ContextVar("resty_upstream", default=())


def active(upstream: Upstream) -> RequestContext | None:
    """The innermost context of ``upstream`` that was entered here."""
    entered = _active.get()
    for context in reversed(entered) if entered else ():
        if context.upstream is upstream:
            return context
    return None


class RequestContext:
    """One request's view of an upstream.

    Framework plugins make one per request and call :meth:`post_process` when the response is over; anyone
    else uses it as a context manager, which does the same. A host on which this request failed is not tried
    again by it (until the pool's ``failed_timeout`` is over, for a context that lives that long). What is
    seen of hosts is kept until :meth:`post_process`; what is seen after it is recorded at once.
    """

    __slots__ = ("_facts", "_finished", "_key", "_token", "failed", "now", "upstream")

    def __init__(
        self, upstream: Upstream, key: Key | Callable[[], Key | None] | None = None, *, finished: bool = False
    ) -> None:
        self.upstream = upstream
        self.now = upstream.store.now
        self._key = key
        self._finished = finished
        self._facts: deque[Observation] = deque()
        self.failed: dict[str, float] = {}
        """When this request failed, by host."""
        self._token: Any = None

    def key(self) -> Key | None:
        """The request's key for methods that hash it."""
        return self._key() if callable(self._key) else self._key

    # ── connecting ────────────────────────────────────────────────────────────────────────────

    @overload
    def connect(self, client: None = None, *, key: Key | None = None) -> Connected[socket.socket]: ...
    @overload
    def connect(self, client: C, *, key: Key | None = None) -> Connected[C]: ...
    @overload
    def connect(self, client: Callable[[str, int, float], T], *, key: Key | None = None) -> Connected[T]: ...

    def connect(self, client: Any = None, *, key: Key | None = None) -> Connected[Any]:
        """See :meth:`resty_upstream.Upstream.connect`."""
        connector = connectors.find(client)
        for attempt in Attempts(self, key):
            with attempt:
                # As Connected(…), in half the time.
                return _new_tuple(Connected, (connector(client, attempt), attempt.info))
        raise AssertionError(_UNREACHABLE)

    @overload
    async def aconnect(
        self, client: None = None, *, key: Key | None = None
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
        for attempt in Attempts(self, key):
            with attempt:
                return _new_tuple(Connected, (await connector(client, attempt), attempt.info))
        raise AssertionError(_UNREACHABLE)

    def attempts(self, *, key: Key | None = None) -> Attempts:
        """See :meth:`resty_upstream.Upstream.attempts`."""
        return Attempts(self, key)

    # ── what this request saw ─────────────────────────────────────────────────────────────────

    def observe(self, target: Target, fact: Fact, *, probe: bool) -> None:
        """Keep a fact for :meth:`post_process`; a probe's result is shared at once, for it holds a lease."""
        observation = Observation(target, fact)
        if not self._finished and isinstance(fact, Failure):
            self.failed[target.key] = fact.at
        if probe:
            self.upstream.replica.observe((observation,))
            return
        self._facts.append(observation)
        if self._finished:
            self._tell()

    def excluded(self, snapshot: Snapshot) -> set[Target]:
        """The hosts that this request does not try again."""
        if not self.failed:
            return set()
        now = self.now()
        targets = [(snapshot.targets.get(key), at) for key, at in list(self.failed.items())]
        return {target for target, at in targets if target and now - at < target.pool.failed_timeout}

    def post_process(self) -> None:
        """Share what this request saw of hosts with all workers.

        May be called again, from any thread: it finds nothing then. Never raises for the store.
        """
        self._finished = True
        self._tell()

    def _tell(self) -> None:
        if self._facts:
            # Appending and popping are atomic: each fact is told once, whichever thread gets here first.
            seen = []
            with suppress(IndexError):
                while True:
                    seen.append(self._facts.popleft())
            self.upstream.replica.observe(seen)
        elif self.upstream.replica.has_queue:
            self.upstream.replica.flush()

    def explain(self, key: Key | None = None) -> Explanation:
        """See :meth:`resty_upstream.Upstream.explain`."""
        replica = self.upstream.replica
        wanted = key if key is not None else self.key()
        snapshot = replica.snapshot()
        return explain(
            snapshot,
            wanted,
            self.now(),
            excluded=self.excluded(snapshot),
            last_resort=self.upstream.last_resort,
        )

    def get_pools(self) -> dict[str, dict[str, Any]]:
        """See :meth:`resty_upstream.Upstream.get_pools`."""
        return self.upstream.get_pools()

    # ── as a context manager ──────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._token = _active.set((*_active.get(), self))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _active.reset(self._token)
        self.post_process()
