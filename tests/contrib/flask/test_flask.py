"""What views of Flask get from the extension, in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Request, Response, request, session, stream_with_context
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder

from resty_upstream import InvalidConfig, Upstream, UpstreamError, UpstreamNotFound
from resty_upstream.contrib.flask import Upstreams, current_upstream, current_upstreams
from resty_upstream.contrib.werkzeug import UpstreamMiddleware, UpstreamRequestMixin
from tests.helpers import WAIT_S, health, hosts, open_upstream, refused, visit, visit_in_vain

ONE: dict[str, Any] = {"p": {"max_fails": 1000, "hosts": hosts("a")}}
TWO: dict[str, Any] = {**ONE, "reserve": {"priority": 10, "hosts": hosts("b")}}
HASHED: dict[str, Any] = {"p": {"method": "hash", "hosts": hosts(*"abcdefgh")}}


class WithUpstream(UpstreamRequestMixin, Request):
    """A request of Flask with ``upstream`` and ``upstreams``."""


def app_with(view: Callable[[], Any], upstreams: Any = None) -> Flask:
    """An app with one view; without upstreams, also without the extension."""
    app = Flask("app")
    app.testing = True  # a view's error is the test's
    app.request_class = WithUpstream
    app.add_url_rule("/", view_func=view)
    if upstreams is not None:
        Upstreams(app, upstreams)
    return app


def get(app: Flask, path: str = "/", **environ: str) -> Any:
    """A response that was read to its end, and closed."""
    return app.test_client().get(path, environ_base=environ, buffered=True)


def failcount(upstream: Upstream) -> int:
    return int(health(upstream, "a")["failcount"])


# ── what a request has ────────────────────────────────────────────────────────────────────────


def test_a_request_has_its_upstreams_by_the_proxies_and_by_its_class() -> None:
    upstream, other = open_upstream(TWO), open_upstream(ONE, id="other")

    def view() -> list[str]:
        assert current_upstream == request.upstream == current_upstreams["default"]  # type: ignore[attr-defined]
        assert current_upstreams == request.upstreams  # type: ignore[attr-defined]  # of the mixin
        assert current_upstreams["other"].upstream is other
        assert visit(current_upstreams["default"], {"a": refused}) == ["a", "b"]
        return [current_upstream.connect(lambda host, port, timeout_s: host).client, *current_upstreams]

    app = app_with(view, {"default": upstream, "other": other})
    assert get(app).json == ["b.test", "default", "other"]
    assert failcount(upstream) == 1


def test_an_async_view_has_the_same() -> None:
    """Flask runs it in a loop of its own."""
    upstream = open_upstream(TWO)

    async def dial(host: str, port: int, timeout_s: float) -> str:
        if host == "a.test":
            raise refused()
        return host

    async def view() -> list[str]:
        return [(await current_upstream.aconnect(dial)).client, *visit(current_upstreams["default"])]

    assert get(app_with(view, upstream)).json == ["b.test", "b"]
    assert failcount(upstream) == 1


def test_outside_a_request_the_proxies_are_those_of_the_app() -> None:
    upstream = open_upstream(ONE)
    app = app_with(dict, upstream)
    with app.app_context():
        assert current_upstreams["default"] is upstream  # type: ignore[comparison-overlap]  # typed for requests
        assert list(current_upstreams) == ["default"]
        assert app.extensions["resty_upstream"]["default"] is upstream
        visit_in_vain(upstream, {"a": refused})
    assert failcount(upstream) == 1
    with app.test_request_context(), pytest.raises(UpstreamNotFound):
        current_upstreams["other"]


def test_a_stream_uses_it_while_it_streams() -> None:
    upstream = open_upstream(ONE)

    def view() -> Response:
        def parts() -> Iterator[str]:
            yield "1"
            visit_in_vain(current_upstreams["default"], {"a": refused})
            yield str(current_upstream.get_pools()["p"]["hosts"]["a"]["failcount"])

        return Response(stream_with_context(parts()))

    assert get(app_with(view, upstream)).text == "10"
    assert failcount(upstream) == 1


def test_hash_goes_by_the_client_address() -> None:
    app = app_with(lambda: visit(current_upstreams["default"]), open_upstream(HASHED))
    homes = {number: {get(app, REMOTE_ADDR=f"192.0.2.{number}").text for _ in range(2)} for number in range(20)}
    assert {len(hosts_of_one) for hosts_of_one in homes.values()} == {1}
    assert len(set().union(*homes.values())) > 3


def test_threads_of_a_request_have_what_they_are_given() -> None:
    """Flask's context does not go there; the upstream of the request does."""
    upstream = open_upstream(ONE)

    def view() -> str:
        thread = threading.Thread(target=visit_in_vain, args=[current_upstreams["default"], {"a": refused}])
        thread.start()
        thread.join(WAIT_S)
        return str(failcount(upstream))

    assert get(app_with(view, upstream)).text == "0"
    assert failcount(upstream) == 1


# ── configuration ─────────────────────────────────────────────────────────────────────────────


def test_upstreams_come_from_the_configuration_of_the_app() -> None:
    app = app_with(lambda: visit(current_upstreams["default"]))
    app.config["UPSTREAMS"] = {"default": open_upstream(ONE)}
    Upstreams(app)
    assert get(app).json == ["a"]


