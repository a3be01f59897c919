"""Forks: the store may be open in the parent, other threads may be at work, and Python may not hear of it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from resty_upstream.stores.sqlite import SqliteStore
from tests.stores.support import A_SECOND, Worker, held_by_another, integrity

forks = pytest.mark.parametrize("fork", ["os.fork", "fork_without_hooks"])

OPEN = "store = SqliteStore(path, clock=clock); store.transact('a', touch); store.version('a')"
IMPATIENT = "import resty_upstream.stores.sqlite; resty_upstream.stores.sqlite._FORK_WAIT_S = 0.2"
"""A fork waits some seconds for another thread's transaction; here those that never end are what is tested."""
COUNT = (
    "def count(key, times=100):\n"
    "    for _ in range(times):\n"
    "        store.transact('a', add_one(key, 'all'), wait_s=20)\n"
    "    return int(store.read('a').records[key])\n"
)


def records(path: str) -> dict[str, int]:
    store = SqliteStore(path)
    try:
        return {key: int(data) for key, data in store.read("a").records.items()}
    finally:
        store.close()


# ── nothing is opened too early ───────────────────────────────────────────────────────────────


def test_nothing_is_opened_before_the_first_use(path: str, worker: Worker) -> None:
    found = worker.run(
        "import os\n"
        "before = sorted(os.listdir('/proc/self/fd')), threading.active_count()\n"
        "import resty_upstream, resty_upstream.stores.sqlite\n"
        "upstream = Upstream(url, pools=pools('a'))\n"
        "api = UpstreamAPI(upstream)\n"
        "repr(upstream), upstream.context(), upstream.bind('host_up', print)\n"
        "before == (sorted(os.listdir('/proc/self/fd')), threading.active_count())"
    )
    assert found
    assert not os.path.exists(os.path.dirname(path))


def test_a_parent_that_never_used_the_store_leaves_it_to_its_children(path: str, worker: Worker) -> None:
    worker.run("upstream = Upstream(url, pools=pools('a', 'b'))")
    worker.run("children = [child(lambda: ask(upstream)) for _ in range(4)]")
    assert set(worker.run("[c.result() for c in children]")) <= {"a", "b"}
    assert integrity(path) == "ok"


# ── the store is open in the parent ───────────────────────────────────────────────────────────


@forks
def test_parent_and_children_work_on(path: str, worker: Worker, fork: str) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    worker.run(f"children = [child(lambda n=n: count(f'child{{n}}'), {fork}) for n in range(3)]")
    worker.run("count('parent')")
    assert worker.run("[c.result() for c in children]") == [100] * 3
    assert records(path) == {"all": 400, "parent": 100, "child0": 100, "child1": 100, "child2": 100}
    assert integrity(path) == "ok"


@forks
def test_parent_and_child_hear_each_other(worker: Worker, fork: str) -> None:
    worker.run(OPEN)
    assert worker.run(
        "import os\n"
        "seen = store.version('a')\n"
        "to_child, from_parent = os.pipe()\n"
        "def in_child():\n"
        "    store.transact('a', touch)\n"
        "    mine = store.version('a')\n"
        "    os.read(to_child, 1)\n"
        "    return mine > seen and store.version('a') > mine\n"
        f"forked = child(in_child, {fork})\n"
        "while store.version('a') == seen: pass\n"
        "after = store.version('a')\n"
        "store.transact('a', touch)\n"
        "os.write(from_parent, b'x')\n"
        "forked.result() and store.version('a') > after > seen"
    )


@forks
def test_a_child_of_a_child_works(path: str, worker: Worker, fork: str) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    worker.run(
        f"child(lambda: count('child') + child(lambda: count('grandchild'), {fork}).result(), {fork}).result()"
    )
    worker.run("count('parent')")
    assert records(path) == {"all": 300, "parent": 100, "child": 100, "grandchild": 100}
    assert integrity(path) == "ok"


def test_a_child_of_multiprocessing_works(path: str, worker: Worker) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    worker.run(
        "import multiprocessing\n"
        "context = multiprocessing.get_context('fork')\n"
        "children = [context.Process(target=count, args=['child']) for _ in range(3)]\n"
        "for process in children: process.start()\n"
        "count('parent')\n"
        "for process in children: process.join()\n"
    )
    assert worker.run("[process.exitcode for process in children]") == [0, 0, 0]
    assert records(path) == {"all": 400, "parent": 100, "child": 300}
    assert integrity(path) == "ok"


