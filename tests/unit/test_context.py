"""One request's view: what it keeps to itself, and when it tells the others."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from resty_upstream import Pool, RequestContext, RequestUpstreams, Upstream, UpstreamAPI
from resty_upstream.stores import Changes
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from resty_upstream.visitors import WsgiVisitor
from tests.helpers import health, hosts, open_upstream, open_workers, refused, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"hosts": hosts("a")}}
TWO: dict[str, Any] = {"p": {"hosts": hosts("a", "b")}}
HASHED: dict[str, Any] = {"p": {"method": "hash", "hosts": hosts(*"abcdefgh")}}


def failcount(upstream: Upstream, host_id: str = "a") -> int:
    return int(health(upstream, host_id)["failcount"])


# ── post_process ──────────────────────────────────────────────────────────────────────────────


def test_what_a_request_sees_is_shared_when_it_is_over() -> None:
    first, second = open_workers(2, ONE)
    with first.context():
        visit_in_vain(first, {"a": refused})
        assert failcount(second) == 0
    assert failcount(second) == 1


def test_a_second_post_process_finds_nothing() -> None:
    upstream = open_upstream(ONE)
    context = upstream.context()
    visit_in_vain(context, {"a": refused})
    for _ in range(3):
        context.post_process()
        assert failcount(upstream) == 1


def test_a_request_may_share_in_the_middle_and_again_at_its_end(clock: FakeClock) -> None:
    upstream = open_upstream(TWO, clock)
    with upstream.context() as context:
        while visit(upstream, {"a": refused}) != ["a", "b"]:
            pass
        upstream.post_process()
        assert failcount(upstream) == 1
        assert visit_in_vain(context, {"b": refused}).attempts
    assert (failcount(upstream), failcount(upstream, "b")) == (1, 1)


def test_what_comes_after_post_process_is_shared_at_once() -> None:
    upstream = open_upstream(ONE)
    context = upstream.context()
    late = next(context.attempts())
    context.post_process()
    with late:
        raise refused()
    assert failcount(upstream) == 1
    with next(context.attempts()):
        pass
    assert failcount(upstream) == 0


def test_a_context_that_lives_long_shares_at_once(clock: FakeClock) -> None:
    """A websocket, a stream or a task may go on for hours; the others need not wait for its end."""
    upstream = open_upstream(TWO, clock)
    with upstream.context() as context:
        visit(context)
        visit_in_vain(context, {"a": refused, "b": refused})
        assert failcount(upstream) == failcount(upstream, "b") == 0
        clock.advance(11)  # past the first second, and past what it does not try again
        visit_in_vain(context, {"a": refused, "b": refused})
        assert failcount(upstream) == failcount(upstream, "b") == 1, (
            "the second ones, more than 10 s after the first"
        )
        context.post_process()
    assert failcount(upstream) == failcount(upstream, "b") == 1


def test_a_context_shares_what_it_saw_although_the_request_failed() -> None:
    upstream = open_upstream(ONE)

    def request() -> None:
        with upstream.context():
            visit_in_vain(upstream, {"a": refused})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        request()
    assert failcount(upstream) == 1


def test_recovered_hosts_are_shared_too() -> None:
    first, second = open_workers(2, ONE)
    visit_in_vain(first, {"a": refused})
    with second.context():
        visit(second)
        assert failcount(first) == 1
    assert failcount(first) == 0


def test_several_requests_at_once_keep_their_failures_apart() -> None:
    upstream = open_upstream(TWO)
    one, two = upstream.context(), upstream.context()
    visit_in_vain(one, {"a": refused, "b": refused})
    assert visit_in_vain(one, {}).attempts == ()
    assert len(visit(two)) == 1


def test_a_request_with_nothing_to_record_does_not_touch_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = open_upstream(TWO)
    visit(upstream)
    for name in ("read", "transact", "lease", "release"):
        monkeypatch.delattr(MemoryStore, name)
    with upstream.context() as context:
        visit(upstream)
        visit(upstream)
        context.post_process()


def test_a_context_that_two_threads_finish_at_once_tells_each_failure_once() -> None:
    upstream = open_upstream({"p": {"max_fails": 1000, "hosts": hosts("a")}})
    with ThreadPoolExecutor(2) as threads:
        for _ in range(100):
            context = upstream.context()
            visit_in_vain(context, {"a": refused})
            list(threads.map(RequestContext.post_process, [context] * 2))
    assert failcount(upstream) == 100


def test_the_first_asynchronous_call_opens_the_store_in_a_thread() -> None:
    """It may take a while; the event loop goes on."""
    looked: list[bool] = []

    class Watched(MemoryStore):
        def changes(self, *args: Any, **options: Any) -> Changes:
            changes = super().changes(*args, **options)
            if changes.is_all:
                looked.append(threading.current_thread() is threading.main_thread())
            return changes

    async def nothing(host: str, port: int, timeout_s: float) -> None: ...

    async def main() -> None:
        upstream = Upstream(Watched(FakeClock()), pools=ONE)
        for _ in range(3):
            await upstream.aconnect(nothing)

    asyncio.run(main())
    assert set(looked) == {False}


# ── the upstreams of a request ────────────────────────────────────────────────────────────────


def test_each_upstream_of_a_request_has_one_context_whichever_thread_asks_first() -> None:
    by_name = {name: open_upstream(ONE) for name in ("default", "other")}
    with ThreadPoolExecutor(8) as threads:
        for _ in range(100):
            upstreams = RequestUpstreams(by_name)
            assert not upstreams.used
            assert len({id(context) for context in threads.map(upstreams.__getitem__, ["other"] * 8)}) == 1
            assert upstreams.used
            assert list(upstreams) == ["default", "other"]


def test_what_a_request_saw_of_each_of_its_upstreams_is_shared_when_it_is_over() -> None:
    by_name = {name: open_upstream(ONE) for name in ("default", "other", "unused")}
    visitor = WsgiVisitor({"REMOTE_ADDR": "192.0.2.1"})
    upstreams = RequestUpstreams(by_name, visitor, by_name["default"])
    for name in ("default", "other"):
        assert upstreams[name].key(Pool(id="p")) == "192.0.2.1"
        visit_in_vain(upstreams[name], {"a": refused})
    assert [failcount(upstream) for upstream in by_name.values()] == [0, 0, 0]
    for _ in range(2):
        upstreams.post_process()
        assert [failcount(upstream) for upstream in by_name.values()] == [1, 1, 0]


def test_an_upstream_that_is_first_used_after_the_request_shares_at_once() -> None:
    by_name = {"default": open_upstream(ONE)}
    upstreams = RequestUpstreams(by_name)
    upstreams.post_process()
    visit_in_vain(upstreams["default"], {"a": refused})
    assert failcount(by_name["default"]) == 1


# ── which context is meant ────────────────────────────────────────────────────────────────────


def test_without_a_context_each_call_is_one_of_its_own_and_recorded_before_it_returns_or_raises() -> None:
    upstream = open_upstream(TWO)
    while visit(upstream, {"a": refused}) != ["a", "b"]:
        pass
    assert failcount(upstream) == 1
    tried = [visit(upstream) for _ in range(2)]
    assert ["a"] in tried, "another call tries it again"
    visit_in_vain(upstream, {"a": refused, "b": refused})
    assert failcount(upstream, "b") == 1


def test_a_context_is_that_of_its_own_upstream_and_no_other() -> None:
    store = MemoryStore(FakeClock())
    one, two = Upstream(store, id="one"), Upstream(store, id="two")
    for upstream in (one, two):
        upstream.configure(ONE)
    with one.context():
        visit_in_vain(two, {"a": refused})
        assert failcount(two) == 1
        visit_in_vain(one, {"a": refused})
        assert failcount(one) == 0
    assert failcount(one) == 1


def test_contexts_may_be_nested() -> None:
    store = MemoryStore(FakeClock())
    one, two = Upstream(store, id="one"), Upstream(store, id="two")
    for upstream in (one, two):
        upstream.configure(ONE)
    with one.context(), two.context():
        visit_in_vain(one, {"a": refused})
        with one.context():
            assert visit(one) == ["a"], "the inner request did not fail on it"
        visit_in_vain(one, {})
        assert failcount(one) == 0
    assert failcount(one) == 1


def test_tasks_started_inside_a_context_belong_to_it_and_others_do_not() -> None:
    upstream = open_upstream(TWO)

    async def request(fates: dict[str, Any]) -> list[str]:
        with upstream.context():
            await asyncio.gather(asyncio.create_task(fail_on(fates)))
            return [visit(upstream)[0] for _ in range(3)]

    async def fail_on(fates: dict[str, Any]) -> None:
        while visit(upstream, fates)[0] not in fates:
            pass

    async def main() -> list[list[str]]:
        return await asyncio.gather(request({"a": refused}), request({"b": refused}))

    assert asyncio.run(main()) == [["b"] * 3, ["a"] * 3]


def test_the_context_object_works_where_no_context_variable_goes() -> None:
    upstream = open_upstream(ONE)
    with upstream.context() as context:
        thread = threading.Thread(target=visit_in_vain, args=[context, {"a": refused}])
        thread.start()
        thread.join()
        assert failcount(upstream) == 0
        assert visit_in_vain(upstream, {}).attempts == ()
    assert failcount(upstream) == 1


def test_a_context_has_all_that_a_request_needs(clock: FakeClock) -> None:
    upstream = open_upstream(TWO, clock)
    context = upstream.context()
    client, info = context.connect(lambda host, port, timeout_s: host)
    assert client == f"{info.host.id}.test"

    async def dial(host: str, port: int, timeout_s: float) -> str:
        return host

    client, info = asyncio.run(context.aconnect(dial))
    assert client == f"{info.host.id}.test"
    assert context.get_pools() == upstream.get_pools()
    assert str(context.explain()) == str(upstream.explain())


# ── the key ───────────────────────────────────────────────────────────────────────────────────


def test_the_key_of_a_context_is_what_hash_hashes_unless_a_call_gives_its_own() -> None:
    upstream = open_upstream(HASHED)
    expected = {key: visit(upstream, key=key) for key in "uvwxyz"}
    assert len({tried[0] for tried in expected.values()}) > 1
    for key, tried in expected.items():
        with upstream.context(key=key):
            assert visit(upstream) == tried
            assert visit(upstream, key="u") == expected["u"]
        with upstream.context(key=lambda key=key: key):
            assert visit(upstream) == tried


def test_a_key_that_costs_something_is_worked_out_only_for_a_method_that_uses_it() -> None:
    asked = []

    def key() -> str:
        asked.append(1)
        return "k"

    plain, hashed = open_upstream(TWO), open_upstream(HASHED)
    with plain.context(key=key):
        visit(plain)
    assert not asked
    with hashed.context(key=key):
        visit(hashed)
    assert asked


def test_without_any_key_hash_takes_turns() -> None:
    upstream = open_upstream(HASHED)
    with upstream.context():
        assert sorted(visit(upstream)[0] for _ in range(8)) == list("abcdefgh")


# ── changes meanwhile ─────────────────────────────────────────────────────────────────────────


def test_what_was_seen_of_a_host_that_is_removed_meanwhile_is_dropped() -> None:
    upstream = open_upstream(TWO)
    api = UpstreamAPI(upstream)
    with upstream.context():
        visit_in_vain(upstream, {"a": refused, "b": refused})
        api.remove_host("p", "a")
        api.remove_pool("p")
    assert upstream.get_pools() == {}


def test_what_was_seen_of_an_earlier_host_of_the_same_id_is_not_held_against_the_new_one(clock: FakeClock) -> None:
    upstream = open_upstream(ONE, clock)
    api = UpstreamAPI(upstream)
    with upstream.context():
        visit_in_vain(upstream, {"a": refused})
        clock.advance(1)
        api.remove_host("p", "a")
        api.add_host("p", id="a", host="other.test")
    assert failcount(upstream) == 0
