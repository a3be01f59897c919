"""A damaged file is set aside and begun anew; a file that is not ours is not touched."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.errors import StoreError, StoreFormatError, StoreUnavailable
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import (
    A_SECOND,
    Worker,
    all_into_one_file,
    ask,
    integrity,
    other_connection,
    pools,
    putting,
    set_aside,
    touch,
)

OpenStore = Callable[..., SqliteStore]

PAGE = 4096
JUNK = bytes(range(1, 256)) * 40
HOSTS = [f"host-{n}" for n in range(150)]
"""So many that the configuration needs several pages."""


# ── ways to damage a file ─────────────────────────────────────────────────────────────────────


def overwrite(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def overwrite_header(path: str) -> None:
    overwrite(path, 0, JUNK[:100])


def zero_header(path: str) -> None:
    overwrite(path, 0, bytes(100))


def overwrite_middle(path: str) -> None:
    size = os.path.getsize(path)
    overwrite(path, PAGE, (JUNK * (size // len(JUNK) + 1))[: size - PAGE])


def zero_middle(path: str) -> None:
    overwrite(path, PAGE, bytes(os.path.getsize(path) - PAGE))


def truncate_to_a_page(path: str) -> None:
    os.truncate(path, PAGE)


def truncate_inside_a_page(path: str) -> None:
    os.truncate(path, PAGE + 1000)


def truncate_to_less_than_a_header(path: str) -> None:
    os.truncate(path, 50)


def empty(path: str) -> None:
    os.truncate(path, 0)


def put_junk_in_its_place(path: str) -> None:
    with open(path + ".new", "wb") as file:
        file.write(JUNK)
    os.rename(path + ".new", path)


DAMAGES = [
    overwrite_header,
    zero_header,
    overwrite_middle,
    zero_middle,
    truncate_to_a_page,
    truncate_inside_a_page,
    truncate_to_less_than_a_header,
    put_junk_in_its_place,
]

Damage = Callable[[str], None]


def by_name(value: object) -> str | None:
    return value.__name__ if callable(value) else None


# ── a fresh process ───────────────────────────────────────────────────────────────────────────


def leave_a_store(path: str, clock: FakeClock) -> None:
    """A store that was used, closed in good order."""
    upstream = Upstream(SqliteStore(path, clock=clock), pools=pools(*HOSTS))
    UpstreamAPI(upstream).set_weight("p", "host-1", 5)
    upstream.store.close()
    all_into_one_file(path)


@pytest.mark.parametrize("damage", DAMAGES, ids=by_name)
def test_a_fresh_process_sets_a_damaged_file_aside_and_begins_from_its_settings(
    path: str, clock: FakeClock, open_store: OpenStore, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    leave_a_store(path, clock)
    damage(path)
    damaged = Path(path).read_bytes()
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    assert ask(upstream) in "ab"
    assert upstream.replica.trouble is None
    assert [file.read_bytes() for file in set_aside(path)] == [damaged]
    assert list(upstream.get_pools()["p"]["hosts"]) == ["a", "b"]
    assert integrity(path) == "ok"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1
    assert "damaged" in said[0]
    assert str(set_aside(path)[0]) in said[0]
    assert "changes made at run time are lost" in said[0]


def test_an_emptied_file_is_begun_anew_from_the_settings(
    path: str, clock: FakeClock, open_store: OpenStore
) -> None:
    leave_a_store(path, clock)
    empty(path)
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    assert ask(upstream) in "ab"
    assert upstream.replica.trouble is None
    assert list(upstream.get_pools()["p"]["hosts"]) == ["a", "b"]


@pytest.mark.parametrize("damage", DAMAGES, ids=by_name)
def test_an_api_call_that_meets_a_damaged_file_first_works(
    path: str, clock: FakeClock, open_store: OpenStore, damage: Damage
) -> None:
    leave_a_store(path, clock)
    damage(path)
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    UpstreamAPI(upstream).set_weight("p", "b", 7)
    assert Upstream(open_store()).get_pools()["p"]["hosts"]["b"]["weight"] == 7


def test_several_processes_that_meet_a_damaged_file_set_it_aside_once(
    path: str, clock: FakeClock, start_worker: Callable[[], Worker]
) -> None:
    leave_a_store(path, clock)
    overwrite_header(path)
    workers = [start_worker() for _ in range(4)]
    for worker in workers:
        worker.run("upstream = Upstream(url, pools=pools('a', 'b'))")
    for worker in workers:
        worker.begin("ask(upstream)")
    assert {worker.result() for worker in workers} <= {"a", "b"}
    assert len(set_aside(path)) == 1
    logs = [worker.run("logged") for worker in workers]
    assert sum(line.startswith("ERROR") for log in logs for line in log) == 1, logs
    assert len({str(worker.run("upstream.get_pools()")) for worker in workers}) == 1
    assert {worker.run("upstream.replica.trouble") for worker in workers} == {None}


def test_leases_and_raw_transactions_work_on_a_file_that_was_begun_anew(store: SqliteStore, path: str) -> None:
    store.transact("a", putting(x=b"1"))
    store.close()
    overwrite_header(path)
    assert store.lease("a", "probe", "me", 5)
    store.transact("a", putting(y=b"2"))
    assert store.read("a").records == {"y": b"2"}


def test_files_damaged_one_after_another_are_all_kept(store: SqliteStore, path: str) -> None:
    for n in range(3):
        store.transact("a", touch)
        store.close()
        overwrite(path, 0, b"%d" % n * 100)
        store.read("a")
    assert {file.read_bytes()[:1] for file in set_aside(path)} == {b"0", b"1", b"2"}


# ── a running process ─────────────────────────────────────────────────────────────────────────


def changed_at_run_time(upstream: Upstream) -> None:
    api = UpstreamAPI(upstream)
    api.set_weight("p", "host-1", 5)
    api.down_host("p", "host-2")
    api.add_host("p", host="new.test", id="new", weight=5)
    api.create_pool("reserve", priority=7)


@pytest.mark.parametrize("first", ["a request", "an api call", "get_pools"])
@pytest.mark.parametrize("damage", [*DAMAGES, empty], ids=by_name)
def test_a_running_process_writes_back_what_it_knows(
    path: str,
    clock: FakeClock,
    open_store: OpenStore,
    damage: Damage,
    first: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = Upstream(open_store(), pools=pools(*HOSTS))
    changed_at_run_time(upstream)
    ask(upstream)
    before = upstream.get_pools()
    all_into_one_file(path)
    damage(path)
    damaged = Path(path).read_bytes()
    if first == "get_pools":
        upstream.get_pools()
    elif first == "an api call":
        try:
            UpstreamAPI(upstream).set_priority("reserve", 7)
        except StoreUnavailable:
            assert damage is empty, "a damaged file is repaired on the way"
    for _ in range(3):
        clock.advance(A_SECOND)
        assert ask(upstream) in {"host-1", "new"}
        assert upstream.get_pools() == before
    assert upstream.replica.trouble is None
    if damage is not empty:
        assert [file.read_bytes() for file in set_aside(path)] == [damaged]
    assert any(record.levelno >= logging.WARNING and path in record.getMessage() for record in caplog.records)
    assert integrity(path) == "ok"
    fresh = Upstream(open_store(), pools=pools(*HOSTS))
    ask(fresh)
    assert fresh.get_pools() == before


@pytest.mark.parametrize("number", range(1, 12))
def test_whichever_page_is_damaged_the_upstream_heals(
    path: str, clock: FakeClock, open_store: OpenStore, number: int
) -> None:
    upstream = Upstream(open_store(), pools=pools(*HOSTS))
    changed_at_run_time(upstream)
    ask(upstream)
    before = upstream.get_pools()
    all_into_one_file(path)
    assert os.path.getsize(path) > number * PAGE
    overwrite(path, number * PAGE, JUNK[:PAGE])
    for _ in range(3):
        clock.advance(A_SECOND)
        assert ask(upstream) in {"host-1", "new"}
        try:
            UpstreamAPI(upstream).set_priority("reserve", 7)
        except StoreError:
            continue
    clock.advance(A_SECOND)
    UpstreamAPI(upstream).set_priority("reserve", 7)
    assert upstream.get_pools() == before
    fresh = Upstream(open_store(), pools=pools(*HOSTS))
    for each in (
        fresh,
        upstream,
        fresh,
    ):  # a new one reads all of the file, and may be the first to find the damage
        clock.advance(A_SECOND)
        ask(each)
    assert fresh.get_pools() == upstream.get_pools() == before
    assert fresh.replica.trouble is None


def test_all_processes_work_on_with_the_file_that_replaced_the_damaged_one(
    path: str, start_worker: Callable[[], Worker]
) -> None:
    one, two = start_worker(), start_worker()
    for worker in (one, two):
        worker.run("upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b')); ask(upstream)")
    one.run("UpstreamAPI(upstream).set_weight('p', 'a', 5); ask(upstream)")
    before = two.run("ask(upstream); upstream.get_pools()")
    all_into_one_file(path)
    overwrite_middle(path)
    for _ in range(3):
        for worker in (one, two):
            assert worker.run(f"clock.advance({A_SECOND}); ask(upstream)") == "a"
            worker.run("upstream.get_pools()")
    assert one.run("upstream.get_pools()") == two.run("upstream.get_pools()") == before
    one.run("UpstreamAPI(upstream).down_host('p', 'a')")
    assert two.run("ask(upstream)") == "b"
    two.run("UpstreamAPI(upstream).up_host('p', 'a')")
    assert one.run("ask(upstream)") == "a"


@pytest.mark.parametrize("changer_looks_again", [True, False])
@pytest.mark.parametrize("changer_comes_first", [True, False])
def test_a_change_survives_the_loss_of_the_file_whichever_worker_notices_first(
    path: str,
    start_worker: Callable[[], Worker],
    changer_looks_again: bool,
    changer_comes_first: bool,
) -> None:
    changer, other = start_worker(), start_worker()
    for worker in (changer, other):
        worker.run("upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b')); ask(upstream)")
    changer.run("UpstreamAPI(upstream).set_weight('p', 'a', 5)")
    if changer_looks_again:
        changer.run("ask(upstream)")
    os.unlink(path)
    workers = [changer, other] if changer_comes_first else [other, changer]
    for _ in range(3):
        for worker in workers:
            worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert [worker.run("ask(upstream)") for worker in workers] == ["a", "a"]
    assert [worker.run("upstream.get_pools()['p']['hosts']['a']['weight']") for worker in workers] == [5, 5]


def test_a_state_that_cannot_be_read_is_taken_as_healthy_and_said_so(
    path: str, clock: FakeClock, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    UpstreamAPI(upstream).down_host("p", "a")
    UpstreamAPI(upstream).down_host("p", "b")
    with other_connection(path) as db:
        db.execute("UPDATE record SET data = x'00', changed = changed + 100 WHERE key LIKE '%a'")
        db.execute("UPDATE generation SET value = value + 1")
    clock.advance(A_SECOND)
    assert ask(upstream) == "a"
    assert "taken as healthy" in caplog.text


@pytest.mark.parametrize("table", ["generation", "config", "record", "lease"])
@pytest.mark.parametrize("way", ["DELETE FROM", "DROP TABLE"])
def test_a_request_survives_what_a_person_did_to_the_tables(
    path: str, clock: FakeClock, open_store: OpenStore, table: str, way: str
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    ask(upstream)
    with other_connection(path) as db:
        db.execute(f"{way} {table}")
        if table != "generation":
            db.execute("UPDATE generation SET value = value + 1")
    for _ in range(3):
        clock.advance(A_SECOND)
        assert ask(upstream) in "ab"
        ask(upstream, "a")
        upstream.get_pools()
    try:
        UpstreamAPI(upstream).set_weight("p", "b", 5)
    except StoreError:
        assert way == "DROP TABLE", "what is missing is written again"


@pytest.mark.parametrize("data", ["x'6e6f206a736f6e'", "'text'", "7", "-1", "1e300", "x''", "NULL"])
@pytest.mark.parametrize("column", ["config SET data", "record SET data", "generation SET value"])
def test_a_request_survives_values_that_no_version_writes(
    path: str, clock: FakeClock, open_store: OpenStore, column: str, data: str
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    ask(upstream)
    with other_connection(path) as db:
        db.execute("UPDATE generation SET value = value + 1")
        try:
            db.execute(f"UPDATE {column} = {data}")
        except sqlite3.IntegrityError:
            return
    for _ in range(3):
        clock.advance(A_SECOND)
        assert ask(upstream) in "ab"
        upstream.get_pools()


# ── files that are not ours ───────────────────────────────────────────────────────────────────


def write_text(path: str) -> None:
    Path(path).write_text("Dear diary,\n" * 500)


def write_another_applications_database(path: str) -> None:
    with other_connection(path) as db:
        db.executescript("PRAGMA user_version = 1; CREATE TABLE precious (x); INSERT INTO precious VALUES (1)")


def write_another_applications_wal_database(path: str) -> None:
    with other_connection(path) as db:
        db.executescript("PRAGMA journal_mode = WAL; PRAGMA application_id = 42; CREATE TABLE precious (x)")


@pytest.mark.parametrize(
    "write",
    [write_text, write_another_applications_database, write_another_applications_wal_database],
    ids=by_name,
)
def test_a_foreign_file_is_refused_and_left_as_it_is(
    path: str, store: SqliteStore, write: Callable[[str], None]
) -> None:
    os.mkdir(os.path.dirname(path), 0o700)
    write(path)
    os.chmod(path, 0o640)
    before = Path(path).read_bytes(), os.stat(path).st_mode, os.stat(path).st_ino
    for attempt in (lambda: store.read("a"), lambda: store.transact("a", touch), lambda: store.version("a")):
        try:
            attempt()
        except StoreError as error:
            assert "name another file" in str(error)  # noqa: PT017 - version() does not raise
    with pytest.raises(StoreError, match="name another file"):
        store.read("a")
    store.close()
    assert (Path(path).read_bytes(), os.stat(path).st_mode, os.stat(path).st_ino) == before
    assert not set_aside(path)


def test_a_database_of_a_newer_release_is_refused_and_left_as_it_is(
    path: str, store: SqliteStore, open_store: OpenStore
) -> None:
    store.transact("a", putting(x=b"1"))
    store.close()
    with other_connection(path) as db:
        db.execute("PRAGMA user_version = 99")
    before = Path(path).read_bytes()
    with pytest.raises(StoreFormatError, match="schema version 99"):
        open_store().read("a")
    with pytest.raises(StoreFormatError, match="newer release"):
        open_store().transact("a", touch)
    assert Path(path).read_bytes() == before
    assert not set_aside(path)


def test_requests_are_served_from_the_settings_beside_a_database_of_a_newer_release(
    path: str, clock: FakeClock, store: SqliteStore, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.transact("a", touch)
    store.close()
    with other_connection(path) as db:
        db.execute("PRAGMA user_version = 99")
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    for _ in range(3):
        assert ask(upstream) in "ab"
        clock.advance(A_SECOND)
    with pytest.raises(StoreFormatError):
        UpstreamAPI(upstream).set_weight("p", "a", 1)
    assert caplog.text.count("StoreDegraded") == 1
    with other_connection(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)


def test_a_configuration_of_a_newer_release_is_refused_and_left_as_it_is(
    path: str, clock: FakeClock, open_store: OpenStore
) -> None:
    old = Upstream(open_store(), pools=pools("old"))
    assert ask(old) == "old"
    config = store_config(open_store())
    newer = config.replace(b'"version":1', b'"version":2')
    assert newer != config
    open_store().transact("default", lambda view: setattr(view, "config", newer))
    assert ask(old) == "old"
    fresh = Upstream(open_store(), pools=pools("a"))
    assert ask(fresh) == "a"
    for upstream in (old, fresh):
        with pytest.raises(StoreFormatError, match="version 2"):
            UpstreamAPI(upstream).create_pool("more")
    assert store_config(open_store()) == newer


def store_config(store: SqliteStore) -> bytes:
    return store.read("default").config