def test_what_is_given_to_the_extension_wins_over_the_configuration() -> None:
    app = app_with(lambda: visit(current_upstreams["default"]))
    app.config["UPSTREAMS"] = 5
    Upstreams(app, open_upstream(ONE))
    assert get(app).json == ["a"]


def test_one_extension_serves_several_apps() -> None:
    """As with factories: each has the upstreams of its own configuration."""
    extension = Upstreams()
    told = {}
    for name in ("one", "two"):
        app = app_with(lambda: visit_in_vain(current_upstreams["default"], {"a": refused}) and "")
        app.config["UPSTREAMS"] = {"default": open_upstream(ONE, id=name)}
        extension.init_app(app)
        get(app)
        told[app.extensions["resty_upstream"]["default"].id] = failcount(
            app.extensions["resty_upstream"]["default"]
        )
    assert told == {"one": 1, "two": 1}


def test_a_file_is_found_beside_the_app_wherever_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "upstreams.toml").write_text('[default]\nstore = "memory://"\npools.p.hosts.a.host = "a.test"')
    for given in ("upstreams.toml", Path("upstreams.toml"), tmp_path / "upstreams.toml"):
        app = Flask("app", root_path=str(tmp_path))
        Upstreams(app, given)
        assert visit(app.extensions["resty_upstream"]["default"]) == ["a"]


def test_a_store_that_is_not_named_is_named_after_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))

    def place(name: str, root_path: str) -> str:
        app = Flask(name, root_path=root_path)
        Upstreams(app, {"default": {}})
        return str(os.path.dirname(app.extensions["resty_upstream"]["default"].store.path))

    assert place("app", "/srv/app") == place("app", "/srv/app")
    places = {place("app", "/srv/app"), place("other", "/srv/app"), place("app", "/srv/other")}
    assert len(places) == 3
    assert {os.path.dirname(each) for each in places} == {str(tmp_path)}
    assert not list(tmp_path.iterdir()), "nothing is opened before it is used"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"^app\.config\[\"UPSTREAMS\"\] must be given"),
        (5, r"^upstreams must be a mapping by name, not int"),
        (
            {"default": {"stoer": "memory://"}},
            r"^upstreams\.default\.stoer is not an option: did you mean store\?",
        ),
        ("missing.toml", r"^/srv/app/missing\.toml: No such file"),
    ],
)
def test_a_wrong_configuration_is_an_error_that_names_its_path(given: Any, message: str) -> None:
    app = Flask("app", root_path="/srv/app")
    app.config["UPSTREAMS"] = given
    with pytest.raises(InvalidConfig, match=message):
        Upstreams(app)
    assert "resty_upstream" not in app.extensions


# ── what is missing is named ──────────────────────────────────────────────────────────────────


def test_without_the_extension_the_error_names_it() -> None:
    def view() -> str:
        for use in (lambda: current_upstream.connect(), lambda: current_upstreams["default"]):
            with pytest.raises(UpstreamError, match=r"resty_upstream\.contrib\.flask\.Upstreams\(app\)"):
                use()
        return "fine"

    app = app_with(view)
    assert get(app).text == "fine"
    with app.app_context(), pytest.raises(UpstreamError, match=r"contrib\.flask\.Upstreams\(app\)"):
        current_upstream.connect()


@pytest.mark.parametrize("name", ["upstream", "upstreams"])
def test_without_the_middleware_a_request_of_the_mixin_names_it(name: str) -> None:
    with pytest.raises(UpstreamError, match=r"contrib\.werkzeug\.UpstreamMiddleware"):
        getattr(WithUpstream(EnvironBuilder().get_environ()), name)


# ── one in another ────────────────────────────────────────────────────────────────────────────


def test_an_app_that_is_mounted_has_its_own_or_those_around_it() -> None:
    outer, inner = open_upstream(ONE, id="outer"), open_upstream(ONE, id="inner")

    def view() -> str:
        visit_in_vain(current_upstreams["default"], {"a": refused})
        return current_upstream.upstream.id

    mounts = {"/without": app_with(view), "/own": app_with(view, inner)}
    client = Client(UpstreamMiddleware(DispatcherMiddleware(app_with(view), mounts), outer))
    assert client.get("/own/", buffered=True).text == "inner"
    assert (failcount(outer), failcount(inner)) == (0, 1)
    assert client.get("/without/", buffered=True).text == "outer"
    assert client.get("/", buffered=True).text == "outer"
    assert (failcount(outer), failcount(inner)) == (2, 1)


# ── sticky sessions ───────────────────────────────────────────────────────────────────────────


def test_a_session_stays_at_its_host_beside_the_session_of_flask() -> None:
    def view() -> str:
        session["seen"] = session.get("seen", 0) + 1
        return visit(current_upstream)[0]

    app = app_with(view, open_upstream({"p": {"sticky": True, "hosts": hosts(*"abcdefgh")}}))
    app.secret_key = "a secret of Flask"
    clients = [app.test_client() for _ in range(16)]
    homes = [client.get("/", buffered=True).text for client in clients]
    assert len(set(homes)) == 8
    for client, home in zip(clients, homes, strict=True):
        again = client.get("/", buffered=True)
        assert again.text == home
        assert [line.partition("=")[0] for line in again.headers.getlist("Set-Cookie")] == ["session"]
        cookie = client.get_cookie("upstream")
        assert cookie is not None
        assert (cookie.path, cookie.http_only, cookie.same_site, cookie.secure) == ("/", True, "Lax", False)
        assert cookie.max_age == 86_400
