"""Active checks by the workers of real servers: one of all checks, and goes on whatever happens to it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.checked import GTHREAD, GUNICORN, CheckedHost, CheckedSite, call, wait_until_checked
from tests.e2e.processes import Ports, Process, python, wait_until

INTERVAL_S = 1.0
CHAOS_S = float(os.environ.get("E2E_CHAOS_S", "8"))
"""How long processes are killed and stopped; two minutes find more."""

StartSite = Callable[..., CheckedSite]


@pytest.fixture
def start_checked(ports: Ports, tmp_path: Path) -> Iterator[StartSite]:
    """Starts a :class:`CheckedSite` with two hosts that is ended when the test is over."""
    with ExitStack() as stack:

        def start(server: list[str], *, answer_after_s: float = 0.0, **pool: Any) -> CheckedSite:
            hosts = [CheckedHost(name, ports.reserve(), answer_after_s=answer_after_s) for name in "ab"]
            return stack.enter_context(CheckedSite(ports, tmp_path, hosts, server, **pool))

        yield start


def checks(**options: Any) -> dict[str, Any]:
    """A health check that is made often."""
    return {"path": CheckedHost.PATH, "interval": INTERVAL_S, "interval_down": INTERVAL_S, **options}


UVICORN = python("-m", "uvicorn", "--log-level=warning", "tests.e2e.checked_app:asgi")


@pytest.mark.parametrize(
    "server",
    [
        pytest.param([*GUNICORN, "--workers=2", "tests.e2e.checked_app:wsgi"], id="gunicorn-sync"),
        pytest.param([*GTHREAD, "--workers=2", "tests.e2e.checked_app:wsgi"], id="gunicorn-gthread"),
        pytest.param([*GUNICORN, "--workers=2", "--preload", "tests.e2e.checked_app:wsgi"], id="gunicorn-preload"),
        pytest.param([*UVICORN, "--workers=2"], id="uvicorn"),
    ],
)
def test_workers_begin_to_check_at_the_first_request_and_end_in_order(
    start_checked: StartSite, server: list[str]
) -> None:
    """A host that goes away and comes back is found out without a call; SIGTERM ends it all within moments."""
    site = start_checked(server, healthcheck=checks(interval=0.3, interval_down=0.3, fall=2))
    a, b = site.hosts.values()
    wait_until_checked([a, b], 2)
    a.stop()
    wait_until(lambda: not site.is_up("a"), "a is down")
    a.start()
    wait_until(lambda: site.is_up("a"), "a is up again")
    began = time.monotonic()
    site.process.signal(signal.SIGTERM)
    assert site.process.wait() in (0, -signal.SIGTERM), site.process.printed()
    assert time.monotonic() - began < 5
    assert not site.upstream.store.holder("default", "checker"), "the lease was given back"
    assert "Traceback" not in site.process.printed()
    assert max(host.most_at_once for host in site.hosts.values()) == 1


def test_when_the_server_reloads_another_worker_goes_on(start_checked: StartSite) -> None:
    """SIGHUP replaces all workers of gunicorn; checks go on without a gap, never two at once."""
    site = start_checked(
        [*GUNICORN, "--workers=2", "tests.e2e.checked_app:wsgi"], answer_after_s=0.1, healthcheck=checks()
    )
    hosts = list(site.hosts.values())
    wait_until_checked(hosts)
    before = site.workers()
    site.process.signal(signal.SIGHUP)
    wait_until(lambda: site.workers() and not site.workers() & before, "all workers are new")
    call(site.port)
    wait_until_checked(hosts, 2)
    for host in hosts:
        assert max(host.gaps_s()) < 3 * INTERVAL_S
        assert host.most_at_once == 1


class Chaos:
    """Kills and stops the processes that may check; at least one of them is left at work."""

    def __init__(self, site: CheckedSite, seed: int) -> None:
        self._site = site
        self._random = random.Random(seed)
        self._stopped: dict[int, float] = {}
        self._run_checks: Process | None = site.start_run_checks()
        self.log: list[str] = []

    def step(self) -> None:
        """One random action."""
        self._let_go_on()
        action = self._random.choice(["worker", "worker", "run-checks"])
        how = self._random.choice([signal.SIGKILL, signal.SIGSTOP])
        if action == "run-checks":
            self._hit_run_checks(how)
            return
        at_work = sorted(self._site.workers() - self._stopped.keys())
        if len(at_work) > 1:
            pid = self._random.choice(at_work)
            self.log.append(f"{time.monotonic():.2f} {how.name} worker {pid}")
            self._send(pid, how)

    def _hit_run_checks(self, how: signal.Signals) -> None:
        process = self._run_checks
        if process is None or not process.running:
            self.log.append(f"{time.monotonic():.2f} start run-checks")
            self._run_checks = self._site.start_run_checks()
        elif process.pid not in self._stopped:
            self.log.append(f"{time.monotonic():.2f} {how.name} run-checks")
            self._send(process.pid, how)
            if how is signal.SIGKILL:
                process.kill()

    def _send(self, pid: int, how: signal.Signals) -> None:
        os.kill(pid, how)
        if how is signal.SIGSTOP:
            self._stopped[pid] = time.monotonic() + self._random.uniform(2, 5)

    def _let_go_on(self, *, all_of_them: bool = False) -> None:
        for pid, until in list(self._stopped.items()):
            if all_of_them or time.monotonic() > until:
                del self._stopped[pid]
                self.log.append(f"{time.monotonic():.2f} SIGCONT {pid}")
                os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        """Let everything run again."""
        self._let_go_on(all_of_them=True)


@pytest.mark.timeout(CHAOS_S + 120)
def test_checks_go_on_while_those_who_check_are_killed_and_stopped(start_checked: StartSite) -> None:
    """Never longer than three intervals without a check, never two at once, and all workers agree on the state."""
    seed = random.randrange(1_000_000)
    site = start_checked(
        [*GTHREAD, "--workers=3", "tests.e2e.checked_app:wsgi"],
        answer_after_s=0.15,
        healthcheck=checks(fall=1, rise=1),
        failed_timeout=600,
    )
    a, b = site.hosts.values()
    wait_until_checked([a, b])
    chaos = Chaos(site, seed)
    began = time.monotonic()
    try:
        while time.monotonic() < began + CHAOS_S:
            # An action may hit the one that has just taken over: its successor needs the time again.
            time.sleep(random.uniform(1.2, 2.5) * INTERVAL_S)
            a.status = 503 if a.status == 200 else 200
            chaos.step()
            assert_all_agree(site)
    finally:
        chaos.end()
    story = f"seed {seed}: {chaos.log}"
    for host in (a, b):
        assert host.most_at_once == 1, story
        assert min(host.gaps_s()[:-1]) > 0.5 * INTERVAL_S, story
        assert max(host.gaps_s()) < 3 * INTERVAL_S, (max(host.gaps_s()), host.gaps_s(), story)
    a.status = 200
    wait_until(lambda: site.is_up("a"), "a is up in the end")
    assert site.is_up("b")


def assert_all_agree(site: CheckedSite) -> None:
    """What workers see is what the store has, where that did not change meanwhile."""
    for _ in range(6):
        before = {name: site.is_up(name) for name in site.hosts}
        try:
            worker, seen = site.seen_by_a_worker()
        except OSError:
            continue  # that one was killed, or is stopped
        if before == {name: site.is_up(name) for name in site.hosts}:
            assert seen == before, f"worker {worker}"


@pytest.mark.timeout(CHAOS_S + 120)
def test_a_host_that_flaps_every_second_harms_nobody(start_checked: StartSite) -> None:
    """No call fails while the other is up; few transitions, each of which is one event and one record."""
    site = start_checked(
        [*GTHREAD, "--workers=2", "tests.e2e.checked_app:wsgi"],
        healthcheck=checks(interval=0.5, interval_down=0.5),
        timeout="1s",
    )
    a = site.hosts["a"]
    wait_until_checked(list(site.hosts.values()))
    statuses: list[int] = []
    over = threading.Event()

    def load() -> None:
        while not over.wait(0.02):
            statuses.append(call(site.port))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        flaps = int(CHAOS_S)
        for number in range(flaps):
            a.start() if number % 2 else a.stop()
            time.sleep(1)
        a.start()
        wait_until(lambda: site.is_up("a"), "a is up in the end")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert len(statuses) > 100
    transitions = site.upstream.history()
    assert 2 <= len(transitions) <= 2 * flaps
    assert {transition.host for transition in transitions} == {"a"}
    assert all(one.after == other.before for one, other in itertools.pairwise(transitions))
    assert site.events_logged() == len(transitions), site.process.printed()
