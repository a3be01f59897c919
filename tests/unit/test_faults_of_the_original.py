"""Faults of lua-resty-upstream, each seen by running it, and each not to be repeated: a test per fault."""

from __future__ import annotations

import http.client
import json
import socket
from collections import Counter
from typing import Any

import pytest

from resty_upstream import HostEvent, Upstream, UpstreamAPI, model, state
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import (
    Peer,
    health,
    hosts,
    open_upstream,
    open_workers,
    read_head,
    refused,
    refusing,
    take_down,
    visit,
    visit_in_vain,
)


def served(upstream: Upstream, count: int, **options: Any) -> Counter[str]:
    return Counter(visit(upstream, **options)[-1] for _ in range(count))


@pytest.mark.parametrize("weights", [(1, 1, 5), (10, 10, 1), (5, 1, 1)])
def test_weights_are_wrong_for_three_hosts_and_weight_1_beside_10_and_10_starves(weights: tuple[int, ...]) -> None:
    table = {name: {"host": f"{name}.test", "weight": weight} for name, weight in zip("abc", weights, strict=True)}
    upstream = open_upstream({"p": {"hosts": table}})
    cycles = 100
    expected = {name: weight * cycles for name, weight in zip("abc", weights, strict=True)}
    assert served(upstream, cycles * sum(weights)) == expected


def test_all_weights_0_at_run_time_loop_for_ever() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", weight=1)}})
    for host_id in ("a", "b"):
        UpstreamAPI(upstream).set_weight("p", host_id, 0)
    assert served(upstream, 10) == {"a": 5, "b": 5}


def test_of_two_pools_of_one_priority_one_is_lost() -> None:
    upstream = open_upstream({})
    api = UpstreamAPI(upstream)
    for pool_id, host_id in (("second", "a"), ("first", "b")):
        api.create_pool(pool_id, priority=5)
        api.add_host(pool_id, id=host_id, host="x.test")
    assert visit(upstream, {"a": refused}) == ["a", "b"], "both, in the order of their creation"
    assert visit(upstream) == ["a"]


def test_removing_any_but_the_last_host_breaks_the_pool() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b", "c")}})
    UpstreamAPI(upstream).remove_host("p", "a")
    assert served(upstream, 10) == {"b": 5, "c": 5}
    UpstreamAPI(upstream).add_host("p", id="d", host="d.test")
    assert sorted(served(upstream, 3)) == ["b", "c", "d"], "and no lock is left behind"


