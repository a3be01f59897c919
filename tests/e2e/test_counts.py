"""Counters of real workers: true sums, however the workers end."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from resty_upstream import Upstream
from tests.e2e.processes import Client, Ports, Process, python, wait_until, wait_until_answers

WORKERS = 4
REQUESTS = int(os.environ.get("E2E_COUNTS_REQUESTS", "1000"))
"""For each worker."""
KILLS = 6
CONNECTIONS = 8
SLOWEST_PER_S = 100
"""Requests of all connections together, on a machine that does much else."""

GUNICORN = python("-m", "gunicorn", "tests.e2e.counted_app:application", f"--workers={WORKERS}", "--threads=4")


class Site:
    """Gunicorn with an application that counts, and an upstream that looks on."""

    def __init__(self, port: int, directory: Path, *options: str, **environment: str) -> None:
        store = f"sqlite://{directory}/store/upstreams.db"
        self.port = port
        self.files = directory / "store"
        self.upstream = Upstream(store)
        self.process = Process(
            [*GUNICORN, f"--bind=127.0.0.1:{port}", *options],
            {"E2E_STORE": store, **environment},
            directory / "gunicorn",
        )

    def pids(self) -> list[int]:
        """The workers."""
        pid = self.process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def numbers(self) -> dict[str, int]:
        """What is counted of all hosts together."""
        hosts = self.upstream.counts().hosts.values()
        return {
            "successes": sum(counted.successes for counted in hosts),
            "refused": sum(counted.failures["refused"] for counted in hosts),
            "retries": sum(counted.retries for counted in hosts),
            "in flight": sum(counted.in_flight for counted in hosts),
            "others": sum(c.ignored + sum(c.failures.values()) - c.failures["refused"] for c in hosts),
        }


@pytest.fixture
def start_site(ports: Ports, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def start(*options: str, **environment: str) -> Site:
            site = Site(ports.reserve(), tmp_path, *options, **environment)
            stack.callback(site.upstream.close)
            stack.callback(site.process.kill_group)
            wait_until_answers(site.process, site.port, "/")
            wait_until(lambda: len(site.pids()) == WORKERS, "all workers run")
            return site

        yield start


class Load:
    """So many requests from several connections, of which every tenth is one that is tried twice."""

    def __init__(self, port: int, requests: int) -> None:
        self._port = port
        self.sent: Counter[str] = Counter()
        self.answered: Counter[tuple[str, int]] = Counter()
        """By path and worker."""
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=[range(number, requests, CONNECTIONS)])
            for number in range(CONNECTIONS)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def runs(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def total(self, path: str | None = None) -> int:
        """The requests that were answered."""
        with self._lock:
            return sum(times for (of_path, _), times in self.answered.items() if path in (None, of_path))

    def _run(self, numbers: range) -> None:
        with Client(self._port) as client:
            for number in numbers:
                self._ask(client, "/retry" if number % 10 == 0 else "/")
                if number // CONNECTIONS % 50 == 0:
                    client.close()  # the next one may be to another worker

    def _ask(self, client: Client, path: str) -> None:
        with self._lock:
            self.sent[path] += 1
        try:
            answer = client.get(path)
        except (OSError, http.client.HTTPException):
            client.close()  # of a worker that was killed
            return
        assert answer.status == 200, answer
        with self._lock:
            self.answered[path, int(answer.body)] += 1


def assert_true(found: dict[str, int], load: Load, before: dict[str, int]) -> None:
    """All that was answered is counted, also by workers that were killed later, and nothing that was not sent."""
    counted = {name: number - before[name] for name, number in found.items()}
    assert load.total() <= counted["successes"] <= load.sent.total()
    assert load.total("/retry") <= counted["refused"] <= load.sent["/retry"]
    assert load.total("/retry") <= counted["retries"] <= counted["refused"]
    assert counted["others"] == 0


# How the workers come to have the application, and a store that is open
APPLICATIONS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "imported by each worker": ((), {}),
    "used before the fork": (("--preload",), {"E2E_USED_BEFORE_FORK": "1"}),
}


@pytest.mark.parametrize(("options", "environment"), APPLICATIONS.values(), ids=APPLICATIONS)
def test_while_workers_are_killed_all_that_is_answered_is_counted_and_no_more_than_was_sent(
    start_site: Callable[..., Site], options: tuple[str, ...], environment: dict[str, str]
) -> None:
    site = start_site(*options, **environment)
    before, random, last = site.numbers(), Random(1), 0
    total = WORKERS * REQUESTS
    deadline = time.monotonic() + total / SLOWEST_PER_S
    killed = 0
    with Load(site.port, total) as load:
        while load.runs:
            assert time.monotonic() < deadline, f"{load.total()} of {total} requests were answered"
            found = site.numbers()
            assert found["successes"] >= last  # whoever ends and takes over: sums go up
            last = found["successes"]
            if killed < KILLS and load.sent.total() > total * (killed + 1) / (KILLS + 1):
                os.kill(random.choice(site.pids()), signal.SIGKILL)
                killed += 1
            time.sleep(0.01)
    assert killed == KILLS
    wait_until(lambda: site.numbers()["in flight"] == 0, "nothing is under way")
    print(f"sent {load.sent.total()}, answered {load.total()}, counted", site.numbers(), "before", before)
    assert_true(site.numbers(), load, before)
    # One more where a look and a start met; the master has one where it used the upstream.
    assert len(list(site.files.glob("*.counts.*"))) <= WORKERS + len(environment) + 1


def reload(site: Site) -> None:
    """``kill -HUP``; returns when all workers are new."""
    old = set(site.pids())
    site.process.signal(signal.SIGHUP)
    wait_until(lambda: not old & set(site.pids()) and len(site.pids()) == WORKERS, "all workers are new")


def test_after_reloads_the_sums_are_exact(start_site: Callable[..., Site]) -> None:
    """The old workers end in order, having answered all."""
    site = start_site("--graceful-timeout=5")
    before = site.numbers()
    for _ in range(2):
        with Load(site.port, 200) as load:
            pass
        assert load.total() == load.sent.total() == 200
        reload(site)
    found = site.numbers()
    assert found["successes"] - before["successes"] == 400
    assert found["refused"] - before["refused"] == found["retries"] - before["retries"] == 40
    assert found["in flight"] == 0
