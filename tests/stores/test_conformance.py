"""What every store must do: one suite, run over each of them."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from resty_upstream import Upstream
from resty_upstream.errors import StoreBusy
from resty_upstream.stores import LOG_ENTRIES, Changes, Document, Store, View
from resty_upstream.stores.counters import CELLS, ENDS, Row
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import WAIT_S, in_threads, putting, touch, wait_until

MakeStore = Callable[[Path, FakeClock], Store]

STORES: dict[str, MakeStore] = {
    "memory": lambda _directory, clock: MemoryStore(clock=clock),
    "sqlite": lambda directory, clock: SqliteStore(directory / "upstreams.db", clock=clock),
}


@pytest.fixture(params=STORES)
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    return STORES[request.param]


@pytest.fixture
def store(make_store: MakeStore, tmp_path: Path, clock: FakeClock) -> Iterator[Store]:
    store = make_store(tmp_path / "private", clock)
    yield store
    store.close()


class Oops(Exception):
    """What a transaction of a test raises."""


def write_nothing(view: View) -> str:
    """A transaction that only looks."""
    view.get("a")
    return f"config {view.config!r}, keys {sorted(view.keys())}"


# ── reading and writing ───────────────────────────────────────────────────────────────────────


def test_a_namespace_that_was_never_written_is_empty(store: Store) -> None:
    assert store.read("a") == Document(0, b"", {})


def test_what_a_transaction_wrote_is_read(store: Store) -> None:
    def work(view: View) -> None:
        view.config = b"the config"
        view.put("x", b"1")
        view.put("y", b"")

    store.transact("a", work)
    assert store.read("a")[1:] == (b"the config", {"x": b"1", "y": b""})


def test_a_transaction_returns_what_its_function_returns(store: Store) -> None:
    result = object()
    assert store.transact("a", lambda _view: result) is result


def test_a_later_transaction_finds_what_an_earlier_one_wrote(store: Store) -> None:
    store.transact("a", putting(x=b"1", y=b"2"))

    def work(view: View) -> tuple[bytes | None, bytes | None, list[str]]:
        return view.get("x"), view.get("z"), sorted(view.keys())

    assert store.transact("a", work) == (b"1", None, ["x", "y"])


def test_a_transaction_reads_its_own_writes(store: Store) -> None:
    store.transact("a", putting(old=b"1", gone=b"2"))

    def work(view: View) -> None:
        assert not view.has_config
        assert view.config == b""
        view.config = b"new config"
        assert view.has_config
        assert view.config == b"new config"
        view.put("old", b"changed")
        view.put("new", b"3")
        view.delete("gone")
        assert (view.get("old"), view.get("new"), view.get("gone")) == (b"changed", b"3", None)
        assert sorted(view.keys()) == ["new", "old"]
        view.put("gone", b"back")
        assert view.get("gone") == b"back"
        view.delete("new")
        assert sorted(view.keys()) == ["gone", "old"]

    store.transact("a", work)
    assert store.read("a").records == {"old": b"changed", "gone": b"back"}


def test_a_transaction_knows_whether_a_configuration_was_ever_written(store: Store) -> None:
    assert store.transact("a", lambda view: view.has_config) is False
    store.transact("a", lambda view: setattr(view, "config", b"c"))
    assert store.transact("a", lambda view: (view.has_config, view.config)) == (True, b"c")


def test_deleting_what_is_not_there_does_nothing(store: Store) -> None:
    store.transact("a", lambda view: view.delete("x"))
    assert store.read("a").records == {}


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt, SystemExit])
def test_a_transaction_whose_function_raises_stores_nothing(store: Store, error: type[BaseException]) -> None:
    store.transact("a", putting(x=b"1"))
    before, version = store.read("a"), store.version("a")

    def work(view: View) -> None:
        view.config = b"never"
        view.put("x", b"2")
        view.put("y", b"2")
        view.touch()
        raise error

    with pytest.raises(error):
        store.transact("a", work)
    assert store.read("a") == before
    assert store.version("a") == version


def test_a_store_works_on_after_a_function_raised(store: Store) -> None:
    def work(view: View) -> None:
        view.put("x", b"2")
        raise Oops

    with pytest.raises(Oops):
        store.transact("a", work)
    store.transact("a", putting(x=b"3"))
    assert store.read("a").records == {"x": b"3"}


def test_a_document_does_not_change_any_more(store: Store) -> None:
    store.transact("a", putting(x=b"1"))
    before = store.read("a")
    store.transact("a", putting(x=b"2", y=b"2"))
    assert before.records == {"x": b"1"}


def test_changing_a_document_changes_nothing_in_the_store(store: Store) -> None:
    store.transact("a", putting(x=b"1"))
    records: Any = store.read("a").records
    records["x"] = b"2"
    assert store.read("a").records == {"x": b"1"}


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(key=keys, data=st.binary(max_size=300), config=st.binary(min_size=1, max_size=300))
@settings(max_examples=60)
def test_any_bytes_under_any_key_come_back_as_they_were(
    any_store: Store, key: str, data: bytes, config: bytes
) -> None:
    def work(view: View) -> None:
        for old in view.keys():  # noqa: SIM118 - a view is not a mapping
            view.delete(old)
        view.put(key, data)
        view.config = config

    any_store.transact("a", work)
    assert any_store.read("a")[1:] == (config, {key: data})
    assert any_store.transact("a", lambda view: view.get(key)) == data


@pytest.fixture(scope="module", params=STORES)
def any_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store for all examples of a property."""
    store = STORES[request.param](tmp_path_factory.mktemp("any") / "private", FakeClock())
    yield store
    store.close()


