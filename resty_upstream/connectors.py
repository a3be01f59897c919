"""How a client is connected to the host of an attempt.

What ``connect`` accepts: nothing (a new socket), a ``socket.socket``, a :class:`~resty_upstream.OverTLS`, an
``http.client.HTTPConnection``, any object with ``connect(host, port)`` and ``set_timeout(seconds)`` or
``settimeout(seconds)``, a callable ``(host, port, timeout_s)``, and whatever was added with
:func:`register_connector`. ``aconnect`` accepts the same, with coroutines where something waits.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import sys
import time
import weakref
from collections.abc import Awaitable, Callable
from types import BuiltinFunctionType, CoroutineType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, NoReturn, Protocol, TypeVar, cast

from resty_upstream.attempts import classify

if TYPE_CHECKING:
    import http.client

    from resty_upstream.attempts import Attempt, Info
    from resty_upstream.model import Host

T_co = TypeVar("T_co", covariant=True)


class Connected(NamedTuple, Generic[T_co]):
    """A connected client, and where it is connected to."""

    client: T_co
    info: Info


class Connectable(Protocol):
    """A client that connects itself, as the modules of lua-resty do.

    It must also have ``set_timeout(seconds)`` or ``settimeout(seconds)``.
    """

    @property
    def connect(self) -> Callable[..., object]:
        """``connect(host, port)`` connects, or raises; ``aconnect`` awaits what it returns."""
        ...


Connector = Callable[[Any, "Attempt"], Any]
AsyncConnector = Callable[[Any, "Attempt"], Awaitable[Any]]

_ACCEPTED: Final = (
    "connect accepts nothing, a socket.socket, a resty_upstream.OverTLS, an http.client.HTTPConnection, an object "
    "with connect(host, port) and set_timeout or settimeout, a callable (host, port, timeout_s), or a type added "
    "with register_connector"
)


# ── the registry ──────────────────────────────────────────────────────────────────────────────


def register_connector(
    kind: type, connect: Connector | None = None, *, aconnect: AsyncConnector | None = None
) -> None:
    """Teach ``connect`` and ``aconnect`` a type of client, subclasses included.

    :param connect: ``connect(client, attempt)`` connects the client to ``attempt.host.host`` and
        ``attempt.host.port`` within ``attempt.timeout_s`` seconds, returns what the caller of ``connect`` is to
        get, and raises what went wrong. It is called again with the same client when that failed.
    :param aconnect: the same for ``aconnect``: a coroutine function.
    """
    if not isinstance(kind, type):
        raise TypeError(f"register_connector takes a class, not {kind!r}")
    _register_loaded()  # what is known of itself, first: the last one wins
    if connect is not None:
        _find.register(kind, lambda _client: connect)
    if aconnect is not None:
        _find_async.register(kind, lambda _client: aconnect)


@functools.singledispatch
def _find(client: object) -> Connector:
    if _connects_itself(client):
        return _connect_object
    if callable(client):
        return _connect_callable
    raise TypeError(f"{_ACCEPTED}; not {type(client).__name__}")


@functools.singledispatch
def _find_async(client: object) -> AsyncConnector:
    if _connects_itself(client):
        return cast("AsyncConnector", _asyncio().connect_object)
    if callable(client):
        return cast("AsyncConnector", _asyncio().connect_callable)
    raise TypeError(f"{_ACCEPTED}; not {type(client).__name__}")


def find(client: object) -> Connector:
    """How to connect ``client``.

    :raises TypeError: saying what is accepted.
    """
    # The usual cases first: singledispatch takes as long as all the rest of an attempt.
    if client is None:
        return _dial
    if type(client) in _FUNCTIONS:
        return _connect_callable
    _register_loaded()
    return _find(client)


def find_async(client: object) -> AsyncConnector:
    """How to connect ``client`` in a coroutine.

    :raises TypeError: saying what is accepted.
    """
    if type(client) in _FUNCTIONS:
        return cast("AsyncConnector", _asyncio().connect_callable)
    if "asyncio" in _lazy:
        _asyncio()  # which in trio may not be loaded
    _register_loaded()
    return _find_async(client)


def _asyncio() -> Any:
    # Synchronous applications do without asyncio.
    from resty_upstream import aconnectors

    return aconnectors


_FUNCTIONS: Final = frozenset({FunctionType, MethodType, BuiltinFunctionType, functools.partial})


def _register_loaded() -> None:
    """Register types of modules that are not imported before someone else does."""
    if not _lazy:
        return
    for module, register in list(_lazy.items()):
        if module in sys.modules and _lazy.pop(module, None) is not None:
            register()


def _register_http_client() -> None:
    from http.client import HTTPConnection

    register_connector(HTTPConnection, _connect_http, aconnect=_refuse_async_http)


def _register_ssl() -> None:
    from ssl import SSLSocket

    register_connector(SSLSocket, _refuse_ssl, aconnect=_refuse_ssl)


def _register_asyncio() -> None:
    aconnectors = _asyncio()
    register_connector(type(None), aconnect=aconnectors.connect_streams)
    register_connector(socket.socket, aconnect=aconnectors.connect_socket)


_lazy: Final = {"asyncio": _register_asyncio, "http.client": _register_http_client, "ssl": _register_ssl}


# ── callables, and objects that connect themselves ────────────────────────────────────────────


def _connect_callable(client: Any, attempt: Attempt) -> Any:
    host = attempt.host
    result = client(host.host, host.port, attempt.timeout_s)
    if type(result) is CoroutineType:
        result.close()
        raise TypeError(f"{client!r} is a coroutine function: use `await …aconnect(…)`")
    return result


def _connects_itself(client: object) -> bool:
    if isinstance(client, type):
        return False  # a callable that makes a client
    return callable(getattr(client, "connect", None)) and _timeout_setter(client) is not None


def _timeout_setter(client: object) -> Callable[[float], object] | None:
    for name in ("set_timeout", "settimeout"):
        setter = getattr(client, name, None)
        if callable(setter):
            return cast("Callable[[float], object]", setter)
    return None


def start_object(client: Any, attempt: Attempt) -> Any:
    """Begin to connect an object; what its ``connect`` returned."""
    set_timeout = cast("Callable[[float], object]", _timeout_setter(client))
    set_timeout(attempt.timeout_s)
    return client.connect(attempt.host.host, attempt.host.port)


def settle_object(client: Any, attempt: Attempt) -> Any:
    """After a connection: the pool's timeout, where less was left of the deadline."""
    if attempt.timeout_s != attempt.pool.timeout_s:
        cast("Callable[[float], object]", _timeout_setter(client))(attempt.pool.timeout_s)
    return client


