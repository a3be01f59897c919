"""Sessions that stay at their host."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer

from resty_upstream import InvalidConfig, RequestContext, Upstream, UpstreamAPI, Upstreams
from resty_upstream.sticky import Cookie, ItsDangerousSigner, Session, Signing, salt_of
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from resty_upstream.visitors import WsgiVisitor
from tests.helpers import Fate, hosts, open_upstream, open_workers, refused, take_down, visit

SECRET = "a secret of the application"
NOW = 1_700_000_000.0


def sticky(*ids: str, weight: int = 10, **options: Any) -> dict[str, Any]:
    """A pool whose sessions stay."""
    return {"p": {"sticky": True, "hosts": hosts(*ids, weight=weight), **options}}


class Wall:
    """The time of day, which moves when it is told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr("time.time", wall)
    return wall


class Browser:
    """Somebody with cookies."""

    def __init__(self, cookies: Mapping[str, str] | None = None) -> None:
        self.cookies = dict(cookies or {})
        self.was_given: list[Cookie] = []

    def context(self, upstream: Upstream) -> RequestContext:
        header = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return RequestContext(upstream, None, WsgiVisitor({"REMOTE_ADDR": "192.0.2.1", "HTTP_COOKIE": header}))

    def ask(self, upstream: Upstream, fates: Mapping[str, Fate] | None = None, calls: int = 1) -> list[str]:
        """The hosts that one request tries."""
        context = self.context(upstream)
        tried = [host for _ in range(calls) for host in visit(context, fates)]
        self.was_given = context.cookies()
        self.cookies.update({cookie.name: cookie.value for cookie in self.was_given})
        context.post_process()
        return tried


# ── a session stays ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["round_robin", "random", "hash"])
def test_a_session_stays_at_the_host_where_it_began_and_others_are_spread(method: str) -> None:
    upstream = open_upstream(sticky(*"abcd", method=method, key="header:X-None"))
    browsers = [Browser() for _ in range(60)]
    homes = [browser.ask(upstream) for browser in browsers]
    assert len({home for (home,) in homes}) == 4
    for _ in range(3):
        assert [browser.ask(upstream) for browser in browsers] == homes


def test_what_is_not_sticky_sets_no_cookie() -> None:
    upstream, browser = open_upstream({"p": {"hosts": hosts("a", "b")}}), Browser()
    assert sorted(browser.ask(upstream, calls=2)) == ["a", "b"]
    assert browser.was_given == []


def test_a_cookie_is_set_for_a_new_session_and_then_no_more() -> None:
    upstream, browser = open_upstream(sticky("a", "b")), Browser()
    browser.ask(upstream)
    assert [(cookie.name, cookie.max_age) for cookie in browser.was_given] == [("upstream", 86_400)]
    browser.ask(upstream)
    assert browser.was_given == []


def test_all_calls_of_a_first_request_go_to_one_host() -> None:
    """The session begins with the first of them."""
    assert len(set(Browser().ask(open_upstream(sticky(*"abcdef")), calls=12))) == 1


def test_a_request_without_a_call_changes_nothing() -> None:
    context = Browser().context(open_upstream(sticky("a")))
    assert context.cookies() == []


def test_the_name_of_the_cookie_and_its_age_are_those_of_the_pool() -> None:
    upstream = open_upstream(sticky("a", sticky={"cookie": "host", "max_age": "2h"}))
    browser = Browser()
    browser.ask(upstream)
    assert [(cookie.name, cookie.max_age) for cookie in browser.was_given] == [("host", 7200)]


def test_any_worker_knows_the_sessions_of_the_others() -> None:
    first, second = open_workers(2, sticky(*"abcdef"))
    browser = Browser()
    home = browser.ask(first)
    assert [browser.ask(second) for _ in range(5)] == [home] * 5


def test_what_is_no_web_request_has_no_session() -> None:
    """A task may go on for hours, and the calls of all tasks would meet at one host."""
    upstream = open_upstream(sticky(*"abc"))
    assert {visit(upstream)[0] for _ in range(6)} == set("abc")
    with upstream.context() as context:
        assert {visit(upstream)[0] for _ in range(6)} == set("abc")
        assert context.cookies() == []


