"""urllib3: failover under a client that is used as ever.

::

    http = UpstreamPoolManager(upstream)
    response = http.request("GET", "http://users.internal/users/1")
    response.upstream.host.id  # which host answered
"""

from __future__ import annotations

from resty_upstream.http.urllib3 import UpstreamPoolManager

__all__ = ["UpstreamPoolManager"]
