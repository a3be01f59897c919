"""What machines read of the log: an event, and what it is about, in each record."""

from __future__ import annotations

import ast
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

import resty_upstream
from resty_upstream import Upstream, UpstreamAPI
from tests.helpers import hosts, open_upstream, refused, take_down, visit, visit_in_vain

SOURCES = Path(resty_upstream.__file__).parent


@pytest.fixture
def json_log() -> Iterator[io.StringIO]:
    """Where the log goes as JSON lines, as structlog makes them of anybody's records."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processor=structlog.processors.JSONRenderer(),
        )
    )
    logger = logging.getLogger("resty_upstream")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_happens_to_a_host_is_an_event_with_its_fields_once(json_log: io.StringIO) -> None:
    check = {"headers": {"Authorization": "Bearer s3cr3t"}}
    upstream = open_upstream({"p": {"hosts": hosts("a", "b"), "healthcheck": check}}, id="backends")
    take_down(upstream, "a")
    UpstreamAPI(upstream).up_host("p", "a")
    transitions = [line for line in read(json_log) if line["level"] == "warning"]
    about = {"upstream_id": "backends", "upstream_pool": "p", "upstream_host": "a", "level": "warning"}
    assert [{key: line[key] for key in line if key != "event"} for line in transitions] == [
        {**about, "upstream_event": "host_down", "upstream_reason": "ECONNREFUSED"},
        {**about, "upstream_event": "host_up", "upstream_reason": "by hand"},
    ]
    assert "s3cr3t" not in json_log.getvalue()


def test_each_attempt_that_fails_is_an_event_for_those_who_debug(json_log: io.StringIO) -> None:
    visit_in_vain(open_upstream({"p": {"hosts": hosts("a")}}), {"a": refused})
    (line,) = [line for line in read(json_log) if line["level"] == "debug"]
    assert {key: line[key] for key in line if key.startswith("upstream_")} == {
        "upstream_event": "attempt",
        "upstream_id": "default",
        "upstream_pool": "p",
        "upstream_host": "a",
        "upstream_outcome": "failed",
        "upstream_reason": "ECONNREFUSED",
    }


def test_trouble_with_the_store_and_its_end_are_events(json_log: io.StringIO, tmp_path: Path) -> None:
    place = tmp_path / "store"
    place.write_text("in the way of a directory")
    upstream = Upstream(f"sqlite://{place}/upstreams.db", pools={"p": {"hosts": hosts("a")}})
    for _ in range(3):
        visit(upstream)
    place.unlink()
    UpstreamAPI(upstream).set_weight("p", "a", 1)
    events = [(line["level"], line["upstream_event"]) for line in read(json_log)]
    assert [event for event in events if event[1].startswith("store_")] == [
        ("error", "store_degraded"),
        ("warning", "store_recovered"),
    ]
    assert {line["upstream_id"] for line in read(json_log) if line["upstream_event"] == "store_degraded"} == {
        "default"
    }
    upstream.close()


def calls_of_the_log() -> Iterator[tuple[str, ast.Call]]:
    """Every record that is made from INFO on, by its place."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = ast.unparse(node.func)
                if called.startswith(("_log.", "_failover_log.")) and node.func.attr not in (
                    "debug",
                    "isEnabledFor",
                ):
                    yield f"{path.relative_to(SOURCES)}:{node.lineno}", node


def test_every_record_that_operators_see_names_its_event() -> None:
    calls = list(calls_of_the_log())
    assert len(calls) > 10
    assert not [place for place, call in calls if "extra" not in {keyword.arg for keyword in call.keywords}]
