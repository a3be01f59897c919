"""Many processes at once, some of them killed or stopped in the middle of a write."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.errors import StoreBusy
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import (
    A_SECOND,
    Worker,
    ask,
    held_by_another,
    in_threads,
    integrity,
    pools,
    putting,
    touch,
    wait_until,
)

PROCESSES = 8
THREADS = 4

StartWorker = Callable[[], Worker]


def start(start_worker: StartWorker, count: int, source: str) -> list[Worker]:
    workers = [start_worker() for _ in range(count)]
    for number, worker in enumerate(workers):
        worker.begin(f"number = {number}\n{source}")
    for worker in workers:
        worker.result()
    return workers


# ── no update is lost ─────────────────────────────────────────────────────────────────────────


def test_no_update_of_any_process_and_thread_is_lost(
    path: str, store: SqliteStore, start_worker: StartWorker
) -> None:
    times = 25
    store.transact("a", putting(x=b"0", y=b"0"))
    first = store.read("a").generation
    workers = start(
        start_worker,
        PROCESSES,
        "store = SqliteStore(path)\n"
        "def work(thread):\n"
        f"    for _ in range({times}):\n"
        "        store.transact('a', add_one('x', f'own{number}', 'y'), wait_s=60)\n",
    )
    for worker in workers:
        worker.begin(f"in_threads({THREADS}, work)")
    total = PROCESSES * THREADS * times
    seen, torn = 0, []
    while seen < total:
        generation, _, records = store.read("a")
        if records["x"] != records["y"] or generation - first != int(records["x"]) or int(records["x"]) < seen:
            torn.append((generation, records))
        seen = int(records["x"])
    for worker in workers:
        worker.result(60)
    assert torn == []
    generation, _, records = store.read("a")
    assert generation == first + total
    own = {f"own{number}": b"%d" % (THREADS * times) for number in range(PROCESSES)}
    assert records == {"x": b"%d" % total, "y": b"%d" % total, **own}
    assert integrity(path) == "ok"


def test_no_failure_recorded_by_any_process_and_thread_is_lost(
    path: str, start_worker: StartWorker, open_store: Callable[..., SqliteStore]
) -> None:
    """Each request fails on every host of the common upstream, and of one that is its process's own."""
    times = 10
    workers = start(
        start_worker,
        PROCESSES,
        "from resty_upstream import NoHostAvailable\n"
        "options = {'max_fails': 1_000_000, 'failed_timeout': 3600}\n"
        "store = SqliteStore(path)\n"
        "common = Upstream(store, 'common', pools=pools('a', 'b', **options))\n"
        "own = Upstream(store, f'own{number}', pools=pools('a', **options))\n"
        "def refuse(host, port, timeout_s):\n"
        "    raise ConnectionRefusedError(111, 'Connection refused')\n"
        "def work(thread):\n"
        f"    for _ in range({times}):\n"
        "        for upstream in (common, own):\n"
        "            try: upstream.connect(refuse)\n"
        "            except NoHostAvailable: pass\n",
    )
    for worker in workers:
        worker.begin(f"in_threads({THREADS}, work)")
    for worker in workers:
        worker.result(60)
    for worker in workers:
        worker.begin(
            "while common.replica.has_queue or own.replica.has_queue: common.post_process(); own.post_process()"
        )
    for worker in workers:
        worker.result(60)
    total = PROCESSES * THREADS * times
    hosts = Upstream(open_store(), "common").get_pools()["p"]["hosts"]
    assert {name: host["failcount"] for name, host in hosts.items()} == {"a": total, "b": total}
    for number in range(PROCESSES):
        hosts = Upstream(open_store(), f"own{number}").get_pools()["p"]["hosts"]
        assert hosts["a"]["failcount"] == THREADS * times
    assert integrity(path) == "ok"


