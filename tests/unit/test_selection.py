"""What one request may use, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from resty_upstream import Pool, register_method
from resty_upstream.methods import Candidate, Method, RoundRobin, Setting
from resty_upstream.model import Host, Pools, Sticky, record_key
from resty_upstream.selection import LAST_RESORT_ATTEMPTS, Choice, Snapshot, Target, build, choices, update
from resty_upstream.state import HostState, Status

NOW = 100.0
UP = HostState()
MANUAL = HostState(status=Status.MANUAL)
DUE = HostState(status=Status.FAILED, failed_at=50, down_until=NOW)


def waiting(failed_at: float = 90) -> HostState:
    return HostState(status=Status.FAILED, failed_at=failed_at, down_until=NOW + 10)


def probed(until: float = NOW + 5) -> HostState:
    return HostState(status=Status.PROBING, failed_at=90, prober="someone", probe_until=until)


def snapshot(*pools: Pool, previous: Snapshot | None = None, seed: int = 7, **states: HostState) -> Snapshot:
    """A snapshot; the keyword arguments are the states of hosts, whose ids differ between pools here."""
    keys = {record_key(pool.id, host.id): host.id for pool in pools for host in pool.hosts}
    by_key = {key: states[host_id] for key, host_id in keys.items() if host_id in states}
    return build(
        pools,
        by_key,
        random=Random(seed),
        secret=b"s",
        previous=previous or Snapshot((), {}, ()),
    )


def pool(pool_id: str, *ids: str, weights: Iterable[int] = (), **options: Any) -> Pool:
    by_host = dict(zip(ids, weights, strict=False))
    hosts = tuple(Host(id=host_id, host=f"{host_id}.test", weight=by_host.get(host_id, 0)) for host_id in ids)
    return Pool(id=pool_id, hosts=hosts, **options)


def offered(
    snapshot: Snapshot,
    *,
    granted: bool = True,
    last_resort: bool = True,
    tried: Iterable[str] = (),
    session: Callable[[Pool], str | None] = lambda _pool: None,
) -> list[Choice]:
    return list(
        choices(
            snapshot,
            key=lambda _pool: None,
            tried={target for target in snapshot.targets.values() if target.id in set(tried)},
            now=lambda: NOW,
            claim=lambda target: f"lease on {target.id}" if granted else "",
            last_resort=last_resort,
            session=session,
        )
    )


def ids(found: Iterable[Choice]) -> list[str]:
    return [choice.target.id for choice in found]


# ── pools ─────────────────────────────────────────────────────────────────────────────────────


def test_pools_are_tried_by_priority_the_lowest_first() -> None:
    pools = [pool("x", "a", priority=10), pool("y", "b", priority=-1), pool("z", "c", priority=5)]
    assert ids(offered(snapshot(*pools))) == ["b", "c", "a"]


def test_pools_of_one_priority_are_tried_in_the_order_of_their_creation() -> None:
    assert ids(offered(snapshot(pool("z", "a"), pool("y", "b"), pool("x", "c")))) == ["a", "b", "c"]


def test_a_pool_that_is_down_is_passed_over_even_as_a_last_resort() -> None:
    pools = [pool("x", "a", "f", up=False), pool("y", "b")]
    assert ids(offered(snapshot(*pools, f=waiting()))) == ["b"]


def test_a_pool_without_hosts_is_passed_over() -> None:
    assert ids(offered(snapshot(pool("x"), pool("y", "b")))) == ["b"]


# ── probes ────────────────────────────────────────────────────────────────────────────────────


def test_a_failed_host_whose_time_is_over_comes_first_to_the_request_that_gets_the_lease() -> None:
    found = offered(snapshot(pool("x", "a", "b"), b=DUE))
    assert ids(found) == ["b", "a"]
    assert [choice.prober for choice in found] == ["lease on b", ""]


def test_a_request_that_is_refused_the_lease_does_not_try_the_failed_host() -> None:
    found = offered(snapshot(pool("x", "a", "b"), b=DUE), granted=False, last_resort=False)
    assert ids(found) == ["a"]


def test_a_probe_whose_lease_is_over_may_be_taken_over() -> None:
    over, running = (snapshot(pool("x", "a", "b"), b=probed(until)) for until in (NOW, NOW + 1))
    assert ids(offered(over, last_resort=False)) == ["b", "a"]
    assert ids(offered(running, last_resort=False)) == ["a"]


def test_a_failed_host_on_which_this_request_failed_is_not_probed_by_it() -> None:
    assert ids(offered(snapshot(pool("x", "a", "b"), b=DUE), tried=["b"])) == ["a"]


def test_the_probes_of_a_pool_in_reserve_wait_until_it_is_reached() -> None:
    found = offered(snapshot(pool("x", "a"), pool("y", "b", "c", priority=1), c=DUE))
    assert ids(found) == ["a", "c", "b"]


def test_a_failed_host_that_would_get_no_traffic_is_not_worth_a_probe() -> None:
    drained = pool("x", "a", "b", weights=[5, 0])
    assert ids(offered(snapshot(drained, b=DUE), last_resort=False)) == ["a"]
    assert ids(offered(snapshot(drained, a=MANUAL, b=DUE), last_resort=False)) == ["b"]


# ── sessions ──────────────────────────────────────────────────────────────────────────────────


def test_the_host_of_a_session_comes_first_before_any_probe() -> None:
    """Then the others as ever, each once."""
    stays = pool("x", "a", "b", "c", sticky=Sticky())
    found = offered(snapshot(stays, b=DUE), session=lambda _pool: "c")
    assert ids(found) == ["c", "b", "a"]
    assert [choice.prober for choice in found] == ["", "lease on b", ""]


def test_the_host_of_a_session_may_be_drained_but_not_down_nor_gone_nor_tried() -> None:
    stays = pool("x", "a", "b", weights=[5, 0], sticky=Sticky())
    drained = snapshot(stays)
    assert ids(offered(drained, session=lambda _pool: "b")) == ["b", "a"]
    assert ids(offered(drained, session=lambda _pool: "b", tried=["b"])) == ["a"]
    assert ids(offered(drained, session=lambda _pool: "gone")) == ["a", "b"]
    for state in (MANUAL, waiting(), DUE, probed()):
        assert ids(offered(snapshot(stays, b=state), session=lambda _pool: "b", last_resort=False)) == ["a"]


def test_a_session_is_asked_for_in_pools_that_are_sticky_alone() -> None:
    pools = pool("x", "a", "b"), pool("y", "c", "d", sticky=Sticky(), priority=1)
    asked = []

    def session(pool: Pool) -> str:
        asked.append(pool.id)
        return "d"

    assert ids(offered(snapshot(*pools), session=session))[2:] == ["d", "c"]
    assert asked == ["y"]


# ── the last resort ───────────────────────────────────────────────────────────────────────────


def test_when_no_host_is_left_the_failed_ones_are_tried_the_oldest_failure_first_and_three_at_most() -> None:
    states = {"a": waiting(95), "b": waiting(91), "c": waiting(93), "d": waiting(92), "e": MANUAL}
    found = offered(snapshot(pool("x", "a", "b", "e"), pool("y", "c", "d", priority=1), **states))
    assert ids(found) == ["b", "d", "c"]
    assert all(choice.last_resort and not choice.prober for choice in found)


def test_the_last_resort_comes_after_every_pool() -> None:
    found = offered(snapshot(pool("x", "a", "f"), pool("y", "b", priority=1), f=waiting()))
    assert [(choice.target.id, choice.last_resort) for choice in found] == [
        ("a", False),
        ("b", False),
        ("f", True),
    ]


def test_a_host_taken_down_by_hand_is_no_last_resort() -> None:
    assert offered(snapshot(pool("x", "a"), a=MANUAL)) == []


def test_a_host_that_another_request_is_probing_may_be_a_last_resort() -> None:
    assert ids(offered(snapshot(pool("x", "a"), a=probed()))) == ["a"]


def test_without_last_resort_failed_hosts_are_left_alone() -> None:
    assert offered(snapshot(pool("x", "a"), a=waiting()), last_resort=False) == []


# ── laws ──────────────────────────────────────────────────────────────────────────────────────

states = st.sampled_from([UP, UP, UP, MANUAL, DUE, waiting(80), waiting(90), probed(), probed(NOW)])


@st.composite
def situations(draw: st.DrawFn) -> tuple[Pools, dict[str, HostState], list[str]]:
    count = iter(range(100))
    pools = tuple(
        pool(
            f"p{number}",
            *[f"h{next(count)}" for _ in weights],
            weights=weights,
            priority=draw(st.integers(0, 2)),
            up=draw(st.booleans()) or number == 0,
            method=draw(st.sampled_from(["round_robin", "random", "hash"])),
            sticky=draw(st.sampled_from([None, Sticky()])),
        )
        for number, weights in enumerate(
            draw(st.lists(st.lists(st.sampled_from([0, 0, 1, 5]), max_size=5), max_size=4))
        )
    )
    all_ids = [host.id for pool in pools for host in pool.hosts]
    tried = draw(st.lists(st.sampled_from(all_ids), max_size=3)) if all_ids else []
    return pools, {host_id: draw(states) for host_id in all_ids}, tried


def rank(target: Target) -> int:
    return target.pool.priority


@given(situations(), st.booleans(), st.booleans(), st.sampled_from(["h0", "h1", "h2", "h3", None]))
def test_what_a_request_is_offered_always_obeys_the_rules(
    situation: tuple[Pools, dict[str, HostState], list[str]], granted: bool, last_resort: bool, home: str | None
) -> None:
    pools, by_id, tried = situation
    found = offered(
        snapshot(*pools, **by_id),
        granted=granted,
        last_resort=last_resort,
        tried=tried,
        session=lambda _pool: home,
    )
    targets = [choice.target for choice in found]
    resort = [choice.target for choice in found if choice.last_resort]
    regular = targets[: len(targets) - len(resort)]
    assert len(set(targets)) == len(targets), "a host is offered once"
    assert not {target.id for target in targets} & set(tried), "a host on which the request failed is not"
    assert all(target.pool.up for target in targets)
    assert all(target.state.status is not Status.MANUAL for target in targets)
    assert all(choice.last_resort or choice.prober or choice.target.available for choice in found)
    assert all(choice.target.state.due(NOW) for choice in found if choice.prober)
    assert targets[len(regular) :] == resort, "the last resort comes last"
    assert [rank(target) for target in regular] == sorted(rank(target) for target in regular)
    assert len(resort) <= (LAST_RESORT_ATTEMPTS if last_resort else 0)
    assert [target.state.failed_at for target in resort] == sorted(target.state.failed_at for target in resort)
    available = {h.id for p in pools if p.up for h in p.hosts if by_id[h.id] is UP} - set(tried)
    weighted = {h.id for p in pools for h in p.hosts if h.weight}
    assert available & weighted <= {target.id for target in regular}, "no host that could serve is left out"


@given(situations())
def test_every_available_host_is_offered_before_a_request_is_given_up(
    situation: tuple[Pools, dict[str, HostState], list[str]],
) -> None:
    """Spare ones too: a request for which all others failed is what they are for."""
    pools, by_id, tried = situation
    available = {h.id for p in pools if p.up for h in p.hosts if by_id[h.id] is UP} - set(tried)
    assert available <= set(ids(offered(snapshot(*pools, **by_id), tried=tried)))


# ── snapshots ─────────────────────────────────────────────────────────────────────────────────


def test_a_new_snapshot_takes_over_what_did_not_change() -> None:
    one, two = pool("x", "a", "b"), pool("y", "c")
    before = snapshot(one, two)
    now = snapshot(one, two, previous=before, c=waiting())
    assert now.targets[record_key("x", "a")] is before.targets[record_key("x", "a")]
    assert now.plans[0] is before.plans[0]
    assert now.plans[1] is not before.plans[1]


def seen(found: Snapshot) -> object:
    """All that a snapshot says of its hosts and pools."""
    targets = {key: (t.pool, t.host, t.state, t.available, t.due_at) for key, t in found.targets.items()}
    assert all(found.targets[t.key] is t for plan in found.plans for t in plan.hosts)
    plans = [(p.pool, [t.key for t in p.hosts], [t.key for t in p.failed]) for p in found.plans]
    return found.pools, targets, plans, found.untroubled and found.untroubled.pool.id


def picked(found: Snapshot) -> list[set[str]]:
    """What each pool's method picks."""
    return [{target.id for _ in range(7) if (target := plan.pick(lambda _pool: "k", ()))} for plan in found.plans]


