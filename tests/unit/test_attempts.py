"""The failover loop: which hosts a request tries, for how long, and what is held against them."""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream import Attempt, NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.state import decode_state
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import (
    Fate,
    health,
    hosts,
    no_descriptors_left,
    open_upstream,
    open_workers,
    refused,
    take_down,
    visit,
    visit_in_vain,
)


def os_error(number: int) -> Fate:
    return lambda: OSError(number, errno.errorcode[number])


def one_host(**options: Any) -> dict[str, Any]:
    return {"p": {"hosts": hosts("a"), **options}}


def two_hosts(**options: Any) -> dict[str, Any]:
    return {"p": {"hosts": hosts("a", "b"), **options}}


CLEAN = {"up": True, "failcount": 0, "lastfail": 0}


# ── the loop ──────────────────────────────────────────────────────────────────────────────────


def test_a_host_that_fails_is_followed_by_the_next() -> None:
    upstream = open_upstream(two_hosts())
    for _ in range(4):
        tried = visit(upstream, {"a": refused})
        assert tried in (["a", "b"], ["b"])


def test_the_iterator_ends_after_a_success() -> None:
    attempts = open_upstream(two_hosts()).attempts()
    with next(attempts):
        pass
    assert list(attempts) == []


def test_the_iterator_stays_at_its_end_when_no_host_was_left() -> None:
    attempts = open_upstream({}).attempts()
    with pytest.raises(NoHostAvailable):
        next(attempts)
    assert list(attempts) == []


def test_the_body_of_an_attempt_gets_the_host_to_call() -> None:
    upstream = open_upstream({"p": {"timeout": 250, "hosts": {"a": {"host": "a.test", "port": 81, "weight": 4}}}})
    for attempt in upstream.attempts():
        with attempt as host:
            assert (host.id, host.host, host.port, host.weight) == ("a", "a.test", 81, 4)
            assert (attempt.pool.id, attempt.timeout_s) == ("p", 0.25)


def test_when_no_host_is_left_the_error_carries_every_attempt_and_the_last_failure_as_its_cause() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}, "dr": {"priority": 1, "hosts": hosts("b")}})
    errors = {"a": refused(), "b": TimeoutError("timed out")}
    fates: dict[str, Fate] = {
        "a": lambda: errors["a"],
        "b": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    }
    error = visit_in_vain(upstream, fates)
    assert [(a.pool.id, a.host.id, a.outcome) for a in error.attempts] == [
        ("p", "a", "failed"),
        ("dr", "b", "failed"),
    ]
    assert error.attempts[0].error is errors["a"]
    assert error.__cause__ is error.attempts[1].error
    assert str(error) == (
        "upstream default: no host is available after p/a: ConnectionRefusedError: [Errno 111] Connection refused"
        ", dr/b: ConnectionResetError: [Errno 104] reset"
    )


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, " (the last 5 of 6)")])
def test_the_message_of_the_error_names_five_attempts_at_most(count: int, more: str) -> None:
    ids = [f"h{n}" for n in range(count)]
    error = visit_in_vain(open_upstream({"p": {"hosts": hosts(*ids)}}), dict.fromkeys(ids, refused))
    assert str(error).count("Connection refused") == 5
    assert str(error).endswith(f"Connection refused{more}")


def test_without_pools_there_is_no_host_and_no_attempt() -> None:
    error = visit_in_vain(open_upstream({}), {})
    assert (error.attempts, error.__cause__) == ((), None)


def test_the_error_hints_at_502_when_a_host_answered_badly_and_at_504_when_none_was_reached() -> None:
    assert visit_in_vain(open_upstream(two_hosts()), {"a": refused, "b": refused}).status_hint == 504
    fates: dict[str, Fate] = {"a": os_error(errno.ECONNRESET), "b": refused}
    assert visit_in_vain(open_upstream(two_hosts()), fates).status_hint == 502


def test_an_attempt_tells_its_outcome_and_how_long_it_took(clock: FakeClock) -> None:
    seen: list[Attempt] = []
    for attempt in open_upstream({"p": {"hosts": hosts("a")}, "q": {"hosts": hosts("b")}}, clock).attempts():
        seen.append(attempt)
        with attempt as host:
            clock.advance(0.25)
            if host.id == "a":
                raise refused()
    assert [(a.host.id, a.outcome, a.duration_s) for a in seen] == [("a", "failed", 0.25), ("b", "ok", 0.25)]
    assert isinstance(seen[0].error, ConnectionRefusedError)
    assert seen[1].error is None


