"""Who may look at the page, and who may change something: nobody, as long as nothing says so.

Without any configuration the page answers to this machine alone, and changes nothing. Tokens, or a callable of
the application, decide instead where they are given.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from resty_upstream.errors import InvalidConfig, Problem
from resty_upstream.status.page import Viewer

FIELD: Final = "form-token"
_SESSION: Final = "resty_upstream_status"
_FORMS: Final = "resty_upstream_status_forms"
_SESSION_S: Final = 12 * 3600.0
_SHORTEST_TOKEN: Final = 16

_OF_PROXIES: Final = (
    "x-forwarded",
    "x-real-ip",
    "x-client-ip",
    "forwarded",
    "via",
    "true-client-ip",
    "cf-connecting-ip",
)


class Request(NamedTuple):
    """A request, whatever server it came by. All of it is hostile."""

    method: str
    mount: str
    """Where the page is mounted: a path without a slash at its end."""
    path: str
    """The path below that."""
    query: str
    headers: Mapping[str, str]
    """Names in small letters."""
    peer: str
    """The address at the other end of the connection; empty where it has none."""
    secure: bool
    http_version: str
    native: Any = None
    """The scope or environ, for the application's callable."""
    body: bytes = b""

    def cookie(self, name: str) -> str:
        """The value of a cookie; empty where there is none."""
        for pair in self.headers.get("cookie", "").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == name:
                return value
        return ""


Authorize = Callable[[Any], "Viewer | str | None"]


class Granted(NamedTuple):
    """What a request may do."""

    viewer: Viewer
    by_header: bool = False
    """Whether it proved itself by what no other site can have a browser send."""


class Access:
    """The rules of one page.

    :param token: who has it may look and change.
    :param view_token: who has it may look.
    :param authorize: gets the scope (ASGI) or environ (WSGI) and returns the name of who asks, who may then look
        and change; or a :class:`Viewer`, who may change where that says so; or None to refuse.
    :raises InvalidConfig: for a token that is too short.
    """

    def __init__(self, token: str | None, view_token: str | None, authorize: Authorize | None) -> None:
        for name, given in (("token", token), ("view_token", view_token)):
            if given is not None and not (isinstance(given, str) and len(given) >= _SHORTEST_TOKEN):
                raise InvalidConfig(Problem(f"{name} must be text of at least {_SHORTEST_TOKEN} characters"))
        self._tokens = [(given, change) for given, change in ((token, True), (view_token, False)) if given]
        self._authorize = authorize

    @property
    def has_tokens(self) -> bool:
        """Whether somebody can sign in."""
        return bool(self._tokens)

    @property
    def asks(self) -> bool:
        """Whether the application is asked."""
        return self._authorize is not None

    def grant(self, request: Request) -> Granted | None:
        """What a request may do; None where it may not even look."""
        viewer = self._ask(request)
        if viewer is not None:
            return Granted(viewer)
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._tokens and scheme.lower() == "bearer":
            may_change = self._find(given.strip())
            return None if may_change is None else Granted(Viewer("token", may_change=may_change), by_header=True)
        if self._tokens:
            return self._session(request)
        if not self.asks and is_local(request):
            return Granted(Viewer("this machine"))
        return None

    def _ask(self, request: Request) -> Viewer | None:
        found = self._authorize(request.native) if self._authorize is not None else None
        if isinstance(found, str):
            return Viewer(found, may_change=True) if found else None
        if found is not None and not isinstance(found, Viewer):
            # A coroutine, or True, is as good as yes to who does not look.
            raise TypeError(f"authorize must return a name, a Viewer or None, not {type(found).__name__}")
        return found

    def _find(self, given: str) -> bool | None:
        """Whether who has this token may change something; None where it is none."""
        found = None
        for token, may_change in self._tokens:
            if hmac.compare_digest(token.encode(), given.encode("utf-8", "replace")) and not found:
                found = may_change
        return found

    # ── sessions ──────────────────────────────────────────────────────────────────────────────

    def sign_in(self, name: str, token: str, request: Request) -> str | None:
        """The ``Set-Cookie`` of a session; None for a wrong token."""
        may_change = self._find(token)
        if may_change is None:
            return None
        said = f"{time.time() + _SESSION_S:.0f}.{_pack(name)}.{secrets.token_urlsafe(12)}"
        return _set_cookie(_SESSION, f"{said}.{_signed(token, said)}", request, max_age=int(_SESSION_S))

    def sign_out(self, request: Request) -> str:
        """The ``Set-Cookie`` that ends a session."""
        return _set_cookie(_SESSION, "", request, max_age=0)

    def _session(self, request: Request) -> Granted | None:
        said, _, signature = request.cookie(_SESSION).rpartition(".")
        for token, may_change in self._tokens:
            if hmac.compare_digest(_signed(token, said).encode(), signature.encode("utf-8", "replace")):
                until, name, _ = said.split(".")
                if float(until) > time.time():
                    return Granted(Viewer(_unpack(name), may_change=may_change, may_leave=True))
        return None