@given(st.data())
def test_an_update_is_what_a_new_snapshot_would_be(data: st.DataObject) -> None:
    """Whatever hosts change, in pools that are up or down."""
    states = st.sampled_from([UP, waiting(), MANUAL])
    pools = [pool("x", "a", "b", "c"), pool("y", "d", "e", method="hash", priority=2), pool("z", "f", up=False)]
    first = {host.id: data.draw(states) for each in pools for host in each.hosts}
    before = snapshot(*pools, **first)
    changed = data.draw(st.dictionaries(st.sampled_from([*"abcdef", "gone"]), states))
    keys = {host.id: record_key(each.id, host.id) for each in pools for host in each.hosts}
    states_by_key = {keys.get(host_id, host_id): state for host_id, state in changed.items()}
    built = snapshot(
        *pools, seed=1, previous=before, **{**first, **{k: v for k, v in changed.items() if k in keys}}
    )
    updated = update(before, states_by_key, random=Random(1), secret=b"s")
    assert seen(updated) == seen(built)
    assert (updated is before) == (seen(built) == seen(before))
    assert picked(updated) == picked(built)


def test_a_change_of_one_host_leaves_the_others_as_they_are() -> None:
    """The same objects, with what the connectors made of their addresses; their pool is the new one."""
    before = snapshot(pool("x", "a", "b"))
    kept = before.targets[record_key("x", "a")]
    kept.parsed, kept.address = True, "parsed"
    changed = pool("x", "a", "b")
    changed = replace(changed, hosts=(changed.hosts[0], replace(changed.hosts[1], weight=7)))
    now = snapshot(changed, previous=before)
    assert now.targets[record_key("x", "a")] is kept
    assert now.targets[record_key("x", "b")].weight == 7
    assert {target.pool for target in now.targets.values()} == {changed}
    down = snapshot(changed, previous=now, a=waiting()).targets[record_key("x", "a")]
    assert (down.available, down.parsed, down.address) == (False, True, "parsed")