def test_an_attempt_that_is_not_entered_is_an_error_that_says_how_to_use_it() -> None:
    attempts = open_upstream(two_hosts()).attempts()
    next(attempts)
    with pytest.raises(RuntimeError, match="with attempt as host"):
        next(attempts)


def test_pools_are_used_by_priority_and_the_next_when_one_has_no_host_left() -> None:
    pools = {
        "dr": {"priority": 10, "hosts": hosts("c")},
        "primary": {"hosts": hosts("a", "b")},
        "near": {"priority": 5, "hosts": hosts("n")},
    }
    upstream = open_upstream(pools)
    assert visit(upstream, dict.fromkeys("abn", refused))[2:] == ["n", "c"]
    take_down(upstream, "a", "b", pool_id="primary")
    assert visit(upstream) == ["n"]


def test_a_spare_host_is_tried_when_every_weighted_host_failed_in_this_request() -> None:
    pools = {"p": {"hosts": hosts("a", weight=10) | hosts("spare", weight=0)}}
    assert visit(open_upstream(pools), {"a": refused}) == ["a", "spare"]


@pytest.mark.parametrize("method", ["round_robin", "random", "hash"])
def test_one_request_tries_each_host_once(method: str) -> None:
    upstream = open_upstream({"p": {"method": method, "hosts": hosts(*"abcde", weight=3)}}, last_resort=False)
    error = visit_in_vain(upstream, dict.fromkeys("abcde", refused), key="k")
    assert sorted(attempt.host.id for attempt in error.attempts) == list("abcde")


# ── what is raised ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fate",
    [
        lambda: ValueError("a bug"),
        lambda: PermissionError("bad credentials"),
        os_error(errno.EMFILE),
        MemoryError,
        asyncio.CancelledError,
        KeyboardInterrupt,
        GeneratorExit,
    ],
    ids=["bug", "credentials", "EMFILE", "memory", "cancelled", "ctrl-c", "generator"],
)
def test_what_is_not_the_hosts_is_raised_as_it_is_counts_for_nothing_and_tries_no_other(fate: Fate) -> None:
    upstream = open_upstream(two_hosts(max_fails=1))
    error = fate()
    attempts = upstream.attempts()
    tried = []
    with pytest.raises(type(error)) as caught:
        visit(attempts, dict.fromkeys("ab", lambda: error))
    assert caught.value is error
    tried = [(attempt.outcome, attempt.error) for attempt in attempts.log]
    assert tried == [("ignored", error)]
    assert list(attempts) == []
    assert health(upstream, "a") == health(upstream, "b") == CLEAN


def test_our_own_route_counts_for_nothing_but_the_next_host_is_tried() -> None:
    upstream = open_upstream(two_hosts(max_fails=1))
    error = visit_in_vain(upstream, dict.fromkeys("ab", os_error(errno.ENETUNREACH)))
    assert [attempt.outcome for attempt in error.attempts] == ["ignored", "ignored"]
    assert health(upstream, "a") == health(upstream, "b") == CLEAN


def test_what_is_raised_and_ignored_is_no_success_either() -> None:
    upstream = open_upstream(one_host())
    visit_in_vain(upstream, {"a": refused})
    with pytest.raises(asyncio.CancelledError):
        visit(upstream, {"a": asyncio.CancelledError})
    assert health(upstream, "a")["failcount"] == 1


def test_a_failure_wrapped_by_a_client_counts() -> None:
    class ClientError(Exception):
        pass

    def wrapped() -> ClientError:
        try:
            try:
                raise refused()
            except OSError as cause:
                raise ClientError("cannot connect") from cause
        except ClientError as inner:
            return ClientError("request failed", inner)

    upstream = open_upstream(one_host(max_fails=1))
    visit_in_vain(upstream, {"a": wrapped})
    assert not health(upstream, "a")["up"]


def test_an_exchange_that_the_host_cut_counts_and_goes_on() -> None:
    upstream = open_upstream(one_host(max_fails=1) | {"dr": {"priority": 1, "hosts": hosts("b")}})
    cut: Fate = lambda: http.client.RemoteDisconnected("Remote end closed connection without response")  # noqa: E731
    assert visit(upstream, {"a": cut}) == ["a", "b"]
    assert not health(upstream, "a")["up"]


