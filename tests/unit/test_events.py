"""Who hears what of hosts that come and go, and when."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from resty_upstream import HostEvent, NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, open_upstream, open_workers, refused, take_down, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"hosts": hosts("a")}}


def listen(*upstreams: Upstream) -> list[str]:
    """What all of them hear, in order: ``host_down a (why)``."""
    heard: list[str] = []

    def note(event: HostEvent) -> None:
        heard.append(f"{event.name} {event.host.id} ({event.reason})")

    for upstream in upstreams:
        upstream.bind("host_up", note)
        upstream.bind("host_down", note)
    return heard


def test_a_transition_is_heard_once_across_all_workers(clock: FakeClock) -> None:
    workers = open_workers(3, ONE, clock)
    heard = listen(*workers)
    take_down(workers[0], "a")
    for worker in workers:
        visit(worker, {})
    assert heard == ["host_down a (ECONNREFUSED)", "host_up a (answered again)"]


def test_a_probe_that_succeeds_is_heard(clock: FakeClock) -> None:
    first, second = open_workers(2, ONE, clock)
    take_down(first, "a")
    heard = listen(first, second)
    clock.advance(12)
    visit(second)
    assert heard == ["host_up a (probe succeeded)"]


def test_an_event_tells_what_happened_to_whom() -> None:
    upstream = open_upstream(ONE, id="backends")
    events: list[HostEvent] = []
    upstream.bind("host_down", events.append)
    UpstreamAPI(upstream).down_host("p", "a")
    (event,) = events
    assert (event.name, event.upstream, event.reason) == ("host_down", "backends", "by hand")
    assert (event.pool.id, event.host.id, event.host.host) == ("p", "a", "a.test")
    assert event.at > 1e9
    with pytest.raises(AttributeError):
        event.reason = "another"


def test_changes_by_hand_are_heard_and_only_real_ones() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    api, heard = UpstreamAPI(upstream), listen(upstream)
    for _ in range(2):
        api.down_host("p", "a")
    for _ in range(2):
        api.up_host("p", "a")
    api.set_weight("p", "a", 5)
    api.remove_host("p", "b")
    api.add_host("p", id="c", host="c.test", up=False)
    upstream.save_pools(upstream.get_pools())
    assert heard == ["host_down a (by hand)", "host_up a (by hand)"]


def test_health_that_save_pools_changes_is_heard() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    heard = listen(upstream)
    pools = upstream.get_pools()
    pools["p"]["hosts"]["b"]["up"] = False
    upstream.save_pools(pools)
    pools["p"]["hosts"]["b"]["up"] = True
    upstream.save_pools(pools)
    assert heard == ["host_down b (by hand)", "host_up b (by hand)"]


def test_revived_hosts_are_heard(clock: FakeClock) -> None:
    upstream = open_upstream(ONE, clock)
    take_down(upstream, "a")
    heard = listen(upstream)
    upstream.revive_hosts()
    clock.advance(12)
    upstream.revive_hosts()
    upstream.revive_hosts()
    assert heard == ["host_up a (revived)"]


def test_an_event_comes_after_its_change_and_outside_every_lock() -> None:
    """A listener sees the change, may make others, and may connect."""
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}})
    api = UpstreamAPI(upstream)
    seen: list[Any] = []

    def react(event: HostEvent) -> None:
        seen.append(health(upstream, event.host.id)["up"])
        seen.append(visit(upstream))
        api.set_weight("p", "b", 7)

    upstream.bind("host_down", react)
    api.down_host("p", "a")
    assert seen == [False, ["b"]]
    assert upstream.get_pools()["p"]["hosts"]["b"]["weight"] == 7


def test_a_listener_that_raises_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    upstream = open_upstream(ONE)

    def broken(event: HostEvent) -> None:
        raise RuntimeError("broken listener")

    upstream.bind("host_down", broken)
    heard = listen(upstream)
    UpstreamAPI(upstream).down_host("p", "a")
    assert heard == ["host_down a (by hand)"]
    assert not health(upstream, "a")["up"]
    assert "broken listener" in caplog.text


def test_listeners_are_called_in_the_order_in_which_they_were_bound() -> None:
    upstream, heard = open_upstream(ONE), list[int]()
    for number in range(3):
        upstream.bind("host_down", lambda _event, number=number: heard.append(number))
    UpstreamAPI(upstream).down_host("p", "a")
    assert heard == [0, 1, 2]


def test_each_attempt_of_this_process_is_heard_when_it_is_over() -> None:
    first, second = open_workers(2, {"p": {"hosts": hosts("a", "b")}})
    heard: list[str] = []
    first.bind("attempt", lambda attempt: heard.append(f"{attempt.host.id} {attempt.outcome}"))
    while len(heard) < 2:
        visit(first, {"a": refused})
    assert heard[-2:] == ["a failed", "b ok"]
    heard.clear()
    visit(second)
    with pytest.raises(LookupError):
        visit(first, {"a": LookupError, "b": LookupError})
    assert [outcome.partition(" ")[2] for outcome in heard] == ["ignored"]


async def _dial(_host: str, _port: int, _timeout_s: float) -> bool:
    return True


def test_attempts_of_every_way_to_connect_are_heard_in_order() -> None:
    upstream, heard = open_upstream(ONE), list[str]()
    upstream.bind("attempt", lambda attempt: heard.append(repr(attempt)))
    upstream.connect(lambda _host, _port, _timeout_s: True)
    asyncio.run(upstream.aconnect(_dial))
    with upstream.context() as context:
        visit(context)
    assert heard == ["<Attempt p/a ok>"] * 3


def test_a_request_that_no_host_is_left_for_is_heard_once_with_its_attempts() -> None:
    upstream, heard = open_upstream(ONE, id="backends"), list[NoHostAvailable]()
    upstream.bind("exhausted", heard.append)
    error = visit_in_vain(upstream, {"a": refused})
    assert heard == [error]
    assert [attempt.host.id for attempt in error.attempts] == ["a"]


def test_a_listener_that_raises_does_a_request_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    upstream, heard = open_upstream(ONE), list[str]()

    def broken(_event: object) -> None:
        raise RuntimeError("broken listener")

    upstream.bind("attempt", broken)
    upstream.bind("exhausted", broken)
    upstream.bind("attempt", lambda attempt: heard.append(attempt.outcome))
    assert visit(upstream) == ["a"]
    visit_in_vain(upstream, {"a": refused})
    assert heard == ["ok", "failed"]
    assert caplog.text.count("RuntimeError: broken listener") == 3


def test_an_event_that_does_not_exist_is_a_value_error_that_names_those_that_do() -> None:
    with pytest.raises(
        ValueError, match="unknown event 'host_sideways': use one of host_up, host_down, attempt, exhausted"
    ):
        open_upstream(ONE).bind("host_sideways", print)


def test_what_cannot_be_called_cannot_be_bound() -> None:
    with pytest.raises(TypeError, match="must be callable, not str"):
        open_upstream(ONE).bind("host_up", "print")


def test_a_transition_is_logged_once_with_keys_for_machines(caplog: pytest.LogCaptureFixture) -> None:
    first, second = open_workers(2, ONE)
    with caplog.at_level(logging.INFO, "resty_upstream"):
        take_down(first, "a")
        for _ in range(3):
            try:
                visit(second, {"a": refused})
            except ConnectionError:
                pass
    (record,) = caplog.records
    assert record.name == "resty_upstream.failover"
    assert record.getMessage() == "upstream.host_down: pool p, host a (ECONNREFUSED)"
    assert {name: value for name, value in vars(record).items() if name.startswith("upstream_")} == {
        "upstream_event": "host_down",
        "upstream_id": "default",
        "upstream_pool": "p",
        "upstream_host": "a",
        "upstream_reason": "ECONNREFUSED",
    }