def _signed(token: str, said: str) -> str:
    return hmac.new(token.encode(), f"session:{said}".encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _pack(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode().rstrip("=")


def _unpack(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()


def _set_cookie(name: str, value: str, request: Request, *, max_age: int | None = None) -> str:
    age = "" if max_age is None else f"; Max-Age={max_age}"
    # Without a path it is for the directory of what answers: the place where the page is mounted.
    return f"{name}={value}{age}; HttpOnly; SameSite=Strict" + ("; Secure" if request.secure else "")


# ── this machine ──────────────────────────────────────────────────────────────────────────────


def is_local(request: Request) -> bool:
    """Whether a request comes from a program of this machine that asked for it by name.

    Not so for one that a proxy of this machine passes on, nor for one that a page from elsewhere makes after its
    name was bound to the loopback address.
    """
    if any(name.startswith(_OF_PROXIES) for name in request.headers):
        return False
    if request.http_version == "1.0":
        return False  # nginx, as it comes: neither browsers nor curl have spoken it for long
    return _is_loopback(request.peer) and _is_loopback(_host_name(request.headers.get("host", "")))


def _host_name(host: str) -> str:
    try:
        return "" if "@" in host else urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# ── forms ─────────────────────────────────────────────────────────────────────────────────────


def protect(viewer: Viewer, request: Request) -> tuple[Viewer, str]:
    """The viewer with the hidden field of their forms, and the ``Set-Cookie`` it needs, if any.

    The field is derived from a cookie that no other site can read or, being of another site, have sent.
    """
    secret = request.cookie(_FORMS)
    fresh = "" if len(secret) >= 32 and secret.isalnum() else secrets.token_hex(16)
    value = _field_of(fresh or secret, viewer)
    return viewer._replace(form_field=(FIELD, value)), fresh and _set_cookie(_FORMS, fresh, request)


def why_foreign(request: Request, fields: Mapping[str, str], granted: Granted) -> str:
    """Why a form may come from another site; empty for one of this page."""
    problem = why_cross_site(request)
    if problem or granted.by_header:
        return problem
    secret, given = request.cookie(_FORMS), fields.get(FIELD, "")
    wanted = _field_of(secret, granted.viewer)
    if not secret or not hmac.compare_digest(wanted.encode(), given.encode("utf-8", "replace")):
        return "The form is not one of this page, or is too old. Open it again, with cookies allowed."
    return ""


def why_cross_site(request: Request) -> str:
    """Why another site made a browser send a request; empty where it did not."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return "" if site == "same-origin" else "The request was made by another site."
    # "null" is a browser that does not say whose request it is.
    if origin is not None and _netloc(origin) != (request.headers.get("host", "").lower() or None):
        return "The request was made by another site, or a proxy does not pass on Host."
    return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _field_of(secret: str, viewer: Viewer) -> str:
    name = viewer.name.encode("utf-8", "replace")
    return hmac.new(secret.encode("utf-8", "replace"), b"form:" + name, hashlib.sha256).hexdigest()
