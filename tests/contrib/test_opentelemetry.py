"""OpenTelemetry: what spans and metrics say of attempts, with the real SDK."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from resty_upstream import Upstream
from resty_upstream.contrib.opentelemetry import instrument
from tests.helpers import (
    Peer,
    answer_http,
    hosts,
    open_upstream,
    read_head,
    refused,
    take_down,
    visit,
    visit_in_vain,
)


class Telemetry:
    """An SDK that keeps what it is told."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = tracers.get_tracer("test")
        self.meters = MeterProvider([self._reader])

    def span(self) -> ReadableSpan:
        """The one span that has ended."""
        (span,) = self._spans.get_finished_spans()
        return span

    def metrics(self) -> dict[str, list[Any]]:
        """The points of each metric, by its name without the prefix."""
        data = self._reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return {metric.name.removeprefix("resty_upstream."): list(metric.data.data_points) for metric in metrics}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def open_instrumented(telemetry: Telemetry, pools: dict[str, Any] | None = None, **options: Any) -> Upstream:
    upstream = open_upstream(pools or {"p": {"hosts": {"a": {"host": "192.0.2.1", "port": 8001}}}}, **options)
    instrument(upstream, meter_provider=telemetry.meters)
    return upstream


def attributes(of: Any) -> dict[str, Any]:
    """Those that are ours without their prefix, and those of the conventions."""
    return {key.removeprefix("resty_upstream."): value for key, value in (of.attributes or {}).items()}


CHOSEN = {"upstream": "default", "pool": "p", "host": "a", "retry": False, "last_resort": False}
PEER = {"network.transport": "tcp", "network.peer.address": "192.0.2.1", "network.peer.port": 8001}
SERVER = {"server.address": "192.0.2.1", "server.port": 8001}


# ── spans ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [SpanKind.CLIENT, SpanKind.INTERNAL])
def test_the_current_span_says_which_host_was_chosen(telemetry: Telemetry, kind: SpanKind) -> None:
    upstream = open_instrumented(telemetry)
    with telemetry.tracer.start_as_current_span("call", kind=kind):
        visit(upstream)
    assert attributes(telemetry.span()) == {**CHOSEN, "attempts": 1, **PEER, **SERVER}
    assert not telemetry.span().events


def test_the_name_that_a_client_put_on_its_span_stays(telemetry: Telemetry) -> None:
    upstream = open_instrumented(telemetry)
    logical = {"server.address": "users.internal", "server.port": 443}
    with telemetry.tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes=logical):
        visit(upstream)
    assert attributes(telemetry.span()) == {**CHOSEN, "attempts": 1, **PEER, **logical}


@pytest.mark.parametrize("kind", [SpanKind.SERVER, SpanKind.CONSUMER])
def test_the_address_of_who_asks_stays_on_the_span_of_a_server(telemetry: Telemetry, kind: SpanKind) -> None:
    upstream = open_instrumented(telemetry)
    visitor = {"network.peer.address": "198.51.100.7"}
    with telemetry.tracer.start_as_current_span("GET /", kind=kind, attributes=visitor):
        visit(upstream)
    assert attributes(telemetry.span()) == {**CHOSEN, "attempts": 1, **visitor}


def test_a_host_that_has_a_name_is_no_address_and_a_socket_is_a_path(telemetry: Telemetry) -> None:
    pools = {"p": {"hosts": {"a": {"host": "a.test", "port": 81}}}, "q": {"hosts": {"u": {"host": "unix:/run/u"}}}}
    upstream = open_instrumented(telemetry, pools)
    with telemetry.tracer.start_as_current_span("call"):
        visit(upstream, {"a": refused})
    (event,) = telemetry.span().events
    assert attributes(event)["network.transport"] == "tcp"
    assert "network.peer.address" not in attributes(event)
    seen = attributes(telemetry.span())
    assert (seen["network.transport"], seen["network.peer.address"]) == ("unix", "/run/u")
    assert seen["server.address"] == "/run/u"
    assert not {"network.peer.port", "server.port"} & seen.keys()


def test_each_attempt_that_fails_is_an_event_of_the_span(telemetry: Telemetry) -> None:
    pools = {"p": {"hosts": {"a": {"host": "192.0.2.1", "port": 8001}}}, "q": {"hosts": hosts("b")}}
    upstream = open_instrumented(telemetry, pools)
    with telemetry.tracer.start_as_current_span("GET /", kind=SpanKind.SERVER):
        visit(upstream, {"a": refused})
    (event,) = telemetry.span().events
    assert event.name == "resty_upstream.attempt"
    assert attributes(event) == {
        **CHOSEN,
        **PEER,
        "outcome": "failed",
        "error.type": "ConnectionRefusedError",
        "error.message": "[Errno 111] Connection refused",
    }
    seen = attributes(telemetry.span())
    assert (seen["host"], seen["pool"], seen["retry"], seen["attempts"]) == ("b", "q", True, 2)


def test_a_request_that_no_host_is_left_for_has_its_attempts_on_the_span(telemetry: Telemetry) -> None:
    upstream = open_instrumented(telemetry, {"p": {"hosts": hosts("a", "b")}})
    with telemetry.tracer.start_as_current_span("call"):
        visit_in_vain(upstream, {"a": refused, "b": refused})
    assert {attributes(event)["host"] for event in telemetry.span().events} == {"a", "b"}
    assert not telemetry.span().attributes


