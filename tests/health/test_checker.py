"""The checker: what it does to the hosts of an upstream, and which process of all it is."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from resty_upstream import StoreBusy, StoreError, StoreUnavailable, Upstream, UpstreamAPI
from resty_upstream.aconnectors import dial
from resty_upstream.context import RequestUpstreams
from resty_upstream.health import runner
from resty_upstream.health.results import CHECKER_LEASE, namespace, read_results
from resty_upstream.health.runner import PROCESS_LEASE
from resty_upstream.model import record_key
from resty_upstream.stores import Changes, Document, Store, View
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.health.support import (
    Site,
    checker_of,
    holder,
    last_result,
    status,
    wait_for_turn,
)
from tests.helpers import WAIT_S, health, hosts, refusing, take_down, visit
from tests.helpers import open_upstream as open_on_a_clock
from tests.stores.support import Worker, wait_until

T = TypeVar("T")

OpenUpstream = Callable[..., Upstream]
StartSite = Callable[..., tuple[Site, dict[str, Any]]]

OFTEN = {"interval": 0.1, "interval_down": 0.1}
CLEAN = {"up": True, "failcount": 0, "lastfail": 0}


def pool(*members: dict[str, Any], healthcheck: object = OFTEN, **options: Any) -> dict[str, Any]:
    """One pool ``p`` with hosts ``a``, ``b``, … ."""
    table = dict(zip("abcdefghijklmnopqrstuvwxyz", members, strict=False))
    return {"p": {"healthcheck": healthcheck, **options, "hosts": table}}


def is_up(upstream: Upstream, host_id: str = "a") -> bool:
    return bool(health(upstream, host_id)["up"])


class WatchedStore(MemoryStore):
    """A store that fails when told, and counts its transactions by namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.error: StoreError | None = None
        self.failing: set[str] = set()
        """The namespaces that fail; all, where none is named."""
        self.transactions: Counter[str] = Counter()

    def _fail(self, ns: str) -> None:
        if self.error and (not self.failing or ns in self.failing):
            raise self.error

    def read(self, ns: str) -> Document:
        self._fail(ns)
        return super().read(ns)

    def changes(self, ns: str, since: object = None, *, wait_s: float = 5) -> Changes:
        self._fail(ns)
        return super().changes(ns, since, wait_s=wait_s)

    def transact(self, ns: str, fn: Callable[[View], T], *, wait_s: float = 5) -> T:
        self.transactions[ns] += 1
        self._fail(ns)
        return super().transact(ns, fn, wait_s=wait_s)

    def lease(self, ns: str, name: str, owner: str, ttl_s: float, *, wait_s: float = 5) -> bool:
        self._fail(ns)
        return super().lease(ns, name, owner, ttl_s, wait_s=wait_s)

    def holder(self, ns: str, name: str, *, wait_s: float = 5) -> str:
        self._fail(ns)
        return super().holder(ns, name, wait_s=wait_s)


