"""What the ASGI sites have in common: a middleware inside of ours."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.contrib.bed.visits import Visit


class Inner:
    """May use the upstream, and may answer by itself: ``?inner=calls``, ``?inner=answers``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope.get("query_string", b""))
        if "inner" in query:
            await Visit(lambda: scope["state"]["upstream"], query).acall()
        if query.get("inner") == "answers":
            await PlainTextResponse("early")(scope, receive, send)
        else:
            await self.app(scope, receive, send)
