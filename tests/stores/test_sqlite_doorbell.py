"""The doorbell: a hint that is heard at once, behind which the database is looked at once a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream.stores import sqlite
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import (
    A_SECOND,
    Worker,
    in_threads,
    other_connection,
    putting,
    set_bell,
    touch,
    wait_until,
)


def commit_without_ringing(path: str) -> None:
    """What is left of a process that was killed between its commit and its ring."""
    with other_connection(path) as db:
        db.execute("UPDATE generation SET value = value + 1")


def generation(path: str) -> int:
    with other_connection(path) as db:
        return int(db.execute("SELECT max(value) FROM generation").fetchone()[0])


# ── rings ─────────────────────────────────────────────────────────────────────────────────────


def test_a_routing_commit_of_another_process_is_seen_at_once(store: SqliteStore, worker: Worker) -> None:
    # The clock stands still, so nothing is polled.
    store.read("a")
    worker.run("store = SqliteStore(path); store.read('a')")
    for n in range(5):
        version = store.version("a")
        worker.run(f"store.transact('a', putting(n=b'{n}'))")
        assert store.version("a") != version
        assert store.read("a").records == {"n": b"%d" % n}


def test_another_process_sees_our_routing_commit_at_once(store: SqliteStore, worker: Worker) -> None:
    store.read("a")
    version = worker.run("store = SqliteStore(path, clock=clock); store.read('a'); store.version('a')")
    store.transact("a", touch)
    assert worker.run("store.version('a')") != version


def test_a_commit_that_changes_no_routing_does_not_ring(store: SqliteStore, worker: Worker) -> None:
    store.read("a")
    version = store.version("a")
    worker.run(
        "store = SqliteStore(path); [store.transact('a', lambda view: view.put('x', b'1')) for _ in range(9)]"
    )
    assert store.version("a") == version
    assert store.read("a").records == {"x": b"1"}


def test_leases_do_not_ring(store: SqliteStore, worker: Worker) -> None:
    store.read("a")
    version = store.version("a")
    worker.run("store = SqliteStore(path); store.lease('a', 'probe', 'me', 5); store.release('a', 'probe', 'me')")
    assert store.version("a") == version


def test_a_transaction_that_fails_does_not_ring(store: SqliteStore, worker: Worker) -> None:
    store.read("a")
    version = store.version("a")
    worker.run(
        "store = SqliteStore(path)\n"
        "def work(view):\n"
        "    view.touch()\n"
        "    raise ValueError\n"
        "try:\n"
        "    store.transact('a', work)\n"
        "except ValueError:\n"
        "    pass"
    )
    assert store.version("a") == version


def test_the_bell_stands_at_the_generation_that_was_committed_last(store: SqliteStore, path: str) -> None:
    for ns in "abca":
        store.transact(ns, touch)
        assert store.version("a") == store.version(ns) == generation(path) == store.read(ns).generation


def test_who_polls_while_another_commits_does_not_ring_for_less(
    store: SqliteStore, clock: FakeClock, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.transact("a", touch)
    other = SqliteStore(path, clock)
    other.read("a")
    read = sqlite._generation

    def read_too_early(db: Any) -> int:
        value = read(db)
        monkeypatch.setattr(sqlite, "_generation", read)
        other.transact("a", touch)
        return value

    monkeypatch.setattr(sqlite, "_generation", read_too_early)
    clock.advance(A_SECOND)
    assert store.version("a") == generation(path)
    other.close()


def test_a_store_that_opens_finds_the_bell_at_the_generation(
    store: SqliteStore, path: str, open_store: Callable[..., SqliteStore]
) -> None:
    store.transact("a", touch)
    set_bell(path, 7)
    assert open_store().version("a") == generation(path)


def test_the_bell_is_never_read_as_zero_while_others_ring_it(
    store: SqliteStore, start_worker: Callable[[], Worker]
) -> None:
    store.transact("a", touch)
    first = store.version("a")
    workers = [start_worker() for _ in range(2)]
    for worker in workers:
        worker.run("store = SqliteStore(path); store.read('a')")
        worker.begin("for _ in range(3_000): store.transact('a', touch, wait_s=20)")
    read = set()
    while store.version("a") < first + 5_900:
        for _ in range(1_000):
            read.add(store.version("a"))
    for worker in workers:
        worker.result()
    assert min(read) >= first
    assert max(read) <= first + 6_000


def test_after_a_storm_of_commits_all_agree(
    store: SqliteStore, clock: FakeClock, path: str, start_worker: Callable[[], Worker]
) -> None:
    store.read("a")
    workers = [start_worker() for _ in range(3)]
    for worker in workers:
        worker.run("store = SqliteStore(path, clock=clock); store.read('a')")
        worker.begin("in_threads(4, lambda _: [store.transact('a', touch, wait_s=20) for _ in range(50)])")
    in_threads(4, lambda _number: [store.transact("a", touch, wait_s=20) for _ in range(50)])
    for worker in workers:
        worker.result()
    clock.advance(A_SECOND)
    last = generation(path)
    assert store.version("a") == last
    assert [worker.run(f"clock.advance({A_SECOND}); store.version('a')") for worker in workers] == [last] * 3


# ── rings that do not arrive ──────────────────────────────────────────────────────────────────


def test_a_ring_that_never_came_is_made_up_for_within_a_second(
    store: SqliteStore, clock: FakeClock, path: str
) -> None:
    store.transact("a", touch)
    for _ in range(3):
        version = store.version("a")
        commit_without_ringing(path)
        assert store.version("a") == version
        clock.advance(A_SECOND)
        assert store.version("a") == generation(path)


def test_a_second_process_hears_the_ring_that_was_made_up(
    store: SqliteStore, clock: FakeClock, path: str, worker: Worker
) -> None:
    store.transact("a", touch)
    worker.run("store = SqliteStore(path, clock=clock); store.read('a'); store.version('a')")
    commit_without_ringing(path)
    clock.advance(A_SECOND)
    assert store.version("a") == worker.run("store.version('a')") == generation(path)


def test_a_late_ring_over_the_newer_commit_of_another_process_is_put_right(
    store: SqliteStore, clock: FakeClock, path: str, worker: Worker
) -> None:
    store.transact("a", touch)
    old = store.version("a")
    worker.run("SqliteStore(path).transact('a', touch)")
    set_bell(path, old)
    assert store.version("a") == old
    clock.advance(A_SECOND)
    assert store.version("a") == generation(path)


def test_a_late_ring_over_our_own_newer_commit_is_put_right(
    store: SqliteStore, clock: FakeClock, path: str
) -> None:
    store.transact("a", touch)
    clock.advance(A_SECOND)
    old = store.version("a")
    store.transact("a", touch)
    set_bell(path, old)
    clock.advance(A_SECOND)
    assert store.version("a") == generation(path)


@pytest.mark.parametrize("number", [0, 1, 2**64 - 1], ids=["zeroed", "set back", "all ones"])
def test_a_bell_that_someone_overwrote_is_put_right(
    store: SqliteStore, clock: FakeClock, path: str, number: int
) -> None:
    store.transact("a", touch)
    clock.advance(A_SECOND)
    store.version("a")
    set_bell(path, number)
    assert store.version("a") == number
    clock.advance(A_SECOND)
    assert store.version("a") == generation(path)


def test_a_bell_that_was_deleted_is_made_anew_and_heard_by_all(
    store: SqliteStore, clock: FakeClock, path: str, worker: Worker
) -> None:
    store.transact("a", touch)
    worker.run("store = SqliteStore(path, clock=clock); store.read('a')")
    os.unlink(path + ".bell")
    clock.advance(A_SECOND)
    assert store.version("a") == worker.run(f"clock.advance({A_SECOND}); store.version('a')") == generation(path)
    assert os.path.exists(path + ".bell")
    worker.run("store.transact('a', touch)")
    assert store.version("a") == generation(path)
    store.transact("a", touch)
    assert worker.run("store.version('a')") == generation(path)


def test_a_deleted_bell_loses_no_commit(store: SqliteStore, clock: FakeClock, path: str, worker: Worker) -> None:
    store.transact("a", touch)
    worker.run("store = SqliteStore(path, clock=clock); store.read('a')")
    os.unlink(path + ".bell")
    clock.advance(A_SECOND)
    store.transact("a", putting(x=b"1"))  # rings the new bell, which the other does not know
    assert worker.run(f"clock.advance({A_SECOND}); store.version('a')") == generation(path)
    assert worker.run("store.read('a').records['x']") == "1"


def test_a_bell_of_the_wrong_size_is_put_right(store: SqliteStore, path: str) -> None:
    store.transact("a", touch)
    store.close()
    with open(path + ".bell", "r+b") as file:
        file.truncate(3)
    assert store.version("a") == generation(path)
    store.transact("a", touch)
    assert store.version("a") == generation(path)


@pytest.mark.parametrize("damage", ["unlink", "zero"])
def test_in_real_time_a_lost_bell_costs_about_a_second(
    start_worker: Callable[[], Worker], path: str, damage: str
) -> None:
    one, two = start_worker(), start_worker()
    for worker in (one, two):
        worker.run("store = SqliteStore(path); store.transact('a', touch); store.version('a')")
    if damage == "unlink":
        os.unlink(path + ".bell")
    else:
        set_bell(path, 0)
    commit_without_ringing(path)
    wanted = generation(path)
    wait_until(
        lambda: one.run("store.version('a')") == two.run("store.version('a')") == wanted, "both know", within_s=4
    )
    one.run("store.transact('a', touch)")
    wait_until(lambda: two.run("store.version('a')") == wanted + 1, "the other hears it", within_s=4)


# ── a process that cannot look for a moment ───────────────────────────────────────────────────


def test_a_process_that_could_not_look_once_hears_others_again(
    store: SqliteStore, clock: FakeClock, path: str, worker: Worker
) -> None:
    store.transact("a", touch)
    directory = os.path.dirname(path)
    os.rename(directory, directory + ".away")
    with open(directory, "w"):
        clock.advance(A_SECOND)
        store.version("a")
    os.unlink(directory)
    os.rename(directory + ".away", directory)
    clock.advance(A_SECOND)
    store.version("a")
    worker.run("SqliteStore(path).transact('a', putting(x=b'1'))")
    assert store.read("a").records == {"x": b"1"}
    assert store.version("a") == generation(path)


def test_a_process_that_could_not_look_once_is_heard_by_others_again(
    store: SqliteStore, clock: FakeClock, path: str, worker: Worker
) -> None:
    store.transact("a", touch)
    directory = os.path.dirname(path)
    os.rename(directory, directory + ".away")
    with open(directory, "w"):
        clock.advance(A_SECOND)
        store.version("a")
    os.unlink(directory)
    os.rename(directory + ".away", directory)
    clock.advance(A_SECOND)
    store.version("a")
    worker.run("store = SqliteStore(path, clock=clock); store.read('a')")
    store.transact("a", touch)
    assert worker.run("store.version('a')") == generation(path)
