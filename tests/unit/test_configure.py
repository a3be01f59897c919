"""``configure``: what is declared, merged with what was changed at run time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from resty_upstream import Host, InvalidConfig, MethodNotFound, Pool, Upstream, UpstreamAPI
from resty_upstream.model import Pools, merge, pools_from_dicts
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, open_upstream, open_workers, refused, take_down, visit, visit_in_vain
from tests.unit import strategies

DECLARED: dict[str, Any] = {
    "primary": {"timeout": 100, "hosts": hosts("a", "b", weight=10)},
    "dr": {"priority": 10, "hosts": hosts("c")},
}


def declared(**changes: Any) -> dict[str, Any]:
    """DECLARED with other options of the pool primary."""
    pools = copy.deepcopy(DECLARED)
    pools["primary"] |= changes
    return pools


@pytest.fixture
def upstream() -> Upstream:
    return open_upstream(DECLARED)


@pytest.fixture
def api(upstream: Upstream) -> UpstreamAPI:
    return UpstreamAPI(upstream)


def test_what_is_declared_is_what_there_is(upstream: Upstream) -> None:
    pools = upstream.get_pools()
    assert list(pools) == ["primary", "dr"]
    assert list(pools["primary"]["hosts"]) == ["a", "b"]
    assert (pools["primary"]["timeout"], pools["primary"]["hosts"]["a"]["weight"]) == (100, 10)


def test_a_declaration_that_did_not_change_leaves_every_run_time_change_alone(
    upstream: Upstream, api: UpstreamAPI
) -> None:
    api.set_weight("primary", "a", 3)
    api.set_priority("dr", 5)
    api.set_method("primary", "random")
    api.down_host("primary", "b")
    api.remove_host("dr", "c")
    api.add_host("dr", id="new", host="new.test")
    api.create_pool("extra")
    before = upstream.get_pools()
    upstream.configure(DECLARED)
    assert upstream.get_pools() == before


def test_a_declaration_that_changed_wins_over_an_older_run_time_change(
    upstream: Upstream, api: UpstreamAPI
) -> None:
    api.set_weight("primary", "a", 3)
    upstream.configure(declared(hosts=hosts("a", "b", weight=7)))
    assert upstream.get_pools()["primary"]["hosts"]["a"]["weight"] == 7


def test_a_run_time_change_wins_over_an_older_declaration(upstream: Upstream, api: UpstreamAPI) -> None:
    upstream.configure(declared(hosts=hosts("a", "b", weight=7)))
    api.set_weight("primary", "a", 3)
    upstream.configure(declared(hosts=hosts("a", "b", weight=7)))
    assert upstream.get_pools()["primary"]["hosts"]["a"]["weight"] == 3


def test_each_option_is_merged_by_itself(upstream: Upstream, api: UpstreamAPI) -> None:
    api.set_priority("primary", 4)
    api.set_method("primary", "random")
    upstream.configure(declared(timeout=250, method="hash"))
    pool = upstream.get_pools()["primary"]
    assert (pool["priority"], pool["method"], pool["timeout"]) == (4, "hash", 250)


def test_health_of_hosts_that_stay_is_kept_and_what_is_declared_of_it_counts_for_new_ones(
    upstream: Upstream,
) -> None:
    take_down(upstream, "a", pool_id="primary")
    visit_in_vain(upstream, dict.fromkeys("abc", refused))
    before = health(upstream, "c", "dr")
    table = hosts("a", "b", "d", weight=2)
    table["a"]["up"] = True
    table["d"]["up"] = False
    upstream.configure(declared(hosts=table))
    assert not health(upstream, "a", "primary")["up"]
    assert health(upstream, "c", "dr") == before
    assert health(upstream, "d", "primary") == {"up": False, "failcount": 0, "lastfail": 0}


def test_hosts_and_pools_that_are_no_longer_declared_go(upstream: Upstream) -> None:
    upstream.configure({"primary": {"timeout": 100, "hosts": hosts("b", weight=10)}})
    assert list(upstream.get_pools()) == ["primary"]
    assert visit(upstream) == ["b"]


def test_what_was_removed_at_run_time_stays_away_until_its_declaration_changes(
    upstream: Upstream, api: UpstreamAPI
) -> None:
    api.remove_host("primary", "a")
    api.remove_pool("dr")
    upstream.configure(declared(timeout=300))
    assert list(upstream.get_pools()) == ["primary"]
    assert list(upstream.get_pools()["primary"]["hosts"]) == ["b"]
    again = declared(timeout=300)
    again["primary"]["hosts"]["a"]["weight"] = 11
    again["dr"]["priority"] = 11
    upstream.configure(again)
    assert sorted(upstream.get_pools()) == ["dr", "primary"]
    assert sorted(upstream.get_pools()["primary"]["hosts"]) == ["a", "b"]


def test_what_was_added_at_run_time_stays_in_a_pool_that_is_declared_for_the_first_time() -> None:
    upstream = open_upstream({})
    api = UpstreamAPI(upstream)
    api.create_pool("p", timeout=9)
    api.add_host("p", id="x", host="x.test")
    upstream.configure({"p": {"timeout": 100, "hosts": hosts("a")}})
    assert sorted(upstream.get_pools()["p"]["hosts"]) == ["a", "x"]
    assert upstream.get_pools()["p"]["timeout"] == 100


def test_pools_of_one_priority_are_tried_in_the_order_in_which_they_are_declared() -> None:
    upstream = open_upstream({"x": {"hosts": hosts("a")}, "y": {"hosts": hosts("b")}})
    upstream.configure({"y": {"hosts": hosts("b")}, "x": {"hosts": hosts("a")}})
    assert visit(upstream) == ["b"]


def test_a_declaration_with_a_problem_is_refused_as_a_whole(upstream: Upstream) -> None:
    before = upstream.get_pools()
    with pytest.raises(
        InvalidConfig, match=r"^pools\.primary\.timeout must be .*; pools\.dr\.hosts\.c\.port must be"
    ):
        upstream.configure({"primary": {"timeout": -1}, "dr": {"hosts": {"c": {"host": "c.test", "port": 0}}}})
    with pytest.raises(MethodNotFound, match=r"^pools\.q\.method must be one of"):
        upstream.configure(DECLARED | {"q": {"method": "fair"}})
    assert upstream.get_pools() == before
    visit(upstream)
    assert upstream.get_pools() == before, "nor is it taken up later"


def test_configuring_costs_one_transaction_and_nothing_for_those_that_are_up() -> None:
    first, second = open_workers(2, DECLARED)
    heard: list[object] = []
    second.bind("host_down", heard.append)
    second.bind("host_up", heard.append)
    second.configure(DECLARED)
    first.configure(declared(timeout=5))
    assert not heard


# ── pools given to the upstream itself ────────────────────────────────────────────────────────


def test_pools_given_to_the_upstream_are_configured_at_the_first_use() -> None:
    store = MemoryStore(FakeClock())
    upstream = Upstream(store, pools=DECLARED)
    assert store.read("default").config == b"", "nothing is opened before"
    assert len(visit(upstream)) == 1
    assert list(upstream.get_pools()) == ["primary", "dr"]


def test_workers_that_start_later_with_the_same_pools_change_nothing(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    first = Upstream(store, pools=DECLARED)
    UpstreamAPI(first).down_host("primary", "a")
    before = store.read("default")
    second = Upstream(store, pools=DECLARED)
    assert visit(second) == ["b"]
    assert store.read("default").config == before.config


def test_two_releases_side_by_side_do_not_undo_each_other_for_ever() -> None:
    store = MemoryStore(FakeClock())
    old = Upstream(store, pools=declared(timeout=100))
    visit(old)
    new = Upstream(store, pools=declared(timeout=200))
    for upstream in (new, old, new, old):
        visit(upstream)
        UpstreamAPI(upstream).set_weight("primary", "a", 5)
    assert old.get_pools()["primary"]["timeout"] == 200


def test_a_change_by_hand_that_comes_first_finds_what_is_declared() -> None:
    upstream = Upstream(MemoryStore(FakeClock()), pools=DECLARED)
    UpstreamAPI(upstream).down_host("primary", "a")
    assert visit(upstream) == ["b"]


def test_pools_given_to_the_upstream_are_checked_at_once() -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.timeout must be"):
        Upstream("memory://", pools={"p": {"timeout": 0}})


# ── laws of the merge ─────────────────────────────────────────────────────────────────────────


def checked(plain: dict[str, Any]) -> Pools:
    return pools_from_dicts(plain).pools


definitions = strategies.pools.map(checked)


@given(definitions, definitions)
def test_an_unchanged_declaration_changes_nothing(base: Pools, current: Pools) -> None:
    assert merge(base, base, current) == current


@given(definitions, definitions)
def test_without_run_time_changes_the_declaration_is_what_there_is(base: Pools, now: Pools) -> None:
    merged = merge(base, now, base)
    assert sorted(merged, key=lambda pool: pool.id) == sorted(now, key=lambda pool: pool.id)


@given(definitions, definitions, definitions)
def test_to_merge_a_declaration_twice_is_to_merge_it_once(base: Pools, now: Pools, current: Pools) -> None:
    once = merge(base, now, current)
    assert merge(now, now, once) == once


@given(definitions, definitions)
def test_the_first_declaration_is_taken_as_it_is_beside_what_was_added_at_run_time(
    now: Pools, current: Pools
) -> None:
    merged = {pool.id: pool for pool in merge((), now, current)}
    assert merged.keys() == {pool.id for pool in now} | {pool.id for pool in current}
    for pool in now:
        assert replace(merged[pool.id], hosts=()) == replace(pool, hosts=())
        assert set(pool.hosts) <= set(merged[pool.id].hosts)


def by_id(items: tuple[Any, ...]) -> dict[str, Any]:
    return {item.id: item for item in items}


def check_options(before: Any, now: Any, current: Any, merged: Any) -> None:
    """Three ways, option by option."""
    for name in now.__struct_fields__:
        if name == "hosts":
            continue
        changed = before is None or getattr(before, name) != getattr(now, name)
        assert getattr(merged, name) == getattr(now if changed else current, name)


def check_presence(before: dict[str, Any], now: dict[str, Any], current: dict[str, Any], merged: Any) -> None:
    for key in before.keys() | now.keys() | current.keys():
        if key in now:
            assert (key in merged) == (key in current or before.get(key) != now[key])
        else:
            assert (key in merged) == (key in current and key not in before)


@given(definitions, definitions, definitions)
def test_every_option_host_and_pool_is_merged_three_ways(base: Pools, now: Pools, current: Pools) -> None:
    before_pools, now_pools, current_pools = by_id(base), by_id(now), by_id(current)
    merged = by_id(merge(base, now, current))
    check_presence(before_pools, now_pools, current_pools, merged)
    for pool_id, pool in now_pools.items():
        if pool_id not in merged:
            continue
        before, running = before_pools.get(pool_id), current_pools.get(pool_id)
        if running is None:
            assert merged[pool_id] == pool
            continue
        check_options(before, pool, running, merged[pool_id])
        tables = [by_id(p.hosts) if p else {} for p in (before, pool, running, merged[pool_id])]
        check_presence(*tables)
        for host_id in tables[1].keys() & tables[2].keys():
            check_options(*(table.get(host_id) for table in tables))


@given(definitions, definitions, definitions)
def test_ids_are_unique_after_a_merge(base: Pools, now: Pools, current: Pools) -> None:
    merged = merge(base, now, current)
    assert len(by_id(merged)) == len(merged)
    assert all(len(by_id(pool.hosts)) == len(pool.hosts) for pool in merged)


@given(strategies.pools, strategies.pools, st.data())
def test_configure_and_the_api_agree_with_the_merge(first: Any, second: Any, data: st.DataObject) -> None:
    """Whatever happens between two declarations, health is kept, and a third time nothing moves."""
    upstream = open_upstream(first)
    api = UpstreamAPI(upstream)
    for pool_id, pool in upstream.get_pools().items():
        for host_id in pool["hosts"]:
            match data.draw(st.sampled_from(["", "down", "remove", "weight"])):
                case "down":
                    api.down_host(pool_id, host_id)
                case "remove":
                    api.remove_host(pool_id, host_id)
                case "weight":
                    api.set_weight(pool_id, host_id, 42)
    before = upstream.get_pools()
    upstream.configure(second)
    now = upstream.get_pools()
    for pool_id, host_id in ((p, h) for p in before for h in before[p]["hosts"]):
        if host_id in now.get(pool_id, {"hosts": {}})["hosts"]:
            assert health(upstream, host_id, pool_id) == {
                name: before[pool_id]["hosts"][host_id][name] for name in ("up", "failcount", "lastfail")
            }
    upstream.configure(second)
    assert upstream.get_pools() == now


def test_what_is_merged_are_the_values_themselves() -> None:
    """A guard for the tests above: they compare with what the model says."""
    assert checked({"p": {"hosts": {"a": {"host": "a.test"}}}}) == (
        Pool(id="p", hosts=(Host(id="a", host="a.test"),)),
    )
