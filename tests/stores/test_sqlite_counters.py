"""Counters in files: sums of all processes that outlive them, whatever becomes of processes, forks and files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resty_upstream import HostCounts, Upstream
from resty_upstream.stores.counters import CELLS
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import A_SECOND, Worker, ask, pools, wait_until

OpenStore = Callable[..., SqliteStore]
StartWorker = Callable[..., Worker]

forks = pytest.mark.parametrize("fork", ["os.fork", "fork_without_hooks"])

KEY = b"together" + bytes(8)
OPEN = (
    "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a'))\n"
    "for _ in range(3): upstream.explain()\n"  # nothing is left to be loaded, by which a fork is noticed
    "ask(upstream)\n"
)
BEGIN = "attempts = upstream.attempts(); attempt = next(attempts); attempt.__enter__()"
"""An attempt that does not end."""


@pytest.fixture
def upstream(open_store: OpenStore) -> Upstream:
    """One of this process, with which nothing is counted: it looks."""
    return Upstream(open_store(), pools=pools("a"))


def counts(upstream: Upstream) -> HostCounts:
    return upstream.counts().hosts["p", "a"]


def files(path: str) -> list[str]:
    """The files of counters, by their numbers."""
    return sorted(file.suffix for file in Path(path).parent.glob("*.counts.*"))


def is_free(file: str) -> bool:
    """Whether no process owns the file."""
    fd = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


# ── several processes ─────────────────────────────────────────────────────────────────────────


def test_processes_count_together(path: str, upstream: Upstream, start_worker: StartWorker) -> None:
    workers = [start_worker() for _ in range(3)]
    for worker in workers:
        worker.run(OPEN)
        worker.run("for _ in range(99): ask(upstream)")
    assert counts(upstream).successes == 300
    assert worker.run("upstream.counts().hosts['p', 'a'].successes") == 300
    assert files(path) == [".0", ".1", ".2"]


def test_who_only_looks_has_no_file(path: str, upstream: Upstream) -> None:
    upstream.get_pools(), upstream.explain(), upstream.counts()
    assert files(path) == []


def test_what_a_killed_process_has_counted_stays(path: str, upstream: Upstream, start_worker: StartWorker) -> None:
    with start_worker() as worker:
        worker.run(f"{OPEN}{BEGIN}")
        assert (counts(upstream).successes, counts(upstream).in_flight) == (1, 1)
    assert (counts(upstream).successes, counts(upstream).in_flight) == (1, 0)


def test_the_next_process_goes_on_where_a_killed_one_was(
    path: str, upstream: Upstream, start_worker: StartWorker
) -> None:
    for number in range(1, 6):
        with start_worker() as worker:
            worker.run(f"{OPEN}{BEGIN}")
            assert (counts(upstream).successes, counts(upstream).in_flight) == (number, 1)
    assert files(path) == [".0"]


def test_there_are_as_many_files_as_there_were_processes_at_once(
    path: str, upstream: Upstream, start_worker: StartWorker
) -> None:
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for worker in [stack.enter_context(start_worker()) for _ in range(3)]:
                worker.run(OPEN)
    assert files(path) == [".0", ".1", ".2"]
    assert counts(upstream).successes == 9


def test_killed_while_it_counts(path: str, upstream: Upstream, start_worker: StartWorker) -> None:
    told = 0
    for _ in range(3):
        with start_worker() as worker:
            worker.run(OPEN)
            worker.begin("import itertools\nfor n in itertools.count(1): ask(upstream); n % 1000 or say(n)")
            told += [worker.said() for _ in range(3)][-1]
    counted = counts(upstream)
    assert counted.successes >= told
    assert counted.in_flight == 0


def test_two_stores_of_one_process_have_files_of_their_own(path: str, open_store: OpenStore) -> None:
    one, two = (Upstream(open_store(), pools=pools("a")) for _ in range(2))
    ask(one), ask(two)
    assert counts(one).successes == counts(two).successes == 2
    assert files(path) == [".0", ".1"]


def test_a_store_that_is_closed_leaves_its_file_to_others_and_writes_to_it_no_more(
    path: str, upstream: Upstream, worker: Worker
) -> None:
    ask(upstream)
    for attempt in upstream.attempts():
        with attempt:
            upstream.close()
            worker.run(OPEN)
    assert worker.run("upstream.counts().hosts['p', 'a'][:1]") == [2]
    assert files(path) == [".0"]
    ask(upstream)
    assert counts(upstream).successes == 3
    assert files(path) == [".0", ".1"]


def test_many_hosts_make_the_file_grow_under_those_that_count(open_store: OpenStore) -> None:
    names = [f"h{number}" for number in range(500)]
    upstream = Upstream(open_store(), pools=pools(*names))
    for _ in range(3 * len(names)):
        ask(upstream)
    assert {counted.successes for counted in upstream.counts().hosts.values()} == {3}


# ── forks ─────────────────────────────────────────────────────────────────────────────────────


@forks
def test_a_child_counts_for_itself_from_its_first_attempt(
    path: str, upstream: Upstream, worker: Worker, fork: str
) -> None:
    worker.run(OPEN)
    before = Path(path + ".counts.0").read_bytes()
    worker.run(f"child(lambda: [ask(upstream) for _ in range(9)], {fork}).result()")
    assert Path(path + ".counts.0").read_bytes() == before
    assert counts(upstream).successes == 10


@forks
def test_parent_and_children_that_count_at_once_lose_nothing(
    path: str, upstream: Upstream, worker: Worker, fork: str
) -> None:
    worker.run(OPEN)
    worker.run(
        "def work(): [ask(upstream) for _ in range(3000)]\n"
        f"children = [child(work, {fork}) for _ in range(3)]\n"
        "work()\n"
        "[c.result() for c in children]"
    )
    assert counts(upstream).successes == 1 + 4 * 3000
    assert counts(upstream).in_flight == 0


@forks
def test_an_attempt_that_a_child_ends_is_its_parents(
    path: str, upstream: Upstream, worker: Worker, fork: str
) -> None:
    worker.run(f"{OPEN}{BEGIN}")
    for error in ("None, None", "ValueError, ValueError()"):
        worker.run(f"child(lambda: attempt.__exit__({error}, None), {fork}).result()")
    assert (counts(upstream).successes, counts(upstream).ignored, counts(upstream).in_flight) == (1, 0, 1)
    worker.run("attempt.__exit__(None, None, None)")
    assert (counts(upstream).successes, counts(upstream).in_flight) == (2, 0)


@forks
def test_a_call_without_a_host_is_counted_by_the_child_itself(
    path: str, upstream: Upstream, worker: Worker, fork: str
) -> None:
    worker.run(
        f"{OPEN}"
        "from resty_upstream import NoHostAvailable\n"
        "def fail():\n"
        "    try: ask(upstream, 'a')\n"
        "    except NoHostAvailable: pass\n"
        "fail()"
    )
    before = Path(path + ".counts.0").read_bytes()
    worker.run(f"child(fail, {fork}).result()")
    assert Path(path + ".counts.0").read_bytes() == before
    assert upstream.counts().exhausted == 2


@forks
def test_a_child_that_closes_the_store_takes_the_file_from_nobody(
    path: str, worker: Worker, start_worker: StartWorker, fork: str
) -> None:
    worker.run(OPEN)
    worker.run(f"child(upstream.store.close, {fork}).result()")
    assert not is_free(path + ".counts.0")
    start_worker().run(OPEN)
    assert files(path) == [".0", ".1"]


@contextlib.contextmanager
def child_that_lives_on(worker: Worker, work: str, fork: str) -> Iterator[None]:
    """Inside, the worker has been killed, and a child of it has done its work and lives on."""
    worker.run(f"import signal\ndef live():\n    {work}\n    say('done')\n    signal.pause()\n")
    worker.begin(f"forked = child(live, {fork}); say(forked.pid); forked.result()")
    said = [worker.said(), worker.said()]
    (pid,) = (word for word in said if word != "done")
    try:
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: worker.ended() is not None, "the parent is gone")
        os.kill(pid, 0)
        yield
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("fork", "work"), [("os.fork", "pass"), ("os.fork", "ask(upstream)"), ("fork_without_hooks", "ask(upstream)")]
)
def test_a_child_that_lives_on_keeps_no_file_of_its_dead_parent(
    path: str, upstream: Upstream, worker: Worker, start_worker: StartWorker, fork: str, work: str
) -> None:
    """Without hooks as soon as it uses a store: nothing in it runs before."""
    worker.run(f"{OPEN}{BEGIN}")
    with child_that_lives_on(worker, work, fork):
        assert is_free(path + ".counts.0")
        assert counts(upstream).in_flight == 0
        before = files(path)
        start_worker().run(OPEN)
        assert files(path) == before


# ── files ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_files_are_made_private(path: str, umask: None, upstream: Upstream) -> None:
    ask(upstream)
    assert stat.S_IMODE(os.lstat(path + ".counts.0").st_mode) == 0o600


def test_a_file_that_others_may_read_is_tightened(path: str, upstream: Upstream) -> None:
    ask(upstream)
    upstream.close()
    os.chmod(path + ".counts.0", 0o644)
    ask(upstream)
    assert stat.S_IMODE(os.lstat(path + ".counts.0").st_mode) == 0o600


def test_a_file_that_was_deleted_costs_no_count(
    path: str, upstream: Upstream, clock: FakeClock, worker: Worker
) -> None:
    worker.run(OPEN)
    ask(upstream)
    for number in range(3):
        os.unlink(path + ".counts.1")
        ask(upstream)
        clock.advance(A_SECOND)
        ask(upstream)
        assert counts(upstream).successes == 2 + 2 * (number + 1)
        assert worker.run("upstream.counts().hosts['p', 'a'].successes") == counts(upstream).successes
    assert files(path) == [".0", ".1"]


def test_a_directory_that_was_deleted_costs_a_living_process_no_count(
    path: str, upstream: Upstream, clock: FakeClock
) -> None:
    for _ in range(3):
        ask(upstream)
    os.rename(os.path.dirname(path), os.path.dirname(path) + ".away")
    clock.advance(A_SECOND)
    ask(upstream)
    clock.advance(A_SECOND)
    ask(upstream)
    assert counts(upstream).successes == 5
    assert files(path) == [".0"]


@contextlib.contextmanager
def in_the_way(file: Path, kind: str) -> Iterator[None]:
    """Something that is no file of counters has the first one's name."""
    target = file.with_name("target")
    target.write_bytes(b"precious")
    if kind == "link":
        file.symlink_to(target)
    elif kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(b"not ours" * 100)
    before = os.lstat(file).st_ino
    yield
    assert target.read_bytes() == b"precious"
    assert os.lstat(file).st_ino == before
    assert kind != "file" or file.read_bytes() == b"not ours" * 100
    os.rename(file, file.with_name("away"))


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "file"])
def test_what_is_no_file_of_counters_is_left_alone_and_counting_goes_on(
    path: str, worker: Worker, upstream: Upstream, kind: str
) -> None:
    os.mkdir(os.path.dirname(path), 0o700)
    with in_the_way(Path(path + ".counts.0"), kind):
        worker.run(OPEN)
        for _ in range(5):
            worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
        assert worker.run("upstream.counts().hosts['p', 'a'].successes") == 6
        said = worker.run("[line for line in logged if 'count' in line]")
        assert len(said) == 1, said
    worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert counts(upstream).successes == 7


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 1e300], ids=repr)
@pytest.mark.parametrize("cell", [0, 1, CELLS - 1])
def test_a_row_that_makes_no_sense_is_not_counted(
    path: str, open_store: OpenStore, number: float, cell: int
) -> None:
    store = open_store()
    store.counters(KEY, list).cells[1] += 1
    store.counters(b"another!" + bytes(8), list).cells[1] += 1
    store.counters(KEY, list).cells[cell] = number
    assert KEY not in store.sums()
    store.close()
    assert KEY not in store.sums()
    store.counters(KEY, list).cells[1] += 1
    assert store.sums()[KEY][1] == 1
    assert store.sums()[b"another!" + bytes(8)][1] == 1


