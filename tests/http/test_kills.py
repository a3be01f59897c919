"""Hosts that are processes of their own, killed and stopped while they are used."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from resty_upstream import Upstream
from tests.e2e.processes import Ports, Process, python, wait_until
from tests.http.clients import CLIENTS, AsyncClient, Client, Opened, Reply

log = logging.getLogger(__name__)  # figures, with --log-cli-level=INFO
KILLS = int(os.environ.get("E2E_KILLS", "1"))
RATE = 500
TIMEOUT_S = 10


class Host:
    """A server process on a port that stays."""

    def __init__(self, name: str, port: int, directory: Path) -> None:
        self.name = name
        self.port = port
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._logs: list[Path] = []

    def start(self) -> None:
        log = self._directory / f"{self.name}-{len(self._logs)}"
        self._logs.append(log)
        command = python("-m", "tests.http.server", str(self.port), self.name)
        self.process = self._stack.enter_context(Process(command, {}, log))
        wait_until(lambda: "ready" in self.process.printed(), f"{self.name} serves")

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)
        self.process.wait()

    def suspend(self) -> None:
        """The kernel goes on accepting connections, and nobody answers."""
        self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It answers what has come in the meantime."""
        self.process.signal(signal.SIGCONT)

    def end(self) -> None:
        self._stack.close()

    def paths(self) -> list[str]:
        """Of all requests that reached it, in all its lives."""
        return [line for log in self._logs for line in log.read_text().split() if line.startswith("/")]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Host]]:
    ports = Ports()
    found = [Host(name, ports.reserve(), tmp_path) for name in "abc"]
    with contextlib.ExitStack() as stack:
        stack.callback(ports.release)
        for host in found:
            stack.callback(host.end)
            host.start()
        yield found


def upstream_of(hosts: list[Host]) -> Upstream:
    pool = {
        "max_fails": 2,
        "failed_timeout": 0.2,
        "read_timeout": 300,
        "hosts": {host.name: {"host": "127.0.0.1", "port": host.port} for host in hosts},
    }
    return Upstream("memory://", pools={"p": pool}, total_timeout=f"{TIMEOUT_S}s")


class Load:
    """Requests at a steady rate, while the context lasts: from several threads, or many tasks of an event loop."""

    def __init__(self, client: Client, method: str) -> None:
        self._client = client
        self._method = method
        self._over = threading.Event()
        if isinstance(client, AsyncClient):
            self.at_once = 20
            self._threads = [threading.Thread(target=self._run_tasks, args=(client,))]
        else:
            self.at_once = 5
            self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(self.at_once)]
        self.asked: list[str] = []
        """Paths, each its own."""
        self.answered: list[str] = []
        """By which hosts."""
        self.failed: list[BaseException] = []
        self.longest_s = 0.0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, name: str) -> None:
        """Until a host answers that did not."""
        before = self.answered.count(name)
        wait_until(lambda: self.answered.count(name) > before, f"{name} is used again")

    def __str__(self) -> str:
        figures = f"{len(self.asked)} asked, {len(self.failed)} failed, the longest took {self.longest_s:.2f} s"
        return f"{KILLS} kills: {self._method}: {figures}"

    def _ask(self, thread: int) -> None:
        for path, due in self._turns(thread):
            with self._noted(path):
                self._note(self._client.request(self._method, path))
            self._over.wait(max(0, due - time.monotonic()))

    def _run_tasks(self, client: AsyncClient) -> None:
        async def ask(task: int) -> None:
            for path, due in self._turns(task):
                with self._noted(path):
                    self._note(await client.arequest(self._method, path))
                await asyncio.sleep(max(0, due - time.monotonic()))

        async def all_of_them() -> None:
            await asyncio.gather(*map(ask, range(self.at_once)))

        client.run(all_of_them())

    def _turns(self, asker: int) -> Iterator[tuple[str, float]]:
        """What to ask for, and when it is time for the next."""
        began = time.monotonic()
        for number in itertools.count(1):
            if self._over.is_set():
                return
            yield f"/{asker}-{number}", began + number * self.at_once / RATE

    def _note(self, reply: Reply) -> None:
        assert reply.status == 200
        self.answered.append(reply.host)

    @contextlib.contextmanager
    def _noted(self, path: str) -> Iterator[None]:
        began = time.monotonic()
        self.asked.append(path)
        try:
            yield
        except Exception as error:
            self.failed.append(error)
        self.longest_s = max(self.longest_s, time.monotonic() - began)


@pytest.fixture(params=CLIENTS)
def opened(request: pytest.FixtureRequest) -> Opened:
    return CLIENTS[request.param]


def trouble_at_random(upstream: Upstream, hosts: list[Host], load: Load) -> None:
    """Kill one, bring it back, stop one until it is out, and let it go on; as often as is asked for."""
    random = Random()
    for _ in range(KILLS):
        host = random.choice(hosts)
        time.sleep(random.uniform(0.05, 0.3))
        host.kill()
        time.sleep(random.uniform(0.05, 0.3))
        host.start()
        load.wait_for(host.name)
        host = random.choice(hosts)
        host.suspend()
        wait_until(lambda name=host.name: not is_up(upstream, name), f"{host.name} is out")
        time.sleep(random.uniform(0.05, 0.3))
        host.resume()
        load.wait_for(host.name)


def is_up(upstream: Upstream, name: str) -> bool:
    return bool(upstream.get_pools()["p"]["hosts"][name]["up"])


def test_no_request_fails_that_may_be_repeated(opened: Opened, three: list[Host]) -> None:
    """And each has its answer in time, also while a host accepts and never answers."""
    upstream = upstream_of(three)
    with opened(upstream) as client, Load(client, "GET") as load:
        trouble_at_random(upstream, three, load)
    log.info("%s", load)
    assert not load.failed
    assert len(load.answered) == len(load.asked) > 100 * KILLS
    assert load.longest_s < TIMEOUT_S


def test_none_is_delivered_twice_that_may_not_be_repeated(opened: Opened, three: list[Host]) -> None:
    """As the hosts count them; some fail, and each of those with an error."""
    upstream = upstream_of(three)
    with opened(upstream) as client, Load(client, "POST") as load:
        trouble_at_random(upstream, three, load)
    delivered = Counter(path for host in three for path in host.paths())
    log.info("%s; %d delivered, one of them %d times", load, delivered.total(), max(delivered.values()))
    assert max(delivered.values()) == 1
    assert set(delivered) <= set(load.asked)
    assert len(load.answered) + len(load.failed) == len(load.asked) > 100 * KILLS
    assert len(load.failed) <= 3 * load.at_once * KILLS
    assert all(isinstance(error, client.error) for error in load.failed)
