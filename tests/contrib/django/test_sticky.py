"""Sticky sessions and keys behind the middleware of Django, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.core.signing import Signer
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings

from resty_upstream import UpstreamAPI
from resty_upstream.contrib.django import UpstreamHttpRequest, get_upstream
from tests.contrib.django.test_middleware import View, in_both_stacks, site

HOSTS = {name: {"host": "192.0.2.9", "port": 1000 + number} for number, name in enumerate("abcdefgh")}


def setting(upstream: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    """The setting with one upstream of one pool."""
    return {"default": {"STORE": "memory://", "POOLS": {"p": {"hosts": HOSTS, **pool}}, **(upstream or {})}}


@pytest.fixture(autouse=True)
def _sticky() -> Iterator[None]:
    with override_settings(UPSTREAMS=setting(sticky=True)):
        yield


def pick(request: UpstreamHttpRequest) -> str:
    """The host of a call that connects to nothing."""
    return request.upstream.connect(lambda host, port, timeout_s: port).info.host.id


def home(request: UpstreamHttpRequest) -> HttpResponse:
    return HttpResponse(pick(request))


class Browser:
    """Somebody with cookies, who asks a view in the stack that it is made for."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._client: Any = AsyncClient() if iscoroutinefunction(view) else Client()
        self.cookies = self._client.cookies

    def get(self, **options: Any) -> Any:
        with site(self._view):
            if isinstance(self._client, Client):
                return self._client.get("/", **options)
            return asyncio.run(self._client.get("/", **options))


@pytest.fixture(params=in_both_stacks(home), ids=["sync", "async"])
def view(request: pytest.FixtureRequest) -> View:
    """One that answers with the host of its call, in each stack."""
    found: View = request.param
    return found


def test_a_session_stays_by_a_cookie(view: View) -> None:
    """Set when it begins, and not again; different sessions are spread."""
    browsers = [Browser(view) for _ in range(16)]
    responses = [browser.get() for browser in browsers]
    assert {len(response.cookies) for response in responses} == {1}
    homes = [response.content for response in responses]
    assert len(set(homes)) == 8
    again = [browser.get() for browser in browsers]
    assert [response.content for response in again] == homes
    assert not any(response.cookies for response in again)


def test_the_cookie_is_for_the_whole_site_and_for_no_script(view: View) -> None:
    """And goes back by TLS alone, where it came by TLS."""
    for secure in (False, True):
        cookie = Browser(view).get(secure=secure).cookies["upstream"]
        found = {name: cookie[name] for name in ("path", "max-age", "httponly", "samesite", "domain")}
        assert found == {"path": "/", "max-age": 86_400, "httponly": True, "samesite": "Lax", "domain": ""}
        assert bool(cookie["secure"]) is secure


def test_a_drained_host_keeps_its_session_and_one_that_is_down_does_not(view: View) -> None:
    browser = Browser(view)
    first = browser.get().content
    for host_id in "abcdefgh":
        UpstreamAPI(get_upstream()).set_weight("p", host_id, 0 if host_id == first.decode() else 10)
    assert browser.get().content == first
    UpstreamAPI(get_upstream()).down_host("p", first.decode())
    response = browser.get()
    assert response.content != first
    assert response.cookies
    assert browser.get().content == response.content


def test_cookies_are_signed_as_django_signs(view: View) -> None:
    """A new key may know older ones; of a cookie of another key nobody takes notice."""
    browser = Browser(view)
    first = browser.get().content
    assert Signer(salt="resty_upstream.sticky.default").unsign_object(browser.cookies["upstream"].value)[:2] == [
        "p",
        first.decode(),
    ]
    with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["x"]):
        other = Browser(view)
        other.cookies["upstream"] = browser.cookies["upstream"].value
        assert other.get().cookies, "a new session"
    from django.conf import settings

    with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        assert browser.get().content == first


@pytest.mark.parametrize("cookie", ["", "x", "x:y", "a" * 5000, ".eJx:abc", "é"])
def test_a_tampered_cookie_is_ignored(view: View, cookie: str) -> None:
    browser = Browser(view)
    browser.cookies["upstream"] = cookie
    assert browser.get().cookies["upstream"].value != cookie


def test_without_a_call_no_cookie_is_set() -> None:
    for view in in_both_stacks(lambda request: HttpResponse(str(request.upstream.get_pools().keys()))):
        assert not Browser(view).get().cookies


def test_a_response_that_streams_sets_the_cookie_of_calls_made_before() -> None:
    """What is called while it streams is too late, and served all the same."""

    def parts(request: UpstreamHttpRequest) -> Iterator[str]:
        yield pick(request)

    def before(request: UpstreamHttpRequest) -> StreamingHttpResponse:
        pick(request)
        return StreamingHttpResponse(parts(request))

    def late(request: UpstreamHttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts(request))

    for view, count in ((before, 1), (late, 0)):
        response = Browser(view).get()
        assert len(response.cookies) == count
        assert b"".join(response.streaming_content).decode() in HOSTS


def test_an_asynchronous_stream_sets_the_cookie_too() -> None:
    async def parts(request: UpstreamHttpRequest) -> AsyncIterator[str]:
        yield pick(request)

    async def view(request: UpstreamHttpRequest) -> HttpResponseBase:
        pick(request)
        return StreamingHttpResponse(parts(request))

    assert Browser(view).get().cookies


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["header:X-User", "cookie:user"])
def test_hash_goes_by_the_header_or_cookie_of_the_pool(key: str) -> None:
    """The same in both stacks: it is one application."""

    def home_of(view: View, user: str) -> bytes:
        browser = Browser(view)
        if key.startswith("header"):
            return bytes(browser.get(headers={"x-user": user}).content)
        browser.cookies["user"] = user
        return bytes(browser.get().content)

    with override_settings(UPSTREAMS=setting(method="hash", key=key)):
        views = in_both_stacks(home)
        homes = [{home_of(view, f"user{number}") for view in views for _ in range(2)} for number in range(20)]
        assert {len(each) for each in homes} == {1}
        assert len(set.union(*homes)) > 3


def test_hash_behind_a_proxy_goes_by_the_client(view: View) -> None:
    """As far as the proxy is trusted."""

    def homes() -> set[bytes]:
        forwarded = [f"203.0.113.1, 198.51.100.{number}" for number in range(20)]
        return {Browser(view).get(headers={"x-forwarded-for": each}).content for each in forwarded}

    with override_settings(UPSTREAMS=setting({"TRUSTED_PROXIES": ["127.0.0.1"]}, method="hash")):
        assert len(homes()) > 3
    with override_settings(UPSTREAMS=setting(method="hash")):
        assert len(homes()) == 1