def test_a_large_configuration_comes_back_as_it_was(store: Store) -> None:
    config = bytes(range(256)) * 8_000
    store.transact("a", lambda view: setattr(view, "config", config))
    assert store.read("a").config == config


# ── version and generation ────────────────────────────────────────────────────────────────────


def test_the_version_is_a_number_that_stands_still_by_itself(store: Store, clock: FakeClock) -> None:
    store.read("a")
    version = store.version("a")
    assert isinstance(version, int)
    clock.advance(100)
    assert store.version("a") == version


@pytest.mark.parametrize(
    "work",
    [touch, lambda view: setattr(view, "config", b"c"), putting(x=b"1")],
    ids=["touch", "config", "put and touch"],
)
def test_a_change_of_routing_moves_version_and_generation(store: Store, work: Callable[[View], None]) -> None:
    store.transact("a", putting(x=b"0"))
    version, generation = store.version("a"), store.read("a").generation
    store.transact("a", work)
    assert store.version("a") != version
    assert store.read("a").generation > generation


@pytest.mark.parametrize(
    "work",
    [
        write_nothing,
        lambda view: view.put("x", b"2"),
        lambda view: view.put("new", b"2"),
        lambda view: view.delete("x"),
        lambda view: view.delete("never there"),
    ],
    ids=["nothing", "put", "put new", "delete", "delete nothing"],
)
def test_what_does_not_change_routing_moves_neither(store: Store, work: Callable[[View], object]) -> None:
    store.transact("a", putting(x=b"0"))
    version, generation = store.version("a"), store.read("a").generation
    store.transact("a", work)
    assert store.version("a") == version
    assert store.read("a").generation == generation


def test_no_version_comes_twice(store: Store) -> None:
    versions = []
    for _ in range(20):
        store.transact("a", touch)
        versions.append(store.version("a"))
    assert len(set(versions)) == 20


def test_the_generation_only_grows(store: Store) -> None:
    generations = []
    for _ in range(20):
        store.transact("a", touch)
        generations.append(store.read("a").generation)
    assert generations == sorted(set(generations))


# ── namespaces ────────────────────────────────────────────────────────────────────────────────


def test_namespaces_know_nothing_of_each_other(store: Store) -> None:
    for number, ns in enumerate(["a", "b", "a b", "A", "ä", "a\x00"]):

        def work(view: View, data: bytes = b"%d" % number) -> None:
            assert not view.has_config
            assert view.keys() == []
            view.config = data
            view.put("x", data)

        store.transact(ns, work)
    found = [(d.config, d.records) for d in map(store.read, ["a", "b", "a b", "A", "ä", "a\x00"])]
    assert found == [(b"%d" % n, {"x": b"%d" % n}) for n in range(6)]


