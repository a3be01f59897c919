"""The middleware for WSGI applications, driven as a server drives it."""

from __future__ import annotations

import gc
import io
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from resty_upstream import InvalidConfig, RequestUpstreams, Upstream, UpstreamError, Upstreams
from resty_upstream.wsgi import UpstreamMiddleware, upstreams_of
from tests.helpers import WAIT_S, health, hosts, open_upstream, refused, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"max_fails": 1000, "hosts": hosts("a")}}
HASHED: dict[str, Any] = {"p": {"method": "hash", "hosts": hosts(*"abcdefgh")}}
STICKY: dict[str, Any] = {"p": {"sticky": True, "hosts": hosts(*"abcdefgh")}}

Made = Callable[[WSGIEnvironment], Any]


def request(**more: Any) -> WSGIEnvironment:
    """What a server says of a request."""
    environ: WSGIEnvironment = {"REMOTE_ADDR": "192.0.2.1", **more}
    setup_testing_defaults(environ)
    return environ


def start_response(status: str, headers: list[tuple[str, str]], error: Any = None, /) -> Callable[[bytes], object]:
    """What a server gives to an application."""
    return bytes


def answering(make: Made) -> WSGIApplication:
    """An application whose body is what ``make`` makes of the request."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        body: Iterable[bytes] = make(environ)
        return body

    return app


def begin(make: Made, upstreams: Any, **environ: Any) -> Any:
    """The body of an application behind the middleware, as its server gets it."""
    return UpstreamMiddleware(answering(make), upstreams)(request(**environ), start_response)


def finish(body: Any) -> bytes:
    """Send a body as a server does."""
    try:
        return b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def serve(make: Made, upstreams: Any, **environ: Any) -> bytes:
    """One request to an application behind the middleware."""
    return finish(begin(make, upstreams, **environ))


def fail(environ: WSGIEnvironment) -> None:
    """A call of the upstream, whose host is dead."""
    visit_in_vain(environ["resty_upstream"], {"a": refused})


def failcount(upstream: Upstream) -> int:
    """How many failures the store has been told of."""
    return int(health(upstream, "a")["failcount"])


# ── what a request has ────────────────────────────────────────────────────────────────────────


def test_a_request_finds_its_upstreams_in_its_environ() -> None:
    upstream, other = open_upstream(ONE), open_upstream(ONE, id="other")

    def body(environ: WSGIEnvironment) -> list[bytes]:
        upstreams = environ["resty_upstreams"]
        assert isinstance(upstreams, RequestUpstreams)
        assert upstreams is upstreams_of(environ)
        assert list(upstreams) == ["default", "other"]
        assert upstreams["other"].upstream is other
        assert environ["resty_upstream"] is upstreams["default"]
        assert environ["resty_upstream"].upstream is upstream
        return [b"done"]

    assert serve(body, {"default": upstream, "other": other}) == b"done"


def test_the_environ_is_the_one_of_the_server() -> None:
    """Servers look into it after the request, at what middleware left there."""
    environ = request()
    finish(
        UpstreamMiddleware(answering(lambda environ: environ.update(left=1) or []), {})(environ, start_response)
    )
    assert environ["left"] == 1


def test_without_an_upstream_named_default_a_request_has_only_the_others() -> None:
    def body(environ: WSGIEnvironment) -> list[bytes]:
        assert "resty_upstream" not in environ
        assert visit(environ["resty_upstreams"]["other"]) == ["a"]
        return [b"done"]

    assert serve(body, {"other": open_upstream(ONE)}) == b"done"


def test_without_the_middleware_the_error_names_it() -> None:
    with pytest.raises(UpstreamError, match="UpstreamMiddleware"):
        upstreams_of({})


def test_upstreams_are_given_as_one_as_several_or_as_a_file(tmp_path: Path) -> None:
    upstream = open_upstream(ONE)
    file = tmp_path / "upstreams.toml"
    file.write_text('[default]\nstore = "memory://"\npools.p.hosts.a.host = "a.test"')
    for given in (upstream, {"default": upstream}, Upstreams(upstream), str(file), file):
        assert serve(lambda environ: [str(visit(environ["resty_upstream"])).encode()], given) == b"['a']"


def test_a_wrong_configuration_is_an_error_that_names_its_path() -> None:
    with pytest.raises(InvalidConfig, match=r"^upstreams\.default\.stoer is not an option: did you mean store\?"):
        UpstreamMiddleware(answering(lambda environ: []), {"default": {"stoer": "memory://"}})


# ── post_process ──────────────────────────────────────────────────────────────────────────────


def test_what_was_seen_is_told_when_the_server_closes_the_body() -> None:
    upstream = open_upstream(ONE)

    def parts(environ: WSGIEnvironment) -> Iterator[bytes]:
        yield b"1"
        fail(environ)
        yield b"2"

    body = begin(parts, upstream)
    assert b"".join(body) == b"12"
    assert failcount(upstream) == 0
    body.close()
    assert failcount(upstream) == 1
    body.close()
    assert failcount(upstream) == 1


def test_a_body_is_closed_before_what_was_seen_is_told() -> None:
    """What it sees when it is closed is told too, and also if that raises."""
    upstream = open_upstream(ONE)

    class Body:
        def __init__(self, environ: WSGIEnvironment) -> None:
            self._environ = environ

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"x"])

        def close(self) -> None:
            fail(self._environ)
            assert failcount(upstream) == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve(Body, upstream)
    assert failcount(upstream) == 1


def test_a_generator_that_is_not_read_to_its_end_is_closed() -> None:
    """The client has gone: what the generator sees on its way out is told."""
    upstream = open_upstream(ONE)

    def parts(environ: WSGIEnvironment) -> Iterator[bytes]:
        try:
            yield b"1"
            yield b"2"
        finally:
            fail(environ)

    body = begin(parts, upstream)
    assert next(iter(body)) == b"1"
    body.close()
    assert failcount(upstream) == 1


def test_a_body_that_is_closed_without_being_read_is_told() -> None:
    """The client left before the first byte."""
    upstream = open_upstream(ONE)

    def body(environ: WSGIEnvironment) -> list[bytes]:
        fail(environ)
        return [b"never read"]

    begin(body, upstream).close()
    assert failcount(upstream) == 1


def test_a_body_that_raises_in_the_middle_is_told_when_it_is_closed() -> None:
    upstream = open_upstream(ONE)

    def parts(environ: WSGIEnvironment) -> Iterator[bytes]:
        yield b"1"
        fail(environ)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve(parts, upstream)
    assert failcount(upstream) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("started", [False, True])
def test_an_application_that_raises_is_told_at_once(started: bool, error: type[BaseException]) -> None:
    """There is no body to close; the server answers by itself."""
    upstream = open_upstream(ONE)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if started:
            start_response("200 OK", [])
        fail(environ)
        raise error

    with pytest.raises(error):
        UpstreamMiddleware(app, upstream)(request(), start_response)
    assert failcount(upstream) == 1


def test_each_upstream_that_was_used_is_told() -> None:
    upstreams = {name: open_upstream(ONE, id=name) for name in ("default", "other", "unused")}

    def body(environ: WSGIEnvironment) -> list[bytes]:
        for name in ("default", "other"):
            visit_in_vain(environ["resty_upstreams"][name], {"a": refused})
        return []

    serve(body, upstreams)
    told = {name: failcount(upstream) for name, upstream in upstreams.items()}
    assert told == {"default": 1, "other": 1, "unused": 0}


def test_a_request_that_uses_no_upstream_touches_no_store() -> None:
    class Untouchable:
        clock_id = "none"

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def use(*args: Any, **options: Any) -> Any:
                raise AssertionError(name)

            return use

    upstreams = {"default": {"store": Untouchable(), "pools": ONE}}
    assert serve(lambda environ: [str(list(environ["resty_upstreams"])).encode()], upstreams) == b"['default']"


def test_a_thread_that_outlives_its_request_tells_at_once_what_it_sees() -> None:
    upstream = open_upstream(ONE)
    over = threading.Event()
    threads = []

    def body(environ: WSGIEnvironment) -> list[bytes]:
        def later() -> None:
            over.wait(WAIT_S)
            fail(environ)

        threads.append(threading.Thread(target=later))
        threads[0].start()
        return []

    serve(body, upstream)
    assert failcount(upstream) == 0
    over.set()
    threads[0].join(WAIT_S)
    assert failcount(upstream) == 1


# ── what the server sees of a body ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_rules_of_wsgi_are_kept_towards_the_server(method: str) -> None:
    """So says the validator of the standard library."""
    app = validator(UpstreamMiddleware(answering(lambda environ: [b"1", b"2"]), open_upstream(ONE)))
    assert finish(app(request(REQUEST_METHOD=method, QUERY_STRING=""), start_response)) == b"12"


def test_a_response_of_one_part_keeps_its_length() -> None:
    """Servers give it a ``Content-Length``; one whose parts are not known has none."""
    for make, length in ((lambda environ: [b"12345"], b"5"), (lambda environ: iter([b"12345"]), None)):
        out = io.BytesIO()
        handler = SimpleHandler(io.BytesIO(), out, io.StringIO(), request())
        handler.run(UpstreamMiddleware(answering(make), open_upstream(ONE)))
        head, _, body = out.getvalue().partition(b"\r\n\r\n")
        headers = dict(line.split(b": ", 1) for line in head.splitlines()[1:])
        assert body == b"12345"
        assert headers.get(b"Content-Length") == length


def test_a_body_tells_how_many_parts_it_has_only_if_it_did() -> None:
    upstream = open_upstream(ONE)
    assert len(begin(lambda environ: [b"1", b"2"], upstream)) == 2
    assert not hasattr(begin(lambda environ: iter([b"1", b"2"]), upstream), "__len__")


def test_what_start_response_gives_reaches_the_application() -> None:
    written: list[bytes] = []

    def server(status: str, headers: list[tuple[str, str]], error: Any = None, /) -> Callable[[bytes], object]:
        return written.append

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])(b"written")
        return []

    finish(UpstreamMiddleware(app, open_upstream(ONE))(request(), server))
    assert written == [b"written"]


# ── files that the server sends by itself ─────────────────────────────────────────────────────


class ClosingWrapper:
    """A file wrapper with a ``close`` of its class, as that of waitress."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def close(self) -> None:
        self._file.close()