def test_an_exception_that_the_caller_was_handling_already_is_not_blamed_on_this_machine() -> None:
    upstream = open_upstream(one_host(max_fails=1) | {"dr": {"priority": 1, "hosts": hosts("b")}})
    try:
        raise OSError(errno.EMFILE, "Too many open files")
    except OSError:
        assert visit(upstream, {"a": refused}) == ["a", "b"]
    assert not health(upstream, "a")["up"]


def test_an_exception_that_the_caller_was_handling_already_is_not_blamed_on_the_host() -> None:
    upstream = open_upstream(one_host(max_fails=1))
    try:
        raise refused()
    except OSError:
        with pytest.raises(ValueError, match="a bug"):
            visit(upstream, {"a": lambda: ValueError("a bug")})
    assert health(upstream, "a") == CLEAN


def test_an_earlier_failure_of_the_same_request_is_not_blamed_again() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}, "q": {"priority": 1, "hosts": hosts("b")}})
    with pytest.raises(ValueError, match="a bug"):
        visit(upstream, {"a": refused, "b": lambda: ValueError("a bug")})
    assert health(upstream, "b", "q") == CLEAN


def test_no_such_name_is_raised_and_counts_for_nothing_while_no_descriptor_is_left() -> None:
    upstream = open_upstream(two_hosts(max_fails=1))
    with no_descriptors_left(), pytest.raises(socket.gaierror):
        visit(upstream, dict.fromkeys("ab", lambda: socket.gaierror(socket.EAI_NONAME, "Name not known")))
    assert health(upstream, "a") == health(upstream, "b") == CLEAN


# ── counting ──────────────────────────────────────────────────────────────────────────────────


def test_max_fails_failures_take_a_host_down_for_every_worker() -> None:
    first, second, third = open_workers(3, two_hosts())
    assert sorted(visit(second) + visit(second)) == ["a", "b"]
    take_down(first, "a")
    for worker in (second, third):
        assert [visit(worker) for _ in range(6)] == [["b"]] * 6


def test_failures_of_several_workers_add_up() -> None:
    workers = open_workers(3, one_host())
    for worker in workers:
        visit_in_vain(worker, {"a": refused})
    assert health(workers[0], "a")["up"] is False


def test_a_success_clears_the_failures_that_another_worker_saw() -> None:
    first, second = open_workers(2, one_host())
    visit_in_vain(first, {"a": refused})
    visit_in_vain(first, {"a": refused})
    assert health(second, "a")["failcount"] == 2
    visit(second)
    assert health(first, "a") == CLEAN


def test_a_burst_in_flight_to_a_host_that_dies_is_one_event(clock: FakeClock) -> None:
    upstream = open_upstream(one_host(), clock)
    events: list[str] = []
    upstream.bind("host_down", lambda event: events.append(event.name))
    in_flight = []
    for _ in range(50):
        attempts = upstream.attempts()
        in_flight.append(next(attempts))
    clock.advance(1)
    for attempt in in_flight[:25]:
        with attempt:
            raise refused()
    assert events == ["host_down"]
    UpstreamAPI(upstream).up_host("p", "a")
    for attempt in in_flight[25:]:
        with attempt:
            raise refused()
    assert health(upstream, "a") == CLEAN


def test_a_request_that_succeeds_on_healthy_hosts_writes_nothing() -> None:
    store = CountingStore()
    upstream = Upstream(store)
    upstream.configure(two_hosts())
    store.transactions = 0
    for _ in range(20):
        with upstream.context():
            visit(upstream)
    assert store.transactions == 0


def test_failures_of_a_host_that_is_down_already_write_nothing() -> None:
    store = CountingStore()
    upstream = Upstream(store)
    upstream.configure(one_host())
    take_down(upstream, "a")
    store.transactions = 0
    for _ in range(20):
        visit_in_vain(upstream, {"a": refused})
    assert store.transactions == 0


class CountingStore(MemoryStore):
    """A store that counts its transactions."""

    transactions = 0

    def __init__(self) -> None:
        super().__init__(FakeClock())

    def transact(self, *args: Any, **options: Any) -> Any:
        self.transactions += 1
        return super().transact(*args, **options)


