"""Which requests may be sent a second time, and how many of them."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})  # RFC 9110, 9.2.2
_SECONDS: Final = re.compile(r"\d{1,9}", re.ASCII)


def is_repeatable(method: str, headers: Mapping[str, str], *, replayable: bool) -> bool:
    """Whether a request that may have reached a host may be sent to another.

    :param headers: whose names are compared without regard to case.
    :param replayable: whether its body is there a second time.
    """
    return replayable and (method in _IDEMPOTENT or any(name.lower() == "idempotency-key" for name in headers))


def retry_after_s(value: str | None) -> float:
    """The seconds of a ``Retry-After`` header (RFC 9110, 10.2.3); 0 where there are none.

    :param value: seconds, or a date, as the host's clock has it.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        left_s = moment.timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0
    return left_s if 0 < left_s < math.inf else 0.0


class RetryBudget:
    """How many requests may be sent again: a part of all, and some more a second.

    Without a bound, hosts that are slow because they have too much to do would get a multiple of it
    (as ``RetryBudget`` of Finagle, and retry budgets of Envoy and Linkerd).

    :param share: of the requests of the last ``window_s`` seconds.
    :param per_second: on top of it, so that those who ask seldom may ask again.
    """

    def __init__(self, share: float = 0.2, per_second: int = 3, window_s: int = 10) -> None:
        self._share = share
        self._reserve = per_second * window_s
        self._seconds = [_Second() for _ in range(window_s)]
        self._newest = self._seconds[0]
        self._next_at = -math.inf
        self._lock = threading.Lock()

    def note_request(self, now: float) -> None:
        """There is one more request."""
        if now >= self._next_at:
            self._newest, self._next_at = self._second(int(now)), int(now) + 1
        self._newest.requests += 1  # without a lock: one that is lost among threads does not matter

    def take(self, now: float) -> bool:
        """Whether one more may be sent again; it is counted then."""
        number = int(now)
        with self._lock:
            first = number - len(self._seconds)
            recent = [second for second in self._seconds if first < second.number <= number]
            allowed = self._share * sum(second.requests for second in recent) + self._reserve
            if sum(second.retries for second in recent) + 1 > allowed:
                return False
            self._second(number).retries += 1
            return True

    def _second(self, number: int) -> _Second:
        second = self._seconds[number % len(self._seconds)]
        if second.number != number:
            second.number, second.requests, second.retries = number, 0, 0
        return second


class _Second:
    __slots__ = ("number", "requests", "retries")

    def __init__(self) -> None:
        self.number = -1
        self.requests = 0
        self.retries = 0


budget = RetryBudget()
"""The one of this process."""
