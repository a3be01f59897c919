"""What the tests of stores share: worker processes, bounded waiting, a look into the files."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from resty_upstream import Upstream
from resty_upstream.stores import View

WAIT_S = 20.0
"""The bound of every wait for something that should happen soon; a loaded machine is no failure."""
A_SECOND = 1.01
"""After this long on the store's clock whatever the doorbell did not tell must be known."""

_ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
    """Return as soon as ``condition()`` is true; fail when it does not become so in time."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        pause.wait(0.002)


class WorkerError(Exception):
    """What a worker was told to do raised this."""


class Worker:
    """Another process with a store, that runs Python source; see :mod:`tests.stores.worker`."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.worker", path],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that what it forks ends with it
        )
        self.pid = self._process.pid
        self._data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def run(self, source: str, within_s: float = WAIT_S) -> Any:
        """Run ``source`` there: the value of its last expression."""
        self.begin(source)
        return self.result(within_s)

    def begin(self, source: str) -> None:
        """Have ``source`` run without waiting for its end."""
        self.tell(source)

    def tell(self, word: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word).encode() + b"\n")
        self._process.stdin.flush()

    def result(self, within_s: float = WAIT_S) -> Any:
        """The value of what was begun."""
        answer = self._answer(within_s)
        if "error" in answer:
            print(answer.get("traceback", ""), file=sys.stderr)
            raise WorkerError(answer["error"])
        return answer["value"]

    def said(self, within_s: float = WAIT_S) -> Any:
        """The word that the worker says next."""
        answer = self._answer(within_s)
        assert "said" in answer, f"a word was expected, not {answer}"
        return answer["said"]

    def has_answered(self) -> bool:
        """Whether a result or a word is there, or the process is at its end."""
        return b"\n" in self._data or bool(select.select([self._process.stdout], [], [], 0)[0])

    def ended(self) -> int | None:
        """The exit status, below 0 a signal's number; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """SIGSTOP; returns when the process has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, for its children too; returns when the process is gone."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(WAIT_S)

    def _answer(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + within_s
        while b"\n" not in self._data:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
                raise AssertionError(f"no answer of worker {self.pid} within {within_s:g} s")
            chunk = os.read(self._process.stdout.fileno(), 65_536)
            if not chunk:
                raise AssertionError(f"worker {self.pid} ended with status {self._process.wait(WAIT_S)}")
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


# ── transactions ──────────────────────────────────────────────────────────────────────────────


def touch(view: View) -> None:
    """A transaction that changes routing and nothing else."""
    view.touch()


def putting(**records: bytes) -> Callable[[View], None]:
    """A transaction that writes records and changes routing."""

    def work(view: View) -> None:
        for key, data in records.items():
            view.put(key, data)
        view.touch()

    return work


def add_one(*keys: str) -> Callable[[View], None]:
    """A transaction that counts under each of the keys."""

    def count(view: View) -> None:
        for key in keys:
            view.put(key, b"%d" % (int(view.get(key) or 0) + 1))
        view.touch()

    return count


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Run ``work(number)`` in that many threads; the first error is raised."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT_S)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


# ── the files ─────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def other_connection(path: str) -> Iterator[sqlite3.Connection]:
    """A connection of someone who does not know of the doorbell."""
    db = sqlite3.connect(path, isolation_level=None, timeout=WAIT_S)
    try:
        yield db
    finally:
        db.close()


@contextlib.contextmanager
def held_by_another(path: str) -> Iterator[None]:
    """Inside, another connection is in the middle of a write."""
    with other_connection(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


def integrity(path: str) -> str:
    """What SQLite's own check says of the file."""
    with other_connection(path) as db:
        return str(db.execute("PRAGMA integrity_check").fetchone()[0])


def all_into_one_file(path: str) -> None:
    """Move what is in the -wal into the database, so that what is done to the file has consequences."""
    with other_connection(path) as db:
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy


def set_bell(path: str, number: int) -> None:
    """Ring the bell by hand."""
    with open(path + ".bell", "r+b") as file, mmap.mmap(file.fileno(), 8) as mapped:
        view = memoryview(mapped).cast("Q")
        view[0] = number
        view.release()


def set_aside(path: str) -> list[Path]:
    """The damaged databases that were moved out of the way."""
    found = Path(path).parent.glob(Path(path).name + ".damaged-*")
    return sorted(file for file in found if not file.name.endswith(("-wal", "-shm")))


# ── requests ──────────────────────────────────────────────────────────────────────────────────


def ask(upstream: Upstream, *dead: str) -> str:
    """One request: the id of the host that answered. The hosts in ``dead`` refuse."""
    with upstream.context():
        for attempt in upstream.attempts():
            with attempt as host:
                if host.id in dead:
                    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
                return host.id
    raise AssertionError("the loop over attempts returns or raises")


def pools(*hosts: str, **options: Any) -> dict[str, Any]:
    """One pool ``p`` with hosts that nobody will connect to."""
    return {"p": {**options, "hosts": {host: {"host": f"{host}.test"} for host in hosts}}}