def test_a_host_taken_down_by_hand_comes_back_after_a_late_failure(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    api = UpstreamAPI(upstream)
    in_flight = [next(upstream.attempts()) for _ in range(8)]
    clock.advance(1)
    api.down_host("p", "a")
    for number, attempt in enumerate(in_flight):
        if attempt.host.id == "a":
            with attempt:
                if number % 4 < 3:
                    raise refused()
    clock.advance(1e6)
    upstream.revive_hosts()
    assert served(upstream, 10) == {"b": 10}
    assert health(upstream, "a") == {"up": False, "failcount": 0, "lastfail": 0}


def test_success_never_clears_failures(clock: FakeClock) -> None:
    """Three blips in 110 s among 3,000 successes took a host down."""
    upstream = open_upstream({"p": {"failed_timeout": 300, "hosts": hosts("a")}}, clock)
    for request in range(3000):
        clock.advance(110 / 3000)
        if request % 1000 == 500:
            visit_in_vain(upstream, {"a": refused})
        else:
            visit(upstream)
    assert health(upstream, "a") == {"up": True, "failcount": 0, "lastfail": 0}


def test_all_json_is_decoded_per_request_and_post_process_takes_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    visit(upstream)

    def forbidden(*_args: object, **_options: object) -> None:
        raise AssertionError("a healthy request must not come here")

    for owner, name in (
        (MemoryStore, "read"),
        (MemoryStore, "transact"),
        (MemoryStore, "lease"),
        (model, "decode_config"),
        (state, "decode_state"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    for _ in range(50):
        with upstream.context():
            visit(upstream)


def test_every_worker_starts_at_host_1() -> None:
    workers = open_workers(40, {"p": {"hosts": hosts("a", "b", "c", "d")}})
    first = Counter(visit(worker)[0] for worker in workers)
    assert set(first) == {"a", "b", "c", "d"}


def test_with_all_hosts_down_no_attempt_is_made_and_the_last_error_is_lost() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    take_down(upstream, "a", "b")
    error = visit_in_vain(upstream, {"a": refused, "b": refused})
    assert sorted(attempt.host.id for attempt in error.attempts) == ["a", "b"]
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert visit(upstream)[-1] in "ab", "one that is back serves at once"


def post(connection: http.client.HTTPConnection) -> None:
    connection.request("POST", "/pay", b"amount=5")
    connection.getresponse()


def test_post_bodies_are_replayed_to_every_host() -> None:
    """What was sent is never sent to another host: failover is over when the connection stands."""
    received = []

    def swallow(connection: socket.socket) -> None:
        received.append(read_head(connection))

    with Peer(swallow) as first, Peer(swallow) as second, refusing() as dead:
        upstream = open_upstream(
            {
                "p": {"hosts": {"dead": dead}},
                "q": {"priority": 1, "hosts": {"a": first.options, "b": second.options}},
            }
        )
        connection, info = upstream.connect(http.client.HTTPConnection("service.test"))
        assert len(info.attempts) == 2, "a host that was never sent anything is passed over"
        with pytest.raises(ConnectionError):
            post(connection)
        connection.close()
    assert len(received) == 1


def test_there_is_no_deadline_for_all_attempts_together(clock: FakeClock) -> None:
    """Fifty dead hosts at 2 s each took 100 s."""
    upstream = open_upstream({"p": {"timeout": 2000, "hosts": hosts(*(f"h{n}" for n in range(50)))}}, clock)
    began = clock()

    def time_out() -> TimeoutError:
        clock.advance(2)
        return TimeoutError()

    visit_in_vain(upstream, {f"h{n}": time_out for n in range(50)})
    assert clock() - began <= 16


def test_revival_is_blind_and_at_full_weight(clock: FakeClock) -> None:
    workers = open_workers(4, {"p": {"hosts": hosts("a", "b")}}, clock)
    take_down(workers[0], "a")
    clock.advance(12)
    tried: Counter[str] = Counter()
    for _ in range(25):
        for worker in workers:
            tried.update(visit(worker, {"a": refused}))
    assert tried == {"a": 1, "b": 100}, "a single request finds out"


def test_events_come_inside_the_lock_before_the_save_and_not_at_all_for_changes_by_hand() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    api = UpstreamAPI(upstream)
    heard = []

    def listener(event: HostEvent) -> None:
        heard.append((event.name, event.host.id, health(upstream, event.host.id)["up"]))
        api.set_priority("p", len(heard))  # needs the lock

    upstream.bind("host_down", listener)
    upstream.bind("host_up", listener)
    take_down(upstream, "a")
    api.down_host("p", "b")
    api.up_host("p", "b")
    assert heard == [("host_down", "a", False), ("host_down", "b", False), ("host_up", "b", True)]


def test_one_host_of_ten_down_moves_the_keys_of_healthy_hosts() -> None:
    ids = [f"h{n}" for n in range(10)]
    upstream = open_upstream({"p": {"method": "hash", "hosts": hosts(*ids, weight=1)}})

    def where() -> dict[str, str]:
        return {f"k{n}": visit(upstream, key=f"k{n}")[0] for n in range(1000)}

    before = where()
    UpstreamAPI(upstream).down_host("p", "h4")
    after = where()
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {key for key in before if before[key] == "h4"}
    assert json.dumps(after).count('"h4"') == 0