# ── one deadline ──────────────────────────────────────────────────────────────────────────────


def times_out(clock: FakeClock) -> Callable[[Attempt], None]:
    """Let an attempt take all the time it has."""

    def fate(attempt: Attempt) -> None:
        clock.advance(attempt.timeout_s)
        raise TimeoutError("timed out")

    return fate


def run(upstream: Upstream, fate: Callable[[Attempt], None]) -> list[Attempt]:
    """One request whose attempts all meet the same fate; what it tried."""
    try:
        for attempt in upstream.attempts():
            with attempt:
                fate(attempt)
    except NoHostAvailable as error:
        return list(error.attempts)
    raise AssertionError("a host answered")


def test_each_attempt_gets_the_pools_timeout_or_what_is_left_of_the_deadline(clock: FakeClock) -> None:
    pools = {"p": {"timeout": 2000, "hosts": hosts(*"abc")}, "q": {"timeout": "9s", "hosts": hosts(*"de")}}
    upstream = open_upstream(pools, clock, total_timeout="10s")
    seen = run(upstream, times_out(clock))
    assert [attempt.timeout_s for attempt in seen] == [2, 2, 2, 4]


def test_when_the_deadline_is_over_no_other_host_is_tried(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts(*"abcdefghij")}}, clock, total_timeout=5000)
    began = clock()
    seen = run(upstream, times_out(clock))
    assert clock() - began == 5
    assert len(seen) == 3


def test_the_deadline_is_15_seconds_unless_said_otherwise(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"timeout": "1h", "hosts": hosts("a")}}, clock)
    (attempt,) = run(upstream, times_out(clock))
    assert attempt.timeout_s == 15


def test_each_call_has_a_deadline_of_its_own(clock: FakeClock) -> None:
    upstream = open_upstream(one_host(timeout="1h"), clock, total_timeout="3s")
    with upstream.context():
        for _ in range(2):
            clock.advance(100)
            assert next(upstream.attempts()).timeout_s == 3


# ── timeouts ──────────────────────────────────────────────────────────────────────────────────


def test_a_timeout_of_ours_counts(clock: FakeClock) -> None:
    upstream = open_upstream(one_host(max_fails=1), clock)
    run(upstream, times_out(clock))
    assert not health(upstream, "a")["up"]


def test_a_timeout_of_the_callers_own_that_is_shorter_is_raised_and_counts_for_nothing(clock: FakeClock) -> None:
    upstream = open_upstream(two_hosts(max_fails=1, timeout=2000), clock)
    error = TimeoutError("the caller's own")

    def impatient() -> TimeoutError:
        clock.advance(0.5)
        return error

    with pytest.raises(TimeoutError) as caught:
        visit(upstream, dict.fromkeys("ab", impatient))
    assert caught.value is error
    assert health(upstream, "a") == health(upstream, "b") == CLEAN


def test_a_timeout_that_the_kernel_reports_counts_however_soon() -> None:
    upstream = open_upstream(one_host(max_fails=1))
    visit_in_vain(upstream, {"a": os_error(errno.ETIMEDOUT)})
    assert not health(upstream, "a")["up"]


def test_a_timeout_cut_short_by_the_deadline_counts_for_nothing(clock: FakeClock) -> None:
    upstream = open_upstream(one_host(max_fails=1, timeout="10s"), clock, total_timeout="1s")
    (attempt,) = run(upstream, times_out(clock))
    assert attempt.outcome == "ignored"
    assert health(upstream, "a") == CLEAN


def test_a_timeout_noticed_late_because_this_process_was_paused_counts_for_nothing(clock: FakeClock) -> None:
    upstream = open_upstream(two_hosts(max_fails=1), clock)

    def paused(attempt: Attempt) -> None:
        attempt.bounded = True  # as the connectors say of their own waiting
        clock.advance(30)
        raise TimeoutError("timed out")

    (attempt,) = run(upstream, paused)
    assert attempt.outcome == "ignored"
    assert health(upstream, "a") == health(upstream, "b") == CLEAN


