"""Several workers over one store, in any order of requests, failures, changes by hand and time."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from resty_upstream import Attempt, Attempts, NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.model import record_key
from resty_upstream.state import HostState, Status, decode_state
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_upstream, open_workers, refused, visit, visit_in_vain

T = TypeVar("T")

POOLS: dict[str, Any] = {
    "p": {"max_fails": 2, "failed_timeout": 10, "failed_timeout_max": 40, "hosts": hosts("a", "b", "c", weight=2)},
    "q": {"max_fails": 1, "priority": 1, "method": "random", "hosts": hosts("d", "e")},
}
OUTCOMES: list[Callable[[], BaseException] | None] = [
    None,
    refused,
    refused,
    lambda: ValueError("a bug"),
    KeyboardInterrupt,
    lambda: OSError(101, "Network is unreachable"),
]
WORKERS = st.integers(0, 2)
HOSTS = st.sampled_from([("p", "a"), ("p", "b"), ("p", "c"), ("q", "d"), ("q", "e"), ("p", "x")])


class Workers(RuleBasedStateMachine):
    """Three workers; what is in flight ends at any later time, or never."""

    in_flight = Bundle("in_flight")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.workers = [Upstream(self.store) for _ in range(3)]
        self.workers[0].configure(POOLS)
        self.api = UpstreamAPI(self.workers[0])
        self.by_hand: set[tuple[str, str]] = set()
        self.probes: dict[tuple[str, str], tuple[str, float]] = {}
        self.heard: dict[tuple[str, str], str] = {}
        for worker in self.workers:
            for name in ("host_up", "host_down"):
                worker.bind(name, self.hear)

    def hear(self, event: Any) -> None:
        key = (event.pool.id, event.host.id)
        assert self.heard.get(key, "host_up") != event.name, "a transition is heard once"
        self.heard[key] = event.name

    def states(self) -> dict[tuple[str, str], HostState]:
        records = self.store.read("default").records
        pools = self.workers[0].get_pools()
        return {
            (pool_id, host_id): decode_state(records[record_key(pool_id, host_id)])
            for pool_id, pool in pools.items()
            for host_id in pool["hosts"]
        }

    # ── requests ──────────────────────────────────────────────────────────────────────────────

    def check(self, attempt: Attempt) -> None:
        """An attempt that has just begun."""
        key = (attempt.pool.id, attempt.host.id)
        state = self.states()[key]
        assert state.status is not Status.MANUAL
        if attempt.last_resort:
            assert not any(other.up for other in self.states().values())
        elif state.status is Status.UP:
            pass
        else:
            assert state.status is Status.PROBING
            prober, until = self.probes.get(key, ("", 0.0))
            assert prober in ("", state.prober) or self.clock() >= until, "one probe at a time"
            self.probes[key] = (state.prober, state.probe_until)

    @rule(target=in_flight, worker=WORKERS)
    def begin(self, worker: int) -> Any:
        attempts = self.workers[worker].attempts()
        try:
            attempt = next(attempts)
        except NoHostAvailable:
            assert not any(state.up for state in self.states().values())
            return multiple()
        self.check(attempt)
        return attempts, attempt

    @rule(request=consumes(in_flight), outcome=st.sampled_from(OUTCOMES))
    def end(self, request: tuple[Attempts, Attempt], outcome: Callable[[], BaseException] | None) -> None:
        attempts, attempt = request
        key = (attempt.pool.id, attempt.host.id)
        try:
            with attempt:
                if outcome:
                    raise outcome()
        except (ValueError, KeyboardInterrupt):
            assert attempt.outcome == "ignored"
        state = self.states().get(key)
        if state is not None and state.status is not Status.PROBING:
            self.probes.pop(key, None)
        if attempts.done:
            assert list(attempts) == []

    @rule(worker=WORKERS, dead=st.sets(st.sampled_from("abcde")))
    def whole_request(self, worker: int, dead: set[str]) -> None:
        tried = []
        up_before = {key[1] for key, state in self.states().items() if state.up}
        try:
            for attempt in self.workers[worker].attempts():
                with attempt as host:
                    assert host.id not in tried
                    tried.append(host.id)
                    if host.id in dead:
                        raise refused()
        except NoHostAvailable:
            assert up_before <= dead, "no request fails while a host is alive"
        self.forget_probes_that_ended()

    # ── changes by hand, and time ─────────────────────────────────────────────────────────────

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 12.0, 50.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(key=HOSTS)
    def down_host(self, key: tuple[str, str]) -> None:
        if key in self.states():
            self.api.down_host(*key)
            self.by_hand.add(key)
            self.forget_probes_that_ended()

    @rule(key=HOSTS, worker=WORKERS)
    def up_host(self, key: tuple[str, str], worker: int) -> None:
        if key in self.states():
            UpstreamAPI(self.workers[worker]).up_host(*key)
            self.by_hand.discard(key)
            self.forget_probes_that_ended()

    @rule(key=HOSTS)
    def remove_host(self, key: tuple[str, str]) -> None:
        if key in self.states():
            self.api.remove_host(*key)
            self.by_hand.discard(key)
            self.probes.pop(key, None)
            self.heard.pop(key, None)

    @rule(key=HOSTS, weight=st.sampled_from([0, 2, 5]))
    def add_host(self, key: tuple[str, str], weight: int) -> None:
        if key not in self.states():
            self.clock.advance(0.001)  # so that it is later than what is in flight to an earlier one of that id
            self.api.add_host(key[0], id=key[1], host="new.test", weight=weight)

    @rule(key=HOSTS, weight=st.sampled_from([0, 2, 5]))
    def set_weight(self, key: tuple[str, str], weight: int) -> None:
        if key in self.states():
            self.api.set_weight(*key, weight)

    @rule(worker=WORKERS)
    def revive(self, worker: int) -> None:
        self.workers[worker].revive_hosts()
        self.forget_probes_that_ended()

    @rule(worker=WORKERS)
    def save_what_is(self, worker: int) -> None:
        upstream = self.workers[worker]
        before = self.states()
        upstream.save_pools(upstream.get_pools())
        assert self.states() == before

    @rule(worker=WORKERS)
    def configure_again(self, worker: int) -> None:
        before = self.workers[worker].get_pools()
        self.workers[worker].configure(POOLS)
        assert self.workers[worker].get_pools() == before

    def forget_probes_that_ended(self) -> None:
        for key, state in self.states().items():
            if state.status is not Status.PROBING:
                self.probes.pop(key, None)

    # ── what is always true ───────────────────────────────────────────────────────────────────

    @invariant()
    def all_workers_see_the_same(self) -> None:
        first, second, third = (worker.get_pools() for worker in self.workers)
        assert first == second == third

    @invariant()
    def states_are_sound(self) -> None:
        pools = self.workers[0].get_pools()
        for (pool_id, host_id), state in self.states().items():
            shown = pools[pool_id]["hosts"][host_id]
            assert shown["up"] == state.up == (state.status is Status.UP)
            assert state.failcount >= 0
            if (pool_id, host_id) in self.by_hand:
                assert (state.status, shown["lastfail"]) == (Status.MANUAL, 0)
            else:
                assert state.status is not Status.MANUAL
            if state.status is Status.FAILED:
                cap = pools[pool_id]["failed_timeout_max"]
                assert state.down_until - self.clock() <= cap * 1.1 + 1e-6
                assert shown["lastfail"] > 0
            if state.status is Status.PROBING:
                assert state.prober
            event = self.heard.get((pool_id, host_id), "host_up")
            assert event == ("host_up" if state.up else "host_down")

    @invariant()
    def explain_can_be_printed(self) -> None:
        for worker in self.workers:
            assert str(worker.explain())


Workers.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestWorkers = pytest.mark.filterwarnings("error")(Workers.TestCase)


# ── threads ───────────────────────────────────────────────────────────────────────────────────


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """What ``work`` returns in each of ``count`` threads that begin at the same moment."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> T:
        barrier.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def test_threads_share_the_turns_of_an_upstream_exactly() -> None:
    table = {"a": {"host": "a.test", "weight": 5}, **hosts("b", "c", weight=1)}
    upstream = open_upstream({"p": {"hosts": table}})
    tried = in_threads(7, lambda _number: [visit(upstream)[0] for _ in range(100)])
    assert Counter(itertools.chain(*tried)) == {"a": 500, "b": 100, "c": 100}


