"""The page, as HTML. Complete without JavaScript; with it, what changes is patched into the same elements.

A *part* is an element that is replaced as a whole when what it consists of has changed (its ``data-made``), and
whose texts are patched in place as long as it has not: the elements with ``data-t``, in their order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple
from urllib.parse import urlencode

from msgspec import Struct

from resty_upstream.history import Transition
from resty_upstream.status.actions import VERBS, Order, consequence
from resty_upstream.status.assets import digest
from resty_upstream.status.data import HostStatus, PoolStatus, Status, UpstreamStatus
from resty_upstream.status.html import Markup, join, tag
from resty_upstream.status.words import (
    clock,
    host_words,
    notices,
    pool_words,
    setting_words,
    state_of,
    state_word,
    title,
    upstream_words,
    zone,
)


class Viewer(NamedTuple):
    """Who looks at the page, and what is needed to let them change something."""

    name: str
    may_change: bool = False
    form_field: tuple[str, str] = ("", "")
    """Name and value of the hidden field that protects forms from other sites."""
    may_leave: bool = False
    """Whether they came by a form that can be left again."""
    home: tuple[str, str] = ("", "")
    """Name and address of the site that the page is a part of."""


# ── what is patched ───────────────────────────────────────────────────────────────────────────


class Row(Struct, frozen=True, array_like=True):
    """What of a host is drawn, sorted or filtered by: numbers for the script."""

    state: str
    share: float
    requests: int
    errors: int
    in_flight: int
    p90: float


class Part(Struct, frozen=True, kw_only=True):
    """A part of the page as it should be now."""

    key: str
    made: str
    texts: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()


class Update(Struct, frozen=True, kw_only=True):
    """What ``status.json?for=page`` says."""

    at: float
    clock: str
    title: str
    parts: tuple[Part, ...]


def update(status: Status, viewer: Viewer) -> Update:
    """What the page of this viewer should show now."""
    parts = tuple(part for upstream in status.upstreams for part in _parts(status, upstream, viewer))
    return Update(at=status.at, clock=_now(status), title=title(status), parts=parts)


def _parts(status: Status, upstream: UpstreamStatus, viewer: Viewer) -> Iterator[Part]:
    yield _head_part(upstream)
    for pool in upstream.pools:
        yield _pool_part(status, upstream, pool, viewer)
    yield _history_part(upstream)


def _part_of(texts: Sequence[str], made_of: object, *keys: str, rows: Iterable[Row] = ()) -> Part:
    made = blake2b(repr(made_of).encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Part(key="/".join(map(_key, keys)), made=made, texts=tuple(texts), rows=tuple(rows))


def _key(text: str) -> str:
    return text.replace("~", "~0").replace("/", "~1")


def _head_part(upstream: UpstreamStatus) -> Part:
    return _part_of(upstream_words(upstream), (notices(upstream), upstream.checked_by), "upstream", upstream.name)


def _pool_part(status: Status, upstream: UpstreamStatus, pool: PoolStatus, viewer: Viewer) -> Part:
    texts = [*pool_words(pool)]
    for host in pool.hosts:
        texts += host_words(host, status.at)
    hosts = [(host.id, host.address, host.settings, host.declared, host.checked) for host in pool.hosts]
    made_of = (
        hosts,
        pool.priority,
        pool.method,
        pool.settings,
        pool.removed_hosts,
        pool.used,
        pool.up,
        viewer.may_change,
    )
    return _part_of(texts, made_of, "pool", upstream.name, pool.id, rows=map(_row, pool.hosts))


def _row(host: HostStatus) -> Row:
    p90 = host.latency.p90 if host.latency else 0.0
    return Row(state_of(host), round(host.share, 4), host.requests, host.errors, host.in_flight, p90)


def _history_part(upstream: UpstreamStatus) -> Part:
    return _part_of((), upstream.transitions[-1:] or upstream.id, "history", upstream.name)


# ── documents ─────────────────────────────────────────────────────────────────────────────────


def document(heading: str, *content: str, script: bool = False) -> str:
    """A page of HTML."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", heading),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="icon.svg", type="image/svg+xml"),
        tag("link", rel="stylesheet", href=f"status.css?{digest('status.css')}"),
        tag("script", src=f"theme.js?{digest('theme.js')}"),
        tag("script", src=f"status.js?{digest('status.js')}", defer=True) if script else "",
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *content), lang='en')}\n"


