"""The test sites in real servers, seen from outside: journal, gates, the store, and clients that leave."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from resty_upstream import Upstream
from tests.e2e.processes import PATIENCE_S, Answer, Client, Process, get, python, wait_until_answers


class Journal:
    """Collects what a site writes, in the order in which it happened; the test may write too."""

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
    """Where a site waits until the test opens; a context manager that opens at its end."""

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


def vanish(sock: socket.socket) -> None:
    """Not even a proper end: the client's machine is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Site:
    """An application in a server, whose requests each fail once at a dead host.

    :param name: ``application in server``.
    """

    def __init__(
        self, name: str, port: int, environment: dict[str, str], directory: Path, journal: Journal
    ) -> None:
        self.name = name
        self.port = port
        self.store = directory / "store" / "upstreams.db"
        self.journal = journal
        self._upstream = Upstream(f"sqlite://{self.store}")
        application, _, server = name.partition(" in ")
        self.process = Process(
            _COMMANDS[server](port, _APPLICATIONS[application]),
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

    def ask(self, path: str, *headers: str) -> socket.socket:
        """A request whose answer the test reads by itself."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        lines = [f"GET {path} HTTP/1.1", "Host: site", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode())
        return sock

    def leave(self, path: str, *, after: Callable[[], None], read: int = 0) -> None:
        """Ask for ``path``, read some of the answer, and cut the connection when ``after`` returns."""
        with self.ask(path) as sock:
            while read > 0:
                read -= len(sock.recv(read))
            after()
            vanish(sock)

    def told_of(self, name: str) -> list[str]:
        """The events of a request that is over, once nothing more can come."""
        self.journal.wait_for("told", name)
        assert self.get("/collect").status == 200
        return self.journal.of(name)


# ── which there are ───────────────────────────────────────────────────────────────────────────

_APPLICATIONS = {
    "django-asgi": "tests.contrib.django.project.asgi:application",
    "django-wsgi": "tests.contrib.django.project.wsgi:application",
    "fastapi": "tests.contrib.fastapi.site:app",
    "flask": "tests.contrib.flask.site:application",
    "starlette": "tests.contrib.starlette.site:app",
    "starlette-wrapped": "tests.contrib.starlette.site:wrapped",
    "wsgi": "tests.contrib.wsgi.site:application",
}


def _gunicorn(*options: str) -> Callable[[int, str], list[str]]:
    fixed = ["--workers=1", "--no-control-socket", "--graceful-timeout=3", *options]
    return lambda port, application: python("-m", "gunicorn", f"--bind=127.0.0.1:{port}", *fixed, application)


def _uvicorn(port: int, application: str) -> list[str]:
    return python("-m", "uvicorn", f"--port={port}", "--timeout-graceful-shutdown=3", application)


def _hypercorn(port: int, application: str) -> list[str]:
    address = f"--bind=127.0.0.1:{port}"
    return python("-m", "hypercorn", address, "--workers=0", "--graceful-timeout=3", application)


def _granian(*options: str) -> Callable[[int, str], list[str]]:
    return lambda port, application: python("-m", "granian", f"--port={port}", *options, application)


_COMMANDS: dict[str, Callable[[int, str], list[str]]] = {
    "granian asgi": _granian("--interface=asgi"),
    "granian wsgi": _granian("--interface=wsgi", "--blocking-threads=4"),
    "gunicorn gthread": _gunicorn("--worker-class=gthread", "--threads=4"),
    "gunicorn sync": _gunicorn("--worker-class=sync"),
    "hypercorn": _hypercorn,
    "uvicorn": _uvicorn,
}


def _each(application: str, *servers: str) -> list[str]:
    return [f"{application} in {server}" for server in servers]


DJANGO_WSGI = _each("django-wsgi", "gunicorn sync", "gunicorn gthread")
DJANGO_ASGI = _each("django-asgi", "uvicorn", "hypercorn")
WSGI = _each("wsgi", "gunicorn sync", "gunicorn gthread", "granian wsgi")
FLASK = _each("flask", "gunicorn sync", "gunicorn gthread")
STARLETTE = _each("starlette", "uvicorn")  # has the middleware inside of its own page for errors
WRAPPED = _each("starlette-wrapped", "uvicorn", "hypercorn", "granian asgi")
FASTAPI = _each("fastapi", "uvicorn", "hypercorn")


def on(*cases: tuple[list[str], str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each path in the sites given with it."""
    pairs = [(site, path) for sites, path in cases for site in sites]
    return pytest.mark.parametrize(("site", "path"), pairs, indirect=["site"])
