"""The ``UPSTREAMS`` setting, read when an upstream is first used."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
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
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise InvalidConfig(
            [f"{path}[{name!r}] is not an option: options are {', '.join(_OPTIONS)}" for name in unknown]
        )
    given = {name.lower(): options[name] for name in ("TOTAL_TIMEOUT", "LAST_RESORT") if name in options}
    try:
        return Upstream(_store(options.get("STORE")), id=alias, pools=options.get("POOLS"), **given)
    except InvalidConfig as error:
        raise type(error)([f"{path}: {problem}" for problem in error.problems]) from None


def _store(given: object) -> Store | Any:
    """One store object for each URL, so that upstreams of one file share a connection."""
    if given is None:
        given = default_url(f"{settings.SETTINGS_MODULE} {getattr(settings, 'BASE_DIR', '')}")
    if not isinstance(given, str):
        return given
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