@forks
def test_a_child_that_closes_the_store_takes_nothing_from_its_parent(path: str, worker: Worker, fork: str) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    for _ in range(5):
        worker.run(f"child(lambda: (store.close(), None)[1], {fork}).result()")
        worker.run("count('parent', 10)")
        assert records(path)["parent"] % 10 == 0
    assert records(path)["parent"] == 50
    assert integrity(path) == "ok"


@forks
def test_children_killed_while_they_write_do_no_harm(path: str, worker: Worker, fork: str) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    worker.run(
        "import os, signal\n"
        "for n in range(10):\n"
        f"    pid = {fork}()\n"
        "    if pid == 0:\n"
        "        count('child', 10**9)\n"
        "    while int(store.read('a').records.get('child', 0)) <= n: pass\n"
        "    os.kill(pid, signal.SIGKILL)\n"
        "    os.waitpid(pid, 0)\n"
        "count('parent')"
    )
    counted = records(path)
    assert counted["parent"] == 100
    assert counted["all"] == counted["parent"] + counted["child"]
    assert integrity(path) == "ok"


# ── other threads are at work ─────────────────────────────────────────────────────────────────


WRITE = (
    "written = 0\n"
    "stop = threading.Event()\n"
    "def write():\n"
    "    global written\n"
    "    while not stop.is_set():\n"
    "        store.transact('a', add_one('parent', 'all'), wait_s=20)\n"
    "        written += 1\n"
    "thread = threading.Thread(target=write)\n"
    "thread.start()\n"
)


def test_forking_beside_a_thread_that_writes(path: str, worker: Worker) -> None:
    worker.run(f"{OPEN}\n{COUNT}\n{WRITE}")
    worker.run("for n in range(20): child(lambda: count('child', 5)).result()")
    written = worker.run("stop.set(); thread.join(); written")
    assert written > 0
    assert records(path) == {"all": written + 100, "parent": written, "child": 100}
    assert integrity(path) == "ok"


def test_forking_without_hooks_beside_a_thread_that_writes_hangs_nobody_and_loses_nothing(
    path: str, worker: Worker
) -> None:
    # Inside SQLite a lock may be held that no one in the child will ever release: what the child needs of the
    # store it may be refused, soon, as it is when the store is broken.
    worker.run(f"{OPEN}\n{COUNT}\n{WRITE}")
    counted = worker.run(
        "from resty_upstream.errors import StoreError\n"
        "def try_to_count():\n"
        "    try:\n"
        "        store.transact('a', add_one('child', 'all'), wait_s=0.2)\n"
        "        return 1\n"
        "    except StoreError:\n"
        "        return 0\n"
        "sum(child(try_to_count, fork_without_hooks).result() for n in range(20))"
    )
    written = worker.run("stop.set(); thread.join(); written")
    expected = {"all": written + counted, "parent": written}
    assert records(path) == (expected | {"child": counted} if counted else expected)
    assert integrity(path) == "ok"


SLOW = (
    "inside, leave = threading.Event(), threading.Event()\n"
    "def slow(view):\n"
    "    add_one('parent', 'all')(view)\n"
    "    inside.set()\n"
    "    leave.wait(20)\n"
    "thread = threading.Thread(target=store.transact, args=['a', slow])\n"
    "thread.start()\n"
    "inside.wait(20)\n"
)


def test_a_fork_waits_for_the_transaction_of_another_thread(path: str, worker: Worker) -> None:
    worker.run(f"{OPEN}\n{COUNT}\n{SLOW}")
    worker.run("threading.Timer(0.3, leave.set).start(); forked = child(lambda: count('child')); thread.join()")
    assert worker.run("forked.result()") == 100
    worker.run("count('parent', 9)")
    assert records(path) == {"all": 110, "parent": 10, "child": 100}
    assert integrity(path) == "ok"