def test_no_change_of_several_threads_and_workers_is_lost() -> None:
    workers = open_workers(4, {"p": {}})
    added = in_threads(8, lambda n: [UpstreamAPI(workers[n % 4]).add_host("p", host="x.test") for _ in range(20)])
    ids = sorted(int(host_id) for host_id in itertools.chain(*added))
    assert ids == list(range(1, 161))
    assert len(workers[0].get_pools()["p"]["hosts"]) == 160


def test_no_failure_that_threads_of_several_workers_see_is_lost(clock: FakeClock) -> None:
    workers = open_workers(4, {"p": {"max_fails": 10_000, "hosts": hosts("a")}}, clock)

    def fail(number: int) -> None:
        for _ in range(50):
            visit_in_vain(workers[number % 4], {"a": refused})

    in_threads(8, fail)
    clock.advance(1)  # so that what a busy store did not take is offered again
    for worker in workers:
        worker.post_process()
    assert workers[0].get_pools()["p"]["hosts"]["a"]["failcount"] == 400


def test_requests_go_on_while_another_thread_changes_everything() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}, "dr": {"priority": 1, "hosts": hosts("z")}})
    api = UpstreamAPI(upstream)

    def work(number: int) -> set[str]:
        if number:
            return {visit(upstream, {"b": refused})[-1] for _ in range(300)}
        for _ in range(40):
            api.add_host("p", id="c", host="c.test")
            api.down_host("p", "a")
            api.set_method("p", "hash")
            api.remove_host("p", "c")
            api.up_host("p", "a")
            api.set_method("p", "round_robin")
        return set()

    assert set().union(*in_threads(4, work)) <= {"a", "c", "z"}
