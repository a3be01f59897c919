"""Hosts that are processes of their own, killed while they are used."""

from __future__ import annotations

import contextlib
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
from tests.http.clients import CLIENTS, Client, Opened

KILLS = int(os.environ.get("E2E_KILLS", "2"))
RATE = 500
THREADS = 5


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

    def stop(self) -> None:
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
            stack.callback(host.stop)
            host.start()
        yield found


def upstream_of(hosts: list[Host]) -> Upstream:
    pool = {
        "max_fails": 2,
        "failed_timeout": 0.2,
        "hosts": {host.name: {"host": "127.0.0.1", "port": host.port} for host in hosts},
    }
    return Upstream("memory://", pools={"p": pool})


class Load:
    """Requests at a steady rate from several threads, while the context lasts."""

    def __init__(self, client: Client, method: str) -> None:
        self._client = client
        self._method = method
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(THREADS)]
        self.answered: Counter[str] = Counter()
        self.failed: list[BaseException] = []
        self.asked = 0

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
        before = self.answered[name]
        wait_until(lambda: self.answered[name] > before, f"{name} is used again")

    def _ask(self, thread: int) -> None:
        number, began = 0, time.monotonic()
        while not self._over.is_set():
            number += 1
            try:
                reply = self._client.request(self._method, f"/{thread}-{number}")
                assert reply.status == 200
                self.answered[reply.host] += 1
            except Exception as error:
                self.failed.append(error)
            self._over.wait(max(0, began + number * THREADS / RATE - time.monotonic()))
        self.asked += number


@pytest.fixture(params=[name for name in CLIENTS if "async" not in name and name != "aiohttp"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Those that threads may share."""
    return CLIENTS[request.param]


def kill_at_random(hosts: list[Host], load: Load) -> None:
    random = Random()
    for _ in range(KILLS):
        host = random.choice(hosts)
        time.sleep(random.uniform(0.05, 0.3))
        host.kill()
        time.sleep(random.uniform(0.05, 0.3))
        host.start()
        load.wait_for(host.name)


def test_no_request_fails_that_may_be_repeated(opened: Opened, three: list[Host]) -> None:
    upstream = upstream_of(three)
    with opened(upstream) as client, Load(client, "GET") as load:
        kill_at_random(three, load)
    assert not load.failed
    assert load.answered.total() == load.asked > 100 * KILLS


def test_none_is_delivered_twice_that_may_not_be_repeated(opened: Opened, three: list[Host]) -> None:
    """As the hosts count them; some fail, and each of those with an error."""
    upstream = upstream_of(three)
    with opened(upstream) as client, Load(client, "POST") as load:
        kill_at_random(three, load)
    delivered = Counter(path for host in three for path in host.paths())
    assert max(delivered.values()) == 1
    assert load.answered.total() + len(load.failed) == load.asked
    assert len(load.failed) <= THREADS * KILLS
    assert all(isinstance(error, client.error) for error in load.failed)
