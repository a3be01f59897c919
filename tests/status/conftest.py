"""The status page in real servers, over ASGI and over WSGI."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import uvicorn
from werkzeug.serving import WSGIRequestHandler, make_server

from resty_upstream import Upstream
from resty_upstream.status.asgi import StatusApp as AsgiApp
from resty_upstream.status.site import StatusSite
from resty_upstream.status.wsgi import StatusApp as WsgiApp
from tests.helpers import WAIT_S, hosts, open_upstream

TOKEN = "a token that may change things"
VIEW_TOKEN = "a token that may look at things"
HOSTILE = "<img src=x onerror=alert(1)>"

POOLS: Mapping[str, Any] = {
    "p": {"hosts": {**hosts("a", "b", weight=10), HOSTILE: {"host": "c.test", "weight": 20}}},
    "dr": {"priority": 10, "hosts": hosts("d")},
}


class Answer(NamedTuple):
    """What a server sent."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def cookie(self) -> str:
        """All cookies that it sets, as a client sends them back."""
        return "; ".join(each.partition(";")[0] for each in self.headers.get_all("set-cookie", ()))


class Site:
    """A running server."""

    def __init__(self, port: int, mount: str = "") -> None:
        self.port = port
        self.mount = mount
        self.url = f"http://localhost:{port}{mount}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request.

        :param body: the fields of a form, or bytes as they are.
        :param headers: names with ``_`` for ``-``.
        """
        connection = http.client.HTTPConnection("localhost", self.port, timeout=WAIT_S)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, Mapping):
            body = urlencode(body)
            sent.setdefault("Content-Type", "application/x-www-form-urlencoded")
        with contextlib.closing(connection):
            connection.request(method, self.mount + path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def sign_in(self, token: str = TOKEN, name: str = "alice") -> str:
        """The cookie of a session."""
        answer = self.post("/login", {"name": name, "token": token})
        assert answer.status == 303, answer
        return answer.cookie


@contextlib.contextmanager
def serving_asgi(app: Any, **options: Any) -> Iterator[int]:
    """A real uvicorn, in a thread; its port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", **options)
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    socket.listen()  # or who comes before the server does is refused
    thread = threading.Thread(target=server.run, args=[[socket]])
    thread.start()
    try:
        yield socket.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        socket.close()


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_args: Any) -> None:
        pass


@contextlib.contextmanager
def serving_wsgi(app: Any) -> Iterator[int]:
    """A real server of Werkzeug, in a thread; its port."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(WAIT_S)
        server.server_close()


Start = Callable[..., Site]


@pytest.fixture
def upstream() -> Upstream:
    """Two pools whose hosts nobody connects to, one with a hostile id."""
    return open_upstream(POOLS)


@pytest.fixture(params=["asgi", "wsgi"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a :class:`Site`, over ASGI and over WSGI; takes what ``StatusApp`` does."""
    kind, serving = {"asgi": (AsgiApp, serving_asgi), "wsgi": (WsgiApp, serving_wsgi)}[request.param]
    with ExitStack() as stack:

        def start(upstreams: Upstream | Mapping[str, Upstream], **options: Any) -> Site:
            app: StatusSite = kind(upstreams, **options)
            return Site(stack.enter_context(serving(app)))

        yield start


@pytest.fixture
def site(start: Start, upstream: Upstream) -> Site:
    """The page with a token for those who change things, and one for those who look."""
    return start(upstream, token=TOKEN, view_token=VIEW_TOKEN)
