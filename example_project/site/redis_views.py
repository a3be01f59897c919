"""A counter in Redis, in whichever of two servers works: as a page, and as JSON.

The client is redis-py's own. Only its connections choose their host, each when it is made, and stay there while it
works. Each server counts for itself, as two caches do.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import redis
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache

from resty_upstream import NoHostAvailable, RequestContext
from resty_upstream.contrib.django import UpstreamHttpRequest, get_upstream
from resty_upstream.contrib.redis import UpstreamConnectionPool

from .views import host_rows

READ_TIMEOUT_S = 0.5


@functools.cache
def client() -> redis.Redis:
    """One for all threads of a worker process."""
    pool = UpstreamConnectionPool(get_upstream("cache"), socket_timeout=READ_TIMEOUT_S)
    return redis.Redis(connection_pool=pool)


class Visit(NamedTuple):
    """A visit, and the server that counted it."""

    number: int
    host: str
    pid: int


def count_visit(upstream: RequestContext) -> Visit:
    """Count a visit.

    :raises redis.RedisError: when no server is left, or when one was lost after it was sent the command. It may
        have counted already, so nothing is sent again.
    """
    with client().pipeline() as transaction:  # so that both answers are the same server's
        transaction.incr("visits")
        transaction.info("server")
        number, server = transaction.execute()
    port = server["tcp_port"]
    hosts = {row.host["port"]: row.host_id for row in host_rows(upstream.get_pools())}
    return Visit(number, hosts.get(port, f"at port {port}"), server["process_id"])


def count(request: UpstreamHttpRequest) -> JsonResponse:
    """The number of this visit, and who counted it."""
    try:
        answer, status = count_visit(request.upstreams["cache"])._asdict(), 200
    except redis.RedisError as exc:
        answer, status = {"error": str(exc)}, status_of(exc)
    return JsonResponse({**answer, "worker": os.getpid()}, status=status)


@never_cache
def page(request: UpstreamHttpRequest) -> HttpResponse:
    """The same for a browser, with what to kill, and what every worker knows about the servers."""
    upstream = request.upstreams["cache"]
    context: dict[str, Any] = {"worker": os.getpid()}
    status = 200
    try:
        context["visit"] = count_visit(upstream)
    except redis.RedisError as exc:
        status = status_of(exc)
        context |= {"error": str(exc), "status": status}
    context["rows"] = list(host_rows(upstream.get_pools()))
    context["explanation"] = str(upstream.explain())
    return render(request, "site/cache.html", context, status=status)


def status_of(error: redis.RedisError) -> int:
    """What a gateway would answer, 502 or 504."""
    if isinstance(error.__cause__, NoHostAvailable):
        return error.__cause__.status_hint
    return 504 if isinstance(error, redis.TimeoutError) else 502
