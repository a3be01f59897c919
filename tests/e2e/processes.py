"""What tests with real servers need: ports, processes, HTTP, and waiting for a condition with a bound."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE_S = 10.0  # for what takes a fraction of a second on an idle machine
POLL_S = 0.02


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """The first true result of ``condition``; a failed test that names ``what`` after ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)
    return result


# ── ports ─────────────────────────────────────────────────────────────────────────────────────


class Ports:
    """Loopback ports that stay ours while nobody listens on them.

    Each is held by a socket that is bound and does not listen: connecting is refused, the kernel gives the
    port to no outgoing connection, and a server that sets ``SO_REUSEADDR`` can listen on it again and again.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def reserve(self) -> int:
        """A port that nothing listens on."""
        held = socket.socket()
        self._held.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])

    def release(self) -> None:
        """Give all of them back."""
        for held in self._held:
            held.close()


# ── processes ─────────────────────────────────────────────────────────────────────────────────


class Process:
    """A child with a process group of its own, its output in a file; a context manager that ends it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], output: Path, cwd: Path = ROOT
    ) -> None:
        self.output = output
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        with output.open("ab") as sink:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**inherited, "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def printed(self) -> str:
        return self.output.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        assert self.running, self.printed()
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        return self._process.wait(timeout_s)

    def kill_group(self) -> None:
        """SIGKILL for it and all that it started."""
        if self.running:  # as long as the leader is not reaped its group is ours
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(PATIENCE_S)

    def end(self) -> None:
        """End it in order, or else its whole group."""
        if self.running:
            os.killpg(self.pid, signal.SIGCONT)  # a process that is stopped takes no SIGTERM
            self._process.terminate()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.kill_group()


# What a shell or a test runner may hold for this process alone
_NOT_INHERITED = {"DJANGO_SETTINGS_MODULE", "GUNICORN_CMD_ARGS", "PYTHONWARNINGS", "WEB_CONCURRENCY"}


def python(*arguments: object) -> list[str]:
    """The command for ``python …`` with the interpreter that runs the tests."""
    return [sys.executable, *map(str, arguments)]


def wait_until_answers(process: Process, port: int, path: str) -> None:
    """Wait until a request for ``path`` is answered with 200."""

    def answers() -> bool:
        assert process.running, f"ended at once:\n{process.printed()}"
        with contextlib.suppress(OSError, http.client.HTTPException):
            return get(port, path, timeout_s=5.0).status == 200
        return False

    wait_until(answers, f"an answer to {path}; it printed:\n{process.printed()}")


# ── HTTP ──────────────────────────────────────────────────────────────────────────────────────


class Answer(NamedTuple):
    """A response that was read to its end."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One kept connection: to a server with several workers, a connection to one of them."""

    def __init__(self, port: int, timeout_s: float = PATIENCE_S) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; another request opens it again."""
        self._connection.close()

    def get(self, path: str, method: str = "GET") -> Answer:
        self._connection.request(method, path)
        response = self._connection.getresponse()
        return Answer(response.status, response.read(), dict(response.getheaders()))


def get(port: int, path: str, timeout_s: float = PATIENCE_S) -> Answer:
    """One request over a connection of its own."""
    with Client(port, timeout_s) as client:
        return client.get(path)


# ── a back end that counts ────────────────────────────────────────────────────────────────────


class Silence:
    """What a :class:`~tests.helpers.Peer` serves: nothing, until the client goes; it counts who waits for it."""

    def __init__(self) -> None:
        self.total = 0
        self.open = 0
        self.most_open = 0
        self._lock = threading.Lock()

    def __call__(self, connection: socket.socket) -> None:
        with self._lock:
            self.total += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            while connection.recv(65_536):
                pass
        finally:
            with self._lock:
                self.open -= 1

    def forget(self) -> None:
        """Count from here on."""
        with self._lock:
            self.total, self.most_open = 0, self.open
