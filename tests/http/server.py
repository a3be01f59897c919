"""An HTTP server whose answers are as good or bad as the path asks for, with a record of what reached it."""

from __future__ import annotations

import contextlib
import gzip
import os
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Self
from urllib.parse import unquote, urlsplit

PART = b"x" * 65_536


class Received(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    """Which connection of the server, from 1."""


class Closed(Exception):
    """The connection is over."""


class Reset(Closed):
    """It is to be reset."""


class Server:
    """Serves on loopback, a thread for each connection.

    :param name: what it says of itself in ``X-Host``.
    :param tls: how to speak TLS.
    :param path: the socket to listen at, for one of the file system.

    What an answer is like is the first part of the path: see the methods.
    """

    def __init__(
        self, name: str = "a", *, tls: ssl.SSLContext | None = None, path: str = "", port: int = 0
    ) -> None:
        self.name = name
        self.received: list[Received] = []
        self.accepted = 0
        self.statuses: list[int] = []
        """Those of the next answers, whatever is asked for."""
        self.paths: list[str] = []
        """What the next requests are taken to ask for."""
        self._tls = tls
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self.port = 80
        else:
            self._listener = socket.create_server(("127.0.0.1", port))
            self.port = self._listener.getsockname()[1]
        self._listener.listen(128)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on, and end those that there are."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # which its thread notices

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        with self._lock:
            return len(self._connections)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection, self.accepted), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            return
        with self._lock:
            self._connections.add(connection)
        try:
            with connection, connection.makefile("rb") as file:
                self._converse(connection, file, number)
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _converse(self, connection: socket.socket, file: BinaryIO, number: int) -> None:
        try:
            while not self._stopping:
                request = _read(file, connection, number)
                self.received.append(request)
                self._answer(connection, request)
        except Reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, Closed, ValueError):
            pass

    # ── answers ───────────────────────────────────────────────────────────────────────────────

    def _answer(self, connection: socket.socket, request: Received) -> None:
        if self.statuses:
            self._send(connection, request, status=self.statuses.pop(0))
            return
        path = self.paths.pop(0) if self.paths else request.path
        kind, *rest = unquote(urlsplit(path).path).strip("/").split("/")
        answer = getattr(self, f"_answer_{kind}", None)
        if answer is None:
            self._send(connection, request)
        else:
            answer(connection, request, *rest)

    def _send(
        self,
        connection: socket.socket,
        request: Received,
        body: bytes = b"ok",
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        has_body = request.method != "HEAD" and status != 204
        lengths = {} if status == 204 else {"Content-Length": str(len(body))}
        lines = [f"HTTP/1.1 {status} Whatever", f"X-Host: {self.name}"]
        lines += [f"{name}: {value}" for name, value in {**lengths, **(headers or {})}.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        connection.sendall(head + body if has_body else head)

    def _answer_status(self, connection: socket.socket, request: Received, status: str, after: str = "") -> None:
        headers = {"Retry-After": after} if after else {}
        self._send(
            connection, request, f"status {status} of {self.name}".encode(), status=int(status), headers=headers
        )

    def _answer_echo(self, connection: socket.socket, request: Received) -> None:
        self._send(connection, request, request.body)

    def _answer_sink(self, connection: socket.socket, request: Received) -> None:
        """How large the body was, which is not kept."""
        self._send(connection, request, request.body)

    def _answer_count(self, connection: socket.socket, request: Received) -> None:
        self._send(connection, request, str(len(request.body)).encode())

    def _answer_hang(self, connection: socket.socket, request: Received) -> None:
        """Nothing comes, until the other side goes away."""
        while not self._stopping:
            if select.select([connection], [], [], 0.2)[0] and not connection.recv(1):
                raise Closed

    def _answer_drop(self, connection: socket.socket, request: Received) -> None:
        """Closed without an answer."""
        raise Closed

    def _answer_reset(self, connection: socket.socket, request: Received) -> None:
        raise Reset

    def _answer_garbage(self, connection: socket.socket, request: Received) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        self._answer_hang(connection, request)

    def _answer_half(self, connection: socket.socket, request: Received, how: str = "close") -> None:
        """The body breaks off."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
        time.sleep(0.05)  # for the head to be read before a reset discards it
        if how == "hang":
            self._answer_hang(connection, request)
        raise Reset if how == "reset" else Closed

    def _answer_trickle(self, connection: socket.socket, request: Received, size: str) -> None:
        """The body comes a byte now and then."""
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(int(size)):
            time.sleep(0.02)
            connection.sendall(b"x")

    def _answer_half_head(self, connection: socket.socket, request: Received) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
        raise Closed

    def _answer_drip(self, connection: socket.socket, request: Received) -> None:
        """A head of a byte now and then, without end."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self._stopping:
            connection.sendall(b"x")
            time.sleep(0.02)

    def _answer_chunked(self, connection: socket.socket, request: Received, parts: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(int(parts)):
            connection.sendall(b"%x\r\n%b\r\n" % (len(PART), PART))
        connection.sendall(b"0\r\n\r\n")

    def _answer_gzip(self, connection: socket.socket, request: Received, times: str = "1") -> None:
        packed = gzip.compress(b"packed" * int(times))
        self._send(connection, request, packed, headers={"Content-Encoding": "gzip"})

    def _answer_cookie(self, connection: socket.socket, request: Received) -> None:
        self._send(connection, request, headers={"Set-Cookie": "seen=1; Path=/"})

    def _answer_redirect(self, connection: socket.socket, request: Received, *place: str) -> None:
        target = f"http://{'/'.join(place[1:])}" if place[0] == "to" else "/" + "/".join(place)
        self._send(connection, request, status=302, headers={"Location": target})

    def _answer_close(self, connection: socket.socket, request: Received) -> None:
        """Well, and then closed without having said so."""
        self._send(connection, request)
        raise Closed


def _read(file: BinaryIO, connection: socket.socket, number: int) -> Received:
    reader = iter(file.readline, b"")
    first = next(reader, b"")
    if not first:
        raise Closed
    method, path, _ = first.decode().split(" ", 2)
    headers = {}
    for line in reader:
        if line == b"\r\n":
            break
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("expect") == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts = _parts(file, headers)
    body = str(sum(map(len, parts))).encode() if path == "/sink" else b"".join(parts)
    return Received(method, path, headers, body, number)


def _parts(file: BinaryIO, headers: dict[str, str]) -> Iterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int(file.readline(), 16):
            yield file.read(size)
            file.readline()
        file.readline()
    elif "content-length" in headers:
        yield file.read(int(headers["content-length"]))


@contextlib.contextmanager
def silent() -> Iterator[dict[str, Any]]:
    """The options of a host whose connections are made by the kernel, and never looked at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {"host": "127.0.0.1", "port": listener.getsockname()[1]}


class _Printed(list[Received]):
    """A record that is kept where it outlives the process."""

    def append(self, request: Received) -> None:
        os.write(1, f"{request.path}\n".encode())


def main() -> None:
    """A server as a process of its own, on a port, with a name; it prints the paths of all that reaches it."""
    server = Server(sys.argv[2], port=int(sys.argv[1]))
    server.received = _Printed()
    with server:
        os.write(1, b"ready\n")
        signal.pause()


if __name__ == "__main__":
    main()
