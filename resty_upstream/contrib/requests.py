"""requests: failover under a session that is used as ever.

::

    session = requests.Session()
    session.mount("http://users.internal/", UpstreamAdapter(upstream))  # with the slash at the end
    response = session.get("http://users.internal/users/1")
    response.upstream.host.id  # which host answered
"""

from __future__ import annotations

from resty_upstream.http.requests import UpstreamAdapter

__all__ = ["UpstreamAdapter"]
