"""The history: each transition of a host, once, by the commit that made it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import InvalidConfig, NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.events import HostEvent
from resty_upstream.replica import Edit
from resty_upstream.state import CheckFailed, CheckPassed, Eject, Fact
from resty_upstream.stores import LOG_ENTRIES
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, open_upstream, open_workers, refused, take_down, visit

POOLS: dict[str, Any] = {"p": {"max_fails": 2, "hosts": hosts("a", "b")}, "q": {"hosts": hosts("a")}}


def told(upstream: Upstream) -> list[tuple[str, str, str, str]]:
    """The history without its times."""
    return [(each.pool, each.host, each.before, each.after) for each in upstream.history()]


def apply(upstream: Upstream, pool_id: str, host_id: str, fact: Fact) -> None:
    """Let a fact work on a host as a checker does."""

    def change(edit: Edit) -> None:
        pool = next((pool for pool in edit.config.pools if pool.id == pool_id), None)
        host = pool and pool.find(host_id)
        if pool and host:
            edit.apply(pool, host, fact)

    upstream.commit(change)


# ── what a record says ────────────────────────────────────────────────────────────────────────


def test_of_an_upstream_that_nothing_happened_to_there_is_no_history() -> None:
    upstream = open_upstream(POOLS)
    visit(upstream)
    assert upstream.history() == []
    assert Upstream(MemoryStore()).history() == []


def test_a_record_says_when_where_from_what_to_what_and_why() -> None:
    upstream = open_upstream(POOLS)
    before = time.time()
    take_down(upstream, "a")
    (record,) = upstream.history()
    assert (record.pool, record.host, record.before, record.after) == ("p", "a", "up", "failed")
    assert (record.reason, record.by, record.process) == ("ECONNREFUSED", "", os.getpid())
    assert before <= record.at <= time.time()


def test_each_way_of_a_host_is_recorded(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"max_fails": 2, "hosts": hosts("a")}}, clock)
    api = UpstreamAPI(upstream)
    take_down(upstream, "a")
    clock.advance(20)
    visit(upstream)
    take_down(upstream, "a")
    api.down_host("p", "a", reason="new kernel", by="jane")
    api.down_host("p", "a", reason="again", by="joe")
    api.up_host("p", "a", by="joe")
    api.up_host("p", "a")
    take_down(upstream, "a")
    clock.advance(20)
    upstream.revive_hosts()
    assert [(each.before, each.after, each.reason, each.by) for each in upstream.history()] == [
        ("up", "failed", "ECONNREFUSED", ""),
        ("failed", "up", "probe succeeded", ""),
        ("up", "failed", "ECONNREFUSED", ""),
        ("failed", "manual", "by hand: new kernel", "jane"),
        ("manual", "up", "by hand", "joe"),
        ("up", "failed", "ECONNREFUSED", ""),
        ("failed", "up", "revived", ""),
    ]


def test_a_probe_that_fails_is_no_transition(clock: FakeClock) -> None:
    upstream = open_upstream(POOLS, clock)
    take_down(upstream, "a")
    clock.advance(20)
    visit(upstream, {"a": refused})
    assert len(upstream.history()) == 1


def test_a_change_of_weight_is_recorded_however_it_is_made() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", weight=10)}})
    api = UpstreamAPI(upstream)
    api.set_weight("p", "a", 0, reason="new kernel", by="jane")
    api.set_weight("p", "a", 0, reason="still", by="jane")
    pools = upstream.get_pools()
    pools["p"]["hosts"]["a"]["weight"] = 3
    upstream.save_pools(pools)
    upstream.configure({"p": {"hosts": hosts("a", "b", weight=5)}})
    assert [(each.host, each.before, each.after, each.reason, each.by) for each in upstream.history()] == [
        ("a", "weight 10", "weight 0", "by hand: new kernel", "jane"),
        ("a", "weight 0", "weight 3", "by hand", ""),
        ("a", "weight 3", "weight 5", "declared", ""),
        ("b", "weight 10", "weight 5", "declared", ""),
    ]


def test_health_that_save_pools_is_given_is_recorded_and_what_it_removes_or_adds_is_not() -> None:
    upstream = open_upstream(POOLS)
    pools = upstream.get_pools()
    pools["p"]["hosts"]["a"]["up"] = False
    del pools["p"]["hosts"]["b"]
    pools["q"]["hosts"]["a"] |= {"up": False, "lastfail": 5}
    pools["q"]["hosts"]["new"] = {"host": "new.test", "up": False}
    upstream.save_pools(pools)
    assert told(upstream) == [("p", "a", "up", "manual"), ("q", "a", "up", "failed")]
    pools["p"]["hosts"]["a"]["lastfail"] = 5
    upstream.save_pools(pools)
    assert told(upstream)[2:] == [("p", "a", "manual", "failed")]
    assert {each.reason for each in upstream.history()} == {"by hand"}


def test_of_many_workers_that_see_a_host_fail_one_records_it() -> None:
    workers = open_workers(5, POOLS)
    for _ in range(3):
        for worker in workers:
            visit(worker, {"a": refused})
    assert [told(worker) for worker in workers] == [[("p", "a", "up", "failed")]] * 5


def test_at_a_reboot_hosts_that_failed_are_back_and_the_history_says_why(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    upstream = Upstream(store, pools=POOLS)
    UpstreamAPI(upstream).down_host("q", "a")
    take_down(upstream, "a")
    store.clock_id = "the next boot"
    again = Upstream(store)
    again.get_pools()
    again.open()
    assert told(again)[2:] == [("p", "a", "failed", "up")]
    assert again.history()[-1].reason == "the machine was started again"


def test_a_change_that_fails_leaves_no_record() -> None:
    upstream = open_upstream(POOLS)

    def change(edit: Edit) -> None:
        pool = edit.config.pools[0]
        edit.apply(pool, pool.hosts[0], CheckFailed(1000, 1000, 1e9, 0, "check", 1))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        upstream.commit(change)
    assert upstream.history() == []
    assert health(upstream, "a")["up"]


# ── reading ───────────────────────────────────────────────────────────────────────────────────


def test_the_last_transitions_are_kept_and_as_many_of_them_given_as_asked_for() -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    for number in range(LOG_ENTRIES // 2 + 3):
        api.down_host("p", "a", reason=str(number))
        api.up_host("p", "a", reason=str(number))
    history = upstream.history()
    assert len(history) == LOG_ENTRIES
    assert history[0].reason == "by hand: 3"
    assert upstream.history(3) == history[-3:]
    assert upstream.history(0) == []


def test_damaged_entries_are_left_out() -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    api.down_host("p", "a")
    for entry in (b"", b"{", b"[]", b"{}", b'{"at": "x"}', b"\xff\xfe", b"null"):
        upstream.store.transact(upstream.id, lambda view, entry=entry: view.log(entry))
    api.up_host("p", "a")
    assert told(upstream) == [("p", "a", "up", "manual"), ("p", "a", "manual", "up")]


def test_entries_of_a_later_release_that_say_more_are_read() -> None:
    upstream = open_upstream(POOLS)
    more = b'{"at":1,"pool":"p","host":"a","from":"up","to":"failed","reason":"r","process":1,"by":"","later":[1]}'
    upstream.store.transact(upstream.id, lambda view: view.log(more))
    assert told(upstream) == [("p", "a", "up", "failed")]


def test_the_history_is_read_from_any_upstream_object_on_the_same_file(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/private/upstreams.db"
    one = Upstream(url, pools=POOLS)
    UpstreamAPI(one).down_host("p", "a", reason="why", by="jane")
    one.close()
    other = Upstream(url)
    assert [(each.reason, each.by) for each in other.history()] == [("by hand: why", "jane")]
    assert Upstream(url, "another").history() == []
    other.close()


# ── what may be said ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["down_host", "up_host"])
@pytest.mark.parametrize("option", ["reason", "by"])
@pytest.mark.parametrize("value", ["two\nlines", "x" * 201, "a\x1b[31m", "\ud800", None, 5, b"x", ["x"]])
def test_what_is_no_line_of_text_is_refused_and_nothing_done(name: str, option: str, value: object) -> None:
    upstream = open_upstream(POOLS)
    method = getattr(UpstreamAPI(upstream), name)
    with pytest.raises(
        InvalidConfig, match=rf"^{option} must be at most 200 characters of text in one line, not "
    ):
        method("p", "a", **{option: value})
    assert upstream.history() == []
    assert health(upstream, "a")["up"]


def test_up_to_200_characters_of_any_script_may_be_said() -> None:
    upstream = open_upstream(POOLS)
    said = "ядро 6.18 — größer" + "!" * 180
    UpstreamAPI(upstream).down_host("p", "a", reason=said, by=said)
    assert upstream.history()[0].reason == f"by hand: {said}"
    assert upstream.history()[0].by == said


# ── any sequence of what may happen ───────────────────────────────────────────────────────────

Standing = Mapping[tuple[str, str], str]
Happening = Callable[[Upstream, FakeClock], object]


def weights(upstream: Upstream) -> Standing:
    """The weight of each host, as records name it."""
    return {
        (pool_id, host_id): f"weight {host['weight']}"
        for pool_id, pool in upstream.get_pools().items()
        for host_id, host in pool["hosts"].items()
    }


def standings(upstream: Upstream) -> Standing:
    """Where each host stands, as plain dicts tell it."""
    return {
        (pool_id, host_id): "up" if host["up"] else "failed" if host["lastfail"] else "manual"
        for pool_id, pool in upstream.get_pools().items()
        for host_id, host in pool["hosts"].items()
    }


def request(*dead: str) -> Happening:
    def happen(upstream: Upstream, _clock: FakeClock) -> None:
        with upstream.context(), contextlib.suppress(NoHostAvailable):
            visit(upstream, dict.fromkeys(dead, refused))

    return happen


def fact(host_id: str, make: Callable[[float], Fact]) -> Happening:
    return lambda upstream, clock: apply(upstream, "p", host_id, make(clock()))


def by_hand(name: str, host_id: str, *given: object, **options: object) -> Happening:
    def happen(upstream: Upstream, _clock: FakeClock) -> None:
        if host_id in upstream.get_pools()["p"]["hosts"]:
            getattr(UpstreamAPI(upstream), name)("p", host_id, *given, **options)

    return happen


def save(host_id: str, given: Mapping[str, Any] | None) -> Happening:
    def happen(upstream: Upstream, _clock: FakeClock) -> None:
        pools = upstream.get_pools()
        table = pools["p"]["hosts"]
        if given is None:
            table.pop(host_id, None)
        else:
            table[host_id] = table.get(host_id, {"host": f"{host_id}.test"}) | given
        upstream.save_pools(pools)

    return happen


def declare(*host_ids: str) -> Happening:
    options = {"max_fails": 2, "hosts": hosts(*host_ids)}
    return lambda upstream, _clock: upstream.configure({"p": options})


host_ids = st.sampled_from("abc")
happenings: st.SearchStrategy[Happening] = st.one_of(
    st.lists(host_ids, unique=True).map(lambda dead: request(*dead)),
    st.builds(fact, host_ids, st.just(lambda at: CheckPassed(at, at, 2))),
    st.builds(fact, host_ids, st.just(lambda at: CheckFailed(at, at, 1e9 + at, 0, "check: x", 2))),
    st.builds(fact, host_ids, st.just(lambda at: Eject(at, at, 1e9 + at, 0, "too few"))),
    st.builds(by_hand, st.sampled_from(["down_host", "up_host"]), host_ids),
    st.builds(by_hand, st.just("down_host"), host_ids, until=st.sampled_from(["10s", "50s"])),
    st.builds(by_hand, st.just("set_weight"), host_ids, st.integers(0, 2), until=st.sampled_from([None, "10s"])),
    st.builds(
        save,
        host_ids,
        st.sampled_from(
            [
                None,
                {},
                {"up": True},
                {"up": False},
                {"up": False, "lastfail": 5},
                {"lastfail": 0},
                {"weight": 1},
            ]
        ),
    ),
    st.lists(host_ids, unique=True).map(lambda ids: declare(*ids)),
    st.just(lambda upstream, _clock: upstream.revive_hosts()),
    st.sampled_from([1, 15, 100]).map(lambda seconds: lambda _upstream, clock: clock.advance(seconds)),
)


@given(st.lists(happenings, max_size=30))
def test_every_transition_has_one_record_and_one_event_and_no_record_is_of_anything_else(
    sequence: list[Happening],
) -> None:
    clock = FakeClock(1e9)  # also on the wall
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", clock)
        records_are_those_of_transitions(sequence, clock)


def records_are_those_of_transitions(sequence: list[Happening], clock: FakeClock) -> None:
    upstream, other = open_workers(2, {"p": {"max_fails": 2, "hosts": hosts("a", "b")}}, clock)
    heard: list[HostEvent] = []
    for each in (upstream, other):
        each.bind("host_up", heard.append)
        each.bind("host_down", heard.append)
    for number, happen in enumerate(sequence):
        write_what_is_over(upstream, other)
        before, weighed, known = standings(other), weights(other), len(other.history())
        heard.clear()
        happen((upstream, other)[number % 2], clock)
        write_what_is_over(upstream, other)
        after, weigh = standings(other), weights(other)
        moved = {key: (was, after[key]) for key, was in before.items() if key in after and after[key] != was}
        gained = {key: (was, weigh[key]) for key, was in weighed.items() if key in weigh and weigh[key] != was}
        records = other.history()[known:]
        assert sorted((each.pool, each.host, each.before, each.after) for each in records) == sorted(
            (*key, *pair) for each in (moved, gained) for key, pair in each.items()
        )
        ups_and_downs = {key: pair for key, pair in moved.items() if "up" in pair}
        assert sorted((each.pool.id, each.host.id, each.name) for each in heard) == sorted(
            (*key, "host_up" if pair[1] == "up" else "host_down") for key, pair in ups_and_downs.items()
        )


def write_what_is_over(*upstreams: Upstream) -> None:
    """As each process does after a request."""
    for upstream in upstreams:
        upstream.explain()
    for upstream in upstreams:
        upstream.post_process()
