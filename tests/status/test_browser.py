"""The page in a real Chromium: what a person sees, does, and is spared."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from resty_upstream import NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream.status.asgi import StatusApp
from tests.browser import chromium
from tests.helpers import WAIT_S, Peer
from tests.status.conftest import HOSTILE, TOKEN, VIEW_TOKEN, Site, serving_asgi

expect.set_options(timeout=WAIT_S * 1000)

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")

WATCH = """
window.seen = [];
document.addEventListener("securitypolicyviolation", (event) => window.seen.push(event.violatedDirective));
window.alert = () => window.seen.push("alert");
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium of the system."""
    with chromium() as browser:
        yield browser


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a window, signed in, in which nothing may go wrong until the test is over."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_page(site: Site, token: str = TOKEN, *, stopped: bool = False, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        name, _, value = site.sign_in(token).partition("=")
        context.add_cookies([{"name": name, "value": value, "url": site.url}])
        context.add_init_script(WATCH)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None
        )
        if stopped:
            page.clock.install()
            page.clock.pause_at("2100-01-01")
        page.goto(site.url)
        return page

    yield open_page
    seen = [page.evaluate("window.seen") for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert errors == []
    assert not any(seen)


@pytest.fixture
def peers() -> Iterator[dict[str, Peer]]:
    """Two back ends that run."""
    with Peer() as a, Peer() as b:
        yield {"a": a, "b": b}


@pytest.fixture
def upstream(tmp_path: Path, peers: dict[str, Peer]) -> Iterator[Upstream]:
    """A pool of back ends that run, and one in reserve whose only host has a hostile id."""
    hosts = {host_id: {**peer.options, "weight": 10} for host_id, peer in peers.items()}
    tmp_path.chmod(0o700)
    upstream = Upstream(f"sqlite://{tmp_path}/u.db")
    upstream.configure(
        {
            "primary": {"hosts": hosts, "failed_timeout": 300, "failed_timeout_max": 300},
            "dr": {"priority": 10, "hosts": {HOSTILE: {"host": "dr.test"}}},
        }
    )
    yield upstream
    upstream.close()


@pytest.fixture
def site(upstream: Upstream) -> Iterator[Site]:
    with serving_asgi(StatusApp(upstream, token=TOKEN, view_token=VIEW_TOKEN)) as port:
        yield Site(port)


def row(page: Page, host_id: str) -> Any:
    return page.locator("tbody tr").filter(has=page.locator(".id", has_text=re.compile(f"^{re.escape(host_id)}$")))


def state(page: Page, host_id: str) -> Any:
    return row(page, host_id).locator(".word")


def choose(page: Page, host_id: str, action: str) -> Any:
    """Choose from the menu of a host; the dialog that opens."""
    row(page, host_id).locator(".menu summary").click()
    row(page, host_id).get_by_role("link", name=action).click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_be_visible()
    return dialog


def is_live(page: Page) -> None:
    expect(page.locator("#live")).to_have_attribute("data-state", "live")


# ── looking ───────────────────────────────────────────────────────────────────────────────────


def test_one_signs_in_with_a_token_and_sees_the_hosts(browser: Browser, site: Site) -> None:
    page = browser.new_page()
    page.goto(site.url)
    page.get_by_label("Your name").fill("alice")
    page.get_by_label("Token").fill("not the token, surely")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not a token of this page.")
    page.get_by_label("Your name").fill("alice")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(state(page, "a")).to_have_text("up")
    expect(page.locator(".who")).to_contain_text("alice")
    is_live(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.close()


def test_a_back_end_that_dies_is_seen_without_reload(
    open_page: Open, site: Site, upstream: Upstream, peers: dict[str, Peer]
) -> None:
    page = open_page(site)
    expect(state(page, "b")).to_have_text("up")
    page.evaluate("window.same = document.querySelector('tbody')")
    peers["b"].stop()
    for _ in range(10):
        upstream.connect().client.close()
    expect(state(page, "b")).to_have_text("failed")
    expect(row(page, "b").locator(".detail")).to_contain_text("ECONNREFUSED")
    expect(row(page, "a").locator("td.share")).to_contain_text("100")
    expect(page.locator("#news")).to_contain_text("Host b of pool primary: failed")
    expect(page).to_have_title("1 failed · Upstreams")
    expect(page.locator(".history tbody tr").first).to_contain_text("ECONNREFUSED")
    assert page.evaluate("window.same === document.querySelector('tbody')")


def test_traffic_is_drawn_and_counted(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.05):
            upstream.connect().client.close()

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        expect(row(page, "a").locator(".traffic path.requests")).to_have_attribute("d", re.compile("M.*L"))
        expect(row(page, "a").locator(".traffic span")).to_have_text(re.compile(r"\d/s"))
        expect(row(page, "a").locator("td.requests")).not_to_have_text("0")
        expect(row(page, "a").locator("td.latency")).not_to_have_text("–")
    finally:
        over.set()
        visitor.join()


def test_a_hostile_id_is_shown_as_text(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    expect(row(page, HOSTILE)).to_be_visible()
    assert page.locator("img").count() == 0
    UpstreamAPI(upstream).add_host("dr", host="x.test", id="<script>alert(1)</script>")  # comes by the script
    expect(row(page, "<script>alert(1)</script>")).to_be_visible()
    choose(page, HOSTILE, "Take down")
    assert page.locator("img").count() == 0


def test_the_policy_forbids_what_the_page_does_not_do(browser: Browser, site: Site) -> None:
    """A guard: a policy that forbids nothing is never violated."""
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(site.url)
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://elsewhere.test/x.png'}))")
    page.wait_for_function("window.seen.includes('img-src')")
    made = "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } })()"
    assert page.evaluate(made) == "TypeError"
    page.close()


def test_focus_an_open_menu_and_typed_text_survive_updates(
    open_page: Open, site: Site, upstream: Upstream
) -> None:
    page = open_page(site)
    is_live(page)
    row(page, "a").locator(".menu summary").click()
    row(page, "a").locator(".menu a").first.focus()
    UpstreamAPI(upstream).set_weight("primary", "b", 30)  # its part is made anew: a setting was changed
    expect(row(page, "b").locator(".chip")).to_contain_text("weight 30, declared 10")
    assert row(page, "a").locator(".menu").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.textContent") == "Take down"
    page.get_by_label("Find").type("prim")
    UpstreamAPI(upstream).down_host("primary", "b")
    expect(state(page, "b")).to_have_text("down")
    assert page.get_by_label("Find").input_value() == "prim"
    assert page.evaluate("document.activeElement.id") == "find"


def test_pools_and_hosts_come_and_go(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    is_live(page)
    api = UpstreamAPI(upstream)
    api.create_pool("first", priority=-1)
    api.add_host("first", host="x.test", id="new")
    expect(row(page, "new")).to_be_visible()
    assert page.locator(".pool h3").all_inner_texts() == ["first", "primary", "dr"]
    api.remove_pool("dr")
    expect(row(page, HOSTILE)).to_have_count(0)


def test_a_server_that_is_away_is_said_and_found_again(open_page: Open, site: Site) -> None:
    page = open_page(site)
    is_live(page)
    page.route("**/status.json*", lambda route: route.abort())
    expect(page.locator("#live")).to_have_attribute("data-state", "stale")
    expect(page.locator("#live")).to_contain_text("Not updated: no answer from the server")
    expect(page.locator("#news")).to_contain_text("not updated any more")
    page.unroute("**/status.json*")
    is_live(page)
    expect(page.locator("#news")).to_contain_text("live again")


def test_updates_can_be_stopped(open_page: Open, site: Site) -> None:
    page = open_page(site, stopped=True)
    is_live(page)
    asked = updates_of(page)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#live")).to_contain_text("Paused")
    page.clock.run_for(60_000)
    assert asked() == 0
    page.get_by_role("button", name="Go on").click()
    is_live(page)
    assert asked() == 1


def test_a_window_that_nobody_sees_asks_less_often(open_page: Open, site: Site) -> None:
    page = open_page(site, stopped=True)
    is_live(page)
    asked = updates_of(page)

    def pass_time_until(count: int) -> int:
        """How many times two seconds pass until so many updates were asked for."""
        for steps in range(1000):
            if asked() >= count:
                return steps
            page.clock.run_for(2000)
        raise AssertionError(f"only {asked()} updates")

    pass_time_until(4)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    begun = asked()
    assert pass_time_until(begun + 4) >= 3 * 10  # one of them may have been under way


def updates_of(page: Page) -> Callable[[], int]:
    """How often the page has asked for an update from now on."""
    begun: list[str] = []
    page.on("request", lambda request: begun.append(request.url))

    def count() -> int:
        page.evaluate("1")  # what the page began before has been told of by then
        return len(begun)

    return count


# ── changing ──────────────────────────────────────────────────────────────────────────────────


def test_down_and_up_with_a_reason(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    dialog = choose(page, "a", "Take down")
    expect(dialog).to_contain_text("Remaining capacity of pool primary: 50")
    dialog.get_by_label("Reason").fill("new kernel")
    dialog.get_by_role("button", name="Take down").click()
    expect(state(page, "a")).to_have_text("down")
    expect(page.locator("#news")).to_contain_text("a in primary is down.")
    expect(row(page, "a").locator(".detail")).to_contain_text("new kernel")
    assert page.locator("dialog[open]").count() == 0
    host = upstream.get_pools()["primary"]["hosts"]["a"]
    assert (host["up"], host["reason"], host["by"]) == (False, "new kernel", "alice")
    choose(page, "a", "Put back").get_by_role("button", name="Put back").click()
    expect(state(page, "a")).to_have_text("up")
    assert upstream.get_pools()["primary"]["hosts"]["a"]["up"]


def test_drain_and_weight(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    choose(page, "a", "Drain").get_by_role("button", name="Drain").click()
    expect(state(page, "a")).to_have_text("drained")
    expect(row(page, "b").locator("td.share")).to_contain_text("100")
    dialog = choose(page, "a", "Set weight")
    dialog.get_by_label("Weight").fill("many")
    dialog.get_by_role("button", name="Set weight").click()
    expect(dialog.get_by_role("alert")).to_contain_text("weight must be")
    dialog.get_by_label("Weight").fill("30")
    dialog.get_by_role("button", name="Set weight").click()
    expect(row(page, "a").locator("td.share")).to_contain_text("75")
    assert upstream.get_pools()["primary"]["hosts"]["a"]["weight"] == 30


def test_a_change_that_ends_is_seen_to_end(open_page: Open, site: Site) -> None:
    page = open_page(site)
    dialog = choose(page, "a", "Take down")
    dialog.get_by_label("Until").fill("4s")
    dialog.get_by_role("button", name="Take down").click()
    expect(state(page, "a")).to_have_text("down")
    expect(row(page, "a").locator(".detail")).to_contain_text("until")
    expect(state(page, "a")).to_have_text("up")


def test_cancelling_changes_nothing(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    choose(page, "a", "Take down").get_by_role("link", name="Cancel").click()
    expect(page.locator("dialog[open]")).to_have_count(0)
    choose(page, "a", "Take down")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    assert upstream.get_pools()["primary"]["hosts"]["a"]["up"]


def test_who_may_only_look_has_no_switches(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site, VIEW_TOKEN)
    is_live(page)
    assert page.locator(".menu").count() == 0
    page.goto(f"{site.url}/change?do=down&upstream=default&pool=primary&host=a")
    expect(page.get_by_role("heading")).to_have_text("Not allowed")
    status = page.evaluate("fetch('change', {method: 'POST'}).then((answer) => answer.status)")
    assert status == 403
    assert upstream.get_pools()["primary"]["hosts"]["a"]["up"]


def test_a_form_without_its_field_is_refused(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    dialog = choose(page, "a", "Take down")
    page.evaluate("document.querySelector('dialog [name=form-token]').remove()")
    with page.expect_response("**/change") as answer:
        dialog.get_by_role("button", name="Take down").click()
    assert answer.value.status == 403
    expect(dialog.get_by_role("alert")).to_contain_text("Open it again")
    assert upstream.get_pools()["primary"]["hosts"]["a"]["up"]


def take_a_down_by_its_form(page: Page) -> None:
    """Confirm it, at first with an end that is none."""
    page.get_by_label("Until").fill("soon")
    page.get_by_role("button", name="Take down").click()
    expect(page.get_by_role("alert")).to_contain_text("until must be")
    page.get_by_label("Until").fill("1h")
    page.get_by_role("button", name="Take down").click()
    expect(state(page, "a")).to_have_text("down")


def test_everything_works_without_script(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site, java_script_enabled=False)
    assert page.locator("#tools").is_hidden()
    row(page, "a").locator(".menu summary").click()
    row(page, "a").get_by_role("link", name="Take down").click()
    expect(page.get_by_role("heading")).to_have_text("Take a down?")
    expect(page.locator(".consequence")).to_contain_text("Remaining capacity")
    take_a_down_by_its_form(page)
    assert not upstream.get_pools()["primary"]["hosts"]["a"]["up"]


def test_the_keyboard_is_enough(open_page: Open, site: Site, upstream: Upstream) -> None:
    page = open_page(site)
    is_live(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not come to {selector}")

    tab_to(".menu summary")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert page.locator(".menu[open]").count() == 0
    page.keyboard.press("Enter")
    tab_to(".do-down")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    expect(state(page, "a")).to_have_text("down")
    assert page.evaluate("document.activeElement.matches('.menu summary')")
    assert upstream.get_pools()["primary"]["hosts"]["a"]["reason"] == "by keyboard"


# ── for everybody ─────────────────────────────────────────────────────────────────────────────


def make_everything_happen(upstream: Upstream, peers: dict[str, Peer]) -> None:
    """One host in each state, with all that can be said of it."""
    api = UpstreamAPI(upstream)
    peers["b"].stop()
    for _ in range(10):
        with contextlib.suppress(NoHostAvailable):
            upstream.connect().client.close()
    api.add_host("primary", host="c.test", id="c" * 100, weight=5)
    api.down_host("primary", "c" * 100, reason="a long story " * 10, by="somebody")
    api.add_host("primary", host="d.test", id="drained", weight=5)
    api.set_weight("primary", "a", 20, reason="more", by="alice", until="2h")
    api.set_weight("primary", "drained", 0)
    api.set_method("dr", "random")


@pytest.mark.parametrize("width", [320, 800, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    open_page: Open, site: Site, upstream: Upstream, peers: dict[str, Peer], theme: str, width: int
) -> None:
    make_everything_happen(upstream, peers)
    # The tool is put into the page, which its policy forbids.
    page = open_page(site, color_scheme=theme, viewport={"width": width, "height": 900}, bypass_csp=True)
    is_live(page)
    assert_accessible(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    row(page, "a").locator(".menu summary").click()
    assert_accessible(page)
    row(page, "a").get_by_role("link", name="Take down").click()
    expect(page.locator("dialog[open]")).to_be_visible()
    assert_accessible(page)
    for path in ("/change?do=weight&upstream=default&pool=primary&host=a", "/nowhere"):
        page.goto(site.url + path)
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width


def assert_accessible(page: Page) -> None:
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")
    assert found["passes"]
    serious = [each for each in found["violations"] if each["impact"] in ("moderate", "serious", "critical")]
    assert [
        (each["id"], each["nodes"][0]["html"], each["nodes"][0].get("failureSummary")) for each in serious
    ] == []


def test_hosts_are_found_and_sorted_and_pools_folded_among_a_thousand(open_page: Open, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    upstream = Upstream(f"sqlite://{tmp_path}/many.db")
    upstream.configure(
        {
            f"pool-{p:02}": {
                "priority": p,
                "hosts": {f"h{p:02}-{h}": {"host": f"10.0.{p}.{h + 1}", "weight": 1 + h} for h in range(10)},
            }
            for p in range(100)
        }
    )
    with serving_asgi(StatusApp(upstream, token=TOKEN)) as port:
        page = open_page(Site(port))
        is_live(page)
        assert page.locator(".pool tbody tr").count() == 1000
        page.get_by_label("Find").fill("10.0.42.")
        expect(page.locator("#found")).to_have_text("10 of 1000 hosts")
        assert page.locator(".pool:visible h3").all_inner_texts() == ["pool-42"]
        page.get_by_label("Find").fill("")
        page.get_by_label("Sort").select_option("share")
        assert page.locator(".pool").first.locator(".id").first.inner_text() == "h00-9"
        UpstreamAPI(upstream).down_host("pool-99", "h99-3")
        page.get_by_label("Show").select_option("manual")
        expect(page.locator(".pool tbody tr:visible")).to_have_count(1)
        expect(page.locator("#found")).to_have_text("1 of 1000 hosts")
        page.get_by_label("Show").select_option("")
        page.get_by_role("button", name="Collapse all").click()
        expect(page.locator(".pool tbody tr:visible")).to_have_count(0)
        page.get_by_role("button", name="Expand all").click()
        expect(page.locator(".pool tbody tr:visible")).to_have_count(1000)
    upstream.close()
