"""The page as an application: what it answers, and where it may be mounted."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import flask
import jsonschema
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from resty_upstream import Upstream
from resty_upstream.errors import StoreUnavailable
from resty_upstream.status import schema
from resty_upstream.status.asgi import StatusApp as AsgiApp
from resty_upstream.status.wsgi import StatusApp as WsgiApp
from tests.helpers import hosts, open_upstream
from tests.status.conftest import HOSTILE, POOLS, TOKEN, Site, Start, serving_asgi, serving_wsgi
from tests.status.test_html import Reader
from tests.unit.test_imports import loaded_by

BEARER = f"Bearer {TOKEN}"


def test_the_page_has_every_host_without_any_script(site: Site) -> None:
    read = Reader(site.get("/", Authorization=BEARER).text)
    for text in ("a.test:80", "d.test:80", HOSTILE, "50\N{NO-BREAK SPACE}%", "in reserve behind pool p"):
        assert text in read.text
    assert [attributes["src"].partition("?")[0] for tag, attributes in read.tags if tag == "script"] == [  # type: ignore[union-attr]
        "theme.js",
        "status.js",
    ]


def test_a_hostile_id_is_text_everywhere(site: Site) -> None:
    for path in ("/", f"/change?do=down&upstream=default&pool=p&host={HOSTILE.replace(' ', '+')}"):
        read = Reader(site.get(path, Authorization=BEARER).text)
        assert "img" not in {tag for tag, _ in read.tags}
        assert HOSTILE in read.text


def test_nothing_is_inline_or_from_elsewhere(site: Site) -> None:
    for path in ("/", "/change?do=weight&upstream=default&pool=p&host=a"):
        answer = site.get(path, Authorization=BEARER)
        for tag, attributes in Reader(answer.text).tags:
            assert "style" not in attributes, tag
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in ("href", "src", "action"):
                assert "//" not in (attributes.get(name) or ""), (tag, attributes)
        assert "<style" not in answer.text


def test_every_answer_is_locked_down(site: Site) -> None:
    answers = [
        site.get("/", Authorization=BEARER),
        site.get("/"),
        site.get("/status.json", Authorization=BEARER),
        site.get("/nowhere", Authorization=BEARER),
        site.get("/status.css"),
        site.post("/login", {"token": TOKEN}),
    ]
    for answer in answers:
        policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == ("max-age=31536000" if answer is answers[4] else "no-store")


def test_the_json_is_as_its_schema_says(site: Site) -> None:
    answer = site.get("/status.json", Authorization=BEARER)
    assert answer.headers["content-type"] == "application/json"
    given = site.get("/schema.json", Authorization=BEARER).json
    assert given == schema()
    jsonschema.Draft202012Validator.check_schema(given)
    jsonschema.validate(answer.json, given)
    assert [pool["id"] for pool in answer.json["upstreams"][0]["pools"]] == ["p", "dr"]


def test_what_the_script_gets_has_a_text_for_each_place_of_the_page(site: Site) -> None:
    parts = site.get("/status.json?for=page", Authorization=BEARER).json["parts"]
    page = site.get("/", Authorization=BEARER).text
    for part in parts:
        only = site.get(f"/?part={part['key']}", Authorization=BEARER).text
        (attributes,) = [each for _, each in Reader(only).tags if "data-part" in each]
        assert (attributes["data-part"], attributes["data-made"]) == (part["key"], part["made"])
        assert len([each for _, each in Reader(only).tags if "data-t" in each]) == len(part["texts"])
        assert f'data-made="{part["made"]}"' in page
    assert [len(part["rows"]) for part in parts] == [0, 3, 1, 0]


def test_several_upstreams_are_shown_by_name(start: Start) -> None:
    upstreams = {
        "shop": open_upstream({"p": {"hosts": hosts("a")}}),
        "mail": open_upstream({"p": {"hosts": hosts("b")}}),
    }
    site = start(upstreams, token=TOKEN)
    assert [each["name"] for each in site.get("/status.json", Authorization=BEARER).json["upstreams"]] == [
        "shop",
        "mail",
    ]
    order = {"do": "down", "upstream": "mail", "pool": "p", "host": "b"}
    assert site.post("/change", order, Authorization=BEARER).status == 303
    assert upstreams["shop"].get_pools()["p"]["hosts"]["a"]["up"]
    assert not upstreams["mail"].get_pools()["p"]["hosts"]["b"]["up"]


# ── errors ────────────────────────────────────────────────────────────────────────────────────

HOST = "upstream=default&pool=p&host=a"


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nowhere", 404, "/status.json"),
        ("GET", "/../../etc/passwd", 404, "/status.json"),
        ("PUT", "/", 405, "GET"),
        ("DELETE", "/change", 405, "GET, POST"),
        ("POST", "/status.json", 405, "GET"),
        ("GET", "/change?do=down&upstream=default&pool=p&host=none", 404, "There is no host"),
        ("GET", "/change?do=down&upstream=none&pool=p&host=a", 404, "There is no host"),
        ("GET", f"/change?do=explode&{HOST}", 400, "do must be one of"),
        ("GET", "/login", 405, "POST"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(
    site: Site, method: str, path: str, status: int, says: str
) -> None:
    page = site.ask(method, path, Authorization=BEARER, Accept="text/html")
    assert page.status == status
    assert page.headers["content-type"].startswith("text/html")
    assert says in Reader(page.text).text
    plain = site.ask(method, path, Authorization=BEARER, Accept="application/json")
    assert plain.json["status"] == status
    assert says in plain.json["error"]
    if status == 405:
        assert page.headers["allow"] == says


def test_a_wrong_value_is_asked_again_with_what_was_typed(site: Site, upstream: Upstream) -> None:
    order = {"do": "down", "upstream": "default", "pool": "p", "host": "a", "reason": "why <not>", "until": "soon"}
    answer = site.post("/change", order, Authorization=BEARER)
    assert answer.status == 400
    values = [attributes.get("value") for tag, attributes in Reader(answer.text).tags if tag == "input"]
    assert {"why <not>", "soon"} <= set(values)
    assert "until must be" in Reader(answer.text).text
    assert upstream.get_pools()["p"]["hosts"]["a"]["up"]


def test_a_store_that_fails_is_said_and_the_page_is_still_there(
    site: Site, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise StoreUnavailable("the disk is on fire")

    monkeypatch.setattr(upstream.store, "transact", fail)
    order = {"do": "down", "upstream": "default", "pool": "p", "host": "a"}
    answer = site.post("/change", order, Authorization=BEARER, Accept="application/json")
    assert (answer.status, answer.json["error"]) == (503, "Nothing was done: the disk is on fire.")
    assert site.get("/", Authorization=BEARER).status == 200


def test_a_head_has_the_headers_of_a_get_and_no_body(site: Site) -> None:
    answer = site.ask("HEAD", "/status.css")
    assert (answer.status, answer.text) == (200, "")
    assert int(answer.headers["content-length"]) > 1000


# ── mounted ───────────────────────────────────────────────────────────────────────────────────


def mounted_in_starlette(stack: ExitStack, app: Any) -> int:
    return stack.enter_context(serving_asgi(Starlette(routes=[Mount("/ops/upstreams", app=app)])))


def mounted_alone(stack: ExitStack, app: Any) -> int:
    return stack.enter_context(serving_asgi(app, root_path="/ops/upstreams"))


def mounted_in_flask(stack: ExitStack, app: Any) -> int:
    site = flask.Flask(__name__)
    site.wsgi_app = DispatcherMiddleware(site.wsgi_app, {"/ops/upstreams": app})  # type: ignore[method-assign]
    return stack.enter_context(serving_wsgi(site))


@pytest.mark.parametrize(
    ("kind", "mounted"), [(AsgiApp, mounted_in_starlette), (AsgiApp, mounted_alone), (WsgiApp, mounted_in_flask)]
)
def test_it_works_below_any_path(kind: Any, mounted: Any) -> None:
    with ExitStack() as stack:
        port = mounted(stack, kind(open_upstream(POOLS), token=TOKEN))
        site = Site(port, "" if mounted is mounted_alone else "/ops/upstreams")
        if not site.mount:
            assert site.get("/", Authorization=BEARER).status == 200
            return
        bare = site.get("", Authorization=BEARER)
        assert bare.status in (307, 308)
        assert bare.headers["location"].endswith("upstreams/")
        cookie = site.sign_in()
        assert site.get("/", Cookie=cookie).status == 200
        assert site.get("/status.css").status == 200
        assert site.get("/status.json", Cookie=cookie).json["version"] == 1


def test_a_websocket_is_refused() -> None:
    import websockets.sync.client as client
    from websockets.exceptions import InvalidStatus

    with ExitStack() as stack:
        port = stack.enter_context(serving_asgi(AsgiApp(open_upstream(POOLS))))
        with pytest.raises(InvalidStatus, match="403"):
            client.connect(f"ws://localhost:{port}/")


def test_who_imports_the_library_does_not_load_the_page() -> None:
    assert not {name for name in loaded_by("import resty_upstream") if name.startswith("resty_upstream.status")}
