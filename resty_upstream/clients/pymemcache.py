"""pymemcache: clients that choose their host whenever they connect.

Connecting is one attempt: the socket, TLS, and a ``version`` that shows that the host works, since the kernel goes
on accepting connections for a process that hangs.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Final

from pymemcache import Client, PooledClient  # type: ignore[import-untyped]
from pymemcache.exceptions import MemcacheClientError  # type: ignore[import-untyped]

from resty_upstream import Attempt, RequestContext, Upstream
from resty_upstream.attempts import BadAnswer
from resty_upstream.connectors import find, is_readable

_dial: Final = find(None)
_LONGEST: Final = 1024  # bytes of a line of memcached's that says nothing of values


def _check(upstream: object, options: dict[str, Any]) -> None:
    if not isinstance(upstream, Upstream | RequestContext):
        raise TypeError(f"upstream must be an Upstream or a RequestContext, not {type(upstream).__name__}")
    if options.get("connect_timeout") is not None:
        raise TypeError(
            "connect_timeout is not an option of clients of an upstream: "
            "the `timeout` of the upstream's pools says how long connecting may take"
        )
    if options.get("socket_module", socket) is not socket:
        raise TypeError("socket_module is not an option of clients of an upstream: it makes its sockets itself")


class UpstreamClient(Client):  # type: ignore[misc]  # which has no types
    """A client of whichever memcached is to be used, chosen whenever it connects.

    ::

        client = UpstreamClient(upstream, key_prefix=b"site:")

    A connection that broke since the last command is noticed before the next one is sent. A command that was sent
    is never sent again. When no host is left, commands raise :class:`NoHostAvailable`, a ``ConnectionError``, as
    clients of one host do (with ``ignore_exc``, getting finds nothing).

    :param upstream: an upstream, or the context of a request.
    :param server_hostname: with ``tls_context``, the name that certificates are checked for; where it is not
        given, each host's own.
    :param options: as of ``pymemcache.Client``, except for ``connect_timeout`` and ``socket_module``. ``timeout``
        is in seconds; where it is not given, it is that of the upstream's pool.
    :raises TypeError: for an option that the upstream decides.
    """

    def __init__(
        self, upstream: Upstream | RequestContext, *, server_hostname: str | None = None, **options: Any
    ) -> None:
        _check(upstream, options)
        super().__init__(("", 0), **options)
        self._upstream = upstream
        self.server_hostname = server_hostname

    def _connect(self) -> None:
        self.close()
        for attempt in self._upstream.attempts():
            with attempt as host:
                self.server = host.unix_path or (host.host, host.port)
                self.sock = self._connect_once(attempt)

    def _connect_once(self, attempt: Attempt) -> socket.socket:
        deadline = time.monotonic() + attempt.timeout_s
        sock: socket.socket = _dial(None, attempt)
        try:
            self._tune(sock)
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            if self.tls_context is not None:
                name = self.server_hostname or attempt.host.host
                sock = self.tls_context.wrap_socket(sock, server_hostname=name)
            sock.sendall(b"version\r\n")
            _expect_version(sock, deadline)
            sock.settimeout(attempt.pool.timeout_s if self.timeout is None else self.timeout)
        except BaseException:
            sock.close()
            raise
        return sock

    def _tune(self, sock: socket.socket) -> None:
        if sock.family == socket.AF_UNIX:
            return
        if self.no_delay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keepalive = self.socket_keepalive
        if keepalive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive.idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.intvl)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.cnt)

    # The three ways in which every command goes out.

    def _fetch_cmd(self, *args: Any, **options: Any) -> Any:
        self._notice()
        return super()._fetch_cmd(*args, **options)

    def _store_cmd(self, *args: Any, **options: Any) -> Any:
        self._notice()
        return super()._store_cmd(*args, **options)

    def _misc_cmd(self, *args: Any, **options: Any) -> Any:
        self._notice()
        return super()._misc_cmd(*args, **options)

    def _notice(self) -> None:
        """Close a connection on which something came unasked: its end, or the error of a command without reply."""
        if self.sock is not None and is_readable(self.sock):
            self.close()


def _expect_version(sock: socket.socket, deadline: float) -> None:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = sock.recv(_LONGEST)
        if not chunk:
            break
        line += chunk
    if line.startswith(b"VERSION"):
        return
    text = line.decode("latin-1").strip()
    if line.startswith(b"CLIENT_ERROR"):
        raise MemcacheClientError(text)  # it wants a password, which pymemcache has not got
    raise BadAnswer(f"answered {text!r} to version" if line else "closed the connection")


class UpstreamPooledClient(PooledClient):  # type: ignore[misc]  # which has no types
    """A pool of :class:`UpstreamClient`, for threads.

    ::

        client = UpstreamPooledClient(upstream, max_pool_size=10)

    :param options: as of ``pymemcache.PooledClient``; see :class:`UpstreamClient`.
    """

    client_class = UpstreamClient

    def __init__(
        self, upstream: Upstream | RequestContext, *, server_hostname: str | None = None, **options: Any
    ) -> None:
        _check(upstream, options)
        super().__init__(("", 0), **options)
        self.server = upstream
        self.server_hostname = server_hostname

    def _create_client(self) -> UpstreamClient:
        client: UpstreamClient = super()._create_client()
        client.server_hostname = self.server_hostname
        return client