def test_changes_by_hand_of_all_processes_are_all_there(
    start_worker: StartWorker, open_store: Callable[..., SqliteStore]
) -> None:
    workers = start(start_worker, 4, "upstream = Upstream(url, pools=pools('a')); ask(upstream)")
    for worker in workers:
        worker.begin(
            "in_threads(4, lambda thread: [UpstreamAPI(upstream).add_host('p', host='new.test', "
            "id=f'{number}-{thread}-{n}', weight=n) for n in range(5)])"
        )
    for worker in workers:
        worker.result(60)
    expected = {"a"} | {f"{number}-{thread}-{n}" for number in range(4) for thread in range(4) for n in range(5)}
    assert set(Upstream(open_store()).get_pools()["p"]["hosts"]) == expected


def test_of_processes_that_see_a_host_die_one_tells_the_event(start_worker: StartWorker) -> None:
    workers = start(
        start_worker,
        6,
        "upstream = Upstream(url, pools=pools('a', 'b', max_fails=1))\n"
        "ask(upstream)\n"
        "heard = []\n"
        "upstream.bind('host_down', heard.append)\n",
    )
    for worker in workers:
        worker.begin("in_threads(4, lambda _: [ask(upstream, 'a') for _ in range(5)]); upstream.post_process()")
    for worker in workers:
        worker.result()
    assert sum(worker.run("len(heard)") for worker in workers) == 1


def test_of_processes_that_may_probe_a_host_one_does(start_worker: StartWorker) -> None:
    workers = start(
        start_worker,
        6,
        "options = {'max_fails': 1, 'failed_timeout': 5}\n"
        "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b', **options))\n"
        "ask(upstream)\n"
        "tried = []\n"
        "def request(_):\n"
        "    with upstream.context():\n"
        "        for attempt in upstream.attempts():\n"
        "            with attempt as host:\n"
        "                tried.append(host.id)\n"
        "                if host.id == 'a': raise ConnectionRefusedError(111, 'Connection refused')\n",
    )
    workers[0].run("[request(0) for _ in range(4)]; upstream.post_process(); tried.clear()")
    for worker in workers:
        worker.run("clock.advance(7); upstream.explain(); tried.clear()")
    for worker in workers:
        worker.begin("in_threads(4, request)")
    for worker in workers:
        worker.result()
    tried = [host for worker in workers for host in worker.run("tried")]
    assert sorted(tried) == ["a"] + ["b"] * 24


# ── first boot ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("what", ["missing directory", "empty directory", "empty file"])
def test_processes_that_boot_together_agree(path: str, start_worker: StartWorker, what: str) -> None:
    if what != "missing directory":
        os.mkdir(os.path.dirname(path), 0o700)
    if what == "empty file":
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    workers = [start_worker() for _ in range(16 if what == "missing directory" else 8)]
    for worker in workers:
        worker.run("upstream = Upstream(url, pools=pools('a', 'b', 'c'))")
    for worker in workers:
        worker.begin("ask(upstream)")
    assert {worker.result(60) for worker in workers} <= {"a", "b", "c"}
    for worker in workers:
        worker.begin("ask(upstream); (upstream.get_pools(), upstream.store.read('default').config, logged)")
    seen = [worker.result(60) for worker in workers]
    assert [logged for _, _, logged in seen] == [[]] * len(workers)
    assert all(pools == seen[0][0] and config == seen[0][1] for pools, config, _ in seen)
    assert list(seen[0][0]["p"]["hosts"]) == ["a", "b", "c"]
    workers[0].run("UpstreamAPI(upstream).set_weight('p', 'b', 1)")
    for worker in workers:
        worker.begin("ask(upstream)")
    assert [worker.result(60) for worker in workers] == ["b"] * len(workers)
    assert integrity(path) == "ok"


# ── a writer that is killed ───────────────────────────────────────────────────────────────────