def test_a_timeout_noticed_late_because_of_a_pause_lets_the_next_host_be_tried(clock: FakeClock) -> None:
    upstream = open_upstream(two_hosts(max_fails=1, timeout=1000), clock)
    tried = []
    for attempt in upstream.attempts():
        with attempt as host:
            tried.append(host.id)
            attempt.bounded = True
            if len(tried) == 1:
                clock.advance(5)
                raise TimeoutError("timed out")
    assert sorted(tried) == ["a", "b"]
    assert health(upstream, "a") == health(upstream, "b") == CLEAN


def test_a_call_of_several_steps_that_times_out_late_counts(clock: FakeClock) -> None:
    """A client that gives each of its steps the timeout may take a multiple of it; no pause is behind that."""
    upstream = open_upstream(one_host(max_fails=1, timeout=1000), clock)

    def slow(_attempt: Attempt) -> None:
        clock.advance(4)
        raise TimeoutError("timed out")

    run(upstream, slow)
    assert not health(upstream, "a")["up"]


# ── failed in this request ────────────────────────────────────────────────────────────────────


def test_a_host_on_which_this_request_failed_is_not_tried_again_by_it() -> None:
    upstream = open_upstream(two_hosts(max_fails=100))
    with upstream.context():
        while visit(upstream, {"a": refused}) != ["a", "b"]:
            pass
        assert [visit(upstream) for _ in range(5)] == [["b"]] * 5
    assert ["a"] in [visit(upstream) for _ in range(2)]


def test_a_request_that_failed_on_every_host_does_not_begin_again() -> None:
    upstream = open_upstream(two_hosts(max_fails=100))
    with upstream.context():
        visit_in_vain(upstream, {"a": refused, "b": refused})
        assert visit_in_vain(upstream, {}).attempts == ()


def test_a_context_that_lives_long_tries_a_host_again_when_failed_timeout_is_over(clock: FakeClock) -> None:
    upstream = open_upstream(one_host(failed_timeout=10), clock)
    with upstream.context():
        visit_in_vain(upstream, {"a": refused})
        clock.advance(11)
        assert visit(upstream) == ["a"]


# ── probes ────────────────────────────────────────────────────────────────────────────────────


def down_and_due(count: int, clock: FakeClock, **options: Any) -> list[Upstream]:
    """Workers whose host a has failed and may be probed now."""
    workers = open_workers(count, two_hosts(failed_timeout=10, **options), clock)
    take_down(workers[0], "a")
    clock.advance(11.5)
    return workers


def test_one_request_of_all_workers_probes_and_its_success_brings_the_host_up(clock: FakeClock) -> None:
    workers = down_and_due(3, clock)
    attempts = workers[0].attempts()
    probe = next(attempts)
    assert probe.host.id == "a"
    for worker in workers:
        assert [visit(worker) for _ in range(4)] == [["b"]] * 4
    with probe:
        pass
    assert health(workers[1], "a") == CLEAN
    assert sorted(visit(workers[2]) + visit(workers[2])) == ["a", "b"]


def test_a_probe_that_fails_leaves_the_host_down_and_the_request_goes_on(clock: FakeClock) -> None:
    first, second = down_and_due(2, clock)
    assert visit(first, {"a": refused}) == ["a", "b"]
    clock.advance(11.5)
    assert [visit(second) for _ in range(3)] == [["b"]] * 3, "the wait was doubled"
    clock.advance(11)
    assert visit(second, {"a": refused}) == ["a", "b"]


def test_the_result_of_a_probe_is_shared_before_the_request_is_over(clock: FakeClock) -> None:
    first, second = down_and_due(2, clock)
    with first.context():
        assert visit(first) == ["a"]
        assert health(second, "a") == CLEAN


@pytest.mark.parametrize(
    "fate",
    [asyncio.CancelledError, KeyboardInterrupt, lambda: ValueError("a bug"), os_error(errno.EMFILE)],
    ids=["cancelled", "ctrl-c", "bug", "EMFILE"],
)
def test_a_probe_that_ends_without_a_verdict_is_free_for_another_worker_at_once(
    fate: Fate, clock: FakeClock
) -> None:
    first, second = down_and_due(2, clock)
    with pytest.raises(type(fate())):
        visit(first, {"a": fate})
    assert health(second, "a")["up"] is False
    assert visit(second) == ["a"]


def test_a_probe_that_found_no_route_is_free_at_once_and_the_request_goes_on(clock: FakeClock) -> None:
    first, second = down_and_due(2, clock)
    assert visit(first, {"a": os_error(errno.ENETUNREACH)}) == ["a", "b"]
    assert visit(second) == ["a"]


