"""Until there are counters: their types, and none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from resty_upstream.upstream import Upstream

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HostCounts(NamedTuple):
    """Of a host."""

    successes: int
    failures: Mapping[str, int]
    ignored: int
    retries: int
    last_resorts: int
    in_flight: int
    seconds: float
    buckets: tuple[int, ...]


class UpstreamCounts(NamedTuple):
    """Of an upstream."""

    hosts: Mapping[tuple[str, str], HostCounts]
    exhausted: int


def counts_of(upstream: Upstream) -> UpstreamCounts:
    """What is counted."""
    counts: Any = getattr(upstream, "counts", None)
    return counts() if counts else UpstreamCounts({}, 0)
