"""What this library logs while a command runs: the command says it itself."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

_OURS = "resty_upstream"
_STORE = f"{_OURS}.store"


class _Errors(logging.Handler):
    """Keeps what goes wrong with a store besides what the command reports anyway."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.name == _STORE and not message.startswith("StoreDegraded"):
            self.messages.append(message)


@contextlib.contextmanager
def unseen_logs() -> Iterator[list[str]]:
    """A context in which our loggers print nothing on the terminal; files and other handlers get all.

    :returns: what the user must know all the same: a store that was damaged, say.
    """
    errors = _Errors()
    ours = logging.getLogger(_OURS)
    shown = [handler for handler in _handlers() if getattr(handler, "stream", None) in (sys.stderr, sys.stdout)]
    ours.addHandler(errors)  # where there is no other, Python would print what is logged
    for handler in shown:
        handler.addFilter(_is_of_others)
    try:
        yield errors.messages
    finally:
        ours.removeHandler(errors)
        for handler in shown:
            handler.removeFilter(_is_of_others)


def _handlers() -> list[logging.Handler]:
    loggers = [logging.getLogger(name) for name in (None, _OURS, _STORE, f"{_OURS}.failover")]
    return [handler for logger in loggers for handler in logger.handlers]


def _is_of_others(record: logging.LogRecord) -> bool:
    return not record.name.startswith(_OURS)
