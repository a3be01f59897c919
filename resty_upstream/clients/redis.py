"""redis-py: connections that choose their host whenever they connect.

A connection is made within one attempt: the socket, TLS, ``HELLO``, ``AUTH``, ``SELECT``, and a ``PING`` that
shows that the host works: one that loads its data, lost its master, or hangs accepts connections all the same.
Everything else is redis-py's own, the pools among it: they see that an idle connection broke, and have it connect
again.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import sys
import time
from typing import Any, Final

import redis
import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.connection import Connection, SSLConnection
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ConnectionError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
)

from resty_upstream import Attempt, NoHostAvailable, RequestContext, Upstream
from resty_upstream.aconnectors import connect_socket, streams_of
from resty_upstream.attempts import BadAnswer
from resty_upstream.connectors import find, is_readable

Address = tuple[str, int]

_FROM_UPSTREAM: Final = {
    "host": "the upstream has the hosts",
    "port": "the upstream has the hosts",
    "path": "the upstream has the hosts (give one as host: unix:/path)",
    "socket_connect_timeout": "the `timeout` of the upstream's pools says how long connecting may take",
}
# These are of class ConnectionError, too.
_FAULTS_OF_CALLERS: Final = (
    AuthenticationError,
    AuthorizationError,
    getattr(redis.exceptions, "ExternalAuthProviderError", AuthenticationError),  # not in redis-py 6.0
)
_dial: Final = find(None)


def _without_notices(pool: Any) -> dict[str, Any]:
    """The options with which a pool does not ask where hosts move to, which is the business of the upstream."""
    name = "maint_notifications_config"  # not in redis-py 6, nor in asyncio's pools of redis-py 7
    if name not in inspect.signature(pool).parameters:
        return {}
    from redis.maint_notifications import MaintNotificationsConfig

    return {name: MaintNotificationsConfig(enabled=False)}


def _once(connect: Any) -> dict[str, Any]:
    """The options with which redis-py connects once: trying again is the business of attempts."""
    name = "retry_socket_connect"  # not before redis-py 6.1
    return {name: False} if name in inspect.signature(connect).parameters else {}


_ONCE: Final = _once(Connection.connect_check_health)
_SYNC_POOL: Final = _without_notices(redis.ConnectionPool)
_ASYNC_POOL: Final = _without_notices(redis.asyncio.ConnectionPool)
_ASYNC_ONCE: Final = _once(AsyncConnection.connect_check_health)


def check_options(options: dict[str, Any]) -> None:
    """Refuse options of connections that the upstream decides.

    :raises TypeError: naming the option, and where what it says belongs.
    """
    for name in options:
        if name in _FROM_UPSTREAM:
            raise TypeError(f"{name} is not an option of connections to an upstream: {_FROM_UPSTREAM[name]}")


class _Choice:
    """What a connection knows of its hosts, sync or async."""

    def __init__(self, upstream: Upstream | RequestContext, read_only: set[Address] | None) -> None:
        if not isinstance(upstream, Upstream | RequestContext):
            raise TypeError(f"upstream must be an Upstream or a RequestContext, not {type(upstream).__name__}")
        self._upstream = upstream
        self._read_only = set() if read_only is None else read_only
        self.attempt: Attempt | None = None
        """The one that connected, or that is about to."""
        self.refused = False
        """Whether the host has said that it does not do what it is here for: the connection is of no more use."""
        self._deadline = 0.0

    @property
    def context(self) -> RequestContext:
        """Who is told of failures: the context of the request that is being served, where there is one."""
        upstream = self._upstream
        return upstream.current_context if isinstance(upstream, Upstream) else upstream

    def begin(self, attempt: Attempt) -> None:
        """An attempt, that the connection will keep within its time."""
        attempt.bounded = True
        self.attempt = attempt
        self.refused = False
        self._deadline = time.monotonic() + attempt.timeout_s

    @property
    def left_s(self) -> float:
        """Seconds that the attempt may still take."""
        return max(0.001, self._deadline - time.monotonic())

    @property
    def is_suspect(self) -> bool:
        """Whether the host has answered ``READONLY`` before."""
        return self._address in self._read_only

    def learn_role(self, reply: Any) -> None:
        """The answer to ``ROLE``, by a host that answered ``READONLY`` before."""
        if reply[0] in ("slave", b"slave"):
            raise BadAnswer("READONLY: it is still a replica")
        self._read_only.discard(self._address)

    def refuse(self, error: ResponseError) -> None:
        """An error that the host answered to a command, which it did not execute."""
        if self.refused:
            return  # a pipeline is told once for each of its writes
        if isinstance(error, ReadOnlyError):
            self._read_only.add(self._address)
            if self.attempt is not None:
                context = self.context
                self.attempt.observe_failure(context, "READONLY", context.upstream.now())
        elif not isinstance(error, MasterDownError) and not str(error).startswith("MISCONF"):
            return
        self.refused = True  # and dropped before the next command: there may be more answers to read

    @property
    def _address(self) -> Address:
        if self.attempt is None:
            return ("", 0)
        return self.attempt.host.host, self.attempt.host.port

    def tune(self, sock: socket.socket, keepalive: bool, options: Any) -> None:
        """Set what redis-py sets on its sockets."""
        if sock.family == socket.AF_UNIX:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if keepalive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (options or {}).items():
                sock.setsockopt(socket.IPPROTO_TCP, name, value)


def _as_fault(error: BaseException, handled: BaseException | None) -> BadAnswer | None:
    """What an attempt is told of an error of connecting that says too little by itself; None where it does not.

    :param handled: an exception that was there before the attempt.
    """
    if isinstance(error, _FAULTS_OF_CALLERS) or not isinstance(error, ConnectionError | InvalidResponse):
        return None
    context = error.__context__
    if error.__cause__ is not None or (isinstance(context, OSError | EOFError) and context is not handled):
        return None  # which an attempt finds by itself
    # The host closed the connection, has too many of them, or speaks something else.
    return BadAnswer(_in_words(error))


def _in_words(error: Exception) -> str:
    """What a host answered: redis-py takes the first word of it apart."""
    code = getattr(error, "status_code", None)  # not before redis-py 7
    return f"{code} {error}" if code and code != "ERR" else str(error)


def _none_available(error: NoHostAvailable) -> ConnectionError:
    return ConnectionError(str(error))


# ── sync ──────────────────────────────────────────────────────────────────────────────────────


class UpstreamConnection(Connection):
    """A connection to whichever host of an upstream is to be used, chosen whenever it connects.

    For pools of your own: ``BlockingConnectionPool(connection_class=UpstreamConnection, upstream=upstream)``.

    :param upstream: an upstream, or the context of a request.
    :param read_only: the addresses of hosts that answered ``READONLY``, shared by the connections of a pool.
    :param options: as of redis-py's connections, except for hosts and ``socket_connect_timeout``.
    """

    _sock: Any

    def __init__(
        self, *, upstream: Upstream | RequestContext, read_only: set[Address] | None = None, **options: Any
    ) -> None:
        check_options(options)
        self._choice = _Choice(upstream, read_only)
        self._is_connecting = False
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:  # noqa: ARG002
        """Connect where it is not connected: to the first host that works.

        :raises redis.exceptions.ConnectionError: when no host is left, with :class:`NoHostAvailable` as its cause.
        """
        self._drop_if_refused()
        if self._sock:
            return
        try:
            for attempt in self._choice.context.attempts():
                with attempt as host:
                    self._choice.begin(attempt)
                    self.host, self.port = host.host, host.port
                    self._connect_once()
                    return
        except NoHostAvailable as error:
            raise _none_available(error) from error

    def _connect_once(self) -> None:
        handled = sys.exception()
        self._is_connecting = True
        try:
            super().connect_check_health(check_health=False, **_ONCE)
        except BaseException as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            if (fault := _as_fault(error, handled)) is not None:
                raise fault from error
            raise
        finally:
            self._is_connecting = False
        self._sock.settimeout(self.socket_timeout)

    def _connect(self) -> socket.socket:
        sock: socket.socket = _dial(None, self._choice.attempt)  # type: ignore[arg-type]
        try:
            self._choice.tune(sock, self.socket_keepalive, self.socket_keepalive_options)
            sock.settimeout(self._choice.left_s)
            return self._secure(sock)
        except BaseException:
            sock.close()
            raise

    def _secure(self, sock: socket.socket) -> socket.socket:
        return sock

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, select the database, and see that the host works."""
        super().on_connect_check_health(check_health=check_health)
        try:
            self._ask("PING")
            if self._choice.is_suspect:
                self._choice.learn_role(self._ask("ROLE"))
        except NoPermissionError:
            pass  # an answer all the same
        except ResponseError as error:  # MASTERDOWN, MISCONF: it does not work
            raise BadAnswer(_in_words(error)) from error

    def _ask(self, command: str) -> Any:
        self.send_command(command, check_health=False)  # type: ignore[no-untyped-call]
        return self.read_response()

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command, but not to a host that refused the one before."""
        self._drop_if_refused()
        super().send_packed_command(command, check_health=check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """An answer; one that says that the host is a replica has the connection go on to another host."""
        if self._is_connecting and self._sock:
            self._sock.settimeout(self._choice.left_s)
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            self._choice.refuse(error)
            raise

    def _drop_if_refused(self) -> None:
        if self._choice.refused:
            self._choice.refused = False
            self.disconnect()  # type: ignore[no-untyped-call]


class UpstreamSSLConnection(UpstreamConnection, SSLConnection):
    """As :class:`UpstreamConnection`, with TLS.

    :param server_hostname: the name that certificates are checked for, and that is sent to hosts (SNI); where it
        is not given, each host's own.
    """

    def __init__(self, *, server_hostname: str | None = None, **options: Any) -> None:
        self._server_hostname = server_hostname
        super().__init__(**options)

    def _secure(self, sock: socket.socket) -> socket.socket:
        address = self.host
        self.host = self._server_hostname or address  # which redis-py checks the certificate for
        try:
            secured: socket.socket = self._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        finally:
            self.host = address
        return secured


class UpstreamConnectionPool(redis.ConnectionPool):
    """A pool of connections, each to whichever host is to be used when it connects.

    ::

        client = redis.Redis(connection_pool=UpstreamConnectionPool(upstream, db=0))

    A command is never sent a second time, unless redis-py's own ``retry`` says so. A write that a host refuses
    since it has become a replica raises ``ReadOnlyError``; the connection is dropped, and the host is not used by
    this pool until it is a master again.

    :param upstream: an upstream, or the context of a request.
    :param ssl: whether connections use TLS; the options ``ssl_…`` are those of redis-py.
    :param server_hostname: the name that certificates are checked for; where it is not given, each host's own.
    :param options: as of ``redis.ConnectionPool``, except for hosts and ``socket_connect_timeout``.
    :raises TypeError: for an option that the upstream decides.
    """

    def __init__(
        self,
        upstream: Upstream | RequestContext,
        *,
        ssl: bool = False,
        server_hostname: str | None = None,
        **options: Any,
    ) -> None:
        kind = UpstreamSSLConnection if ssl else UpstreamConnection
        options = _pool_options(kind, upstream, ssl, server_hostname, options)
        super().__init__(**_SYNC_POOL | options)


def _pool_options(
    kind: type,
    upstream: Upstream | RequestContext,
    is_tls: bool,
    server_hostname: str | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    check_options(options)
    _Choice(upstream, None)  # says at once what is wrong with it
    if is_tls:
        options["server_hostname"] = server_hostname
    elif server_hostname is not None:
        raise TypeError("server_hostname is the name in certificates: give ssl=True with it")
    return {"connection_class": kind, "upstream": upstream, "read_only": set(), **options}


# ── asyncio ───────────────────────────────────────────────────────────────────────────────────


async def _notice(writer: asyncio.StreamWriter) -> None:
    """Let the event loop see what came on an idle connection, as its end: the pool asks next."""
    if is_readable(writer.get_extra_info("socket")):
        for _ in range(3):  # to read, to be told of a reset, to pass it on
            await asyncio.sleep(0)


class AsyncUpstreamConnection(AsyncConnection):
    """As :class:`UpstreamConnection`, for ``redis.asyncio``."""

    def __init__(
        self, *, upstream: Upstream | RequestContext, read_only: set[Address] | None = None, **options: Any
    ) -> None:
        check_options(options)
        self._choice = _Choice(upstream, read_only)
        super().__init__(**options)

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:  # noqa: ARG002
        """Connect where it is not connected: to the first host that works.

        :raises redis.exceptions.ConnectionError: when no host is left, with :class:`NoHostAvailable` as its cause.
        """
        await self._drop_if_refused()
        if self._writer is not None:
            await _notice(self._writer)
            return
        context = self._choice.context
        await context.aload()
        try:
            for attempt in context.attempts():
                with attempt as host:
                    self._choice.begin(attempt)
                    self.host, self.port = host.host, host.port
                    async with asyncio.timeout(attempt.timeout_s):
                        await self._connect_once()
                    return
        except NoHostAvailable as error:
            raise _none_available(error) from error

    async def _connect_once(self) -> None:
        handled = sys.exception()
        # The attempt's time is enough, and `asyncio.wait_for` of Python 3.11 may lose a cancellation.
        own_timeout, self.socket_timeout = self.socket_timeout, None
        try:
            await super().connect_check_health(check_health=False, **_ASYNC_ONCE)
        except BaseException as error:
            await self.disconnect(nowait=True)
            if (fault := _as_fault(error, handled)) is not None:
                raise fault from error
            raise
        finally:
            self.socket_timeout = own_timeout

    async def _connect(self) -> None:
        sock = socket.socket()
        attempt: Any = self._choice.attempt  # which has begun
        try:
            await connect_socket(sock, attempt)
            self._choice.tune(sock, self.socket_keepalive, self.socket_keepalive_options)
            self._reader, self._writer = await streams_of(sock, *self._tls(attempt.timeout_s))
        except BaseException:
            sock.close()
            raise

    def _tls(self, _timeout_s: float) -> tuple[Any, ...]:
        return ()

    async def disconnect(self, nowait: bool = False, *args: Any, **options: Any) -> None:
        """Close the connection; with ``nowait`` at once: over TLS, a host that is silent would be waited for."""
        if nowait and self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait, *args, **options)

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Log in, select the database, and see that the host works."""
        await super().on_connect_check_health(check_health=check_health)
        try:
            await self._ask("PING")
            if self._choice.is_suspect:
                self._choice.learn_role(await self._ask("ROLE"))
        except NoPermissionError:
            pass  # an answer all the same
        except ResponseError as error:  # MASTERDOWN, MISCONF: it does not work
            raise BadAnswer(_in_words(error)) from error

    async def _ask(self, command: str) -> Any:
        await self.send_command(command, check_health=False)
        return await self.read_response()

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command, but not to a host that refused the one before."""
        await self._drop_if_refused()
        await super().send_packed_command(command, check_health=check_health)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """An answer; one that says that the host is a replica has the connection go on to another host."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            self._choice.refuse(error)
            raise

    async def _drop_if_refused(self) -> None:
        if self._choice.refused:
            self._choice.refused = False
            await self.disconnect(nowait=True)


class AsyncUpstreamSSLConnection(AsyncUpstreamConnection, AsyncSSLConnection):
    """As :class:`UpstreamSSLConnection`, for ``redis.asyncio``."""

    def __init__(self, *, server_hostname: str | None = None, **options: Any) -> None:
        self._server_hostname = server_hostname
        super().__init__(**options)

    def _tls(self, timeout_s: float) -> tuple[Any, ...]:
        return self.ssl_context.get(), self._server_hostname or self.host, timeout_s


class AsyncUpstreamConnectionPool(redis.asyncio.ConnectionPool):
    """As :class:`UpstreamConnectionPool`, for ``redis.asyncio``.

    ::

        client = redis.asyncio.Redis(connection_pool=AsyncUpstreamConnectionPool(upstream, db=0))
    """

    def __init__(
        self,
        upstream: Upstream | RequestContext,
        *,
        ssl: bool = False,
        server_hostname: str | None = None,
        **options: Any,
    ) -> None:
        kind = AsyncUpstreamSSLConnection if ssl else AsyncUpstreamConnection
        options = _pool_options(kind, upstream, ssl, server_hostname, options)
        super().__init__(**_ASYNC_POOL | options)