def board(status: Status, viewer: Viewer) -> str:
    """The page itself."""
    return document(
        title(status),
        tag("a", "Skip to the hosts", class_="skip", href="#board"),
        tag("header", _trail(viewer), tag("h1", "Upstreams"), _whoami(viewer), class_="top"),
        content(status, viewer),
        script=True,
    )


def content(status: Status, viewer: Viewer, *, only: frozenset[str] = frozenset()) -> Markup:
    """The page without its head.

    :param only: the keys of parts; those of all others are left out.
    """
    sections = [_upstream(status, upstream, viewer, only) for upstream in status.upstreams]
    nothing = "" if sections else tag("p", "No upstream is configured.", class_="empty")
    return join(
        tag("section", _live(status), _tools(), class_="controls", aria_label="Updates and choice of hosts"),
        tag("main", *sections, nothing, id="board", tabindex="-1"),
        _for_script(),
    )


def _live(status: Status) -> Markup:
    return tag(
        "p",
        tag("span", "as of ", id="live-word"),
        tag("time", _now(status), id="live-at"),
        tag("button", "Pause", type="button", id="pause", hidden=True),
        class_="live",
        id="live",
    )


def _now(status: Status) -> str:
    return f"{clock(status.at, status.at)} {zone(status.at)}"


def _trail(viewer: Viewer) -> Markup:
    name, address = viewer.home
    link = tag("a", tag("bdi", name), href=address)
    return tag("nav", link, aria_label="Breadcrumbs", class_="trail") if address else Markup()


def _whoami(viewer: Viewer) -> Markup:
    what = "may change hosts" if viewer.may_change else "view only"
    return tag(
        "div",
        tag("span", tag("bdi", viewer.name), f" · {what}"),
        _form("logout", viewer, tag("button", "Sign out", type="submit")) if viewer.may_leave else "",
        class_="who",
    )


_SORTS: Final = {
    "": "as configured",
    "state": "trouble first",
    "share": "share",
    "requests": "requests",
    "errors": "errors",
    "in_flight": "in flight",
    "p90": "latency",
}
_STATES: Final = {
    "": "all",
    "trouble": "all but up",
    "up": "up",
    "failed": "failed",
    "manual": "down by hand",
    "drained": "drained",
}


def _tools() -> Markup:
    """What needs the script: it shows them."""
    return tag(
        "form",
        tag(
            "label",
            "Find ",
            tag("input", type="search", id="find", autocomplete="off", placeholder="pool, host, address"),
        ),
        tag("label", "Show ", _select("show", _STATES)),
        tag("label", "Sort ", _select("sort", _SORTS)),
        tag("button", "Collapse all", type="button", id="fold"),
        tag("output", id="found", for_="find show"),
        class_="tools",
        id="tools",
        role="search",
        hidden=True,
    )


def _select(name: str, options: Mapping[str, str]) -> Markup:
    return tag("select", *(tag("option", text, value=value) for value, text in options.items()), id=name)


def _for_script() -> Markup:
    """The places for the script's news and questions."""
    return join(
        tag("div", id="news", class_="hidden", aria_live="polite", role="status"),
        tag("dialog", id="dialog", aria_labelledby="question"),
    )


# ── an upstream ───────────────────────────────────────────────────────────────────────────────


def _upstream(status: Status, upstream: UpstreamStatus, viewer: Viewer, only: frozenset[str]) -> Markup:
    def wanted(part: Part) -> bool:
        return not only or part.key in only

    head, history = _head_part(upstream), _history_part(upstream)
    pools = [(_pool_part(status, upstream, pool, viewer), pool) for pool in upstream.pools]
    return tag(
        "section",
        _head(head, upstream) if wanted(head) else "",
        *(_pool(part, upstream, pool, viewer) for part, pool in pools if wanted(part)),
        _history(history, upstream, status.at) if wanted(history) else "",
        class_="upstream",
    )


def _head(part: Part, upstream: UpstreamStatus) -> Markup:
    summary, sums = part.texts
    return tag(
        "div",
        tag("h2", tag("bdi", upstream.name)),
        tag("p", summary, class_="summary", data_t=True),
        tag("p", sums, class_="sums", data_t=True),
        *(tag("p", notice, class_="notice") for notice in notices(upstream)),
        tag("p", f"Hosts are checked by {upstream.checked_by}.", class_="sums") if upstream.checked_by else "",
        class_="head",
        data_part=part.key,
        data_made=part.made,
    )


