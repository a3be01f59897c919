"""redis-py: failover under a client that is used as ever.

::

    client = redis.Redis(connection_pool=UpstreamConnectionPool(upstream, db=0))
    client = redis.asyncio.Redis(connection_pool=AsyncUpstreamConnectionPool(upstream, db=0))

The host is chosen whenever a connection is made: TLS, ``AUTH`` and ``SELECT`` are part of the attempt.
"""

from __future__ import annotations

from resty_upstream.clients.redis import (
    AsyncUpstreamConnection,
    AsyncUpstreamConnectionPool,
    AsyncUpstreamSSLConnection,
    UpstreamConnection,
    UpstreamConnectionPool,
    UpstreamSSLConnection,
)

__all__ = [
    "AsyncUpstreamConnection",
    "AsyncUpstreamConnectionPool",
    "AsyncUpstreamSSLConnection",
    "UpstreamConnection",
    "UpstreamConnectionPool",
    "UpstreamSSLConnection",
]
