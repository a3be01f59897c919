"""Prometheus: a collector of what all processes together did with their upstreams.

::

    from prometheus_client import REGISTRY

    REGISTRY.register(UpstreamCollector(upstream))

It reads the store when it is asked, so any process answers for all of them, and what is counted goes on when they
are restarted: no files of ``PROMETHEUS_MULTIPROC_DIR`` are needed. Where metrics of others need them, it goes
beside the ``MultiProcessCollector``, into the registry of each scrape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from resty_upstream.counts import BOUNDS_S
from resty_upstream.metrics import METRICS, OF_HOST, Given, Reading, by_name, durations, read
from resty_upstream.metrics import Metric as Described

__all__ = ["UpstreamCollector"]

_FAMILIES: Final[dict[str, type[CounterMetricFamily] | type[GaugeMetricFamily]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}
_BOUNDS: Final = (*(str(bound) for bound in BOUNDS_S), "+Inf")


class UpstreamCollector(Collector):
    """The metrics of upstreams, as their stores have them at each scrape.

    A scrape does not fail because a store does: it shows what this process knows, and that
    ``resty_upstream_store_up`` is 0.

    :param upstreams: an upstream; several by name; or several that are named by their ids. The name is the label
        ``upstream``.
    :raises ValueError: where two would have the same name.
    """

    def __init__(self, upstreams: Given) -> None:
        self._upstreams = by_name(upstreams)

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering it does not open the stores."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What a scrape shows."""
        readings = [read(name, upstream) for name, upstream in self._upstreams.items()]
        for metric in METRICS:
            yield _family(metric, readings)
        yield _histogram(readings)


def _family(metric: Described, readings: Iterable[Reading]) -> Metric:
    family = _FAMILIES[metric.kind](_prefixed(metric.name), metric.help, labels=metric.labels, unit=metric.unit)
    for reading in readings:
        for labels, value in metric.values(reading):
            family.add_metric(labels, value)
    return family


def _histogram(readings: Iterable[Reading]) -> Metric:
    text = "How long attempts took that succeeded."
    family = HistogramMetricFamily(_prefixed("attempt"), text, labels=OF_HOST, unit="seconds")
    for reading in readings:
        for labels, counts in durations(reading):
            buckets = list(zip(_BOUNDS, accumulate(counts.buckets), strict=True))
            family.add_metric(labels, buckets, counts.seconds)
    return family


def _prefixed(name: str) -> str:
    return f"resty_upstream_{name}"
