"""Slow start: a host that comes back gets its share little by little, exactly, by every method."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.methods import ramp
from resty_upstream.selection import Target
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_upstream, take_down, visit

SLOW_START_S = 30


def part(since_s: float) -> float:
    """The part of its share that a host has after so many seconds."""
    return 0.1 + 0.9 * min(1.0, since_s / SLOW_START_S)


def come_back(upstream: Upstream, clock: FakeClock, host_id: str) -> None:
    """Let a host fail, and be found well again."""
    take_down(upstream, host_id)
    clock.advance(15)
    visit(upstream)
    assert upstream.get_pools()["p"]["hosts"][host_id]["up"]


def ramp_of(targets: list[Target], host_id: str, now: float) -> float:
    return next(ramp(target, now, SLOW_START_S) for target in targets if target.id == host_id)


def shares(upstream: Upstream, requests: int, **options: str) -> dict[str, float]:
    """Which part of so many requests each host gets now."""
    taken = Counter(visit(upstream, **options)[0] for _ in range(requests))
    return {host_id: count / requests for host_id, count in taken.items()}


@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    since_s=st.floats(0, SLOW_START_S),
    seed=st.integers(0, 999),
)
def test_the_shares_are_exact_at_every_moment(weights: list[int], since_s: float, seed: int) -> None:
    """Of the weights, with the one that came back at its part: within two requests over many cycles."""
    clock = FakeClock()
    pool = {"max_fails": 1, "slow_start": SLOW_START_S, "hosts": {}}
    for number, weight in enumerate(weights):
        pool["hosts"][f"h{number}"] = {"host": "h.test", "weight": weight}  # type: ignore[index]
    upstream = open_upstream({"p": pool}, clock)
    upstream.replica._random.seed(seed)
    come_back(upstream, clock, "h0")
    clock.advance(since_s)
    counted = [weights[0] * part(since_s), *weights[1:]]
    requests = 40 * sum(weights)
    found = shares(upstream, requests)
    for number, weight in enumerate(counted):
        assert found.get(f"h{number}", 0) == pytest.approx(
            weight / sum(counted), abs=3.5 / requests * len(weights)
        )


@settings(max_examples=1000)
@given(
    method=st.sampled_from(["round_robin", "random", "least_conn", "p2c"]),
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    back=st.lists(st.floats(0, 10), min_size=1, max_size=6),
    seed=st.integers(0, 999),
)
def test_no_host_is_refused_for_ever_and_none_gets_more_than_its_part(
    method: str, weights: list[int], back: list[float], seed: int
) -> None:
    """However many hosts came back, each at its own moment; all others are well."""
    clock = FakeClock()
    pool: dict[str, Any] = {"method": method, "slow_start": SLOW_START_S, "hosts": {}}
    for number, weight in enumerate(weights):
        pool["hosts"][f"h{number}"] = {"host": "h.test", "weight": weight}
    upstream = open_upstream({"p": pool}, clock)
    upstream.replica._random.seed(seed)
    api = UpstreamAPI(upstream)
    for number, wait_s in enumerate(back[: len(weights) - 1]):
        api.down_host("p", f"h{number}")
        api.up_host("p", f"h{number}")
        clock.advance(wait_s)
    targets = [upstream.replica.snapshot().targets[f"p\x1fh{number}"] for number in range(len(weights))]
    counted = {target.id: target.weight * ramp(target, clock(), SLOW_START_S) for target in targets}
    found = shares(upstream, 300)
    assert set(found) <= set(counted)
    for host_id, part in counted.items():
        if method != "random" and ramp_of(targets, host_id, clock()) < 1:
            # Of a method by load all at most that; here nobody is busy.
            assert found.get(host_id, 0) <= part / sum(counted.values()) + 0.05
        if part / sum(counted.values()) > 0.05:
            assert found[host_id] > 0


@pytest.mark.parametrize("method", ["round_robin", "random", "least_conn", "p2c"])
def test_every_method_begins_with_a_tenth_and_ends_with_all(method: str) -> None:
    clock = FakeClock()
    pool = {"method": method, "max_fails": 1, "slow_start": SLOW_START_S, "hosts": hosts("a", "b", weight=1)}
    upstream = open_upstream({"p": pool}, clock)
    upstream.replica._random.seed(5)
    come_back(upstream, clock, "a")
    clock.advance(0.001)
    assert 0.04 < shares(upstream, 3000)["a"] < 0.16
    clock.advance(SLOW_START_S)
    assert 0.4 < shares(upstream, 3000)["a"] < 0.6


def test_a_host_that_never_was_down_has_its_whole_share_at_once() -> None:
    """At the first start, and when it is added at run time."""
    clock = FakeClock()
    upstream = open_upstream({"p": {"slow_start": SLOW_START_S, "hosts": hosts("a", "b", weight=1)}}, clock)
    assert shares(upstream, 100) == {"a": 0.5, "b": 0.5}
    UpstreamAPI(upstream).add_host("p", id="c", host="c.test", weight=2)
    assert shares(upstream, 100) == {"a": 0.25, "b": 0.25, "c": 0.5}


def test_changes_of_the_pool_do_not_begin_the_ramp_anew() -> None:
    """Others are added, drained, down and up meanwhile."""
    clock = FakeClock()
    pool = {"max_fails": 1, "slow_start": SLOW_START_S, "hosts": hosts("a", "b", "c", weight=1)}
    upstream = open_upstream({"p": pool}, clock)
    api = UpstreamAPI(upstream)
    come_back(upstream, clock, "a")
    clock.advance(10)
    api.add_host("p", id="d", host="d.test", weight=1)
    api.down_host("p", "d")
    api.set_weight("p", "c", 0)
    clock.advance(5)
    of_two = part(15) / (part(15) + 1)
    assert shares(upstream, 1000)["a"] == pytest.approx(of_two, abs=0.005)
    assert f"{of_two:.0%} of the pool's traffic (slow start: back for 15 s of 30 s)" in str(upstream.explain())


def test_hosts_that_all_came_back_share_as_their_ramps_are() -> None:
    """The last pool that is left must serve: nobody is refused because all are."""
    clock = FakeClock()
    pool = {"max_fails": 1, "slow_start": SLOW_START_S, "hosts": hosts("a", "b", weight=1)}
    upstream = open_upstream({"p": pool}, clock)
    api = UpstreamAPI(upstream)
    for host_id in "ab":
        api.down_host("p", host_id)
        api.up_host("p", host_id)
        clock.advance(10)
    expected = part(20) / (part(20) + part(10))
    assert shares(upstream, 2000)["a"] == pytest.approx(expected, abs=0.005)


def test_by_key_only_keys_of_the_host_move_and_each_once() -> None:
    """A key that is back at its host stays there; keys of other hosts never moved."""
    clock = FakeClock()
    pool = {"method": "hash", "max_fails": 1, "slow_start": SLOW_START_S, "hosts": hosts(*"abcd", weight=1)}
    upstream = open_upstream({"p": pool}, clock)
    api = UpstreamAPI(upstream)
    keys = [f"user {number}" for number in range(2000)]

    def homes() -> dict[str, str]:
        return {key: visit(upstream, key=key)[0] for key in keys}

    before = homes()
    api.down_host("p", "a")
    api.up_host("p", "a")
    own = [key for key in keys if before[key] == "a"]
    back: set[str] = set()
    for _ in range(10):
        now = homes()
        assert all(now[key] == before[key] for key in keys if before[key] != "a")
        at_home = {key for key in own if now[key] == "a"}
        assert back <= at_home
        back = at_home
        since_s = clock() - upstream.replica.snapshot().targets["p\x1fa"].back_at
        assert len(back) / len(own) == pytest.approx(part(since_s), abs=0.08)
        clock.advance(SLOW_START_S / 9)
    assert back == set(own)


def test_a_request_that_failed_elsewhere_still_finds_a_host_that_starts_slowly() -> None:
    """To be refused a turn is not to be passed over."""
    clock = FakeClock()
    pool = {"max_fails": 0, "slow_start": SLOW_START_S, "hosts": hosts("a", "b", weight=1)}
    upstream = open_upstream({"p": pool}, clock)
    api = UpstreamAPI(upstream)
    api.down_host("p", "a")
    api.up_host("p", "a")
    random = Random(1)
    for _ in range(200):
        tried = visit(upstream, {"b": lambda: ConnectionRefusedError(111, "refused")}, key=str(random.random()))
        assert tried[-1] == "a"
