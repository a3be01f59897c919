"""psycopg 3: a connection that goes to the next server where one fails. See :mod:`resty_upstream.contrib.psycopg`.

What failed is told from where libpq got to, and from the text: at connecting it gives neither errno nor SQLSTATE.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Generator
from contextvars import ContextVar
from selectors import DefaultSelector
from typing import Any, Final, NamedTuple, Self, cast

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import finish_pgconn
from psycopg.rows import Row
from psycopg.waiting import Wait

from resty_upstream import Connected, Host, Info, NoHostAvailable, RequestContext, Upstream, register_connector
from resty_upstream.attempts import Attempt, BadAnswer, Excused, classify
from resty_upstream.connectors import Address, last_known_addresses, literal_address, remember_addresses

__all__ = ["AsyncUpstreamConnection", "UpstreamConnection"]


class UpstreamConnection(psycopg.Connection[Row]):
    """A connection to a host of an upstream; of psycopg in all else."""

    upstream_info: Info
    """Where it went, as ``connect`` of an upstream says it."""

    @classmethod
    def connect(  # type: ignore[override]  # it needs to be told of the upstream
        cls,
        conninfo: str = "",
        *,
        upstream: Upstream | RequestContext,
        avoid: Collection[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> Self:
        """Connect to a host of the upstream, on to the next where one fails.

        :param conninfo: and ``kwargs``: as for psycopg. ``host``, where given, is the one name that the
            certificates of all servers have, for ``sslmode=verify-full``; each host's own name or address if not
            given. Address, port and ``connect_timeout`` are those of the upstream's host and pool, whatever is
            given.
        :param upstream: an :class:`~resty_upstream.Upstream`, or the one of a request.
        :param avoid: hosts that are passed over, by the ids of pool and host.
        :raises psycopg.OperationalError: where no host is left, with
            :class:`~resty_upstream.NoHostAvailable` as its cause; or for what the caller did wrong, as a
            password or the name of a database.
        """
        try:
            order = _Order(super().connect, conninfo, kwargs, avoid)
            connected: Connected[Self] = cast("Any", upstream).connect(order)
        except NoHostAvailable as error:
            raise psycopg.OperationalError(str(error)) from error
        connected.client.upstream_info = connected.info
        return connected.client

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **_kwargs: object) -> Generator[Any, Any, Self]:
        yield from ()  # all waiting is done here
        return cls(_wait(_handshake(conninfo), _deadline.get()))


class AsyncUpstreamConnection(psycopg.AsyncConnection[Row]):
    """As :class:`UpstreamConnection`, for asyncio."""

    upstream_info: Info

    @classmethod
    async def connect(  # type: ignore[override]  # it needs to be told of the upstream
        cls,
        conninfo: str = "",
        *,
        upstream: Upstream | RequestContext,
        avoid: Collection[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> Self:
        """As :meth:`UpstreamConnection.connect`; where it is cancelled, nothing counts and no socket is left."""
        try:
            order = _Order(super().connect, conninfo, kwargs, avoid)
            connected: Connected[Self] = await cast("Any", upstream).aconnect(order)
        except NoHostAvailable as error:
            raise psycopg.OperationalError(str(error)) from error
        connected.client.upstream_info = connected.info
        return connected.client

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **_kwargs: object) -> Generator[Any, Any, Self]:
        steps = _handshake(conninfo)
        _begun.get().append(steps)
        return cls((yield from steps))


# ── one attempt ───────────────────────────────────────────────────────────────────────────────


class _Place(NamedTuple):
    """One address of a host, in libpq's words."""

    host: str
    hostaddr: str
    port: int


class _Order:
    """What is to be connected, and by which of psycopg's own ``connect``."""

    def __init__(
        self,
        connect: Callable[..., Any],
        conninfo: str,
        kwargs: dict[str, Any],
        avoid: Collection[tuple[str, str]],
    ) -> None:
        given = conninfo_to_dict(conninfo, **{name: kwargs[name] for name in _EXAMINED if name in kwargs})
        self._name = str(given.get("host") or "")
        if given.get("hostaddr"):
            raise psycopg.ProgrammingError("leave hostaddr out: the upstream knows the addresses of its hosts")
        if "," in self._name or self._name.startswith(("/", "@")):
            what = "the one name that the certificates of all servers have, or be left out"
            raise psycopg.ProgrammingError(f"host must be {what}, not {self._name!r}")
        if given.get("target_session_attrs") == "prefer-standby":
            raise psycopg.ProgrammingError(
                "target_session_attrs=prefer-standby is for one server after the other: "
                "put the standbys into a pool of their own, with a smaller priority"
            )
        self._connect, self._conninfo, self._kwargs, self._avoid = connect, conninfo, kwargs, avoid

    def consider(self, attempt: Attempt) -> None:
        if (attempt.pool.id, attempt.host.id) in self._avoid:
            raise Excused(ConnectionError("not wanted here"), next_host=True)

    def connect_to(self, place: _Place, timeout_s: float) -> Any:
        """What psycopg's ``connect`` returns: a connection, or a coroutine."""
        where = place._asdict()
        if self._name and place.hostaddr:
            where["host"] = self._name
        # It is this module that waits, and more exactly: psycopg knows whole seconds, 2 at least.
        return self._connect(self._conninfo, **{**self._kwargs, **where, "connect_timeout": int(timeout_s) + 2})