def test_a_change_of_one_namespace_moves_no_other_generation(store: Store) -> None:
    store.transact("a", touch)
    store.transact("b", touch)
    before = store.read("a")
    store.transact("b", touch)
    assert store.read("a") == before


# ── changes ───────────────────────────────────────────────────────────────────────────────────


def test_the_first_look_at_the_changes_gives_everything(store: Store) -> None:
    store.transact("a", lambda view: (setattr(view, "config", b"c"), view.put("x", b"1")))
    changes = store.changes("a")
    assert changes[1:] == (b"c", {"x": b"1"}, True)


def test_of_a_namespace_that_was_never_written_everything_is_nothing(store: Store) -> None:
    assert store.changes("a")[1:] == (b"", {}, True)


def test_a_later_look_gives_what_was_written_since(store: Store) -> None:
    store.transact("a", lambda view: (setattr(view, "config", b"c"), putting(x=b"1", y=b"1")(view)))
    mark = store.changes("a").mark
    assert (store.changes("a", mark).config, store.changes("a", mark).is_all) == (None, False)
    store.transact("a", putting(x=b"2"))
    changes = store.changes("a", mark)
    assert (changes.config, changes.records["x"], changes.is_all) == (None, b"2", False)
    store.transact("a", lambda view: setattr(view, "config", b"d"))
    assert store.changes("a", mark).config == b"d"
    assert store.changes("a", changes.mark).config == b"d"


def test_what_others_wrote_into_another_namespace_is_no_change(store: Store) -> None:
    store.transact("a", lambda view: setattr(view, "config", b"c"))
    mark = store.changes("a").mark
    store.transact("b", lambda view: (setattr(view, "config", b"c"), view.put("x", b"1")))
    assert store.changes("a", mark)[1:] == (None, {}, False)


def test_after_a_record_was_deleted_everything_is_given(store: Store) -> None:
    store.transact("a", lambda view: (setattr(view, "config", b"c"), putting(x=b"1", y=b"1")(view)))
    mark = store.changes("a").mark
    store.transact("a", lambda view: (view.delete("x"), view.touch()))
    assert store.changes("a", mark)[1:] == (b"c", {"y": b"1"}, True)
    assert not store.changes("a", store.changes("a", mark).mark).is_all


def test_a_mark_of_another_store_means_nothing(make_store: MakeStore, tmp_path: Path, clock: FakeClock) -> None:
    marks: list[object] = [None, "mark", 1, (1, 2)]
    for number in range(3):
        store = make_store(tmp_path / str(number), clock)
        store.transact("a", lambda view: (setattr(view, "config", b"c"), view.put("x", b"1")))
        for mark in marks:
            assert store.changes("a", mark)[1:] == (b"c", {"x": b"1"}, True)
        marks.append(store.changes("a").mark)
        store.close()


def test_a_store_knows_its_namespaces(store: Store) -> None:
    """Those with a configuration."""
    assert store.namespaces() == []
    for ns in ("b", "a", "ä"):
        store.transact(ns, lambda view: setattr(view, "config", b"c"))
    store.transact("without", putting(x=b"1"))
    assert store.namespaces() == ["a", "b", "ä"]


def test_a_store_is_there_once_it_was_written_to(store: Store) -> None:
    """To examine it neither opens nor creates anything."""
    if not isinstance(store, MemoryStore):
        assert not store.examine()
        assert not store.examine()
    store.transact("a", touch)
    assert store.examine()


# ── leases ────────────────────────────────────────────────────────────────────────────────────


def test_a_lease_is_for_one_owner(store: Store) -> None:
    assert store.lease("a", "probe", "one", 10)
    assert not store.lease("a", "probe", "two", 10)


def test_leases_of_other_names_and_namespaces_are_others(store: Store) -> None:
    assert store.lease("a", "probe", "one", 10)
    assert store.lease("a", "other", "two", 10)
    assert store.lease("b", "probe", "three", 10)


def test_a_lease_ends_by_itself(store: Store, clock: FakeClock) -> None:
    store.lease("a", "probe", "one", 10)
    clock.advance(9.9)
    assert not store.lease("a", "probe", "two", 10)
    clock.advance(0.2)
    assert store.lease("a", "probe", "two", 10)
    assert not store.lease("a", "probe", "one", 10)


