"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.e2e.processes import PATIENCE_S, Ports, Process, get, python, wait_until
from tests.e2e.site import Backend


class Demo:
    """A running demo, and what it printed."""

    def __init__(self, ports: Ports, directory: Path, **environment: str) -> None:
        self.directory = directory / "temporary"
        self.directory.mkdir()
        self.backend_port = ports.reserve()
        backends = ",".join(str(port) for port in (self.backend_port, ports.reserve(), ports.reserve()))
        self.process = Process(
            python("-m", "example_project.demo", "--port", ports.reserve()),
            {
                "EXAMPLE_BACKEND_PORTS": backends,
                "EXAMPLE_REDIS_PORTS": f"{ports.reserve()},{ports.reserve()}",
                "TMPDIR": str(self.directory),
                "EXAMPLE_STORE": "",
                **environment,
            },
            directory / "printed",
        )

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed something."""

        def find() -> re.Match[str] | None:
            return re.search(pattern, self.process.printed())

        wait_until(lambda: find() or not self.process.running, f"{pattern!r} in what it prints")
        found = find()
        assert found, f"no {pattern!r} in:\n{self.process.printed()}"
        return found

    def hosts_on_the_status_page(self) -> set[str]:
        """Those of the upstream default, as who has the printed token sees them."""
        token = self.wait_for(r"the token (\w{16})\)")[1]
        headers = {"Authorization": f"Bearer {token}"}
        with urlopen(Request(f"http://127.0.0.1:{self.port}/upstreams/status.json", headers=headers)) as answer:
            (default, *_) = json.load(answer)["upstreams"]
        return {host["id"] for pool in default["pools"] for host in pool["hosts"]}

    def call(self) -> str:
        """The host that answers a call, which must not fail."""
        answer = get(self.port, "/raw")
        assert answer.status == 200, answer
        return str(answer.json["host"])

    def visit(self) -> dict[str, Any]:
        """What is said of a visit that Redis counts, which must not fail."""
        answer = get(self.port, "/count")
        assert answer.status == 200, answer
        return dict(answer.json)

    def kill(self, title: str) -> None:
        """SIGKILL for what it started, as it prints how, and wait until it has noticed the end."""
        os.kill(self.pid_of(title), signal.SIGKILL)
        self.wait_for(rf"{title} \(pid \d+\) has ended: killed by SIGKILL")

    def end(self) -> None:
        """Ctrl-C: all that it started ends, and nothing is left."""
        started = children_of(self.process.pid)
        self.process.signal(signal.SIGINT)
        assert self.process.wait() == 0, self.process.printed()
        assert "Stopped" in self.process.printed()
        assert "Traceback" not in self.process.printed()
        wait_until(lambda: not any(map(runs, started)), "all that it started has ended")
        assert list(self.directory.iterdir()) == []

    @property
    def port(self) -> int:
        """Where the site is, as printed."""
        return int(self.wait_for(r"http://127\.0\.0\.1:(\d+)")[1])

    def pid_of(self, title: str) -> int:
        """A process, as printed."""
        return int(self.wait_for(rf"{title}: pid (\d+)")[1])


@pytest.fixture
def demo(ports: Ports, tmp_path: Path) -> Iterator[Demo]:
    """A demo that is ended when the test is over."""
    demo = Demo(ports, tmp_path)
    with demo.process:
        demo.wait_for("What happens to the hosts")
        yield demo


def children_of(pid: int) -> list[int]:
    """All descendants of a process."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [descendant for child in children for descendant in children_of(child)]