class BareWrapper:
    """A file wrapper that nobody needs to close."""

    def __init__(self, file: io.BytesIO) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


class FixedWrapper(ClosingWrapper):
    """A file wrapper that takes no attributes, as that of bjoern."""

    __slots__ = ("_file",)

    def __setattr__(self, name: str, value: object) -> None:
        if name != "_file":
            raise AttributeError(name)
        super().__setattr__(name, value)


def sent_file(environ: WSGIEnvironment) -> Any:
    """Fails once, and answers with a file."""
    fail(environ)
    file = io.BytesIO(b"content")
    environ["file"] = file
    return environ["wsgi.file_wrapper"](file)


@pytest.mark.parametrize("wrapper", [FileWrapper, ClosingWrapper, BareWrapper])
def test_a_file_stays_what_the_server_knows_and_is_told_when_it_is_closed(wrapper: type) -> None:
    """A server sends a file by itself where the body is the object that it made for it."""
    upstream = open_upstream(ONE)
    environ = request(**{"wsgi.file_wrapper": wrapper})
    body: Any = UpstreamMiddleware(answering(sent_file), upstream)(environ, start_response)
    assert type(body) is wrapper
    assert b"".join(body) == b"content"
    assert failcount(upstream) == 0
    for _ in range(2):
        body.close()
        assert environ["file"].closed is (wrapper is not BareWrapper)
        assert failcount(upstream) == 1