def test_an_owner_renews_its_lease(store: Store, clock: FakeClock) -> None:
    store.lease("a", "probe", "one", 10)
    clock.advance(8)
    assert store.lease("a", "probe", "one", 10)
    clock.advance(8)
    assert not store.lease("a", "probe", "two", 10)
    clock.advance(3)
    assert store.lease("a", "probe", "two", 10)


def test_a_lease_that_was_given_back_is_free(store: Store) -> None:
    store.lease("a", "probe", "one", 10)
    store.release("a", "probe", "one")
    assert store.lease("a", "probe", "two", 10)


def test_only_its_owner_gives_a_lease_back(store: Store) -> None:
    store.lease("a", "probe", "one", 10)
    store.release("a", "probe", "two")
    store.release("a", "never taken", "two")
    assert not store.lease("a", "probe", "two", 10)


def test_an_owner_whose_lease_went_to_another_cannot_give_that_back(store: Store, clock: FakeClock) -> None:
    store.lease("a", "probe", "one", 10)
    clock.advance(11)
    store.lease("a", "probe", "two", 10)
    store.release("a", "probe", "one")
    assert not store.lease("a", "probe", "three", 10)


def test_leases_change_neither_routing_nor_records(store: Store) -> None:
    store.transact("a", putting(x=b"1"))
    before, version = store.read("a"), store.version("a")
    store.lease("a", "probe", "one", 10)
    store.release("a", "probe", "one")
    assert (store.read("a"), store.version("a")) == (before, version)


def test_of_threads_that_ask_together_one_gets_the_lease(store: Store) -> None:
    barrier = threading.Barrier(8)
    got = []

    def work(number: int) -> None:
        barrier.wait(WAIT_S)
        got.append(store.lease("a", "probe", f"owner {number}", 10))

    in_threads(8, work)
    assert sorted(got) == [False] * 7 + [True]


def test_the_holder_of_a_lease_is_its_owner_until_it_is_over_or_given_back(store: Store, clock: FakeClock) -> None:
    assert store.holder("a", "probe") == ""
    store.lease("a", "probe", "one", 10)
    assert store.holder("a", "probe") == "one"
    assert (store.holder("a", "other"), store.holder("b", "probe")) == ("", "")
    assert not store.lease("a", "probe", "two", 10)
    assert store.holder("a", "probe") == "one"
    clock.advance(9.9)
    assert store.holder("a", "probe") == "one"
    clock.advance(0.1)
    assert store.holder("a", "probe") == ""
    store.lease("a", "probe", "two", 10)
    assert store.holder("a", "probe") == "two"
    store.release("a", "probe", "two")
    assert store.holder("a", "probe") == ""


def test_a_transaction_sees_who_has_a_lease_as_of_now(store: Store, clock: FakeClock) -> None:
    def holders(view: View) -> list[str]:
        return [view.holder("probe"), view.holder("never taken")]

    assert store.transact("a", holders) == ["", ""]
    store.lease("a", "probe", "one", 10)
    store.lease("b", "never taken", "two", 10)
    assert store.transact("a", holders) == ["one", ""]
    clock.advance(10)
    assert store.transact("a", holders) == ["", ""]
    store.lease("a", "probe", "two", 10)
    assert store.transact("a", holders) == ["two", ""]
    store.release("a", "probe", "two")
    assert store.transact("a", holders) == ["", ""]


# ── the log ───────────────────────────────────────────────────────────────────────────────────


def logging(*entries: bytes) -> Callable[[View], None]:
    """A transaction that adds to the log and does nothing else."""

    def work(view: View) -> None:
        for entry in entries:
            view.log(entry)

    return work


def test_the_log_of_a_namespace_that_was_never_written_is_empty(store: Store) -> None:
    assert store.history("a") == []


def test_entries_come_back_in_order_the_newest_at_the_end(store: Store) -> None:
    store.transact("a", logging(b"1", b"2"))
    store.transact("a", logging(b"3"))
    store.transact("a", logging())
    store.transact("a", logging(b"", b"\x00\xff"))
    assert store.history("a") == [b"1", b"2", b"3", b"", b"\x00\xff"]


