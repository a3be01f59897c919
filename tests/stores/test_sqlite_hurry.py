"""Commits of those that may not wait, as on an event loop: they leave the disk to somebody else."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import Worker, add_one, ask, held_by_another, integrity, pools, wait_until

OpenStore = Callable[..., SqliteStore]


def log_bytes(path: str) -> int:
    return os.path.getsize(path + "-wal")


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that emptied the log because they were asked to."""
    threads: list[str] = []
    original = SqliteStore._checkpoint

    def checkpoint(self: SqliteStore) -> None:
        threads.append(threading.current_thread().name)
        original(self)

    monkeypatch.setattr(SqliteStore, "_checkpoint", checkpoint)
    return threads


def test_who_may_not_wait_leaves_the_log_to_a_thread(
    store: SqliteStore, path: str, checkpoints: list[str]
) -> None:
    for _ in range(700):
        store.transact("a", add_one("n"), wait_s=0)
    wait_until(lambda: not store._checkpoint_lock.locked(), "the last thread has ended")
    assert 1 <= len(checkpoints) <= 2
    assert threading.current_thread().name not in checkpoints
    assert store.read("a").records == {"n": b"700"}
    assert integrity(path) == "ok"


def test_who_may_wait_needs_no_thread(store: SqliteStore, checkpoints: list[str]) -> None:
    for _ in range(700):
        store.transact("a", add_one("n"))
    assert not checkpoints


@pytest.mark.parametrize("cannot", ["no thread", "no file"])
def test_what_was_committed_is_committed_even_if_the_log_cannot_be_emptied(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, cannot: str
) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("can't start new thread") if cannot == "no thread" else FileNotFoundError

    if cannot == "no thread":
        monkeypatch.setattr(threading.Thread, "start", refuse)
    else:
        monkeypatch.setattr(os.path, "getsize", refuse)
    for _ in range(700):
        store.transact("a", add_one("n"), wait_s=0)
    assert store.read("a").records == {"n": b"700"}


def test_the_log_stays_small_however_fast_commits_come(store: SqliteStore, path: str) -> None:
    """Were it for the thread alone, a storm of failures would grow it without end."""
    largest = 0
    for _ in range(12_000):
        store.transact("a", add_one("n"), wait_s=0)
        largest = max(largest, log_bytes(path))
    assert largest < 16 << 20
    wait_until(lambda: not store._checkpoint_lock.locked(), "the last thread has ended")


def test_a_log_that_is_too_large_gives_the_thread_its_turn(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that gets no processor in the middle of its work would keep all others from it, too."""
    wanted, original = threading.Event(), SqliteStore._checkpoint

    class Watched:
        """The lock that the thread has, which notes when somebody waits for it."""

        lock = store._checkpoint_lock
        locked, release = lock.locked, lock.release

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if timeout > 0:
                wanted.set()
            return self.lock.acquire(blocking, timeout)

    def starving(self: SqliteStore) -> None:
        wanted.wait()
        original(self)

    monkeypatch.setattr(SqliteStore, "_checkpoint", starving)
    monkeypatch.setattr(store, "_checkpoint_lock", Watched())
    while not store._checkpoint_lock.locked():
        store.transact("a", add_one("n"), wait_s=0)
    assert not wanted.is_set()
    monkeypatch.setattr("resty_upstream.stores.sqlite._MOST_LOG_BYTES", 0)
    for _ in range(700):
        store.transact("a", add_one("n"), wait_s=0)
    assert wanted.is_set()
    wait_until(lambda: not store._checkpoint_lock.locked(), "the thread has ended")


def test_forks_while_a_thread_empties_the_log_harm_nobody(path: str, worker: Worker) -> None:
    """No connection of it crosses a fork either."""
    worker.run(
        "store = SqliteStore(path, clock=clock)\n"
        "def commit(key, times):\n"
        "    for _ in range(times): store.transact('a', add_one(key))\n"
        "    return times\n"
        "for _ in range(15):\n"
        "    for _ in range(301): store.transact('a', add_one('parent'), wait_s=0)\n"
        "    assert child(lambda: commit('child', 5)).result() == 5\n"
    )
    assert worker.run("store.read('a').records['parent'], store.read('a').records['child']") == ["4515", "75"]
    assert integrity(path) == "ok"


# ── on an event loop ──────────────────────────────────────────────────────────────────────────


def test_an_event_loop_waits_neither_for_a_writer_nor_for_a_thread(
    store: SqliteStore, path: str, clock: FakeClock, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the way keeps its last snapshot in use, for a moment; nothing sleeps or blocks."""
    upstream = Upstream(store, pools=pools("a", "b"))
    ask(upstream)
    waited: list[float] = []
    lock = store._lock

    class Watched:
        """The store's lock, which notes who would wait for it."""

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if timeout:
                waited.append(timeout)
            return lock.acquire(blocking, timeout)

        def release(self) -> None:
            lock.release()

    async def request(*dead: str) -> str:
        return ask(upstream, *dead)

    other = UpstreamAPI(Upstream(open_store()))
    other.down_host("p", "a")
    with monkeypatch.context() as patch:
        patch.setattr(store, "_lock", Watched())
        with lock:  # a thread of this process is at work on the database
            assert {asyncio.run(request()) for _ in range(4)} == {"a", "b"}
        clock.advance(0.1)
        assert {asyncio.run(request()) for _ in range(4)} == {"b"}
        other.up_host("p", "a")
        with held_by_another(path):  # who only reads is not in its way
            assert {asyncio.run(request("a")) for _ in range(4)} == {"b"}
            assert upstream.replica.has_queue
        clock.advance(0.1)
        asyncio.run(request())
        assert not upstream.replica.has_queue
    assert not waited
