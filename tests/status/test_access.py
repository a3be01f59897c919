"""Who may look, and who may change something: over real servers, where nothing is to be trusted."""

from __future__ import annotations

import hashlib
import re
import socket
import time
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import InvalidConfig, Upstream
from resty_upstream.status import TYPES, Request, Viewer
from resty_upstream.status.access import Access, is_local, why_cross_site
from resty_upstream.status.asgi import StatusApp
from tests.helpers import open_upstream
from tests.status.conftest import POOLS, TOKEN, VIEW_TOKEN, Site, Start

DOWN = {"do": "down", "upstream": "default", "pool": "p", "host": "a", "reason": "new kernel"}
BEARER = f"Bearer {TOKEN}"


def is_up(upstream: Upstream) -> bool:
    up: bool = upstream.get_pools()["p"]["hosts"]["a"]["up"]
    return up


def field_of(site: Site, cookie: str) -> tuple[str, dict[str, str]]:
    """The cookies and the hidden field of a form of the page."""
    answer = site.get("/change?do=down&upstream=default&pool=p&host=a", Cookie=cookie)
    assert answer.status == 200
    found = re.search(r'name="form-token" value="(\w+)"', answer.text)
    assert found
    return f"{cookie}; {answer.cookie}", {"form-token": found[1]}


# ── without configuration: this machine alone ─────────────────────────────────────────────────


def test_without_configuration_this_machine_may_look_and_change_nothing(start: Start, upstream: Upstream) -> None:
    site = start(upstream)
    page = site.get("/")
    assert page.status == 200
    assert "change?" not in page.text
    for path in ("/status.json", "/schema.json"):
        assert site.get(path).status == 200
    refused = site.post("/change", DOWN)
    assert refused.status == 403
    assert site.get("/change?do=down&upstream=default&pool=p&host=a").status == 403
    assert is_up(upstream)


def request(**changes: Any) -> Request:
    plain = Request("GET", "", "/", "", {"host": "localhost:8000"}, "127.0.0.1", secure=False, http_version="1.1")
    return plain._replace(**changes)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "127.8.8.8", "[::1]:8000"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_program_of_this_machine_is_local(peer: str, host: str) -> None:
    assert is_local(request(peer=peer, headers={"host": host}))


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": "192.0.2.1"},
        {"peer": ""},  # a unix socket: there is a proxy in front
        {"peer": "localhost.evil.test"},
        {"headers": {}},
        {"headers": {"host": "evil.test"}},  # bound to 127.0.0.1 after the page was loaded
        {"headers": {"host": "127.0.0.1.evil.test"}},
        {"headers": {"host": "localhost@evil.test"}},
        {"headers": {"host": "evil.test@localhost"}},
        {"headers": {"host": "evil.test#localhost"}},
        {"headers": {"host": "[::1"}},
        {"headers": {"host": "localhost", "x-forwarded-for": "127.0.0.1"}},
        {"headers": {"host": "localhost", "forwarded": "for=127.0.0.1"}},
        {"headers": {"host": "localhost", "x-real-ip": "127.0.0.1"}},
        {"headers": {"host": "localhost", "via": "1.1 proxy"}},
        {"http_version": "1.0"},
    ],
)
def test_what_may_come_from_elsewhere_is_not_local(changes: dict[str, Any]) -> None:
    assert not is_local(request(**changes))


@pytest.mark.parametrize("headers", [{"Host": "evil.test"}, {"X_Forwarded_For": "127.0.0.1"}])
def test_a_rebound_name_and_a_proxy_are_refused(start: Start, upstream: Upstream, headers: dict[str, str]) -> None:
    answer = start(upstream).get("/", **headers)
    assert answer.status == 403
    assert "loopback" in answer.text


# ── tokens ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("header", ["", "Bearer wrong", "Bearer ", f"Basic {TOKEN}", TOKEN])
def test_without_the_token_nobody_sees_anything(site: Site, upstream: Upstream, header: str) -> None:
    for path in ("/", "/status.json", "/schema.json", "/change?do=down&upstream=default&pool=p&host=a"):
        answer = site.get(path, Authorization=header)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "a.test" not in answer.text
    assert site.post("/change", DOWN, Authorization=header).status == 401
    assert is_up(upstream)


