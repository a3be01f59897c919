"""The log in the SQLite file: what becomes of it when processes and files go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import StoreBusy, Upstream, UpstreamAPI
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import A_SECOND, WAIT_S, Worker, held_by_another, integrity, pools, wait_until

OpenStore = Callable[..., SqliteStore]


def log(store: SqliteStore, entry: bytes) -> None:
    store.transact("a", lambda view: [view.log(entry), view.put("x", entry), view.touch()])


def test_entries_are_there_for_who_opens_the_file_later(open_store: OpenStore) -> None:
    store = open_store()
    log(store, b"1")
    store.close()
    assert open_store().history("a") == [b"1"]


def test_entries_of_other_processes_are_read(store: SqliteStore, worker: Worker) -> None:
    log(store, b"1")
    worker.run("store = SqliteStore(path)\nstore.transact('a', lambda view: view.log(b'2'))")
    assert store.history("a") == [b"1", b"2"]


def test_the_history_names_the_process_that_made_each_change(store: SqliteStore, worker: Worker) -> None:
    upstream = Upstream(store, pools=pools("a"))
    UpstreamAPI(upstream).down_host("p", "a", by="here")
    worker.run("upstream = Upstream(url)\nUpstreamAPI(upstream).up_host('p', 'a', reason='done', by='there')")
    assert [(each.by, each.reason, each.process) for each in upstream.history()] == [
        ("here", "by hand", os.getpid()),
        ("there", "by hand: done", worker.pid),
    ]


def test_a_record_and_its_entry_are_committed_together_though_the_writer_is_killed(
    store: SqliteStore, start_worker: Callable[..., Worker]
) -> None:
    """Whenever that is: the last entry is the last record."""
    for _ in range(3):
        worker = start_worker()
        before = len(store.history("a"))
        worker.begin(
            "store = SqliteStore(path)\n"
            "for n in range(10**6):\n"
            "    entry = b'%d' % n\n"
            "    store.transact('a', lambda view: [view.log(entry), view.put('x', entry)])\n"
        )
        wait_until(lambda before=before: len(store.history("a")) >= before + 5, "five entries")
        worker.kill()
        assert store.history("a")[-1] == store.read("a").records["x"]
    assert integrity(store.path) == "ok"


def test_entries_and_leases_are_written_by_one_process_at_a_time(store: SqliteStore) -> None:
    log(store, b"1")
    with held_by_another(store.path):
        with pytest.raises(StoreBusy):
            store.lease("a", "probe", "one", 10, wait_s=0)
        with pytest.raises(StoreBusy):
            store.transact("a", lambda view: view.log(b"2"), wait_s=0)
        assert store.holder("a", "probe", wait_s=0) == "", "who only reads waits for nobody"
        assert store.history("a") == [b"1"]
    assert store.lease("a", "probe", "one", 10, wait_s=0)


def delete_the_database(path: str) -> None:
    os.unlink(path)


def delete_the_directory(path: str) -> None:
    shutil.rmtree(os.path.dirname(path))


def put_an_unused_store_in_its_place(path: str) -> None:
    store = SqliteStore(path + ".new")
    store.read("a")
    store.close()
    os.rename(path + ".new", path)


LOSSES = [delete_the_database, delete_the_directory, put_an_unused_store_in_its_place]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_entries_are_written_back_into_a_file_that_is_new(
    store: SqliteStore, clock: FakeClock, lose: Callable[[str], None]
) -> None:
    for n in range(5):
        log(store, b"%d" % n)
    lose(store.path)
    clock.advance(A_SECOND)
    store.version("a")
    log(store, b"5")
    assert store.history("a") == [b"%d" % n for n in range(6)]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_the_history_of_an_upstream_survives_its_file(
    open_store: OpenStore, clock: FakeClock, lose: Callable[[str], None]
) -> None:
    store = open_store()
    upstream = Upstream(store, pools=pools("a", "b"))
    UpstreamAPI(upstream).down_host("p", "a", reason="new kernel", by="jane")
    before = upstream.history()
    lose(store.path)
    clock.advance(A_SECOND)
    assert not upstream.get_pools()["p"]["hosts"]["a"]["up"]
    assert upstream.history() == before != []
    UpstreamAPI(upstream).up_host("p", "a")
    assert [(each.before, each.after, each.by) for each in upstream.history()] == [
        ("up", "manual", "jane"),
        ("manual", "up", ""),
    ]


def test_a_store_that_somebody_else_put_there_keeps_its_own_entries(
    store: SqliteStore, clock: FakeClock, tmp_path: Path
) -> None:
    log(store, b"ours")
    other = SqliteStore(tmp_path / "other" / "upstreams.db", clock=clock)
    log(other, b"theirs")
    other.close()
    os.rename(other.path, store.path)
    clock.advance(A_SECOND)
    store.version("a")
    wait_until(lambda: store.history("a") == [b"theirs"], "their entries", WAIT_S)


def test_no_entry_of_several_processes_is_lost(store: SqliteStore, start_worker: Callable[..., Worker]) -> None:
    workers: list[Any] = [start_worker() for _ in range(3)]
    for number, worker in enumerate(workers):
        worker.begin(
            "store = SqliteStore(path)\n"
            "for n in range(50):\n"
            f"    store.transact('a', lambda view: view.log(b'{number} %d' % n), wait_s=20)\n"
        )
    for worker in workers:
        worker.result()
    entries = store.history("a")
    for number in range(3):
        own = [entry for entry in entries if entry.startswith(b"%d " % number)]
        assert own == [b"%d %d" % (number, n) for n in range(50)]
