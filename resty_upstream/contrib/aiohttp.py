"""aiohttp: failover under a session that is used as ever.

::

    async with aiohttp.ClientSession(
        "http://users.internal", connector=UpstreamConnector(), middlewares=[UpstreamMiddleware(upstream)]
    ) as session:
        async with session.get("/users/1") as response:
            upstream_of(response).host.id  # which host answered
"""

from __future__ import annotations

from resty_upstream.http.aiohttp import UpstreamConnector, UpstreamMiddleware, upstream_of

__all__ = ["UpstreamConnector", "UpstreamMiddleware", "upstream_of"]
