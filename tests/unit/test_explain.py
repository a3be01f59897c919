"""What ``explain`` says that ``connect`` would do, and why."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from resty_upstream import Explanation, Upstream, UpstreamAPI
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, open_upstream, refused, take_down, visit, visit_in_vain


def reasons(explanation: Explanation, pool_id: str = "p") -> dict[str, str]:
    (pool,) = (pool for pool in explanation.pools if pool.pool.id == pool_id)
    return {host.host.id: host.reason for host in pool.hosts}


def pool_reasons(upstream: Upstream) -> dict[str, str]:
    return {pool.pool.id: pool.reason for pool in upstream.explain().pools}


def test_healthy_hosts_are_taken_by_their_shares() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", weight=3) | hosts("b", weight=1) | hosts("c")}})
    explanation = upstream.explain()
    assert reasons(explanation) == {
        "a": "taken: 75% of the pool's traffic",
        "b": "taken: 25% of the pool's traffic",
        "c": "passed over: weight 0 while another host has a weight",
    }
    assert [host.share for host in explanation.pools[0].hosts] == [0.75, 0.25, 0]
    assert explanation.summary == "connect tries pool p first"


def test_the_text_begins_with_the_answer_and_names_every_pool_and_host_with_its_address() -> None:
    pools = {
        "p": {"hosts": {"a": {"host": "::1", "port": 81}, "b": {"host": "b.test"}, "c": {"host": "unix:/run/c"}}},
        "dr": {"priority": 5, "method": "random", "hosts": hosts("d")},
    }
    beginnings = [
        "connect tries pool p first",
        "pool p (priority 0, round_robin): used: ",
        "  host a [::1]:81: taken: 33% ",
        "  host b b.test:80: taken: 33% ",
        "  host c unix:/run/c: taken: 33% ",
        "pool dr (priority 5, random): in reserve behind pool p",
        "  host d d.test:80: ",
    ]
    for line, beginning in zip(str(open_upstream(pools).explain()).split("\n"), beginnings, strict=True):
        assert line.startswith(beginning)


def test_pools_come_in_the_order_in_which_they_are_tried_and_those_that_are_down_last() -> None:
    pools = {
        "off": {"up": False, "hosts": hosts("a")},
        "late": {"priority": 9, "hosts": hosts("b")},
        "empty": {"priority": 1},
        "first": {"priority": 2, "hosts": hosts("c")},
    }
    assert pool_reasons(open_upstream(pools)) == {
        "empty": "passed over: it has no hosts",
        "first": "used: the first in order with a host to try",
        "late": "in reserve behind pool first",
        "off": "passed over: the pool is down",
    }


def test_a_host_that_is_down_says_why_and_until_when(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"max_fails": 2, "hosts": hosts("a", "b", "c", "d")}}, clock)
    take_down(upstream, "a")
    UpstreamAPI(upstream).down_host("p", "b")
    while not health(upstream, "c")["failcount"]:
        visit(upstream, {"c": refused})
    found = reasons(upstream.explain())
    waits = re.fullmatch(r"passed over: failed \(ECONNREFUSED\), probed in ([0-9.]+) s", found["a"])
    assert waits
    assert 9 <= float(waits[1]) <= 11
    assert found["b"] == "passed over: taken down by hand"
    assert found["c"] == "taken: 50% of the pool's traffic (1 of 2 failures in a row)"


def test_a_host_that_is_being_probed_says_so(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    take_down(upstream, "a")
    clock.advance(12)
    attempts = upstream.attempts()
    next(attempts)
    upstream.configure({"p": {"timeout": 100, "hosts": hosts("a", "b")}})  # so that this process looks again
    assert reasons(upstream.explain())["a"] == "passed over: failed (ECONNREFUSED), a request is probing it"


def test_it_names_the_probe_that_connect_would_begin_with(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}}, clock, last_resort=False)
    take_down(upstream, "a")
    assert upstream.explain().summary == "connect fails: no host is available"
    clock.advance(12)
    explanation = upstream.explain()
    assert explanation.summary.startswith("connect tries pool p first")
    assert reasons(explanation)["a"].endswith("the next request here probes it")
    assert visit(upstream) == ["a"]


def test_a_pool_with_a_probe_that_is_due_comes_before_a_reserve_pool(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}, "dr": {"priority": 1, "hosts": hosts("b")}}, clock)
    take_down(upstream, "a")
    assert upstream.explain().summary == "connect tries pool dr first"
    clock.advance(12)
    assert upstream.explain().summary.startswith("connect tries pool p first")
    assert visit(upstream) == ["a"]


def test_without_an_available_host_it_names_the_last_resort() -> None:
    for last_resort, summary in (
        (True, "no host is available: as a last resort, connect tries 1 failed"),
        (False, "connect fails: no host is available"),
    ):
        upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, last_resort=last_resort)
        UpstreamAPI(upstream).down_host("p", "b")
        take_down(upstream, "a")
        assert upstream.explain().summary == summary


def test_without_pools_connect_fails() -> None:
    assert open_upstream({}).explain().summary == "connect fails: there are no pools"


def test_with_a_key_it_names_the_host_of_the_key() -> None:
    upstream = open_upstream({"p": {"method": "hash", "hosts": hosts("a", "b", "c")}})
    for key in ("u", "v", "w", "x"):
        (expected,) = visit(upstream, key=key)
        found = reasons(upstream.explain(key))
        assert found.pop(expected) == "taken: the host of this key"
        assert set(found.values()) == {"passed over: not this key's host"}
        with upstream.context(key=key):
            assert reasons(upstream.explain())[expected] == "taken: the host of this key"


def test_inside_a_context_a_host_on_which_it_failed_is_passed_over() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    with upstream.context():
        while visit(upstream, {"a": refused}) != ["a", "b"]:
            pass
        (pool,) = upstream.explain().pools
        assert pool.hosts[0].reason == "passed over: this request failed on it"
        assert pool.hosts[0].share == 0
        assert pool.hosts[0].up, "no more than this: the host is up"
        visit_in_vain(upstream, {"b": refused})
        assert upstream.explain().summary == "connect fails: no host is available"
    assert reasons(upstream.explain())["a"].startswith("taken: 50%")


def test_to_explain_moves_nothing_on() -> None:
    upstream = open_upstream({"p": {"hosts": hosts(*"abc")}})
    order = [visit(upstream)[0] for _ in range(3)]
    for _ in range(2):
        upstream.explain()
    before = upstream.get_pools()
    assert [visit(upstream)[0] for _ in range(3)] == order
    assert upstream.get_pools() == before


@settings(max_examples=60)
@given(st.data())
def test_what_it_says_is_what_connect_does(data: st.DataObject) -> None:
    clock = FakeClock()
    weights = data.draw(st.lists(st.sampled_from([0, 1, 4]), min_size=1, max_size=4))
    ids = [f"h{n}" for n in range(len(weights))]
    split = data.draw(st.integers(0, len(ids)))
    table: dict[str, Any] = {
        host_id: {"host": f"{host_id}.test", "weight": weight}
        for host_id, weight in zip(ids, weights, strict=True)
    }
    pools = {
        "p": {"max_fails": 1, "hosts": {host_id: table[host_id] for host_id in ids[:split]}},
        "q": {"max_fails": 1, "priority": 1, "hosts": {host_id: table[host_id] for host_id in ids[split:]}},
    }
    for host_id in data.draw(st.sets(st.sampled_from(ids))):
        table[host_id] |= data.draw(st.sampled_from([{"up": False}, {"up": False, "lastfail": 1e9}]))
    upstream = open_upstream(pools, clock, last_resort=data.draw(st.booleans()))
    clock.advance(data.draw(st.sampled_from([0, 20])))
    explanation = upstream.explain()
    first = next(iter(upstream.attempts()), None) if "connect fails" not in explanation.summary else None
    if first is None:
        assert visit_in_vain(upstream, {}).attempts == ()
    elif first.last_resort:
        assert "as a last resort" in explanation.summary
    else:
        assert explanation.summary.startswith(f"connect tries pool {first.pool.id} first")
        assert not reasons(explanation, first.pool.id)[first.host.id].startswith("passed over")
