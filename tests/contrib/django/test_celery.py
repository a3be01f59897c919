"""``get_upstream`` in the tasks of a real Celery worker."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from celery import Celery

from resty_upstream import Upstream, UpstreamAPI
from tests.contrib.bed.sites import Gate, Journal
from tests.e2e.processes import Process, python

APP = "tests.contrib.django.celery_project.app"
PREFORK = ("--pool=prefork", "--concurrency=2")
THREADS = ("--pool=threads", "--concurrency=2")

_numbers = itertools.count(1)


class Task:
    """A task that waits at its gate before it is over."""

    def __init__(self, name: str, gate: Gate, journal: Journal) -> None:
        self.name = name
        self._gate = gate
        self._journal = journal

    def wait_until_at_gate(self) -> None:
        self._gate.wait_until_reached()
        self._journal.wait_for("is at the gate", self.name)

    def finish(self) -> None:
        self._gate.open()
        self._journal.wait_for("is over", self.name)

    @property
    def pid(self) -> int:
        return int(self._said("process"))

    @property
    def tried(self) -> str:
        """The hosts that it tried."""
        return self._said("tries")

    def _said(self, what: str) -> str:
        (said,) = [event for event in self._journal.of(self.name) if event.startswith(what)]
        return said.removeprefix(what).strip()


class Worker:
    """A Celery worker, whose broker is a directory, and this process's view of the store that its tasks use."""

    def __init__(self, directory: Path, environment: dict[str, str], journal: Journal, name: str) -> None:
        self._queue, self._written = directory / "queue", directory / "written"
        for folder in (self._queue, self._written):
            folder.mkdir()
        self.upstream = Upstream(f"sqlite://{directory}/store/upstreams.db", id="cache")
        self._name = name
        self._directory = directory
        self._journal = journal
        self._gates = ExitStack()
        self._environment = {
            **environment,
            "SITE_NAME": name,
            "SITE_STORE": f"sqlite://{directory}/store/upstreams.db",
            "SITE_QUEUE": str(self._queue),
        }
        folders = {
            "data_folder_in": str(self._queue),
            "data_folder_out": str(self._written),
            "control_folder": str(directory / "control"),
        }
        self._celery = Celery(broker="filesystem://", broker_transport_options=folders, set_as_current=False)

    def start(self, *options: str, **environment: str) -> None:
        command = python(
            "-m", "celery", "--app", APP, "worker", "--loglevel=warning", "--without-mingle", *options
        )
        self._process = Process(command, {**self._environment, **environment}, self._directory / "worker")

    def close(self) -> None:
        self._gates.close()
        self._celery.close()
        self._process.kill_group()  # in order it would take seconds
        self.upstream.close()

    def call(self) -> Task:
        """A task that calls the upstream, and has done so."""
        gate = self._gates.enter_context(Gate())
        task = Task(f"{self._name}, task {next(_numbers)}", gate, self._journal)
        self._celery.send_task(f"{APP}.call", [task.name, gate.port])
        for message in self._written.iterdir():
            message.rename(self._queue / message.name)  # whole: the broker also reads what is being written
        task.wait_until_at_gate()
        return task

    def heard_down(self) -> list[str]:
        """The processes that heard the signal."""
        return self._journal.of(f"host_down of {self._name}")

    @property
    def dead_is_up(self) -> bool:
        return bool(self.upstream.get_pools()["primary"]["hosts"]["dead"]["up"])


@pytest.fixture
def worker(tmp_path: Path, environment: dict[str, str], journal: Journal, name: str) -> Iterator[Worker]:
    worker = Worker(tmp_path, environment, journal, name)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("options", "uses_at_import"),
    [(PREFORK, False), (PREFORK, True), (THREADS, False)],
    ids=["prefork", "prefork, used before the fork", "threads"],
)
def test_what_a_task_learns_all_processes_know(
    worker: Worker, options: tuple[str, ...], uses_at_import: bool
) -> None:
    """At the end of the task: the other processes of the worker, and that of the web server."""
    worker.start(*options, **({"SITE_USES_AT_IMPORT": "1"} if uses_at_import else {}))
    first = worker.call()
    assert first.tried == "dead alive"
    assert worker.dead_is_up
    second = worker.call()  # in the other process, which has not heard of it
    assert second.tried == "dead alive"
    first.finish()
    assert not worker.dead_is_up
    assert worker.heard_down() == [f"process {first.pid}"]

    third = worker.call()
    second.finish()
    fourth = worker.call()
    assert {third.pid, fourth.pid} == {first.pid, second.pid}
    assert (first.pid == second.pid) == (options is THREADS)
    assert (third.tried, fourth.tried) == ("alive", "alive")
    third.finish()
    fourth.finish()
    assert worker.heard_down() == [f"process {first.pid}"]


def test_a_child_that_is_killed_harms_nobody(worker: Worker) -> None:
    """What it did not tell is lost with it; its successor, the other child and the web server go on."""
    worker.start(*PREFORK)
    killed, other = worker.call(), worker.call()
    os.kill(killed.pid, signal.SIGKILL)
    successor = worker.call()
    assert successor.pid not in (killed.pid, other.pid)
    assert worker.dead_is_up
    assert successor.tried == "dead alive"
    UpstreamAPI(worker.upstream).down_host("primary", "dead")
    other.finish()
    after = worker.call()
    assert after.pid == other.pid
    assert after.tried == "alive"
    after.finish()
    successor.finish()
    assert worker.heard_down() == []
