"""System checks of ``UPSTREAMS``, and of what belongs with it: ``manage.py check --tag upstream``.

Their ids are stable. Those below ``W020`` are those of :mod:`resty_upstream.lint`. A trouble with the store is a
warning: requests are served without it, and an image may be built where it cannot be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.utils.module_loading import import_string

from resty_upstream import InvalidConfig, Upstream
from resty_upstream.contrib.django.conf import aliases, make, upstreams_setting
from resty_upstream.contrib.django.middleware import UpstreamMiddleware
from resty_upstream.lint import PROBLEMS, Finding, lint

TAG: Final = "upstream"

_MIDDLEWARE: Final = "resty_upstream.contrib.django.UpstreamMiddleware"
_STORE: Final = '"STORE": "sqlite:///run/myapp/upstreams.db"'
_UPSTREAMS: Final = (
    f'UPSTREAMS = {{"default": {{{_STORE}, '
    '"POOLS": {"primary": {"hosts": {"a": {"host": "10.0.0.1", "port": 8001}}}}}}'
)

# Where the setting is spelled in another way than the options of an upstream in general
_HINTS: Final = {
    "E001": f"Write {_UPSTREAMS}",
    "E002": "Correct the name, or leave it out; what is in POOLS is in small letters, all else in capitals.",
    "E004": f'Add it, as {_STORE} or "host": "10.0.0.1".',
    "E005": 'Give each upstream, pool and host a name of its own, as "default", "primary" or "a".',
    "E006": "Correct the name of the method, or call register_method in ready() of an app.",
    "E007": f"Write {_STORE}, a file in a directory of its own.",
    "W003": 'Make "TOTAL_TIMEOUT" several times the timeout of a pool.',
    "W006": 'Name the proxies, as "TRUSTED_PROXIES": ["10.0.0.0/8"]; or give the pool another key, as '
    '"key": "cookie:sessionid", or each call one, as request.upstream.connect(key=…).',
    "W008": f"A directory below /run is safe, as systemd's RuntimeDirectory=myapp: {_STORE}.",
    "W012": 'Name the addresses or networks of the proxies alone, as "TRUSTED_PROXIES": ["10.0.0.0/8"].',
}


def check_upstreams(**_kwargs: object) -> list[CheckMessage]:
    """What is wrong with each upstream, and what is hardly meant. No store is created, changed, or left open."""
    try:
        names = aliases()
    except InvalidConfig as error:
        return _errors(error)
    if not names:
        what = "UPSTREAMS is missing or empty: there is no upstream to use"
        return [_warning("W022", what, f"Write {_UPSTREAMS}, or remove the app.")]
    return [message for name in names for message in _of_upstream(name)]


def check_middleware(**_kwargs: object) -> list[CheckMessage]:
    """Whether requests get their upstreams, once, and the one that ``request.upstream`` means."""
    count = sum(map(_is_ours, settings.MIDDLEWARE))
    if not count:
        what = f"{_MIDDLEWARE!r} is not in MIDDLEWARE: requests have no upstream"
        hint = "Add it, above all middleware that uses request.upstream; silence this if only tasks use upstreams."
        return [_warning("W020", what, hint)]
    messages = []
    if count > 1:
        what = (
            f"UpstreamMiddleware is in MIDDLEWARE {count} times: the inner hides what the outer learned of hosts"
        )
        messages.append(_warning("W021", what, "Leave the uppermost."))
    names = _names()
    if names and "default" not in names:
        what = f"request.upstream is UPSTREAMS['default'], and UPSTREAMS has only {', '.join(map(repr, names))}"
        hint = 'Name one of them "default"; silence this if requests use request.upstreams[…] alone.'
        messages.append(_warning("W024", what, hint))
    return messages


def check_deployment(**_kwargs: object) -> list[CheckMessage]:
    """Whether all processes of the site, and its commands, share one store; and who stays logged in to it."""
    messages = [message for name in _names() for message in _of_sharing(name, upstreams_setting()[name])]
    if settings.SESSION_SAVE_EVERY_REQUEST and apps.is_installed("django.contrib.admin"):
        what = (
            "SESSION_SAVE_EVERY_REQUEST is set: the page of upstreams in the admin asks every two seconds, and "
            "whoever leaves it open is never logged out"
        )
        messages.append(_warning("W027", what, "Leave it out; silence this if it is no matter."))
    return messages


def _names() -> list[str]:
    try:
        return aliases()
    except InvalidConfig:
        return []  # what is wrong is said once


def _is_ours(path: str) -> bool:
    try:
        middleware = import_string(path)
    except ImportError:
        return False  # which Django says where it loads it
    return isinstance(middleware, type) and issubclass(middleware, UpstreamMiddleware)


def _of_upstream(alias: str) -> list[CheckMessage]:
    try:
        # With a store object of its own: one that is in use is not to be closed.
        upstream = make(alias, {})
    except InvalidConfig as error:
        return _errors(error)
    with closing(upstream):
        findings = lint(upstream, behind_proxy=_is_behind_proxy())
    return [*(_found(alias, finding) for finding in findings), *_of_place(alias, upstream)]


def _is_behind_proxy() -> bool:
    return bool(
        settings.SECURE_PROXY_SSL_HEADER
        or settings.USE_X_FORWARDED_HOST
        or settings.USE_X_FORWARDED_PORT
        or os.environ.get("FORWARDED_ALLOW_IPS")  # of gunicorn and uvicorn
    )


def _of_place(alias: str, upstream: Upstream) -> Iterator[CheckMessage]:
    path = getattr(upstream.store, "path", None)
    for name in ("MEDIA_ROOT", "STATIC_ROOT"):
        root = getattr(settings, name)
        if root and path and Path(path).is_relative_to(os.path.abspath(root)):
            what = f"UPSTREAMS[{alias!r}]['STORE'] is below {name}, whose files are served to everybody"
            yield _warning("W026", what, f"Write {_STORE}.")


def _of_sharing(alias: str, options: object) -> Iterator[CheckMessage]:
    store = options.get("STORE") if isinstance(options, Mapping) else ""
    if store is None:
        what = (
            f"UPSTREAMS[{alias!r}] has no STORE: where it is depends on the user and the environment of each "
            "process, and commands may meet another one than the site"
        )
        yield _warning("W025", what, f"Write {_STORE}.")
    elif store == "memory://":
        what = f"UPSTREAMS[{alias!r}]['STORE'] is 'memory://': each process has health and changes of its own"
        yield _warning("W023", what, f"Write {_STORE}.")


# ── messages ──────────────────────────────────────────────────────────────────────────────────


def _errors(error: InvalidConfig) -> list[CheckMessage]:
    return [
        Error(str(problem), hint=_HINTS.get(number, hint), id=f"resty_upstream.{number}")
        for problem in error.problems
        for number, hint in [PROBLEMS[problem.kind]]
    ]


def _found(alias: str, finding: Finding) -> CheckMessage:
    path = f"UPSTREAMS[{alias!r}]"
    hint = _HINTS.get(finding.id, finding.hint)
    if finding.path == "trusted_proxies":
        what = finding.message.removeprefix(finding.path)
        return _warning(finding.id, f"{path}['TRUSTED_PROXIES']{what}", hint)
    where = f"{path}['STORE']" if finding.path == "store" else path
    return _warning(finding.id, f"{where}: {finding.message}", hint)


def _warning(number: str, what: str, hint: str) -> CheckMessage:
    return Warning(what, hint=hint, id=f"resty_upstream.{number}")