@pytest.mark.parametrize("size", [0, 1, 15, 16, 255, 300, 4000])
def test_a_file_that_was_cut_short_is_used(path: str, open_store: OpenStore, size: int) -> None:
    store = open_store()
    for number in range(100):
        store.counters(struct.pack("8sQ", b"together", number), list).cells[1] += 1
    store.close()
    os.truncate(path + ".counts.0", size)
    store.sums()
    store.counters(KEY, list).cells[1] += 1
    assert store.sums()[KEY][1] >= 1
    assert files(path) == [".0"]


def test_another_store_reads_what_an_odd_file_has(path: str, open_store: OpenStore) -> None:
    store = open_store()
    store.counters(KEY, list).cells[1] += 1
    Path(path + ".counts.1").write_bytes(b"")
    Path(path + ".counts.2").write_bytes(b"resty_upstream\x00\x01" + os.urandom(5000))
    Path(path + ".counts.x").write_bytes(b"?")
    os.mkfifo(path + ".counts.4")
    assert store.sums()[KEY][1] == 1


def test_where_no_store_can_be_a_process_counts_for_itself(
    tmp_path: Path, open_store: OpenStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    upstream = Upstream(open_store(tmp_path / "open" / "upstreams.db"), pools=pools("a"))
    for _ in range(5):
        ask(upstream)
        clock.advance(A_SECOND)
    assert counts(upstream).successes == 5
    assert os.listdir(tmp_path / "open") == []
    assert sum("is not shared" in message for message in caplog.messages) == 1
    (tmp_path / "open").chmod(0o700)
    ask(upstream)
    clock.advance(A_SECOND)
    ask(upstream)
    other = Upstream(open_store(tmp_path / "open" / "upstreams.db"), pools=pools("a"))
    assert counts(upstream).successes == counts(other).successes == 7
    assert sum("shared again" in message for message in caplog.messages) == 1


def test_an_attempt_under_way_while_counting_moves_to_a_file_is_under_way_no_more(
    path: str, upstream: Upstream, clock: FakeClock
) -> None:
    for attempt in upstream.attempts():
        with attempt:
            os.unlink(path + ".counts.0")
            clock.advance(A_SECOND)
            ask(upstream)
            assert counts(upstream).in_flight == 0
    assert counts(upstream).in_flight == 0
    assert counts(upstream).successes == 1


# ── a full disk ───────────────────────────────────────────────────────────────────────────────


def test_a_limit_of_the_file_size_is_as_a_full_disk(worker: Worker, upstream: Upstream) -> None:
    worker.run(
        "import resource\n"
        "store = SqliteStore(path, clock=clock)\n"
        "store.read('a')\n"
        "limits = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))\n"
        "rows = [store.counters(b'together%08d' % n, list) for n in range(100)]\n"
        "for row in rows: row.cells[1] += 1"
    )
    assert worker.run("sum(numbers[1] for numbers in store.sums().values())") == 100
    assert sum(numbers[1] for numbers in upstream.store.sums().values()) < 100
    assert worker.run("sum('is not shared' in line for line in logged)") == 1
    worker.run("resource.setrlimit(resource.RLIMIT_FSIZE, limits)")
    worker.run(f"clock.advance({A_SECOND}); store.version('a')")
    assert sum(numbers[1] for numbers in upstream.store.sums().values()) == 100
    assert worker.run("sum(numbers[1] for numbers in store.sums().values())") == 100
    assert worker.run("rows[0].ours[0], rows[-1].ours[0]") == [1, 0]
