"""The facade: an upstream is a named set of pools in one store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, overload

from msgspec.structs import replace

from resty_upstream.attempts import Attempts
from resty_upstream.connectors import Connectable, Connected
from resty_upstream.context import RequestContext, entered
from resty_upstream.counts import UpstreamCounts
from resty_upstream.errors import InvalidConfig, Problem, Problems, StoreError, StoreUnsafe
from resty_upstream.events import AttemptListener, EventName, ExhaustedListener, Listener, Listeners
from resty_upstream.history import Transition, read_history
from resty_upstream.methods import find_method
from resty_upstream.model import (
    Definition,
    flag,
    identifier,
    parse_duration_s,
    pools_from_dicts,
    with_ends_of,
)
from resty_upstream.replica import Edit, Replica, nothing
from resty_upstream.selection import Explanation
from resty_upstream.state import Revive
from resty_upstream.sticky import Signer, Signing
from resty_upstream.stores import LOG_ENTRIES, Store, open_store
from resty_upstream.visitors import Proxies

if TYPE_CHECKING:
    import asyncio
    import socket
    import ssl

    from resty_upstream.methods import Key
    from resty_upstream.tls import OverTLS

T = TypeVar("T")
C = TypeVar("C", bound=Connectable)

_LAST_WAIT_S: Final = 0.25
_STORE_MEMBERS: Final = (
    "version",
    "read",
    "changes",
    "examine",
    "namespaces",
    "transact",
    "history",
    "lease",
    "holder",
    "release",
    "counters",
    "sums",
    "now",
    "close",
    "clock_id",
)


class Upstream:
    """Pools of hosts, balanced and watched together with every other process that uses the store.

    :param store: a URL (``sqlite:///absolute/path``, ``memory://``) or a store object. Nothing is opened
        before the first use, in the process that uses it.
    :param id: the name of this upstream in the store; a store may hold several.
    :param pools: what :meth:`configure` takes, to be configured at the first use. The first use being a
        request that finds the store broken, the request is served from these pools.
    :param total_timeout: what all attempts of one call may take together: milliseconds, a timedelta, or
        text with a unit.
    :param last_resort: whether hosts that failed are tried, oldest failure first and at most three, when no
        host is available at all.
    :param trusted_proxies: IP addresses and networks of the proxies in front of a web application, and ``unix``
        for those that come by a unix socket: their ``X-Forwarded-For`` says who the client is.
    :param cookie_secret: what the cookies of sticky sessions are signed with, at least 16 characters; one that is
        kept in the store if not given, so that cookies last as long as that.
    :param signer: signs these cookies instead, as that of a framework.
    :raises InvalidConfig: naming every problem.
    """

    def __init__(
        self,
        store: str | Store,
        id: str = "default",
        *,
        pools: Mapping[Any, Any] | None = None,
        total_timeout: float | str | timedelta = "15s",
        last_resort: bool = True,
        trusted_proxies: Iterable[object] = (),
        cookie_secret: str = "",
        signer: Signer | None = None,
    ) -> None:
        with Problems() as problems:
            with problems.noted():
                self.id = identifier(id, "the id of an upstream")
            with problems.noted():
                self.total_timeout_s = parse_duration_s(total_timeout, "total_timeout", bare="ms")
            with problems.noted():
                self.last_resort = flag(last_resort, "last_resort")
            with problems.noted():
                self.trusted_proxies = Proxies(trusted_proxies)
            with problems.noted():
                self.signing = Signing(str(id), cookie_secret, signer)
            with problems.noted():
                self.store = open_store(store) if isinstance(store, str) else _require_store(store)
            with problems.noted():
                definition = None if pools is None else _definition(pools)
        self.listeners = Listeners()
        self.replica = Replica(self.store, self.id, self.listeners)
        self.now = self.store.now
        self._outside = RequestContext(self)
        self._outside.post_process()  # each call is a context of its own: it tells at once what it sees
        if definition is not None:
            self.replica.declare(definition)

    def __repr__(self) -> str:
        return f"<Upstream {self.id!r} in {self.store!r}>"

    @property
    def configured(self) -> bool:
        """Whether the store held pools of this upstream already when it was opened.

        :raises StoreError: when the store cannot be read.
        """
        return self.replica.read_configured()

    def configure(self, pools: Mapping[Any, Any]) -> None:
        """Declare the configuration, in one transaction.

        Merged three ways with what was declared last and what was changed at run time since: a declaration
        that changed wins over an older run-time change, one that is as it was leaves run-time changes alone.
        Hosts that stay keep their health.

        :param pools: pools by id, in the form of :meth:`get_pools`; health may be left out, and counts for
            hosts that are new.
        :raises InvalidConfig: naming every problem; nothing is stored then.
        :raises StoreError: when the store cannot be used. The declaration takes effect when it can.
        """
        self.replica.declare(_definition(pools))
        self.replica.commit(nothing)

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
        """Connect to a host: pools by priority, hosts by the pool's method, on to the next where one fails.

        :param client: what is to be connected.

            * nothing: a new ``socket.socket``, with the pool's timeout set;
            * a ``socket.socket``: the same object comes back connected, its options kept, even when the
              first hosts failed;
            * an :class:`~resty_upstream.OverTLS`: a new ``ssl.SSLSocket``, its handshake part of the attempt;
            * an ``http.client.HTTPConnection``: connected; it keeps its own name for ``Host`` and TLS;
            * an object with ``connect(host, port)`` and ``set_timeout(seconds)`` or ``settimeout(seconds)``;
            * a callable ``(host, port, timeout_s)``: called for each attempt; what it returns comes back, an
              exception is classified. The way to build a client, or do a whole exchange, per attempt;
            * a type that :func:`resty_upstream.register_connector` knows.
        :param key: for methods that hash it; the context's key (a web request's client address) if not given.
        :returns: ``(client, info)``, with ``info.host``, ``info.pool``, ``info.attempts``, ``info.last_resort``.
        :raises NoHostAvailable: when every host that may be tried failed, or the deadline is over.
        :raises TypeError: for a client of another kind.

        Outside a context what was found is recorded before this returns or raises.
        """
        context: Any = self.current_context
        connected: Connected[Any] = context.connect(client, key=key)
        return connected

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
        """As :meth:`connect`, for coroutines.

        Nothing given, or an :class:`~resty_upstream.OverTLS`: ``(reader, writer)`` as
        :func:`asyncio.open_connection` returns them. A socket comes back connected and non-blocking. Callables
        return awaitables, ``connect`` of an object may be a coroutine function; both are ended when the
        attempt's time is over, and may be those of trio, too. A cancelled call counts for nothing, and gives
        back what it held.

        :raises TypeError: in trio, for what is of asyncio: nothing given, an ``OverTLS``, a socket.
        """
        return cast("Connected[Any]", await self.current_context.aconnect(client, key=key))

    def attempts(self, *, key: Key | None = None) -> Attempts:
        """Failover around any call of any library, sync or async::

            for attempt in upstream.attempts():
                with attempt as host:
                    return call(host.host, host.port, timeout=attempt.timeout_s)

        An exception that counts as the host's failure is swallowed, and the loop goes on; any other is raised
        as it is. The iterator ends after a success, and raises :class:`NoHostAvailable` when no host is left.
        Give the client ``attempt.timeout_s``: a timeout sooner than that is the caller's own, and counts for
        nothing.
        """
        return self.current_context.attempts(key=key)

    def find_signer(self) -> Signer | None:
        """What signs the cookies of sticky sessions; None where there is nothing to sign with."""
        return self.signing.signer(self.replica.secret)

    @property
    def current_context(self) -> RequestContext:
        """The context that is active here; where there is none, one that tells at once what it sees."""
        for context in reversed(entered.get()):
            if context.upstream is self:
                return context
        return self._outside

    # ── a unit of work ────────────────────────────────────────────────────────────────────────

    def context(self, key: Key | Callable[[], Key | None] | None = None) -> RequestContext:
        """One unit of work outside a web request (a task, a script), as a context manager.

        :param key: what methods hash when ``connect`` is given no key: a value, or a callable that is asked
            when it is needed.

        ``connect`` and the others, called on this upstream inside it, belong to it; :meth:`post_process` runs
        at its end.
        """
        return RequestContext(self, key)

    def post_process(self) -> None:
        """Share what the current context saw of hosts. A second call finds nothing."""
        self.current_context.post_process()

    def open(self) -> None:
        """Open the store now, and not at the first use; what is declared is stored.

        :raises StoreUnsafe: when others could change it. No other trouble with the store is an error here or
            later: requests are served from what is declared.
        """
        self.replica.snapshot()
        if isinstance(self.replica.trouble, StoreUnsafe):
            raise self.replica.trouble

    def close(self) -> None:
        """Write what waits to be written, and close the store. May be called again; use opens it again."""
        self.stop_checker()
        if self.replica.has_queue:
            with contextlib.suppress(StoreError):  # said already
                self.replica.commit(nothing, wait_s=_LAST_WAIT_S)
        self.store.close()

    # ── active checks ─────────────────────────────────────────────────────────────────────────

    def start_checker(self, *, dedicated: bool = False) -> None:
        """Check the hosts that have a ``healthcheck``, from a thread of this process.

        Web workers do it by themselves, at their first request. Of all processes that share the store one checks
        at a time, and another goes on within three intervals when it is killed or stopped. Nothing happens where
        the checker runs already.

        :param dedicated: whether this process is there for it: web workers leave it alone then.
        """
        from resty_upstream.health.runner import Checker

        self.replica.own()  # a fork that is noticed later would lose sight of what is begun here
        with _checker_lock:
            checker = self.replica.checker
            if checker is None or not checker.is_alive:
                checker = Checker(self, dedicated=dedicated)
                if checker.start():
                    self.replica.checker = checker

    def serve(self) -> None:
        """Told by a web worker that it serves requests: hosts are checked from here on, where any is to be."""
        if self.replica.is_checked and self.replica.checker is None:
            self.start_checker()

    def stop_checker(self) -> None:
        """End what :meth:`start_checker` began; another process goes on at once."""
        checker, self.replica.checker = self.replica.checker, None
        if checker is not None:
            checker.stop()

    # ── looking ───────────────────────────────────────────────────────────────────────────────

    def get_pools(self) -> dict[str, dict[str, Any]]:
        """All pools with their hosts and health, as plain dicts in the shape of lua-resty-upstream.

        Hosts that a person took down, or whose weight has an end, also have what was said of it: ``reason``,
        ``by``, ``until`` (seconds since 1970), each where it is set, and ``weight_then``, the weight to be.
        A copy: changing it changes nothing. While the store fails, what this process knows.
        """
        return self.replica.describe()

    def explain(self, key: Key | None = None) -> Explanation:
        """What ``connect`` would do now, and why: every pool and host with the reason it is taken or passed over.

        ``str()`` of it is a text for people. Nothing is connected, and no method moves on.
        """
        return self.current_context.explain(key)

    def history(self, limit: int = LOG_ENTRIES) -> list[Transition]:
        """The last transitions of hosts, made by any process, the newest at the end; a thousand are kept.

        Changes of weights are among them: from ``weight 10`` to ``weight 0``.

        :param limit: how many at most.
        :raises StoreError: when the store cannot be read.
        """
        return read_history(self.store, self.id, limit)

    def counts(self) -> UpstreamCounts:
        """What became of the attempts at each host, in all processes that share the store, restarts included.

        Never raises for the store: what cannot be read is left out. A host that was removed and comes back may
        go on where it was.
        """
        return self.replica.counts()

    @overload
    def bind(self, event: EventName, func: Listener) -> None: ...
    @overload
    def bind(self, event: Literal["attempt"], func: AttemptListener) -> None: ...
    @overload
    def bind(self, event: Literal["exhausted"], func: ExhaustedListener) -> None: ...

    def bind(self, event: str, func: Callable[[Any], object]) -> None:
        """Call ``func(event)`` at every event of that name that this process causes.

        * ``host_up`` and ``host_down``, with a :class:`~resty_upstream.HostEvent`. Each transition is caused, and
          heard of, once across all workers: after its commit, outside every lock;
        * ``attempt``, with an :class:`~resty_upstream.Attempt`: one is over, well or not. The request waits for
          ``func``;
        * ``exhausted``, with the :class:`~resty_upstream.NoHostAvailable` that is about to be raised.

        A function that raises is logged and does no harm.

        :raises ValueError: for an unknown event.
        :raises TypeError: for a function that is not callable.
        """
        self.listeners.bind(event, func)

    # ── changing ──────────────────────────────────────────────────────────────────────────────

    def save_pools(self, pools: Mapping[Any, Any]) -> None:
        """Replace all pools, in one transaction. What :meth:`get_pools` returned changes nothing.

        :param pools: in the form of :meth:`get_pools`. Health that is given is honoured (``up: false`` with
            ``lastfail: 0`` takes a host down by hand); hosts for which none is given keep theirs.
        :raises InvalidConfig: naming every problem; nothing is stored then.
        :raises StoreError: when the store cannot be used.
        """
        definition = _definition(pools)

        def change(edit: Edit) -> None:
            config = replace(edit.config, pools=with_ends_of(definition.pools, edit.config.pools))
            self.replica.put_pools(edit, config, definition, keep=False)

        self.commit(change)

    def sort_pools(self, pools: Mapping[Any, Any]) -> list[str]:
        """Take over the priorities, and the order of ties, of the pools given; nothing else of them.

        :returns: the ids of all pools, the one to be tried first in front.
        :raises InvalidConfig: naming every problem; nothing is stored then.
        :raises StoreError: when the store cannot be used.
        """
        wanted = {pool.id: pool.priority for pool in _definition(pools).pools}
        place = {pool_id: index for index, pool_id in enumerate(wanted)}

        def change(edit: Edit) -> list[str]:
            current = edit.config.pools
            sorted_pools = sorted(
                (replace(pool, priority=wanted.get(pool.id, pool.priority)) for pool in current),
                key=lambda pool: (pool.priority, place.get(pool.id, len(place))),
            )
            edit.save(replace(edit.config, pools=tuple(sorted_pools)))
            return [pool.id for pool in sorted_pools]

        return self.commit(change)

    def revive_hosts(self) -> None:
        """Give every failed host whose time is over a clean state now.

        Not those taken down by hand, nor those that active checks watch, which say when they are back.

        :raises StoreError: when the store cannot be used.
        """
        fact = Revive(self.store.now())
        checked = self.replica.is_checked and self.replica.is_somebody_checking()

        def change(edit: Edit) -> None:
            for pool in edit.config.pools:
                for host in pool.hosts:
                    if not (checked and pool.check_of(host)):
                        edit.apply(pool, host, fact)

        self.commit(change)

    def commit(self, change: Callable[[Edit], T]) -> T:
        """Make a change by hand: one transaction, seen by the next request of every worker.

        :raises StoreError: when the store cannot be used; nothing is stored then.
        """
        self.replica.snapshot()  # so that what the settings declare, and a reboot, came first
        result = self.replica.commit(change)
        self.replica.snapshot()  # and so that this process knows what it did, should the store be lost
        return result


_checker_lock = threading.Lock()


def _definition(pools: Mapping[Any, Any]) -> Definition:
    with Problems() as problems:
        with problems.noted():
            definition = pools_from_dicts(pools)
        for pool_id, method in _methods(pools):
            with problems.noted():
                find_method(method, path=f"pools.{pool_id}.method")
    return definition


def _methods(pools: object) -> Iterator[tuple[object, str]]:
    """The methods that pools name, whether all else is right or not."""
    for pool_id, options in pools.items() if isinstance(pools, Mapping) else ():
        method = options.get("method") if isinstance(options, Mapping) else None
        if isinstance(method, str):
            yield pool_id, method


def _require_store(store: object) -> Store:
    missing = [name for name in _STORE_MEMBERS if not hasattr(store, name)]
    if missing:
        kind = type(store).__name__
        raise InvalidConfig(
            Problem(f"store must be a URL or a store object; {kind} lacks {', '.join(missing)}", "store")
        )
    return store  # type: ignore[return-value]  # has all members of the protocol
