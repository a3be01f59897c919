"""The test site in a real server, seen from outside: its journal, its gates, the store, and clients that leave."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from resty_upstream import Upstream
from tests.e2e.processes import PATIENCE_S, Answer, Client, Process, get, python, wait_until_answers


class Journal:
    """Collects what the site writes, in the order in which it happened; the test may write too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._events: list[tuple[str, str]] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._collect, name="journal")
        self._thread.start()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", str(self.path))
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def _collect(self) -> None:
        while message := self._socket.recv(65_536):
            entry = json.loads(message)
            self.write(entry["event"], entry["name"])

    def write(self, event: str, name: str) -> None:
        """Add an event."""
        with self._news:
            self._events.append((event, name))
            self._news.notify_all()

    def of(self, name: str) -> list[str]:
        """All events of a request, in order."""
        with self._news:
            return [event for event, whose in self._events if whose == name]

    def wait_for(self, event: str, name: str) -> None:
        """Wait until ``event`` happened to a request."""
        with self._news:
            happened = self._news.wait_for(lambda: (event, name) in self._events, PATIENCE_S)
            assert happened, f"{name}: {event} did not happen, but {self._events}"


class Gate:
    """Where the site waits until the test opens; a context manager that opens at its end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self._waiting: socket.socket | None = None
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.open()

    def wait_until_reached(self) -> None:
        """Wait until somebody stands at the gate."""
        self._waiting, _ = self._listener.accept()

    def open(self) -> None:
        """Let who waits pass, and whoever comes later."""
        self._listener.close()
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None


class Site:
    """A running server with the test site, whose requests each fail once at a dead host."""

    def __init__(
        self, server: str, port: int, environment: dict[str, str], directory: Path, journal: Journal
    ) -> None:
        self.server = server
        self.is_asgi = server == "uvicorn"
        self.port = port
        self.store = directory / "store" / "upstreams.db"
        self.journal = journal
        self._upstream = Upstream(f"sqlite://{self.store}")
        self.process = Process(
            _COMMANDS[server](port),
            {**environment, "SITE_STORE": f"sqlite://{self.store}"},
            directory / "output",
        )

    def start(self) -> None:
        wait_until_answers(self.process, self.port, "/unused")
        self.get(f"/plain?name=first-{self.port}")  # opens and fills the store
        self.journal.wait_for("told", f"first-{self.port}")

    def close(self) -> None:
        self.process.end()
        self._upstream.store.close()

    def failures(self) -> int:
        """How many failures the store has been told of."""
        pools = self._upstream.get_pools()
        return int(pools["primary"]["hosts"]["dead"]["failcount"]) if pools else 0

    def get(self, path: str) -> Answer:
        return get(self.port, path)

    def client(self) -> Client:
        return Client(self.port)

    def leave(self, path: str, *, after: Callable[[], None], read: int = 0) -> None:
        """Ask for ``path``, read some of the answer, and cut the connection when ``after`` returns."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: site\r\n\r\n".encode())
            while read > 0:
                read -= len(sock.recv(read))
            after()
            # Not even a proper end: the client's machine is gone.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def told_of(self, name: str) -> list[str]:
        """The events of a request that is over, once nothing more can come."""
        self.journal.wait_for("told", name)
        assert self.get("/collect").status == 200
        return self.journal.of(name)


def _gunicorn(*options: str) -> Callable[[int], list[str]]:
    application = "tests.contrib.django.project.wsgi:application"
    fixed = ["--workers=1", "--no-control-socket", "--graceful-timeout=3", *options]
    return lambda port: python("-m", "gunicorn", f"--bind=127.0.0.1:{port}", *fixed, application)


def _uvicorn(port: int) -> list[str]:
    application = "tests.contrib.django.project.asgi:application"
    return python(
        "-m", "uvicorn", f"--port={port}", "--lifespan=off", "--timeout-graceful-shutdown=3", application
    )


_COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "gunicorn sync": _gunicorn("--worker-class=sync"),
    "gunicorn gthread": _gunicorn("--worker-class=gthread", "--threads=4"),
    "uvicorn": _uvicorn,
}
WSGI = ["gunicorn sync", "gunicorn gthread"]
ASGI = ["uvicorn"]