_EXAMINED: Final = ("host", "hostaddr", "target_session_attrs")
_deadline: ContextVar[float] = ContextVar("resty_upstream.clients.psycopg.deadline")
_begun: ContextVar[list[Generator[Any, Any, Any]]] = ContextVar("resty_upstream.clients.psycopg.begun")


def _dial(order: _Order, attempt: Attempt) -> Any:
    order.consider(attempt)
    deadline = time.monotonic() + attempt.timeout_s
    host, known = attempt.host, literal_address(attempt)
    attempt.bounded = known is not None  # no resolver is waited for
    try:
        found = [] if known else socket.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
        places = _places(host, [known] if known else remember_addresses(found, host))
    except socket.gaierror as error:
        places = _places(host, last_known_addresses(host, error))
    errors: list[Exception] = []
    for left, place in zip(range(len(places), 0, -1), places, strict=True):
        part_s = max(0.001, (deadline - time.monotonic()) / left)
        token = _deadline.set(time.monotonic() + part_s)
        try:
            return order.connect_to(place, part_s)
        except Exception as error:
            errors.append(_unless_fatal(error))
        finally:
            _deadline.reset(token)
    raise _most_telling(errors)


async def _adial(order: _Order, attempt: Attempt) -> Any:
    order.consider(attempt)
    attempt.bounded = True
    deadline = time.monotonic() + attempt.timeout_s
    host, known, loop = attempt.host, literal_address(attempt), asyncio.get_running_loop()
    errors: list[Exception] = []
    async with asyncio.timeout(attempt.timeout_s):
        try:
            found = [] if known else await loop.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM)
            places = _places(host, [known] if known else remember_addresses(found, host))
        except socket.gaierror as error:
            places = _places(host, last_known_addresses(host, error))
        for left, place in zip(range(len(places), 0, -1), places, strict=True):
            part_s = max(0.001, (deadline - time.monotonic()) / left)
            token = _begun.set([])
            try:
                async with asyncio.timeout(part_s):
                    return await order.connect_to(place, part_s)
            except Exception as error:
                errors.append(_unless_fatal(error))
            finally:
                for steps in _begun.get():
                    steps.close()  # psycopg leaves this, and the socket, to the traceback of what ended it
                _begun.reset(token)
    raise _most_telling(errors)


register_connector(_Order, _dial, aconnect=_adial)


def _places(host: Host, addresses: list[Address]) -> list[_Place]:
    if host.unix_path is None:
        return [_Place(host.host, address.sockaddr[0], host.port) for address in addresses]
    # libpq goes by the directory and a port; elsewhere in an upstream the path is the socket's own.
    directory, _, port = host.unix_path.rpartition("/.s.PGSQL.")
    return [_Place(directory, "", int(port)) if port.isdecimal() else _Place(host.unix_path, "", host.port)]


def _unless_fatal(error: Exception) -> Exception:
    """The error of an address after which the host's next one is tried; any other is raised."""
    if not classify(error).next_host:
        raise error
    return error


def _most_telling(errors: list[Exception]) -> Exception:
    """Rather one that says something of the host than one of a way that this machine does not have."""
    return next((error for error in errors if classify(error).counts), errors[-1])


# ── libpq ─────────────────────────────────────────────────────────────────────────────────────


