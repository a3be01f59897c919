"""A database that is deleted or replaced under running processes: noticed, opened again, written back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import (
    A_SECOND,
    Worker,
    all_into_one_file,
    integrity,
    pools,
    putting,
    touch,
    wait_until,
)

OpenStore = Callable[..., SqliteStore]
SIDES = ("-wal", "-shm", ".bell", ".lock")


# ── what may happen to the files ──────────────────────────────────────────────────────────────


def delete_the_database(path: str) -> None:
    os.unlink(path)


def delete_database_and_wal(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        os.unlink(path + suffix)


def delete_all_files(path: str) -> None:
    for file in Path(path).parent.iterdir():
        file.unlink()


def delete_the_directory(path: str) -> None:
    shutil.rmtree(os.path.dirname(path))


def move_the_directory_away(path: str) -> None:
    os.rename(os.path.dirname(path), os.path.dirname(path) + ".away")


def put_an_empty_file_in_its_place(path: str) -> None:
    Path(path + ".new").write_bytes(b"")
    os.rename(path + ".new", path)


def put_an_unused_store_in_its_place(path: str) -> None:
    store = SqliteStore(path + ".new")
    store.read("a")
    store.close()
    os.rename(path + ".new", path)


def put_another_upstreams_store_in_its_place(path: str) -> None:
    store = SqliteStore(path + ".new")
    Upstream(store, "another", pools=pools("x")).connect(lambda *_: None)
    store.close()
    os.rename(path + ".new", path)


def put_a_whole_directory_in_its_place(path: str) -> None:
    directory = os.path.dirname(path)
    store = SqliteStore(os.path.join(directory + ".new", os.path.basename(path)))
    store.read("a")
    store.close()
    os.rename(directory, directory + ".old")
    os.rename(directory + ".new", directory)


LOSSES = [
    delete_the_database,
    delete_database_and_wal,
    delete_all_files,
    delete_the_directory,
    move_the_directory_away,
    put_an_empty_file_in_its_place,
    put_an_unused_store_in_its_place,
    put_another_upstreams_store_in_its_place,
    put_a_whole_directory_in_its_place,
]
Loss = Callable[[str], None]


def by_name(value: object) -> str | None:
    return value.__name__ if callable(value) else None


# ── two processes ─────────────────────────────────────────────────────────────────────────────

CHANGES = (
    "api = UpstreamAPI(upstream); api.set_weight('p', 'a', 5); api.down_host('p', 'b'); "
    "api.add_host('p', host='new.test', id='new', weight=5); api.create_pool('reserve', priority=7)"
)


def start_two(start_worker: Callable[[], Worker], clock: str = "clock") -> list[Worker]:
    """Two processes that know the same pools, changed at run time."""
    workers = [start_worker(), start_worker()]
    for worker in workers:
        worker.run(
            f"upstream = Upstream(SqliteStore(path, clock={clock}), pools=pools('a', 'b', 'c')); ask(upstream)"
        )
    workers[0].run(CHANGES)
    for worker in workers:
        worker.run("ask(upstream)")
    return workers


def looks(worker: Worker) -> Any:
    """What the process shows, a second later, between two requests."""
    return worker.run(f"clock.advance({A_SECOND}); ask(upstream); ask(upstream); upstream.get_pools()")


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_a_lost_database_is_written_back_and_all_agree(
    path: str, start_worker: Callable[[], Worker], loss: Loss
) -> None:
    one, two = start_two(start_worker)
    before = one.run("upstream.get_pools()")
    assert before["p"]["hosts"]["a"]["weight"] == 5
    assert not before["p"]["hosts"]["b"]["up"]
    loss(path)
    assert looks(one) == before
    assert looks(two) == before
    assert [worker.run("upstream.replica.trouble") for worker in (one, two)] == [None, None]
    assert any("replaced or deleted" in line for line in one.run("logged"))
    fresh = start_worker()
    fresh.run("upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b', 'c')); ask(upstream)")
    assert fresh.run("upstream.get_pools()") == before
    assert integrity(path) == "ok"


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_after_a_loss_each_process_hears_the_others(
    path: str, start_worker: Callable[[], Worker], loss: Loss
) -> None:
    one, two = start_two(start_worker)
    loss(path)
    looks(one)
    looks(two)
    one.run("UpstreamAPI(upstream).down_host('p', 'new')")
    assert [two.run("ask(upstream)") for _ in range(3)] == ["a"] * 3
    two.run("UpstreamAPI(upstream).up_host('p', 'new'); UpstreamAPI(upstream).down_host('p', 'a')")
    assert [one.run("ask(upstream)") for _ in range(3)] == ["new"] * 3


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_requests_go_on_while_the_loss_is_not_noticed_yet(
    path: str, start_worker: Callable[[], Worker], loss: Loss
) -> None:
    workers = start_two(start_worker)
    loss(path)
    for _ in range(3):
        for worker in workers:
            assert worker.run("ask(upstream)") in {"a", "new"}
            assert worker.run("ask(upstream, 'a')") == "new"


@pytest.mark.parametrize("loss", [delete_the_database, delete_the_directory], ids=by_name)
def test_in_real_time_a_loss_is_noticed_within_about_a_second(
    path: str, start_worker: Callable[[], Worker], loss: Loss
) -> None:
    workers = start_two(start_worker, clock="None")
    before = workers[0].run("upstream.get_pools()")
    loss(path)
    wait_until(
        lambda: (
            all(worker.run("ask(upstream); upstream.get_pools()") == before for worker in workers)
            and os.path.exists(path)
        ),
        "the store is there again",
        within_s=4,
    )
    workers[0].run("UpstreamAPI(upstream).down_host('p', 'new')")
    wait_until(
        lambda: not workers[1].run("ask(upstream); upstream.get_pools()")["p"]["hosts"]["new"]["up"],
        "the other hears it",
        within_s=4,
    )


# ── changes in the second in which nobody knows ───────────────────────────────────────────────


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_a_change_made_before_the_loss_was_noticed_is_kept(
    path: str, start_worker: Callable[[], Worker], loss: Loss
) -> None:
    one, two = start_two(start_worker)
    loss(path)
    one.run("UpstreamAPI(upstream).down_host('p', 'new')")
    before = one.run("upstream.get_pools()")
    assert not before["p"]["hosts"]["new"]["up"]
    for worker in (one, two):
        assert looks(worker) == before


@pytest.mark.parametrize("loss", LOSSES, ids=by_name)
def test_no_commit_goes_to_a_file_without_a_name(
    path: str, clock: FakeClock, store: SqliteStore, open_store: OpenStore, loss: Loss
) -> None:
    store.transact("a", putting(x=b"1"))
    loss(path)
    store.transact("a", putting(y=b"2"))
    clock.advance(A_SECOND)
    store.version("a")
    assert store.read("a").records["y"] == b"2"
    assert open_store().read("a").records["y"] == b"2"


def test_failures_recorded_before_the_loss_was_noticed_are_kept(
    path: str, start_worker: Callable[[], Worker]
) -> None:
    one, two = start_two(start_worker)
    os.unlink(path)
    for _ in range(8):  # every second one tries it
        assert one.run("ask(upstream, 'a')") == "new"
    for worker in (one, two):
        assert not looks(worker)["p"]["hosts"]["a"]["up"]
        assert worker.run("ask(upstream)") == "new"


# ── who comes first ───────────────────────────────────────────────────────────────────────────


def test_a_fresh_process_that_comes_first_does_not_undo_what_the_running_know(
    path: str, start_worker: Callable[[], Worker]
) -> None:
    one, two = start_two(start_worker)
    before = one.run("upstream.get_pools()")
    delete_the_directory(path)
    fresh = start_worker()
    fresh.run("upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b', 'c')); ask(upstream)")
    for worker in (one, two, fresh):
        looks(worker)
    assert [looks(worker) for worker in (one, two, fresh)] == [before] * 3


def test_another_copy_of_the_store_moved_over_it_is_taken_over_by_all(
    path: str, start_worker: Callable[[], Worker]
) -> None:
    one, two = start_two(start_worker)
    wanted = one.run("upstream.get_pools()")
    backup = path + ".backup"
    source = sqlite3.connect(path)
    source.execute("VACUUM INTO ?", (backup,))
    source.close()
    one.run("UpstreamAPI(upstream).set_weight('p', 'c', 9); UpstreamAPI(upstream).up_host('p', 'b')")
    two.run("ask(upstream)")
    os.rename(backup, path)
    assert looks(one) == wanted
    assert looks(two) == wanted
    two.run("UpstreamAPI(upstream).down_host('p', 'new')")
    assert one.run("ask(upstream)") == "a"
    assert integrity(path) == "ok"


def test_a_store_moved_elsewhere_and_back_loses_nothing(path: str, start_worker: Callable[[], Worker]) -> None:
    one, two = start_two(start_worker)
    before = one.run("upstream.get_pools()")
    os.rename(path, path + ".away")
    for worker in (one, two):
        assert looks(worker) == before
    all_into_one_file(path)
    os.rename(path + ".away", path)
    for worker in (one, two):
        assert looks(worker) == before
    assert integrity(path) == "ok"


# ── races ─────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_replaced_while_it_is_opened_is_noticed(
    tmp_path: Path, clock: FakeClock, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("old", "new"):
        store = open_store(tmp_path / name / "upstreams.db")
        store.transact("a", putting(which=name.encode()))
        store.close()
    really_connect = sqlite3.connect

    def connect_late(*args: Any, **options: Any) -> sqlite3.Connection:
        db = really_connect(*args, **options)
        if (tmp_path / "new" / "upstreams.db").exists():
            os.rename(tmp_path / "new" / "upstreams.db", tmp_path / "old" / "upstreams.db")
        return db

    monkeypatch.setattr(sqlite3, "connect", connect_late)
    store = open_store(tmp_path / "old" / "upstreams.db")
    store.read("a")
    clock.advance(A_SECOND)
    store.version("a")
    assert store.read("a").records == {"which": b"new"}


def test_deleting_the_file_again_and_again_stops_nobody(path: str, start_worker: Callable[[], Worker]) -> None:
    workers = start_two(start_worker)
    for worker in workers:
        worker.begin(
            "import itertools\n"
            "from resty_upstream import StoreUnavailable\n"
            "for n in itertools.count():\n"
            "    clock.advance(0.3)\n"
            "    assert ask(upstream) in {'a', 'new'}\n"
            "    if not n % 10:\n"
            "        try:\n"
            "            upstream.replica.commit(lambda edit: edit.view.touch())\n"
            "        except StoreUnavailable:\n"
            "            pass  # a change may be refused while the files go; a request may not\n"
            "    if n % 50 == 0:\n"
            "        say(n)\n"
            "        if hear() == 'stop':\n"
            "            break\n"
        )
    for n in range(40):
        for worker in workers:
            worker.said()
        for worker in workers:
            worker.tell("go on")
        if n % 2:
            shutil.rmtree(os.path.dirname(path), ignore_errors=True)
        else:
            Path(path).unlink(missing_ok=True)
    for worker in workers:
        worker.said()
        worker.tell("stop")
    for worker in workers:
        worker.result()
    for worker in workers:
        looks(worker)
    seen = [looks(worker) for worker in workers]
    assert seen[0] == seen[1]
    assert seen[0]["p"]["hosts"]["a"]["weight"] == 5
    assert not seen[0]["p"]["hosts"]["b"]["up"]
    assert integrity(path) == "ok"


def test_files_beside_the_database_that_were_deleted_cost_no_pools(
    path: str, start_worker: Callable[[], Worker]
) -> None:
    # SQLite calls this a way to corrupt a database; nobody's pools or manual changes may be lost by it here.
    one, two = start_two(start_worker)
    before = one.run("upstream.get_pools()")
    for suffix in SIDES:
        os.unlink(path + suffix)
    for worker in (one, two):
        looks(worker)
    assert [looks(worker) for worker in (one, two)] == [before] * 2
    one.run("UpstreamAPI(upstream).down_host('p', 'new')")
    looks(one)
    assert not looks(two)["p"]["hosts"]["new"]["up"]
    fresh = start_worker()
    fresh.run("upstream = Upstream(SqliteStore(path, clock=clock)); ask(upstream)")
    assert not fresh.run("upstream.get_pools()")["p"]["hosts"]["new"]["up"]
    assert integrity(path) == "ok"


def test_an_upstream_that_nobody_declared_is_written_back_too(
    path: str, clock: FakeClock, open_store: OpenStore
) -> None:
    upstream = Upstream(open_store())
    UpstreamAPI(upstream).create_pool("p")
    UpstreamAPI(upstream).add_host("p", host="a.test", id="a")
    assert upstream.connect(lambda host, *_: host).client == "a.test"
    os.unlink(path)
    clock.advance(A_SECOND)
    assert upstream.connect(lambda host, *_: host).client == "a.test"
    assert list(Upstream(open_store()).get_pools()["p"]["hosts"]) == ["a"]


def test_versions_differ_before_and_after_a_replacement(path: str, clock: FakeClock, store: SqliteStore) -> None:
    # Else a process would take the new file for the old one.
    store.transact("a", touch)
    version = store.version("a")
    put_an_unused_store_in_its_place(path)
    clock.advance(A_SECOND)
    assert store.version("a") != version
