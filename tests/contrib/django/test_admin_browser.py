"""The upstreams in the admin, in a real Chromium: from the login to the log."""
# ruff: noqa: F401, F811 - fixtures of another module

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import override_settings
from playwright.sync_api import Browser, Page, expect

from resty_upstream import Upstream
from resty_upstream.contrib.django import get_upstream
from tests.helpers import Peer
from tests.status.test_browser import (
    WATCH,
    assert_accessible,
    browser,
    choose,
    is_live,
    peers,
    row,
    state,
    take_a_down_by_its_form,
)

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/admin/resty_upstream/upstream/"


@pytest.fixture(autouse=True, scope="module")
def _orm_beside_playwright() -> Iterator[None]:
    """Playwright has an event loop in this thread, which the tests are not in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield


@pytest.fixture(autouse=True)
def upstream(tmp_path: Path, peers: dict[str, Peer]) -> Iterator[Upstream]:
    """A pool of back ends that run."""
    tmp_path.chmod(0o700)
    hosts = {host_id: {**peer.options, "weight": 10} for host_id, peer in peers.items()}
    pools = {"primary": {"hosts": hosts, "failed_timeout": 300, "failed_timeout_max": 300}}
    with override_settings(UPSTREAMS={"default": {"STORE": f"sqlite://{tmp_path}/u.db", "POOLS": pools}}):
        yield get_upstream()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, live_server: Any) -> Iterator[Page]:
    """A window of a site's user, in which no policy is violated and no script fails."""
    context = browser.new_context(base_url=live_server.url, color_scheme=request.param)
    context.add_init_script(WATCH)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    seen = page.evaluate("window.seen")
    context.close()
    assert (errors, seen) == ([], [])


def log_in(page: Page, *permissions: str, to: str = "/admin/") -> None:
    user = User.objects.create_user("alice", password="secret", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    page.goto(to)
    page.get_by_label("Username").fill("alice")
    page.get_by_label("Password").fill("secret")
    page.get_by_role("button", name="Log in").click()


def test_from_the_index_to_a_change_to_the_log_and_out(page: Page, upstream: Upstream, peers: Any) -> None:
    log_in(page, "change_upstream")
    page.get_by_role("main").get_by_role("link", name="Upstreams").last.click()
    is_live(page)
    expect(state(page, "a")).to_have_text("up")
    peers["b"].stop()
    for _ in range(10):
        upstream.connect().client.close()
    expect(state(page, "b")).to_have_text("failed")
    dialog = choose(page, "a", "Take down")
    dialog.get_by_label("Reason").fill("new kernel")
    dialog.get_by_role("button", name="Take down").click()
    expect(state(page, "a")).to_have_text("down")
    expect(row(page, "a").locator(".detail")).to_contain_text("new kernel")
    assert upstream.get_pools()["primary"]["hosts"]["a"]["by"] == "alice"
    assert LogEntry.objects.get().change_message == "a in primary is down. Reason: new kernel."
    page.get_by_role("link", name="Django administration").click()
    page.get_by_role("link", name="default/primary/a").click()
    is_live(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Logged out")).to_be_visible()


def test_who_may_only_view_has_no_switches(page: Page) -> None:
    log_in(page, "view_upstream", to=PAGE)
    is_live(page)
    expect(page.locator(".who")).to_contain_text("alice · view only")
    assert page.locator(".menu").count() == 0
    assert page.evaluate("fetch('change', {method: 'POST'}).then((answer) => answer.status)") == 403


def test_everything_works_without_script(browser: Browser, live_server: Any, upstream: Upstream) -> None:
    """Browsers say the origin of its forms, which Django wants to know."""
    context = browser.new_context(base_url=live_server.url, java_script_enabled=False)
    page = context.new_page()
    log_in(page, "change_upstream", to=PAGE)
    row(page, "a").locator(".menu summary").click()
    row(page, "a").get_by_role("link", name="Take down").click()
    take_a_down_by_its_form(page)
    assert not upstream.get_pools()["primary"]["hosts"]["a"]["up"]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Logged out")).to_be_visible()
    context.close()


def test_a_form_that_is_too_old_is_said_to_be_refused(page: Page, upstream: Upstream) -> None:
    log_in(page, "change_upstream", to=PAGE)
    dialog = choose(page, "a", "Take down")
    page.context.clear_cookies(name="csrftoken")  # as another login changes it
    dialog.get_by_role("button", name="Take down").click()
    expect(dialog.get_by_role("alert")).to_have_text("the server answered 403")
    assert upstream.get_pools()["primary"]["hosts"]["a"]["up"]


def test_a_page_whose_user_was_logged_out_says_so(page: Page) -> None:
    log_in(page, "change_upstream", to=PAGE)
    is_live(page)
    page.context.clear_cookies()
    expect(page.locator("#live")).to_contain_text("Not updated: You are logged out.")
    row(page, "a").locator(".menu summary").click()
    row(page, "a").get_by_role("link", name="Take down").click()
    expect(page.get_by_label("Password")).to_be_visible()


@pytest.mark.parametrize("chosen", ["light", "dark", "auto"])
def test_the_theme_is_that_of_the_admin(page: Page, chosen: str) -> None:
    log_in(page, "change_upstream", to="/admin/")
    system = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    page.evaluate("(theme) => localStorage.setItem('theme', theme)", chosen)
    for address in (PAGE, f"{PAGE}change?do=down&upstream=default&pool=primary&host=a", f"{PAGE}nowhere"):
        page.goto(address)
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        lightness = sum(map(int, shown.removeprefix("rgb(").removesuffix(")").split(",")))
        assert ("dark" if lightness < 384 else "light") == (system if chosen == "auto" else chosen)


@pytest.mark.parametrize("width", [320, 1280])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    browser: Browser,
    live_server: Any,
    width: int,
) -> None:
    # The tool is put into the page, which its policy forbids.
    context = browser.new_context(
        base_url=live_server.url, viewport={"width": width, "height": 900}, bypass_csp=True
    )
    page = context.new_page()
    log_in(page, "change_upstream", to=PAGE)
    is_live(page)
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    context.close()
