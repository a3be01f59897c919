"""One process's copy of what the store says: what it does while the store fails, and when it works again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from resty_upstream import NoHostAvailable, StoreBusy, StoreError, StoreUnavailable, Upstream, UpstreamAPI
from resty_upstream.stores import Changes, Document, View
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, refused, take_down, visit, visit_in_vain

T = TypeVar("T")

ONE: dict[str, Any] = {"p": {"hosts": hosts("a")}}
TWO: dict[str, Any] = {"p": {"hosts": hosts("a", "b")}}


class FailingStore(MemoryStore):
    """A store of a user's own that fails when told, and notes how it is used."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.error: StoreError | None = None
        self.reads = 0
        self.waits: list[float] = []

    def read(self, ns: str) -> Document:
        if self.error:
            raise self.error
        return super().read(ns)

    def changes(self, ns: str, since: object = None, *, wait_s: float = 5) -> Changes:
        self.reads += 1
        if self.error:
            raise self.error
        return super().changes(ns, since, wait_s=wait_s)

    def transact(self, ns: str, fn: Callable[[View], T], *, wait_s: float = 5) -> T:
        self.waits.append(wait_s)
        if self.error:
            raise self.error
        return super().transact(ns, fn, wait_s=wait_s)


@pytest.fixture
def store(clock: FakeClock) -> FailingStore:
    return FailingStore(clock)


AWAY = StoreUnavailable("the disk is gone")


# ── fail static ───────────────────────────────────────────────────────────────────────────────


def test_while_the_store_fails_requests_are_served_from_what_is_known(store: FailingStore) -> None:
    upstream = Upstream(store, pools=TWO)
    visit(upstream)
    store.error = AWAY
    UpstreamAPI(Upstream(store))
    assert sorted(visit(upstream)[0] for _ in range(4)) == ["a", "a", "b", "b"]
    assert list(upstream.get_pools()["p"]["hosts"]) == ["a", "b"]
    assert upstream.explain().summary == "connect tries pool p first"


def test_a_request_that_finds_the_store_broken_from_the_start_is_served_from_what_is_declared(
    store: FailingStore,
) -> None:
    store.error = AWAY
    table = hosts("a", "b")
    table["b"]["up"] = False
    upstream = Upstream(store, pools={"p": {"hosts": table}})
    assert [visit(upstream) for _ in range(4)] == [["a"]] * 4
    assert not health(upstream, "b")["up"]


def test_without_anything_declared_the_error_of_the_store_is_the_cause(store: FailingStore) -> None:
    store.error = AWAY
    upstream = Upstream(store)
    assert visit_in_vain(upstream, {}).__cause__ is AWAY
    assert upstream.get_pools() == {}


def test_health_goes_on_in_this_process_and_is_written_when_the_store_works_again(
    store: FailingStore, clock: FakeClock
) -> None:
    upstream, other = Upstream(store, pools=TWO), Upstream(store)
    visit(upstream)
    visit(other)
    store.error = AWAY
    for _ in range(20):
        visit(upstream, {"a": refused})
    assert [visit(upstream) for _ in range(4)] == [["b"]] * 4
    store.error = None
    clock.advance(1.5)
    with upstream.context():
        visit(upstream)
    assert not health(other, "a")["up"]
    assert [visit(other) for _ in range(4)] == [["b"]] * 4


def test_a_success_after_failures_that_could_not_be_written_clears_them(
    store: FailingStore, clock: FakeClock
) -> None:
    upstream = Upstream(store, pools=ONE)
    visit(upstream)
    store.error = AWAY
    visit_in_vain(upstream, {"a": refused})
    visit_in_vain(upstream, {"a": refused})
    visit(upstream)
    store.error = None
    clock.advance(1.5)
    visit(upstream)
    upstream.post_process()
    assert health(upstream, "a")["failcount"] == 0