def test_two_pools_may_have_cookies_of_their_own(clock: FakeClock) -> None:
    """A session that had to go to the reserve is at its old host again when that is back."""
    pools = sticky("a", "b", priority=0)
    pools["dr"] = {"priority": 1, "sticky": {"cookie": "reserve"}, "hosts": hosts("x", "y")}
    upstream, browser = open_upstream(pools, clock), Browser()
    (home,) = browser.ask(upstream)
    api = UpstreamAPI(upstream)
    for host_id in "ab":
        api.down_host("p", host_id)
    (reserve,) = browser.ask(upstream)
    assert [browser.ask(upstream) for _ in range(4)] == [[reserve]] * 4
    for host_id in "ab":
        api.up_host("p", host_id)
    assert browser.ask(upstream) == [home]
    assert set(browser.cookies) == {"upstream", "reserve"}


# ── until its host is down ────────────────────────────────────────────────────────────────────


def test_a_host_that_is_down_loses_its_sessions() -> None:
    """Failed, or taken down by hand; they begin anew elsewhere, and stay there when it is back."""
    upstream = open_upstream(sticky("a", "b", "c"))
    api, browser = UpstreamAPI(upstream), Browser()
    (first,) = browser.ask(upstream)
    api.down_host("p", first)
    (second,) = browser.ask(upstream)
    assert second != first
    assert len(browser.was_given) == 1
    api.up_host("p", first)
    assert browser.ask(upstream) == [second]
    take_down(upstream, second)
    (third,) = browser.ask(upstream)
    assert third not in (second,)


def test_a_session_moves_to_the_host_that_answered() -> None:
    """When its own failed in the middle of a request."""
    upstream, browser = open_upstream(sticky("a", "b")), Browser()
    (home,) = browser.ask(upstream)
    (other,) = {"a", "b"} - {home}
    assert browser.ask(upstream, {home: refused}) == [home, other]
    assert browser.ask(upstream) == [other]
    assert browser.was_given == []


def test_a_request_that_no_host_answered_leaves_the_session_where_it_is() -> None:
    upstream, browser = open_upstream(sticky("a", "b", max_fails=100)), Browser()
    (home,) = browser.ask(upstream)
    context = browser.context(upstream)
    with pytest.raises(ConnectionError):
        visit(context, {"a": refused, "b": refused})
    assert context.cookies() == []
    assert browser.ask(upstream) == [home]


def test_a_drained_host_keeps_its_sessions_and_gets_no_new_ones() -> None:
    upstream = open_upstream(sticky("a", "b"))
    browsers = [Browser() for _ in range(20)]
    homes = [browser.ask(upstream) for browser in browsers]
    UpstreamAPI(upstream).set_weight("p", "a", 0)
    assert [browser.ask(upstream) for browser in browsers] == homes
    assert [Browser().ask(upstream) for _ in range(20)] == [["b"]] * 20


def test_a_session_that_stays_is_no_probe(clock: FakeClock) -> None:
    """What it would lose is more than what the others learn; a new one takes the probe."""
    upstream, browser = open_upstream(sticky("a", "b"), clock), Browser()
    (home,) = browser.ask(upstream)
    (other,) = {"a", "b"} - {home}
    take_down(upstream, other)
    clock.advance(12)
    assert browser.ask(upstream) == [home]
    assert Browser().ask(upstream, {other: refused}) == [other, home]


def test_a_session_whose_host_failed_may_be_the_probe_that_brings_it_back(clock: FakeClock) -> None:
    upstream, browser = open_upstream(sticky("a"), clock), Browser()
    browser.ask(upstream)
    take_down(upstream, "a")
    clock.advance(12)
    assert browser.ask(upstream) == ["a"]


@pytest.mark.parametrize("seed", range(30))
def test_a_session_changes_its_host_only_when_that_is_down_or_gone(seed: int) -> None:
    """Whatever goes up, down, away, comes or is drained meanwhile; and no new one begins at a drained host."""
    random, clock = Random(seed), FakeClock()
    upstream = open_upstream(sticky(*"abcde", method=random.choice(["round_robin", "random", "hash"])), clock)
    api = UpstreamAPI(upstream)
    browsers = [Browser() for _ in range(4)]
    homes: dict[Browser, str] = {}
    moved = 0
    for _ in range(100):
        _change_something(random, upstream, api, clock)
        now = upstream.get_pools()["p"]["hosts"]
        up = {host_id for host_id, options in now.items() if options["up"]}
        weighted = {host_id for host_id in up if now[host_id]["weight"]}
        for browser in browsers:
            if not up:
                continue
            home = homes.get(browser)
            *_, homes[browser] = browser.ask(upstream)
            if home in up:
                assert homes[browser] == home
            else:
                moved += home is not None
                assert homes[browser] in (weighted or up) or not now[homes[browser]]["up"], "or it was a probe"
            # A probe may have brought a host back.
            now = upstream.get_pools()["p"]["hosts"]
            up = {host_id for host_id, options in now.items() if options["up"]}
            weighted = {host_id for host_id in up if now[host_id]["weight"]}
        if random.random() < 0.1:
            browsers.append(Browser())
    assert moved > 3, "a guard: something happened"