KILLING = """
import mmap, os, random, signal
acknowledged = memoryview(mmap.mmap(-1, 4096)).cast("Q")
done = acknowledged[0] = 0
pause = threading.Event()
problems = []

def write(number):
    store = SqliteStore(path)
    while True:
        store.transact("a", add_one("x", f"own{number % 3}", "y"), wait_s=20)
        acknowledged[0] += 1

for number in range(200):
    pid = os.fork()
    if pid == 0:
        try:
            write(number)
        finally:
            os._exit(1)
    # From before it opened the store to well into its work
    deadline = time.monotonic() + 20
    if number % 4:
        while acknowledged[0] == done and time.monotonic() < deadline: pause.wait(0.0005)
    pause.wait(random.uniform(0, 0.015))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if status != signal.SIGKILL:
        problems.append(f"child {number} ended by itself: {status}")
    done = acknowledged[0]
    reader = SqliteStore(path)
    generation, _, records = reader.read("a")
    reader.close()
    counted = int(records.get("x", 0))
    if counted < done:
        problems.append(f"{done - counted} commits lost after kill {number}")
    if counted > done + 1:
        problems.append(f"{counted} counted, {done} acknowledged after kill {number}")
    if records.get("x") != records.get("y") or sum(int(records.get(f"own{n}", 0)) for n in range(3)) != counted:
        problems.append(f"half a transaction after kill {number}: {records}")
    if records and generation != counted + first:
        problems.append(f"generation {generation - first} after kill {number}, {counted} counted")
    if reader.version("a") != generation:
        problems.append(f"version and generation differ after kill {number}")
    reader.close()
    done = acknowledged[0] = counted  # what was committed without word counts from here
(problems, done)
"""


def test_a_writer_killed_200_times_loses_and_damages_nothing(
    path: str, store: SqliteStore, worker: Worker
) -> None:
    store.transact("a", touch)
    first = store.read("a").generation
    reading = True
    began = time.monotonic()
    worker.begin(f"first = {first}\n{KILLING}")
    slowest = 0.0
    while reading:
        # Neither reading nor writing of others may hang because someone died.
        before = time.monotonic()
        store.read("a")
        store.transact("b", lambda view: view.put("x", b"1"), wait_s=5)
        slowest = max(slowest, time.monotonic() - before)
        threading.Event().wait(0.002)
        reading = time.monotonic() - began < 60 and not worker.has_answered()
    problems, count = worker.result()
    assert problems == []
    assert count > 200
    assert slowest < 3
    assert integrity(path) == "ok"
    assert int(store.read("a").records["x"]) == count