@pytest.mark.parametrize("wrapper", [FixedWrapper, lambda file: ClosingWrapper(file), None])
def test_a_file_whose_closing_nobody_can_watch_is_a_body_as_any_other(wrapper: Any) -> None:
    """Or one that the server made by a function: what it is made into is not known."""
    upstream = open_upstream(ONE)

    def body(environ: WSGIEnvironment) -> Any:
        fail(environ)
        return (wrapper or ClosingWrapper)(io.BytesIO(b"content"))

    served: Any = begin(body, upstream, **({"wsgi.file_wrapper": wrapper} if wrapper else {}))
    assert b"".join(served) == b"content"
    assert failcount(upstream) == 0
    served.close()
    assert failcount(upstream) == 1


# ── the key of methods that hash ──────────────────────────────────────────────────────────────


def homes(clients: Iterable[dict[str, str]]) -> list[str]:
    """The host that each client is sent to."""
    app = UpstreamMiddleware(
        answering(lambda environ: [visit(environ["resty_upstream"])[0].encode()]), open_upstream(HASHED)
    )
    environs = [{**request(), **client} for client in clients]
    for environ in environs:
        if environ["REMOTE_ADDR"] == "none":
            del environ["REMOTE_ADDR"]
    return [finish(app(environ, start_response)).decode() for environ in environs]


