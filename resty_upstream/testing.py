"""Fakes for the tests of applications: time that moves only when told."""

from __future__ import annotations


class FakeClock:
    """A clock for ``MemoryStore(clock=…)`` and ``SqliteStore(…, clock=…)``.

    ::

        clock = FakeClock()
        upstream = Upstream(MemoryStore(clock=clock))
        clock.advance(10)
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass; it never goes back."""
        if not seconds >= 0:
            raise ValueError(f"time goes forward: {seconds!r} is below 0")
        self._now += seconds
