"""What the counters add to an attempt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType

from benchmarks.harness import Group, Sample, Variant, at_most_more_us, calling
from benchmarks.upstreams import in_memory, in_sqlite, private_directory
from resty_upstream import Attempt, Host, Upstream


class Counted(Attempt):
    """As it is."""

    __slots__ = ()


class Uncounted(Attempt):
    """One that succeeds, without what is counted of it."""

    __slots__ = ()

    def __enter__(self) -> Host:
        self._handled = sys.exception()
        return self.host

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        attempts = self._attempts
        del self._attempts
        now = attempts.now()
        self.duration_s = now - self.began
        if error is None:
            self.outcome = "ok"
            attempts.done = True
            if not self.target.quiet:
                self._succeeded(attempts, now)
            return False
        return self._failed(attempts, error, now)


@contextlib.contextmanager
def counting() -> Iterator[list[Group]]:
    """An attempt that succeeds, with counters and without."""
    with private_directory() as directory:
        yield [
            Group(
                f"An attempt that succeeds, of 3 hosts, {name}",
                500,
                [
                    Variant("not counted", _attempt(upstream, Uncounted)),
                    Variant("counted", _attempt(upstream, Counted), at_most_more_us(0.5)),
                ],
                "difference",
            )
            for name, upstream in [("SQLite", in_sqlite(directory, 3)), ("memory store", in_memory(3))]
        ]


def _attempt(upstream: Upstream, kind: type[Attempt]) -> Sample:
    def call() -> None:
        for attempt in upstream.attempts():
            attempt.__class__ = kind  # both variants pay for it
            with attempt:
                pass

    return calling(call)
