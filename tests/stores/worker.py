"""A process that runs what it is told, for tests that need several: ``python -m tests.stores.worker PATH``.

Each line on stdin is a JSON string of Python source. Its last line, where that is an expression, is the
answer: one line of JSON on stdout. The names below, and what earlier sources left behind, are there to be used.
"""

from __future__ import annotations

import ast
import ctypes
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.stores import View
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import add_one, ask, in_threads, pools, putting, set_bell, touch

path = ""
logged: list[str] = []
"""What was logged, as ``LEVEL message``."""
_answers = sys.stdout


def say(word: Any) -> None:
    """Send a word to the test while the source still runs."""
    _send({"said": word})


def hear() -> str:
    """Wait for a word of the test."""
    line = sys.stdin.readline()
    if not line:
        os._exit(0)  # the test is over
    return str(json.loads(line))


# ── what tests do with a store ────────────────────────────────────────────────────────────────


def hold(_view: View) -> None:
    """A transaction that lasts until the test says a word."""
    say("inside")
    hear()


# ── forks ─────────────────────────────────────────────────────────────────────────────────────

_libc = ctypes.PyDLL(None)


def fork_without_hooks() -> int:
    """As servers written in C fork: Python does not hear of it."""
    return int(_libc.fork())


class Child:
    """A forked process that runs a function and ends."""

    def __init__(self, function: Callable[[], Any], fork: Callable[[], int]) -> None:
        self._reader, writer = os.pipe()
        self.pid = fork()
        if self.pid == 0:
            try:
                value = {"value": function()}
            except BaseException:
                value = {"error": traceback.format_exc()}
            os.write(writer, json.dumps(value, default=_plain).encode())
            os._exit(0)
        os.close(writer)

    def result(self) -> Any:
        """What the function returned."""
        with os.fdopen(self._reader, "rb") as pipe:
            data = pipe.read()
        os.waitpid(self.pid, 0)
        answer = json.loads(data)
        if "error" in answer:
            raise RuntimeError(f"in the child:\n{answer['error']}")
        return answer["value"]


def child(function: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Child:
    """Start ``function`` in a fork of this process."""
    return Child(function, fork)


# ── the loop ──────────────────────────────────────────────────────────────────────────────────


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        logged.append(f"{record.levelname} {record.getMessage()}")


def _send(answer: dict[str, Any]) -> None:
    print(json.dumps(answer, default=_plain), file=_answers, flush=True)


def _plain(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else repr(value)


def _run(source: str, names: dict[str, Any]) -> Any:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<told>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<told>", "eval"), names) if last else None


def main() -> None:
    """Run what comes until stdin ends."""
    global path, _answers
    path = sys.argv[1]
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.getLogger("resty_upstream").addHandler(_Log())
    names = globals() | {"path": path, "url": f"sqlite://{path}", "clock": FakeClock()}
    while line := sys.stdin.readline():
        try:
            _send({"value": _run(json.loads(line), names)})
        except Exception as error:
            _send({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


# For the sources that tests send
__all__ = [
    "FakeClock",
    "SqliteStore",
    "Upstream",
    "UpstreamAPI",
    "add_one",
    "ask",
    "child",
    "fork_without_hooks",
    "hold",
    "in_threads",
    "pools",
    "putting",
    "set_bell",
    "threading",
    "time",
    "touch",
]

if __name__ == "__main__":
    main()
