"""Any ASGI application: a middleware that gives each connection its upstreams.

::

    app = UpstreamMiddleware(app, upstreams="upstreams.toml")
    scope["state"]["upstream"]  # in an application; `request.state.upstream` in Starlette
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from resty_upstream.aconnectors import in_thread
from resty_upstream.config import Upstreams
from resty_upstream.context import RequestUpstreams
from resty_upstream.errors import StoreUnsafe, UpstreamError
from resty_upstream.visitors import AsgiVisitor

if TYPE_CHECKING:
    import os

    from resty_upstream.upstream import Upstream

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class UpstreamMiddleware:
    """Gives requests and websockets ``state["upstream"]`` (the one named default) and ``state["upstreams"]``.

    What a connection sees of hosts is shared with all workers when it is over: after the last byte, on an error,
    or when the client goes away. To be last also after the page for an unhandled error, it has to be outermost.

    :param upstreams: what :class:`~resty_upstream.Upstreams` takes.
    :raises InvalidConfig: naming every problem.

    Where the server tells of start and end (``lifespan``), the stores are opened before the first request and
    closed after the last; a store that others could change is refused, and the server does not start.
    """

    def __init__(
        self, app: App, upstreams: Upstreams | Upstream | Mapping[str, Any] | str | os.PathLike[str]
    ) -> None:
        self.app = app
        self.upstreams = upstreams if isinstance(upstreams, Upstreams) else Upstreams(upstreams)
        self.upstreams.require_signers()
        self._default = self.upstreams.get("default")
        self._is_serving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http" and kind != "websocket":
            await (self._live(scope, receive, send) if kind == "lifespan" else self.app(scope, receive, send))
            return
        if not self._is_serving:
            self._is_serving = True
            self.upstreams.serve()
        state = scope.setdefault("state", {})
        if "upstreams" in state:
            state = dict(state)  # of an application around this one, which keeps its own
            state.pop("upstream", None)
            scope = {**scope, "state": state}
        visitor = AsgiVisitor(scope) if self.upstreams.ask_visitors else None
        upstreams = RequestUpstreams(self.upstreams, visitor, self._default)
        state["upstreams"] = upstreams
        if self._default is not None:
            state["upstream"] = upstreams["default"]
        if visitor is not None:
            send = _setting_cookies(send, upstreams, secure=scope.get("scheme") in ("https", "wss"))
        try:
            await self.app(scope, receive, send)
        finally:
            upstreams.post_process()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def open_at_start() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await in_thread(self.upstreams.open)
                except StoreUnsafe as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
            return message

        async def close_at_end(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await in_thread(self.upstreams.close)
            await send(message)

        await self.app(scope, open_at_start, close_at_end)


def _setting_cookies(send: Send, upstreams: RequestUpstreams, *, secure: bool) -> Send:
    """``send``, with the cookies of sticky sessions: of hosts that are picked before the response begins."""

    async def send_with_cookies(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.accept"):
            headers = [(b"set-cookie", each.header(secure=secure).encode()) for each in upstreams.cookies()]
            if headers:
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with_cookies


def upstreams_of(scope: Mapping[str, Any]) -> RequestUpstreams:
    """What the middleware gave a connection.

    :raises UpstreamError: naming the middleware, where it is missing.
    """
    upstreams = (scope.get("state") or {}).get("upstreams")
    if upstreams is None:
        raise UpstreamError(
            "this request has no upstreams: add the middleware, as in "
            "app.add_middleware(resty_upstream.contrib.starlette.UpstreamMiddleware, upstreams=…)"
        )
    return upstreams  # type: ignore[no-any-return]  # the middleware put it there