@forks
def test_a_fork_in_the_middle_of_a_transaction_hangs_nobody_and_loses_nothing(
    path: str, worker: Worker, fork: str
) -> None:
    worker.run(f"{OPEN}\n{IMPATIENT}\n{COUNT}\n{SLOW}")
    worker.run(
        "from resty_upstream.errors import StoreError\n"
        "def try_to_count():\n"
        "    os.read(to_child, 1)\n"
        "    try:\n"
        "        store.transact('a', add_one('child', 'all'), wait_s=0.2)\n"
        "        return 1\n"
        "    except StoreError:\n"
        "        return 0\n"
        "import os\n"
        "to_child, from_parent = os.pipe()\n"
        f"children = [child(try_to_count, {fork}) for _ in range(2)]\n"
        "leave.set()\n"
        "thread.join()\n"
        "os.write(from_parent, b'xx')"
    )
    counted = worker.run("sum(c.result() for c in children)")
    worker.run("count('parent', 9)")
    expected = {"all": 10 + counted, "parent": 10}
    assert records(path) == (expected | {"child": counted} if counted else expected)
    assert integrity(path) == "ok"


def test_a_fork_inside_a_transaction_hangs_nobody_and_loses_nothing(path: str, worker: Worker) -> None:
    worker.run(f"{OPEN}\n{IMPATIENT}\n{COUNT}")
    worker.run(
        "def forking(view):\n"
        "    add_one('parent', 'all')(view)\n"
        "    child(lambda: None).result()\n"
        "store.transact('a', forking)\n"
        "count('parent', 9)"
    )
    assert records(path) == {"all": 10, "parent": 10}
    assert integrity(path) == "ok"


@forks
def test_stores_that_were_dropped_without_closing_do_no_harm_to_a_child(
    path: str, worker: Worker, fork: str
) -> None:
    worker.run(
        f"{OPEN}\n{COUNT}\nimport gc\ngc.disable()\nfor _ in range(5): SqliteStore(path).transact('a', touch)\n"
    )
    assert worker.run(f"child(lambda: count('child'), {fork}).result()") == 100
    worker.run("count('parent')")
    assert records(path) == {"all": 200, "parent": 100, "child": 100}
    assert integrity(path) == "ok"


@forks
def test_two_stores_on_one_file_work_on_in_parent_and_child(path: str, worker: Worker, fork: str) -> None:
    worker.run(f"{OPEN}\n{COUNT}\nfirst = store\nsecond = SqliteStore(path)\nsecond.read('a')")
    worker.run(
        "def use_both():\n"
        "    for _ in range(50):\n"
        "        for one in (first, second):\n"
        "            one.transact('a', add_one('child', 'all'), wait_s=20)\n"
        "    return int(second.read('a').records['child'])\n"
        f"forked = child(use_both, {fork})"
    )
    worker.run("count('parent')")
    assert worker.run("forked.result()") == 100
    assert records(path) == {"all": 200, "parent": 100, "child": 100}
    assert integrity(path) == "ok"


def test_two_threads_that_fork_at_once(path: str, worker: Worker) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    worker.run(
        "def forking(number):\n"
        "    for _ in range(10):\n"
        "        child(lambda: count(f'child{number}', 3)).result()\n"
        "        count(f'parent{number}', 3)\n"
        "in_threads(3, forking)"
    )
    expected = {f"{who}{number}": 30 for who in ("child", "parent") for number in range(3)}
    assert records(path) == {"all": 180, **expected}
    assert integrity(path) == "ok"


@forks
def test_threads_of_a_child_that_come_first_together(path: str, worker: Worker, fork: str) -> None:
    worker.run(f"{OPEN}\n{COUNT}")
    worker.run(
        "def in_child():\n"
        "    in_threads(8, lambda number: count(f'thread{number}', 2))\n"
        f"for _ in range(10): child(in_child, {fork}).result()"
    )
    assert records(path) == {"all": 160, **{f"thread{number}": 20 for number in range(8)}}
    assert integrity(path) == "ok"


@forks
def test_a_child_can_close_a_store_that_a_thread_of_its_parent_was_using(
    path: str, worker: Worker, fork: str
) -> None:
    worker.run(f"{OPEN}\n{IMPATIENT}\n{COUNT}\n{SLOW}")
    worker.run(f"forked = child(lambda: (store.close(), 'closed')[1], {fork})")
    assert worker.run("forked.result()", within_s=10) == "closed"
    worker.run("leave.set(); thread.join(); count('parent', 9)")
    assert records(path) == {"all": 10, "parent": 10}
    assert integrity(path) == "ok"


# ── what SQLite forbids: closing a parent's connection in a child ─────────────────────────────