def test_a_failed_host_is_probed_by_one_request_of_this_process_while_the_store_fails(
    store: FailingStore, clock: FakeClock
) -> None:
    upstream = Upstream(store, pools=TWO)
    take_down(upstream, "a")
    store.error = AWAY
    clock.advance(12)
    attempts = upstream.attempts()
    probe = next(attempts)
    assert probe.host.id == "a"
    assert [visit(upstream) for _ in range(4)] == [["b"]] * 4
    with probe:
        pass
    assert sorted(visit(upstream)[0] for _ in range(2)) == ["a", "b"]


def test_the_trouble_is_said_once_and_so_is_its_end(
    store: FailingStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(store, pools=TWO)
    visit(upstream)
    with caplog.at_level(logging.INFO, "resty_upstream.store"):
        store.error = AWAY
        for _ in range(10):
            visit(upstream, {"a": refused})
            clock.advance(0.4)
        store.error = None
        for _ in range(5):
            clock.advance(0.4)
            visit(upstream, {"a": refused})
    messages = [record.getMessage() for record in caplog.records if record.name == "resty_upstream.store"]
    assert messages == [
        "StoreDegraded: the disk is gone; serving upstream default from what is known",
        "the store of upstream default works again",
    ]


def test_a_store_that_fails_is_asked_again_once_a_second_and_not_by_every_request(
    store: FailingStore, clock: FakeClock
) -> None:
    store.error = AWAY
    upstream = Upstream(store, pools=TWO)
    for _ in range(100):
        visit(upstream)
        clock.advance(0.05)
    assert 4 <= store.reads <= 7


def test_what_waits_to_be_written_stays_short_however_long_the_store_fails(
    store: FailingStore, clock: FakeClock
) -> None:
    upstream = Upstream(store, pools={"p": {"max_fails": 0, "hosts": hosts("a")}})
    visit(upstream)
    store.error = AWAY
    for _ in range(2000):
        visit_in_vain(upstream, {"a": refused})
    store.error = None
    clock.advance(1.5)
    upstream.post_process()
    assert 1 <= health(upstream, "a")["failcount"] < 20


def test_changes_by_hand_fail_loudly_while_the_store_fails_and_change_nothing(store: FailingStore) -> None:
    upstream = Upstream(store, pools=TWO)
    visit(upstream)
    api = UpstreamAPI(upstream)
    store.error = AWAY
    for call in (
        lambda: api.down_host("p", "a"),
        lambda: api.create_pool("q"),
        lambda: upstream.save_pools({}),
        upstream.revive_hosts,
        lambda: upstream.configure({}),
        lambda: Upstream(store).configured,
    ):
        with pytest.raises(StoreUnavailable, match="the disk is gone"):
            call()
    assert sorted(visit(upstream)[0] for _ in range(2)) == ["a", "b"]


def test_a_declaration_that_could_not_be_stored_takes_effect_when_the_store_works_again(
    store: FailingStore, clock: FakeClock
) -> None:
    upstream, other = Upstream(store, pools=ONE), Upstream(store)
    visit(upstream)
    store.error = AWAY
    with pytest.raises(StoreUnavailable):
        upstream.configure(TWO)
    store.error = None
    clock.advance(1.5)
    UpstreamAPI(upstream).set_priority("p", 1)
    assert list(other.get_pools()["p"]["hosts"]) == ["a", "b"]


def test_after_the_store_failed_while_somebody_looked_all_is_shown_again(
    store: FailingStore, clock: FakeClock
) -> None:
    """Also what changes no routing: nothing else would make this process look."""
    upstream, other = Upstream(store, pools=ONE), Upstream(store)
    visit(upstream)
    visit_in_vain(other, {"a": refused})
    assert health(upstream, "a")["failcount"] == 1
    store.error = AWAY
    assert health(upstream, "a")["failcount"] == 1
    store.error = None
    visit_in_vain(other, {"a": refused})
    clock.advance(1.5)
    assert health(upstream, "a")["failcount"] == 2
    assert upstream.replica.trouble is None


# ── a store that is busy ──────────────────────────────────────────────────────────────────────


def test_a_request_waits_a_few_milliseconds_for_the_store_at_most_and_not_at_all_on_an_event_loop(
    store: FailingStore,
) -> None:
    upstream = Upstream(store, pools={"p": {"max_fails": 100, "hosts": hosts("a")}})
    visit(upstream)
    store.waits.clear()
    visit_in_vain(upstream, {"a": refused})
    assert store.waits == [0.005]

    async def request() -> None:
        visit_in_vain(upstream, {"a": refused})

    store.waits.clear()
    asyncio.run(request())
    assert store.waits == [0]


def test_what_a_busy_store_did_not_take_works_in_this_process_and_goes_with_the_next_request(
    store: FailingStore, clock: FakeClock
) -> None:
    upstream, other = Upstream(store, pools=TWO), Upstream(store)
    visit(upstream)
    store.error = StoreBusy("held")
    for _ in range(20):
        visit(upstream, {"a": refused})
    assert [visit(upstream) for _ in range(4)] == [["b"]] * 4
    store.error = None
    clock.advance(0.1)
    with upstream.context():
        visit(upstream)
    assert not health(other, "a")["up"]


def test_a_store_that_is_busy_is_no_trouble_to_speak_of(
    store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(store, pools=ONE)
    visit(upstream)
    visit(upstream)
    store.error = StoreBusy("held")
    visit_in_vain(upstream, {"a": refused})
    assert "StoreDegraded" not in caplog.text


def test_who_looks_while_the_store_is_busy_sees_what_is_known_and_the_truth_the_next_time(
    store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, other = Upstream(store, pools=ONE), Upstream(store)
    visit(upstream)
    visit_in_vain(other, {"a": refused})
    assert health(upstream, "a")["failcount"] == 1
    visit_in_vain(other, {"a": refused})
    store.error = StoreBusy("held")
    assert health(upstream, "a")["failcount"] == 1
    store.error = None
    assert health(upstream, "a")["failcount"] == 2
    assert "StoreDegraded" not in caplog.text


def test_events_that_waited_are_heard_when_they_are_committed(store: FailingStore, clock: FakeClock) -> None:
    upstream = Upstream(store, pools={"p": {"max_fails": 1, "hosts": hosts("a")}})
    visit(upstream)
    heard: list[Any] = []
    upstream.bind("host_down", heard.append)
    store.error = StoreBusy("held")
    visit_in_vain(upstream, {"a": refused})
    assert not heard
    store.error = None
    clock.advance(0.1)
    upstream.post_process()
    assert [event.host.id for event in heard] == ["a"]


# ── another boot, another release ─────────────────────────────────────────────────────────────


def test_after_a_reboot_health_is_forgotten_and_what_a_person_did_is_kept(
    store: FailingStore, clock: FakeClock
) -> None:
    before = Upstream(store, pools={"p": {"hosts": hosts("a", "b", "c")}})
    UpstreamAPI(before).down_host("p", "b")
    take_down(before, "a")
    store.clock_id = "the next boot"
    upstream = Upstream(store)
    assert sorted({visit(upstream)[0] for _ in range(4)}) == ["a", "c"]
    assert health(upstream, "a") == {"up": True, "failcount": 0, "lastfail": 0}
    assert health(upstream, "b") == {"up": False, "failcount": 0, "lastfail": 0}


def test_a_method_that_only_another_process_registered_is_said_once(
    store: FailingStore, caplog: pytest.LogCaptureFixture
) -> None:
    upstream = Upstream(store, pools=TWO)
    visit(upstream)

    def change(view: View) -> None:
        view.config = view.config.replace(b"round_robin", b"theirs_only")

    for _ in range(3):
        store.transact("default", change)
        visit(upstream)
    assert caplog.text.count("theirs_only") == 1


def test_no_error_of_the_store_leaves_a_request(store: FailingStore, clock: FakeClock) -> None:
    upstream = Upstream(store, pools=TWO)
    take_down(upstream, "b")
    for error in (AWAY, StoreBusy("held"), StoreError("something else")):
        store.error = error
        for fates in ({}, {"a": refused}, {"a": refused, "b": refused}):
            clock.advance(20)
            try:
                with upstream.context():
                    visit(upstream, fates)
                visit(upstream, fates)
            except NoHostAvailable:
                assert len(fates) == 2