def runs(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def test_the_demo_shows_fail_over_and_leaves_nothing_behind(demo: Demo, tmp_path: Path) -> None:
    """Address, answers, a back end killed by the printed pid and started again, down and up, Ctrl-C."""
    started = children_of(demo.process.pid)
    titles = ["back end a", "back end b", "back end c", "Redis r1", "Redis r2", "the site"]
    assert set(map(demo.pid_of, titles)) <= set(started)
    assert {demo.call() for _ in range(10)} == {"a", "b"}
    assert b"primary" in get(demo.port, "/").body

    os.kill(demo.pid_of("back end a"), signal.SIGKILL)
    wait_until(
        lambda: demo.call() and "host primary/a is down" in demo.process.printed(), "the demo tells of the failure"
    )
    demo.wait_for(r"back end a \(pid \d+\) has ended: killed by SIGKILL")
    assert {demo.call() for _ in range(4)} == {"b"}

    again = Backend("a", demo.backend_port, tmp_path)
    again.start()
    try:
        again.wait_until_answers()
        wait_until(lambda: demo.call() == "a", "a is probed and back")
        demo.wait_for("host primary/a is up")

        change_host(demo, "down-host")
        assert {demo.call() for _ in range(4)} == {"a"}
        demo.wait_for("host primary/b is down by hand")
        change_host(demo, "up-host")
        assert {demo.call() for _ in range(8)} == {"a", "b"}
        demo.wait_for("host primary/b is up")

        assert demo.hosts_on_the_status_page() == {"a", "b", "c"}
        demo.end()
        again.wait_until_answers()  # what others started is not the demo's to end
    finally:
        again.end()


def test_visits_are_counted_by_the_redis_that_is_left(demo: Demo, tmp_path: Path) -> None:
    """Either server killed by the printed pid, one started again by the printed command, and then none left."""
    assert b"/cache" in get(demo.port, "/").body
    assert counting(demo) == ("r1", demo.pid_of("Redis r1"))

    demo.kill("Redis r1")
    assert counting(demo) == ("r2", demo.pid_of("Redis r2"))
    wait_until(lambda: b'class="failed"' in get(demo.port, "/cache").body, "the page shows that r1 has failed")

    with Process(shlex.split(demo.wait_for(r"(redis-server --port .*) &")[1]), {}, tmp_path / "again") as again:
        demo.wait_for("host redis/r1 is up")
        demo.kill("Redis r2")
        assert counting(demo) == ("r1", again.pid)
        demo.wait_for("host standby/r2 is down")
        again.kill()

    for path in ("/count", "/cache"):
        answer = get(demo.port, path)
        assert answer.status == 504, answer
        assert b"redis/r1" in answer.body
        assert b"standby/r2" in answer.body
    assert {demo.call() for _ in range(4)} == {"a", "b"}  # the other upstream goes on
    demo.end()


def counting(demo: Demo) -> tuple[str, int]:
    """Which server counts some visits, all of them, from 1; the page says how to kill it."""
    visits = [demo.visit() for _ in range(6)]
    assert [visit["number"] for visit in visits] == [1, 2, 3, 4, 5, 6]
    ((host, pid),) = {(visit["host"], visit["pid"]) for visit in visits}
    assert f"kill -9 {pid}".encode() in get(demo.port, "/cache").body
    return host, pid


def test_a_redis_that_is_stopped_costs_one_visit_of_a_worker(demo: Demo) -> None:
    """What was sent to it may have been counted and is not sent again; the worker goes on at the other server."""
    worker = demo.visit()["worker"]
    os.kill(demo.pid_of("Redis r1"), signal.SIGSTOP)
    demo.wait_for("host redis/r1 is down")
    answers = []

    def went_on() -> bool:
        answers.append(get(demo.port, "/count"))
        return answers[-1].status == 200 and answers[-1].json["worker"] == worker

    wait_until(went_on, "the worker goes on")
    (lost,) = [answer for answer in answers if answer.status != 200]
    assert (lost.status, lost.json["worker"]) == (504, worker)
    assert {answer.json["host"] for answer in answers if answer is not lost} == {"r2"}
    os.kill(demo.pid_of("Redis r1"), signal.SIGCONT)
    demo.wait_for("host redis/r1 is up")


def test_without_redis_the_demo_says_what_is_missing_and_goes_on(ports: Ports, tmp_path: Path) -> None:
    demo = Demo(ports, tmp_path, PATH=str(tmp_path))
    with demo.process:
        demo.wait_for("What happens to the hosts")
        assert "There is no redis-server on this machine" in demo.process.printed()
        assert "apt-get install redis-server" in demo.process.printed()
        assert {demo.call() for _ in range(4)} == {"a", "b"}
        assert b"/cache" not in get(demo.port, "/").body
        assert {get(demo.port, path).status for path in ("/cache", "/count")} == {404}
        demo.end()


def change_host(demo: Demo, verb: str) -> None:
    """What the demo printed for host b, in another process: first where to be, then the command."""
    printed = [line.strip() for line in demo.process.printed().splitlines()]
    setting = [line for line in printed if line.startswith(("cd ", "export "))]
    (command,) = [line for line in printed if f" upstream {verb} primary b" in line]
    subprocess.run(["/bin/sh", "-ec", "\n".join([*setting, command])], cwd="/", check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_demo_ends_in_order_at_other_signals_too(demo: Demo, number: signal.Signals) -> None:
    """A closed terminal, or a service manager; also with a back end that is stopped."""
    started = children_of(demo.process.pid)
    os.kill(demo.pid_of("back end b"), signal.SIGSTOP)
    demo.process.signal(number)
    assert demo.process.wait() == 0, demo.process.printed()
    wait_until(lambda: not any(map(runs, started)), "all that it started has ended")
    assert list(demo.directory.iterdir()) == []
