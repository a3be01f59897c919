"""What a person does to a host for some time: when it is over, who notices, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import InvalidConfig, StoreBusy, StoreError, StoreUnavailable, Upstream, UpstreamAPI
from resty_upstream.events import HostEvent
from resty_upstream.model import Config, Host, Pool, WeightEnd, decode_config, encode_config
from resty_upstream.state import decode_state
from resty_upstream.stores import Changes, View
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_upstream, open_workers, take_down, visit
from tests.stores.support import in_threads

T = TypeVar("T")

POOLS: dict[str, Any] = {"p": {"max_fails": 2, "hosts": hosts("a", "b", weight=10)}}
HOUR = 3600.0


class FailingStore(MemoryStore):
    """A store that fails when told, and counts its transactions."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.error: StoreError | None = None
        self.transactions = 0

    def changes(self, ns: str, since: object = None, *, wait_s: float = 5) -> Changes:
        if self.error:
            raise self.error
        return super().changes(ns, since, wait_s=wait_s)

    def transact(self, ns: str, fn: Callable[[View], T], *, wait_s: float = 5) -> T:
        self.transactions += 1
        if self.error:
            raise self.error
        return super().transact(ns, fn, wait_s=wait_s)


def shown(upstream: Upstream, host_id: str = "a") -> dict[str, Any]:
    """All that plain dicts have of a host."""
    host: dict[str, Any] = upstream.get_pools()["p"]["hosts"][host_id]
    return host


def weight(upstream: Upstream, host_id: str = "a") -> int:
    return int(shown(upstream, host_id)["weight"])


def request(upstream: Upstream) -> list[str]:
    """One request, with what is done after its response."""
    with upstream.context():
        return visit(upstream)


def told(upstream: Upstream) -> list[tuple[str, str, str, str]]:
    return [(each.before, each.after, each.reason, each.by) for each in upstream.history()]


def listen(*upstreams: Upstream) -> list[HostEvent]:
    heard: list[HostEvent] = []
    for upstream in upstreams:
        upstream.bind("host_up", heard.append)
    return heard


def stored_state(upstream: Upstream, key: str = "p\x1fa") -> Any:
    return decode_state(upstream.store.read(upstream.id).records[key])


# ── when it is over ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "until",
    ["1h", timedelta(hours=1), 1_795_694_400.0 + HOUR, datetime.fromisoformat("2026-11-26T14:00+01:00")],
    ids=["text", "timedelta", "seconds", "datetime"],
)
def test_a_host_is_down_until_then_and_up_afterwards(wall: FakeClock, until: Any) -> None:
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).down_host("p", "a", until=until)
    wall.advance(HOUR - 1)
    assert {request(upstream)[0] for _ in range(4)} == {"b"}
    wall.advance(1)
    assert {request(upstream)[0] for _ in range(4)} == {"a", "b"}


def test_the_next_request_writes_it_once_after_its_response(wall: FakeClock, clock: FakeClock) -> None:
    store = FailingStore(clock)
    upstream = Upstream(store, pools=POOLS)
    heard = listen(upstream)
    UpstreamAPI(upstream).down_host("p", "a", reason="new kernel", by="alice", until="2h")
    wall.advance(2 * HOUR)
    clock.advance(50)
    before = store.transactions
    with upstream.context():
        visit(upstream)
        assert (store.transactions, heard) == (before, [])
    assert store.transactions == before + 1
    assert [(event.name, event.host.id, event.reason) for event in heard] == [
        ("host_up", "a", "by hand until 15:00 is over")
    ]
    assert told(upstream)[1:] == [("manual", "up", "by hand until 15:00 is over", "")]
    assert stored_state(upstream).back_at == stored_state(upstream).changed_at == clock()
    for _ in range(5):
        request(upstream)
        wall.advance(2)
    assert store.transactions == before + 1


def test_of_all_workers_one_writes_it(wall: FakeClock) -> None:
    workers = open_workers(5, POOLS)
    heard = listen(*workers)
    UpstreamAPI(workers[0]).down_host("p", "a", until="1h")
    UpstreamAPI(workers[0]).set_weight("p", "b", 0, until="1h")
    for worker in workers:
        visit(worker)
    wall.advance(HOUR)
    contexts = [worker.context() for worker in workers]
    for context in contexts:  # all notice before any writes
        visit(context)
    for context in contexts:
        context.post_process()
    assert [event.host.id for event in heard] == ["a"]
    assert sorted(told(workers[0])[2:]) == [
        ("manual", "up", "by hand until 14:00 is over", ""),
        ("weight 0", "weight 10", "by hand until 14:00 is over", ""),
    ]
    assert [worker.get_pools() for worker in workers] == [workers[0].get_pools()] * 5


