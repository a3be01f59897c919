"""What a person may do to a host, and what they are told first."""

from __future__ import annotations

import time

import pytest

from resty_upstream import HostNotFound, InvalidConfig, Upstream, UpstreamAPI, UpstreamNotFound
from resty_upstream.status import Order, status
from resty_upstream.status.actions import consequence, perform, read_until
from tests.helpers import hosts, open_upstream


@pytest.fixture
def upstream() -> Upstream:
    return open_upstream({"p": {"hosts": hosts("a", "b", weight=10)}, "dr": {"priority": 1, "hosts": hosts("d")}})


def order(do: str, host: str = "a", pool: str = "p", **more: str) -> Order:
    return Order(do, "u", pool, host, **more)


def told(upstream: Upstream, given: Order) -> str:
    seen = status({"u": upstream}).upstreams[0]
    found = seen.find(given.pool, given.host)
    assert found is not None
    return consequence(given, seen, *found).replace("\N{NO-BREAK SPACE}", " ")


def test_down_drain_weight_and_up_do_what_they_say(upstream: Upstream) -> None:
    def host() -> tuple[bool, int]:
        found = upstream.get_pools()["p"]["hosts"]["a"]
        return found["up"], found["weight"]

    for given, after in [
        (order("weight", weight="7"), (True, 7)),
        (order("drain"), (True, 0)),
        (order("down", reason="new kernel"), (False, 0)),
        (order("up"), (True, 0)),
    ]:
        said = perform({"u": upstream}, given, "alice")
        assert said.endswith(".")
        assert "a" in said
        assert host() == after
    assert {each.by for each in upstream.history()} == {"alice"}


def test_a_change_ends_when_it_was_said_to(upstream: Upstream) -> None:
    perform({"u": upstream}, order("down", until="2h"), "alice")
    assert upstream.get_pools()["p"]["hosts"]["a"]["until"] == pytest.approx(time.time() + 7200, abs=60)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (order("down", host="x"), HostNotFound),
        (order("down")._replace(upstream="x"), UpstreamNotFound),
        (order("down", until="soon"), InvalidConfig),
        (order("down", until="2020-01-01"), InvalidConfig),
        (order("weight", weight="-1"), InvalidConfig),
        (order("weight"), InvalidConfig),
        (order("down", reason="x" * 201), InvalidConfig),
    ],
)
def test_what_is_wrong_changes_nothing(upstream: Upstream, given: Order, error: type[Exception]) -> None:
    before = upstream.get_pools()
    with pytest.raises(error):
        perform({"u": upstream}, given, "alice")
    assert upstream.get_pools() == before


def test_an_order_names_one_of_the_actions() -> None:
    with pytest.raises(InvalidConfig, match="down, drain, weight, up"):
        Order.read({"do": "explode", "host": "a"})


NOON = time.mktime((2026, 11, 26, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("text", "after_s"), [("12:30", 1800), ("12:00", 86_400), ("11:00", 23 * 3600), ("2026-11-27 12:00", 86_400)]
)
def test_a_time_of_day_is_the_next_one(text: str, after_s: float) -> None:
    assert read_until(text, NOON) == NOON + after_s


def test_a_duration_is_left_to_the_api_and_nothing_is_never() -> None:
    assert read_until("30m", NOON) == "30m"
    assert read_until("", NOON) is None


def test_down_tells_what_remains(upstream: Upstream) -> None:
    assert told(upstream, order("down")) == "Remaining capacity of pool p: 50 % (now 100 %), 1 of 2 hosts."


def test_down_of_the_last_host_tells_who_takes_over(upstream: Upstream) -> None:
    UpstreamAPI(upstream).down_host("p", "b")
    assert told(upstream, order("down")) == "Nothing is left of pool p: its requests go to pool dr."
    UpstreamAPI(upstream).down_host("dr", "d")
    assert told(upstream, order("down")).endswith("no host of any pool is available, and requests fail.")


def test_a_host_that_cannot_be_drained_is_told(upstream: Upstream) -> None:
    given = order("drain", host="d", pool="dr")
    assert "take it down instead" in told(upstream, given)
    with pytest.raises(InvalidConfig, match="take it down instead"):
        perform({"u": upstream}, given, "alice")


def test_weight_tells_what_it_is_now(upstream: Upstream) -> None:
    assert told(upstream, order("weight")).startswith("Its weight is 10 of 20 together")
