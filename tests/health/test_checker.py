"""The checker: one of all that share a store, and what becomes of what it finds."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import RequestUpstreams, Upstream, UpstreamAPI, Upstreams
from resty_upstream.health.results import CHECKER_LEASE
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.stores.sqlite import SqliteStore
from tests.health.conftest import OFTEN, Start
from tests.helpers import WAIT_S, Peer, read_head, refused, refusing, take_down, visit

StartPeer = Callable[..., Peer]


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        threading.Event().wait(0.01)


class Checked:
    """What a peer serves whose checks are counted."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.paths: list[str] = []
        self.most_at_once = 0
        self.hold: threading.Event | None = None
        """While it is not set, nothing is answered."""
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self.paths)

    def __call__(self, connection: socket.socket) -> None:
        head = read_head(connection)
        if not head:
            return
        with self._lock:
            self.paths.append(head.split()[1].decode())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        if self.hold is not None:
            self.hold.wait(WAIT_S)
        with self._lock:
            self._at_once -= 1
        connection.sendall(b"HTTP/1.1 %d Status\r\nContent-Length: 0\r\n\r\n" % self.status)


def host(upstream: Upstream, host_id: str = "a", pool_id: str = "p") -> dict[str, Any]:
    found: dict[str, Any] = upstream.get_pools()[pool_id]["hosts"][host_id]
    return found


def pools(healthcheck: Any = OFTEN, **hosts: Any) -> dict[str, Any]:
    return {"p": {"healthcheck": healthcheck, "hosts": hosts}}


def wait_for_checks(served: Checked, count: int = 2) -> None:
    before = served.count
    wait_until(lambda: served.count >= before + count, f"{count} more checks")


# ── what checks do ────────────────────────────────────────────────────────────────────────────


def test_only_hosts_with_a_check_are_checked(start: Start, start_peer: StartPeer) -> None:
    """Those of the pool's, not one that has ``false``, nor those of a pool that has none."""
    served = [Checked() for _ in range(4)]
    a, b, c, d = (start_peer(each).options for each in served)
    declared = pools(a=a, b={**b, "healthcheck": False}, c={**c, "healthcheck": {**OFTEN, "path": "/own"}})
    start({**declared, "q": {"hosts": {"d": d}}})
    wait_for_checks(served[0])
    wait_for_checks(served[2])
    assert [each.count for each in (served[1], served[3])] == [0, 0]
    assert (set(served[0].paths), set(served[2].paths)) == ({"/"}, {"/own"})


def test_each_host_has_its_own_idea_of_a_bad_status(start: Start, start_peer: StartPeer) -> None:
    peer = start_peer(Checked(404)).options
    lenient = {**OFTEN, "status_codes": ["5xx"], "fall": 1}
    upstream = start(pools({**OFTEN, "fall": 1}, a=peer, b={**peer, "healthcheck": lenient}))
    wait_until(lambda: not host(upstream, "a")["up"], "a is down")
    wait_until(lambda: "last_result" in host(upstream, "b"), "b was checked")
    assert host(upstream, "b")["up"]
    assert host(upstream, "b")["last_result"] == "ok: 404"


@pytest.mark.parametrize("gone", [True, False], ids=["refused", "bad status"])
def test_bad_checks_raise_the_failcount_until_the_host_is_down(
    start: Start, start_peer: StartPeer, gone: bool
) -> None:
    with refusing() as nobody:
        options = nobody if gone else start_peer(Checked(500)).options
        upstream = start(pools({"interval": 0.1, "interval_down": 60, "fall": 2}, a=options))
        wait_until(lambda: host(upstream)["failcount"] == 1 or not host(upstream)["up"], "one bad check")
        wait_until(lambda: not host(upstream)["up"], "two bad checks")
        assert host(upstream)["failcount"] == 2
        (transition,) = upstream.history()
        assert transition.reason == ("check: ECONNREFUSED" if gone else "check: status 500")