@pytest.mark.parametrize(("limit", "found"), [(1, 1), (2, 2), (3, 3), (4, 3), (10**9, 3), (0, 0), (-1, 0)])
def test_as_many_of_the_last_entries_are_read_as_asked_for(store: Store, limit: int, found: int) -> None:
    store.transact("a", logging(b"1", b"2", b"3"))
    assert store.history("a", limit) == [b"1", b"2", b"3"][3 - found :]


def test_the_last_entries_of_each_namespace_are_kept_however_much_others_log(store: Store) -> None:
    store.transact("b", logging(b"first of b"))
    store.transact("a", logging(*(b"%d" % n for n in range(LOG_ENTRIES - 1))))
    assert len(store.history("a")) == LOG_ENTRIES - 1
    store.transact("a", logging(b"one more"))
    assert store.history("a")[0] == b"0"
    store.transact("a", logging(b"two more"))
    assert store.history("a") == [*(b"%d" % n for n in range(1, LOG_ENTRIES - 1)), b"one more", b"two more"]
    store.transact("a", logging(*(b"%d" % n for n in range(2 * LOG_ENTRIES))))
    assert store.history("a") == [b"%d" % n for n in range(LOG_ENTRIES, 2 * LOG_ENTRIES)]
    assert store.history("b") == [b"first of b"]


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt])
def test_the_entries_of_a_transaction_that_raised_are_not_there(store: Store, error: type[BaseException]) -> None:
    store.transact("a", logging(b"1"))

    def work(view: View) -> None:
        view.log(b"never")
        view.touch()
        raise error

    with pytest.raises(error):
        store.transact("a", work)
    store.transact("a", logging(b"2"))
    assert store.history("a") == [b"1", b"2"]


def test_entries_alone_change_neither_routing_nor_records(store: Store) -> None:
    store.transact("a", putting(x=b"1"))
    before, version, mark = store.read("a"), store.version("a"), store.changes("a").mark
    store.transact("a", logging(b"1"))
    assert (store.read("a"), store.version("a")) == (before, version)
    assert not store.changes("a", mark).is_all


def test_entries_survive_that_records_are_deleted_and_the_store_is_closed(store: Store) -> None:
    store.transact("a", lambda view: [view.put("x", b"1"), view.log(b"1")])
    store.transact("a", lambda view: view.delete("x"))
    store.close()
    assert store.history("a") == [b"1"]


def test_no_entry_of_any_thread_is_lost_and_each_thread_finds_its_own_in_order(store: Store) -> None:
    def work(number: int) -> None:
        for n in range(40):
            store.transact("a", logging(b"%d %d" % (number, n)), wait_s=WAIT_S)

    in_threads(6, work)
    entries = store.history("a")
    for number in range(6):
        own = [entry for entry in entries if entry.startswith(b"%d " % number)]
        assert own == [b"%d %d" % (number, n) for n in range(40)]
    assert len(entries) == 240


# ── the rest of the protocol ──────────────────────────────────────────────────────────────────


def test_the_clock_is_the_one_that_was_given(store: Store, clock: FakeClock) -> None:
    assert store.now() == clock()
    clock.advance(3)
    assert store.now() == clock()


def test_the_clock_has_a_name(store: Store) -> None:
    assert isinstance(store.clock_id, str)
    assert store.clock_id


def test_every_store_serves_an_upstream(store: Store) -> None:
    upstream = Upstream(store, pools={"p": {"hosts": {"a": {"host": "a.test"}}}})
    assert upstream.connect(lambda host, _port, _timeout: host).client == "a.test"


def test_closing_twice_is_as_closing_once(store: Store) -> None:
    store.close()
    store.close()
    store.read("a")
    store.close()
    store.close()


def test_a_store_that_is_used_after_closing_opens_again(store: Store) -> None:
    store.transact("a", putting(x=b"1"))
    store.close()
    store.transact("a", putting(y=b"2"))
    store.close()
    assert store.read("a").records == {"x": b"1", "y": b"2"}
    version = store.version("a")
    store.transact("a", touch)
    assert store.version("a") != version