def test_of_all_threads_one_writes_it(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    heard = listen(upstream)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)
    in_threads(8, lambda _number: [request(upstream) for _ in range(20)])
    assert [event.host.id for event in heard] == ["a"]
    assert {request(upstream)[0] for _ in range(4)} == {"a", "b"}


def test_what_happens_to_other_hosts_meanwhile_changes_nothing(wall: FakeClock, clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", "c")}}, clock)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    request(upstream)
    take_down(upstream, "b")
    request(upstream)
    wall.advance(HOUR)
    assert {request(upstream)[0] for _ in range(4)} == {"a", "c"}


def test_a_host_that_is_back_starts_slowly(wall: FakeClock, clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"slow_start": 100, "hosts": hosts("a", "b")}}, clock)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    clock.advance(HOUR)
    wall.advance(HOUR)
    assert "slow start: back for 0 s of 100 s" in str(upstream.explain())
    request(upstream)
    clock.advance(50)
    assert "slow start: back for 50 s of 100 s" in str(upstream.explain())


def test_where_nothing_but_connections_outside_of_requests_is_made_it_is_written_within_a_second(
    wall: FakeClock,
) -> None:
    upstream = open_upstream(POOLS)
    heard = listen(upstream)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)
    visit(upstream)
    assert heard == []
    wall.advance(1)
    visit(upstream)
    assert [event.host.id for event in heard] == ["a"]


def test_it_is_written_when_the_upstream_is_closed(wall: FakeClock) -> None:
    upstream, other = open_workers(2, POOLS)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)
    visit(upstream)
    upstream.close()
    assert told(other)[1:] == [("manual", "up", "by hand until 14:00 is over", "")]


def test_every_look_sees_it_as_over_though_no_request_comes_and_writes_nothing(
    wall: FakeClock, clock: FakeClock
) -> None:
    store = FailingStore(clock)
    upstream, other = Upstream(store, pools=POOLS), Upstream(store)
    UpstreamAPI(upstream).down_host("p", "a", reason="x", until="1h")
    UpstreamAPI(upstream).set_weight("p", "b", 0, until="1h")
    wall.advance(HOUR)
    before = store.transactions
    for each in (upstream, other):
        clean = {"up": True, "failcount": 0, "lastfail": 0}
        assert shown(each) == {"host": "a.test", "port": 80, "weight": 10, **clean}
        assert weight(each, "b") == 10
        assert [host.share for host in each.explain().pools[0].hosts] == [0.5, 0.5]
    assert store.transactions == before


def test_on_an_event_loop_it_is_noticed_too(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    heard = listen(upstream)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)

    async def request_() -> set[str]:
        with upstream.context():
            return {visit(upstream)[0] for _ in range(4)}

    assert asyncio.run(request_()) == {"a", "b"}
    assert [event.host.id for event in heard] == ["a"]


def test_a_clock_that_is_set_back_takes_nothing_back_that_is_over(wall: FakeClock, monkeypatch: Any) -> None:
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)
    request(upstream)
    monkeypatch.setattr(time, "time", FakeClock(1e9))
    assert {request(upstream)[0] for _ in range(4)} == {"a", "b"}
    assert shown(upstream)["up"]


def test_the_time_that_counts_is_that_of_the_wall_and_a_reboot_changes_nothing(
    wall: FakeClock, clock: FakeClock
) -> None:
    store = MemoryStore(clock)
    api = UpstreamAPI(Upstream(store, pools=POOLS))
    api.down_host("p", "a", reason="new disk", by="alice", until="2h")
    api.set_weight("p", "b", 5, until="2h")
    clock.advance(100 * HOUR)
    store.clock_id = "the next boot"
    wall.advance(HOUR)
    again = Upstream(store)
    request(again)
    assert {name: shown(again).get(name) for name in ("up", "reason", "by", "until")} == {
        "up": False,
        "reason": "new disk",
        "by": "alice",
        "until": wall() + HOUR,
    }
    wall.advance(HOUR)
    request(again)
    assert (shown(again)["up"], weight(again, "b")) == (True, 10)


