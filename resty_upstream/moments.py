"""Until when something holds that a person did: as it is given, and as it is shown.

Moments are seconds since 1970, of the wall clock, which is the one that people mean: "until 15:00" holds over a
reboot. Setting the machine's clock forward makes what was to end until then end at once, setting it back makes it
last longer; what has ended stays so.
"""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from typing import Final

from resty_upstream.errors import InvalidConfig, Problem
from resty_upstream.model import parse_duration_s, shown_value

Until = datetime | timedelta | float | str
"""A datetime with a time zone, seconds since 1970, or how long from now: a timedelta, or text like ``"30m"``."""

_FURTHEST_S: Final = 366 * 86_400
_WHAT: Final = (
    "a time to come, within a year: a datetime with a time zone, seconds since 1970, a timedelta, "
    "or text like '30m'"
)


def parse_until(value: object, path: str, wall: float) -> float:
    """``value``, an :data:`Until`, as seconds since 1970; 0 for None: without an end.

    :param wall: seconds since 1970, now.
    :raises InvalidConfig: naming ``path``, and what would be right.
    """
    if value is None:
        return 0.0
    try:
        moment = _moment(value, wall)
        if not wall < moment:
            raise ValueError("that is over" if moment <= wall else "it is no time")
        if moment > wall + _FURTHEST_S:
            raise ValueError("that is too far away")
    except (ValueError, OverflowError) as error:
        why = error.args[0]
        raise InvalidConfig(Problem(f"{path} must be {_WHAT}, not {shown_value(value)}: {why}")) from None
    return moment


def _moment(value: object, wall: float) -> float:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError("it has no time zone, which value.astimezone() gives it")
        return value.timestamp()
    if isinstance(value, timedelta):
        return wall + value.total_seconds()
    if isinstance(value, str):
        return wall + _duration_s(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"it is a {type(value).__name__}")


def _duration_s(text: str) -> float:
    if not text.strip()[-1:].isalpha():
        raise ValueError("it has no unit")
    try:
        return parse_duration_s(text, "it", bare="s")
    except InvalidConfig:
        raise ValueError("it is no duration") from None


def read_moment(text: str, wall: float) -> float:
    """A time as seconds since 1970: of a time of day the next, or ISO 8601; local where no zone is given.

    :param wall: seconds since 1970, now.
    :raises ValueError: when it is none.
    """
    hour, _, rest = text.partition(":")
    try:
        if _CLOCK.fullmatch(text):
            return _next(time.fromisoformat(f"{hour:0>2}:{rest}"), wall)
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"must be a time like 15:00, or like 2026-11-27T15:00, not {text!r}") from None


_CLOCK: Final = re.compile(r"\d{1,2}(:\d{2}){1,2}", re.ASCII)


def _next(clock: time, wall: float) -> float:
    """The next time at which clocks here show that."""
    today = datetime.fromtimestamp(wall).date()
    moments = (datetime.combine(today + timedelta(days=ahead), clock).timestamp() for ahead in (0, 1))
    return next(moment for moment in moments if moment > wall)


def shown_moment(moment: float, wall: float) -> str:
    """A moment for people, in local time: ``15:00``, or ``2026-11-27 15:00`` where that is another day.

    :param wall: seconds since 1970, now.
    """
    try:
        when, now = datetime.fromtimestamp(moment), datetime.fromtimestamp(wall)
    except (ValueError, OverflowError, OSError):
        return f"{moment:g} s after 1970"  # of a damaged record
    clock = f"{when:%H:%M:%S}" if when.second else f"{when:%H:%M}"
    return clock if when.date() == now.date() else f"{when:%Y-%m-%d} {clock}"
