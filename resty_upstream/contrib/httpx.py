"""httpx2 and httpx: failover under a client that is used as ever.

::

    client = httpx2.Client(transport=UpstreamTransport(upstream), base_url="http://users.internal")
    response = client.get("/users/1")
    response.extensions["upstream"].host.id  # which host answered

In a web request ``request.upstream.http`` is such a client already, and ``request.upstream.ahttp`` an asynchronous
one.
"""

from __future__ import annotations

from resty_upstream.http.httpx import AsyncUpstreamTransport, UpstreamTransport

__all__ = ["AsyncUpstreamTransport", "UpstreamTransport"]