@forks
@pytest.mark.parametrize("use", ["read", "write", "close", "version"])
def test_a_late_child_takes_no_commit_of_others_away(
    path: str, start_worker: Callable[[], Worker], fork: str, use: str
) -> None:
    """The parent has closed, another has committed and died: what it committed is in the -wal alone."""
    parent, other = start_worker(), start_worker()
    parent.run(
        f"{OPEN}\n"
        "import os\n"
        "to_child, from_parent = os.pipe()\n"
        "def in_child():\n"
        "    os.read(to_child, 1)\n"
        "    if use == 'read': store.read('a')\n"
        "    if use == 'write': store.transact('a', touch, wait_s=20)\n"
        f"    if use == 'version': clock.advance({A_SECOND}); store.version('a')\n"
        "    store.close()\n"
        f"use = {use!r}\n"
        f"forked = child(in_child, {fork})\n"
        "store.close()"
    )
    other.run("store = SqliteStore(path); store.transact('a', add_one('committed'))")
    other.kill()
    parent.run("os.write(from_parent, b'x'); forked.result()")
    assert records(path) == {"committed": 1}
    assert integrity(path) == "ok"


# ── what each process must have of its own ────────────────────────────────────────────────────


@forks
def test_workers_do_not_all_start_at_the_same_host(worker: Worker, fork: str) -> None:
    worker.run("upstream = Upstream(url, pools=pools(*[f'host{n}' for n in range(100)]))")
    first = worker.run(f"[child(lambda: ask(upstream), {fork}).result() for _ in range(8)]")
    assert len(set(first)) > 3, first


@forks
def test_workers_of_a_parent_that_served_requests_do_not_go_on_in_step(worker: Worker, fork: str) -> None:
    worker.run(
        "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools(*[f'host{n}' for n in range(100)]))\n"
        "ask(upstream)"
    )
    first = worker.run(
        f"children = [child(lambda: (clock.advance({A_SECOND}), ask(upstream))[1], {fork}) for _ in range(8)]\n"
        "[c.result() for c in children]"
    )
    assert len(set(first)) > 3, first


@forks
def test_what_the_parent_has_queued_is_written_once(path: str, worker: Worker, fork: str) -> None:
    worker.run(
        "options = {'max_fails': 1000, 'failed_timeout': 3600}\n"
        "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', **options))\n"
        "ask(upstream)"
    )
    with held_by_another(path):
        worker.run(
            "from resty_upstream import NoHostAvailable\n"
            "for _ in range(5):\n"
            "    try: ask(upstream, 'a')\n"
            "    except NoHostAvailable: pass\n"
        )
        assert worker.run("upstream.replica.has_queue")
        worker.run(
            "import os\n"
            "to_child, from_parent = os.pipe()\n"
            "def in_child():\n"
            "    os.read(to_child, 1)\n"
            f"    clock.advance({A_SECOND})\n"
            "    upstream.explain()\n"
            "    upstream.post_process()\n"
            f"children = [child(in_child, {fork}) for _ in range(3)]"
        )
    worker.run(f"clock.advance({A_SECOND}); upstream.post_process()")
    assert not worker.run("upstream.replica.has_queue")
    worker.run("os.write(from_parent, b'xxx'); [c.result() for c in children]")
    assert worker.run("upstream.get_pools()['p']['hosts']['a']['failcount']") == 5


@forks
def test_a_child_serves_requests_although_a_thread_of_its_parent_was_loading(worker: Worker, fork: str) -> None:
    worker.run(
        "upstream = Upstream(url, pools=pools('a', 'b')); ask(upstream)\n"
        "inside, leave = threading.Event(), threading.Event()\n"
        "changes = upstream.store.changes\n"
        "parent = __import__('os').getpid()\n"
        "def slow_changes(*args, **options):\n"
        "    if __import__('os').getpid() == parent and not leave.is_set():\n"
        "        inside.set()\n"
        "        leave.wait(20)\n"
        "    return changes(*args, **options)\n"
        "upstream.store.changes = slow_changes\n"
        "SqliteStore(path).transact('default', touch)\n"
        "thread = threading.Thread(target=ask, args=[upstream])\n"
        "thread.start()\n"
        "inside.wait(20)\n"
        "api = UpstreamAPI(upstream)\n"
        f"forked = child(lambda: [ask(upstream), api.down_host('p', 'a'), ask(upstream)], {fork})\n"
    )
    answers = worker.run("forked.result()", within_s=10)
    assert answers[2] == "b"
    worker.run("leave.set(); thread.join()")
    assert worker.run("ask(upstream)") == "b"
