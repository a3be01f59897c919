"""Hosts that count their checks, and servers whose workers check them."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from resty_upstream import Upstream
from tests.e2e.processes import Client, Ports, Process, get, python, wait_until, wait_until_answers
from tests.helpers import Peer, read_head


class Check(NamedTuple):
    """A check as its host saw it, in seconds of the monotonic clock."""

    began: float
    ended: float


class CheckedHost:
    """A host that counts what checks ask of it, answers calls, and goes away and comes back as it is told."""

    PATH = "/health"

    def __init__(self, name: str, port: int, *, answer_after_s: float = 0.0) -> None:
        self.name = name
        self.port = port
        self.checks: list[Check] = []
        self.most_at_once = 0
        self.status = 200
        self._answer_after_s = answer_after_s
        self._at_once = 0
        self._lock = threading.Lock()
        self._peer: Peer | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.port}

    def start(self) -> None:
        """Accept connections."""
        if self._peer is None:
            self._peer = Peer(self._serve, port=self.port)
            self._peer.__enter__()

    def stop(self) -> None:
        """Refuse them."""
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.stop()

    def _serve(self, connection: socket.socket) -> None:
        head = read_head(connection)
        if not head.startswith(f"GET {self.PATH} ".encode()):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            return
        with self._counted():
            time.sleep(self._answer_after_s)
            connection.sendall(b"HTTP/1.1 %d Status\r\nContent-Length: 0\r\n\r\n" % self.status)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        began = time.monotonic()
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1
                self.checks.append(Check(began, time.monotonic()))

    def gaps_s(self) -> list[float]:
        """Seconds from the beginning of each check to that of the next; of the last one to now."""
        began = [*(check.began for check in list(self.checks)), time.monotonic()]
        return [later - earlier for earlier, later in itertools.pairwise(began)]


class CheckedSite:
    """Workers of a web server that check hosts; a context manager that ends all of it.

    :param server: the server's command, less its address.
    :param pool: options of the one pool.
    """

    def __init__(
        self, ports: Ports, directory: Path, hosts: Sequence[CheckedHost], server: Sequence[str], **pool: Any
    ) -> None:
        self.hosts = {host.name: host for host in hosts}
        self.port = ports.reserve()
        self.store = f"sqlite://{directory}/store/upstreams.db"
        self.pools = {"primary": {**pool, "hosts": {host.name: host.options for host in hosts}}}
        self.upstream = Upstream(self.store)
        self.environment = {"E2E_STORE": self.store, "E2E_POOLS": json.dumps(self.pools)}
        self._directory = directory
        self._server = server
        self._stack = ExitStack()
        self.process: Process

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for host in self.hosts.values():
                stack.callback(host.stop)
                host.start()
            self.process = Process(
                [*self._server, f"--bind=127.0.0.1:{self.port}"]
                if "gunicorn" in self._server
                else [*self._server, "--host=127.0.0.1", f"--port={self.port}"],
                self.environment,
                self._directory / "server",
            )
            stack.callback(self.process.kill_group)
            stack.callback(self.upstream.store.close)
            wait_until_answers(self.process, self.port, "/state")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def start_run_checks(self) -> Process:
        """A process that is there to check."""
        config = self._directory / "upstreams.json"
        config.write_text(json.dumps({"default": {"store": self.store, "pools": self.pools}}))
        command = python("-m", "resty_upstream", "--config", config, "run-checks")
        process = Process(command, {}, self._directory / f"run-checks-{time.monotonic_ns()}")
        self._stack.callback(process.kill_group)
        return process

    def workers(self) -> set[int]:
        """The processes that serve."""
        pid = self.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def is_up(self, name: str) -> bool:
        """What the store says of a host."""
        return bool(self.upstream.get_pools()["primary"]["hosts"][name]["up"])

    def seen_by_a_worker(self) -> tuple[int, dict[str, bool]]:
        """A worker, and which hosts it takes to be up."""
        seen = get(self.port, "/state").json
        return int(seen["worker"]), seen["up"]

    def events_logged(self) -> int:
        """How often workers logged that a host went up or down."""
        printed = self.process.printed()
        return sum(printed.count(f"upstream.{event}:") for event in ("host_up", "host_down"))


def call(port: int) -> int:
    """The status of one call through the site."""
    with Client(port) as client:
        return client.get("/call").status


GUNICORN = python("-m", "gunicorn", "--keep-alive=0", "--graceful-timeout=5")
GTHREAD = [*GUNICORN, "--threads=4"]


def wait_until_checked(hosts: Sequence[CheckedHost], times: int = 1) -> None:
    """Wait until each host has been checked so many times from now on."""
    counts = [len(host.checks) for host in hosts]
    wait_until(
        lambda: all(len(host.checks) >= count + times for host, count in zip(hosts, counts, strict=True)),
        f"each host is checked {times} times",
    )


STOPPED, KILLED = signal.SIGSTOP, signal.SIGKILL