def test_without_an_end_no_request_reads_the_wall_clock(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = open_upstream(POOLS, clock)
    UpstreamAPI(upstream).down_host("p", "a")
    request(upstream)

    def read() -> float:
        raise AssertionError("the wall clock was read")

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", read)
        for _ in range(3):
            request(upstream)


def test_when_nothing_has_an_end_any_more_the_clock_is_left_alone_again(
    wall: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)
    for _ in range(3):
        request(upstream)
        wall.advance(2)
    reads: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: reads.append(1) or wall())
        request(upstream)
        request(upstream)
    assert reads == []


# ── what a person says meanwhile ──────────────────────────────────────────────────────────────


def again_without_an_end(api: UpstreamAPI) -> None:
    api.down_host("p", "a")


def again_until_later(api: UpstreamAPI) -> None:
    api.down_host("p", "a", until="3h")


def up_and_down(api: UpstreamAPI) -> None:
    api.up_host("p", "a")
    api.down_host("p", "a")


@pytest.mark.parametrize("change", [again_without_an_end, again_until_later, up_and_down])
def test_an_end_that_was_said_before_is_none_any_more(
    wall: FakeClock, change: Callable[[UpstreamAPI], object]
) -> None:
    upstream, other = open_workers(2, POOLS)
    UpstreamAPI(upstream).down_host("p", "a", reason="one", by="alice", until="1h")
    request(other)
    change(UpstreamAPI(other))
    wall.advance(2 * HOUR)
    for each in (upstream, other):
        assert not shown(each)["up"]
        request(each)
    assert all("is over" not in each.reason for each in upstream.history())
    assert "reason" not in shown(upstream)