def test_a_token_in_the_header_looks_and_changes(site: Site, upstream: Upstream) -> None:
    assert site.get("/status.json", Authorization=BEARER).json["version"] == 1
    answer = site.post("/change", DOWN, Authorization=BEARER, Accept="application/json")
    assert (answer.status, answer.json) == (200, {"done": "a in p is down."})
    assert not is_up(upstream)


def test_a_view_token_looks_and_changes_nothing(site: Site, upstream: Upstream) -> None:
    assert site.get("/", Authorization=f"Bearer {VIEW_TOKEN}").status == 200
    assert site.post("/change", DOWN, Authorization=f"Bearer {VIEW_TOKEN}").status == 403
    cookie = site.sign_in(VIEW_TOKEN)
    page = site.get("/", Cookie=cookie)
    assert "change?" not in page.text
    assert "view only" in page.text
    assert site.get("/change?do=down&upstream=default&pool=p&host=a", Cookie=cookie).status == 403
    assert site.post("/change", DOWN, Cookie=cookie).status == 403
    assert is_up(upstream)


def test_the_cookie_of_a_session_is_strict(site: Site) -> None:
    answer = site.post("/login", {"name": "alice", "token": TOKEN})
    (cookie,) = answer.headers.get_all("set-cookie", [])
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    assert answer.headers["location"] == "./"


def test_a_wrong_token_begins_no_session(site: Site) -> None:
    answer = site.post("/login", {"name": "alice", "token": "wrong"})
    assert (answer.status, answer.cookie) == (401, "")
    assert "That is not a token" in answer.text


@pytest.mark.parametrize("position", [0, 12, 30, -1])
def test_a_cookie_that_was_changed_is_no_session(site: Site, position: int) -> None:
    name, _, value = site.sign_in().partition("=")
    letter = "0" if value[position] != "0" else "1"
    forged = value[:position] + letter + (value[position + 1 :] if position != -1 else "")
    assert site.get("/", Cookie=f"{name}={forged}").status == 401


def test_a_session_of_the_other_token_gives_no_more(site: Site) -> None:
    """The right to change something is not part of what a cookie says, but of the token that signed it."""
    assert "view only" in site.get("/", Cookie=site.sign_in(VIEW_TOKEN)).text
    assert "may change hosts" in site.get("/", Cookie=site.sign_in(TOKEN)).text


def test_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    access = Access(TOKEN, None, None)
    cookie = access.sign_in("alice", TOKEN, request())
    assert cookie
    visit = request(headers={"cookie": cookie.partition(";")[0]})
    assert access.grant(visit)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 13 * 3600)
    assert access.grant(visit) is None


def test_signing_out_forgets_the_cookie(site: Site) -> None:
    answer = site.post("/logout", {}, Cookie=site.sign_in())
    assert answer.status == 303
    assert "Max-Age=0" in answer.headers["set-cookie"]


@pytest.mark.parametrize("name", ["token", "view_token"])
@pytest.mark.parametrize("given", ["", "short", 5])
def test_a_token_must_be_long(upstream: Upstream, name: str, given: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"{name} must be text of at least 16 characters"):
        StatusApp(upstream, **{name: given})


# ── forms of other sites ──────────────────────────────────────────────────────────────────────


def test_a_form_of_the_page_is_taken(site: Site, upstream: Upstream) -> None:
    cookies, field = field_of(site, site.sign_in())
    answer = site.post("/change", DOWN | field, Cookie=cookies)
    assert (answer.status, answer.headers["location"]) == (303, "./")
    assert not is_up(upstream)
    assert [each.by for each in upstream.history()] == ["alice"]