# ── several threads ───────────────────────────────────────────────────────────────────────────


def test_no_update_of_any_thread_is_lost(store: Store) -> None:
    def add_one(view: View) -> None:
        view.put("n", b"%d" % (int(view.get("n") or 0) + 1))
        view.touch()

    in_threads(8, lambda _number: [store.transact("a", add_one, wait_s=WAIT_S) for _ in range(50)])
    assert store.read("a").records == {"n": b"400"}


def test_a_reader_never_sees_half_a_transaction(store: Store) -> None:
    store.transact("a", putting(x=b"0", y=b"0"))
    done = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            for n in range(300):
                store.transact("a", putting(x=b"%d" % n, y=b"%d" % n), wait_s=WAIT_S)
            done.set()
            return
        before = 0
        while not done.is_set():
            generation, _, records = store.read("a")
            assert records["x"] == records["y"]
            assert generation >= before
            before = generation

    in_threads(4, work)


def test_who_waits_too_long_for_another_thread_is_told_so(store: Store) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold(view: View) -> None:
        inside.set()
        assert leave.wait(WAIT_S)
        view.put("x", b"1")

    thread = threading.Thread(target=store.transact, args=["a", hold])
    thread.start()
    try:
        assert inside.wait(WAIT_S)
        with pytest.raises(StoreBusy):
            store.transact("a", putting(x=b"2"), wait_s=0.02)
        with pytest.raises(StoreBusy):
            store.transact("a", putting(x=b"2"), wait_s=0)
    finally:
        leave.set()
        thread.join(WAIT_S)
    assert store.read("a").records == {"x": b"1"}


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.lease("a", "probe", "one", 10, wait_s=0),
        lambda store: store.lease("a", "probe", "one", 10, wait_s=0.02),
        lambda store: store.holder("a", "probe", wait_s=0),
        lambda store: store.changes("a", wait_s=0),
    ],
    ids=["lease", "lease, a moment", "holder", "changes"],
)
def test_who_may_not_wait_for_another_thread_is_told_so_and_gets_nothing(
    store: Store, call: Callable[[Store], object]
) -> None:
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=store.transact, args=["a", lambda _view: [inside.set(), leave.wait(WAIT_S)]])
    thread.start()
    try:
        assert inside.wait(WAIT_S)
        with pytest.raises(StoreBusy):
            call(store)
    finally:
        leave.set()
        thread.join(WAIT_S)
    assert store.holder("a", "probe") == ""
    assert store.lease("a", "probe", "two", 10, wait_s=0)


def test_who_waits_long_enough_for_another_thread_gets_its_turn(store: Store) -> None:
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()

    def hold(_view: View) -> None:
        inside.set()
        assert leave.wait(WAIT_S)

    def wait() -> None:
        store.transact("a", putting(x=b"1"), wait_s=WAIT_S)
        done.set()

    holder, waiter = threading.Thread(target=store.transact, args=["a", hold]), threading.Thread(target=wait)
    holder.start()
    assert inside.wait(WAIT_S)
    waiter.start()
    assert not done.wait(0.2), "it must not come in before the other has left"
    leave.set()
    wait_until(done.is_set, "the waiting transaction")
    holder.join(WAIT_S)
    waiter.join(WAIT_S)
    assert store.read("a").records == {"x": b"1"}


# ── any sequence of calls, against a dict ─────────────────────────────────────────────────────

NAMESPACES = ("one", "two")
OWNERS = ("me", "you")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("xyz"), st.binary(max_size=5)),
        st.tuples(st.just("delete"), st.sampled_from("xyz"), st.just(b"")),
        st.tuples(st.just("config"), st.just(""), st.binary(min_size=1, max_size=5)),
        st.tuples(st.just("touch"), st.just(""), st.just(b"")),
        st.tuples(st.just("log"), st.just(""), st.binary(max_size=5)),
    ),
    max_size=6,
)


