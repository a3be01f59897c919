"""What Prometheus reads of upstreams."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from resty_upstream.contrib.prometheus import UpstreamCollector
from resty_upstream.metrics import Given

Samples = dict[str, dict[tuple[str, ...], float]]


def exposition(upstreams: Given) -> str:
    registry = CollectorRegistry()
    registry.register(UpstreamCollector(upstreams))
    return generate_latest(registry).decode()


def scrape(upstreams: Given) -> Samples:
    """The samples by name and by the values of their labels, in the order upstream, pool, host, others."""
    return parse(exposition(upstreams))


def parse(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            first = [labels.pop(name) for name in ("upstream", "pool", "host") if name in labels]
            name = sample.name.removeprefix("resty_upstream_")
            found.setdefault(name, {})[*first, *labels.values()] = sample.value
    return found