@pytest.mark.parametrize("given", [{}, {"form-token": ""}, {"form-token": "0" * 64}, {"form-token": "é"}])
def test_a_form_without_its_field_is_refused(site: Site, upstream: Upstream, given: dict[str, str]) -> None:
    cookies, _ = field_of(site, site.sign_in())
    answer = site.post("/change", DOWN | given, Cookie=cookies)
    assert answer.status == 403
    assert "Open it again" in answer.text
    assert is_up(upstream)


def test_the_field_of_one_person_is_not_that_of_another(site: Site, upstream: Upstream) -> None:
    cookies, field = field_of(site, site.sign_in(name="mallory"))
    forms = cookies.partition("; ")[2]
    answer = site.post("/change", DOWN | field, Cookie=f"{site.sign_in(name='alice')}; {forms}")
    assert answer.status == 403
    assert is_up(upstream)


def test_a_field_without_its_cookie_is_refused(site: Site, upstream: Upstream) -> None:
    cookie = site.sign_in()
    _, field = field_of(site, cookie)
    for cookies in (cookie, f"{cookie}; resty_upstream_status_forms="):
        assert site.post("/change", DOWN | field, Cookie=cookies).status == 403
    assert is_up(upstream)


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Sec_Fetch_Site": "none"},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.test"},
        {"Origin": "http://["},
    ],
)
def test_a_form_that_another_site_sends_is_refused(
    site: Site, upstream: Upstream, headers: dict[str, str]
) -> None:
    cookies, field = field_of(site, site.sign_in())
    assert site.post("/change", DOWN | field, Cookie=cookies, **headers).status == 403
    assert site.post("/change", DOWN, Authorization=BEARER, **headers).status == 403
    assert site.post("/login", {"token": TOKEN}, **headers).status == 403
    assert site.post("/logout", {}, Cookie=cookies, **headers).status == 403
    assert is_up(upstream)


def test_who_names_no_host_is_of_another_site() -> None:
    assert why_cross_site(request(headers={"origin": "null"}))
    assert not why_cross_site(request(headers={}))  # no browser: it proves itself by other means


def test_what_a_browser_says_of_the_pages_own_forms_is_right(site: Site, upstream: Upstream) -> None:
    cookies, field = field_of(site, site.sign_in())
    own = [
        {"Sec_Fetch_Site": "same-origin", "Origin": "null"},  # as of a page that sends no referrer
        {"Sec_Fetch_Site": "same-origin", "Origin": site.url},
        {"Origin": site.url},
    ]
    for headers in own:
        assert site.post("/change", DOWN | field, Cookie=cookies, **headers).status == 303


def test_a_change_is_never_made_by_get(site: Site, upstream: Upstream) -> None:
    query = "&".join(f"{name}={value}" for name, value in DOWN.items() if name != "reason")
    assert site.get(f"/change?{query}", Authorization=BEARER).status == 200
    assert site.ask("HEAD", f"/change?{query}", Authorization=BEARER).status == 200
    assert is_up(upstream)


# ── the application decides ───────────────────────────────────────────────────────────────────


def test_the_application_names_who_may_look_and_change(start: Start, upstream: Upstream) -> None:
    def authorize(native: Any) -> Viewer | str | None:
        headers = dict(native.get("headers", ()))
        name = headers.get(b"x-user", b"").decode() or native.get("HTTP_X_USER", "")
        return {"": None, "bob": Viewer("bob")}.get(name, name)

    site = start(upstream, authorize=authorize)
    nobody = site.get("/")
    assert (nobody.status, "www-authenticate" in nobody.headers) == (403, False)
    assert "change?" not in site.get("/", X_User="bob").text
    assert site.post("/change", DOWN, X_User="bob").status == 403
    page = site.get("/change?do=down&upstream=default&pool=p&host=a", X_User="carol")
    assert site.post("/change", DOWN, X_User="carol", Cookie=page.cookie).status == 403
    field = re.search(r'name="form-token" value="(\w+)"', page.text)
    assert field
    assert is_up(upstream)
    assert site.post("/change", DOWN | {"form-token": field[1]}, X_User="carol", Cookie=page.cookie).status == 303
    assert [each.by for each in upstream.history()] == ["carol"]