def _connect_object(client: Any, attempt: Attempt) -> Any:
    result = start_object(client, attempt)
    if type(result) is CoroutineType:
        result.close()
        raise TypeError(f"connect of {type(client).__name__} is a coroutine function: use `await …aconnect(…)`")
    return settle_object(client, attempt)


# ── addresses ─────────────────────────────────────────────────────────────────────────────────


class Address(NamedTuple):
    """What a socket connects to."""

    family: int
    sockaddr: Any


def literal_address(attempt: Attempt) -> Address | None:
    """The address of a host that needs no look-up; parsed once per snapshot."""
    target = attempt.target
    if not target.parsed:
        target.address = parse_address(target.host)
        target.parsed = True
    return cast("Address | None", target.address)


def parse_address(host: Host) -> Address | None:
    """The address of a host that needs no look-up; None for a name."""
    path = host.unix_path
    if path is not None:
        return Address(socket.AF_UNIX, path)
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.host)
        except (OSError, ValueError):
            continue
        return Address(family, (host.host, host.port))
    return None


_last_known: dict[tuple[str, int], list[Address]] = {}
_LAST_KNOWN_LIMIT: Final = 10_000


def remember_addresses(found: list[Any], host: Host) -> list[Address]:
    """The addresses of a look-up, kept for when the resolver fails."""
    addresses = [Address(family, sockaddr) for family, _, _, _, sockaddr in found]
    key = (host.host, host.port)
    if key in _last_known or len(_last_known) < _LAST_KNOWN_LIMIT:
        _last_known[key] = addresses
    return addresses


def last_known_addresses(host: Host, error: socket.gaierror) -> list[Address]:
    """The last known addresses, when it is the resolver that fails and not the name."""
    known = _last_known.get((host.host, host.port))
    if known is None or error.errno not in (socket.EAI_AGAIN, socket.EAI_FAIL):
        raise error
    return known