# ── a pool ────────────────────────────────────────────────────────────────────────────────────

_COLUMNS: Final = {
    "host": "Host",
    "state": "State",
    "share": "Share",
    "weight": "Weight",
    "traffic": "Traffic",
    "requests": "Requests",
    "errors": "Errors",
    "flight": "In flight",
    "latency": "ms p50 / 90 / 99",
    "fails": "Failures",
    "check": "Last check",
}


def _pool(part: Part, upstream: UpstreamStatus, pool: PoolStatus, viewer: Viewer) -> Markup:
    up, standing, *rest = part.texts
    each = len(rest) // max(1, len(pool.hosts))
    rows = [
        _host(upstream, pool, host, rest[number * each : (number + 1) * each], viewer)
        for number, host in enumerate(pool.hosts)
    ]
    what = f"priority {pool.priority} · {pool.method.replace('_', ' ')}"
    summary = tag(
        "summary",
        tag("h3", tag("bdi", pool.id)),
        tag("span", what, class_="what"),
        tag("span", up, data_t=True, class_="up"),
        tag("span", standing, data_t=True, class_="standing"),
    )
    return tag(
        "details",
        summary,
        _notes(pool),
        _table(pool, rows, viewer) if rows else tag("p", "It has no hosts.", class_="empty"),
        open=True,
        class_="pool used" if pool.used else "pool",
        data_part=part.key,
        data_made=part.made,
    )


def _notes(pool: PoolStatus) -> Markup:
    notes = [f"Set at run time: {setting_words(setting)}" for setting in pool.settings]
    notes += [f"Removed at run time: host {host_id}" for host_id in pool.removed_hosts]
    notes += ["Created at run time"] if not pool.declared else []
    return tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else Markup()