def test_hash_goes_by_the_client_address() -> None:
    """One client stays at one host; different clients are spread."""
    assert len(set(homes([{"REMOTE_ADDR": "192.0.2.1"}] * 20))) == 1
    assert len(set(homes({"REMOTE_ADDR": f"192.0.2.{number}"} for number in range(30)))) > 3


@pytest.mark.parametrize("address", ["", "none"])
def test_clients_without_an_address_are_spread(address: str) -> None:
    """A server on a unix socket gives the address ``""``, or none: hashing that would send all to one host."""
    assert sorted(homes([{"REMOTE_ADDR": address}] * 8)) == list("abcdefgh")


def test_hash_behind_a_proxy_that_is_trusted_goes_by_the_client_of_the_proxy() -> None:
    app = UpstreamMiddleware(
        answering(lambda environ: [visit(environ["resty_upstream"])[0].encode()]),
        open_upstream(HASHED, trusted_proxies=["192.0.2.0/24"]),
    )

    def home(proxy: int, client: int) -> bytes:
        forwarded = {"HTTP_X_FORWARDED_FOR": f"198.51.100.{client}"}
        return finish(app(request(REMOTE_ADDR=f"192.0.2.{proxy}", **forwarded), start_response))

    assert len({home(proxy, 1) for proxy in range(20)}) == 1
    assert len({home(1, client) for client in range(30)}) > 3


# ── sticky sessions ───────────────────────────────────────────────────────────────────────────


class Browser:
    """Somebody with a cookie; what the middleware gave to the server for him is in ``headers``."""

    def __init__(self, app: WSGIApplication, **environ: str) -> None:
        self.cookie = ""
        self.headers: list[tuple[str, str]] = []
        self._app, self._environ = app, environ

    def get(self) -> bytes:
        """The body of a response."""

        def start(status: str, headers: list[tuple[str, str]], error: Any = None, /) -> Callable[[bytes], object]:
            self.headers = headers
            return bytes

        body = finish(self._app(request(HTTP_COOKIE=f"x=1; {self.cookie}", **self._environ), start))
        self.cookie = next((value.partition(";")[0] for value in self.set_cookies()), self.cookie)
        return body

    def set_cookies(self) -> list[str]:
        """The cookies that the last response set."""
        return [value for name, value in self.headers if name == "Set-Cookie"]


def at_home(environ: WSGIEnvironment) -> bytes:
    """The host that a call goes to."""
    return visit(environ["resty_upstream"])[0].encode()


