"""The functions by which an application checks its hosts itself.

Their names are configuration, and that is also in the store. A function is called only where this process's own
settings name it: whoever can write the store cannot have code run that nobody meant to.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any, Final

from resty_upstream.events import fields
from resty_upstream.model import Pools

CheckFunction = Callable[[str, int, float], Any]
"""``(host, port, timeout_s)``, a coroutine function or not: the check is bad if it raises or returns False."""

BUILT_IN: Final = frozenset({"http", "tcp"})

_log = logging.getLogger("resty_upstream.health")


class Functions:
    """The functions that this process may call, each imported when it is first asked for."""

    def __init__(self) -> None:
        self._found: dict[str, CheckFunction | None] = {}

    def find(self, name: str, declared: Pools) -> CheckFunction | None:
        """The function of that name; None where the settings do not name it, or it cannot be imported."""
        if name not in self._found:
            self._found[name] = self._load(name, declared)
        return self._found[name]

    def _load(self, name: str, declared: Pools) -> CheckFunction | None:
        extra = fields("check_not_callable", check=name)
        if name not in named_in(declared):
            _log.error(
                "%s is not called: the settings of this process do not name it as a check", name, extra=extra
            )
            return None
        module, _, attribute = name.rpartition(".")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever a module does when it is imported
            _log.error("%s cannot be imported to check hosts: %r", name, error, extra=extra)
            return None
        if not callable(function):
            kind = type(function).__name__
            _log.error("%s cannot check hosts: it is %s and cannot be called", name, kind, extra=extra)
            return None
        return function  # type: ignore[no-any-return]  # called with care


def named_in(pools: Pools) -> set[str]:
    """The functions that these pools name."""
    # Also those of pools without hosts, which may get some at run time.
    checks = [pool.healthcheck for pool in pools] + [host.healthcheck for pool in pools for host in pool.hosts]
    return {check.type for check in checks if check} - BUILT_IN