def _change_something(random: Random, upstream: Upstream, api: UpstreamAPI, clock: FakeClock) -> None:
    now = upstream.get_pools()["p"]["hosts"]
    here = sorted(now)
    away = sorted(set("abcde") - set(here))
    one = random.choice(here)
    match random.choice(["down", "up", "up", "drain", "weigh", "weigh", "fail", "remove", "add", "add", "time"]):
        case "down":
            api.down_host("p", one)
        case "up":
            api.up_host("p", one)
        case "drain":
            api.set_weight("p", one, 0)
        case "weigh":
            api.set_weight("p", one, random.randint(1, 20))
        case "fail" if now[one]["up"] and (now[one]["weight"] or not any(h["weight"] for h in now.values())):
            take_down(upstream, one)
        case "remove" if len(here) > 2:
            api.remove_host("p", one)
        case "add" if away:
            api.add_host("p", id=away[0], host=f"{away[0]}.test", weight=10)
        case "time":
            clock.advance(random.choice([1, 20, 100]))


# ── cookies that count for nothing ────────────────────────────────────────────────────────────


def homes_with(upstream: Upstream, cookie: str) -> set[str]:
    """Where requests with this cookie go."""
    return {Browser({"upstream": cookie}).ask(upstream)[0] for _ in range(12)}


@pytest.fixture
def signed(wall: Wall) -> tuple[Upstream, str]:
    """An upstream, and a cookie of it."""
    upstream, browser = open_upstream(sticky(*"abcd"), cookie_secret=SECRET), Browser()
    browser.ask(upstream)
    assert len(homes_with(upstream, browser.cookies["upstream"])) == 1, "this one counts"
    return upstream, browser.cookies["upstream"]


def test_a_tampered_cookie_is_ignored(signed: tuple[Upstream, str]) -> None:
    upstream, cookie = signed
    payload, _, signature = cookie.rpartition(".")
    forged = URLSafeSerializer("x" * 20, salt_of("default")).dumps(["p", "a", int(NOW)])
    for wrong in (cookie[:-1], cookie[1:], payload, signature, f"{payload}.", forged, "", "é", "\x00", "." * 4000):
        assert homes_with(upstream, wrong) == set("abcd")


@pytest.mark.parametrize(
    "values",
    [[], ["p"], ["p", "a"], ["p", "a", "1"], ["p", 1, NOW], ["p", "a", NOW, 1], {}, "p", None, ["p", ["a"], 1]],
)
def test_what_is_signed_and_says_nothing_is_ignored(signed: tuple[Upstream, str], values: object) -> None:
    """As of another version, with the same secret."""
    upstream, _ = signed
    assert homes_with(upstream, URLSafeSerializer(SECRET, salt_of("default")).dumps(values)) == set("abcd")


@pytest.mark.parametrize(
    ("pool_id", "host_id"), [("p", "gone"), ("gone", "a"), ("P", "a"), ("p\x1fa", ""), ("", "p\x1fa"), ("", "")]
)
def test_a_cookie_of_a_pool_or_host_that_is_not_there_is_ignored(
    signed: tuple[Upstream, str], pool_id: str, host_id: str
) -> None:
    upstream, _ = signed
    cookie = ItsDangerousSigner(SECRET, salt_of("default")).sign([pool_id, host_id, int(NOW)])
    assert homes_with(upstream, cookie) == set("abcd")


def test_a_cookie_of_another_upstream_is_ignored(signed: tuple[Upstream, str]) -> None:
    """With the same secret and the same pools."""
    other = open_upstream(sticky(*"abcd"), cookie_secret=SECRET, id="other")
    assert homes_with(other, signed[1]) == set("abcd")


