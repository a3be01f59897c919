"""Changing pools and hosts at run time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import (
    HostExists,
    HostNotFound,
    InvalidConfig,
    MethodNotFound,
    PoolExists,
    PoolNotFound,
    Upstream,
    UpstreamAPI,
)
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, open_upstream, open_workers, refused, take_down, visit, visit_in_vain
from tests.unit import strategies


@pytest.fixture
def api() -> UpstreamAPI:
    """A pool p with the hosts a, b and c."""
    return UpstreamAPI(open_upstream({"p": {"hosts": hosts("a", "b", "c")}}))


def ids(api: UpstreamAPI, pool_id: str = "p") -> list[str]:
    return list(api.get_pools()[pool_id]["hosts"])


# ── the seed's example ────────────────────────────────────────────────────────────────────────


def test_the_example_of_the_seed_works() -> None:
    upstream = Upstream(MemoryStore(FakeClock()))
    api = UpstreamAPI(upstream)
    assert not upstream.configured
    api.create_pool(id="primary", timeout=100)
    api.set_priority("primary", 0)
    api.set_method("primary", "round_robin")
    api.add_host("primary", id="a", host="127.0.0.1", port="80", weight=10)
    api.add_host("primary", id="b", host="127.0.0.1", port="81", weight=10)
    api.create_pool(id="dr")
    api.set_priority("dr", 10)
    assert api.add_host("dr", host="127.0.0.1", port="82", weight=5) == "1"
    assert api.add_host("dr", host="127.0.0.1", port="83", weight=10) == "2"
    api.create_pool(id="test", priority=5)
    tried = visit(upstream, dict.fromkeys("ab", refused))
    assert sorted(tried[:2]) == ["a", "b"]
    assert tried[2] in ("1", "2")


# ── pools ─────────────────────────────────────────────────────────────────────────────────────


def test_a_new_pool_has_the_options_given_and_no_hosts(api: UpstreamAPI) -> None:
    api.create_pool("q", method="hash", timeout="250ms", priority="7", max_fails=1, failed_timeout="1m", up=False)
    pool = api.get_pools()["q"]
    assert {
        name: pool[name] for name in ("method", "timeout", "priority", "max_fails", "failed_timeout", "up")
    } == {
        "method": "hash",
        "timeout": 250,
        "priority": 7,
        "max_fails": 1,
        "failed_timeout": 60,
        "up": False,
    }
    assert pool["hosts"] == {}


def test_a_pool_of_an_id_that_is_taken_is_refused(api: UpstreamAPI) -> None:
    with pytest.raises(PoolExists, match=r"^pools\.p exists already$"):
        api.create_pool("p")
    api.create_pool(1)
    with pytest.raises(PoolExists):
        api.create_pool("1")


def test_a_pool_cannot_be_created_with_hosts(api: UpstreamAPI) -> None:
    with pytest.raises(InvalidConfig, match="add each with add_host"):
        api.create_pool("q", hosts={"a": {"host": "a.test"}})


def test_an_option_named_self_is_refused_like_any_unknown_option(api: UpstreamAPI) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.q\.self is not an option"):
        api.create_pool("q", self=1)
    with pytest.raises(InvalidConfig, match=r"\.self is not an option"):
        api.add_host("p", host="a.test", self=1)


def test_a_removed_pool_is_gone_with_its_hosts(api: UpstreamAPI) -> None:
    api.create_pool("q", priority=1)
    api.add_host("q", id="x", host="x.test")
    take_down(api.upstream, "a")
    api.remove_pool("p")
    assert list(api.get_pools()) == ["q"]
    assert visit(api.upstream) == ["x"]
    api.create_pool("p")
    api.add_host("p", id="a", host="a.test")
    assert health(api.upstream, "a") == {"up": True, "failcount": 0, "lastfail": 0}


def test_set_method_changes_how_a_pool_balances(api: UpstreamAPI) -> None:
    api.set_method("p", "hash")
    assert api.get_pools()["p"]["method"] == "hash"
    assert len({visit(api.upstream, key="k")[0] for _ in range(9)}) == 1


def test_an_unknown_method_is_refused(api: UpstreamAPI) -> None:
    for call in (lambda: api.set_method("p", "fair"), lambda: api.create_pool("q", method="fair")):
        with pytest.raises(
            MethodNotFound, match=r"^pools\.[pq]\.method must be one of .*round_robin.*, not 'fair'$"
        ):
            call()
    assert list(api.get_pools()) == ["p"]


@pytest.mark.parametrize(("given", "priority"), [(-1, -1), ("5", 5), (0, 0)])
def test_set_priority_takes_any_whole_number(api: UpstreamAPI, given: Any, priority: int) -> None:
    api.set_priority("p", given)
    assert api.get_pools()["p"]["priority"] == priority


@pytest.mark.parametrize("given", ["foobar", math.nan, True, None, 1.5])
def test_what_is_no_priority_is_refused(api: UpstreamAPI, given: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.priority must be a whole number"):
        api.set_priority("p", given)


def test_a_pool_that_is_down_gets_nothing_and_its_hosts_keep_their_state(api: UpstreamAPI) -> None:
    take_down(api.upstream, "a")
    api.down_pool("p")
    assert not api.get_pools()["p"]["up"]
    assert visit_in_vain(api.upstream, {}).attempts == ()
    api.up_pool("p")
    assert not health(api.upstream, "a")["up"]
    assert visit(api.upstream)[0] in "bc"


# ── hosts ─────────────────────────────────────────────────────────────────────────────────────


def test_a_new_host_has_the_defaults_and_is_used_at_once(api: UpstreamAPI) -> None:
    assert api.add_host("p", id="d", host="d.test") == "d"
    assert api.get_pools()["p"]["hosts"]["d"] == {
        "host": "d.test",
        "port": 80,
        "weight": 0,
        "up": True,
        "failcount": 0,
        "lastfail": 0,
    }
    assert sorted(visit(api.upstream)[0] for _ in range(4)) == list("abcd")


def test_a_host_without_an_id_gets_the_count_of_hosts_plus_one_or_the_next_free_number(api: UpstreamAPI) -> None:
    assert api.add_host("p", host="d.test") == "4"
    assert api.add_host("p", host="e.test", id=6) == "6"
    assert api.add_host("p", host="f.test") == "7", "5 hosts + 1 is taken"
    api.remove_host("p", "a")
    api.remove_host("p", "b")
    assert api.add_host("p", host="g.test") == "5"


def test_a_host_of_an_id_that_is_taken_is_refused(api: UpstreamAPI) -> None:
    with pytest.raises(HostExists, match=r"^pools\.p\.hosts\.a exists already$"):
        api.add_host("p", id="a", host="other.test")
    assert api.get_pools()["p"]["hosts"]["a"]["host"] == "a.test"


@pytest.mark.parametrize("address", ["", " ", "a b", "a\n", None, 5])
def test_a_host_without_an_address_is_refused(api: UpstreamAPI, address: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.hosts\.d\.host must be "):
        api.add_host("p", id="d", host=address)
    assert ids(api) == ["a", "b", "c"]


def test_health_may_be_given_with_a_new_host(api: UpstreamAPI) -> None:
    api.add_host("p", id="manual", host="d.test", up=False)
    api.add_host("p", id="failing", host="e.test", failcount=2, lastfail=5)
    assert health(api.upstream, "manual") == {"up": False, "failcount": 0, "lastfail": 0}
    assert health(api.upstream, "failing") == {"up": True, "failcount": 2, "lastfail": 5}


@pytest.mark.parametrize("removed", ["a", "b", "c"])
def test_any_host_can_be_removed(api: UpstreamAPI, removed: str) -> None:
    api.remove_host("p", removed)
    left = [host_id for host_id in "abc" if host_id != removed]
    assert ids(api) == left
    assert sorted({visit(api.upstream)[0] for _ in range(6)}) == left


def test_set_weight_gives_the_share_and_0_drains(api: UpstreamAPI) -> None:
    api.set_weight("p", "a", 2)
    api.set_weight("p", "b", "1")
    assert sorted(visit(api.upstream)[0] for _ in range(6)) == list("aaaabb")
    api.set_weight("p", "a", 0)
    assert {visit(api.upstream)[0] for _ in range(6)} == {"b"}


@pytest.mark.parametrize("given", ["foobar", -1, True, None, math.inf])
def test_what_is_no_weight_is_refused(api: UpstreamAPI, given: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.hosts\.a\.weight must be "):
        api.set_weight("p", "a", given)


def test_a_host_taken_down_by_hand_stays_down_for_everyone_until_it_is_put_back(clock: FakeClock) -> None:
    first, second = open_workers(2, {"p": {"hosts": hosts("a", "b")}}, clock)
    UpstreamAPI(first).down_host("p", "a")
    for seconds in (0, 20, 1e6):
        clock.advance(seconds)
        second.revive_hosts()
        assert {visit(second)[0] for _ in range(6)} == {"b"}
        assert health(second, "a") == {"up": False, "failcount": 0, "lastfail": 0}
    UpstreamAPI(second).up_host("p", "a")
    assert {visit(first)[0] for _ in range(6)} == {"a", "b"}


def test_up_host_puts_back_a_failed_host_with_a_clean_state(api: UpstreamAPI) -> None:
    take_down(api.upstream, "a")
    api.up_host("p", "a")
    assert health(api.upstream, "a") == {"up": True, "failcount": 0, "lastfail": 0}


def test_up_host_forgives_the_failures_of_a_host_that_is_up(api: UpstreamAPI) -> None:
    visit_in_vain(api.upstream, dict.fromkeys("abc", refused))
    api.up_host("p", "a")
    assert health(api.upstream, "a")["failcount"] == 0
    assert health(api.upstream, "b")["failcount"] == 1


# ── what is not there ─────────────────────────────────────────────────────────────────────────

CALLS_ON_A_POOL: list[Callable[[UpstreamAPI, Any], Any]] = [
    lambda api, pool_id: api.remove_pool(pool_id),
    lambda api, pool_id: api.set_method(pool_id, "random"),
    lambda api, pool_id: api.set_priority(pool_id, 1),
    lambda api, pool_id: api.down_pool(pool_id),
    lambda api, pool_id: api.up_pool(pool_id),
    lambda api, pool_id: api.add_host(pool_id, host="a.test"),
    lambda api, pool_id: api.remove_host(pool_id, "a"),
    lambda api, pool_id: api.set_weight(pool_id, "a", 1),
    lambda api, pool_id: api.down_host(pool_id, "a"),
    lambda api, pool_id: api.up_host(pool_id, "a"),
]
CALLS_ON_A_HOST: list[Callable[[UpstreamAPI, Any], Any]] = [
    lambda api, host_id: api.remove_host("p", host_id),
    lambda api, host_id: api.set_weight("p", host_id, 1),
    lambda api, host_id: api.down_host("p", host_id),
    lambda api, host_id: api.up_host("p", host_id),
]


@pytest.mark.parametrize("number", range(len(CALLS_ON_A_POOL)))
def test_a_pool_that_is_not_there_is_an_error_that_names_those_that_are(api: UpstreamAPI, number: int) -> None:
    with pytest.raises(PoolNotFound, match=r"^there is no pool 'q'; pools: p$"):
        CALLS_ON_A_POOL[number](api, "q")


@pytest.mark.parametrize("number", range(len(CALLS_ON_A_HOST)))
def test_a_host_that_is_not_there_is_an_error_that_names_those_that_are(api: UpstreamAPI, number: int) -> None:
    with pytest.raises(HostNotFound, match=r"^there is no host 'd' in pool 'p'; hosts: a, b, c$"):
        CALLS_ON_A_HOST[number](api, "d")


@pytest.mark.parametrize("given", ["", None, True, 1.5, [], {}, "a\n"])
def test_what_cannot_be_an_id_is_refused_everywhere(api: UpstreamAPI, given: Any) -> None:
    before = api.get_pools()
    for call in [*CALLS_ON_A_POOL, *CALLS_ON_A_HOST, lambda api, pool_id: api.create_pool(pool_id)]:
        with pytest.raises(InvalidConfig):
            call(api, given)
    if given is not None:
        with pytest.raises(InvalidConfig):
            api.add_host("p", id=given, host="d.test")
    assert api.get_pools() == before


def test_ids_may_be_numbers_everywhere(api: UpstreamAPI) -> None:
    api.create_pool(7)
    api.add_host(7, id=8, host="a.test")
    api.set_weight(7, 8, 3)
    api.down_host(7, 8)
    api.up_host(7, 8)
    assert api.get_pools()["7"]["hosts"]["8"]["weight"] == 3
    api.remove_host(7, 8)
    api.remove_pool(7)


# ── visible to all ────────────────────────────────────────────────────────────────────────────


def test_every_change_is_seen_by_the_next_request_of_every_worker() -> None:
    first, second = open_workers(2, {"p": {"hosts": hosts("a")}})
    api = UpstreamAPI(first)
    assert visit(second) == ["a"]
    api.create_pool("q", priority=-1)
    api.add_host("q", id="b", host="b.test")
    assert visit(second) == ["b"]
    api.down_host("q", "b")
    assert visit(second) == ["a"]
    api.up_host("q", "b")
    api.set_priority("q", 1)
    assert visit(second) == ["a"]
    api.down_pool("p")
    assert visit(second) == ["b"]
    api.remove_pool("q")
    assert visit_in_vain(second, {}).attempts == ()


def test_an_api_call_takes_along_what_a_request_could_not_write() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    visit(upstream)
    begun, over = threading.Event(), threading.Event()

    def write_for_long(_view: object) -> None:
        begun.set()
        assert over.wait(10)  # the request did not wait for us

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(upstream.store.transact, "another", write_for_long)
        assert begun.wait(10)
        visit_in_vain(upstream, {"a": refused})
        over.set()
        writing.result()
    assert health(upstream, "a")["failcount"] == 0
    UpstreamAPI(upstream).create_pool("q")
    assert health(upstream, "a")["failcount"] == 1


# ── anything goes in, nothing half comes out ──────────────────────────────────────────────────


def stored(upstream: Upstream) -> Any:
    document = upstream.store.read(upstream.id)
    return document.config, document.records


def works_or_is_refused(upstream: Upstream, change: Callable[[], object]) -> None:
    before, refusal = stored(upstream), None
    try:
        change()
    except InvalidConfig as error:
        refusal = error
    if refusal is not None:
        assert all(refusal.problems)
        assert str(refusal)
        assert stored(upstream) == before, "nothing is stored of what was refused"
    pools = upstream.get_pools()
    upstream.save_pools(pools)
    assert upstream.get_pools() == pools
    assert str(upstream.explain())
    if any(h["up"] for p in pools.values() if p["up"] for h in p["hosts"].values()):
        assert visit(upstream, key="k")


@given(strategies.some_pool_options, strategies.json_like | strategies.ids)
def test_any_json_given_to_create_pool_works_or_is_refused(options: dict[str, Any], pool_id: Any) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    options.pop("id", None)
    works_or_is_refused(upstream, lambda: UpstreamAPI(upstream).create_pool(pool_id, **options))


@given(strategies.some_host_options, st.none() | strategies.json_like | strategies.ids)
def test_any_json_given_to_add_host_works_or_is_refused(options: dict[str, Any], host_id: Any) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("z")}})
    options.pop("id", None)
    options.pop("pool_id", None)
    works_or_is_refused(upstream, lambda: UpstreamAPI(upstream).add_host("p", id=host_id, **options))


@given(strategies.some_pools)
def test_any_json_given_to_save_pools_works_or_is_refused(pools: Any) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    works_or_is_refused(upstream, lambda: upstream.save_pools(pools))


@given(strategies.some_pools, st.booleans())
def test_any_json_given_to_configure_works_or_is_refused(pools: Any, first: bool) -> None:
    upstream = open_upstream({} if first else {"p": {"hosts": hosts("a")}})
    works_or_is_refused(upstream, lambda: upstream.configure(pools))


@given(strategies.some_pools)
def test_any_json_given_to_sort_pools_works_or_is_refused(pools: Any) -> None:
    upstream = open_upstream({"a": {"hosts": hosts("x")}, "b": {}, "1": {}})
    works_or_is_refused(upstream, lambda: upstream.sort_pools(pools))


@given(st.sampled_from([*CALLS_ON_A_POOL, *CALLS_ON_A_HOST]), strategies.json_like)
def test_any_json_given_as_an_id_works_or_is_refused(call: Callable[[UpstreamAPI, Any], Any], given: Any) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})

    def change() -> None:
        with suppress(PoolNotFound, HostNotFound):
            call(UpstreamAPI(upstream), given)

    works_or_is_refused(upstream, change)
