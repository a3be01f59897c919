"""Methods by load, and what this process counts of its requests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import itertools
import os
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.errors import StoreBusy
from resty_upstream.load import Load
from resty_upstream.state import Eject
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_upstream, open_workers, refused, visit

BY_LOAD = ["least_conn", "p2c"]


def running(upstream: Upstream) -> dict[str, int]:
    """How many requests are under way at each host, as this process counts them."""
    targets = upstream.replica.snapshot().targets.values()
    return {target.id: len(target.load.running) for target in targets if target.load is not None}


def pool_of(method: str, *ids: str, **options: Any) -> dict[str, Any]:
    return {"p": {"method": method, "max_fails": 0, "hosts": hosts(*(ids or "abc"), weight=1), **options}}


# ── counting ──────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.sampled_from(["ok", "fails", "bug", "cancelled", "dropped", "unused"]), max_size=20))
def test_whatever_becomes_of_requests_none_is_left_under_way(fates: list[str]) -> None:
    upstream = open_upstream(pool_of("least_conn"))
    errors = {"fails": refused, "bug": KeyError, "cancelled": asyncio.CancelledError}
    for fate in fates:
        attempts = upstream.attempts()
        if fate == "unused":
            continue
        attempt = next(attempts)
        assert sum(running(upstream).values()) == 1
        if fate == "dropped":
            del attempt, attempts
            gc.collect(1)  # an attempt that was not used and its loop know each other
            continue
        with contextlib.suppress(KeyError, asyncio.CancelledError), attempt:
            if fate in errors:
                raise errors[fate]()
        del attempt, attempts
    gc.collect()
    assert set(running(upstream).values()) <= {0}


def test_a_connection_of_a_web_request_is_under_way_until_the_response_is_over() -> None:
    from resty_upstream import RequestUpstreams, Upstreams

    upstream = open_upstream(pool_of("least_conn", "a"))
    request = RequestUpstreams(Upstreams(upstream))
    for _ in range(3):  # the same host again is the same place
        request["default"].connect(lambda host, port, timeout_s: "connected")
    assert running(upstream) == {"a": 1}
    request.post_process()
    assert running(upstream) == {"a": 0}


def test_a_connection_outside_a_request_is_under_way_while_it_is_made() -> None:
    upstream = open_upstream(pool_of("least_conn", "a"))
    seen = []
    upstream.connect(lambda host, port, timeout_s: seen.append(running(upstream)))
    assert seen == [{"a": 1}]
    assert running(upstream) == {"a": 0}


def test_changes_of_the_pool_keep_what_is_under_way() -> None:
    clock = FakeClock()
    one, other = open_workers(2, pool_of("p2c"), clock)
    attempt = next(one.attempts())
    other.configure(pool_of("p2c", "a", "b", "c", "d"))
    assert sum(running(one).values()) == 1
    with attempt:
        pass
    assert sum(running(one).values()) == 0


def test_a_child_of_a_fork_begins_with_nothing_under_way() -> None:
    upstream = open_upstream(pool_of("least_conn"))
    attempt = next(upstream.attempts())
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        upstream.configure(pool_of("least_conn", "a", "b", "c", "d"))
        os.write(write, str(sum(running(upstream).values())).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"0"
    os.close(read)
    os.close(write)
    with attempt:
        pass


def test_pools_that_do_not_ask_for_it_count_nothing() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    visit(upstream)
    assert all(target.load is None for target in upstream.replica.snapshot().targets.values())


# ── a simulated hour ──────────────────────────────────────────────────────────────────────────


def simulate(
    pools: dict[str, Any],
    takes_s: dict[str, float],
    *,
    rate: float,
    seconds: float,
    seed: int,
    varies: bool = False,
    before: Callable[[Upstream], object] = lambda _upstream: None,
) -> Counter[str]:
    """Requests at a steady rate on a clock of its own; which host each one went to first.

    :param takes_s: what a request takes at each host; a negative number fails after that time.
    :param varies: whether it takes that on average, and not each time.
    :param before: what happens to the upstream before the first request.
    """
    clock = FakeClock()
    upstream = open_upstream(pools, clock)
    upstream.replica._random.seed(seed)
    before(upstream)
    random = Random(seed)
    numbers = itertools.count()
    ends: list[tuple[float, int, Any, bool]] = []
    picked: Counter[str] = Counter()
    arrival, last = clock(), clock() + seconds
    while arrival < last:
        while ends and ends[0][0] <= arrival:
            at, _, attempt, ok = heapq.heappop(ends)
            clock.advance(max(0.0, at - clock()))
            with contextlib.suppress(NoHostAvailable), attempt:
                if not ok:
                    raise refused()
        clock.advance(max(0.0, arrival - clock()))
        attempt = next(upstream.attempts())
        takes = takes_s[attempt.host.id]
        picked[attempt.host.id] += 1
        lasts = random.expovariate(1 / abs(takes)) if varies else abs(takes)
        heapq.heappush(ends, (clock() + lasts, next(numbers), attempt, takes > 0))
        arrival += random.expovariate(rate)
    return picked


@pytest.mark.parametrize("method", BY_LOAD)
@pytest.mark.parametrize("load", ["in_flight", "peak_ewma"])
@pytest.mark.parametrize("seed", range(3))
def test_a_host_that_fails_fast_attracts_nothing(method: str, load: str, seed: int) -> None:
    """It is idle all the time, and yet gets next to nothing; thousands of requests."""
    pools = pool_of(method, load=load)
    picked = simulate(pools, {"a": -0.001, "b": 0.05, "c": 0.05}, rate=200, seconds=20, seed=seed)
    assert picked["a"] < 0.05 * picked.total()
    assert picked["a"] > 0, "it is asked again, or it could never come back"
    assert picked["b"] == pytest.approx(picked["c"], rel=0.25)


@pytest.mark.parametrize("method", BY_LOAD)
@pytest.mark.parametrize("load", ["in_flight", "peak_ewma"])
@pytest.mark.parametrize(
    ("timeout", "takes_s", "rate"), [(100, 0.05, 200), (100, 0.5, 200), (2000, 5.0, 40), (100, 0.5, 1000)]
)
def test_nor_does_it_where_requests_take_longer_than_the_timeout_of_the_pool(
    method: str, load: str, timeout: int, takes_s: float, rate: int
) -> None:
    """That is for connecting; what the others are busy with has nothing to do with it."""
    pools = pool_of(method, load=load, timeout=timeout)
    picked = simulate(pools, {"a": -0.001, "b": takes_s, "c": takes_s}, rate=rate, seconds=20, seed=4)
    assert 0 < picked["a"] < 0.05 * picked.total()


@pytest.mark.parametrize("method", BY_LOAD)
@pytest.mark.parametrize("load", ["in_flight", "peak_ewma"])
def test_a_host_that_failed_fast_gets_its_share_again_when_it_answers(method: str, load: str) -> None:
    """Within a minute, however often it failed."""
    clock = FakeClock()
    upstream = open_upstream(pool_of(method, load=load), clock)
    upstream.replica._random.seed(6)
    for _ in range(3000):
        clock.advance(0.01)
        with contextlib.suppress(NoHostAvailable):
            visit(upstream, {"a": refused})
    after: Counter[str] = Counter()
    for number in range(12_000):
        clock.advance(0.01)
        (host_id,) = visit(upstream)
        after[host_id] += number >= 6000
    assert after["a"] / after.total() == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("method", BY_LOAD)
def test_after_an_outage_of_all_hosts_none_is_left_with_everything(method: str) -> None:
    """Within a few seconds, whichever of them is the first to answer."""
    clock = FakeClock()
    upstream = open_upstream(pool_of(method), clock)
    upstream.replica._random.seed(7)
    for _ in range(2000):
        clock.advance(0.005)
        with contextlib.suppress(NoHostAvailable):
            visit(upstream, dict.fromkeys("abc", refused))
    clock.advance(2.1)
    after: Counter[str] = Counter()
    for _ in range(6000):
        clock.advance(0.005)
        after.update(visit(upstream))
    assert min(after.values()) > 0.25 * after.total()


def test_some_failures_among_successes_count_as_what_they_are() -> None:
    """One request each, for a while: only failures in a row weigh more and more."""
    load = Load(2.0)
    assert load.in_flight(0.0) == 0
    for number in range(1000):
        load.note(number / 10, 0.001, ok=bool(number % 10))
    assert load.in_flight(100.0) < 3


@pytest.mark.parametrize("rate", [20, 60, 100, 160, 400])
def test_of_hosts_with_the_same_load_none_is_preferred(rate: int) -> None:
    """Not the first one of the pool either: all get the same within a tenth."""
    ids = "abcdefghij"
    takes_s = dict.fromkeys(ids, 0.05)
    picked = simulate(pool_of("least_conn", *ids), takes_s, rate=rate, seconds=8000 / rate, seed=1, varies=True)
    assert max(picked.values()) < 1.1 * min(picked.values())


@pytest.mark.parametrize("load", ["in_flight", "peak_ewma"])
@pytest.mark.parametrize("method", BY_LOAD)
@pytest.mark.parametrize("count", [2, 10, 100])
def test_a_host_that_starts_slowly_gets_its_part_though_it_is_idle(method: str, load: str, count: int) -> None:
    """At its beginning a tenth of its share, whether the others are idle or busy."""
    ids = [f"h{number}" for number in range(count)]

    def come_back(upstream: Upstream) -> None:
        UpstreamAPI(upstream).down_host("p", "h0")
        UpstreamAPI(upstream).up_host("p", "h0")

    pools = pool_of(method, *ids, load=load, slow_start=10**7)
    expected = 0.1 / (count - 1 + 0.1)
    for rate in (5, 20 * count, 100 * count):
        picked = simulate(
            pools,
            dict.fromkeys(ids, 0.05),
            rate=rate,
            seconds=4000 / rate,
            seed=2,
            varies=True,
            before=come_back,
        )
        assert picked["h0"] == pytest.approx(expected * picked.total(), abs=4)


@pytest.mark.parametrize("method", BY_LOAD)
def test_a_slow_host_gets_less(method: str) -> None:
    picked = simulate(pool_of(method), {"a": 0.5, "b": 0.05, "c": 0.05}, rate=200, seconds=20, seed=1)
    assert picked["a"] < 0.6 * min(picked["b"], picked["c"])


def test_peak_ewma_prefers_the_faster_host_where_counts_do_not_tell() -> None:
    """So few requests that hardly two are under way at once."""
    takes_s = {"a": 0.2, "b": 0.01, "c": 0.01}
    by_count = simulate(pool_of("p2c"), takes_s, rate=2, seconds=2000, seed=2)
    by_latency = simulate(pool_of("p2c", load="peak_ewma"), takes_s, rate=2, seconds=2000, seed=2)
    assert by_latency["a"] < 0.7 * by_count["a"]


@pytest.mark.parametrize("method", BY_LOAD)
@pytest.mark.parametrize("count", [3, 200])
def test_weights_are_shares_while_all_are_alike(method: str, count: int) -> None:
    """Idle, and busy: hosts of weight 3 get three times as much as those of weight 1."""
    pool = {str(n): {"host": "h.test", "weight": 3 if n % 2 else 1} for n in range(count)}
    takes_s = dict.fromkeys(pool, 0.05)
    for rate in (10, 400):
        pools = {"p": {"method": method, "hosts": pool}}
        picked = simulate(pools, takes_s, rate=rate, seconds=6000 / rate, seed=3)
        heavy = sum(picked[host_id] for host_id in pool if int(host_id) % 2)
        expected = 3 * (count // 2) / (3 * (count // 2) + count - count // 2)
        assert heavy / picked.total() == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("method", BY_LOAD)
def test_no_host_is_tried_twice_and_all_are_tried(method: str) -> None:
    upstream = open_upstream(pool_of(method))
    with pytest.raises(NoHostAvailable) as error:
        visit(upstream, dict.fromkeys("abc", refused))
    assert sorted(attempt.host.id for attempt in error.value.attempts) == ["a", "b", "c"]


def test_a_peak_counts_at_once_and_fades_away() -> None:
    load = Load(2.0)
    load.note(0.0, 0.01, ok=True)
    assert load.peak_ewma(0.0) == pytest.approx(0.01)
    load.note(1.0, 1.0, ok=True)
    assert load.peak_ewma(1.0) == pytest.approx(1.0)
    load.note(2.0, 0.01, ok=True)
    assert 0.8 < load.peak_ewma(2.0) < 1.0
    assert load.peak_ewma(60.0) < 0.01


# ── outliers ──────────────────────────────────────────────────────────────────────────────────

RULE = {"requests": 10, "success_rate": 60, "window": 10}


def outlier_pools(*ids: str) -> dict[str, Any]:
    rule = {"max_fails": 0, "outlier_detection": RULE, "failed_timeout": 600}
    return {"p": {"hosts": hosts(*ids, weight=1), **rule}}


def up_hosts(upstream: Upstream) -> set[str]:
    return {host_id for host_id, host in upstream.get_pools()["p"]["hosts"].items() if host["up"]}


def half_fail(upstream: Upstream, *ids: str, rounds: int = 60) -> None:
    """Most requests at these hosts fail."""
    for number in range(rounds):
        with contextlib.suppress(NoHostAvailable):
            visit(upstream, dict.fromkeys(ids, refused) if number % 4 else {})


def test_a_host_that_answers_too_few_goes_down_though_it_answers_some() -> None:
    clock = FakeClock()
    upstream = open_upstream(outlier_pools("a", "b", "c"), clock)
    half_fail(upstream, "a")
    assert up_hosts(upstream) == {"b", "c"}
    (transition,) = upstream.history()
    assert transition.reason.startswith("success rate ")
    assert transition.reason.endswith(" of 10 requests")


def test_without_the_rule_nothing_of_it_happens() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", "c", weight=1), "max_fails": 0}})
    half_fail(upstream, "a")
    assert up_hosts(upstream) == {"a", "b", "c"}


def test_what_is_older_than_the_window_does_not_count() -> None:
    clock = FakeClock()
    upstream = open_upstream(outlier_pools("a", "b", "c"), clock)
    for _ in range(8):
        half_fail(upstream, "a", rounds=8)
        clock.advance(11)
    assert up_hosts(upstream) == {"a", "b", "c"}


@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.integers(1, 3), st.integers(2, 6))
def test_soft_rules_never_take_out_more_than_half(failing: set[str], workers: int, count: int) -> None:
    """Whichever hosts fail, and however many workers see it at the same time."""
    ids = "abcdef"[:count]
    upstreams = open_workers(workers, outlier_pools(*ids))
    for _ in range(3):
        for upstream in upstreams:
            half_fail(upstream, *(failing & set(ids)), rounds=30)
    assert 2 * len(up_hosts(upstreams[0])) >= count


class StuckStore(MemoryStore):
    """One that another process writes to for a long time."""

    is_stuck = False

    def transact(self, *args: Any, **options: Any) -> Any:
        if self.is_stuck:
            raise StoreBusy("another process writes")
        return super().transact(*args, **options)


@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.integers(2, 6))
def test_nor_do_they_while_the_store_cannot_be_written(failing: set[str], count: int) -> None:
    """What waits to be written works in this process already; when it is written nothing more goes down."""
    ids = "abcdef"[:count]
    store = StuckStore(clock=FakeClock())
    upstream = Upstream(store)
    upstream.configure(outlier_pools(*ids))
    upstream.replica.snapshot()
    store.is_stuck = True
    half_fail(upstream, *(failing & set(ids)))
    assert 2 * available(upstream) >= count
    store.is_stuck = False
    visit(upstream)
    upstream.post_process()
    assert 2 * len(up_hosts(upstream)) >= count


def available(upstream: Upstream) -> int:
    return sum(target.available for target in upstream.replica.snapshot().targets.values())


def test_when_half_of_a_pool_is_out_nothing_more_is_written_for_the_rule() -> None:
    """An outage is when everyone writes."""
    upstream = open_upstream(outlier_pools("a", "b"))
    half_fail(upstream, "a")
    assert up_hosts(upstream) == {"b"}
    target = upstream.replica.snapshot().targets["p\x1fb"]
    assert not upstream.replica.would_change(target.key, Eject(1000.0, 1000.0, 0.0, 0.0, "success rate 0%"))


def test_what_a_host_did_before_it_came_back_does_not_count() -> None:
    """Not in a worker either that did not take it down, and has it in its window yet."""
    clock = FakeClock()
    pools = {"p": {"max_fails": 0, "outlier_detection": {**RULE, "window": 600}, "hosts": hosts("a", weight=1)}}
    pools["p"]["hosts"] |= hosts("b", weight=0)
    upstream = open_upstream(pools, clock)
    api = UpstreamAPI(upstream)
    for _ in range(9):
        visit(upstream, {"a": refused})
    api.down_host("p", "a")
    clock.advance(10)
    api.up_host("p", "a")
    clock.advance(10)
    visit(upstream)
    visit(upstream, {"a": refused})
    assert up_hosts(upstream) == {"a", "b"}


def test_another_timeout_of_the_pool_is_what_a_failure_counts_as_from_then_on() -> None:
    upstream = open_upstream(pool_of("p2c", timeout=100))
    attempt = next(upstream.attempts())
    upstream.configure(pool_of("p2c", timeout=5000))
    loads = [target.load for target in upstream.replica.snapshot().targets.values()]
    assert {load.timeout_s for load in loads if load} == {5.0}
    with attempt:
        pass


def test_a_host_may_still_go_down_for_other_reasons_when_half_of_the_pool_is_out() -> None:
    upstream = open_upstream({"p": {**outlier_pools("a", "b")["p"], "max_fails": 3}})
    half_fail(upstream, "a")
    for _ in range(6):
        with contextlib.suppress(NoHostAvailable):
            visit(upstream, dict.fromkeys("ab", refused))
    assert not up_hosts(upstream)


# ── all at once ───────────────────────────────────────────────────────────────────────────────


def alike(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "probably it is us" in record.getMessage()]


def test_when_all_hosts_fail_alike_it_is_said_once_that_it_may_be_us(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", "c"), "max_fails": 2}}, clock)
    for _ in range(4):
        clock.advance(0.1)
        with contextlib.suppress(NoHostAvailable):
            visit(upstream, dict.fromkeys("abc", refused))
    assert not up_hosts(upstream)
    (line,) = alike(caplog)
    assert line.startswith("upstream default: all 3 hosts of pool p failed alike (ECONNREFUSED) within ")


def test_hosts_that_fail_one_after_the_other_are_to_blame_themselves(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    upstream = open_upstream({"p": {"hosts": hosts("a", "b"), "max_fails": 1, "failed_timeout": 600}}, clock)
    visit(upstream, {"a": refused})
    visit(upstream, {"a": refused})
    clock.advance(8)
    with contextlib.suppress(NoHostAvailable):
        visit(upstream, {"b": refused, "a": refused})
    assert not up_hosts(upstream)
    assert not alike(caplog)


def all_fail(
    upstream: Upstream, reason: Callable[[str], Callable[[], BaseException]] = lambda _id: refused
) -> None:
    """Until no host is up."""
    for _ in range(10):
        if up_hosts(upstream):
            with contextlib.suppress(NoHostAvailable):
                visit(upstream, {host_id: reason(host_id) for host_id in "abc"})


def test_a_pool_that_flaps_is_spoken_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", "c"), "max_fails": 1, "failed_timeout": 1}}, clock)
    for said in (1, 1, 1, 2):
        all_fail(upstream)
        assert not up_hosts(upstream)
        assert len(alike(caplog)) == said
        clock.advance(25)
        for host_id in "abc":
            UpstreamAPI(upstream).up_host("p", host_id)


def test_of_workers_that_see_it_only_one_says_it(caplog: pytest.LogCaptureFixture) -> None:
    """The one whose attempt took the last host down."""
    workers = open_workers(3, {"p": {"hosts": hosts("a", "b", "c"), "max_fails": 2}})
    for _ in range(3):
        for upstream in workers:
            with contextlib.suppress(NoHostAvailable):
                visit(upstream, dict.fromkeys("abc", refused))
    assert not up_hosts(workers[0])
    assert len(alike(caplog)) == 1


def test_hosts_that_fail_in_different_ways_or_by_hand_are_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pools = {"p": {"hosts": hosts("a", "b", "c"), "max_fails": 1}}
    by_fault = open_upstream(pools)
    all_fail(by_fault, lambda host_id: ConnectionResetError if host_id == "b" else refused)
    assert not up_hosts(by_fault)
    by_hand = open_upstream(pools)
    for host_id in "abc":
        UpstreamAPI(by_hand).down_host("p", host_id)
    one_by_hand = open_upstream(pools)
    UpstreamAPI(one_by_hand).down_host("p", "a")
    all_fail(one_by_hand)
    assert not up_hosts(one_by_hand)
    assert not alike(caplog)


def test_a_pool_of_one_host_says_nothing_of_us(caplog: pytest.LogCaptureFixture) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a"), "max_fails": 1}})
    all_fail(upstream)
    assert not up_hosts(upstream)
    assert not alike(caplog)
