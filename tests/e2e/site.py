"""The example project in gunicorn, its back ends, and those who use it."""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resty_upstream import Upstream, UpstreamAPI
from tests.e2e.processes import (
    PATIENCE_S,
    Answer,
    Client,
    Ports,
    Process,
    get,
    python,
    wait_until,
    wait_until_answers,
)

NAMES = ("a", "b", "c")
GUNICORN_CONF = "example_project/gunicorn_conf.py"


class Backend:
    """A back end of the example, to be killed, stopped and brought back."""

    def __init__(self, name: str, port: int, directory: Path) -> None:
        self.name = name
        self.port = port
        self._output = directory / f"back-end-{name}"
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, or let it go on."""
        if self._process is not None and self._process.running:
            self._process.signal(signal.SIGCONT)
        else:
            command = python("-m", "example_project.backend", "--port", self.port, "--name", self.name)
            self._process = Process(command, {}, self._output)

    def wait_until_answers(self) -> None:
        assert self._process is not None
        wait_until_answers(self._process, self.port, "/stats")

    def kill(self) -> None:
        """SIGKILL: it refuses from now on."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        """SIGSTOP: the kernel completes its connections, and nobody answers."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)

    def end(self) -> None:
        if self._process is not None:
            self._process.end()

    def connections(self) -> int:
        """How many connections it has had, as it says itself."""
        return int(get(self.port, "/stats").json["connections"])


class Site:
    """The example in gunicorn on loopback, with its three back ends; a context manager that ends all of it.

    :param options: what gunicorn is given in addition.
    :param pool: options of both pools.
    """

    def __init__(
        self,
        ports: Ports,
        directory: Path,
        *,
        workers: int = 2,
        options: Sequence[str] = (),
        **pool: Any,
    ) -> None:
        self.port = ports.reserve()
        self.workers = workers
        self.store = f"sqlite://{directory}/store/upstreams.db"
        self.backends = {name: Backend(name, ports.reserve(), directory) for name in NAMES}
        self.upstream = Upstream(self.store)
        self.api = UpstreamAPI(self.upstream)
        self._options = options
        self.environment = {
            "DJANGO_SETTINGS_MODULE": "tests.e2e.settings",
            "EXAMPLE_STORE": self.store,
            "EXAMPLE_BACKEND_PORTS": ",".join(str(backend.port) for backend in self.backends.values()),
            "E2E_POOL": json.dumps(pool),
        }
        self._output = directory / "gunicorn"
        self.process: Process

    def __enter__(self) -> Site:
        try:
            for backend in self.backends.values():
                backend.start()
            for backend in self.backends.values():
                backend.wait_until_answers()
            gunicorn = python(
                "-m", "gunicorn", "-c", GUNICORN_CONF, f"--workers={self.workers}", "--keep-alive=60"
            )
            self.process = Process(
                [*gunicorn, f"--bind=127.0.0.1:{self.port}", *self._options], self.environment, self._output
            )
            wait_until_answers(self.process, self.port, "/raw")
            wait_until(lambda: len(self.pids()) == self.workers, "all workers run")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        if hasattr(self, "process"):
            self.process.kill_group()
        for backend in self.backends.values():
            backend.end()
        self.upstream.store.close()

    def pids(self) -> set[int]:
        """The workers."""
        pid = self.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def host(self, name: str) -> dict[str, Any]:
        """What the store says of a host."""
        pool = "dr" if name == "c" else "primary"
        host: dict[str, Any] = self.upstream.get_pools()[pool]["hosts"][name]
        return host

    def connect_to_each_worker(self) -> dict[int, Client]:
        """A kept connection to each worker, by its pid."""
        clients: dict[int, Client] = {}

        def complete() -> bool:
            client = Client(self.port)
            pid = int(ask(client).json["worker"])
            if clients.setdefault(pid, client) is not client:
                client.close()
            return clients.keys() == self.pids()

        wait_until(complete, "each worker has accepted a connection")
        return clients


def ask(client: Client) -> Answer:
    """One call through the site, which must be answered."""
    answer = client.get("/raw")
    assert answer.status == 200, answer
    return answer


def host_of(client: Client) -> str:
    """Which host answered one call."""
    return str(ask(client).json["host"])


class Result(NamedTuple):
    """One call of the load."""

    began: float
    """Seconds on the monotonic clock."""
    took_s: float
    status: int
    host: str
    worker: int
    said: str


class Load:
    """Steady calls of two views from several connections, until the end of the block or for a minute at most.

    A connection is kept for some calls, so that all workers get their part.
    """

    PAUSE_S = 0.01
    CALLS_PER_CONNECTION = 10
    LONGEST_S = 60.0

    def __init__(self, port: int, connections: int = 6) -> None:
        self._port = port
        self._stopping = threading.Event()
        self._results: list[list[Result]] = [[] for _ in range(connections)]
        self._threads = [
            threading.Thread(target=self._run, args=[results, path])
            for results, path in zip(self._results, itertools.cycle(["/raw", "/http", "/client"]))
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    @property
    def results(self) -> list[Result]:
        """All calls up to now, in the order in which they began."""
        return sorted(result for results in self._results for result in list(results))

    def failed(self) -> list[Result]:
        """The calls that were not answered with 200."""
        return [result for result in self.results if result.status != 200]

    def since(self, moment: float) -> list[Result]:
        """The calls that began after a moment of the monotonic clock."""
        return [result for result in self.results if result.began > moment]

    def wait_until_all_began_after_now(self) -> float:
        """Wait until every call that is under way now is over; the moment of "now"."""
        moment = time.monotonic()
        wait_until(
            lambda: all(results and results[-1].began > moment for results in self._results),
            "each connection has had another answer",
        )
        return moment

    def _run(self, results: list[Result], path: str) -> None:
        deadline = time.monotonic() + self.LONGEST_S
        with Client(self._port) as client:
            while not self._stopping.wait(self.PAUSE_S) and time.monotonic() < deadline:
                results.append(self._call(client, path))
                if len(results) % self.CALLS_PER_CONNECTION == 0:
                    client.close()

    def _call(self, client: Client, path: str) -> Result:
        began = time.monotonic()
        try:
            status, body, _ = client.get(path)
            said = json.loads(body)
            host, worker, text = said.get("host", ""), said["worker"], str(said)
        except (OSError, http.client.HTTPException, ValueError) as error:
            client.close()  # the next call connects again
            status, host, worker, text = 0, "", 0, repr(error)
        return Result(began, time.monotonic() - began, status, host, worker, text)