def test_good_checks_bring_a_host_back_and_requests_do_not_probe_it(start: Start, start_peer: StartPeer) -> None:
    served = Checked(500)
    upstream = start(
        pools({**OFTEN, "fall": 1}, a=start_peer(served).options, b={"host": "b.test", "healthcheck": False})
    )
    wait_until(lambda: not host(upstream)["up"], "a is down")
    state = upstream.replica.snapshot().targets["p\x1fa"]
    assert upstream.replica.claim(state) == "", "who checks finds out when it is back"
    assert "2 good checks in a row bring it back" in str(upstream.explain())
    upstream.revive_hosts()
    assert not host(upstream)["up"]
    served.status = 200
    wait_until(lambda: host(upstream)["up"], "a is back")
    assert upstream.history()[-1].reason == "2 checks passed"


def test_when_nobody_checks_requests_find_out_who_is_back(start: Start) -> None:
    upstream = start(pools(a={"host": "a.test"}, b={"host": "b.test"}), checking=False)
    take_down(upstream, "a")
    target = upstream.replica.snapshot().targets["p\x1fa"]
    now = target.due_at + 1
    upstream.store.now = upstream.replica.now = upstream.now = lambda: now  # type: ignore[method-assign]
    assert upstream.replica.claim(target)


def test_a_host_that_was_taken_down_by_hand_is_checked_and_stays_down(start: Start, start_peer: StartPeer) -> None:
    served = Checked()
    upstream = start(pools(a=start_peer(served).options))
    UpstreamAPI(upstream).down_host("p", "a")
    wait_for_checks(served, 4)
    wait_until(lambda: host(upstream).get("last_result") == "ok: 200", "the result is shown")
    assert not host(upstream)["up"]


def test_good_checks_of_good_hosts_change_nothing_that_requests_read(start: Start, start_peer: StartPeer) -> None:
    served = Checked()
    upstream = start(pools(a=start_peer(served).options))
    wait_for_checks(served)
    before = upstream.store.read(upstream.id)
    wait_for_checks(served, 5)
    assert upstream.store.read(upstream.id) == before
    assert upstream.history() == []


def test_the_last_check_is_shown_with_its_time_and_can_be_saved_again(start: Start, start_peer: StartPeer) -> None:
    upstream = start(pools(a=start_peer(Checked()).options))
    wait_until(lambda: "last_check" in host(upstream), "a was checked")
    assert abs(host(upstream)["last_check"] - time.time()) < 60
    upstream.save_pools(upstream.get_pools())
    assert host(upstream)["up"]


# ── one of all ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Makes stores that share their content, one for each process as it were."""
    shared = MemoryStore()
    with contextlib.ExitStack() as stack:

        def make() -> Any:
            if request.param == "memory":
                return shared
            store = SqliteStore(tmp_path / "private" / "upstreams.db")
            stack.callback(store.close)
            return store

        yield make


def test_of_several_one_checks_and_when_it_ends_another_goes_on_at_once(
    start: Start, start_peer: StartPeer, make_store: Callable[[], Any]
) -> None:
    served = Checked()
    declared = pools(a=start_peer(served).options)
    workers = [start(declared, store=make_store()) for _ in range(3)]
    wait_for_checks(served, 5)
    leaders = [worker for worker in workers if worker.replica.checker and worker.replica.checker.is_checking]
    assert len(leaders) == 1
    leaders[0].stop_checker()
    wait_for_checks(served, 5)
    leaders = [worker for worker in workers if worker.replica.checker and worker.replica.checker.is_checking]
    assert len(leaders) == 1
    assert served.most_at_once == 1


def test_web_workers_leave_it_to_a_process_that_is_there_for_it(
    start: Start, start_peer: StartPeer, make_store: Callable[[], Any]
) -> None:
    served = Checked()
    declared = pools(a=start_peer(served).options)
    worker, process = start(declared, store=make_store()), start(declared, store=make_store(), checking=False)
    wait_for_checks(served)
    process.start_checker(dedicated=True)
    wait_until(lambda: process.replica.checker and process.replica.checker.is_checking, "the process checks")
    wait_for_checks(served, 5)
    assert not worker.replica.checker.is_checking  # type: ignore[union-attr]
    process.stop_checker()
    wait_until(lambda: worker.replica.checker and worker.replica.checker.is_checking, "the worker checks again")
    assert served.most_at_once == 1