def test_an_application_that_fails_lets_nobody_in(
    start: Start, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    def authorize(_native: Any) -> str:
        raise RuntimeError("secret of the application")

    answer = start(upstream, authorize=authorize).get("/")
    assert answer.status == 500
    assert "secret" not in answer.text
    assert "secret of the application" in caplog.text


@pytest.mark.parametrize("yes", [True, 1, object(), ["alice"]])
def test_an_application_that_names_nobody_lets_nobody_in(
    start: Start, upstream: Upstream, yes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As one does whose callable is a coroutine function: what it returns is true, whoever asks."""
    site = start(upstream, authorize=lambda _native: yes)
    assert site.get("/").status == 500
    assert site.post("/change", DOWN).status == 500
    assert "authorize must return a name, a Viewer or None" in caplog.text
    assert is_up(upstream)


# ── what is sent ──────────────────────────────────────────────────────────────────────────────


def test_a_body_is_bounded(site: Site, upstream: Upstream) -> None:
    answer = site.post("/change", DOWN | {"reason": "x" * 20_000}, Authorization=BEARER)
    assert answer.status == 413
    assert "16,384 bytes" in answer.text
    assert is_up(upstream)


def test_a_body_without_an_end_is_not_waited_for(start: Start, upstream: Upstream) -> None:
    site = start(upstream, token=TOKEN)
    with socket.create_connection(("localhost", site.port), 10) as sock:
        head = f"POST /change HTTP/1.1\r\nHost: localhost\r\nAuthorization: {BEARER}\r\n"
        sock.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode() + b"x" * 20_000)
        with sock.makefile("rb") as answer:
            assert answer.readline().split()[1] == b"413"


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe", b"do=%ff", b"&".join(b"a=1" for _ in range(100)), b"do=explode", b""],
)
def test_a_body_that_is_no_form_of_the_page_is_refused(site: Site, upstream: Upstream, body: bytes) -> None:
    assert site.post("/change", body, Authorization=BEARER).status == 400
    assert is_up(upstream)


def test_hostile_headers_do_no_harm(site: Site) -> None:
    odd = hashlib.sha512(b"odd").hexdigest() * 20
    for cookie in (
        "=",
        ";;;",
        "resty_upstream_status=",
        "resty_upstream_status=a.b.c.d",
        "resty_upstream_status=é",
        odd,
    ):
        assert site.ask("GET", "/", Cookie=cookie.encode().decode("latin-1")).status == 401
    assert site.get("/", Authorization="Bearer é").status == 401


def words(*known: str) -> st.SearchStrategy[str]:
    return st.sampled_from(known) | st.text(max_size=20)


@given(
    method=words("GET", "POST", "HEAD", "PUT"),
    path=words("", "/", "/change", "/login", "/logout", "/status.json", "/status.css"),
    query=words("do=down&upstream=default&pool=p&host=a", "for=page", "part=pool/default/p"),
    headers=st.dictionaries(
        words("host", "cookie", "authorization", "origin", "accept"), words("localhost", "Bearer x")
    ),
    body=st.binary(max_size=50) | st.just(urlencode(DOWN).encode()),
    options=st.sampled_from(
        [{}, {"token": TOKEN}, {"view_token": VIEW_TOKEN}, {"authorize": lambda _native: None}]
    ),
)
def test_whatever_a_stranger_sends_is_answered_and_changes_nothing(
    method: str, path: str, query: str, headers: dict[str, str], body: bytes, options: dict[str, Any]
) -> None:
    upstream = open_upstream(POOLS)
    asked = request(method=method, path=path, query=query, headers={"host": "localhost", **headers}, body=body)
    answer = StatusApp(upstream, **options).answer(asked)
    assert answer.status in (200, 303, 308, 400, 401, 403, 404, 405)
    assert is_up(upstream)
    if options and answer.status == 200:
        assert path.lstrip("/") in TYPES