class StoreMachine(RuleBasedStateMachine):
    """Does to a store and to dicts the same, and compares."""

    make_store: MakeStore

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.store = type(self).make_store(self.directory / "private", self.clock)
        self.configs = dict.fromkeys(NAMESPACES, b"")
        self.records: dict[str, dict[str, bytes]] = {ns: {} for ns in NAMESPACES}
        self.generations = dict.fromkeys(NAMESPACES, 0)
        self.leases: dict[str, tuple[str, float]] = {}
        self.logs: dict[str, list[bytes]] = {ns: [] for ns in NAMESPACES}
        self.known: dict[str, tuple[object, bytes, dict[str, bytes]]] = {ns: (None, b"", {}) for ns in NAMESPACES}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)

    @rule(ns=st.sampled_from(NAMESPACES), steps=steps, fails=st.booleans())
    def transact(self, ns: str, steps: list[tuple[str, str, bytes]], fails: bool) -> None:
        config, records, touched = self.configs[ns], dict(self.records[ns]), False
        log = list(self.logs[ns])

        def work(view: View) -> None:
            nonlocal config, touched
            for step, key, data in steps:
                if step == "put":
                    view.put(key, data)
                    records[key] = data
                elif step == "delete":
                    view.delete(key)
                    records.pop(key, None)
                elif step == "config":
                    view.config = config = data
                    touched = True
                elif step == "log":
                    view.log(data)
                    log.append(data)
                else:
                    view.touch()
                    touched = True
                assert view.config == config
                assert {key: view.get(key) for key in view.keys()} == records  # noqa: SIM118
            if fails:
                raise Oops

        self.store.read(ns)
        version = self.store.version(ns)
        if fails:
            with pytest.raises(Oops):
                self.store.transact(ns, work)
            assert self.store.version(ns) == version
            return
        self.store.transact(ns, work)
        assert (self.store.version(ns) != version) == touched
        self.configs[ns], self.records[ns], self.logs[ns] = config, records, log
        if touched:
            generation = self.store.read(ns).generation
            assert generation > self.generations[ns]
            self.generations[ns] = generation

    @rule(ns=st.sampled_from(NAMESPACES))
    def read(self, ns: str) -> None:
        expected = Document(self.generations[ns], self.configs[ns], self.records[ns])
        assert self.store.read(ns) == expected

    @rule(ns=st.sampled_from(NAMESPACES))
    def look(self, ns: str) -> None:
        """What was known, with the changes, is what there is."""
        mark, config, records = self.known[ns]
        changes: Changes = self.store.changes(ns, mark)
        records = {} if changes.is_all else records
        config = config if changes.config is None else changes.config
        self.known[ns] = changes.mark, config, {**records, **changes.records}
        assert self.known[ns][1:] == (self.configs[ns], self.records[ns])

    @rule(ns=st.sampled_from(NAMESPACES), limit=st.integers(0, 5))
    def history(self, ns: str, limit: int) -> None:
        assert self.store.history(ns) == self.logs[ns]
        assert self.store.history(ns, limit) == self.logs[ns][max(0, len(self.logs[ns]) - limit) :]

    @rule(ns=st.sampled_from(NAMESPACES))
    def holder(self, ns: str) -> None:
        owner, until = self.leases.get("probe", ("", 0.0)) if ns == "one" else ("", 0.0)
        expected = owner if self.clock() < until else ""
        assert self.store.holder(ns, "probe") == expected
        assert self.store.transact(ns, lambda view: view.holder("probe")) == expected

    @rule(owner=st.sampled_from(OWNERS), ttl_s=st.integers(1, 5))
    def lease(self, owner: str, ttl_s: int) -> None:
        holder, until = self.leases.get("probe", (owner, 0.0))
        free = holder == owner or self.clock() >= until
        assert self.store.lease("one", "probe", owner, ttl_s) == free
        if free:
            self.leases["probe"] = (owner, self.clock() + ttl_s)

    @rule(owner=st.sampled_from(OWNERS))
    def release(self, owner: str) -> None:
        self.store.release("one", "probe", owner)
        if self.leases.get("probe", ("", 0.0))[0] == owner:
            del self.leases["probe"]

    @rule(seconds=st.integers(0, 4))
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def close(self) -> None:
        self.store.close()


@pytest.mark.parametrize("name", STORES)
def test_a_store_does_what_a_dict_would(name: str) -> None:
    machine = type("Machine", (StoreMachine,), {"make_store": staticmethod(STORES[name])})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25))


