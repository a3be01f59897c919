"""Until when something holds: what may be given, and how it is shown."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import InvalidConfig
from resty_upstream.moments import parse_until, shown_moment
from resty_upstream.testing import FakeClock
from tests.unit import strategies

NOW = 1_795_694_400.0
DAY = 86_400


def test_without_an_end_there_is_none() -> None:
    assert parse_until(None, "until", NOW) == 0


@pytest.mark.parametrize(
    ("value", "in_s"),
    [
        ("30m", 1800),
        ("2h", 7200),
        (" 1.5 s ", 1.5),
        (timedelta(days=1), DAY),
        (NOW + 5, 5),
        (int(NOW) + 5, 5),
        (datetime.fromtimestamp(NOW + 60, UTC), 60),
        (datetime.fromtimestamp(NOW + 60, timezone(timedelta(hours=-7))), 60),
    ],
)
def test_an_end_is_a_moment_or_how_long_from_now(value: object, in_s: float) -> None:
    assert parse_until(value, "until", NOW) == NOW + in_s


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (datetime(2027, 1, 1), "it has no time zone, which value.astimezone() gives it"),
        (NOW, "that is over"),
        (1800, "that is over"),
        (timedelta(), "that is over"),
        ("0s", "it is no duration"),
        (-timedelta(1), "that is over"),
        (datetime.fromtimestamp(NOW - 1, UTC), "that is over"),
        (datetime.min.replace(tzinfo=UTC), "that is over"),
        (datetime.max.replace(tzinfo=UTC), "that is too far away"),
        (NOW * 1000, "that is too far away"),
        (math.inf, "that is too far away"),
        (timedelta.max, "that is too far away"),
        (10**400, "int too large to convert to float"),
        (math.nan, "it is no time"),
        ("30", "it has no unit"),
        ("15:00", "it has no unit"),
        ("", "it has no unit"),
        ("nan", "it is no duration"),
        ("tomorrow", "it is no duration"),
        (True, "it is a bool"),
        (b"30m", "it is a bytes"),
        ([], "it is a list"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(value: object, why: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_until(value, "until", NOW)
    (problem,) = caught.value.problems
    assert problem.startswith("until must be a time to come, within a year: a datetime with a time zone, ")
    assert problem.endswith(f": {why}")


@given(strategies.json_like | st.datetimes() | st.timedeltas())
def test_whatever_is_given_is_a_time_within_a_year_or_refused(value: object) -> None:
    try:
        moment = parse_until(value, "until", NOW)
    except InvalidConfig:
        return
    assert moment == 0 if value is None else NOW < moment <= NOW + 366 * DAY


def test_a_moment_is_shown_in_local_time_with_the_day_where_it_is_another(wall: FakeClock) -> None:
    now = wall()
    assert shown_moment(now, now) == "13:00"
    assert shown_moment(now + 3661, now) == "14:01:01"
    assert shown_moment(now + 11 * 3600, now) == "2026-11-27 00:00"
    assert shown_moment(now - DAY, now) == "2026-11-25 13:00"


@given(st.floats(), st.floats(0, 1e12))
def test_no_moment_of_a_damaged_record_breaks_who_looks_at_it(moment: float, now: float) -> None:
    assert shown_moment(moment, now)
