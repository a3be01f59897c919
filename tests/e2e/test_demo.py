"""The demo, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import PATIENCE_S, Ports, Process, get, python, wait_until
from tests.e2e.site import Backend


class Demo:
    """A running demo, and what it printed."""

    def __init__(self, ports: Ports, directory: Path) -> None:
        self.directory = directory / "temporary"
        self.directory.mkdir()
        self.backend_port = ports.reserve()
        backends = ",".join(str(port) for port in (self.backend_port, ports.reserve(), ports.reserve()))
        self.process = Process(
            python("-m", "example_project.demo", "--port", ports.reserve()),
            {"EXAMPLE_BACKEND_PORTS": backends, "TMPDIR": str(self.directory), "EXAMPLE_STORE": ""},
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

    def call(self) -> str:
        """The host that answers a call, which must not fail."""
        answer = get(self.port, "/raw")
        assert answer.status == 200, answer
        return str(answer.json["host"])

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
    assert {demo.pid_of(f"back end {name}") for name in "abc"} | {demo.pid_of("the site")} <= set(started)
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
        demo.wait_for("host primary/b is down: by hand")
        change_host(demo, "up-host")
        assert {demo.call() for _ in range(8)} == {"a", "b"}
        demo.wait_for("host primary/b is up")

        demo.process.signal(signal.SIGINT)
        assert demo.process.wait() == 0, demo.process.printed()
        assert "Stopped" in demo.process.printed()
        assert "Traceback" not in demo.process.printed()
        wait_until(lambda: not any(map(runs, started)), "all that it started has ended")
        assert list(demo.directory.iterdir()) == []
        again.wait_until_answers()  # what others started is not the demo's to end
    finally:
        again.end()


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
