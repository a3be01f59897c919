"""Functions that check hosts, named in configurations of tests."""

from __future__ import annotations

import threading
from typing import Any

calls: list[tuple[str, int, float]] = []
"""With what they were called."""
leave = threading.Event()
"""Ends what hangs."""


def reset() -> None:
    """Begin anew."""
    calls.clear()
    leave.clear()


def passes(host: str, port: int, timeout_s: float) -> None:
    """A host that is well."""
    calls.append((host, port, timeout_s))


async def passes_async(host: str, port: int, timeout_s: float) -> bool:
    """A host that is well, as a coroutine function says."""
    calls.append((host, port, timeout_s))
    return True


def hangs(host: str, port: int, timeout_s: float) -> None:
    """What nothing can end."""
    calls.append((host, port, timeout_s))
    leave.wait()


def exits(host: str, port: int, timeout_s: float) -> None:
    """A function that means to end the process."""
    calls.append((host, port, timeout_s))
    raise SystemExit(3)


not_callable: Any = 5
