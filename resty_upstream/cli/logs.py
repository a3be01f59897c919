"""What this library logs while a command runs: the command says it itself."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from resty_upstream.cli.text import shown

_OURS: Final = "resty_upstream"
_STORE: Final = f"{_OURS}.store"
_PRINTED: Final = ("host_up", "host_down")  # by a command that goes on
_AGAIN_S: Final = 60.0  # how long the same words, again and again, are no news

Complain = Callable[[str], object]


class Heard(logging.Handler):
    """What goes wrong besides what the command reports anyway.

    A command that soon ends says it at its end; one that goes on has it said as it happens, and nothing is kept.

    :param complain: called with each line, from any thread.
    """

    def __init__(self, complain: Complain) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        """What the user must know when the command is done: a store that was damaged, say."""
        self._complain = complain
        self._at_once = False
        self._last = ("", float("-inf"))

    def say_at_once(self) -> None:
        """Say what was heard so far, and from now on all that goes wrong, as it happens."""
        with self._locked():
            self._at_once = True
            said, self.messages = self.messages, []
            for message in said:
                self._say(message)

    def complain(self, line: str) -> None:
        """Say something that the user must know."""
        with self._locked():
            self._say(line)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, under this handler's lock."""
        if self._at_once:
            if getattr(record, "upstream_event", "") not in _PRINTED:
                self._say(_message(record))
        elif record.levelno >= logging.ERROR and record.name == _STORE:
            message = record.getMessage()
            if not message.startswith("StoreDegraded"):  # which the command fails with
                self.messages.append(message)

    def _say(self, line: str) -> None:
        (last, until), now = self._last, time.monotonic()
        if line == last and now < until:
            return
        self._last = line, now + _AGAIN_S
        with contextlib.suppress(OSError, ValueError):  # nobody is there to tell it
            self._complain(shown(line))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _message(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return record.getMessage() + (f": {error!r}" if error else "")


@contextlib.contextmanager
def unseen_logs(complain: Complain) -> Iterator[Heard]:
    """A context in which our loggers print nothing on the terminal; files and other handlers get all.

    :param complain: called with what is to be said as it happens; see :class:`Heard`.
    """
    heard = Heard(complain)
    ours = logging.getLogger(_OURS)
    shown_ones = [
        handler for handler in _handlers() if getattr(handler, "stream", None) in (sys.stderr, sys.stdout)
    ]
    ours.addHandler(heard)  # where there is no other, Python would print what is logged
    for handler in shown_ones:
        handler.addFilter(_is_of_others)
    try:
        yield heard
    finally:
        ours.removeHandler(heard)
        for handler in shown_ones:
            handler.removeFilter(_is_of_others)


def _handlers() -> list[logging.Handler]:
    names = (None, _OURS, _STORE, f"{_OURS}.failover", f"{_OURS}.health")
    return [handler for name in names for handler in logging.getLogger(name).handlers]


def _is_of_others(record: logging.LogRecord) -> bool:
    return not record.name.startswith(_OURS)
