"""The ``UPSTREAMS`` setting, read when an upstream is first used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from django.conf import ENVIRONMENT_VARIABLE, settings
from django.core.signals import setting_changed

from resty_upstream import InvalidConfig, Problem, Upstream, UpstreamNotFound
from resty_upstream.config import OPTIONS, make_upstream
from resty_upstream.contrib.django.signing import DjangoSigner
from resty_upstream.errors import Problems
from resty_upstream.stores import Store

# Cookies are signed as Django signs everything: with SECRET_KEY.
_OPTIONS: Final = {name.upper(): name for name in OPTIONS if name != "cookie_secret"}

_upstreams: dict[str, Upstream] = {}
_stores: dict[str, Store] = {}
_lock = threading.RLock()


def get_upstream(alias: str = "default") -> Upstream:
    """The upstream that ``UPSTREAMS[alias]`` describes, for code outside a request; one object per process.

    ::

        @shared_task  # of Celery; a command or a script does the same
        def refresh() -> None:
            with get_upstream("cache").context() as upstream:
                sock, info = upstream.connect()

    :raises UpstreamNotFound: when the setting has no such upstream.
    :raises InvalidConfig: naming every problem, by its path in the setting.
    """
    upstream = _upstreams.get(alias)
    if upstream is None:
        with _lock:
            upstream = _upstreams.get(alias) or _with_signals(make(alias, _stores))
            _upstreams[alias] = upstream
    return upstream


def _with_signals(upstream: Upstream) -> Upstream:
    from resty_upstream.contrib.django.signals import send

    upstream.bind("host_up", send)
    upstream.bind("host_down", send)
    return upstream


class _Upstreams(Mapping[str, Upstream]):
    def __getitem__(self, alias: str) -> Upstream:
        return get_upstream(alias)

    def __iter__(self) -> Iterator[str]:
        return iter(aliases())

    def __len__(self) -> int:
        return len(aliases())


upstreams: Final = _Upstreams()
"""The upstreams of the setting by name, as it is when they are asked for."""


def aliases() -> list[str]:
    """The names in ``UPSTREAMS``.

    :raises InvalidConfig: when it is not a dict.
    """
    return list(upstreams_setting())


def upstreams_setting() -> Mapping[str, Any]:
    """``UPSTREAMS`` as it is now; empty where it is missing.

    :raises InvalidConfig: when it is not a dict.
    """
    value = getattr(settings, "UPSTREAMS", {})
    if not isinstance(value, Mapping):
        what = f"UPSTREAMS must be a dict by name, not {type(value).__name__}"
        raise InvalidConfig(Problem(what, "structure"))
    return value


def make(alias: object, stores: dict[str, Store]) -> Upstream:
    """A new upstream, as ``UPSTREAMS[alias]`` describes it.

    :param stores: stores by URL, to be shared with other upstreams; a new one is added.
    :raises UpstreamNotFound: when the setting has no such upstream.
    :raises InvalidConfig: naming every problem, by its path in the setting.
    """
    setting: Mapping[Any, Any] = upstreams_setting()
    if alias not in setting:
        known = ", ".join(map(repr, setting)) or "nothing"
        raise UpstreamNotFound(f"there is no upstream {alias!r}: the setting UPSTREAMS has {known}")
    given = setting[alias]
    path = f"UPSTREAMS[{alias!r}]"
    if not isinstance(alias, str):
        raise InvalidConfig(Problem(f"{path}: the name must be text, not {type(alias).__name__}", "id"))
    if not isinstance(given, Mapping):
        what = f"{path} must be a dict of {', '.join(_OPTIONS)}, not {type(given).__name__}"
        raise InvalidConfig(Problem(what, "structure"))
    options = {_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS}
    with Problems() as problems:
        for name in given:
            if name not in _OPTIONS:
                with problems.noted():
                    raise InvalidConfig(Problem.unknown_option(f"{path}[{name!r}]", name, _OPTIONS))
        with problems.noted():
            try:
                upstream = make_upstream(alias, options, stores, _application(), DjangoSigner(alias))
            except InvalidConfig as error:
                raise type(error)([_in_setting(path, problem) for problem in error.problems]) from None
    return upstream


def _in_setting(path: str, problem: Problem) -> Problem:
    """A problem of an upstream, with the option as the setting spells it."""
    option = problem.partition(" ")[0].partition("[")[0]
    known = option.upper() in _OPTIONS
    spelled = f"{path}[{option.upper()!r}]{problem[len(option) :]}" if known else f"{path}: {problem}"
    return Problem(spelled, problem.kind)


def _application() -> str:
    """What a store is named after that the setting does not name."""
    # The settings module as Django finds it; settings that are overridden in a test do not tell.
    module = os.environ.get(ENVIRONMENT_VARIABLE) or settings.SETTINGS_MODULE or ""
    return f"{module} {getattr(settings, 'BASE_DIR', '')}".strip()


def _forget(*, setting: str, **_kwargs: object) -> None:
    """Tests that override the setting get upstreams of their own."""
    if setting == "UPSTREAMS":
        with _lock:
            for upstream in _upstreams.values():
                upstream.stop_checker()
            _upstreams.clear()
            for store in _stores.values():
                store.close()
            _stores.clear()


setting_changed.connect(_forget, dispatch_uid="resty_upstream")
