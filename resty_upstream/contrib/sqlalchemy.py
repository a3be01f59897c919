"""SQLAlchemy on psycopg 3: engines whose connections go to the next server where one fails.

::

    engine = create_engine("postgresql+psycopg://", creator=creator(upstream, "dbname=shop user=app"))
    engine = create_async_engine("postgresql+psycopg://", async_creator=async_creator(upstream, dbname="shop"))

The engine's own pool drops what broke, and connects anew.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from resty_upstream import RequestContext, Upstream
from resty_upstream.clients.psycopg import AsyncUpstreamConnection, UpstreamConnection

__all__ = ["async_creator", "creator"]


def creator(
    upstream: Upstream | RequestContext, conninfo: str = "", **kwargs: Any
) -> Callable[[], UpstreamConnection[Any]]:
    """What ``create_engine`` takes as ``creator``.

    :param conninfo: and ``kwargs``: as for
        :meth:`UpstreamConnection.connect <resty_upstream.contrib.psycopg.UpstreamConnection.connect>`.
    """
    return lambda: UpstreamConnection.connect(conninfo, upstream=upstream, **kwargs)


def async_creator(
    upstream: Upstream | RequestContext, conninfo: str = "", **kwargs: Any
) -> Callable[[], Awaitable[AsyncUpstreamConnection[Any]]]:
    """What ``create_async_engine`` takes as ``async_creator``; as :func:`creator`."""
    return lambda: AsyncUpstreamConnection.connect(conninfo, upstream=upstream, **kwargs)
