"""What a type checker must know of clients."""

from __future__ import annotations

import redis
import redis.asyncio

from resty_upstream import Upstream
from resty_upstream.contrib.pymemcache import UpstreamClient, UpstreamPooledClient
from resty_upstream.contrib.redis import AsyncUpstreamConnectionPool, UpstreamConnection, UpstreamConnectionPool


def use_redis(upstream: Upstream) -> redis.Redis:
    with upstream.context() as context:
        redis.Redis.from_pool(UpstreamConnectionPool(context, ssl=True, server_hostname="cache.internal"))
    UpstreamConnection(upstream=upstream, db=1)
    UpstreamConnectionPool("cache")  # type: ignore[arg-type]
    UpstreamConnectionPool(upstream, ssl="yes")  # type: ignore[arg-type]
    return redis.Redis(connection_pool=UpstreamConnectionPool(upstream, db=1))


async def use_redis_asyncio(upstream: Upstream) -> redis.asyncio.Redis:
    AsyncUpstreamConnectionPool("cache")  # type: ignore[arg-type]
    return redis.asyncio.Redis(connection_pool=AsyncUpstreamConnectionPool(upstream, max_connections=5))


def use_pymemcache(upstream: Upstream) -> UpstreamClient | UpstreamPooledClient:
    UpstreamClient("cache")  # type: ignore[arg-type]
    return UpstreamPooledClient(upstream, max_pool_size=5) or UpstreamClient(upstream, timeout=1)
