"""Waiting for time, for signals, and for the end of those who read what is printed."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Final, Self

from resty_upstream.cli.screen import Stream

ENDS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
"""The signals that end a command in order; SIGPIPE stands for a reader that has gone away."""
_NOTICED: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """A context in which signals do nothing but end a wait.

    A handler that raised could do so in the middle of a line, or of a transaction. In a thread that is not the
    main one, signals stay as they are.

    :param stream: what is printed on; its readers may go away.
    :param more: signals, besides SIGINT and SIGTERM.
    """

    def __init__(self, stream: Stream, more: Iterable[signal.Signals] = ()) -> None:
        self._numbers = (*_NOTICED, *more)
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._output = _number(stream)
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)
        if self._output is not None:
            self._poll.register(self._output, 0)  # that its reader is gone is told unasked
        self._before: dict[signal.Signals, object] = {}
        self._wakeup = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, _nothing) for number in self._numbers}
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave is what it takes
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, seconds: float) -> frozenset[int]:
        """Wait for so long, or until a signal comes; those that came."""
        came: set[int] = set()
        for number, _ in self._poll.poll(seconds * 1000):
            came |= {signal.SIGPIPE} if number == self._output else set(os.read(self._reader, 4096))
        return frozenset(came)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def _number(stream: Stream) -> int | None:
    """The descriptor of a stream; None where it has none."""
    try:
        number: int = stream.fileno()  # type: ignore[attr-defined]  # not all have it
    except (AttributeError, OSError, ValueError):
        return None
    return number
