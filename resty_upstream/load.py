"""What one process has under way at a host, how long it takes there, and how much of it fails. Pure.

Only hosts of pools that ask for it have a :class:`Load`. Requests under way are a set, so threads need no lock:
each is added once and taken out once, also when its attempt is dropped without an end.
"""

from __future__ import annotations

import math
from typing import Final

_TAU_S: Final = 10.0
_SLOTS: Final = 5
_TRACE: Final = 0.1
_FADES_S: Final = 2.0  # at least: where the timeout is short, requests may yet take long
_DOUBT: Final = 1e9  # more than any load
_LEAST_S: Final = 1e-4  # so that hosts that nothing is known of differ by what is under way


class Load:
    """One host, as this process meets it."""

    __slots__ = (
        "_counts_since",
        "_doubted_until",
        "_ewma_at",
        "_ewma_s",
        "_failed",
        "_penalty",
        "_penalty_at",
        "_slots",
        "running",
        "timeout_s",
    )

    def __init__(self, timeout_s: float) -> None:
        self.running: set[int] = set()
        """The flights under way, by identity."""
        self.timeout_s = timeout_s
        """What a failure counts as: it may have been fast, but it was no answer."""
        self._failed = False
        self._doubted_until = -math.inf
        self._penalty = 0.0
        self._penalty_at = 0.0
        self._ewma_s = 0.0
        self._ewma_at = 0.0
        self._counts_since = 0.0
        self._slots: list[_Slot] = []

    def in_flight(self, now: float, weight: float = 1.0) -> float:
        """Requests under way; a failure is one that fades away in the time that an attempt may take.

        After two in a row the host comes behind all others for that time, or until it answers. Else one that fails
        fast would be asked the more often, the longer requests take elsewhere.

        :param weight: of the host: so many requests weigh like one.
        """
        if not self._penalty:
            return len(self.running) / weight
        doubt = _DOUBT if now < self._doubted_until else 0.0
        return (len(self.running) + self._faded_penalty(now)) / weight + doubt

    @property
    def _fades_s(self) -> float:
        return max(self.timeout_s, _FADES_S)

    def _faded_penalty(self, now: float) -> float:
        faded = self._penalty * math.exp((self._penalty_at - now) / self._fades_s)
        # A trace of it would decide between hosts that are idle.
        return faded if faded > _TRACE else 0.0

    def peak_ewma(self, now: float, weight: float = 1.0) -> float:
        """The latency in seconds times the requests under way, as of :meth:`in_flight`, with this one.

        :param weight: of the host, beside a mean of 1: so many requests weigh like one.

        The latency jumps up to a peak at once and fades away from there (Peak EWMA, as of Twitter's Finagle,
        ``com.twitter.finagle.loadbalancer.p2c.P2CPeakEwma``); a failure is a peak of the attempt's timeout.
        """
        faded_s = self._ewma_s * math.exp((self._ewma_at - now) / _TAU_S)
        return max(faded_s, _LEAST_S) * (self.in_flight(now, weight) + 1)

    def note(self, now: float, took_s: float, *, ok: bool) -> None:
        """An attempt is over."""
        if not ok:
            self._penalty = 1.0 + self._faded_penalty(now)
            self._penalty_at = now
        self._doubted_until = now + self._fades_s if self._failed and not ok else -math.inf
        self._failed = not ok
        latency_s = took_s if ok else max(took_s, self.timeout_s)
        faded = math.exp((self._ewma_at - now) / _TAU_S)
        if latency_s >= self._ewma_s * faded:
            self._ewma_s = latency_s
        else:
            self._ewma_s = self._ewma_s * faded + latency_s * (1 - faded)
        self._ewma_at = now

    # ── how much succeeds ─────────────────────────────────────────────────────────────────────

    def count(self, now: float, window_s: float, *, ok: bool, back_at: float = 0.0) -> None:
        """Count an attempt for :meth:`success_rate`.

        :param back_at: when the host came back from being down: what was before does not count.
        """
        if back_at > self._counts_since:
            self._counts_since = back_at
            self.forget_counts()
        number = int(now / window_s * _SLOTS)
        if not self._slots or self._slots[-1].number != number:
            self._slots = [*(slot for slot in self._slots if slot.number > number - _SLOTS), _Slot(number)]
        slot = self._slots[-1]
        slot.requests += 1
        slot.successes += ok

    def success_rate(self, now: float, window_s: float) -> tuple[int, float]:
        """The attempts in the window, and the percentage of them that succeeded."""
        oldest = int(now / window_s * _SLOTS) - _SLOTS
        slots = [slot for slot in self._slots if slot.number > oldest]
        requests = sum(slot.requests for slot in slots)
        return requests, 100 * sum(slot.successes for slot in slots) / requests if requests else 100.0

    def forget_counts(self) -> None:
        """Begin to count anew."""
        self._slots = []


class _Slot:
    """The attempts of a part of the window."""

    __slots__ = ("number", "requests", "successes")

    def __init__(self, number: int) -> None:
        self.number = number
        self.requests = 0
        self.successes = 0


class Flight:
    """One request under way; it ends when it is told to, or when nobody has it any more."""

    __slots__ = ("_load",)

    def __init__(self, load: Load) -> None:
        self._load = load
        load.running.add(id(self))

    def land(self) -> None:
        """It is over. May be called again."""
        self._load.running.discard(id(self))

    def __del__(self) -> None:
        self.land()