def _resolve(attempt: Attempt) -> list[Address]:
    address = literal_address(attempt)
    if address is not None:
        return [address]
    host = attempt.host
    try:
        return remember_addresses(socket.getaddrinfo(host.host, host.port, type=socket.SOCK_STREAM), host)
    except socket.gaierror as error:
        return last_known_addresses(host, error)


def _try_each(attempt: Attempt, dial: Callable[[Address, float], None], timeout_s: float) -> None:
    """Dial one address of the host after the other; each may take its part of the time that is left."""
    deadline = time.monotonic() + timeout_s
    addresses = _resolve(attempt)
    errors: list[OSError] = []
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            dial(address, max(0.001, (deadline - time.monotonic()) / left))
            return
        except OSError as error:
            errors.append(error)
    raise most_telling(errors, attempt.host)


def most_telling(errors: list[OSError], host: Host) -> OSError:
    """Of the errors of a host's addresses the one that decides.

    This machine's own fault before all; then what says that the host is dead; last what says that this machine
    has no way to that kind of address.
    """

    def weight(error: OSError) -> int:
        verdict = classify(error)
        if not verdict.next_host:
            return 0
        return 1 if verdict.counts and not verdict.timed_out else 2 if verdict.counts else 3

    return min(errors, key=weight, default=OSError(f"no address of {host.host}"))


# ── sockets ───────────────────────────────────────────────────────────────────────────────────


def _dial(_client: None, attempt: Attempt) -> socket.socket:
    return open_socket(attempt)


def open_socket(attempt: Attempt) -> socket.socket:
    """A new socket, connected to the host of an attempt, with the pool's timeout."""
    attempt.bounded = True
    sock = dial(attempt, attempt.timeout_s)
    limit(sock, attempt.target.timeout_s)
    return sock


def dial(attempt: Attempt, timeout_s: float) -> socket.socket:
    """A new socket, connected to the host of an attempt within that time."""
    address = literal_address(attempt)
    if address is not None:
        return _dial_address(address, timeout_s)
    opened: list[socket.socket] = []
    _try_each(attempt, lambda address, left_s: opened.append(_dial_address(address, left_s)), timeout_s)
    return opened[0]


def limit(sock: Any, timeout_s: float | None) -> None:
    """Have what a socket does next take no longer."""
    if sock.gettimeout() != timeout_s:  # to set it is a system call
        sock.settimeout(timeout_s)


def is_readable(sock: Any) -> bool:
    """Whether something came on an open socket, or its end did, without waiting for it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _dial_address(address: Address, timeout_s: float) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_socket(sock: socket.socket, attempt: Attempt) -> socket.socket:
    attempt.bounded = True
    bound = bound_address(sock)

    def dial(address: Address, timeout_s: float) -> None:
        fit(sock, address)
        sock.settimeout(timeout_s)
        try:
            sock.connect(address.sockaddr)
        except BaseException:
            renew(sock, sock.family, bound)
            raise

    _try_each(attempt, dial, attempt.timeout_s)
    sock.settimeout(attempt.pool.timeout_s)
    return sock


def fit(sock: socket.socket, address: Address) -> None:
    """Make a socket one of the address's family."""
    if sock.type != socket.SOCK_STREAM:
        raise TypeError("connect takes a stream socket (SOCK_STREAM)")
    if sock.family != address.family:
        renew(sock, address.family, None)


def renew(sock: socket.socket, family: int, bound: Any) -> None:
    """Put a fresh descriptor under a socket object, with the number and the options of the old one.

    After a connect that failed or timed out a descriptor cannot be used again: the next connect gives
    ECONNABORTED or EALREADY.
    """
    with socket.socket(family, sock.type) as fresh:
        _copy_options(sock, fresh)
        number = sock.fileno()
        os.dup2(fresh.fileno(), number, inheritable=os.get_inheritable(number))
    # The object learns of its new family; its descriptor keeps its number.
    socket.socket.__init__(sock, family, socket.SOCK_STREAM, 0, fileno=number)
    if bound is not None:
        sock.bind(bound)


def bound_address(sock: socket.socket) -> Any:
    """The local address that a socket not yet connected was bound to; None where it was not."""
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return None if name[1] == 0 and name[0] in ("0.0.0.0", "::") else name  # noqa: S104 - compared, not bound
    return name or None