def test_the_probe_of_a_worker_that_was_killed_goes_to_another_when_its_lease_is_over(clock: FakeClock) -> None:
    first, second = down_and_due(2, clock)
    abandoned = first.attempts()
    assert next(abandoned).host.id == "a"
    clock.advance(5)
    assert visit(second) == ["b"]
    clock.advance(10)
    assert visit(second) == ["a"]


def test_a_worker_whose_probe_took_too_long_says_nothing_any_more(clock: FakeClock) -> None:
    first, second = down_and_due(2, clock)
    slow = first.attempts()
    attempt = next(slow)
    clock.advance(15)
    running = second.attempts()
    probe = next(running)
    assert probe.host.id == "a"
    with attempt:
        raise refused()
    with probe:
        pass
    assert health(first, "a") == CLEAN


def test_a_probe_in_flight_does_not_bring_back_what_a_person_took_down_meanwhile(clock: FakeClock) -> None:
    first, second = down_and_due(2, clock)
    attempts = first.attempts()
    probe = next(attempts)
    UpstreamAPI(second).down_host("p", "a")
    with probe:
        pass
    assert health(second, "a") == {"up": False, "failcount": 0, "lastfail": 0}


def test_hosts_that_failed_together_are_not_all_probed_at_the_same_moment(clock: FakeClock) -> None:
    ids = [f"h{n}" for n in range(60)]
    upstream = open_upstream({"p": {"max_fails": 1, "failed_timeout": 10, "hosts": hosts(*ids)}}, clock)
    visit_in_vain(upstream, dict.fromkeys(ids, refused))
    waits = [decode_state(data).down_until - clock() for data in upstream.store.read("default").records.values()]
    assert all(9 <= wait <= 11 for wait in waits)
    assert min(waits) < 9.7 < 10.3 < max(waits)


# ── the last resort ───────────────────────────────────────────────────────────────────────────


def all_down(clock: FakeClock, *ids: str, **options: Any) -> Upstream:
    """All hosts failed, one second after the other, in the order of ``ids``."""
    upstream = open_upstream({"p": {"max_fails": 1, "failed_timeout": 60, "hosts": hosts(*ids)}}, clock, **options)
    for count in range(1, len(ids) + 1):
        clock.advance(1)
        take_down(upstream, *ids[:count])
    return upstream


def test_when_all_are_down_three_are_tried_the_oldest_failure_first(clock: FakeClock) -> None:
    upstream = all_down(clock, *"dbace")
    error = visit_in_vain(upstream, dict.fromkeys("abcde", refused))
    assert [attempt.host.id for attempt in error.attempts] == ["d", "b", "a"]
    assert all(attempt.last_resort for attempt in error.attempts)


def test_a_success_as_a_last_resort_brings_the_host_up(clock: FakeClock) -> None:
    upstream = all_down(clock, "a", "b")
    attempts = upstream.attempts()
    assert visit(attempts, {"a": refused}) == ["a", "b"]
    assert attempts.log[-1].info.last_resort
    assert health(upstream, "b") == CLEAN
    assert visit(upstream) == ["b"]


def test_the_last_resort_never_tries_a_host_taken_down_by_hand(clock: FakeClock) -> None:
    upstream = all_down(clock, "a", "b")
    UpstreamAPI(upstream).down_host("p", "a")
    assert visit(upstream) == ["b"]
    UpstreamAPI(upstream).down_host("p", "b")
    assert visit_in_vain(upstream, {}).attempts == ()


def test_the_last_resort_can_be_turned_off(clock: FakeClock) -> None:
    upstream = all_down(clock, "a", "b", last_resort=False)
    assert visit_in_vain(upstream, {}).attempts == ()


def test_the_last_resort_keeps_to_the_deadline(clock: FakeClock) -> None:
    upstream = all_down(clock, "a", "b", "c", total_timeout="3s")
    seen = run(upstream, times_out(clock))
    assert [attempt.timeout_s for attempt in seen] == [2, 1]


def test_a_failed_host_that_this_request_took_down_is_not_its_last_resort() -> None:
    upstream = open_upstream(one_host(max_fails=1))
    error = visit_in_vain(upstream, {"a": refused})
    assert [attempt.host.id for attempt in error.attempts] == ["a"]