def test_a_stale_cookie_is_ignored(signed: tuple[Upstream, str], wall: Wall) -> None:
    upstream, cookie = signed
    wall.now += 86_400
    assert len(homes_with(upstream, cookie)) == 1
    wall.now += 1
    assert homes_with(upstream, cookie) == set("abcd")


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_whatever_the_cookie_says_a_request_is_served(cookie: str) -> None:
    assert Browser({"upstream": cookie}).ask(open_upstream(sticky("a")))[0] == "a"


# ── renewal ───────────────────────────────────────────────────────────────────────────────────


def test_a_cookie_is_renewed_when_half_of_its_time_is_over(wall: Wall) -> None:
    """A session in use lasts for ever, and most responses set no cookie."""
    upstream, browser = open_upstream(sticky(*"abcd")), Browser()
    home = browser.ask(upstream)
    for _ in range(10):
        wall.now += 43_200
        assert (browser.ask(upstream), browser.was_given) == (home, [])
        wall.now += 1
        assert browser.ask(upstream) == home
        assert len(browser.was_given) == 1
        assert (browser.ask(upstream), browser.was_given) == (home, [])


def test_a_clock_that_was_set_back_breaks_no_session(wall: Wall) -> None:
    """Nor one that is not quite that of the machine that made the cookie."""
    upstream, browser = open_upstream(sticky(*"abcd")), Browser()
    home = browser.ask(upstream)
    wall.now -= 3600
    assert [browser.ask(upstream) for _ in range(6)] == [home] * 6


# ── the cookie itself ─────────────────────────────────────────────────────────────────────────


def test_a_cookie_is_for_the_whole_site_and_for_no_script() -> None:
    cookie = Cookie("upstream", "value", 3600)
    plain = "upstream=value; Max-Age=3600; Path=/; HttpOnly; SameSite=Lax"
    assert cookie.header(secure=False) == plain
    assert cookie.header(secure=True) == f"{plain}; Secure"


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_ids_of_any_kind_make_a_cookie_that_browsers_take(pool_id: str, host_id: str) -> None:
    """No character that would have to be quoted, and no more than 4096 of them."""
    value = ItsDangerousSigner(SECRET, "salt").sign([pool_id, host_id, int(NOW)])
    assert len(value) < 4000
    assert value.isascii()
    assert not set(value) & set(' ",;\\')
    assert ItsDangerousSigner(SECRET, "salt").unsign(value) == [pool_id, host_id, int(NOW)]


# ── what signs ────────────────────────────────────────────────────────────────────────────────


def test_a_secret_of_the_application_is_one_for_all_its_stores() -> None:
    """So that sessions outlive a store, and are known on every machine."""
    browser, other = Browser(), open_upstream(sticky(*"abcd"), cookie_secret=SECRET)
    home = browser.ask(open_upstream(sticky(*"abcd"), cookie_secret=SECRET))
    assert [browser.ask(other) for _ in range(6)] == [home] * 6


def test_without_one_each_store_has_its_own() -> None:
    browser = Browser()
    browser.ask(open_upstream(sticky(*"abcd")))
    assert homes_with(open_upstream(sticky(*"abcd")), browser.cookies["upstream"]) == set("abcd")


def test_the_secret_of_the_store_is_not_the_key_itself() -> None:
    upstream = open_upstream(sticky("a"))
    browser = Browser()
    browser.ask(upstream)
    for secret in (upstream.replica.secret, upstream.replica.secret.hex(), ""):
        assert ItsDangerousSigner(secret, salt_of("default")).unsign(browser.cookies["upstream"]) is None


def test_nothing_is_signed_with_a_secret_that_everybody_knows() -> None:
    """As long as the store was never read there is none."""
    assert Signing("default", "", None).signer(b"") is None
    assert Signing("default", SECRET, None).signer(b"") is not None


def test_a_signer_is_made_once_and_anew_for_another_store() -> None:
    signing = Signing("default", "", None)
    first = signing.signer(b"one")
    assert signing.signer(b"one") is first
    assert signing.signer(b"two") is not first


@pytest.mark.parametrize("secret", ["short", None, b"a secret of the application", 5])
def test_what_is_no_secret_is_refused_and_not_shown(secret: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"^cookie_secret must be text of at least 16 characters$"):
        Upstream("memory://", cookie_secret=secret)


