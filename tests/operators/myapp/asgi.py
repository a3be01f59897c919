"""The application for uvicorn: who answered a call, and for whom it was made."""

import json
import os
from typing import Any

from myapp.upstreams import upstreams

from resty_upstream.asgi import UpstreamMiddleware


async def dial(host: str, port: int, timeout_s: float) -> None:
    pass


async def call(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": message["type"] + ".complete"})
        return
    upstream = scope["state"]["upstream"]
    _, info = await upstream.aconnect(dial)
    answer = {
        "worker": os.getpid(),
        "scheme": scope["scheme"],
        "host": info.host.id,
        "client": upstream.key(info.pool),
    }
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


application = UpstreamMiddleware(call, upstreams)
