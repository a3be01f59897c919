"""What the page says."""

from __future__ import annotations

import pytest

from resty_upstream import UpstreamAPI
from resty_upstream.status import status
from resty_upstream.status.words import (
    HostWords,
    clock,
    host_words,
    milliseconds,
    notices,
    number,
    percent,
    state_of,
    title,
)
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_upstream, take_down


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0"), (0.001, "<1"), (0.5, "50"), (0.996, ">99"), (1, "100"), (1 / 3, "33")]
)
def test_what_is_little_is_not_called_nothing(part: float, text: str) -> None:
    assert percent(part) == f"{text}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (99_999, "99,999"), (123_456, "123.5k"), (4_560_000, "4.56M"), (10**12, "1000G")]
)
def test_great_numbers_are_short(count: int, text: str) -> None:
    assert number(count) == text


def test_milliseconds_have_the_digits_that_matter() -> None:
    assert [milliseconds(s) for s in (0.00044, 0.012, 1.2)] == ["0.4", "12", "1,200"]


def test_another_day_is_named() -> None:
    noon = 1_795_694_400.0
    assert len(clock(noon, noon)) == len("12:00:00")
    assert clock(noon - 3 * 86_400, noon).startswith("Nov ")


def words(upstream: object, host_id: str) -> tuple[str, HostWords]:
    found = status({"u": upstream})  # type: ignore[dict-item]  # the tests of the page are not typed through
    host = next(host for host in found.upstreams[0].pools[0].hosts if host.id == host_id)
    return state_of(host), host_words(host, found.at)


def test_each_state_has_a_word_and_the_sentence_why_it_gets_nothing(clock: FakeClock) -> None:
    pool = {**hosts("a", "b", "c", "d", weight=10), **hosts("e", weight=0)}
    upstream = open_upstream({"p": {"hosts": pool}}, clock)
    take_down(upstream, "b")
    api = UpstreamAPI(upstream)
    api.down_host("p", "c", reason="new kernel")
    api.set_weight("p", "d", 0)
    found = {host_id: words(upstream, host_id) for host_id in "abcde"}
    assert [state for state, _ in found.values()] == ["up", "failed", "manual", "drained", "spare"]
    assert [said.state for _, said in found.values()] == ["up", "failed", "down", "drained", "spare"]
    assert found["a"][1].detail == ""
    assert "ECONNREFUSED" in found["b"][1].detail
    assert "new kernel" in found["c"][1].detail
    assert "weight 0" in found["d"][1].detail
    assert found["b"][1].failures.startswith("3 in a row: ")


def test_the_title_says_what_is_wrong(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    assert title(status({"u": upstream})) == "Upstreams"
    take_down(upstream, "b")
    assert title(status({"u": upstream})) == "1 failed · Upstreams"


def test_nothing_available_is_said_loudly() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    UpstreamAPI(upstream).down_host("p", "a")
    assert notices(status({"u": upstream}).upstreams[0]) == ["No host is available."]
