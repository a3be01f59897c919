"""The status page as an ASGI application.

::

    app.mount("/upstreams", StatusApp(upstream, token=os.environ["STATUS_TOKEN"]))  # Starlette, FastAPI
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resty_upstream.aconnectors import in_thread
from resty_upstream.asgi import Receive, Scope, Send
from resty_upstream.status.access import Request
from resty_upstream.status.site import BODY_LIMIT, Response, StatusSite, too_much


class StatusApp(StatusSite):
    """The status page of one upstream, or of several by name.

    It answers to its own machine alone, and changes nothing, unless it is told whom to let in; see
    :class:`~resty_upstream.status.site.StatusSite`.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        request = _request(scope)
        body = await _body(receive)
        if body is None:
            return
        answers: list[Response] = []
        if len(body) > BODY_LIMIT:
            answers.append(too_much(request))
        else:
            await in_thread(lambda: answers.append(self.answer(request._replace(body=body))))
        await _send(answers[0], send, with_body=request.method != "HEAD")


def _request(scope: Mapping[str, Any]) -> Request:
    mount, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    if path == mount or path.startswith(f"{mount}/"):
        path = path[len(mount) :]  # some frameworks leave it in, others take it out
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}; {text}" if key == "cookie" and key in headers else text
    return Request(
        method=scope["method"],
        mount=mount,
        path=path,
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        peer=(scope.get("client") or ("",))[0],
        secure=scope.get("scheme") == "https",
        http_version=scope.get("http_version", "1.1"),
        native=scope,
    )


async def _body(receive: Receive) -> bytes | None:
    """The body, or the beginning of one that is too long; None where the client went away."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if len(body) > BODY_LIMIT or not message.get("more_body"):
            return body


async def _send(answer: Response, send: Send, *, with_body: bool) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
