"""What several tests need: peers on loopback, and upstreams whose hosts meet a given fate."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

from resty_upstream import Attempts, NoHostAvailable, RequestContext, Upstream
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock

WAIT_S = 10.0
"""The bound of every wait for something that should happen at once."""


# ── peers ─────────────────────────────────────────────────────────────────────────────────────


def greet(name: bytes) -> Callable[[socket.socket], None]:
    """Serve a connection by sending ``name``."""
    return lambda connection: connection.sendall(name)


def read_head(connection: socket.socket) -> bytes:
    """What an HTTP client sends up to the empty line."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65_536)
        if not chunk:
            break
        data += chunk
    return data


def answer_http(body: bytes) -> Callable[[socket.socket], None]:
    """Serve a connection as an HTTP server with one answer."""

    def serve(connection: socket.socket) -> None:
        if read_head(connection):
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)

    return serve


class Peer:
    """A server on loopback, with a thread for each connection.

    :param serve: what is done with a connection, which is closed afterwards; ``hello`` is sent if not given.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket], object] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str = "",
    ) -> None:
        self.serve = serve or greet(b"hello")
        self.hits = 0
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self.host, self.port = f"unix:{path}", 80
        else:
            self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((host, port))
            self.host, self.port = self._listener.getsockname()[:2]
        self._listener.listen(128)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._stopping = False

    @property
    def options(self) -> dict[str, Any]:
        """The peer as a host of a pool."""
        return {"host": self.host, "port": self.port}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        if self._stopping:
            return
        self._stopping = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join(WAIT_S)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.hits += 1
            thread = threading.Thread(target=self._serve, args=[connection], daemon=True)
            self._open.add(connection)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.serve(connection)
        self._open.discard(connection)


@contextlib.contextmanager
def refusing(host: str = "127.0.0.1") -> Iterator[dict[str, Any]]:
    """An address at which nobody listens, nor will: the port is taken. Its options as a host."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.bind((host, 0))
        yield {"host": host, "port": bound.getsockname()[1]}


@contextlib.contextmanager
def hanging(host: str = "127.0.0.1") -> Iterator[dict[str, Any]]:
    """An address that neither accepts nor refuses, as of a stopped process with a full queue."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield {"host": host, "port": listener.getsockname()[1]}


@contextlib.contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Inside, this process can open nothing: every try ends in EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)


# ── upstreams ─────────────────────────────────────────────────────────────────────────────────


def hosts(*ids: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Hosts by id that nobody will connect to: ``a`` is at ``a.test``."""
    return {host_id: {"host": f"{host_id}.test", **options} for host_id in ids}


def open_upstream(pools: Mapping[str, Any], clock: FakeClock | None = None, **options: Any) -> Upstream:
    """An upstream in a store of its own, on a clock that stands still."""
    upstream = Upstream(MemoryStore(clock=clock or FakeClock()), **options)
    upstream.configure(pools)
    return upstream


def open_workers(
    count: int, pools: Mapping[str, Any], clock: FakeClock | None = None, **options: Any
) -> list[Upstream]:
    """Upstreams that share a store as the worker processes of an application do."""
    store = MemoryStore(clock=clock or FakeClock())
    workers = [Upstream(store, **options) for _ in range(count)]
    workers[0].configure(pools)
    return workers


def refused() -> ConnectionRefusedError:
    """What connecting to a dead host raises."""
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


Fate = Callable[[], BaseException]


def visit(
    upstream: Upstream | RequestContext | Attempts, fates: Mapping[str, Fate] | None = None, **options: Any
) -> list[str]:
    """One request, whose attempts at the hosts in ``fates`` raise what their fate makes.

    :returns: the ids of the hosts tried; the last one answered.
    """
    fates = fates or {}
    tried: list[str] = []
    for attempt in upstream if isinstance(upstream, Attempts) else upstream.attempts(**options):
        with attempt as host:
            tried.append(host.id)
            if host.id in fates:
                raise fates[host.id]()
    return tried


def visit_in_vain(
    upstream: Upstream | RequestContext, fates: Mapping[str, Fate], **options: Any
) -> NoHostAvailable:
    """One request that ends without a host; the error that it got."""
    try:
        tried = visit(upstream, fates, **options)
    except NoHostAvailable as error:
        return error
    raise AssertionError(f"a host answered: {tried}")


def take_down(upstream: Upstream, *host_ids: str, pool_id: str = "p") -> None:
    """Let requests fail on these hosts until they are down."""
    for _ in range(1000):
        if not any(health(upstream, host_id, pool_id)["up"] for host_id in host_ids):
            return
        with contextlib.suppress(NoHostAvailable):
            visit(upstream, dict.fromkeys(host_ids, refused))
    raise AssertionError(f"{host_ids} are still up: {upstream.get_pools()}")


def health(upstream: Upstream, host_id: str, pool_id: str = "p") -> dict[str, Any]:
    """``up``, ``failcount`` and ``lastfail`` of a host."""
    options = upstream.get_pools()[pool_id]["hosts"][host_id]
    return {name: options[name] for name in ("up", "failcount", "lastfail")}
