"""Which requests may be sent again, and how many."""

from __future__ import annotations

import datetime
import threading
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream.http.retries import RetryBudget, is_repeatable, retry_after_s


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_idempotent_methods_may_be_repeated_with_a_body_that_is_there_again(method: str) -> None:
    assert is_repeatable(method, {}, replayable=True)
    assert not is_repeatable(method, {}, replayable=False)


@pytest.mark.parametrize("method", ["POST", "PATCH", "CONNECT", "get", "ANYTHING"])
def test_others_only_with_a_key(method: str) -> None:
    assert not is_repeatable(method, {}, replayable=True)
    assert is_repeatable(method, {"idempotency-key": "7"}, replayable=True)
    assert not is_repeatable(method, {"idempotency-key": "7"}, replayable=False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 5 ", 5),
        ("0", 0),
        (None, 0),
        ("", 0),
        ("-5", 0),
        ("1.5", 0),
        ("soon", 0),
        ("٣", 0),
        ("9" * 400, 0),
    ],
)
def test_retry_after_in_seconds(value: str | None, seconds: float) -> None:
    assert retry_after_s(value) == seconds


def test_retry_after_as_a_date() -> None:
    now = datetime.datetime.now(datetime.UTC)
    assert 50 < retry_after_s(format_datetime(now + datetime.timedelta(minutes=1), usegmt=True)) <= 60
    assert retry_after_s(format_datetime(now - datetime.timedelta(minutes=1), usegmt=True)) == 0


@given(st.text(max_size=60))
def test_whatever_a_host_writes_there_it_is_a_time_or_nothing(value: str) -> None:
    assert 0 <= retry_after_s(value) < float("inf")


@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=300),
    st.floats(0, 1e9),
)
def test_no_more_than_the_budget_is_sent_again(steps: list[tuple[float, bool]], now: float) -> None:
    """In any ten seconds: a fifth of the requests, and three a second."""
    budget = RetryBudget()
    requests: list[float] = []
    retries: list[float] = []
    for wait_s, wants in steps:
        now += wait_s
        requests.append(now)
        budget.note_request(now)
        if wants and budget.take(now):
            retries.append(now)
        recent = [at for at in retries if at > int(now) - 9]
        of_those = [at for at in requests if at > int(now) - 10]
        assert len(recent) <= 0.2 * len(of_those) + 30


def test_those_who_ask_seldom_may_ask_again() -> None:
    budget = RetryBudget()
    for number in range(100):
        budget.note_request(number * 11.0)
        assert budget.take(number * 11.0)


def test_threads_together_take_no_more_than_one_would() -> None:
    budget = RetryBudget()
    taken: list[bool] = []

    def take() -> None:
        taken.extend(budget.take(1000.0) for _ in range(200))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 30