def _table(pool: PoolStatus, rows: Sequence[Markup], viewer: Viewer) -> Markup:
    heads = [tag("th", text, scope="col", class_=name) for name, text in _COLUMNS.items()]
    if viewer.may_change:
        heads.append(tag("th", tag("span", "Actions", class_="hidden"), scope="col", class_="do"))
    return tag(
        "table",
        tag("caption", f"Hosts of pool {pool.id}", class_="hidden"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
    )


def _host(
    upstream: UpstreamStatus, pool: PoolStatus, host: HostStatus, words: Sequence[str], viewer: Viewer
) -> Markup:
    state, detail, share, weight, *others = words
    names = [name for name in _COLUMNS if name not in ("host", "state", "share", "weight", "traffic")]
    cells = [
        tag(
            "th",
            tag("bdi", host.id, class_="id"),
            tag("bdi", host.address, class_="address"),
            _chips(host),
            scope="row",
            class_="host",
        ),
        tag(
            "td",
            tag("span", state, class_="word", data_t=True),
            tag("span", detail, class_="detail", data_t=True),
            class_="state",
        ),
        tag("td", _bar(host.share), tag("span", share, data_t=True), class_="share"),
        tag("td", weight, data_t=True, class_="weight"),
        tag("td", class_="traffic"),
        *(tag("td", text, data_t=True, class_=name) for name, text in zip(names, others, strict=True)),
    ]
    if viewer.may_change:
        cells.append(tag("td", _menu(upstream, pool, host), class_="do"))
    return tag("tr", *cells, data_state=state_of(host))


def _bar(share: float) -> Markup:
    # A width as an attribute: styles are not allowed in the page.
    return tag("svg", tag("rect", width=f"{share:.1%}", height="100%"), class_="bar", aria_hidden="true")


def _chips(host: HostStatus) -> Markup:
    notes = [*map(setting_words, host.settings), *([] if host.declared else ["added at run time"])]
    return join(*(tag("span", note, class_="chip") for note in notes))


def _menu(upstream: UpstreamStatus, pool: PoolStatus, host: HostStatus) -> Markup:
    query = urlencode({"upstream": upstream.name, "pool": pool.id, "host": host.id})
    links = [
        tag("a", verb.label, href=f"change?do={name}&{query}", class_=f"do-{name}") for name, verb in VERBS.items()
    ]
    label = f"Change host {host.id} of pool {pool.id}"
    return tag("details", tag("summary", "⋯", aria_label=label), tag("div", *links), class_="menu")


# ── transitions ───────────────────────────────────────────────────────────────────────────────


def _history(part: Part, upstream: UpstreamStatus, at: float) -> Markup:
    rows = [_transition(each, at) for each in reversed(upstream.transitions)]
    heads = (tag("th", text, scope="col") for text in ("When", "Pool", "Host", "From", "To", "Why", "By"))
    table = tag(
        "table",
        tag("caption", f"Recent transitions of {upstream.name}", class_="hidden"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *rows),
    )
    return tag(
        "details",
        tag("summary", tag("h3", "Recent transitions")),
        table if rows else tag("p", "None is recorded.", class_="empty"),
        open=True,
        class_="history",
        data_part=part.key,
        data_made=part.made,
    )


def _transition(each: Transition, at: float) -> Markup:
    moved = (state_word(each.before), state_word(each.after))
    texts = (each.pool, each.host, *moved, each.reason, each.by)
    cells = (tag("td", tag("bdi", text)) for text in texts)
    return tag("tr", tag("td", tag("time", clock(each.at, at))), *cells, data_state=each.after)


# ── other pages ───────────────────────────────────────────────────────────────────────────────


def confirmation(
    order: Order,
    upstream: UpstreamStatus,
    pool: PoolStatus,
    host: HostStatus,
    viewer: Viewer,
    *,
    problem: str = "",
) -> str:
    """The page that asks whether an order is meant, with what would come of it; the script shows its form.

    :param problem: what was wrong with the order as it was given.
    """
    question = order.filled(order.verb.question)
    hidden = [
        tag("input", type="hidden", name=name, value=getattr(order, name))
        for name in ("do", "upstream", "pool", "host")
    ]
    form = _form(
        "change",
        viewer,
        tag("h1", question, id="question"),
        tag("p", f"Host {host.id} ({host.address}) in pool {pool.id}.", class_="what"),
        tag("p", consequence(order, upstream, pool, host), class_="consequence"),
        _problem(problem),
        *hidden,
        _weight_field(order, host) if order.do == "weight" else "",
        _field("Reason", "reason", order.reason, "for those who look later", maxlength=200),
        _field("Until", "until", order.until, f"30m, 2h or 15:00 {zone(time.time())}; empty: for good")
        if order.verb.may_end
        else "",
        tag(
            "p",
            tag("button", order.verb.label, type="submit", class_="primary"),
            tag("a", "Cancel", href="./", class_="button", id="cancel"),
            class_="buttons",
        ),
        class_="confirm",
    )
    return document(question, tag("main", form, class_="alone"))


def _weight_field(order: Order, host: HostStatus) -> Markup:
    return _field("Weight", "weight", order.weight or str(host.weight), "", inputmode="numeric", required=True)


def _field(label: str, name: str, value: str, hint: str, **attributes: str | int | bool) -> Markup:
    box = tag(
        "input",
        type="text",
        name=name,
        value=value,
        autocomplete="off",
        aria_describedby=f"hint-{name}" if hint else None,
        **attributes,
    )
    return tag(
        "label", tag("span", label), box, tag("small", hint, id=f"hint-{name}") if hint else "", class_="field"
    )


def _form(action: str, viewer: Viewer, *content: str, class_: str | None = None) -> Markup:
    name, value = viewer.form_field
    protection = tag("input", type="hidden", name=name, value=value) if name else ""
    return tag("form", protection, *content, method="post", action=action, class_=class_)


def _problem(text: str) -> Markup:
    return tag("p", text, class_="problem", role="alert") if text else Markup()


def sign_in(problem: str = "") -> str:
    """The page that asks for a token."""
    form = tag(
        "form",
        tag("h1", "Upstreams"),
        _problem(problem),
        _field("Your name", "name", "", "shown beside what you change", maxlength=60, required=True),
        tag(
            "label",
            tag("span", "Token"),
            tag("input", type="password", name="token", autocomplete="current-password", required=True),
            class_="field",
        ),
        tag("p", tag("button", "Sign in", type="submit", class_="primary"), class_="buttons"),
        method="post",
        action="login",
        class_="confirm",
    )
    return document("Sign in · Upstreams", tag("main", form, class_="alone"))


def message(heading: str, text: str) -> str:
    """A small page that says what is wrong, and what would be right."""
    return document(
        heading,
        tag(
            "main",
            tag("h1", heading),
            tag("p", text),
            tag("p", tag("a", "To the status page", href="./")),
            class_="alone",
        ),
    )
