"""Balancing methods: the order and the shares in which hosts are picked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resty_upstream import InvalidConfig, MethodNotFound, Upstream, UpstreamAPI, register_method
from resty_upstream.methods import (
    Candidate,
    ConsistentHash,
    Factory,
    Method,
    RandomChoice,
    RoundRobin,
    Setting,
    find_method,
    is_registered,
    shares,
    smooth_cycle,
)
from tests.helpers import hosts, open_upstream, visit

SECRET = b"0123456789abcdef"
METHODS: list[Factory] = [RoundRobin, RandomChoice, ConsistentHash]


@dataclass(eq=False)
class Stub:
    """A host as a method sees it."""

    id: str
    weight: int = 0
    available: bool = True


def stubs(*weights: int) -> list[Stub]:
    return [Stub(chr(ord("a") + n) if n < 26 else f"h{n}", weight) for n, weight in enumerate(weights)]


def build(
    factory: Factory, hosts: Sequence[Candidate], *, seed: int = 7, previous: Method | None = None
) -> Method:
    return factory(hosts, Setting(Random(seed), SECRET, previous))


def picks(method: Method, count: int) -> list[str]:
    return [host.id for _ in range(count) if (host := method.pick(None, ()))]


def assignment(hosts: Sequence[Candidate], count: int = 400, tried: Sequence[Candidate] = ()) -> dict[str, str]:
    """Which host each of some keys goes to."""
    method = build(ConsistentHash, hosts)
    picked = {f"key-{n}": method.pick(f"key-{n}", tried) for n in range(count)}
    return {key: host.id for key, host in picked.items() if host}


def nginx_cycle(weights: Sequence[int]) -> list[int]:
    """One cycle of ngx_http_upstream_round_robin.c, word for word."""
    current = [0] * len(weights)
    cycle = []
    for _ in range(sum(weights)):
        best = -1
        for index, weight in enumerate(weights):
            current[index] += weight
            if best < 0 or current[index] > current[best]:
                best = index
        current[best] -= sum(weights)
        cycle.append(best)
    return cycle


some_hosts = st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=9).map(
    lambda parts: [Stub(f"h{n}", weight, available) for n, (weight, available) in enumerate(parts)]
)


# ── all methods ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("factory", METHODS)
@given(data=st.data(), hosts=some_hosts, key=st.none() | st.text(max_size=5) | st.binary(max_size=5))
def test_a_picked_host_is_available_and_was_not_tried(
    factory: Factory, data: st.DataObject, hosts: list[Stub], key: str | bytes | None
) -> None:
    tried = set(data.draw(st.lists(st.sampled_from(hosts))) if hosts else [])
    takes_part = {host for host, _ in shares(hosts)} - tried
    method = build(factory, hosts)
    for _ in range(10):
        picked = method.pick(key, tried)
        assert (picked in takes_part) if takes_part else picked is None


@pytest.mark.parametrize("factory", METHODS)
@given(hosts=some_hosts)
def test_one_request_is_offered_every_host_that_takes_part_once(factory: Factory, hosts: list[Stub]) -> None:
    method, tried = build(factory, hosts), set[Candidate]()
    while picked := method.pick("key", tried):
        assert picked not in tried
        tried.add(picked)
    assert tried == {host for host, _ in shares(hosts)}


@pytest.mark.parametrize("factory", METHODS)
def test_hosts_of_weight_0_get_nothing_while_one_with_a_weight_is_available(factory: Factory) -> None:
    method = build(factory, stubs(0, 3, 0))
    assert {host.id for n in range(50) if (host := method.pick(f"{n}", ()))} == {"b"}


@pytest.mark.parametrize("factory", METHODS)
def test_hosts_of_weight_0_serve_when_none_with_a_weight_is_available(factory: Factory) -> None:
    spare, weighted = stubs(0, 3)
    weighted.available = False
    assert build(factory, [spare, weighted]).pick("key", ()) is spare


@pytest.mark.parametrize("factory", METHODS)
def test_a_pool_without_hosts_picks_none(factory: Factory) -> None:
    assert build(factory, []).pick("key", ()) is None


# ── round robin ───────────────────────────────────────────────────────────────────────────────


def test_weights_5_1_1_come_in_the_order_of_nginx() -> None:
    method = build(RoundRobin, stubs(5, 1, 1))
    twice = "".join(picks(method, 14))
    assert "aabacaa" in twice


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_cycle_is_the_one_of_nginx(weights: list[int]) -> None:
    cycle, expected = smooth_cycle(weights), nginx_cycle(weights)
    assert cycle * (len(expected) // len(cycle)) == expected


@given(st.lists(st.sampled_from([1, 1, 2, 5]), min_size=1, max_size=12))
def test_a_cycle_of_hosts_with_equal_weights_is_the_one_of_nginx(weights: list[int]) -> None:
    cycle, expected = smooth_cycle(weights), nginx_cycle(weights)
    assert cycle * (len(expected) // len(cycle)) == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers())
def test_hosts_are_picked_in_the_cycle_of_nginx_wherever_it_begins(weights: list[int], seed: int) -> None:
    order = picks(build(RoundRobin, stubs(*weights), seed=seed), 2 * sum(weights))
    expected = [stubs(*weights)[index].id for index in nginx_cycle(weights)]
    assert any(order[begin : begin + len(expected)] == expected for begin in range(len(expected)))


@given(hosts=some_hosts, seed=st.integers(), skipped=st.integers(0, 50))
def test_each_cycle_gives_every_host_exactly_its_weight_wherever_it_begins(
    hosts: list[Stub], seed: int, skipped: int
) -> None:
    method = build(RoundRobin, hosts, seed=seed)
    picks(method, skipped)
    expected = {host.id: weight for host, weight in shares(hosts)}
    assert Counter(picks(method, sum(expected.values()))) == expected


@given(st.lists(st.integers(1, 900), min_size=2, max_size=8), st.integers())
def test_weights_in_the_hundreds_are_exact_too(weights: list[int], seed: int) -> None:
    method = build(RoundRobin, stubs(*weights), seed=seed)
    expected = {host.id: host.weight for host in stubs(*weights)}
    assert Counter(picks(method, sum(weights))) == expected


@settings(max_examples=40)
@given(st.lists(st.integers(1, 1_000_000), min_size=2, max_size=20), st.integers())
def test_shares_of_a_huge_cycle_are_within_a_percent_and_every_host_appears(weights: list[int], seed: int) -> None:
    method = build(RoundRobin, stubs(*weights), seed=seed)
    count = 10_100  # a little more than the longest cycle of so few hosts
    got = Counter(picks(method, count))
    for host in stubs(*weights):
        assert got[host.id] > 0
        assert got[host.id] / count == pytest.approx(host.weight / sum(weights), abs=0.01)


@pytest.mark.parametrize(
    "weights",
    [[9999, 1], [9999] + [1] * 999, [1_000_000] * 999 + [999_999], list(range(999_001, 1_000_001))],
    ids=["9999:1", "9999 and 999 of 1", "a million each but one", "1,000 different"],
)
def test_huge_cycles_are_bounded_and_leave_no_host_out(weights: list[int]) -> None:
    method = build(RoundRobin, stubs(*weights))
    seen: set[str] = set()
    for _ in range(150 * len(weights) + 12_000):
        host = method.pick(None, ())
        assert host
        seen.add(host.id)
        if len(seen) == len(weights):
            return
    pytest.fail(f"{len(weights) - len(seen)} of {len(weights)} hosts did not appear")


def test_a_host_that_is_rarely_due_is_spread_and_does_not_come_in_a_row() -> None:
    order = picks(build(RoundRobin, stubs(9999, 5000)), 15_000)
    longest, run = 0, 0
    for host_id in order:
        run = run + 1 if host_id == "b" else 0
        longest = max(longest, run)
    assert longest == 1


def test_freshly_started_workers_begin_at_different_hosts() -> None:
    first = {build(RoundRobin, stubs(1, 1, 1, 1), seed=seed).pick(None, ()).id for seed in range(40)}
    assert first == {"a", "b", "c", "d"}


def test_the_position_survives_a_change_of_the_hosts() -> None:
    hosts = stubs(1, 1, 1)
    method = build(RoundRobin, hosts, seed=3)
    order = picks(method, 3)
    again = build(RoundRobin, hosts, seed=99, previous=method)
    assert picks(again, 3) == order


def test_the_position_of_hash_without_a_key_survives_a_change_too() -> None:
    hosts = stubs(1, 1, 1)
    method = build(ConsistentHash, hosts, seed=3)
    order = picks(method, 3)
    assert picks(build(ConsistentHash, hosts, seed=99, previous=method), 3) == order


# ── random ────────────────────────────────────────────────────────────────────────────────────


def test_random_obeys_the_weights() -> None:
    got = Counter(picks(build(RandomChoice, stubs(1, 2, 7)), 20_000))
    for host_id, weight in {"a": 1, "b": 2, "c": 7}.items():
        assert got[host_id] / 20_000 == pytest.approx(weight / 10, abs=0.02)


def test_random_obeys_the_weights_of_those_not_tried() -> None:
    one, two, seven = stubs(1, 2, 7)
    method = build(RandomChoice, [one, two, seven])
    got = Counter(host.id for _ in range(9000) if (host := method.pick(None, {seven})))
    assert got["b"] / 9000 == pytest.approx(2 / 3, abs=0.03)


# ── hash ──────────────────────────────────────────────────────────────────────────────────────

hash_weights = st.lists(st.integers(1, 1000), min_size=2, max_size=7) | st.lists(
    st.sampled_from([0, 1, 5]), min_size=2, max_size=7
)


@settings(max_examples=50)
@given(weights=hash_weights, data=st.data())
def test_hash_moves_only_the_keys_of_the_host_that_goes(weights: list[int], data: st.DataObject) -> None:
    """Removed, down, or failed on by this request: for the keys of the others it is all one."""
    hosts = stubs(*weights)
    gone = data.draw(st.sampled_from(hosts))
    before = assignment(hosts)
    left = [host for host in hosts if host is not gone]
    removed = assignment(left)
    down = assignment([replace(host, available=host is not gone) for host in hosts])
    assert removed == down
    for key, host_id in before.items():
        assert host_id == gone.id or removed[key] == host_id
    if any(host.weight for host in left):
        assert assignment(hosts, tried=[gone]) == removed


@settings(max_examples=50)
@given(weights=hash_weights, data=st.data())
def test_hash_moves_keys_to_and_from_a_host_of_changed_weight_only(
    weights: list[int], data: st.DataObject
) -> None:
    hosts = [replace(host, weight=max(1, host.weight)) for host in stubs(*weights)]
    index = data.draw(st.integers(0, len(hosts) - 1))
    changed = [*hosts]
    changed[index] = replace(hosts[index], weight=data.draw(st.integers(1, 1000)))
    before, now = assignment(hosts), assignment(changed)
    for key in before:
        assert before[key] == now[key] or hosts[index].id in (before[key], now[key])


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 3], [10, 10], [1, 9], [100, 50, 850], [0, 0, 0, 0]])
def test_hash_obeys_the_weights_roughly(weights: list[int]) -> None:
    got = Counter(assignment(stubs(*weights), 8000).values())
    parts = shares(stubs(*weights))
    total = sum(weight for _, weight in parts)
    for host, weight in parts:
        assert got[host.id] / 8000 == pytest.approx(weight / total, rel=0.3)


def test_hash_gives_a_key_as_text_and_as_bytes_the_same_host() -> None:
    method = build(ConsistentHash, stubs(1, 1, 1, 1))
    assert all(method.pick(f"ü{n}", ()) is method.pick(f"ü{n}".encode(), ()) for n in range(50))


def test_hash_takes_any_text_as_a_key() -> None:
    method = build(ConsistentHash, stubs(1, 1))
    assert all(method.pick(key, ()) for key in ["", "\ud800", "\x00", "x" * 100_000, b"", b"\xff"])


def test_hash_without_a_key_is_round_robin() -> None:
    method = build(ConsistentHash, stubs(5, 1, 1))
    assert "aabacaa" in "".join(picks(method, 14))


def test_hash_of_another_secret_is_another_assignment() -> None:
    hosts = stubs(1, 1, 1, 1)
    other = ConsistentHash(hosts, Setting(Random(7), b"fedcba9876543210", None))
    moved = sum(other.pick(key, ()).id != host_id for key, host_id in assignment(hosts).items())
    assert moved > 200


_IN_ANOTHER_PROCESS = """
import sys
from resty_upstream import Upstream
upstream = Upstream(sys.argv[1])
print("".join(upstream.connect(lambda host, port, timeout_s: host, key=f"key-{n}").client[0] for n in range(200)))
"""


def test_hash_gives_a_key_the_same_host_in_every_process(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store/upstreams.db"
    upstream = Upstream(url)
    upstream.configure({"p": {"method": "hash", "hosts": hosts("a", "b", "c", "d")}})
    here = "".join(visit(upstream, key=f"key-{n}")[0] for n in range(200))
    for seed in ("0", "4242"):
        there = subprocess.run(
            [sys.executable, "-c", _IN_ANOTHER_PROCESS, url],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here
    upstream.store.close()


def test_hash_takes_only_its_own_keys_from_a_host_taken_down_or_removed_at_run_time() -> None:
    upstream = open_upstream({"p": {"method": "hash", "hosts": hosts("a", "b", "c", weight=3)}})
    api = UpstreamAPI(upstream)

    def where() -> list[str]:
        return [visit(upstream, key=f"key-{n}")[0] for n in range(300)]

    before = where()
    api.down_host("p", "b")
    down = where()
    api.up_host("p", "b")
    assert where() == before
    api.remove_host("p", "b")
    assert where() == down
    assert all(old in ("b", new) for old, new in zip(before, down, strict=True))
    assert "b" not in down


# ── the registry ──────────────────────────────────────────────────────────────────────────────


class AlwaysLast:
    """A method of a user's own: the last host."""

    uses_key = False

    def __init__(self, hosts: Sequence[Candidate], _setting: Setting) -> None:
        self._hosts = hosts

    def pick(self, _key: object, tried: object) -> Candidate | None:
        left = [host for host in self._hosts if host.available and host not in tried]
        return left[-1] if left else None


def test_a_users_own_method_balances_a_pool() -> None:
    register_method("always_last", AlwaysLast)
    upstream = open_upstream({"p": {"method": "always_last", "hosts": hosts("a", "b", "c")}})
    assert [visit(upstream) for _ in range(3)] == [["c"]] * 3


def test_a_method_that_nobody_registered_is_refused_with_those_that_there_are() -> None:
    assert not is_registered("fair")
    with pytest.raises(
        MethodNotFound, match=r"^method must be one of .*hash, least_conn, p2c, random, round_robin, not 'fair'$"
    ):
        find_method("fair")


@pytest.mark.parametrize(("name", "factory"), [("", RoundRobin), (5, RoundRobin), ("mine", None), ("mine", "x")])
def test_what_cannot_be_registered_is_refused(name: object, factory: object) -> None:
    with pytest.raises(InvalidConfig):
        register_method(name, factory)
    assert not is_registered("mine")
