"""What ``status.json`` says of upstreams."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.counts import BOUNDS_S
from resty_upstream.errors import StoreUnavailable
from resty_upstream.status import schema, status
from resty_upstream.status.data import HostStatus, PoolStatus, UpstreamStatus, quantile
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_upstream, refused, take_down, visit


def look(upstream: Upstream) -> UpstreamStatus:
    """The only upstream, after its JSON was held against the schema."""
    found = status({"u": upstream})
    jsonschema.validate(msgspec.json.decode(msgspec.json.encode(found)), schema())
    return found.upstreams[0]


def pool_of(upstream: Upstream, pool_id: str = "p") -> PoolStatus:
    return next(pool for pool in look(upstream).pools if pool.id == pool_id)


def host_of(upstream: Upstream, host_id: str, pool_id: str = "p") -> HostStatus:
    return next(host for host in pool_of(upstream, pool_id).hosts if host.id == host_id)


def test_the_schema_refuses_what_is_not_so() -> None:
    """A guard: what accepts everything shows nothing."""
    plain = msgspec.json.decode(msgspec.json.encode(status({"u": open_upstream({"p": {"hosts": hosts("a")}})})))
    plain["upstreams"][0]["pools"][0]["hosts"][0]["share"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, schema())


def test_pools_come_in_the_order_in_which_they_are_tried() -> None:
    upstream = open_upstream({"late": {"priority": 9, "hosts": hosts("a")}, "early": {"hosts": hosts("b")}})
    assert [(pool.id, pool.used) for pool in look(upstream).pools] == [("early", True), ("late", False)]


def test_shares_are_of_all_traffic_and_those_of_reserve_pools_are_none() -> None:
    upstream = open_upstream(
        {
            "p": {"hosts": {**hosts("a", weight=1), **hosts("b", weight=3)}},
            "r": {"priority": 1, "hosts": hosts("c")},
        }
    )
    assert (host_of(upstream, "a").share, host_of(upstream, "b").share) == (0.25, 0.75)
    assert (host_of(upstream, "c", "r").share, host_of(upstream, "c", "r").share_of_pool) == (0, 1)


def test_a_failed_host_has_its_reason_and_its_next_probe(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    take_down(upstream, "b")
    host = host_of(upstream, "b")
    assert (host.status, host.failcount, host.share) == ("failed", 3, 0)
    assert (host.last_failure_reason, "failed (ECONNREFUSED)" in host.why) == ("ECONNREFUSED", True)
    assert host.last_failure > 0
    assert host.probe_in_s is not None
    assert 9 <= host.probe_in_s <= 11


def test_the_last_failure_of_a_host_that_is_back_is_still_told(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    take_down(upstream, "b")
    failed_at = host_of(upstream, "b").last_failure
    UpstreamAPI(upstream).up_host("p", "b")
    host = host_of(upstream, "b")
    assert (host.status, host.failcount) == ("up", 0)
    assert host.last_failure_reason == "ECONNREFUSED"
    assert host.last_failure == pytest.approx(failed_at, abs=5)


def test_what_a_person_did_is_told_with_reason_actor_and_end() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", weight=10)}})
    UpstreamAPI(upstream).down_host("p", "a", reason="new kernel", by="alice", until="30m")
    host = host_of(upstream, "a")
    assert (host.status, host.by_hand, host.by) == ("manual", "new kernel", "alice")
    assert host.until - status({"u": upstream}).at == pytest.approx(1800, abs=60)
    (transition,) = look(upstream).transitions
    assert (transition.host, transition.after, transition.by) == ("a", "manual", "alice")


def test_a_run_time_change_is_held_against_the_declaration() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", weight=10)}})
    api = UpstreamAPI(upstream)
    api.set_weight("p", "a", 0)
    api.set_method("p", "random")
    api.add_host("p", host="new.test", id="new")
    api.remove_host("p", "b")
    pool = pool_of(upstream)
    assert [(each.name, each.value, each.declared) for each in pool.settings] == [
        ("method", "random", "round_robin")
    ]
    assert pool.removed_hosts == ("b",)
    first, new = pool.hosts
    assert [(each.name, each.value, each.declared) for each in first.settings] == [("weight", 0, 10)]
    assert first.drained
    assert (first.declared, new.declared) == (True, False)


@pytest.mark.parametrize(
    ("weights", "down", "now", "without_a"),
    [
        ((0, 0), [], 1.0, 0.5),
        ((10, 10), [], 1.0, 0.5),
        ((10, 30), [], 1.0, 0.75),
        ((10, 10, 10, 10), ["d"], 0.75, 0.5),
        ((10, 10), ["a"], 0.5, 0.5),
        ((10, 0), [], 1.0, 0.5),  # a spare is left
        ((10,), [], 1.0, 0.0),
    ],
)
def test_capacity_is_what_is_left_of_the_weights(
    weights: tuple[int, ...], down: list[str], now: float, without_a: float
) -> None:
    ids = "abcd"[: len(weights)]
    upstream = open_upstream(
        {"p": {"hosts": {i: {"host": "x.test", "weight": w} for i, w in zip(ids, weights, strict=True)}}}
    )
    for host_id in down:
        UpstreamAPI(upstream).down_host("p", host_id)
    assert pool_of(upstream).capacity == pytest.approx(now)
    assert host_of(upstream, "a").capacity_without == pytest.approx(without_a)


def test_a_drained_host_is_missing_from_the_capacity() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", weight=10)}})
    UpstreamAPI(upstream).set_weight("p", "a", 0)
    assert pool_of(upstream).capacity == 0.5


def test_what_was_counted_is_told(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    for _ in range(4):
        visit(upstream, {"b": refused})
    a, b = host_of(upstream, "a"), host_of(upstream, "b")
    assert (a.requests, a.errors, a.in_flight) == (4, 0, 0)
    assert b.requests == b.errors > 0
    assert a.latency is not None
    assert b.latency is None


@pytest.mark.parametrize(("checked", "wanted"), [({}, "none"), ({"healthcheck": {"type": "tcp"}}, "missing")])
def test_whether_hosts_are_checked_is_told(checked: dict[str, Any], wanted: str) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a"), **checked}})
    assert look(upstream).checks == wanted
    assert host_of(upstream, "a").checked is bool(checked)


def test_while_the_store_fails_what_this_process_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b"), "healthcheck": True}})

    def fail(*_args: object, **_options: object) -> None:
        raise StoreUnavailable("the disk is on fire")

    for name in ("read", "changes", "history", "holder", "examine", "transact"):
        monkeypatch.setattr(upstream.store, name, fail)
    upstream.get_pools()  # finds out
    found = look(upstream)
    assert found.store_trouble == "the disk is on fire"
    assert [host.status for host in found.pools[0].hosts] == ["up", "up"]


@example([0, 47] + [0] * (len(BOUNDS_S) - 1))  # where rounding would exceed the bucket
@given(st.lists(st.integers(0, 1000), min_size=len(BOUNDS_S) + 1, max_size=len(BOUNDS_S) + 1).filter(any))
def test_quantiles_rise_and_stay_in_their_bucket(buckets: list[int]) -> None:
    found = [quantile(buckets, part) for part in (0.0, 0.5, 0.9, 0.99, 1.0)]
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] <= BOUNDS_S[-1]
    last = max(number for number, count in enumerate(buckets) if count)
    assert found[-1] == (BOUNDS_S[last] if last < len(BOUNDS_S) else BOUNDS_S[-1])