def test_who_lost_the_lease_commits_nothing(start: Start, start_peer: StartPeer) -> None:
    """As a process that was stopped in the middle of a check, and goes on."""
    served = Checked(500)
    served.hold = threading.Event()
    upstream = start(pools({**OFTEN, "fall": 1}, a=start_peer(served).options))
    wait_until(lambda: served.count == 1, "a check is under way")
    checker = upstream.replica.checker
    assert checker is not None
    store = upstream.store
    store.release(upstream.id, CHECKER_LEASE, checker._owner)
    assert store.lease(upstream.id, CHECKER_LEASE, "another", 600)
    served.hold.set()
    wait_until(lambda: not checker.is_checking, "it noticed")
    assert host(upstream)["up"]
    assert host(upstream)["failcount"] == 0
    before = served.count
    threading.Event().wait(0.5)
    assert served.count == before


def test_a_host_that_answers_late_is_not_checked_twice_and_delays_nobody(
    start: Start, start_peer: StartPeer
) -> None:
    slow, quick = Checked(), Checked()
    slow.hold = threading.Event()
    start(pools({**OFTEN, "read_timeout": 60_000}, a=start_peer(slow).options, b=start_peer(quick).options))
    wait_until(lambda: slow.count == 1, "a is asked")
    wait_for_checks(quick, 8)
    assert slow.count == 1
    slow.hold.set()
    wait_for_checks(slow)
    assert slow.most_at_once == 1


# ── changes meanwhile ─────────────────────────────────────────────────────────────────────────


def test_changes_of_pools_are_taken_in(start: Start, start_peer: StartPeer) -> None:
    """A check that is turned on at run time, a host that is added, one that is removed with its results."""
    first, second = Checked(), Checked()
    a, b = start_peer(first).options, start_peer(second).options
    upstream = start({"p": {"hosts": {"a": a}}})
    threading.Event().wait(0.2)
    assert first.count == 0
    upstream.configure(pools(a=a))
    wait_for_checks(first)
    UpstreamAPI(upstream).add_host("p", id="b", **b)
    wait_for_checks(second)
    wait_until(lambda: "last_check" in host(upstream, "a"), "the result of a is kept")
    UpstreamAPI(upstream).remove_host("p", "a")
    namespace = f"{upstream.id}\x1fchecks"
    wait_until(lambda: "p\x1fa" not in upstream.store.read(namespace).records, "the result of a is forgotten")
    before = first.count
    wait_for_checks(second, 4)
    assert first.count == before


def test_a_host_that_is_down_is_checked_at_its_own_interval(start: Start, start_peer: StartPeer) -> None:
    """From the moment when a request found it to be down."""
    served = Checked()
    upstream = start(pools({"interval": 5, "interval_down": 0.1, "rise": 1000}, a=start_peer(served).options))
    wait_until(lambda: served.count == 1, "the first check")
    threading.Event().wait(0.3)
    assert served.count == 1
    take_down(upstream, "a")
    wait_for_checks(served, 3)


class Broken(MemoryStore):
    """A store whose transactions fail while it is broken."""

    is_broken = False

    def transact(self, ns: str, fn: Any, *, wait_s: float = 5.0) -> Any:
        from resty_upstream import StoreUnavailable

        if self.is_broken:
            raise StoreUnavailable("broken")
        return super().transact(ns, fn, wait_s=wait_s)


def test_what_cannot_be_written_is_written_when_it_can(start: Start, start_peer: StartPeer) -> None:
    served, store = Checked(), Broken()
    upstream = start(pools({**OFTEN, "fall": 2}, a=start_peer(served).options), store=store)
    wait_for_checks(served)
    store.is_broken = True
    served.status = 500
    wait_for_checks(served, 4)
    assert host(upstream)["up"]
    store.is_broken = False
    wait_until(lambda: not host(upstream)["up"], "a is down")


def test_who_listens_may_take_his_time(start: Start, start_peer: StartPeer) -> None:
    """Checks go on while a function that is bound to an event has not returned."""
    bad, good = Checked(500), Checked()
    upstream = start(
        pools({**OFTEN, "fall": 1}, a=start_peer(bad).options, b=start_peer(good).options), checking=False
    )
    over = threading.Event()
    upstream.bind("host_down", lambda _event: over.wait(WAIT_S))
    upstream.start_checker()
    try:
        wait_until(lambda: not host(upstream, "a")["up"], "a is down")
        wait_for_checks(good, 8)
    finally:
        over.set()