def test_a_host_that_was_put_back_stays_as_it_is_at_the_time(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    UpstreamAPI(upstream).up_host("p", "a")
    take_down(upstream, "a")
    wall.advance(HOUR)
    request(upstream)
    assert upstream.history()[-1].after == "failed"


def test_a_host_that_failed_and_then_was_taken_down_is_up_with_a_clean_state(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    take_down(upstream, "a")
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(HOUR)
    request(upstream)
    assert {name: shown(upstream)[name] for name in ("up", "failcount", "lastfail")} == {
        "up": True,
        "failcount": 0,
        "lastfail": 0,
    }


def test_saving_what_get_pools_gave_leaves_all_ends_as_they_are(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    api.down_host("p", "a", reason="why", by="alice", until="1h")
    api.set_weight("p", "b", 0, reason="so", by="bob", until="2h")
    before = upstream.get_pools()
    upstream.save_pools(before)
    upstream.configure(POOLS)
    api.set_priority("p", 5)
    before["p"]["priority"] = 5
    assert upstream.get_pools() == before


# ── weights ───────────────────────────────────────────────────────────────────────────────────


def test_a_weight_is_what_it_was_when_its_time_is_over(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).set_weight("p", "a", 0, reason="deploy", by="alice", until="1h")
    assert {request(upstream)[0] for _ in range(4)} == {"b"}
    wall.advance(HOUR)
    assert {request(upstream)[0] for _ in range(4)} == {"a", "b"}
    assert weight(upstream) == 10
    assert told(upstream) == [
        ("weight 10", "weight 0", "by hand: deploy", "alice"),
        ("weight 0", "weight 10", "by hand until 14:00 is over", ""),
    ]


def test_of_two_changes_that_have_an_end_the_last_counts_and_what_was_before_both_is_what_is_then(
    wall: FakeClock,
) -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    api.set_weight("p", "a", 0, until="2h")
    api.set_weight("p", "a", 5, until="1h")
    assert shown(upstream)["weight_then"] == 10
    wall.advance(HOUR)
    request(upstream)
    assert weight(upstream) == 10
    wall.advance(HOUR)
    request(upstream)
    assert weight(upstream) == 10


def set_for_good(upstream: Upstream) -> None:
    UpstreamAPI(upstream).set_weight("p", "a", 7)


def save_another(upstream: Upstream) -> None:
    pools = upstream.get_pools()
    pools["p"]["hosts"]["a"]["weight"] = 7
    upstream.save_pools(pools)


def declare_another(upstream: Upstream) -> None:
    upstream.configure({"p": {"hosts": {"a": {"host": "a.test", "weight": 7}, **hosts("b", weight=10)}}})


@pytest.mark.parametrize(
    ("change", "temporary"),
    [(set_for_good, 0), (set_for_good, 7), (save_another, 0), (declare_another, 0), (declare_another, 7)],
)
def test_a_weight_that_was_set_or_declared_meanwhile_stays(
    wall: FakeClock, change: Callable[[Upstream], object], temporary: int
) -> None:
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).set_weight("p", "a", temporary, until="1h")
    change(upstream)
    assert weight(upstream) == 7
    wall.advance(HOUR)
    request(upstream)
    assert weight(upstream) == 7
    assert "until" not in shown(upstream)


def test_an_end_of_a_host_that_is_gone_or_new_does_nothing(wall: FakeClock) -> None:
    upstream, other = open_workers(2, POOLS)
    api = UpstreamAPI(upstream)
    api.set_weight("p", "a", 0, until="1h")
    api.down_host("p", "b", until="1h")
    request_ = other.context()
    wall.advance(HOUR)
    visit(request_)  # knows that it is over
    api.remove_host("p", "a")
    api.remove_host("p", "b")
    api.add_host("p", id="a", host="a.test", weight=3)
    request_.post_process()
    assert weight(other) == 3
    assert list(other.get_pools()["p"]["hosts"]) == ["a"]


# ── when the store fails ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [StoreUnavailable("the disk is gone"), StoreBusy("others write")])
def test_while_the_store_fails_it_is_over_in_this_process_and_written_later(
    wall: FakeClock, clock: FakeClock, error: StoreError
) -> None:
    store = FailingStore(clock)
    upstream, other = Upstream(store, pools=POOLS), Upstream(store)
    heard = listen(upstream, other)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    UpstreamAPI(upstream).set_weight("p", "b", 0, until="1h")
    request(upstream)
    store.error = error
    wall.advance(HOUR)
    for _ in range(5):
        assert {request(upstream)[0] for _ in range(4)} == {"a", "b"}
        assert (shown(upstream)["up"], weight(upstream, "b")) == (True, 10)
        clock.advance(2)
        wall.advance(2)
    assert heard == []
    assert stored_state(upstream).until
    store.error = None
    clock.advance(2)
    request(upstream)
    assert [event.host.id for event in heard] == ["a"]
    assert sorted(each[:2] for each in told(other)[2:]) == [("manual", "up"), ("weight 0", "weight 10")]
    assert stored_state(upstream).changed_at == 1000, "it was over when it was noticed"


def test_failures_of_a_host_that_is_back_count_though_the_store_does_not_know_yet(
    wall: FakeClock, clock: FakeClock
) -> None:
    store = FailingStore(clock)
    upstream = Upstream(store, pools=POOLS)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    request(upstream)
    store.error = StoreUnavailable("the disk is gone")
    wall.advance(HOUR)
    request(upstream)
    clock.advance(1)
    take_down(upstream, "a")
    store.error = None
    clock.advance(2)
    request(upstream)
    assert [each[:2] for each in told(upstream)[1:]] == [("manual", "up"), ("up", "failed")]


# ── what is said of it ────────────────────────────────────────────────────────────────────────


def sentence(upstream: Upstream, host_id: str = "a") -> str:
    (pool,) = upstream.explain().pools
    return next(host.reason for host in pool.hosts if host.host.id == host_id)


def test_get_pools_and_explain_say_who_did_it_until_when_and_why(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    before = shown(upstream)
    api.down_host("p", "a", reason="new kernel", by="alice", until="2h")
    until = wall() + 2 * HOUR
    assert shown(upstream) == before | {"up": False, "reason": "new kernel", "by": "alice", "until": until}
    assert sentence(upstream) == "passed over: taken down by hand by alice until 15:00: new kernel"
    api.down_host("p", "a", reason="a new disk")
    assert shown(upstream) == before | {"up": False, "reason": "a new disk"}
    assert sentence(upstream) == "passed over: taken down by hand: a new disk"
    api.up_host("p", "a", reason="done", by="bob")
    assert shown(upstream) == before
    api.set_weight("p", "a", 0, reason="deploy", by="alice", until="2h")
    assert shown(upstream) == before | {"weight": 0, "weight_then": 10, "until": until} | {
        "reason": "deploy",
        "by": "alice",
    }
    drained = "passed over: weight 0 while another host has a weight"
    assert sentence(upstream) == f"{drained} (weight 0 by alice until 15:00, then 10: deploy)"
    api.set_weight("p", "a", 10, until="2h")
    assert sentence(upstream) == "taken: 50% of the pool's traffic (weight 10 until 15:00, then 10)"
    api.set_weight("p", "a", 0, reason="for good", by="alice")
    assert shown(upstream) == before | {"weight": 0}
    assert sentence(upstream) == drained


def test_of_a_host_that_is_down_and_has_another_weight_it_is_said_why_it_is_down(wall: FakeClock) -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    api.set_weight("p", "a", 5, reason="slow", by="bob", until="1h")
    api.down_host("p", "a", reason="new kernel")
    said = shown(upstream)
    assert (said["reason"], said["weight_then"]) == ("new kernel", 10)
    assert "by" not in said
    wall.advance(HOUR)
    request(upstream)
    assert (shown(upstream)["up"], weight(upstream)) == (False, 10)


@pytest.mark.parametrize("until", ["30", "1 fortnight", 1800, float("nan"), datetime(2100, 1, 1), True, b"1h"])
def test_what_is_no_end_is_refused_and_nothing_done(until: Any) -> None:
    upstream = open_upstream(POOLS)
    api = UpstreamAPI(upstream)
    before = upstream.get_pools()
    with pytest.raises(InvalidConfig, match=r"^until must be a time to come, within a year: "):
        api.down_host("p", "a", until=until)
    with pytest.raises(InvalidConfig, match=r"^until must be a time to come, within a year: "):
        api.set_weight("p", "a", 0, until=until)
    for name in ("reason", "by"):
        wrong: dict[str, Any] = {name: "two\nlines"}
        with pytest.raises(InvalidConfig, match=rf"^{name} must be"):
            api.set_weight("p", "a", 0, **wrong)
    assert (upstream.get_pools(), upstream.history()) == (before, [])


# ── records of others ─────────────────────────────────────────────────────────────────────────


def put_record(upstream: Upstream, data: bytes) -> None:
    upstream.store.transact(upstream.id, lambda view: [view.put("p\x1fa", data), view.touch()])


def test_records_and_documents_of_an_earlier_release_are_read() -> None:
    upstream = open_upstream(POOLS)
    put_record(upstream, b'{"status":"manual","changed_at":5.0,"reason":"by hand: new kernel"}')
    assert shown(upstream)["reason"] == "new kernel"
    assert sentence(upstream) == "passed over: taken down by hand: new kernel"
    host = Host(id="a", host="a.test", weight=10)
    document = encode_config(Config(clock="x", secret="00", pools=(Pool(id="p", hosts=(host,)),)))
    assert b"weight_end" not in document


def test_what_an_earlier_release_writes_back_has_no_end_any_more_and_that_is_all(wall: FakeClock) -> None:
    """It leaves out what it does not know."""
    upstream = open_upstream(POOLS)
    UpstreamAPI(upstream).set_weight("p", "a", 0, until="1h")
    UpstreamAPI(upstream).down_host("p", "b", until="1h")
    document = upstream.store.read(upstream.id).config
    config = decode_config(document)
    assert config is not None
    end = config.pools[0].hosts[0].weight_end
    assert isinstance(end, WeightEnd)
    begin = document.index(b',"weight_end":{')
    without = document[:begin] + document[document.index(b"}", begin) + 1 :]

    def write_back(view: View) -> None:
        view.config = without
        view.put("p\x1fb", b'{"status":"manual","reason":"by hand"}')

    upstream.store.transact(upstream.id, write_back)
    wall.advance(HOUR)
    visit(upstream.context(), {})  # b is down, and a a spare
    assert (weight(upstream), shown(upstream, "b")["up"]) == (0, False)


@pytest.mark.parametrize(
    "record", [b'{"until":5}', b'{"status":"failed","down_until":1e9,"until":5}', b'{"until":-5}']
)
def test_an_end_where_none_belongs_is_none(record: bytes, clock: FakeClock) -> None:
    store = FailingStore(clock)
    upstream = Upstream(store, pools=POOLS)
    visit(upstream)
    put_record(upstream, record)
    before = store.transactions
    for _ in range(3):
        request(upstream)
    assert store.transactions == before


@given(
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
    st.text(st.characters(codec="utf-8"), max_size=300),
)
def test_whatever_a_record_holds_breaks_no_reader(until: float, text: str) -> None:
    upstream = open_upstream(POOLS)
    record: Any = {"status": "manual", "reason": text, "by": text, "until": until}
    put_record(upstream, json.dumps(record).encode())
    for _ in range(2):
        request(upstream)
        upstream.get_pools()
        str(upstream.explain())
    assert shown(upstream)["up"] is (0 < until <= time.time())