def test_a_signer_may_be_given() -> None:
    """As that of a framework."""

    class Plain:
        def sign(self, values: Any) -> str:
            return "|".join(map(str, values))

        def unsign(self, text: str) -> object:
            pool_id, host_id, since = text.split("|")
            return [pool_id, host_id, int(since)]

    browser = Browser()
    upstream = open_upstream(sticky("a", "b"), signer=Plain())
    (home,) = browser.ask(upstream)
    assert browser.cookies["upstream"].startswith(f"p|{home}|")
    assert browser.ask(upstream) == [home]


# ── without itsdangerous ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def _without_itsdangerous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "itsdangerous", None)


@pytest.mark.usefixtures("_without_itsdangerous")
def test_an_application_with_sticky_pools_does_not_start_without_itsdangerous() -> None:
    """It says what to install; one without such pools needs nothing."""
    from resty_upstream.asgi import UpstreamMiddleware as AsgiMiddleware
    from resty_upstream.wsgi import UpstreamMiddleware as WsgiMiddleware

    plain = Upstream("memory://", pools={"p": {"hosts": hosts("a")}})
    given = {"default": plain, "cache": {"store": "memory://", "pools": sticky("a")}}
    says = r"^upstreams\.cache\.pools\.p\.sticky needs itsdangerous: pip install 'resty-upstream\[sticky\]'$"
    middlewares: list[Any] = [AsgiMiddleware, WsgiMiddleware]
    for middleware in middlewares:
        with pytest.raises(InvalidConfig, match=says):
            middleware(None, given)
        middleware(None, plain)


@pytest.mark.usefixtures("_without_itsdangerous")
def test_a_pool_that_becomes_sticky_without_itsdangerous_is_served_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = open_upstream(sticky("a", "b"))
    browser = Browser({"upstream": "x"})
    assert Counter(browser.ask(upstream)[0] for _ in range(4)) == {"a": 2, "b": 2}
    assert browser.was_given == []
    (record,) = caplog.records
    assert record.getMessage() == (
        "a sticky pool needs itsdangerous: pip install 'resty-upstream[sticky]'; "
        "sessions do not stay at their hosts"
    )


# ── explain, and the rest ─────────────────────────────────────────────────────────────────────


def test_explain_names_the_host_of_the_session(clock: FakeClock) -> None:
    """Also when it is drained, and when another one is to be probed; not when it is down."""
    upstream, browser = open_upstream(sticky("a", "b", "c"), clock), Browser()
    (home,) = browser.ask(upstream)
    failed, other = sorted({"a", "b", "c"} - {home})
    take_down(upstream, failed)
    clock.advance(12)
    UpstreamAPI(upstream).set_weight("p", home, 0)
    explanation = browser.context(upstream).explain()
    assert explanation.summary == f"connect tries pool p first, and there host {home}: the host of this session"
    reasons = {each.host.id: each.reason for each in explanation.pools[0].hosts}
    assert reasons[home] == "taken: the host of this session"
    assert reasons[other] == "passed over: not this session's host"
    assert reasons[failed].startswith("failed")
    assert "session" not in str(Browser().context(upstream).explain())
    UpstreamAPI(upstream).down_host("p", home)
    assert "session" not in str(browser.context(upstream).explain())


def test_to_explain_begins_no_session() -> None:
    context = Browser().context(open_upstream(sticky("a")))
    context.explain()
    assert context.cookies() == []


def test_most_upstreams_need_not_know_who_asks() -> None:
    """What a request pays for sessions and keys, it pays only where a pool asks; which may change at run time."""
    upstream = open_upstream({"p": {"hosts": hosts("a")}, "q": {"priority": 1, "hosts": hosts("b")}})
    upstreams = Upstreams({"default": upstream, "other": {"store": MemoryStore(), "pools": {}}})
    assert upstreams.ask_visitors, "of the other nothing is known yet"
    upstreams = Upstreams(upstream)
    visit(upstream)
    assert not upstreams.ask_visitors
    for options in ({"sticky": True}, {"method": "hash"}):
        pools = upstream.get_pools()
        upstream.save_pools({**pools, "q": {**pools["q"], **options}})
        visit(upstream)
        assert upstreams.ask_visitors
        upstream.save_pools(pools)
        visit(upstream)
        assert not upstreams.ask_visitors


def test_a_session_knows_only_sticky_pools() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    target = upstream.replica.snapshot().plans[0].hosts[0]
    session = Session(WsgiVisitor({}), lambda: None, lambda: NOW)
    session.stay(target)
    assert session.host_of(target.pool) is None
    assert session.cookies() == []