def calls_first(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An application that calls before it answers."""
    body = [at_home(environ)]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "own=1")])
    return body


def test_a_session_stays_by_a_cookie_beside_those_of_the_application() -> None:
    """Set when it begins, and not again; with the flags of one that no script and no other site may have."""
    upstream = open_upstream(STICKY)
    browsers = [Browser(UpstreamMiddleware(calls_first, upstream)) for _ in range(20)]
    homes = []
    for browser in browsers:
        homes.append(browser.get())
        own, cookie = browser.set_cookies()
        assert own == "own=1"
        assert re.fullmatch(r"upstream=[\w.-]+; Max-Age=86400; Path=/; HttpOnly; SameSite=Lax", cookie)
        browser.cookie = cookie.partition(";")[0]
    assert len(set(homes)) == 8
    assert [browser.get() for browser in browsers] == homes
    assert {tuple(browser.set_cookies()) for browser in browsers} == {("own=1",)}


def test_a_cookie_that_came_by_tls_goes_back_by_tls_alone() -> None:
    browser = Browser(UpstreamMiddleware(calls_first, open_upstream(STICKY)), **{"wsgi.url_scheme": "https"})
    browser.get()
    assert browser.set_cookies()[1].endswith("; SameSite=Lax; Secure")


def test_a_response_that_began_before_the_call_sets_no_cookie() -> None:
    """It is too late; the call is served all the same."""

    def stream(environ: WSGIEnvironment) -> Iterator[bytes]:
        yield b"begun "
        yield at_home(environ)

    browser = Browser(UpstreamMiddleware(answering(stream), open_upstream(STICKY)))
    assert browser.get().startswith(b"begun ")
    assert browser.set_cookies() == []


def test_an_answer_to_an_error_gets_the_cookie_too() -> None:
    """``start_response`` is called again, with the error."""
    calls = []

    def server(status: str, headers: list[tuple[str, str]], error: Any = None, /) -> Callable[[bytes], object]:
        calls.append((status, [name for name, _ in headers], error))
        return bytes

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        at_home(environ)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            start_response("500 Oops", [], sys.exc_info())
        return []

    finish(UpstreamMiddleware(app, open_upstream(STICKY))(request(), server))
    assert [(status, names, bool(error)) for status, names, error in calls] == [
        ("200 OK", [], False),
        ("500 Oops", ["Set-Cookie"], True),
    ]


def test_with_sticky_pools_the_rules_of_wsgi_are_kept_too() -> None:
    app = validator(UpstreamMiddleware(calls_first, open_upstream(STICKY)))
    assert finish(app(request(REQUEST_METHOD="GET", QUERY_STRING=""), start_response)) in b"abcdefgh"


def test_each_upstream_of_a_request_sets_its_own_cookie() -> None:
    upstreams = {
        "default": open_upstream(STICKY),
        "other": open_upstream({"p": {**STICKY["p"], "sticky": {"cookie": "other"}}}),
    }

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        for name in upstreams:
            visit(environ["resty_upstreams"][name])
        start_response("200 OK", [])
        return []

    browser = Browser(UpstreamMiddleware(app, upstreams))
    browser.get()
    assert [cookie.partition("=")[0] for cookie in browser.set_cookies()] == ["upstream", "other"]


# ── one in another ────────────────────────────────────────────────────────────────────────────


def test_a_middleware_inside_of_another_gives_its_own_and_leaves_the_other_its_own() -> None:
    outer, inner = open_upstream(ONE, id="outer"), open_upstream(ONE, id="inner")

    def innermost(environ: WSGIEnvironment) -> list[bytes]:
        assert list(environ["resty_upstreams"]) == ["default"]
        assert environ["resty_upstream"].upstream is inner
        fail(environ)
        return [b"done"]

    def between(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        before = dict(environ)
        body = UpstreamMiddleware(answering(innermost), inner)(environ, start_response)
        assert environ == before
        assert environ["resty_upstream"].upstream is outer
        fail(environ)
        return body

    body: Any = UpstreamMiddleware(between, outer)(request(), start_response)
    assert b"".join(body) == b"done"
    assert (failcount(inner), failcount(outer)) == (0, 0)
    body.close()
    assert (failcount(inner), failcount(outer)) == (1, 1)


def test_inside_of_another_an_application_without_a_default_does_not_get_the_others() -> None:
    def innermost(environ: WSGIEnvironment) -> list[bytes]:
        assert list(environ["resty_upstreams"]) == ["mine"]
        assert "resty_upstream" not in environ
        return []

    inner = UpstreamMiddleware(answering(innermost), {"mine": open_upstream(ONE)})
    finish(UpstreamMiddleware(inner, open_upstream(ONE))(request(), start_response))


# ── nothing is left behind ────────────────────────────────────────────────────────────────────


def unused(environ: WSGIEnvironment) -> list[bytes]:
    return []


def used(environ: WSGIEnvironment) -> list[bytes]:
    visit(environ["resty_upstream"])
    return []


def streams(environ: WSGIEnvironment) -> Iterator[bytes]:
    yield b"1"
    visit(environ["resty_upstream"])


def sends_file(environ: WSGIEnvironment) -> Any:
    visit(environ["resty_upstream"])
    return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))


def raises(environ: WSGIEnvironment) -> list[bytes]:
    visit(environ["resty_upstream"])
    raise ZeroDivisionError


@pytest.mark.parametrize("pools", [ONE, HASHED, STICKY], ids=["plain", "hash", "sticky"])
@pytest.mark.parametrize("make", [unused, used, streams, sends_file, raises])
@pytest.mark.parametrize("wrapper", [FileWrapper, ClosingWrapper])
def test_a_request_is_freed_without_the_collector(make: Made, wrapper: type, pools: dict[str, Any]) -> None:
    """The middleware leaves no cycle behind."""
    refs: list[weakref.ref[Any]] = []

    def watched(environ: WSGIEnvironment) -> Any:
        refs.extend(weakref.ref(environ[name]) for name in ("resty_upstream", "resty_upstreams"))
        return make(environ)

    app = UpstreamMiddleware(answering(watched), open_upstream(pools))
    gc.collect()
    gc.disable()
    try:
        try:
            finish(app(request(**{"wsgi.file_wrapper": wrapper}), start_response))
        except ZeroDivisionError:
            pass
        assert [ref() for ref in refs] == [None, None]
    finally:
        gc.enable()
