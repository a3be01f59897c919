"""No error of the store ever fails a request: what is known serves, it is said once, and all heals by itself."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resty_upstream import NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.errors import StoreError, StoreUnavailable
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import A_SECOND, Worker, ask, other_connection, pools, putting, touch, wait_until

OpenStore = Callable[..., SqliteStore]


def degraded(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and "StoreDegraded" in record.getMessage()
    ]


# ── a place that is not safe ──────────────────────────────────────────────────────────────────


@pytest.fixture
def unsafe(tmp_path: Path) -> Path:
    """A directory that everyone can write."""
    directory = tmp_path / "unsafe"
    directory.mkdir()
    directory.chmod(0o777)
    return directory


def test_a_request_that_meets_an_unsafe_directory_first_is_served_from_the_declared_pools(
    unsafe: Path, clock: FakeClock, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(open_store(unsafe / "upstreams.db"), pools=pools("a", "b"))
    for _ in range(10):
        assert ask(upstream) in "ab"
        assert ask(upstream, "a") == "b"
        clock.advance(0.7)
    (said,) = degraded(caplog)
    assert "others can write" in said
    assert f"chmod 700 {unsafe}" in said
    assert os.listdir(unsafe) == []


def test_commands_and_api_calls_say_what_is_wrong_with_an_unsafe_directory(
    unsafe: Path, open_store: OpenStore
) -> None:
    upstream = Upstream(open_store(unsafe / "upstreams.db"), pools=pools("a", "b"))
    api = UpstreamAPI(upstream)
    calls: list[Callable[[], object]] = [
        lambda: api.create_pool("new"),
        lambda: api.set_weight("p", "a", 1),
        lambda: api.down_host("p", "a"),
        lambda: upstream.configure(pools("a")),
        lambda: upstream.save_pools(pools("a")),
        lambda: upstream.revive_hosts(),
        lambda: upstream.configured,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="chmod 700"):
            call()
    assert os.listdir(unsafe) == []


def test_a_directory_that_is_made_safe_is_used_without_a_restart(
    unsafe: Path, clock: FakeClock, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(open_store(unsafe / "upstreams.db"), pools=pools("a", "b", max_fails=2))
    for _ in range(4):
        ask(upstream, "a")
    assert [ask(upstream) for _ in range(4)] == ["b"] * 4
    unsafe.chmod(0o700)
    clock.advance(A_SECOND)
    assert ask(upstream) == "b"
    assert upstream.replica.trouble is None
    clock.advance(A_SECOND)
    ask(upstream)
    state = Upstream(open_store(unsafe / "upstreams.db")).get_pools()["p"]["hosts"]["a"]
    assert (state["up"], state["failcount"]) == (False, 2)
    UpstreamAPI(upstream).up_host("p", "a")
    assert {ask(upstream) for _ in range(4)} == {"a", "b"}
    assert "works again" in caplog.text
    assert len(degraded(caplog)) == 1


def test_an_api_call_heals_too(unsafe: Path, open_store: OpenStore) -> None:
    upstream = Upstream(open_store(unsafe / "upstreams.db"), pools=pools("a", "b"))
    ask(upstream)
    unsafe.chmod(0o700)
    UpstreamAPI(upstream).down_host("p", "a")
    assert [ask(upstream) for _ in range(4)] == ["b"] * 4


def test_without_declared_pools_an_unsafe_directory_leaves_no_host(unsafe: Path, open_store: OpenStore) -> None:
    upstream = Upstream(open_store(unsafe / "upstreams.db"))
    with pytest.raises(NoHostAvailable):
        ask(upstream)
    assert upstream.get_pools() == {}


def test_health_that_was_declared_counts_although_the_store_is_broken(unsafe: Path, open_store: OpenStore) -> None:
    declared = pools("a", "b")
    declared["p"]["hosts"]["a"]["up"] = False
    upstream = Upstream(open_store(unsafe / "upstreams.db"), pools=declared)
    assert [ask(upstream) for _ in range(4)] == ["b"] * 4


def test_a_broken_store_is_not_tried_more_than_once_a_second(
    unsafe: Path, clock: FakeClock, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(open_store(unsafe / "upstreams.db"), pools=pools("a", "b"))
    ask(upstream)
    looked = []
    really_lstat = os.lstat
    monkeypatch.setattr(
        os, "lstat", lambda path, **options: (looked.append(path), really_lstat(path, **options))[1]
    )
    for _ in range(100):
        ask(upstream)
    assert looked == []
    clock.advance(A_SECOND)
    for _ in range(100):
        ask(upstream, "a")
    assert len(looked) < 60


# ── a store that breaks while it is in use ────────────────────────────────────────────────────


def break_directory(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o777)
    for suffix in ("", ".bell"):
        os.unlink(path + suffix)


def mend_directory(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o700)


def put_a_file_in_place_of_the_directory(path: str) -> None:
    shutil.rmtree(os.path.dirname(path))
    Path(os.path.dirname(path)).write_text("")


def take_the_file_away(path: str) -> None:
    os.unlink(os.path.dirname(path))


def put_a_directory_in_place_of_the_file(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def take_the_directory_away(path: str) -> None:
    os.rmdir(path)


def make_it_a_newer_release(path: str) -> None:
    os.unlink(path)
    with other_connection(path) as db:
        db.executescript("PRAGMA application_id = 0x52555053; PRAGMA user_version = 99; CREATE TABLE x (y)")


def take_the_newer_release_away(path: str) -> None:
    os.unlink(path)


BREAKS = [
    (break_directory, mend_directory),
    (put_a_file_in_place_of_the_directory, take_the_file_away),
    (put_a_directory_in_place_of_the_file, take_the_directory_away),
    (make_it_a_newer_release, take_the_newer_release_away),
]


@pytest.mark.parametrize(("break_it", "mend"), BREAKS, ids=[b.__name__ for b, _ in BREAKS])
def test_a_store_that_breaks_is_served_from_what_is_known_and_heals(
    path: str,
    clock: FakeClock,
    open_store: OpenStore,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[str], None],
    mend: Callable[[str], None],
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", "c", max_fails=2))
    UpstreamAPI(upstream).down_host("p", "c")
    ask(upstream)
    before = upstream.get_pools()
    for times in (1, 2):
        break_it(path)
        for _ in range(6):
            clock.advance(0.6)
            assert ask(upstream) in "ab"
            assert upstream.get_pools() == before
        with pytest.raises(StoreError):
            UpstreamAPI(upstream).set_weight("p", "a", 7)
        assert len(degraded(caplog)) == times
        mend(path)
        for _ in range(4):
            clock.advance(0.6)
            assert ask(upstream) in "ab"
        assert upstream.replica.trouble is None
        assert upstream.get_pools() == before
        assert Upstream(open_store()).get_pools() == before
        assert caplog.text.count("works again") == times
    UpstreamAPI(upstream).down_host("p", "b")
    assert [ask(upstream) for _ in range(3)] == ["a"] * 3


@pytest.mark.parametrize(("break_it", "mend"), BREAKS, ids=[b.__name__ for b, _ in BREAKS])
def test_what_fails_while_the_store_is_broken_works_here_and_is_written_afterwards(
    path: str,
    clock: FakeClock,
    open_store: OpenStore,
    break_it: Callable[[str], None],
    mend: Callable[[str], None],
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    ask(upstream)
    break_it(path)
    clock.advance(A_SECOND)
    for _ in range(4):
        assert ask(upstream, "a") == "b"
    assert [ask(upstream) for _ in range(4)] == ["b"] * 4
    mend(path)
    for _ in range(3):
        clock.advance(A_SECOND)
        ask(upstream)
    assert not upstream.replica.has_queue
    assert not Upstream(open_store()).get_pools()["p"]["hosts"]["a"]["up"]


def test_a_host_that_failed_is_probed_although_the_store_is_broken(
    path: str, clock: FakeClock, open_store: OpenStore
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=1, failed_timeout=5))
    ask(upstream)
    put_a_file_in_place_of_the_directory(path)
    clock.advance(A_SECOND)
    for _ in range(2):
        ask(upstream, "a")
    assert [ask(upstream) for _ in range(4)] == ["b"] * 4
    clock.advance(6)
    assert "a" in {ask(upstream) for _ in range(4)}


def test_any_error_of_sqlite_is_a_store_error(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (sqlite3.OperationalError, sqlite3.DatabaseError, sqlite3.InterfaceError, sqlite3.InternalError):

        def fail(*_args: object, error: type[Exception] = error, **_options: object) -> None:
            raise error("something new")

        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", fail)
            with pytest.raises(StoreUnavailable, match="something new"):
                store.read("a")
            assert isinstance(store.version("a"), int)


def test_a_process_out_of_descriptors_goes_on(worker: Worker) -> None:
    worker.run(
        "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b', max_fails=2)); ask(upstream)"
    )
    worker.run(
        "import os, resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))\n"
        "os.unlink(path)"
    )
    for _ in range(3):
        assert worker.run(f"clock.advance({A_SECOND}); ask(upstream, 'a')") == "b"
    worker.run("resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))")
    for _ in range(3):
        worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert worker.run("upstream.replica.trouble") is None
    assert not worker.run("upstream.replica.has_queue")
    assert worker.run("Upstream(SqliteStore(path, clock=clock)).get_pools() == upstream.get_pools()")


@pytest.mark.parametrize("fresh", [True, False])
def test_requests_go_on_while_a_stopped_process_holds_the_lock_file(
    path: str, open_store: OpenStore, start_worker: Callable[[], Worker], fresh: bool
) -> None:
    holder = start_worker()
    upstream = Upstream(open_store(clock=None), pools=pools("a", "b"))
    if not fresh:
        ask(upstream)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    holder.run(
        "import fcntl\n"
        "lock = open(path + '.lock', 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "import os\n"
        "if os.path.exists(path): os.unlink(path)"
    )
    holder.stop()
    began, slowest = time.monotonic(), 0.0
    while time.monotonic() - began < 2.5:  # long enough for the store to be tried again
        before = time.monotonic()
        assert ask(upstream) in "ab"
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 1
    holder.resume()
    holder.run("lock.close()")
    wait_until(lambda: (ask(upstream), upstream.replica.trouble)[1] is None and os.path.exists(path), "healed")
    UpstreamAPI(upstream).down_host("p", "a")
    assert ask(upstream) == "b"


# ── a reboot ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def before_reboot(open_store: OpenStore, clock: FakeClock) -> Upstream:
    """One host failed, one failed and was taken down, one was taken down, one has a failure, one is fine."""
    clock.advance(100_000)
    upstream = Upstream(open_store(), pools=pools("failed", "both", "manual", "shaky", "fine", max_fails=2))
    for _ in range(12):  # in turns: each is tried at least twice
        ask(upstream, "failed", "both")
    while not upstream.get_pools()["p"]["hosts"]["shaky"]["failcount"]:
        ask(upstream, "shaky")
    for name in ("manual", "both"):
        UpstreamAPI(upstream).down_host("p", name)
    UpstreamAPI(upstream).set_weight("p", "fine", 3)
    assert not upstream.get_pools()["p"]["hosts"]["failed"]["up"]
    return upstream


def reboot(open_store: OpenStore) -> Upstream:
    """The upstream in a process of the next boot, whose clock begins anew."""
    store = open_store(clock=FakeClock(5.0))
    store.clock_id = "another boot"
    return Upstream(store, pools=pools("failed", "both", "manual", "shaky", "fine", max_fails=2))


def test_after_a_reboot_health_is_forgotten_and_what_was_done_by_hand_is_kept(
    before_reboot: Upstream, open_store: OpenStore
) -> None:
    before_reboot.store.close()
    upstream = reboot(open_store)
    ask(upstream)
    hosts = upstream.get_pools()["p"]["hosts"]
    assert {name: host["up"] for name, host in hosts.items()} == {
        "failed": True,
        "both": False,
        "manual": False,
        "shaky": True,
        "fine": True,
    }
    assert {host["failcount"] for host in hosts.values()} == {0}
    assert {host["lastfail"] for host in hosts.values()} == {0}
    assert hosts["fine"]["weight"] == 3
    assert upstream.configured


def test_after_a_reboot_failures_count_at_once(before_reboot: Upstream, open_store: OpenStore) -> None:
    before_reboot.store.close()
    upstream = reboot(open_store)
    for _ in range(4):
        try:
            ask(upstream, "fine")
        except NoHostAvailable:
            break
    assert not upstream.get_pools()["p"]["hosts"]["fine"]["up"]


def test_after_a_reboot_an_api_call_may_be_the_first(before_reboot: Upstream, open_store: OpenStore) -> None:
    before_reboot.store.close()
    upstream = reboot(open_store)
    UpstreamAPI(upstream).up_host("p", "manual")
    hosts = upstream.get_pools()["p"]["hosts"]
    assert [name for name, host in hosts.items() if not host["up"]] == ["both"]


def test_a_reboot_is_noticed_once(before_reboot: Upstream, open_store: OpenStore) -> None:
    before_reboot.store.close()
    first, second = reboot(open_store), reboot(open_store)
    ask(first)
    for _ in range(4):
        ask(first, "fine")
    assert not first.get_pools()["p"]["hosts"]["fine"]["up"]
    ask(second)
    assert second.get_pools() == first.get_pools()


def test_a_lease_does_not_outlive_a_reboot(store: SqliteStore, open_store: OpenStore) -> None:
    store.lease("a", "probe", "me", 1_000_000)
    other = open_store(clock=FakeClock(5.0))
    other.clock_id = "another boot"
    assert other.lease("a", "probe", "you", 10)
    assert not other.lease("a", "probe", "me", 10)


# ── several upstreams, several stores ─────────────────────────────────────────────────────────


def test_upstreams_in_one_store_know_nothing_of_each_other(open_store: OpenStore) -> None:
    store = open_store()
    first = Upstream(store, "first", pools=pools("a", "b", max_fails=1))
    second = Upstream(store, "second", pools=pools("a", "x"))
    for _ in range(3):
        assert ask(first, "a") == "b"
    UpstreamAPI(second).down_host("p", "x")
    assert [ask(first) for _ in range(4)] == ["b"] * 4
    assert [ask(second) for _ in range(4)] == ["a"] * 4
    UpstreamAPI(first).create_pool("more")
    assert list(second.get_pools()) == ["p"]


def test_upstreams_in_one_file_are_written_back_each_by_itself(
    path: str, clock: FakeClock, start_worker: Callable[[], Worker]
) -> None:
    worker = start_worker()
    worker.run(
        "store = SqliteStore(path, clock=clock)\n"
        "upstreams = [Upstream(store, name, pools=pools(name)) for name in 'abc']\n"
        "[ask(upstream) for upstream in upstreams]\n"
        "[UpstreamAPI(upstream).create_pool('made at run time') for upstream in upstreams]\n"
        "[ask(upstream) for upstream in upstreams]"
    )
    os.unlink(path)
    assert worker.run(f"clock.advance({A_SECOND}); [ask(upstream) for upstream in upstreams]") == ["a", "b", "c"]
    other = start_worker()
    found = other.run("[list(Upstream(url, name).get_pools()) for name in 'abc']")
    assert found == [["p", "made at run time"]] * 3


def test_two_stores_on_one_file_in_one_process_work_as_two_processes(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    first.transact("a", putting(x=b"1"))
    second.read("a")
    for n in range(20):
        version = second.version("a")
        first.transact("a", putting(x=b"%d" % n))
        assert second.version("a") != version
        assert second.read("a").records == {"x": b"%d" % n}
        first, second = second, first


def test_closing_one_of_two_stores_on_a_file_leaves_the_other_its_locks(
    path: str, open_store: OpenStore, worker: Worker
) -> None:
    # POSIX drops all locks of a process on a file when any descriptor of it is closed.
    first, second = open_store(), open_store()
    first.transact("a", touch)
    second.read("a")
    for _ in range(5):
        worker.run("store = SqliteStore(path); store.transact('a', add_one('x')); store.close()")
        second.close()
        first.transact("a", lambda view: view.put("y", b"1"))
        worker.run("store = SqliteStore(path); store.transact('a', add_one('x')); store.close()")
        second.read("a")
    assert first.read("a").records["x"] == b"10"


def test_a_path_with_unusual_characters_is_a_path(tmp_path: Path, open_store: OpenStore) -> None:
    for name in ("with space", "what?mode=memory", "100%25", "ü#1", "file:x"):
        store = open_store(tmp_path / name / f"{name}.db")
        store.transact("a", putting(x=name.encode()))
        store.close()
        assert (tmp_path / name / f"{name}.db").exists()
        assert open_store(tmp_path / name / f"{name}.db").read("a").records == {"x": name.encode()}