# ── functions ─────────────────────────────────────────────────────────────────────────────────

called: list[tuple[str, int]] = []
hold = threading.Event()


def note(host: str, port: int, _timeout_s: float) -> None:
    """A check of an application."""
    called.append((host, port))


def hang(host: str, port: int, _timeout_s: float) -> None:
    """One that never ends by itself."""
    called.append((host, port))
    hold.wait(WAIT_S)


def test_a_function_of_the_settings_is_called(start: Start) -> None:
    called.clear()
    check = {**OFTEN, "type": "tests.health.test_checker.note"}
    upstream = start(pools(check, a={"host": "10.0.0.1", "port": 8001}))
    wait_until(lambda: len(called) > 1, "it is called")
    assert set(called) == {("10.0.0.1", 8001)}
    wait_until(lambda: host(upstream).get("last_result") == "ok: passed", "the result is shown")


def test_a_function_that_hangs_is_not_called_again_before_it_returns(start: Start) -> None:
    called.clear()
    hold.clear()
    check = {**OFTEN, "type": "tests.health.test_checker.hang", "timeout": 20, "read_timeout": 20, "fall": 3}
    try:
        upstream = start(pools(check, a={"host": "10.0.0.1"}))
        wait_until(lambda: not host(upstream)["up"], "it is found to be down")
        assert len(called) == 1
        began = time.monotonic()
        upstream.stop_checker()
        assert time.monotonic() - began < 3
    finally:
        hold.set()


def test_what_only_the_store_names_is_not_even_imported(start: Start, start_peer: StartPeer) -> None:
    """Whoever may write the store may not have code run."""
    store = MemoryStore()
    Upstream(store).configure(pools({**OFTEN, "type": "tests.health.never_imported.check"}, a={"host": "a.test"}))
    reader = Upstream(store)
    reader.open()
    reader.start_checker()
    try:
        wait_until(lambda: "last_result" in host(reader), "it was to be checked")
        assert host(reader)["last_result"] == "unknown: tests.health.never_imported.check is not called here"
        assert host(reader)["up"]
    finally:
        reader.close()


# ── beginning and ending ──────────────────────────────────────────────────────────────────────


def serve(upstream: Upstream) -> None:
    """A web request that uses the upstream."""
    upstreams = RequestUpstreams(Upstreams(upstream))
    upstreams["default"].get_pools()
    upstreams.post_process()


def test_web_workers_begin_at_their_first_request_and_only_where_there_is_something_to_check(
    start: Start,
) -> None:
    upstream = start(pools(a={"host": "127.0.0.1", "port": 1}), checking=False)
    assert upstream.replica.checker is None
    serve(upstream)
    checker = upstream.replica.checker
    assert checker is not None
    serve(upstream)
    assert upstream.replica.checker is checker
    plain = start({"p": {"hosts": {"a": {"host": "a.test"}}}}, checking=False)
    serve(plain)
    assert plain.replica.checker is None


def test_closing_an_upstream_ends_its_checker(start: Start) -> None:
    upstream = start(pools(a={"host": "127.0.0.1", "port": 1}))
    checker = upstream.replica.checker
    assert checker is not None
    wait_until(lambda: checker.is_checking, "it checks")
    upstream.close()
    assert not checker.is_alive
    assert not upstream.store.holder(upstream.id, CHECKER_LEASE)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_of_a_fork_has_no_checker_until_it_serves(start: Start, start_peer: StartPeer) -> None:
    served = Checked()
    upstream = start(pools(a=start_peer(served).options))
    wait_for_checks(served)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(write, b"none" if upstream.replica.checker is None else b"one")
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 10) == b"none"
    os.close(read)
    os.close(write)
    wait_for_checks(served)


def test_a_request_that_fails_counts_beside_checks(start: Start, start_peer: StartPeer) -> None:
    """Passive failures take a host down that passes its checks."""
    served = Checked()
    upstream = start(
        pools({"interval": 60}, a=start_peer(served).options, b={"host": "b.test", "healthcheck": False})
    )
    wait_until(lambda: served.count == 1, "the first check")
    for _ in range(6):
        visit(upstream, {"a": refused})
    assert not host(upstream)["up"]