async def _dial(_host: str, _port: int, _timeout_s: float) -> bool:
    return True


def test_coroutines_have_spans_of_their_own(telemetry: Telemetry) -> None:
    upstream = open_instrumented(telemetry)

    async def call() -> None:
        with telemetry.tracer.start_as_current_span("call"):
            await upstream.aconnect(_dial)

    asyncio.run(call())
    assert attributes(telemetry.span())["host"] == "a"


def unavailable(connection: socket.socket) -> None:
    if read_head(connection):
        connection.sendall(b"HTTP/1.1 503 Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


def test_a_request_of_http_has_its_attempts_on_the_span_of_its_client(
    telemetry: Telemetry, start_peer: Callable[..., Peer]
) -> None:
    bad, good = start_peer(unavailable), start_peer(answer_http(b"fine"))
    pools = {"p": {"hosts": {"a": bad.options}, "status_codes": ["5xx"]}, "q": {"hosts": {"b": good.options}}}
    upstream = open_instrumented(telemetry, pools)
    logical = {"server.address": "users.internal"}
    span = telemetry.tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes=logical)
    with span, upstream.context() as context:
        assert context.http.get("/").text == "fine"
    (event,) = telemetry.span().events
    assert attributes(event)["error.message"] == "status 503"
    assert attributes(event)["network.peer.port"] == bad.port
    seen = attributes(telemetry.span())
    assert (seen["network.peer.address"], seen["network.peer.port"]) == ("127.0.0.1", good.port)
    assert (seen["host"], seen["server.address"]) == ("b", "users.internal")


def test_without_a_span_nothing_is_marked(telemetry: Telemetry) -> None:
    visit(open_instrumented(telemetry))
    with telemetry.tracer.start_as_current_span("later"):
        pass
    assert not telemetry.span().attributes


# ── metrics ───────────────────────────────────────────────────────────────────────────────────


def test_attempts_of_this_process_are_a_histogram(telemetry: Telemetry) -> None:
    upstream = open_instrumented(telemetry, {"p": {"hosts": hosts("a")}, "q": {"hosts": hosts("b")}})
    visit(upstream, {"a": refused})
    visit(upstream)
    points = telemetry.metrics()["attempt.duration"]
    assert all(point.explicit_bounds[0] == 0.001 for point in points)
    counted = {
        (*(attributes(point)[key] for key in ("host", "outcome", "retry")),): point.count for point in points
    }
    assert counted == {("a", "failed", False): 1, ("b", "ok", True): 1, ("a", "ok", False): 1}
    assert {attributes(point).get("error.type") for point in points} == {None, "ConnectionRefusedError"}


def test_calls_that_no_host_was_left_for_are_counted(telemetry: Telemetry) -> None:
    upstream = open_instrumented(telemetry, id="backends")
    for _ in range(2):
        visit_in_vain(upstream, {"a": refused})
    (point,) = telemetry.metrics()["exhausted"]
    assert (attributes(point), point.value) == ({"upstream": "backends"}, 2)


def test_health_is_shown_as_the_store_has_it(telemetry: Telemetry) -> None:
    upstream = open_instrumented(telemetry, {"p": {"hosts": hosts("a", "b", weight=3)}})
    take_down(upstream, "a")
    seen = telemetry.metrics()
    assert {attributes(point)["host"]: point.value for point in seen["host_up"]} == {"a": 0, "b": 1}
    assert [point.value for point in seen["host_weight"]] == [3, 3]
    (hosts_up,) = seen["pool_hosts_up"]
    assert (attributes(hosts_up), hosts_up.value) == ({"upstream": "default", "pool": "p"}, 1)
    assert not [name for name in seen if name.endswith("_total")]


def test_several_upstreams_are_told_apart_by_their_names(telemetry: Telemetry) -> None:
    upstreams = {"cache": open_upstream({"p": {"hosts": hosts("a")}}), "db": open_upstream({})}
    instrument(upstreams, meter_provider=telemetry.meters)
    visit(upstreams["cache"])
    (point,) = telemetry.metrics()["attempt.duration"]
    assert attributes(point)["upstream"] == "cache"
    assert {attributes(point)["upstream"] for point in telemetry.metrics()["store_up"]} == {"cache", "db"}


# ── with another SDK, or none ─────────────────────────────────────────────────────────────────

_LATE: str = """
import json
from resty_upstream import Upstream
from resty_upstream.contrib.opentelemetry import instrument

upstream = Upstream("memory://", pools={"p": {"hosts": {"a": {"host": "a.test"}}}})
instrument(upstream)
upstream.connect(lambda host, port, timeout_s: None)

import sys
assert "opentelemetry.sdk" not in sys.modules
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
upstream.connect(lambda host, port, timeout_s: None)
print(reader.get_metrics_data().to_json())
"""


def test_without_an_sdk_nothing_happens_and_one_that_comes_later_is_found() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", _LATE], env=env, check=True, stdout=subprocess.PIPE)
    (scope,) = json.loads(done.stdout)["resource_metrics"][0]["scope_metrics"]
    assert scope["scope"]["name"] == "resty_upstream"
    points = {metric["name"]: metric["data"]["data_points"] for metric in scope["metrics"]}
    assert [point["count"] for point in points["resty_upstream.attempt.duration"]] == [1]
    assert [point["value"] for point in points["resty_upstream.host_up"]] == [1]
