"""pymemcache: failover under a client that is used as ever.

::

    client = UpstreamClient(upstream)
    client = UpstreamPooledClient(upstream, max_pool_size=10)  # for threads
"""

from __future__ import annotations

from resty_upstream.clients.pymemcache import UpstreamClient, UpstreamPooledClient

__all__ = ["UpstreamClient", "UpstreamPooledClient"]
