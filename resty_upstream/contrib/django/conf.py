"""The ``UPSTREAMS`` setting, read when an upstream is first used."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Final, cast

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.signals import setting_changed

from resty_upstream import InvalidConfig, Upstream, UpstreamNotFound
from resty_upstream.stores import Store, default_url, open_store

_OPTIONS: Final = ("STORE", "POOLS", "TOTAL_TIMEOUT", "LAST_RESORT")

_upstreams: dict[str, Upstream] = {}
_stores: dict[str, Store] = {}
_lock = threading.RLock()


def get_upstream(alias: str = "default") -> Upstream:
    """The upstream that ``UPSTREAMS[alias]`` describes, for code outside a request; one object per process.

    :raises UpstreamNotFound: when the setting has no such upstream.
    :raises InvalidConfig: naming every problem, by its path in the setting.
    """
    upstream = _upstreams.get(alias)
    if upstream is None:
        with _lock:
            upstream = _upstreams.get(alias) or _make(alias)
            _upstreams[alias] = upstream
    return upstream


def aliases() -> list[str]:
    """The names in ``UPSTREAMS``."""
    return list(_setting())


def _setting() -> Mapping[str, Any]:
    value = getattr(settings, "UPSTREAMS", {})
    if not isinstance(value, Mapping):
        raise InvalidConfig(f"UPSTREAMS must be a dict by name, not {type(value).__name__}")
    return value


def _make(alias: str) -> Upstream:
    setting = _setting()
    if alias not in setting:
        known = ", ".join(map(repr, setting)) or "nothing"
        raise UpstreamNotFound(f"there is no upstream {alias!r}: the setting UPSTREAMS has {known}")
    options = setting[alias]
    path = f"UPSTREAMS[{alias!r}]"
    if not isinstance(options, Mapping):
        raise InvalidConfig(f"{path} must be a dict of {', '.join(_OPTIONS)}, not {type(options).__name__}")
    given = {name.lower(): options[name] for name in ("TOTAL_TIMEOUT", "LAST_RESORT", "POOLS") if name in options}
    problems = [
        f"{path}[{name!r}] is not an option: options are {', '.join(_OPTIONS)}"
        for name in options
        if name not in _OPTIONS
    ]
    store: Store | str
    try:
        store = _store(options)
    except InvalidConfig as error:
        problems += [f"{path}: {problem}" for problem in error.problems]
        store = "memory://"  # so that the rest is looked at, too
    try:
        upstream = Upstream(store, id=alias, **given)
    except InvalidConfig as error:
        kind = InvalidConfig if problems else type(error)
        raise kind(problems + [f"{path}: {problem}" for problem in error.problems]) from None
    if problems:
        raise InvalidConfig(problems)
    return upstream


def _store(options: Mapping[str, Any]) -> Store:
    """One store object for each URL, so that upstreams of one file share a connection."""
    given = options.get("STORE")
    if given is None:
        # As Django finds it; settings that are overridden in a test do not tell.
        module = os.environ.get(ENVIRONMENT_VARIABLE) or settings.SETTINGS_MODULE or ""
        place = f"{module} {getattr(settings, 'BASE_DIR', '')}"
        if place == " ":
            raise InvalidConfig(
                "STORE must be given: there is neither a settings module nor BASE_DIR to name it after"
            )
        given = default_url(place)
    if not isinstance(given, str):
        return cast("Store", given)  # Upstream looks at it
    if given not in _stores:
        _stores[given] = open_store(given)
    return _stores[given]


def _forget(*, setting: str, **_kwargs: object) -> None:
    """Tests that override the setting get upstreams of their own."""
    if setting == "UPSTREAMS":
        with _lock:
            _upstreams.clear()
            for store in _stores.values():
                store.close()
            _stores.clear()


setting_changed.connect(_forget, dispatch_uid="resty_upstream")
