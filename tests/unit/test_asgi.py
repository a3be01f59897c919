"""The middleware for ASGI applications, driven as a server drives it."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import InvalidConfig, RequestContext, RequestUpstreams, Upstream, UpstreamError, Upstreams
from resty_upstream.asgi import App, Message, Receive, Scope, Send, UpstreamMiddleware, upstreams_of
from resty_upstream.errors import StoreUnsafe
from resty_upstream.stores.memory import MemoryStore
from tests.helpers import WAIT_S, health, hosts, open_upstream, refused, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"max_fails": 1000, "hosts": hosts("a")}}
TWO: dict[str, Any] = {**ONE, "reserve": {"priority": 10, "hosts": hosts("b")}}
HASHED: dict[str, Any] = {"p": {"method": "hash", "hosts": hosts(*"abcdefgh")}}
STICKY: dict[str, Any] = {"p": {"sticky": True, "hosts": hosts(*"abcdefgh")}}
KINDS = ["http", "websocket"]


def connection(kind: str = "http", **more: Any) -> Scope:
    """What a server says of a request or a websocket."""
    return {"type": kind, "path": "/", "headers": [], "client": ("192.0.2.1", 50_000), **more}


async def serve(app: App, scope: Scope, messages: Iterable[Message] = ()) -> list[Message]:
    """Run an application to its end; what it sent."""
    sent: list[Message] = []
    waiting = iter(messages)

    async def receive() -> Message:
        return next(waiting)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def run(app: App, upstreams: Any, scope: Scope | None = None) -> list[Message]:
    """One connection to an application behind the middleware."""
    return asyncio.run(serve(UpstreamMiddleware(app, upstreams), scope or connection()))


def failcount(upstream: Upstream, host_id: str = "a") -> int:
    """How many failures the store has been told of."""
    return int(health(upstream, host_id)["failcount"])


# ── what a connection has ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_finds_its_upstreams_in_its_state(kind: str) -> None:
    upstream, other = open_upstream(ONE), open_upstream(TWO, id="other")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        upstreams = scope["state"]["upstreams"]
        assert isinstance(upstreams, RequestUpstreams)
        assert upstreams is upstreams_of(scope)
        assert list(upstreams) == ["default", "other"]
        assert upstreams["other"].upstream is other
        assert scope["state"]["upstream"] is upstreams["default"]
        assert scope["state"]["upstream"].upstream is upstream
        await send({"type": "done"})

    assert run(app, {"default": upstream, "other": other}, connection(kind)) == [{"type": "done"}]


def test_the_state_that_the_server_gave_is_kept() -> None:
    state = {"database": 1}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["state"] is state
        scope["state"]["user"] = 2

    run(app, open_upstream(ONE), connection(state=state))
    assert (state["database"], state["user"]) == (1, 2)


def test_without_an_upstream_named_default_a_connection_has_only_the_others() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert list(scope["state"]) == ["upstreams"]
        assert visit(scope["state"]["upstreams"]["other"]) == ["a"]

    run(app, {"other": open_upstream(ONE)})


@pytest.mark.parametrize("scope", [{}, {"state": {}}, {"state": None}, {"state": {"upstream": 1}}])
def test_without_the_middleware_the_error_names_it(scope: Scope) -> None:
    with pytest.raises(UpstreamError, match="UpstreamMiddleware"):
        upstreams_of(scope)


def test_what_is_no_request_and_no_websocket_passes_as_it_is() -> None:
    passed: list[Any] = []

    async def app(*arguments: Any) -> None:
        passed.extend(arguments)

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "a later invention"}
    asyncio.run(UpstreamMiddleware(app, open_upstream(ONE))(scope, receive, send))
    assert [id(each) for each in passed] == [id(scope), id(receive), id(send)]
    assert scope == {"type": "a later invention"}


def test_what_is_sent_and_received_passes_as_it_is() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "echo", "of": await receive()})

    middleware = UpstreamMiddleware(app, open_upstream(ONE))
    sent = asyncio.run(serve(middleware, connection(), [{"type": "http.request", "body": b"x"}]))
    assert sent == [{"type": "echo", "of": {"type": "http.request", "body": b"x"}}]


# ── what it is given ──────────────────────────────────────────────────────────────────────────


def test_upstreams_are_given_as_one_as_several_or_as_a_file(tmp_path: Path) -> None:
    upstream = open_upstream(ONE)
    file = tmp_path / "upstreams.toml"
    file.write_text('[default]\nstore = "memory://"\npools.p.hosts.a.host = "a.test"')
    tried = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tried.append(visit(scope["state"]["upstream"]))

    for given in (upstream, {"default": upstream}, Upstreams(upstream), str(file), file):
        run(app, given)
    assert tried == [["a"]] * 5


def test_two_middlewares_may_share_their_upstreams() -> None:
    upstreams = Upstreams({"default": {"store": "memory://", "pools": ONE}})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        visit_in_vain(scope["state"]["upstream"], {"a": refused})

    for _ in range(2):
        run(app, upstreams)
    assert failcount(upstreams["default"]) == 2


def test_a_wrong_configuration_is_an_error_that_names_its_path() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    with pytest.raises(InvalidConfig, match=r"^upstreams\.default\.stoer is not an option: did you mean store\?"):
        UpstreamMiddleware(app, {"default": {"stoer": "memory://"}})


# ── post_process ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [None, ZeroDivisionError, asyncio.CancelledError, KeyboardInterrupt])
def test_what_was_seen_is_told_when_the_application_is_over_however_that_ends(
    kind: str, ending: type[BaseException] | None
) -> None:
    upstream = open_upstream(ONE)
    told = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        visit_in_vain(scope["state"]["upstream"], {"a": refused})
        await send({"type": "the last byte"})
        if ending is not None:
            raise ending

    async def send_and_look(message: Message) -> None:
        told.append(failcount(upstream))

    async def receive() -> Message:
        return {}

    async def main() -> None:
        try:
            await UpstreamMiddleware(app, upstream)(connection(kind), receive, send_and_look)
        except BaseException as error:
            assert type(error) is ending  # noqa: PT017 - no error at all is right, too
        told.append(failcount(upstream))

    asyncio.run(main())
    assert told == [0, 1]


def test_each_upstream_that_was_used_is_told() -> None:
    upstreams = {name: open_upstream(ONE, id=name) for name in ("default", "other", "unused")}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        visit_in_vain(scope["state"]["upstream"], {"a": refused})
        visit_in_vain(scope["state"]["upstreams"]["other"], {"a": refused})

    run(app, upstreams)
    assert {name: failcount(upstream) for name, upstream in upstreams.items()} == {
        "default": 1,
        "other": 1,
        "unused": 0,
    }


class Untouchable:
    """A store that must not be used."""

    clock_id = "none"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def use(*args: Any, **options: Any) -> Any:
            raise AssertionError(name)

        return use


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_that_uses_no_upstream_touches_no_store(kind: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert list(scope["state"]["upstreams"]) == ["default"]

    run(app, {"default": {"store": Untouchable(), "pools": ONE}}, connection(kind))


def test_a_task_that_outlives_its_request_tells_at_once_what_it_sees() -> None:
    upstream = open_upstream(ONE)
    over = asyncio.Event()
    tasks = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def later() -> None:
            await over.wait()
            visit_in_vain(scope["state"]["upstream"], {"a": refused})
            assert failcount(upstream) == 1

        tasks.append(asyncio.create_task(later()))

    async def main() -> None:
        await serve(UpstreamMiddleware(app, upstream), connection())
        assert failcount(upstream) == 0
        over.set()
        await tasks[0]

    asyncio.run(main())
    assert failcount(upstream) == 1


def test_threads_of_a_request_belong_to_it() -> None:
    upstream = open_upstream(ONE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context = scope["state"]["upstream"]
        thread = threading.Thread(target=visit_in_vain, args=[context, {"a": refused}])
        thread.start()
        thread.join(WAIT_S)
        assert visit_in_vain(context, {}).attempts == (), "it does not try again what its thread failed on"
        assert failcount(upstream) == 0

    run(app, upstream)
    assert failcount(upstream) == 1


def test_requests_at_once_on_one_loop_have_failures_of_their_own() -> None:
    """A host on which one failed is tried by the others, and not again by that one."""
    upstream = open_upstream(TWO)
    together = asyncio.Barrier(20)
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tried = []

        async def dial(host: str, port: int, timeout_s: float) -> str:
            tried.append(host)
            if len(tried) == 1:
                await together.wait()
                if scope["path"] == "/unlucky":
                    raise refused()
            return host

        context: RequestContext = scope["state"]["upstream"]
        await context.aconnect(dial)
        await together.wait()
        await context.aconnect(dial)
        seen.append((scope["path"], *tried))

    async def main() -> None:
        middleware = UpstreamMiddleware(app, upstream)
        paths = ["/lucky", "/unlucky"] * 10
        await asyncio.gather(*(serve(middleware, connection(path=path)) for path in paths))

    asyncio.run(main())
    lucky, unlucky = ("/lucky", "a.test", "a.test"), ("/unlucky", "a.test", "b.test", "b.test")
    assert sorted(seen) == [lucky] * 10 + [unlucky] * 10


# ── the key of methods that hash ──────────────────────────────────────────────────────────────


def homes(clients: Iterable[Any]) -> list[str]:
    """The host that each client is sent to."""
    picked = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        picked.append(visit(scope["state"]["upstream"])[0])

    middleware = UpstreamMiddleware(app, open_upstream(HASHED))
    for client in clients:
        asyncio.run(serve(middleware, connection(client=client)))
    return picked


def test_hash_goes_by_the_client_address() -> None:
    """One client stays at one host, whatever its port; different clients are spread."""
    assert len(set(homes(("192.0.2.1", port) for port in range(50_000, 50_020)))) == 1
    assert len(set(homes((f"192.0.2.{number}", 50_000) for number in range(30)))) > 3


@pytest.mark.parametrize("client", [None, ("", "0")])
def test_clients_without_an_address_are_spread(client: object) -> None:
    """A server on a unix socket knows none: hashing that would send all to one host."""
    assert sorted(homes([client] * 8)) == list("abcdefgh")


def test_hash_behind_a_proxy_that_is_trusted_goes_by_the_client_of_the_proxy() -> None:
    picked = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        picked.append(visit(scope["state"]["upstream"])[0])

    middleware = UpstreamMiddleware(app, open_upstream(HASHED, trusted_proxies=["192.0.2.0/24"]))

    def homes(clients: Iterable[tuple[int, int]]) -> set[str]:
        picked.clear()
        for proxy, client in clients:
            headers = [(b"x-forwarded-for", b"198.51.100.%d" % client)]
            scope = connection(client=(f"192.0.2.{proxy}", 50_000), headers=headers)
            asyncio.run(serve(middleware, scope))
        return set(picked)

    assert len(homes((proxy, 1) for proxy in range(20))) == 1
    assert len(homes((1, client) for client in range(30))) > 3


# ── sticky sessions ───────────────────────────────────────────────────────────────────────────

BEGINNINGS = {"http": "http.response.start", "websocket": "websocket.accept"}


class Browser:
    """Somebody with a cookie; what the middleware sent to him is in ``sent``."""

    def __init__(self, app: App, **scope: Any) -> None:
        self.cookie = b""
        self.sent: list[Message] = []
        self._app, self._scope = app, scope

    def connect(self) -> str:
        """One connection; the host that its call went to."""
        scope = connection(headers=[(b"cookie", b"x=1"), (b"cookie", self.cookie)], **self._scope)
        self.sent = asyncio.run(serve(self._app, scope))
        self.cookie = next((value.partition(b";")[0] for value in self.set_cookies()), self.cookie)
        return str(scope["home"])

    def set_cookies(self) -> list[bytes]:
        """The cookies that were set."""
        headers = [pair for message in self.sent for pair in message.get("headers", ())]
        return [value for name, value in headers if name == b"set-cookie"]


async def calls_first(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that calls before it answers."""
    scope["home"] = visit(scope["state"]["upstream"])[0]
    await send({"type": BEGINNINGS[scope["type"]], "headers": [(b"own", b"1")]})
    await send({"type": "more"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_stays_by_a_cookie(kind: str) -> None:
    """Set when it begins, and not again; with the flags of one that no script and no other site may have."""
    upstream = open_upstream(STICKY)
    browsers = [Browser(UpstreamMiddleware(calls_first, upstream), kind=kind) for _ in range(20)]
    homes = [browser.connect() for browser in browsers]
    assert len(set(homes)) == 8
    for browser in browsers:
        (cookie,) = browser.set_cookies()
        assert re.fullmatch(rb"upstream=[\w.-]+; Max-Age=86400; Path=/; HttpOnly; SameSite=Lax", cookie)
        assert browser.sent[0]["headers"][0] == (b"own", b"1")
        assert browser.sent[1] == {"type": "more"}
    assert [browser.connect() for browser in browsers] == homes
    assert not any(browser.set_cookies() for browser in browsers)


@pytest.mark.parametrize(("kind", "scheme"), [("http", "https"), ("websocket", "wss")])
def test_a_cookie_that_came_by_tls_goes_back_by_tls_alone(kind: str, scheme: str) -> None:
    browser = Browser(UpstreamMiddleware(calls_first, open_upstream(STICKY)), kind=kind, scheme=scheme)
    browser.connect()
    (cookie,) = browser.set_cookies()
    assert cookie.endswith(b"; SameSite=Lax; Secure")


def test_a_response_that_began_before_the_call_sets_no_cookie() -> None:
    """It is too late; the call is served all the same."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start"})
        scope["home"] = visit(scope["state"]["upstream"])[0]
        await send({"type": "http.response.body"})

    browser = Browser(UpstreamMiddleware(app, open_upstream(STICKY)))
    assert browser.connect() in "abcdefgh"
    assert browser.sent == [{"type": "http.response.start"}, {"type": "http.response.body"}]


def test_where_nothing_is_sticky_the_server_is_spoken_to_directly() -> None:
    upstream = open_upstream(ONE)
    visit(upstream)
    passed = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(send)

    async def send(message: Message) -> None:
        pass

    async def main() -> None:
        await UpstreamMiddleware(app, upstream)(connection(), send, send)

    asyncio.run(main())
    assert passed == [send]


# ── one in another ────────────────────────────────────────────────────────────────────────────


def test_a_middleware_inside_of_another_gives_its_own_and_leaves_the_other_its_own() -> None:
    outer, inner = open_upstream(ONE, id="outer"), open_upstream(ONE, id="inner")

    async def innermost(scope: Scope, receive: Receive, send: Send) -> None:
        assert list(scope["state"]["upstreams"]) == ["default"]
        assert scope["state"]["upstream"].upstream is inner
        assert scope["state"]["user"] == 1
        visit_in_vain(scope["state"]["upstream"], {"a": refused})

    async def between(scope: Scope, receive: Receive, send: Send) -> None:
        before = dict(scope["state"])
        scope["state"]["user"] = 1
        await UpstreamMiddleware(innermost, inner)(scope, receive, send)
        assert (failcount(inner), failcount(outer)) == (1, 0)
        assert scope["state"] == {**before, "user": 1}
        assert scope["state"]["upstream"].upstream is outer
        visit_in_vain(scope["state"]["upstream"], {"a": refused})

    run(between, outer)
    assert (failcount(inner), failcount(outer)) == (1, 1)


def test_inside_of_another_an_application_without_a_default_does_not_get_the_others() -> None:
    async def innermost(scope: Scope, receive: Receive, send: Send) -> None:
        assert list(scope["state"]["upstreams"]) == ["mine"]
        assert "upstream" not in scope["state"]

    run(UpstreamMiddleware(innermost, {"mine": open_upstream(ONE)}), open_upstream(ONE))


# ── start and end of the server ───────────────────────────────────────────────────────────────

STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}


def lifespan_app(
    at_start: Callable[[], object] = bool, last: str = "lifespan.shutdown.complete"
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An application that hears of start and end."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["database"] = 1
        assert await receive() == STARTUP
        at_start()
        await send({"type": "lifespan.startup.complete"})
        assert await receive() == SHUTDOWN
        await send({"type": last})

    return app


class Closing(MemoryStore):
    """Says whether it is closed."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


def test_start_and_end_pass_with_the_state_that_they_fill() -> None:
    state: dict[str, Any] = {}
    middleware = UpstreamMiddleware(lifespan_app(), open_upstream(ONE))
    sent = asyncio.run(serve(middleware, {"type": "lifespan", "state": state}, [STARTUP, SHUTDOWN]))
    assert sent == [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    assert state == {"database": 1}


def test_the_stores_are_open_when_the_application_hears_of_the_start(tmp_path: Path) -> None:
    store = tmp_path / "store" / "upstreams.db"
    heard = []
    upstreams = {"default": {"store": f"sqlite://{store}", "pools": ONE}}
    middleware = UpstreamMiddleware(lifespan_app(lambda: heard.append(store.exists())), upstreams)
    assert not store.exists()
    asyncio.run(serve(middleware, {"type": "lifespan", "state": {}}, [STARTUP, SHUTDOWN]))
    assert heard == [True]


@pytest.mark.parametrize("last", ["lifespan.shutdown.complete", "lifespan.shutdown.failed"])
def test_the_stores_are_closed_when_the_server_hears_of_the_end(last: str) -> None:
    store = Closing()
    closed = []

    async def send(message: Message) -> None:
        closed.append((message["type"], store.closed))

    async def main() -> None:
        messages = iter([STARTUP, SHUTDOWN])

        async def receive() -> Message:
            return next(messages)

        middleware = UpstreamMiddleware(lifespan_app(last=last), {"default": {"store": store}})
        await middleware({"type": "lifespan", "state": {}}, receive, send)

    asyncio.run(main())
    assert closed == [("lifespan.startup.complete", False), (last, True)]


def test_a_store_that_others_could_change_makes_the_start_fail_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    started: list[int] = []
    upstreams = {"default": {"store": f"sqlite://{tmp_path}/store/upstreams.db", "pools": ONE}}
    middleware = UpstreamMiddleware(lifespan_app(lambda: started.append(1)), upstreams)
    sent: list[Message] = []

    async def receive() -> Message:
        return STARTUP

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(StoreUnsafe) as caught:
        asyncio.run(middleware({"type": "lifespan", "state": {}}, receive, send))
    assert sent == [{"type": "lifespan.startup.failed", "message": str(caught.value)}]
    assert f"chmod 700 {tmp_path}/store" in str(caught.value)
    assert not started


def test_a_store_that_is_broken_does_not_keep_the_server_from_starting(tmp_path: Path) -> None:
    """Requests are served from what is declared."""
    (tmp_path / "file").touch()
    upstreams = {"default": {"store": f"sqlite://{tmp_path}/file/upstreams.db", "pools": ONE}}
    tried = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan_app()(scope, receive, send)
        else:
            tried.append(visit(scope["state"]["upstream"]))

    middleware = UpstreamMiddleware(app, upstreams)
    sent = asyncio.run(serve(middleware, {"type": "lifespan", "state": {}}, [STARTUP, SHUTDOWN]))
    assert sent[0] == {"type": "lifespan.startup.complete"}
    asyncio.run(serve(middleware, connection()))
    assert tried == [["a"]]


@pytest.mark.parametrize("error", [None, ValueError("this application knows http alone")])
def test_an_application_that_does_not_care_for_start_and_end_works(error: Exception | None) -> None:
    """The server gets its error, if it has one, and takes it as the sign that it is."""
    upstream = open_upstream(ONE)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            visit_in_vain(scope["state"]["upstream"], {"a": refused})
        elif error is not None:
            raise error

    middleware = UpstreamMiddleware(app, upstream)
    if error is None:
        assert asyncio.run(serve(middleware, {"type": "lifespan"}, [STARTUP])) == []
    else:
        with pytest.raises(ValueError, match="http alone"):
            asyncio.run(serve(middleware, {"type": "lifespan"}, [STARTUP]))
    asyncio.run(serve(middleware, connection()))
    assert failcount(upstream) == 1


def test_upstreams_are_usable_again_after_the_end(tmp_path: Path) -> None:
    """As in tests, which start and end an application more than once."""
    upstreams = Upstreams({"default": {"store": f"sqlite://{tmp_path}/store/upstreams.db", "pools": ONE}})
    middleware = UpstreamMiddleware(lifespan_app(), upstreams)
    for _ in range(2):
        asyncio.run(serve(middleware, {"type": "lifespan", "state": {}}, [STARTUP, SHUTDOWN]))
    assert visit(upstreams["default"]) == ["a"]
    upstreams.close()


def test_a_server_that_does_not_run_on_asyncio_is_served() -> None:
    store = Closing()
    middleware = UpstreamMiddleware(lifespan_app(), {"default": {"store": store, "pools": ONE}})
    coroutine = serve(middleware, {"type": "lifespan", "state": {}}, [STARTUP, SHUTDOWN])
    with pytest.raises(StopIteration) as over:
        coroutine.send(None)
    assert [message["type"] for message in over.value.value] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert store.closed


# ── nothing is left behind ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pools", [ONE, HASHED, STICKY], ids=["plain", "hash", "sticky"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/used", "/unused", "/raises"])
def test_a_connection_is_freed_without_the_collector(kind: str, path: str, pools: dict[str, Any]) -> None:
    """The middleware leaves no cycle behind."""
    refs: list[weakref.ref[Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        refs.extend(weakref.ref(scope["state"][name]) for name in ("upstream", "upstreams"))
        if path != "/unused":
            visit(scope["state"]["upstream"])
        if path == "/raises":
            raise ZeroDivisionError
        await send({"type": BEGINNINGS[kind]})

    async def main() -> list[Any]:
        try:
            await serve(middleware, connection(kind, path=path))
        except ZeroDivisionError:
            pass
        return [ref() for ref in refs]

    middleware = UpstreamMiddleware(app, open_upstream(pools))
    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(main()) == [None, None]
    finally:
        gc.enable()
