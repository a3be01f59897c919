"""Which event loop runs here. Asks those that are loaded, and loads none."""

from __future__ import annotations

import sys
from typing import Any


def in_trio() -> bool:
    """Whether this code runs in an event loop of trio."""
    trio: Any = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except (RuntimeError, AttributeError):  # not in it; or another thread imports it just now
        return False
    return True


def in_loop() -> bool:
    """Whether this code runs in an event loop, of asyncio or of trio."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return in_trio()
        return True
    return in_trio()
