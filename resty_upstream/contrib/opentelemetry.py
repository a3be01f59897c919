"""OpenTelemetry: which host was chosen, on the span that is current, and metrics.

::

    instrument(upstream)

It needs the API alone: without an SDK nothing is recorded, and an SDK that comes later is found. No span is made:
that of the request, or of its client, says where it went, and has an event for each attempt that failed. On the
spans of servers and consumers, whose peer is the one who asked, the host is named, and no address given.

What is counted is counted for each process, as OpenTelemetry has it: add it up over all of them. The gauges are of
the store, and the same from each process that shares it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from resty_upstream import Attempt, Upstream, __version__
from resty_upstream.counts import BOUNDS_S
from resty_upstream.metrics import METRICS, Given, Metric, Reading, by_name, read

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = ["instrument"]

_PREFIX: Final = "resty_upstream."
_READ_AGAIN_S: Final = 0.5
_UNITS: Final = {"": "1", "seconds": "s"}
_OF_OTHERS: Final = (trace.SpanKind.SERVER, trace.SpanKind.CONSUMER)

Attributes = dict[str, "AttributeValue"]


def instrument(upstreams: Given, *, meter_provider: MeterProvider | None = None) -> None:
    """Tell OpenTelemetry of the attempts of these upstreams in this process, and of their health.

    Once for each upstream, where it is made; the providers may be set up later.

    :param upstreams: an upstream; several by name; or several that are named by their ids.
    :param meter_provider: the global one, if not given.
    :raises ValueError: where two would have the same name.
    """
    named = by_name(upstreams)
    meter = get_meter("resty_upstream", __version__, meter_provider)
    attempts = _Attempts(meter)
    for name, upstream in named.items():
        attempts.listen(name, upstream)
    readings = _Readings(named)
    for metric in METRICS:
        if metric.kind == "gauge":
            meter.create_observable_gauge(
                _PREFIX + metric.name, [_observations(metric, readings)], _UNITS[metric.unit], metric.help
            )


# ── attempts ──────────────────────────────────────────────────────────────────────────────────


class _Attempts:
    """What hears of attempts."""

    def __init__(self, meter: Meter) -> None:
        self._durations = meter.create_histogram(
            f"{_PREFIX}attempt.duration",
            "s",
            "How long attempts took.",
            explicit_bucket_boundaries_advisory=BOUNDS_S,
        )
        self._exhausted = meter.create_counter(
            f"{_PREFIX}exhausted", "{call}", "Calls for which no host was left."
        )

    def listen(self, name: str, upstream: Upstream) -> None:
        upstream.bind("attempt", lambda attempt: self._heard(name, attempt))
        upstream.bind("exhausted", lambda _error: self._exhausted.add(1, {f"{_PREFIX}upstream": name}))

    def _heard(self, name: str, attempt: Attempt) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            _mark(span, name, attempt)
        self._durations.record(attempt.duration_s, _names(name, attempt) | _outcome(attempt))


def _mark(span: trace.Span, name: str, attempt: Attempt) -> None:
    """Have a span tell of an attempt."""
    host = attempt.host
    chosen = _names(name, attempt)
    if attempt.outcome != "ok":
        error = {"error.message": str(attempt.error)[:200]}
        span.add_event(f"{_PREFIX}attempt", chosen | _outcome(attempt) | _peer(host.host, host.port) | error)
        return
    chosen[f"{_PREFIX}attempts"] = len(attempt.info.attempts)
    if getattr(span, "kind", None) not in _OF_OTHERS:
        chosen |= _peer(host.host, host.port)
        if "server.address" not in (getattr(span, "attributes", None) or ()):  # the name that the client knows
            chosen |= _server(host.host, host.port)
    span.set_attributes(chosen)


def _names(name: str, attempt: Attempt) -> Attributes:
    return {
        f"{_PREFIX}upstream": name,
        f"{_PREFIX}pool": attempt.pool.id,
        f"{_PREFIX}host": attempt.host.id,
        f"{_PREFIX}retry": len(attempt.info.attempts) > 1,
        f"{_PREFIX}last_resort": attempt.last_resort,
    }


def _outcome(attempt: Attempt) -> Attributes:
    outcome: Attributes = {f"{_PREFIX}outcome": attempt.outcome}
    if attempt.error is not None:
        kind = type(attempt.error)
        outcome["error.type"] = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
    return outcome


@lru_cache(4096)
def _peer(host: str, port: int) -> Attributes:
    """Where a host is; the address of one that has a name is known to its connection alone."""
    if host.startswith("unix:"):
        return {"network.transport": "unix", "network.peer.address": host.removeprefix("unix:")}
    try:
        address = str(ip_address(host))
    except ValueError:
        return {"network.transport": "tcp"}
    return {"network.transport": "tcp", "network.peer.address": address, "network.peer.port": port}


def _server(host: str, port: int) -> Attributes:
    if host.startswith("unix:"):
        return {"server.address": host.removeprefix("unix:")}
    return {"server.address": host, "server.port": port}


# ── health ────────────────────────────────────────────────────────────────────────────────────


class _Readings:
    """What the stores say; read once for all the gauges of a collection."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._again_at = float("-inf")
        self._readings: list[Reading] = []

    def __call__(self) -> list[Reading]:
        if time.monotonic() >= self._again_at:
            self._readings = [read(name, upstream) for name, upstream in self._upstreams.items()]
            self._again_at = time.monotonic() + _READ_AGAIN_S
        return self._readings


def _observations(metric: Metric, readings: _Readings) -> Callable[[CallbackOptions], Iterator[Observation]]:
    names = [f"{_PREFIX}{label}" for label in metric.labels]

    def observe(_options: CallbackOptions) -> Iterator[Observation]:
        for reading in readings():
            for labels, value in metric.values(reading):
                yield Observation(value, dict(zip(names, labels, strict=True)))

    return observe