def _handshake(conninfo: str) -> Generator[tuple[int, Wait], int, pq.abc.PGconn]:
    """Connect, as :func:`psycopg.generators.connect` does, and raise what tells whose fault a failure is.

    However it ends without a connection, no socket is left.
    """
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    stage = None  # how far it got
    try:
        while pgconn.status != pq.ConnStatus.BAD:
            stage = pgconn.status
            polled = pgconn.connect_poll()
            if polled == pq.PollingStatus.OK:
                pgconn.nonblocking = 1
                return pgconn
            if polled == pq.PollingStatus.FAILED:
                break
            wait = Wait.R if polled == pq.PollingStatus.READING else Wait.W
            while not (yield pgconn.socket, wait):
                pass
        raise _failure(pgconn, stage, conninfo)
    except BaseException:
        pgconn.finish()
        raise


def _wait(steps: Generator[tuple[int, Wait], int, pq.abc.PGconn], deadline: float) -> pq.abc.PGconn:
    """Take the steps, waiting until ``deadline`` on the monotonic clock and no longer.

    :raises TimeoutError: when it is over.
    """
    try:
        fileno, wait = next(steps)
        while True:
            with DefaultSelector() as selector:
                selector.register(fileno, wait)
                ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("no answer in time")
            fileno, wait = steps.send(ready[0][1])
    except StopIteration as end:
        pgconn: pq.abc.PGconn = end.value
        return pgconn
    finally:
        steps.close()


# What a server says of itself: 57P01, 57P02, 57P03, 53300 (a superuser's reserve among them), 53200.
_UNAVAILABLE: Final = re.compile(
    r"the database system is|terminating connection|too many (clients|connections)"
    r"|remaining connection slots are reserved|out of memory|could not fork"
)
# Of classes 28 and 3D, and 42501 and 55000, for this user and database.
_CALLERS: Final = re.compile(
    r"authentication failed|does not exist|pg_hba\.conf|permission denied|not permitted|not currently accepting"
    r"|requires a valid client certificate|unrecognized configuration parameter|invalid value for parameter"
)
# What is wrong with files that the caller named, or with what it demands.
_CALLERS_FILES: Final = re.compile(r"(certificate|key|CRL) file|private key|authentication method requirement")
# What is not for the lack of `target_session_attrs`
_BROKEN: Final = re.compile(r"closed the connection|received|SSL|certificate")
# Severities are translated, "FATAL:  " among them; the two spaces are not.
_SAID_BY_SERVER: Final = re.compile(r"(^|: )[^\s:]+:  ", re.MULTILINE)
# Those that say something of a host, or of this machine.
_ERRNOS: Final = frozenset(
    number
    for number in errno.errorcode
    if number != errno.EINVAL and not classify(OSError(number, "")).reason.startswith("unclassified")
) | {errno.ENOENT, errno.ENOTSOCK, errno.ENOTDIR, errno.EAGAIN}  # of unix sockets


def _failure(pgconn: pq.abc.PGconn, stage: int | None, conninfo: str) -> Exception:
    """What a connection failed for, as an attempt understands it."""
    text = pgconn.error_message.decode("utf-8", "replace").strip() or "libpq does not say why"
    error = psycopg.OperationalError(f"connection failed: {text}", pgconn=finish_pgconn(pgconn))
    if _SAID_BY_SERVER.search(text):
        return _of_server(text, error)
    if getattr(error.pgconn, "needs_password", False) or _CALLERS_FILES.search(text):
        return error
    number = _errno_in(text)
    if number is not None:
        error = psycopg.OperationalError(_brief(text), pgconn=error.pgconn)
        error.__cause__ = OSError(number, os.strerror(number))
        return error
    if stage is None:
        return error  # libpq did not understand what it was asked
    if not _BROKEN.search(text) and conninfo_to_dict(conninfo).get("target_session_attrs", "any") != "any":
        return Excused(error, next_host=True)  # a server of another kind than was asked for
    return _because(error, text, answered=stage != pq.ConnStatus.STARTED)


def _of_server(text: str, error: psycopg.OperationalError) -> Exception:
    if _UNAVAILABLE.search(text):
        return _because(error, text)
    if _CALLERS.search(text):
        return error
    # In another language, or of a proxy: another host may do better, and nobody is to blame.
    return Excused(error, next_host=True)


def _because(error: psycopg.OperationalError, text: str, *, answered: bool = True) -> Exception:
    failure = BadAnswer(_brief(text), answered=answered)
    failure.__cause__ = error
    return failure


def _brief(text: str) -> str:
    """The first line, without where the server is."""
    return re.sub(r'^connection to server [^"]*"[^"]*".*? failed: ', "", text.partition("\n")[0])


def _errno_in(text: str) -> int | None:
    """The number of the system's error that a text of libpq ends in, in the language of this process."""
    return next((number for number in _ERRNOS if os.strerror(number) in text), None)