_OPTIONS: Final = tuple(
    (getattr(socket, level), getattr(socket, name))
    for level, names in {
        "SOL_SOCKET": "SO_KEEPALIVE SO_REUSEADDR SO_REUSEPORT SO_LINGER SO_RCVBUF SO_SNDBUF SO_PRIORITY SO_MARK "
        "SO_OOBINLINE SO_BINDTODEVICE SO_RCVLOWAT SO_BUSY_POLL",
        "IPPROTO_TCP": "TCP_NODELAY TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_USER_TIMEOUT TCP_SYNCNT TCP_MAXSEG "
        "TCP_LINGER2 TCP_WINDOW_CLAMP TCP_QUICKACK TCP_CONGESTION TCP_NOTSENT_LOWAT TCP_FASTOPEN_CONNECT",
        "IPPROTO_IP": "IP_TOS IP_TTL IP_TRANSPARENT IP_BIND_ADDRESS_NO_PORT",
        "IPPROTO_IPV6": "IPV6_TCLASS IPV6_UNICAST_HOPS IPV6_V6ONLY",
    }.items()
    for name in names.split()
    if hasattr(socket, level) and hasattr(socket, name)
)
_DOUBLED: Final = frozenset({socket.SO_RCVBUF, socket.SO_SNDBUF}) if sys.platform == "linux" else frozenset()


_Options = dict[tuple[int, int], int | bytes]
# The options of sockets that became one of another family for an attempt, which may not have all of them.
_set_aside: weakref.WeakKeyDictionary[socket.socket, _Options] = weakref.WeakKeyDictionary()


def _copy_options(old: socket.socket, new: socket.socket) -> None:
    """Set on ``new`` each option in which ``old``, or what it was before, differs from a fresh socket."""
    options = _set_aside.get(old, {}) | _own_options(old)
    if old.family != new.family:
        _set_aside[old] = options
    for (level, name), value in options.items():
        with contextlib.suppress(OSError):  # not an option of this family
            new.setsockopt(level, name, value)


def _own_options(sock: socket.socket) -> _Options:
    """The options that were set on a socket, as they are to be set."""
    options: _Options = {}
    with socket.socket(sock.family, sock.type) as fresh:
        for level, name in _OPTIONS:
            try:
                value, default = sock.getsockopt(level, name, 256), fresh.getsockopt(level, name, 256)
            except OSError:
                continue  # not an option of this family
            if value == default:
                continue
            doubled = level == socket.SOL_SOCKET and name in _DOUBLED  # Linux reports twice what was set
            options[level, name] = int.from_bytes(value, sys.byteorder) // 2 if doubled else value
    return options


# ── http.client, ssl ──────────────────────────────────────────────────────────────────────────


def _connect_http(connection: http.client.HTTPConnection, attempt: Attempt) -> http.client.HTTPConnection:
    """Connect to the host; the connection's own name stays in ``Host`` and in certificate checks.

    ``auto_open`` is turned off: http.client would open a lost connection again by that name, past the pools.
    """
    connection.close()
    connection.auto_open = 0
    # The hook through which http.client makes its socket; tunnel, TLS and TCP_NODELAY stay its own work.
    hooked = cast("Any", connection)
    deadline = time.monotonic() + attempt.timeout_s

    def dial(*_args: object, **_kwargs: object) -> socket.socket:
        sock = open_socket(attempt)
        sock.settimeout(max(0.001, deadline - time.monotonic()))  # for the handshake that follows
        return sock

    hooked._create_connection = dial
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    finally:
        del hooked._create_connection
    own = connection.timeout
    connection.sock.settimeout(own if isinstance(own, int | float) else attempt.pool.timeout_s)
    return connection


def _refuse_async_http(_connection: object, _attempt: object) -> NoReturn:
    raise TypeError("http.client is synchronous: use connect, or an asynchronous client with aconnect")


def _refuse_ssl(_sock: object, _attempt: object) -> NoReturn:
    raise TypeError(
        "an ssl.SSLSocket cannot be connected a second time: pass a resty_upstream.OverTLS(context, "
        "server_hostname=…), or a callable (host, port, timeout_s) that connects and wraps"
    )


register_connector(type(None), _dial)
register_connector(socket.socket, _connect_socket)