def test_a_worker_killed_between_commit_and_ring_is_made_up_for(
    clock: FakeClock, store: SqliteStore, worker: Worker
) -> None:
    store.transact("a", touch)
    worker.run(
        "import os, signal\n"
        "store = SqliteStore(path)\n"
        "store.read('a')\n"
        "store._ring = lambda generation: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    version = store.version("a")
    worker.begin("store.transact('a', putting(x=b'1'))")
    wait_until(worker.ended, "the worker is dead")
    assert store.version("a") == version
    clock.advance(A_SECOND)
    assert store.version("a") != version
    assert store.read("a").records == {"x": b"1"}


# ── a writer that is stopped ──────────────────────────────────────────────────────────────────


@pytest.fixture
def stopped(path: str, start_worker: StartWorker) -> Worker:
    """A process that was stopped in the middle of a transaction."""
    worker = start_worker()
    worker.run(
        "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b', max_fails=2)); ask(upstream)"
    )
    worker.begin("upstream.store.transact('default', hold)")
    assert worker.said() == "inside"
    worker.stop()
    return worker


def go_on(stopped: Worker) -> None:
    stopped.resume()
    stopped.tell("leave")
    stopped.result()


def test_readers_go_on_beside_a_stopped_writer(stopped: Worker, store: SqliteStore) -> None:
    began = time.monotonic()
    for _ in range(50):
        assert len(store.read("default").records) == 2
        store.version("default")
    assert time.monotonic() - began < 1
    assert not stopped.ended()


def test_a_fresh_process_starts_beside_a_stopped_writer(stopped: Worker, start_worker: StartWorker) -> None:
    worker = start_worker()
    assert worker.run("upstream = Upstream(url, pools=pools('a', 'b', max_fails=2)); ask(upstream)") in "ab"
    assert worker.run("upstream.replica.trouble") is None
    assert list(worker.run("upstream.get_pools()['p']['hosts']")) == ["a", "b"]


def test_a_fresh_process_with_other_settings_starts_beside_a_stopped_writer(
    stopped: Worker, start_worker: StartWorker
) -> None:
    worker = start_worker()
    worker.run("upstream = Upstream(url, pools=pools('a', 'b', 'c', max_fails=2))")
    began = time.monotonic()
    assert worker.run("ask(upstream)") in "abc"
    assert time.monotonic() - began < 3
    go_on(stopped)
    wait_until(
        lambda: list(worker.run("ask(upstream); upstream.get_pools()['p']['hosts']")) == ["a", "b", "c"], "merged"
    )


def test_requests_go_on_beside_a_stopped_writer(
    stopped: Worker, clock: FakeClock, open_store: Callable[..., SqliteStore]
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    slowest = 0.0
    for n in range(40):
        began = time.monotonic()
        assert ask(upstream, "a") == "b"
        slowest = max(slowest, time.monotonic() - began)
        clock.advance(n % 2)
    assert slowest < 1
    assert upstream.replica.has_queue


def test_failures_work_in_this_process_beside_a_stopped_writer(
    stopped: Worker, open_store: Callable[..., SqliteStore]
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    for _ in range(4):
        ask(upstream, "a")
    assert [ask(upstream) for _ in range(6)] == ["b"] * 6
    hosts = {reason.host.id: reason.up for reason in upstream.explain().pools[0].hosts}
    assert hosts == {"a": False, "b": True}


def test_what_was_queued_beside_a_stopped_writer_is_written_with_the_next_write(
    stopped: Worker, clock: FakeClock, open_store: Callable[..., SqliteStore]
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    heard: list[object] = []
    upstream.bind("host_down", heard.append)
    for _ in range(4):
        ask(upstream, "a")
    assert heard == []
    go_on(stopped)
    UpstreamAPI(upstream).create_pool("more")
    assert not upstream.replica.has_queue
    state = Upstream(open_store()).get_pools()["p"]["hosts"]["a"]
    assert (state["up"], state["failcount"]) == (False, 2)
    assert len(heard) == 1
    assert ask(upstream) == "b"


def test_what_was_queued_beside_a_stopped_writer_is_written_by_the_next_request(
    stopped: Worker, clock: FakeClock, open_store: Callable[..., SqliteStore]
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    for _ in range(4):
        ask(upstream, "a")
    go_on(stopped)
    for _ in range(3):
        clock.advance(A_SECOND)
        ask(upstream)
    assert not upstream.replica.has_queue
    assert not Upstream(open_store()).get_pools()["p"]["hosts"]["a"]["up"]


def test_a_change_by_hand_beside_a_stopped_writer_says_that_the_store_is_busy(
    stopped: Worker, open_store: Callable[..., SqliteStore]
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    ask(upstream)
    before = upstream.get_pools()
    began = time.monotonic()
    with pytest.raises(StoreBusy, match="another process"):
        upstream.replica.commit(lambda edit: edit.view.touch(), wait_s=0.3)
    assert 0.3 <= time.monotonic() - began < 2
    assert upstream.get_pools() == before
    go_on(stopped)
    UpstreamAPI(upstream).down_host("p", "a")
    assert ask(upstream) == "b"


def test_a_change_by_hand_waits_for_a_writer_that_goes_on(
    stopped: Worker, store: SqliteStore, open_store: Callable[..., SqliteStore]
) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number:
            store.transact("default", putting(x=b"1"), wait_s=20)
            done.append(1)
        else:
            threading.Event().wait(0.1)
            assert not done
            go_on(stopped)

    in_threads(2, work)
    assert "x" in store.read("default").records


def test_other_threads_write_while_one_waits_for_long(
    path: str, store: SqliteStore, open_store: Callable[..., SqliteStore]
) -> None:
    store.read("a")
    upstream = Upstream(store, pools=pools("a", "b", max_fails=2))
    ask(upstream)
    slowest = 0.0
    with held_by_another(path):

        def work(number: int) -> None:
            nonlocal slowest
            if number == 0:
                with pytest.raises(StoreBusy):
                    store.transact("x", touch, wait_s=1.0)
                return
            for _ in range(5):
                began = time.monotonic()
                assert ask(upstream, "a") == "b"
                slowest = max(slowest, time.monotonic() - began)

        in_threads(2, work)
    assert slowest < 0.8


def test_what_is_on_its_way_to_the_store_still_counts_in_this_process(
    path: str, clock: FakeClock, store: SqliteStore
) -> None:
    """A change by hand takes the queue along; while it waits, the hosts in it stay down."""
    upstream = Upstream(store, pools=pools("a", "b", "c", max_fails=1))
    ask(upstream)
    with held_by_another(path):
        for _ in range(4):
            ask(upstream, "a")
        assert "a" not in [ask(upstream) for _ in range(6)]

        def work(number: int) -> None:
            if number == 0:
                with pytest.raises(StoreBusy):
                    upstream.replica.commit(lambda edit: edit.view.touch(), wait_s=1.0)
                return
            wait_until(lambda: not upstream.replica.has_queue, "the change takes the queue along", within_s=0.9)
            for _ in range(4):
                ask(upstream, "b")
            assert [ask(upstream) for _ in range(6)] == ["c"] * 6

        in_threads(2, work)
        assert [ask(upstream) for _ in range(6)] == ["c"] * 6
    clock.advance(A_SECOND)
    upstream.post_process()
    hosts = upstream.get_pools()["p"]["hosts"]
    assert [host["up"] for host in hosts.values()] == [False, False, True]


def test_a_failure_counts_once_while_its_commit_lands(store: SqliteStore) -> None:
    """Another thread loads what was committed before the committing thread goes on."""
    upstream = Upstream(store, pools=pools("a", "b", max_fails=2))
    ask(upstream)
    really_transact = store.transact

    def land_slowly(*args: Any, **options: Any) -> Any:
        result = really_transact(*args, **options)
        in_threads(1, lambda _: upstream.explain())
        return result

    store.transact = land_slowly  # type: ignore[method-assign]
    while not upstream.get_pools()["p"]["hosts"]["a"]["failcount"]:
        ask(upstream, "a")
    assert {ask(upstream) for _ in range(4)} == {"a", "b"}


def test_a_request_with_nothing_to_say_does_not_wait_for_a_stopped_writer(
    stopped: Worker, open_store: Callable[..., SqliteStore]
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b", max_fails=2))
    for _ in range(4):
        ask(upstream, "a")
    assert upstream.replica.has_queue
    began = time.monotonic()
    for _ in range(200):
        ask(upstream)
    assert time.monotonic() - began < 0.6, "3 ms each"


def test_the_own_change_is_seen_by_the_own_next_request_while_another_thread_is_loading(
    store: SqliteStore, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(store, pools=pools("a", "b"))
    ask(upstream)
    loading, committed = threading.Event(), threading.Event()
    really_look = store.changes

    def slow_look(*args: Any, **options: Any) -> object:
        changes = really_look(*args, **options)
        if threading.current_thread() is not threading.main_thread():
            loading.set()
            committed.wait(5)
        return changes

    store.changes = slow_look  # type: ignore[method-assign,assignment]
    worker.run("SqliteStore(path).transact('default', touch)")
    thread = threading.Thread(target=ask, args=[upstream])
    thread.start()
    assert loading.wait(5)
    try:
        UpstreamAPI(upstream).down_host("p", "a")
    finally:
        monkeypatch.setattr("resty_upstream.replica._PATIENCE_S", 5.0)  # a loaded machine is no failure
        committed.set()
    assert [ask(upstream) for _ in range(4)] == ["b"] * 4
    thread.join()
