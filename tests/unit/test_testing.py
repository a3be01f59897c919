"""The fakes for users' own tests."""

from __future__ import annotations

import math

import pytest

from resty_upstream.testing import FakeClock


def test_a_fake_clock_stands_still_until_it_is_told_to_move() -> None:
    clock = FakeClock(5)
    assert (clock(), clock()) == (5, 5)
    clock.advance(1.5)
    assert clock() == 6.5


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan])
def test_a_fake_clock_never_goes_back(seconds: float) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match="time goes forward"):
        clock.advance(seconds)
