"""The page as a web application, whatever server or framework it runs in.

:class:`Board` answers for a viewer whom somebody else has let in; :class:`StatusSite` lets them in by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote

import msgspec

from resty_upstream.errors import InvalidConfig, StoreError, UpstreamError
from resty_upstream.events import fields
from resty_upstream.model import remark
from resty_upstream.status import access, assets, page
from resty_upstream.status.access import Access, Authorize, Granted, Request
from resty_upstream.status.actions import Order, perform
from resty_upstream.status.data import schema, status
from resty_upstream.status.page import Viewer
from resty_upstream.upstream import Upstream

BODY_LIMIT: Final = 16_384
_FIELDS_LIMIT: Final = 20

POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS: Final = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)

_log = logging.getLogger("resty_upstream.status")


class Response(NamedTuple):
    """An answer."""

    status: int
    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    more: tuple[tuple[str, str], ...] = ()
    """Headers besides those that all answers have."""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers."""
        names = {name for name, _ in self.more}
        kept = [] if "Cache-Control" in names else [("Cache-Control", "no-store")]
        length = ("Content-Length", str(len(self.body)))
        return [("Content-Type", self.kind), length, *kept, *_HEADERS, *self.more]


class Wrong(Exception):
    """A request that is refused: the status, and what would be right."""

    def __init__(self, status: int, text: str, *more: tuple[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.more = more


_TITLES: Final = {
    400: "This cannot be done",
    401: "Sign in",
    403: "Not allowed",
    404: "Not found",
    405: "Not this way",
    413: "Too much",
    500: "Something went wrong",
    503: "The store cannot be used",
}

Handler = Callable[["Board", Request, Viewer], Response]


class Board:
    """The page and all that belongs to it, for a viewer who is known.

    :param upstreams: by the names that are shown.
    :param changed: called with an order that was carried out, and the viewer who gave it.
    """

    def __init__(
        self, upstreams: Mapping[str, Upstream], changed: Callable[[Order, Viewer], object] | None = None
    ) -> None:
        self.upstreams = upstreams
        self._changed = changed

    def answer(self, request: Request, viewer: Viewer) -> Response:
        """The answer to a request; whether a form is the viewer's own was found out before.

        Never raises.
        """
        try:
            return _handler(_ROUTES, request)(self, request, viewer)
        except Exception as error:
            return refusal(request, _wrong(error))

    def page(self, request: Request, viewer: Viewer) -> Response:
        """The page; or some parts of it, as ``part`` in the query says."""
        only = frozenset(value for name, value in _fields(request.query) if name == "part")
        seen = status(self.upstreams)
        if only:
            return _html(200, page.document("", page.content(seen, viewer, only=only)))
        return _html(200, page.board(seen, viewer))

    def json(self, request: Request, viewer: Viewer) -> Response:
        """The whole state; or, with ``for=page`` in the query, what the page's script needs of it."""
        seen = status(self.upstreams)
        return _json(200, page.update(seen, viewer) if ("for", "page") in _fields(request.query) else seen)

    def schema(self, _request: Request, _viewer: Viewer) -> Response:
        """The JSON Schema of :meth:`json`."""
        return _json(200, schema())

    def ask(self, request: Request, viewer: Viewer, problem: str = "", code: int = 200) -> Response:
        """The page that asks whether an order is meant."""
        _require_change(viewer)
        order = Order.read(dict(_fields(request.body.decode() if request.method == "POST" else request.query)))
        for upstream in status(self.upstreams).upstreams:
            found = upstream.find(order.pool, order.host) if upstream.name == order.upstream else None
            if found:
                return _html(code, page.confirmation(order, upstream, *found, viewer, problem=problem))
        raise Wrong(404, f"There is no host {order.host!r} in pool {order.pool!r} of upstream {order.upstream!r}.")

    def change(self, request: Request, viewer: Viewer) -> Response:
        """Carry out an order, and lead back to the page."""
        _require_change(viewer)
        order = Order.read(dict(_fields(request.body.decode())))
        try:
            done = perform(self.upstreams, order, viewer.name)
        except InvalidConfig as error:
            if _wants_json(request):
                raise
            return self.ask(request, viewer, str(error), 400)
        if self._changed is not None:
            self._changed(order, viewer)
        if _wants_json(request):
            return _json(200, {"done": done})
        return Response(303, more=(("Location", "./"),))


def _require_change(viewer: Viewer) -> None:
    if not viewer.may_change:
        raise Wrong(403, f"{viewer.name} may look at hosts, and not change them.")


_ROUTES: Final[Mapping[str, Mapping[str, Handler]]] = {
    "/": {"GET": Board.page},
    "/status.json": {"GET": Board.json},
    "/schema.json": {"GET": Board.schema},
    "/change": {"GET": Board.ask, "POST": Board.change},
    **{f"/{name}": {"GET": lambda _board, request, _viewer: _asset(request)} for name in assets.TYPES},
}


class StatusSite:
    """The page, with rules of its own for who may look and who may change something.

    :param upstreams: one, or several by the names that are shown.
    :param token: see :class:`~resty_upstream.status.access.Access`, as for the others.
    :raises InvalidConfig: for a token that is too short.
    """

    def __init__(
        self,
        upstreams: Upstream | Mapping[str, Upstream],
        *,
        token: str | None = None,
        view_token: str | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        self._board = Board({upstreams.id: upstreams} if isinstance(upstreams, Upstream) else upstreams)
        self._access = Access(token, view_token, authorize)

    def answer(self, request: Request) -> Response:
        """The answer to a request; never raises."""
        try:
            return self._answer(request)
        except Exception as error:
            return refusal(request, _wrong(error))

    def _answer(self, request: Request) -> Response:
        if not request.path:
            return _to_directory(request)
        if request.path[1:] in assets.TYPES:
            return self._board.answer(request, Viewer(""))  # the page that asks who somebody is needs them
        if self._access.has_tokens and request.path in _DOORS:
            return _handler(_DOORS, request)(self, request)
        granted = self._access.grant(request)
        if granted is None:
            raise self._unknown()
        if request.method == "POST":
            self._require_own_form(request, granted)
        viewer, cookie = granted.viewer, ""
        if viewer.may_change and not granted.by_header:
            viewer, cookie = access.protect(viewer, request)
        answer = self._board.answer(request, viewer)
        return answer._replace(more=(*answer.more, ("Set-Cookie", cookie))) if cookie else answer

    def _unknown(self) -> Wrong:
        if self._access.has_tokens:
            return Wrong(401, "Sign in, or send the header Authorization: Bearer with a token.")
        if self._access.asks:
            return Wrong(403, "The application does not let you see this page.")
        what = "by a loopback address and name, without a proxy. Elsewhere it needs token= or authorize="
        return Wrong(403, f"This page answers to its own machine alone: {what}.")

    def _require_own_form(self, request: Request, granted: Granted) -> None:
        _require_change(granted.viewer)
        problem = access.why_foreign(request, dict(_fields(request.body.decode())), granted)
        if problem:
            raise Wrong(403, problem)

    def sign_in(self, request: Request) -> Response:
        """Begin a session for who has a token."""
        problem = access.why_cross_site(request)
        if problem:
            raise Wrong(403, problem)
        fields = dict(_fields(request.body.decode()))
        name = remark(fields.get("name", "").strip()[:60], "name") or "somebody"
        cookie = self._access.sign_in(name, fields.get("token", ""), request)
        if cookie is None:
            raise Wrong(401, "That is not a token of this page.")
        return Response(303, more=(("Location", "./"), ("Set-Cookie", cookie)))

    def sign_out(self, request: Request) -> Response:
        """End the session."""
        problem = access.why_cross_site(request)
        if problem:
            raise Wrong(403, problem)
        return Response(303, more=(("Location", "./"), ("Set-Cookie", self._access.sign_out(request))))


_DOORS: Final[Mapping[str, Mapping[str, Callable[[StatusSite, Request], Response]]]] = {
    "/login": {"POST": StatusSite.sign_in},
    "/logout": {"POST": StatusSite.sign_out},
}

H = TypeVar("H")


def _handler(routes: Mapping[str, Mapping[str, H]], request: Request) -> H:
    methods = routes.get(request.path)
    if methods is None:
        raise Wrong(404, f"There is no such page here; there are {', '.join(_ROUTES)}.")
    handler = methods.get("GET" if request.method == "HEAD" else request.method)
    if handler is None:
        allowed = ", ".join(methods)
        raise Wrong(405, f"This answers to {allowed} alone.", ("Allow", allowed))
    return handler


def _fields(encoded: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(encoded, keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_LIMIT)
    except ValueError as error:
        raise Wrong(400, "The fields are not those of a form of this page.") from error


def _to_directory(request: Request) -> Response:
    last = request.mount.rstrip("/").rpartition("/")[2]
    return Response(308, more=(("Location", f"./{quote(last)}/"),))


def _asset(request: Request) -> Response:
    name = request.path[1:]
    # Its address in the page changes with it.
    return Response(200, assets.content(name), assets.TYPES[name], (("Cache-Control", "max-age=31536000"),))


# ── answers ───────────────────────────────────────────────────────────────────────────────────


def too_much(request: Request) -> Response:
    """The answer to a body that is longer than any form of the page."""
    return refusal(request, Wrong(413, f"A form has at most {BODY_LIMIT:,} bytes."))


def refusal(request: Request, wrong: Wrong) -> Response:
    """A small page, or JSON, that says what is wrong."""
    if wrong.status == 401:
        wrong.more = (*wrong.more, ("WWW-Authenticate", "Bearer"))
    if _wants_json(request):
        answer = _json(wrong.status, {"status": wrong.status, "error": str(wrong)})
    elif wrong.status == 401:
        answer = _html(401, page.sign_in(str(wrong) if request.method == "POST" else ""))
    else:
        answer = _html(wrong.status, page.message(_TITLES[wrong.status], str(wrong)))
    return answer._replace(more=wrong.more)


def _wrong(error: Exception) -> Wrong:
    if isinstance(error, Wrong):
        return error
    if isinstance(error, UnicodeError):
        return Wrong(400, "Text must be UTF-8.")
    if isinstance(error, StoreError):
        return Wrong(503, f"Nothing was done: {error}.")
    if isinstance(error, UpstreamError):
        return Wrong(404 if isinstance(error, LookupError) else 400, f"Nothing was done: {error}.")
    _log.error("the status page failed", exc_info=error, extra=fields("page_failed"))
    return Wrong(500, "The log of the application says more.")


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "text/html" not in accept and ("application/json" in accept or request.path.endswith(".json"))


def _html(code: int, text: str) -> Response:
    return Response(code, text.encode("utf-8", "replace"))


def _json(code: int, value: Any) -> Response:
    return Response(code, msgspec.json.encode(value), "application/json")