def test_a_change_of_its_options_is_seen_in_every_host_of_a_pool() -> None:
    before = snapshot(pool("x", "a", "b"))
    now = snapshot(pool("x", "a", "b", timeout=5), previous=before)
    assert [target.timeout_s for target in now.targets.values()] == [0.005, 0.005]
    assert not set(now.targets.values()) & set(before.targets.values())


def test_a_method_goes_on_where_it_was_when_a_host_comes_or_goes() -> None:
    def order(found: Snapshot) -> list[str]:
        return [target.id for _ in range(3) if (target := found.plans[0].pick(lambda _pool: None, ()))]

    before = snapshot(pool("x", "a", "b", "c"), seed=3)
    expected = order(before)
    assert order(snapshot(pool("x", "a", "b", "c"), previous=before, seed=4)) == expected


def test_a_method_is_told_of_the_one_before_it_only_if_that_was_of_the_same_name() -> None:
    told: list[Method | None] = []

    def factory(hosts: Sequence[Candidate], setting: Setting) -> Method:
        told.append(setting.previous)
        return RoundRobin(hosts, setting)

    register_method("telling", factory)
    first = snapshot(pool("x", "a", method="random"))
    second = snapshot(pool("x", "a", method="telling"), previous=first)
    snapshot(pool("x", "a", "b", method="telling"), previous=second)
    assert told == [None, second.plans[0].method]


def test_a_host_of_unknown_state_is_healthy() -> None:
    """A record that is missing must not take a host out of service."""
    assert ids(offered(snapshot(pool("x", "a")))) == ["a"]


def test_a_method_that_only_another_process_registered_is_served_by_round_robin() -> None:
    assert sorted(ids(offered(snapshot(pool("x", "a", "b", method="elsewhere"))))) == ["a", "b"]