# ── counters ──────────────────────────────────────────────────────────────────────────────────


def key(name: str) -> bytes:
    """A key; those of one test belong together."""
    return b"together" + name.encode().ljust(8)


def keys(*names: str) -> Callable[[], list[bytes]]:
    return lambda: [key(name) for name in names]


def test_before_anything_was_counted_there_are_no_sums(store: Store) -> None:
    assert store.sums() == {}


def test_what_is_counted_is_in_the_sums(store: Store) -> None:
    for name, number in [("a", 1.0), ("b", 2.0), ("a", 0.5)]:
        row = store.counters(key(name), keys("a", "b"))
        assert row.ours[0]
        assert len(row.cells) == CELLS
        row.cells[CELLS - 1] += number
    assert {k: numbers[-1] for k, numbers in store.sums().items()} == {key("a"): 1.5, key("b"): 2.0}


def test_a_row_that_somebody_has_is_the_same_for_all(store: Store) -> None:
    assert store.counters(key("a"), keys("a")) is store.counters(key("a"), keys("a"))


def test_what_began_and_has_not_ended_is_under_way(store: Store) -> None:
    cells = store.counters(key("a"), keys("a")).cells
    cells[0] += 5
    cells[1] += 1
    cells[ENDS - 1] += 1
    cells[ENDS] += 1
    assert store.sums()[key("a")][:2] == [3, 1]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, CELLS - 1)), max_size=400))
def test_sums_are_what_was_added(entries: list[tuple[int, int]]) -> None:
    expected: dict[bytes, list[float]] = {}
    for make in STORES.values():
        expected.clear()
        with tempfile.TemporaryDirectory() as directory:
            store = make(Path(directory) / "private", FakeClock())
            for number, cell in entries:
                for each in {0, cell}:  # each is begun
                    store.counters(key(str(number)), lambda: expected).cells[each] += 1
                    expected.setdefault(key(str(number)), [0.0] * CELLS)[each] += 1
            for numbers in expected.values():
                numbers[0] -= sum(numbers[1:ENDS])
            assert store.sums() == expected
            store.close()


def churn(store: Store, count: int, *, held: bool) -> list[Row]:
    """Many hosts, of which one after the other is used, each for a short time."""
    rows = []
    for number in range(count):
        row = store.counters(key(str(number)), keys(str(number)))
        row.cells[1] += 1
        rows += [row] if held else []
    return rows


def test_rows_that_nobody_uses_are_used_again_where_room_is_short(store: Store) -> None:
    churn(store, 1000, held=False)
    assert 1 <= len(store.sums()) < 40


def test_rows_in_anybodys_hands_are_left_to_them(store: Store) -> None:
    rows = churn(store, 100, held=True)
    assert len({id(row.cells) for row in rows}) == 100
    assert [numbers[1] for numbers in store.sums().values()] == [1.0] * 100


def test_rows_in_use_are_kept_though_nobody_has_them(store: Store) -> None:
    names = [str(number) for number in range(100)]
    for name in names:
        store.counters(key(name), keys(*names)).cells[1] += 1
    assert len(store.sums()) == 100


def test_rows_of_another_group_are_kept(store: Store) -> None:
    store.counters(b"another!" + bytes(8), list).cells[1] += 1
    churn(store, 200, held=False)
    assert store.sums()[b"another!" + bytes(8)][1] == 1


def test_a_row_that_is_used_again_begins_at_0(store: Store) -> None:
    for number in range(100):
        row = store.counters(key(str(number)), list)
        assert set(row.cells.tolist()) == {0.0}
        row.cells[3] += 7


def test_threads_that_come_first_together_get_the_same_row(store: Store) -> None:
    rows: list[Row] = []
    in_threads(8, lambda _number: rows.append(store.counters(key("a"), keys("a"))))
    assert len({id(row) for row in rows}) == 1


def test_counting_goes_on_after_a_store_was_closed(store: Store) -> None:
    for _ in range(3):
        store.counters(key("a"), keys("a")).cells[1] += 1
        store.close()
    assert store.sums()[key("a")][1] == 3
