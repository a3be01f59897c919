"""The health of one host: which facts move it where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import StoreFormatError
from resty_upstream.model import GivenHealth, Pool, pools_from_dicts
from resty_upstream.state import (
    Change,
    CheckFailed,
    CheckPassed,
    Down,
    Eject,
    Expire,
    Fact,
    Failure,
    HostState,
    Probe,
    Release,
    Revive,
    Rules,
    Status,
    Success,
    Up,
    added,
    apply,
    as_of,
    decode_state,
    encode_state,
    may_eject,
    rebooted,
    shown,
)
from resty_upstream.state import given as given_state  # hypothesis has a `given` too

RULES = Rules(max_fails=3, failed_timeout_s=10, failed_timeout_max_s=60)


def failure(at: float, *, began: float | None = None, jitter: float = 0, prober: str = "") -> Failure:
    return Failure(at, at if began is None else began, 1e9 + at, jitter, "ECONNREFUSED", prober)


def success(at: float, *, began: float | None = None) -> Success:
    return Success(at, at if began is None else began)


def bad(at: float, *, began: float | None = None, fall: int = 3, jitter: float = 0) -> CheckFailed:
    return CheckFailed(at, at if began is None else began, 1e9 + at, jitter, "check: status 503", fall)


def good(at: float, *, began: float | None = None, rise: int = 2) -> CheckPassed:
    return CheckPassed(at, at if began is None else began, rise)


def eject(at: float, *, began: float | None = None) -> Eject:
    return Eject(at, at if began is None else began, 1e9 + at, 0, "5 of 20 requests answered")


def after(*facts: Fact, state: HostState | None = None, rules: Rules = RULES) -> HostState:
    state = state or added(0)
    for fact in facts:
        state = apply(state, fact, rules).state
    return state


def failed(at: float = 3) -> HostState:
    return after(failure(at), failure(at), failure(at))


def probing(at: float = 13, prober: str = "me", lease_s: float = 5) -> HostState:
    return after(Probe(at, prober, lease_s), state=failed())


def by_hand() -> HostState:
    return after(Down(1))


# ── failures and successes of a host that is up ───────────────────────────────────────────────


def test_a_new_host_is_up_and_clean() -> None:
    assert shown(added(5)) == GivenHealth(up=True, failcount=0, lastfail=0)


def test_max_fails_failures_in_a_row_take_a_host_down_and_fewer_do_not() -> None:
    state = after(failure(1), failure(2))
    assert (state.up, state.failcount) == (True, 2)
    change = apply(state, failure(3), RULES)
    assert (change.state.status, change.state.failcount, change.event) == (Status.FAILED, 3, "host_down")
    assert change.reason == "ECONNREFUSED"


def test_a_success_clears_the_failures() -> None:
    state = after(failure(1), failure(2), success(3), failure(4), failure(5))
    assert (state.up, state.failcount) == (True, 2)


def test_a_failure_later_than_failed_timeout_after_the_one_before_counts_from_one_again() -> None:
    assert after(failure(0), failure(10)).failcount == 2
    assert after(failure(0), failure(10.1)).failcount == 1


def test_each_failure_extends_the_time_for_the_next() -> None:
    assert not after(failure(0), failure(9), failure(18)).up


def test_with_max_fails_1_the_first_failure_takes_a_host_down() -> None:
    assert not after(failure(1), rules=RULES._replace(max_fails=1)).up


def test_with_max_fails_0_no_failure_takes_a_host_down() -> None:
    state = after(*(failure(at) for at in range(50)), rules=RULES._replace(max_fails=0))
    assert (state.up, state.failcount) == (True, 50)


def test_failcount_never_leaves_what_plain_dicts_can_carry() -> None:
    """What ``get_pools`` shows ``save_pools`` must take, however long a host fails."""
    rules = RULES._replace(max_fails=0)
    state = after(failure(2), rules=rules, state=HostState(failcount=1_000_000, failed_at=1, lastfail=1))
    pools_from_dicts({"p": {"hosts": {"a": {"host": "a.test", "failcount": shown(state).failcount}}}})


def test_lastfail_is_the_wall_clock_of_the_last_failure() -> None:
    assert after(failure(1), failure(2)).lastfail == 1e9 + 2


def test_only_the_first_failure_and_the_clearing_are_news_for_others() -> None:
    first = apply(added(0), failure(1), RULES)
    second = apply(first.state, failure(2), RULES)
    cleared = apply(second.state, success(3), RULES)
    assert [first.routing, second.routing, cleared.routing] == [True, False, True]


def test_a_success_of_a_clean_host_changes_nothing() -> None:
    state = added(0)
    assert apply(state, success(5), RULES) == Change(state)
    assert apply(state, success(5), RULES).state is state


# ── the burst rule ────────────────────────────────────────────────────────────────────────────


def test_fifty_failures_in_flight_to_a_host_that_comes_back_are_one_event() -> None:
    state = after(Up(5), state=failed(3))
    late = [failure(6, began=2) for _ in range(50)]
    assert after(*late, state=state) == state


def test_a_success_that_began_before_the_host_went_down_does_not_bring_it_back() -> None:
    state = failed(3)
    assert after(success(4, began=2.9), state=state) is state


def test_a_result_that_began_at_the_moment_of_the_change_counts() -> None:
    assert after(success(4, began=3), state=failed(3)).up


def test_failures_of_an_earlier_host_of_the_same_id_do_not_count_for_the_new_one() -> None:
    state = added(10)
    assert apply(state, failure(11, began=9), RULES).state is state


def test_a_failure_that_began_before_a_clearing_still_counts() -> None:
    """Only a change of ``up`` makes what is in flight meaningless."""
    assert after(failure(1), success(2), failure(3, began=1)).failcount == 1


# ── down, probed, up again ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("jitter", "wait_s"), [(0, 10), (-1, 9), (1, 11)])
def test_a_host_is_left_alone_for_failed_timeout_give_or_take_a_tenth(jitter: float, wait_s: float) -> None:
    state = after(failure(3), failure(3), failure(3, jitter=jitter))
    assert not state.due(3 + wait_s - 0.001)
    assert state.due(3 + wait_s + 0.001)


def test_each_failed_probe_doubles_the_wait_up_to_failed_timeout_max() -> None:
    state, now, waits = failed(0), 0.0, []
    for _ in range(6):
        waits.append(state.down_until - now)
        now = state.down_until
        state = after(Probe(now, "me", 5), failure(now, prober="me"), state=state)
    assert waits == [10, 20, 40, 60, 60, 60]


def test_failed_timeout_max_below_failed_timeout_does_not_shorten_it() -> None:
    rules = Rules.of(Pool(id="p", failed_timeout=100, failed_timeout_max=60))
    state = after(*[failure(0)] * 3, rules=rules)
    assert state.down_until == 100


def test_a_recovered_host_waits_failed_timeout_again_and_not_twice_that() -> None:
    state = after(success(20), *[failure(21)] * 3, state=failed(3))
    assert state.down_until - 21 == 10


def test_a_host_is_not_probed_before_its_time() -> None:
    state = failed(3)
    assert after(Probe(12.9, "me", 5), state=state) is state


def test_only_one_asks_for_the_probe_and_gets_it() -> None:
    state = after(Probe(13, "me", 5), Probe(13, "you", 5), state=failed(3))
    assert (state.status, state.prober) == (Status.PROBING, "me")


def test_a_lease_that_is_over_goes_to_the_next_who_asks() -> None:
    state = after(Probe(18, "you", 5), state=probing(13, "me", 5))
    assert state.prober == "you"


def test_a_released_probe_is_free_at_once() -> None:
    state = after(Release(14, "me"), Probe(14, "you", 5), state=probing())
    assert state.prober == "you"


def test_nobody_releases_the_probe_of_another() -> None:
    state = probing(prober="me")
    assert after(Release(14, "you"), state=state) is state


def test_a_probe_that_succeeds_brings_the_host_up_with_a_clean_state_and_an_event() -> None:
    change = apply(probing(13), success(13.5, began=13), RULES)
    assert shown(change.state) == GivenHealth()
    assert (change.event, change.reason, change.routing) == ("host_up", "probe succeeded", True)


def test_a_success_as_a_last_resort_is_a_success() -> None:
    change = apply(failed(3), success(4), RULES)
    assert (change.state.up, change.event) == (True, "host_up")


def test_a_failure_as_a_last_resort_changes_nothing() -> None:
    state = failed(3)
    assert after(failure(5), state=state) is state


def test_a_probe_that_fails_after_its_lease_went_to_another_says_nothing() -> None:
    state = after(Probe(18, "you", 5), state=probing(13, "me", 5))
    assert after(failure(19, prober="me"), state=state) is state


def test_a_failed_probe_takes_the_host_down_without_another_event() -> None:
    change = apply(probing(13), failure(14, prober="me"), RULES)
    assert (change.state.status, change.event, change.state.failcount) == (Status.FAILED, "", 4)


# ── by hand ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [added(0), failed(), probing()], ids=["up", "failed", "probing"])
def test_a_host_taken_down_by_hand_shows_up_false_and_lastfail_0(state: HostState) -> None:
    assert shown(after(Down(20), state=state)) == GivenHealth(up=False, failcount=0, lastfail=0)


@pytest.mark.parametrize(
    "fact",
    [
        success(99),
        failure(99),
        failure(99, prober=""),
        Probe(1e6, "me", 5),
        Release(99, ""),
        Revive(1e6),
        Down(99),
        Expire(99, 1e12),
        good(99, rise=1),
        bad(99, fall=1),
        eject(99),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_nothing_but_up_revives_a_host_taken_down_by_hand(fact: Fact) -> None:
    state = by_hand()
    assert apply(state, fact, RULES) == Change(state)


def test_who_takes_a_host_down_again_has_the_last_word() -> None:
    first = after(Down(1, "one", "jane", 100))
    change = apply(first, Down(2, "two", "joe"), RULES)
    assert (change.event, change.routing, change.state.changed_at) == ("", True, 1)
    assert (change.state.reason, change.state.by, change.state.until) == ("by hand: two", "joe", 0)
    assert apply(change.state, Down(3, "two", "joe"), RULES).state is change.state


def test_what_has_an_end_ends_then_and_not_before() -> None:
    state = after(Down(1, "why", "jane", until=1e9))
    assert apply(state, Expire(20, 1e9 - 1), RULES) == Change(state)
    change = apply(state, Expire(20, 1e9), RULES)
    assert (change.state, change.event, change.routing) == (HostState(changed_at=20, back_at=20), "host_up", True)
    assert change.reason.startswith("by hand until ")
    assert change.reason.endswith(" is over")


@pytest.mark.parametrize("state", [added(0), failed(), probing(), after(Down(1, until=9), Up(2))])
def test_an_end_is_of_no_host_that_is_not_down_by_hand(state: HostState) -> None:
    assert apply(state, Expire(20, 1e12), RULES) == Change(state)


@pytest.mark.parametrize("state", [by_hand(), failed(), probing()], ids=["manual", "failed", "probing"])
def test_up_puts_a_host_back_clean_with_an_event(state: HostState) -> None:
    change = apply(state, Up(20), RULES)
    assert shown(change.state) == GivenHealth()
    assert (change.event, change.reason) == ("host_up", "by hand")


def test_up_forgives_the_failures_of_a_host_that_is_up_without_an_event() -> None:
    change = apply(after(failure(1)), Up(2), RULES)
    assert (change.state.failcount, change.event) == (0, "")


@pytest.mark.parametrize(
    ("state", "event"), [(added(0), "host_down"), (failed(), ""), (probing(), "")], ids=["up", "failed", "probing"]
)
def test_down_is_an_event_only_for_a_host_that_was_up(state: HostState, event: str) -> None:
    assert apply(state, Down(20), RULES).event == event


def test_revive_cleans_a_host_whose_time_is_over_and_no_other() -> None:
    assert after(Revive(12.9), state=failed(3)).status is Status.FAILED
    change = apply(failed(3), Revive(13), RULES)
    assert (shown(change.state), change.event) == (GivenHealth(), "host_up")


@pytest.mark.parametrize("fact", [Down(20, "new kernel"), Up(20, "new kernel")], ids=["down", "up"])
def test_the_reason_of_a_person_is_that_of_the_change(fact: Fact) -> None:
    state = by_hand() if isinstance(fact, Up) else added(0)
    assert apply(state, fact, RULES).reason == "by hand: new kernel"


# ── active checks of a host that is up ────────────────────────────────────────────────────────


def test_fall_bad_checks_in_a_row_take_a_host_down_and_each_raises_failcount() -> None:
    counts = [after(*map(bad, range(1, 1 + n))).failcount for n in range(3)]
    assert counts == [0, 1, 2]
    change = apply(after(bad(1), bad(2)), bad(3), RULES)
    assert (change.state.status, change.state.failcount, change.event) == (Status.FAILED, 3, "host_down")
    assert (change.reason, change.state.lastfail) == ("check: status 503", 1e9 + 3)


def test_bad_checks_are_in_a_row_however_long_after_each_other_they_are() -> None:
    assert not after(bad(0), bad(1000), bad(2000)).up


def test_max_fails_is_for_requests_and_fall_for_checks() -> None:
    assert after(bad(1, fall=9), bad(2, fall=9), bad(3, fall=9), bad(4, fall=9)).up
    assert not after(bad(1, fall=1), rules=RULES._replace(max_fails=0)).up


def test_a_failure_counts_on_where_bad_checks_began() -> None:
    change = apply(after(bad(1), bad(2)), failure(3), RULES)
    assert (change.state.failcount, change.event, change.reason) == (3, "host_down", "ECONNREFUSED")


def test_a_good_check_of_a_clean_host_changes_nothing() -> None:
    state = added(0)
    assert apply(state, good(5), RULES) == Change(state)


def test_a_good_check_ends_the_row_of_bad_ones() -> None:
    state = after(bad(1), bad(2), good(3))
    assert shown(state) == GivenHealth()
    assert after(bad(4), bad(5), state=state).up


@pytest.mark.parametrize(
    ("facts", "failcount"),
    [
        ([failure(1), failure(2)], 2),
        ([failure(1), bad(2)], 1),
        ([bad(1), failure(2)], 1),
        ([failure(1), bad(2, fall=9), bad(3, fall=9)], 1),
        ([bad(1), success(2), failure(3)], 1),
        ([bad(1), bad(2), failure(100)], 1),
        ([bad(1), bad(2), success(3)], 0),
    ],
    ids=[
        *["requests", "request and check", "check and request", "request and checks"],
        *["after a success", "after a long time", "cleared already"],
    ],
)
def test_a_good_check_takes_back_what_checks_counted_and_nothing_of_what_requests_did(
    facts: list[Fact], failcount: int
) -> None:
    state = after(*facts)
    assert state.up
    assert after(good(101), state=state).failcount == failcount


def test_requests_that_succeed_clear_failcount_and_not_the_row_of_bad_checks() -> None:
    """A host whose health page fails goes down though all else that it serves is well."""
    state = after(bad(1), success(2), bad(3), success(4))
    assert (state.failcount, state.up) == (0, True)
    assert not after(bad(5), state=state).up


def test_the_first_bad_check_and_the_taking_back_are_news_for_others() -> None:
    first = apply(added(0), bad(1), RULES)
    second = apply(first.state, bad(2), RULES)
    back = apply(second.state, good(3), RULES)
    assert [first.routing, second.routing, back.routing] == [True, False, True]


def test_failcount_of_bad_checks_never_leaves_what_plain_dicts_can_carry() -> None:
    state = HostState(failcount=1_000_000, bad_checks=1_000_000, failed_at=1, lastfail=1)
    assert after(bad(2, fall=10**7), state=state).failcount == 1_000_000


# ── active checks of a host that failed ───────────────────────────────────────────────────────


@pytest.mark.parametrize("state", [failed(3), probing(13)], ids=["failed", "probing"])
def test_rise_good_checks_in_a_row_bring_a_failed_host_back_and_nothing_less(state: HostState) -> None:
    assert not after(good(14), state=state).up
    assert not after(good(14), bad(15), good(16), state=state).up
    change = apply(after(good(14), state=state), good(15), RULES)
    assert shown(change.state) == GivenHealth()
    assert (change.event, change.reason, change.routing) == ("host_up", "2 checks passed", True)
    assert apply(state, good(14, rise=1), RULES).reason == "check passed"


def test_a_bad_check_of_a_host_that_failed_changes_neither_its_state_nor_its_time() -> None:
    for state in (failed(3), probing(13)):
        assert apply(state, bad(14), RULES) == Change(state)
        assert after(good(14), bad(15), state=state) == state


def test_good_checks_are_counted_anew_when_a_probe_failed() -> None:
    state = after(good(13), failure(14, prober="me"), good(15), state=probing(13, "me"))
    assert not state.up


def test_a_host_that_checks_brought_back_has_nothing_left_of_what_was() -> None:
    state = after(bad(1), bad(2), bad(3), good(4), good(5))
    assert state == HostState(changed_at=5, back_at=5)
    assert after(bad(6), bad(7), state=state).up


def test_results_of_checks_that_began_before_the_last_change_are_dropped() -> None:
    back = after(Up(5), state=failed(3))
    assert after(*[bad(6, began=4.9)] * 9, state=back) is back
    down = failed(3)
    assert after(*[good(6, began=2.9)] * 9, state=down) is down
    counting = after(good(4), state=down)
    assert after(bad(6, began=2.9), state=counting) is counting
    hurt = after(bad(6), state=back)
    assert after(good(7, began=4.9), state=hurt) is hurt
    assert after(bad(6, began=5), state=back) is not back


# ── soft rules ────────────────────────────────────────────────────────────────────────────────


def test_a_soft_rule_takes_a_host_down_as_failures_do() -> None:
    change = apply(after(failure(1), success(2)), eject(5), RULES)
    assert (change.state.status, change.event) == (Status.FAILED, "host_down")
    assert change.reason == "5 of 20 requests answered"
    assert (change.state.down_until, change.state.lastfail) == (15, 1e9 + 5)
    assert after(good(6), good(7), state=change.state).up


def test_a_soft_rule_has_nothing_to_say_of_a_host_that_is_down_or_of_a_time_before_it_came_back() -> None:
    for state in (failed(3), probing(13), by_hand(), after(Up(5), state=failed(3))):
        assert apply(state, eject(14, began=4), RULES) == Change(state)


@pytest.mark.parametrize(
    ("up", "hosts", "may"), [(1, 1, False), (2, 2, True), (1, 2, False), (3, 3, True), (2, 3, False), (3, 4, True)]
)
def test_a_soft_rule_leaves_at_least_half_of_a_pool_up(up: int, hosts: int, may: bool) -> None:
    assert may_eject(up, hosts) is may


# ── when a host last came back ────────────────────────────────────────────────────────────────


def test_a_host_that_was_never_down_never_came_back() -> None:
    assert added(5).back_at == 0
    assert after(failure(1), success(2), bad(3), good(4), Up(5)).back_at == 0


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        (probing(13), [success(20)]),
        (failed(3), [success(20)]),
        (failed(3), [good(19), good(20)]),
        (failed(3), [Revive(20)]),
        (failed(3), [Up(20)]),
        (by_hand(), [Up(20)]),
        (after(Down(1, until=9)), [Expire(20, 9)]),
    ],
    ids=["probe", "last resort", "checks", "revived", "by hand, failed", "by hand", "over"],
)
def test_every_way_back_is_remembered_with_its_time(state: HostState, facts: list[Fact]) -> None:
    back = after(*facts, state=state)
    assert back.back_at == 20
    assert after(failure(21), success(22), bad(23), good(24), Up(25), state=back).back_at == 20


def test_a_host_that_is_given_as_up_came_back_if_it_was_down() -> None:
    assert given_state(failed(3), GivenHealth(), 20, RULES).back_at == 20
    assert given_state(added(0), GivenHealth(failcount=1, lastfail=1), 20, RULES).back_at == 0
    back = after(Up(5), state=failed(3))
    assert given_state(back, GivenHealth(failcount=1, lastfail=1), 20, RULES).back_at == 5


# ── laws ──────────────────────────────────────────────────────────────────────────────────────

times = st.floats(0, 200) | st.integers(0, 200).map(float)
names = st.sampled_from(["me", "you", ""])
facts = st.one_of(
    st.builds(Success, times, times),
    st.builds(Failure, times, times, st.floats(1, 1e10), st.floats(-1, 1), st.just("why"), names),
    st.builds(Probe, times, names, st.floats(-1, 30)),
    st.builds(Release, times, names),
    st.builds(CheckPassed, times, times, st.integers(1, 4)),
    st.builds(CheckFailed, times, times, st.floats(1, 1e10), st.floats(-1, 1), st.just("why"), st.integers(1, 4)),
    st.builds(Eject, times, times, st.floats(1, 1e10), st.floats(-1, 1), st.just("why")),
    st.builds(Down, times, st.sampled_from(["", "why"]), names, st.just(0) | times),
    st.builds(Up, times),
    st.builds(Expire, times, times),
    st.builds(Revive, times),
)
some_rules = st.builds(
    lambda fails, wait, most: Rules(fails, wait, max(wait, most)),
    st.integers(0, 4),
    st.floats(0.001, 100),
    st.floats(0.001, 100),
)


@given(st.lists(facts, max_size=40), some_rules)
def test_no_sequence_of_facts_in_any_order_of_time_breaks_a_state(sequence: list[Fact], rules: Rules) -> None:
    state = added(0)
    for fact in sequence:
        old, change = state, apply(state, fact, rules)
        state = change.state
        assert state.up == (state.status is Status.UP)
        assert state.failcount >= 0
        assert (state.status is Status.PROBING) or not state.prober
        if old.status is Status.MANUAL and state.status is not Status.MANUAL:
            assert isinstance(fact, Up) or (isinstance(fact, Expire) and 0 < old.until <= fact.wall)
        if isinstance(fact, Expire):
            assert state.ends_at > fact.wall
        assert state.status is Status.MANUAL or not (state.by or state.until)
        assert 0 <= state.fails_of_checks <= min(state.failcount, state.bad_checks)
        assert state.up or not state.bad_checks
        assert state.failed or not state.good_checks
        assert not state.up or state.back_at == (old.back_at if old.up else fact.at)
        if state.status is Status.MANUAL:
            assert shown(state) == GivenHealth(up=False)
        if old.up != state.up:
            assert change.event == ("host_up" if state.up else "host_down")
            assert change.routing
        else:
            assert change.event == ""
        if (old.failcount == 0) != (state.failcount == 0):
            assert change.routing
        if (old.up or isinstance(fact, Failure)) and state.status is Status.FAILED and state is not old:
            assert isinstance(fact, Failure | CheckFailed | Eject)
            assert state.down_until - fact.at <= rules.failed_timeout_max_s * 1.1 + 1e-6
            assert state.down_until - fact.at >= rules.failed_timeout_s * 0.9 - 1e-6
        assert decode_state(encode_state(state)) == state


@given(st.lists(facts, max_size=40), some_rules)
def test_a_lease_is_taken_over_only_when_it_is_over(sequence: list[Fact], rules: Rules) -> None:
    state = added(0)
    for fact in sequence:
        old, state = state, apply(state, fact, rules).state
        if isinstance(fact, Probe) and state.prober != old.prober:
            assert old.due(fact.at)
            assert state.status is Status.PROBING
            assert fact.at >= old.probe_until


@given(st.lists(facts, max_size=40), some_rules, times)
def test_what_is_shown_and_given_back_changes_nothing(sequence: list[Fact], rules: Rules, now: float) -> None:
    state = after(*sequence, rules=rules)
    assert given_state(state, shown(state), now, rules) is state


@given(
    st.lists(facts, max_size=20),
    st.builds(GivenHealth, up=st.booleans(), failcount=st.integers(0, 9), lastfail=st.integers(0, 9).map(float)),
)
def test_health_that_is_given_is_what_is_shown(sequence: list[Fact], health: GivenHealth) -> None:
    state = given_state(after(*sequence), health, 500, RULES)
    assert shown(state).up == health.up
    if health.up or health.lastfail:
        assert shown(state) == health


@given(st.lists(facts, max_size=40), some_rules, times, times)
def test_looking_at_what_is_over_is_what_writing_it_is(
    sequence: list[Fact], rules: Rules, at: float, wall: float
) -> None:
    states = {"p": after(*sequence, rules=rules)}
    pools, seen = as_of((), states, at, wall)
    assert (pools, seen["p"]) == ((), apply(states["p"], Expire(at, wall), rules).state)
    assert as_of((), seen, at + 1, wall) == ((), seen)


# ── other forms ───────────────────────────────────────────────────────────────────────────────


def test_up_false_is_by_hand_without_a_lastfail_and_a_failure_with_one() -> None:
    manual = given_state(added(0), GivenHealth(up=False), 5, RULES)
    assert manual.status is Status.MANUAL
    automatic = given_state(added(0), GivenHealth(up=False, lastfail=1e9), 5, RULES)
    assert automatic.status is Status.FAILED
    assert automatic.due(15)


def test_health_is_forgotten_at_a_reboot_and_what_a_person_did_is_kept() -> None:
    assert rebooted(by_hand()).status is Status.MANUAL
    told = rebooted(after(Down(1, "why", "jane", 1e9)))
    assert (told.status, told.reason, told.by, told.until) == (Status.MANUAL, "by hand: why", "jane", 1e9)
    for state in (failed(1e6), probing(1e6 + 99), after(failure(1e6))):
        assert rebooted(state) == HostState()


def test_a_healthy_record_takes_a_few_bytes() -> None:
    assert len(encode_state(added(12345.678))) < 40


@pytest.mark.parametrize("data", [b"", b"[]", b'{"status":"sideways"}', b'{"failcount":"x"}', b"\xff"])
def test_a_damaged_record_is_a_format_error(data: bytes) -> None:
    with pytest.raises(StoreFormatError):
        decode_state(data)


def test_the_rules_of_a_pool_are_in_seconds() -> None:
    options: dict[str, Any] = {"p": {"max_fails": 5, "failed_timeout": "250ms", "failed_timeout_max": "1m"}}
    (pool,) = pools_from_dicts(options).pools
    assert Rules.of(pool) == Rules(max_fails=5, failed_timeout_s=0.25, failed_timeout_max_s=60)
