"""psycopg 3: connections that go to the next server where one fails, alone or in a pool.

::

    connection = UpstreamConnection.connect("dbname=shop user=app", upstream=upstream)
    connection.upstream_info.host.id  # which host it is

    pool = ConnectionPool(
        "dbname=shop user=app", connection_class=UpstreamConnection, kwargs={"upstream": upstream}
    )

:class:`AsyncUpstreamConnection` is the same for asyncio and ``AsyncConnectionPool``.

A host that refuses, hangs, fails TLS, starts up, shuts down or has too many clients counts as failed; a wrong
password or database is raised as it is. Nothing is sent twice: a connection that breaks raises, and the next
``connect``, or the pool, goes elsewhere.
"""

from __future__ import annotations

from resty_upstream.clients.psycopg import AsyncUpstreamConnection, UpstreamConnection

__all__ = ["AsyncUpstreamConnection", "UpstreamConnection"]