# ── what it does to hosts ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("check", [True, {}], ids=["true", "{}"])
def test_a_host_with_a_check_is_asked_for_the_root(
    open_upstream: OpenUpstream, start_site: StartSite, check: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_SPREAD", 0.01)  # of the 10 s that are the default
    site, host = start_site()
    upstream = open_upstream(pool(host, healthcheck=check))
    upstream.start_checker()
    site.wait_for(1)
    assert site.heads[0].startswith(b"GET / HTTP/1.1\r\n")


def test_hosts_without_a_check_are_left_alone(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    """Those whose pool has none, and those that have none instead of their pool's."""
    (site, host), (other, one), (another, two) = start_site(), start_site(), start_site()
    pools = pool(host, {**one, "healthcheck": False})
    pools["q"] = {"hosts": {"x": two, "y": {**two, "healthcheck": False}}}
    upstream = open_upstream(pools)
    upstream.start_checker()
    site.wait_for(4)
    assert (other.hits, another.hits) == (0, 0)
    assert "last_check" not in upstream.get_pools()["p"]["hosts"]["b"]


def test_path_and_headers_are_those_of_the_check(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    site, host = start_site()
    check = {**OFTEN, "path": "/alive", "headers": {"Host": "app.test", "User-Agent": "me"}}
    open_upstream(pool(host, healthcheck=check)).start_checker()
    site.wait_for(1)
    assert site.heads[0].startswith(b"GET /alive HTTP/1.1\r\nHost: app.test\r\nUser-Agent: me\r\n")


def test_each_refused_connection_and_each_bad_status_raises_failcount_until_fall(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site(status(500))
    site.goes_on.clear()
    heard: list[Any] = []
    with refusing() as dead:
        upstream = open_upstream(pool({**dead, "healthcheck": {**OFTEN, "fall": 4}}, host))
        upstream.bind("host_down", heard.append)
        upstream.start_checker()
        wait_until(lambda: not is_up(upstream), "the host that refuses goes down", WAIT_S)
        assert health(upstream, "a")["failcount"] == 4
        site.goes_on.set()
        wait_until(lambda: not is_up(upstream, "b"), "the host with a bad status goes down", WAIT_S)
        assert health(upstream, "b")["failcount"] == 3
        wait_until(lambda: len(heard) == 2, "the events", WAIT_S)
    assert [(event.host.id, event.reason) for event in heard] == [
        ("a", "check: ECONNREFUSED"),
        ("b", "check: status 500"),
    ]


def test_a_host_that_failed_comes_back_after_rise_good_checks(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site(status(503))
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1, "rise": 3}))
    upstream.start_checker()
    wait_until(lambda: not is_up(upstream), "the host goes down", WAIT_S)
    bad = site.hits
    site.answer = status(200)
    wait_until(lambda: is_up(upstream), "the host comes back", WAIT_S)
    assert site.hits - bad >= 3
    wait_until(lambda: len(upstream.history()) == 2, "the history", WAIT_S)
    assert [(each.after, each.reason) for each in upstream.history()] == [
        ("failed", "check: status 503"),
        ("up", "3 checks passed"),
    ]
    assert health(upstream, "a") == CLEAN


def test_a_good_check_of_a_good_host_changes_nothing_in_the_store(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    """But for the result of the check, which no request reads."""
    site, host = start_site()
    store = WatchedStore()
    upstream = open_upstream(pool(host), store)
    upstream.start_checker()
    site.wait_for(2)
    wait_until(lambda: last_result(upstream, "a") == "ok: 200", "a result", WAIT_S)
    document, transactions = store.read(upstream.id), store.transactions[upstream.id]
    written = store.transactions[namespace(upstream.id)]
    site.wait_for(3)
    wait_until(lambda: store.transactions[namespace(upstream.id)] > written, "another result", WAIT_S)
    assert store.read(upstream.id) == document
    assert store.transactions[upstream.id] == transactions


def test_a_bad_check_of_a_host_that_is_down_is_not_written_into_its_state(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site(status(503))
    store = WatchedStore()
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1}), store)
    upstream.start_checker()
    wait_until(lambda: not is_up(upstream), "the host goes down", WAIT_S)
    site.wait_for(1)
    transactions = store.transactions[upstream.id]
    site.wait_for(3)
    assert store.transactions[upstream.id] == transactions


def test_the_statuses_that_are_bad_for_a_host_are_its_own_and_not_its_pools(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    (_, one), (_, two) = start_site(status(404)), start_site(status(404))
    one["healthcheck"] = {**OFTEN, "fall": 1, "status_codes": ["5xx"]}
    upstream = open_upstream(pool(one, two, healthcheck={**OFTEN, "fall": 1, "status_codes": [404]}))
    upstream.start_checker()
    wait_until(lambda: not is_up(upstream, "b"), "b goes down", WAIT_S)
    wait_until(lambda: last_result(upstream, "a") == "ok: 404", "a is checked", WAIT_S)
    wait_until(lambda: last_result(upstream, "b") == "failed: status 404", "b is checked", WAIT_S)
    assert health(upstream, "a") == CLEAN


def test_a_host_that_is_down_is_checked_at_interval_down_and_one_that_is_up_at_interval(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    upstream = open_upstream(pool({**host, "up": False}, healthcheck={"interval": 60, "interval_down": 0.1}))
    api = UpstreamAPI(upstream)
    upstream.start_checker()
    site.wait_for(4)
    api.up_host("p", "a")
    wait_until(lambda: checker_of(upstream)._duties[record_key("p", "a")].up, "it is noticed", WAIT_S)
    schedule = checker_of(upstream)._schedule
    wait_until(lambda: schedule and schedule[0][0] > upstream.now() + 30, "the next one is late", WAIT_S)
    api.down_host("p", "a")
    site.wait_for(2)
    assert not is_up(upstream), "a host that was taken down by hand stays down whatever checks say"


def test_a_check_that_takes_longer_than_its_interval_does_not_overlap_with_the_next(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    """Also while host and check are configured anew."""
    site, host = start_site()
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "read_timeout": "60s"}))
    upstream.start_checker()
    checker = checker_of(upstream)
    for number in range(4):
        site.goes_on.clear()
        site.wait_for(1)
        check = {**OFTEN, "read_timeout": "60s", "path": f"/{number}"}
        upstream.configure(pool({**host, "weight": number}, healthcheck=check))
        (duty,) = checker._duties.values()
        wait_until(lambda path=f"/{number}", duty=duty: duty.check.path == path, "the new check", WAIT_S)
        wait_until(lambda: not checker._schedule, "the time of the next one", WAIT_S)
        assert len(checker._tasks) == 1
        site.goes_on.set()
    site.wait_for(2)
    assert site.most_at_once == 1


def test_a_host_that_hangs_delays_no_other(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    (stuck, one), (site, two) = start_site(), start_site()
    stuck.goes_on.clear()
    open_upstream(pool(one, two, healthcheck={**OFTEN, "read_timeout": "60s"})).start_checker()
    stuck.wait_for(1)
    site.wait_for(3)
    assert stuck.hits == 1


def test_no_more_than_so_many_checks_are_at_work_at_once(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_MOST_AT_ONCE", 3)
    site, host = start_site()
    site.goes_on.clear()
    upstream = open_upstream(pool(*[host] * 10, healthcheck={**OFTEN, "read_timeout": "60s"}))
    upstream.start_checker()
    site.wait_for(3)
    checker = checker_of(upstream)
    wait_until(lambda: all(due <= upstream.now() for due, *_ in checker._schedule), "all are due", WAIT_S)
    assert len(checker._tasks) == 3
    site.goes_on.set()
    wait_until(lambda: all(last_result(upstream, each) for each in "abcdefghij"), "all are checked", WAIT_S)
    assert site.most_at_once == 3


def test_listeners_that_block_do_not_stop_checks(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    (_, one), (site, two) = start_site(status(503)), start_site()
    inside, leave = threading.Event(), threading.Event()
    upstream = open_upstream(pool(one, two, healthcheck={**OFTEN, "fall": 1}))
    upstream.bind("host_down", lambda _event: [inside.set(), leave.wait(WAIT_S)])
    upstream.start_checker()
    try:
        assert inside.wait(WAIT_S)
        site.wait_for(4)
        assert checker_of(upstream).is_checking
    finally:
        leave.set()


def test_trouble_of_this_machine_says_nothing_of_a_host(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, host = start_site()

    async def no_descriptors(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("resty_upstream.health.checks.dial", no_descriptors)
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1}))
    upstream.start_checker()
    wait_until(lambda: last_result(upstream, "a") == "unknown: EMFILE", "a result", WAIT_S)
    assert health(upstream, "a") == CLEAN


def test_get_pools_tells_of_the_last_check_and_save_pools_takes_it_back(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    _, host = start_site()
    upstream = open_upstream(pool(host))
    assert "last_check" not in upstream.get_pools()["p"]["hosts"]["a"]
    upstream.start_checker()
    wait_until(lambda: last_result(upstream, "a") == "ok: 200", "a result", WAIT_S)
    upstream.stop_checker()
    pools = upstream.get_pools()
    assert pools["p"]["hosts"]["a"]["last_check"] > 1e9
    upstream.save_pools(pools)
    assert upstream.get_pools() == pools


# ── whose turn it is ──────────────────────────────────────────────────────────────────────────


def test_of_all_that_share_a_store_one_checks_at_a_time(
    store: Store, open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    workers = [open_upstream(pool(host), store) for _ in range(4)]
    for worker in workers:
        worker.start_checker()
    site.wait_for(5)
    assert site.most_at_once == 1
    assert len([worker for worker in workers if checker_of(worker).is_checking]) == 1


def test_who_stops_hands_over_at_once(store: Store, open_upstream: OpenUpstream, start_site: StartSite) -> None:
    _site, host = start_site()
    one, two = [open_upstream(pool(host, healthcheck={"interval": 60}), store) for _ in range(2)]
    one.start_checker()
    wait_for_turn(one)
    checker = checker_of(one)
    one.stop_checker()
    assert not checker.is_alive
    assert holder(one) == ""
    two.start_checker()
    wait_for_turn(two)


def test_a_checker_that_vanished_is_followed_when_its_lease_is_over(
    store: Store, open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    _, host = start_site()
    upstream = open_upstream(pool(host), store)
    upstream.open()
    until = store.now() + 0.4
    assert store.lease(upstream.id, CHECKER_LEASE, "vanished", 0.4)
    upstream.start_checker()
    wait_for_turn(upstream)
    assert store.now() >= until


def test_who_follows_goes_on_with_the_schedule(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    """A host that was checked a moment ago is not checked again at once."""
    site, host = start_site()
    store = MemoryStore()
    one, two = [open_upstream(pool(host, healthcheck={"interval": 3}), store) for _ in range(2)]
    one.start_checker()
    wait_until(lambda: last_result(one, "a"), "a result", WAIT_S)
    one.stop_checker()
    two.start_checker()
    wait_for_turn(two)
    (last,) = read_results(store, two.id).values()
    schedule = checker_of(two)._schedule
    wait_until(lambda: schedule and schedule[0][0] >= last.began + 2.7, "the plan", WAIT_S)
    assert site.hits == 1


def test_who_lost_the_lease_commits_nothing(
    store: Store, open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1, "read_timeout": "60s"}), store)
    upstream.start_checker()
    wait_until(lambda: last_result(upstream, "a") == "ok: 200", "a result", WAIT_S)
    site.goes_on.clear()
    site.wait_for(1)
    site.answer = status(503)
    checker = checker_of(upstream)
    store.release(upstream.id, CHECKER_LEASE, checker._owner)
    assert store.lease(upstream.id, CHECKER_LEASE, "another", 600)
    wait_until(lambda: not checker.is_checking, "it notices", WAIT_S)
    before = read_results(store, upstream.id)
    site.goes_on.set()
    wait_until(lambda: not (checker._tasks or checker._done or checker._flushing), "all is dropped", WAIT_S)
    assert health(upstream, "a") == CLEAN
    assert upstream.history() == []
    assert read_results(store, upstream.id) == before


def test_a_commit_looks_whose_turn_it_is_and_not_when_it_last_was_its_own(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a process was stopped between the end of a check and the commit."""
    monkeypatch.setattr(runner, "_SHORTEST_LEASE_S", 600.0)
    monkeypatch.setattr(runner, "_LONGEST_LEASE_S", 600.0)
    site, host = start_site(status(503))
    site.goes_on.clear()
    store = MemoryStore()
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1, "read_timeout": "60s"}), store)
    upstream.start_checker()
    site.wait_for(1)
    checker = checker_of(upstream)
    store.release(upstream.id, CHECKER_LEASE, checker._owner)
    assert store.lease(upstream.id, CHECKER_LEASE, "another", 600)
    assert checker.is_checking, "it does not know yet"
    site.goes_on.set()
    site.wait_for(2)
    assert health(upstream, "a") == CLEAN
    assert read_results(store, upstream.id) == {}


def test_who_lost_the_lease_asks_nothing_on_a_connection_that_he_has(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, host = start_site()
    connecting, leave = threading.Event(), threading.Event()

    async def slow_dial(*args: Any) -> Any:
        sock = await dial(*args)
        connecting.set()
        try:
            await asyncio.to_thread(leave.wait, WAIT_S)
        except BaseException:
            sock.close()
            raise
        return sock

    monkeypatch.setattr("resty_upstream.health.checks.dial", slow_dial)
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "timeout": "60s"}))
    upstream.start_checker()
    assert connecting.wait(WAIT_S)
    checker = checker_of(upstream)
    upstream.store.release(upstream.id, CHECKER_LEASE, checker._owner)
    assert upstream.store.lease(upstream.id, CHECKER_LEASE, "another", 600)
    wait_until(lambda: not checker.is_checking, "it notices", WAIT_S)
    leave.set()
    wait_until(lambda: not checker._tasks, "the check ends", WAIT_S)
    assert site.hits == 0
    assert read_results(upstream.store, upstream.id) == {}


def test_web_workers_leave_it_to_a_process_that_is_there_for_it(
    store: Store, open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    web, dedicated = [open_upstream(pool(host), store) for _ in range(2)]
    web.start_checker()
    wait_for_turn(web)
    dedicated.start_checker(dedicated=True)
    wait_for_turn(dedicated)
    site.wait_for(3)
    assert checker_of(dedicated).is_checking
    assert not checker_of(web).is_checking
    assert site.most_at_once == 1
    dedicated.stop_checker()
    assert store.holder(web.id, PROCESS_LEASE) == ""
    wait_for_turn(web)


def test_of_two_processes_that_are_there_for_it_one_stands_by(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    store = MemoryStore()
    one, two = [open_upstream(pool(host), store) for _ in range(2)]
    one.start_checker(dedicated=True)
    wait_for_turn(one)
    two.start_checker(dedicated=True)
    site.wait_for(3)
    assert not checker_of(two).is_checking
    one.stop_checker()
    wait_for_turn(two)


# ── changes at run time ───────────────────────────────────────────────────────────────────────


def test_hosts_that_come_and_go_are_taken_in(
    store: Store, open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    """Results of those that went are forgotten."""
    (site, host), (other, new) = start_site(), start_site()
    upstream, elsewhere = open_upstream(pool(host), store), open_upstream(None, store)
    upstream.start_checker()
    site.wait_for(1)
    api = UpstreamAPI(elsewhere)
    api.add_host("p", id="b", **new)
    other.wait_for(2)
    wait_until(lambda: record_key("p", "b") in read_results(store, upstream.id), "its result", WAIT_S)
    api.remove_host("p", "b")
    wait_until(lambda: [*read_results(store, upstream.id)] == [record_key("p", "a")], "it is forgotten", WAIT_S)
    wait_until(lambda: not other.at_once, "the last check of it", WAIT_S)
    hits = other.hits
    site.wait_for(2)
    assert other.hits == hits
    assert [*read_results(store, upstream.id)] == [record_key("p", "a")]


def test_the_result_of_a_check_that_ends_after_its_host_was_removed_is_not_kept(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    (_, host), (other, new) = start_site(), start_site()
    other.goes_on.clear()
    upstream = open_upstream(pool(host, new))
    upstream.start_checker()
    other.wait_for(1)
    wait_until(lambda: last_result(upstream, "a"), "a result of the other", WAIT_S)
    UpstreamAPI(upstream).remove_host("p", "b")
    checker = checker_of(upstream)
    wait_until(lambda: record_key("p", "b") not in checker._duties, "it is noticed", WAIT_S)
    other.goes_on.set()
    wait_until(lambda: not other.at_once, "its last check", WAIT_S)
    key, now = record_key("p", "a"), upstream.now()
    wait_until(lambda: read_results(upstream.store, upstream.id)[key].began > now, "a later result", WAIT_S)
    assert [*read_results(upstream.store, upstream.id)] == [record_key("p", "a")]


def test_results_of_hosts_that_were_removed_while_nobody_checked_are_forgotten(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    (_, host), (_, other) = start_site(), start_site()
    upstream = open_upstream(pool(host, other))
    upstream.start_checker()
    wait_until(lambda: len(read_results(upstream.store, upstream.id)) == 2, "the results", WAIT_S)
    upstream.stop_checker()
    UpstreamAPI(upstream).remove_host("p", "b")
    upstream.start_checker()
    wait_until(lambda: len(read_results(upstream.store, upstream.id)) == 1, "it is forgotten", WAIT_S)


def test_a_check_that_is_changed_is_taken_in(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    site, host = start_site()
    upstream = open_upstream(pool(host))
    upstream.start_checker()
    site.wait_for(2)
    upstream.configure(pool(host, healthcheck={**OFTEN, "path": "/new"}))
    wait_until(lambda: site.paths[-1] == "/new", "the new path", WAIT_S)
    site.wait_for(2)
    assert site.paths == sorted(site.paths), "none of the old kind after one of the new"


def test_the_result_of_a_check_that_was_changed_meanwhile_says_nothing(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    (site, host), (_, other) = start_site(status(503)), start_site()
    site.goes_on.clear()
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1, "read_timeout": "60s"}))
    upstream.start_checker()
    site.wait_for(1)
    upstream.configure(pool(other, healthcheck={**OFTEN, "fall": 1, "read_timeout": "60s"}))
    duty = checker_of(upstream)._duties[record_key("p", "a")]
    wait_until(lambda: duty.host.port == other["port"], "the new address", WAIT_S)
    site.goes_on.set()
    wait_until(lambda: last_result(upstream, "a"), "a result", WAIT_S)
    assert last_result(upstream, "a") == "ok: 200"
    assert upstream.history() == []


def test_where_checks_are_turned_off_nobody_checks(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_LOOK_AGAIN_S", 0.1)
    site, host = start_site()
    upstream = open_upstream(pool(host))
    upstream.start_checker()
    site.wait_for(1)
    upstream.configure(pool(host, healthcheck=False))
    wait_until(lambda: holder(upstream) == "", "nobody", WAIT_S)
    wait_until(lambda: not checker_of(upstream)._tasks, "the last check", WAIT_S)
    assert "last_check" not in upstream.get_pools()["p"]["hosts"]["a"]
    upstream.configure(pool(host))
    site.wait_for(2)


# ── a store that fails ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [StoreUnavailable("gone"), StoreBusy("held")], ids=["gone", "busy"])
def test_what_was_found_while_the_store_failed_is_written_when_it_works_again(
    open_upstream: OpenUpstream, start_site: StartSite, error: StoreError
) -> None:
    site, host = start_site()
    store = WatchedStore()
    upstream = open_upstream(pool(host, healthcheck={**OFTEN, "fall": 1}), store)
    upstream.start_checker()
    site.wait_for(1)
    store.error = error
    site.answer = status(503)
    site.wait_for(2)
    store.error = None
    wait_until(lambda: not is_up(upstream), "the host goes down", WAIT_S)
    site.answer = status(200)
    wait_until(lambda: is_up(upstream), "the host comes back", WAIT_S)


def test_a_check_counts_once_though_its_result_could_not_be_written(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_SPREAD", 0.001)
    site, host = start_site(status(503))
    store = WatchedStore()
    results = namespace("default")
    store.failing, store.error = {results}, StoreBusy("held")
    upstream = open_upstream(pool(host, healthcheck={"interval": 60, "fall": 3}), store)
    upstream.start_checker()
    site.wait_for(1)
    wait_until(lambda: store.transactions[results] >= 3, "three tries to write it", WAIT_S)
    assert (health(upstream, "a")["failcount"], site.hits) == (1, 1)
    store.error = None
    wait_until(lambda: last_result(upstream, "a") == "failed: status 503", "the result", WAIT_S)


# ── what requests leave to the checker ────────────────────────────────────────────────────────


@pytest.fixture
def failed(clock: FakeClock) -> Upstream:
    """An upstream whose host ``a``, which has a check, failed and may be probed."""
    upstream = open_on_a_clock({"p": {"healthcheck": OFTEN, "hosts": hosts("a", "b")}}, clock)
    take_down(upstream, "a")
    clock.advance(20)
    return upstream


def test_while_somebody_checks_requests_do_not_probe(failed: Upstream, clock: FakeClock) -> None:
    failed.store.lease(failed.id, CHECKER_LEASE, "somebody", 30)
    for _ in range(10):
        assert visit(failed) == ["b"]
        clock.advance(2)
    assert not is_up(failed)


def test_while_nobody_checks_requests_probe(failed: Upstream, clock: FakeClock) -> None:
    failed.store.lease(failed.id, CHECKER_LEASE, "somebody", 30)
    assert visit(failed) == ["b"]
    clock.advance(31)
    assert "a" in [visit(failed)[0] for _ in range(4)]
    assert is_up(failed)


def test_while_somebody_checks_requests_probe_hosts_without_a_check(clock: FakeClock) -> None:
    table = hosts("a", "b")
    table["a"]["healthcheck"] = False
    upstream = open_on_a_clock({"p": {"healthcheck": OFTEN, "hosts": table}}, clock)
    take_down(upstream, "a")
    clock.advance(20)
    upstream.store.lease(upstream.id, CHECKER_LEASE, "somebody", 30)
    assert "a" in [visit(upstream)[0] for _ in range(4)]


def test_revive_hosts_leaves_checked_hosts_to_who_checks_them(failed: Upstream, clock: FakeClock) -> None:
    failed.store.lease(failed.id, CHECKER_LEASE, "somebody", 30)
    failed.revive_hosts()
    assert not is_up(failed)
    clock.advance(31)
    failed.revive_hosts()
    assert is_up(failed)


# ── when it begins and ends ───────────────────────────────────────────────────────────────────


def serve_request(upstream: Upstream) -> None:
    """What a framework plugin does for a request that asks for nothing."""
    RequestUpstreams({"default": upstream}, default=upstream).post_process()


def test_it_begins_with_the_first_request_and_not_before(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    upstream = open_upstream(pool(host))
    upstream.open()
    upstream.configure(pool(host))
    upstream.get_pools()
    with upstream.context():
        visit(upstream)
    assert upstream.replica.checker is None
    serve_request(upstream)
    checker = checker_of(upstream)
    assert checker.is_alive
    site.wait_for(1)
    serve_request(upstream)
    upstream.start_checker()
    assert checker_of(upstream) is checker


def test_many_first_requests_at_once_begin_one(open_upstream: OpenUpstream, start_site: StartSite) -> None:
    _, host = start_site()
    upstream = open_upstream(pool(host))
    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: [barrier.wait(), serve_request(upstream)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len([each for each in threading.enumerate() if each.name == "resty_upstream checker"]) == 1


def test_a_request_does_not_fail_where_no_thread_can_be_started_and_a_later_one_begins(
    open_upstream: OpenUpstream, start_site: StartSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    _, host = start_site()
    upstream = open_upstream(pool(host))
    with monkeypatch.context() as patch:
        patch.setattr(runner.threading.Thread, "start", start)
        serve_request(upstream)
        assert upstream.replica.checker is None
    serve_request(upstream)
    assert checker_of(upstream).is_alive


def test_a_checker_that_an_error_ended_begins_again(
    open_upstream: OpenUpstream,
    start_site: StartSite,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(runner, "_AFTER_ERROR_S", 0.01)
    site, host = start_site()
    errors = [OSError(24, "Too many open files"), RuntimeError("something else")]
    work = runner.Checker._work

    async def failing(checker: runner.Checker) -> None:
        if errors:
            raise errors.pop()
        await work(checker)

    monkeypatch.setattr(runner.Checker, "_work", failing)
    open_upstream(pool(host)).start_checker()
    site.wait_for(2)
    assert caplog.text.count("failed, and begins again") == 2


def test_where_no_host_has_a_check_nothing_begins(open_upstream: OpenUpstream) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}, "q": {"healthcheck": True}})
    serve_request(upstream)
    assert upstream.replica.checker is None


def test_a_check_that_another_process_added_begins_with_the_next_request(open_upstream: OpenUpstream) -> None:
    store = MemoryStore()
    upstream, other = open_upstream({"p": {"hosts": hosts("a")}}, store), open_upstream(None, store)
    visit(upstream)
    other.save_pools({"p": {"healthcheck": {"interval": 3600}, "hosts": hosts("a")}})
    visit(upstream)
    serve_request(upstream)
    assert checker_of(upstream).is_alive


def test_close_ends_it_and_writes_what_it_found(
    store: Store, open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    site, host = start_site()
    upstream = open_upstream(pool(host), store)
    upstream.start_checker()
    site.wait_for(2)
    wait_for_turn(upstream)
    checker = checker_of(upstream)
    waiting: list[Any] = []
    wait_until(lambda: waiting.extend(checker._done) or waiting, "a result that is not written yet", WAIT_S)
    upstream.close()
    assert not checker.is_alive
    assert upstream.replica.checker is None
    assert holder(upstream) == ""
    assert read_results(store, upstream.id)[record_key("p", "a")].at >= waiting[-1].last.at
    checker.stop()


def test_a_child_of_a_fork_has_none_until_it_serves(tmp_path: Path, start_site: StartSite) -> None:
    _, host = start_site()
    with Worker(str(tmp_path / "private" / "upstreams.db")) as worker:
        worker.run(
            "from resty_upstream.context import RequestUpstreams\n"
            f"upstream = Upstream(SqliteStore(path), pools={pool(host)!r})\n"
            "upstream.start_checker()\n"
            "def look():\n"
            "    before = upstream.replica.checker is None\n"
            "    upstream.stop_checker()\n"
            "    RequestUpstreams({'default': upstream}, default=upstream).post_process()\n"
            "    alive = upstream.replica.checker.is_alive\n"
            "    upstream.close()\n"
            "    return before, alive\n"
        )
        assert worker.run("child(look).result()") == [True, True]
        assert worker.run("upstream.replica.checker.is_alive")
        # Servers written in C fork before there are threads; locks that others hold would stay held.
        worker.run("upstream.close()")
        assert worker.run("child(look, fork_without_hooks).result()") == [True, True]


def test_a_checker_that_fails_of_itself_begins_anew(
    open_upstream: OpenUpstream,
    start_site: StartSite,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever the fault is: hosts are not left unchecked for the life of the process."""
    site, host = start_site()
    failures = iter([ZeroDivisionError])
    begin = runner.Checker._begin_due

    def begin_or_fail(checker: runner.Checker) -> None:
        for failure in failures:
            raise failure
        begin(checker)

    monkeypatch.setattr(runner.Checker, "_begin_due", begin_or_fail)
    monkeypatch.setattr(runner, "_AFTER_ERROR_S", 0.1)
    open_upstream(pool(host)).start_checker()
    site.wait_for(2)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "the checker of upstream default failed, and begins again"
    ]


# ── what a person did for some time ───────────────────────────────────────────────────────────


def test_what_is_over_is_written_where_no_request_comes(
    open_upstream: OpenUpstream, start_site: StartSite, wall: FakeClock
) -> None:
    """By the thread that checks, and events are heard in another one: who is told may take his time."""
    _, host = start_site()
    upstream = open_upstream(pool(host))
    heard: list[str] = []
    upstream.bind("host_up", lambda _event: heard.append(threading.current_thread().name))
    upstream.start_checker()
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wait_for_turn(upstream)
    assert not is_up(upstream)
    wall.advance(3600)
    wait_until(lambda: heard, "the event", WAIT_S)
    assert heard == ["resty_upstream check"]
    assert upstream.history()[-1].reason == "by hand until 14:00 is over"


def test_what_is_over_is_written_by_a_process_without_anything_to_check(
    open_upstream: OpenUpstream, start_site: StartSite, wall: FakeClock
) -> None:
    _, host = start_site()
    upstream = open_upstream(pool(host, healthcheck=False))
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    upstream.start_checker(dedicated=True)
    wall.advance(3600)
    wait_until(lambda: len(upstream.history()) == 2, "its record", WAIT_S)
