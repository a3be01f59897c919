"""The collector for Prometheus: what a scrape of one process says of them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.contrib.prometheus import UpstreamCollector
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.contrib.exposition import parse, scrape
from tests.e2e.processes import wait_until
from tests.helpers import hosts, open_upstream, open_workers, refused, take_down, visit, visit_in_vain


def open_pool(clock: FakeClock | None = None, **options: Any) -> Upstream:
    return open_upstream({"p": {"hosts": hosts("a", "b", weight=5), **options}}, clock)


A, B = ("default", "p", "a"), ("default", "p", "b")


# ── what is counted ───────────────────────────────────────────────────────────────────────────


def test_attempts_are_counted_by_host_and_outcome() -> None:
    upstream = open_pool(max_fails=0)
    tried = [host for _ in range(4) for host in visit(upstream, {"a": refused})]
    visit(upstream)
    for error in (LookupError, KeyboardInterrupt):
        with pytest.raises(error):
            visit(upstream, {"a": error, "b": error})
    seen = scrape(upstream)
    attempts, failed = seen["attempts_total"], tried.count("a")
    assert attempts[*A, "failed"] == failed > 0
    assert attempts[*A, "ok"] + attempts[*B, "ok"] == 5
    assert attempts[*A, "ignored"] + attempts[*B, "ignored"] == 2
    assert sum(attempts.values()) == 4 + failed + 1 + 2
    assert {key: value for key, value in seen["failures_total"].items() if value} == {(*A, "refused"): failed}
    assert seen["retries_total"] == {A: 0, B: failed}


def test_the_histogram_has_each_attempt_that_succeeded() -> None:
    clock = FakeClock()
    upstream = open_upstream({"p": {"hosts": hosts("a")}}, clock)
    for took_s in (0.0, 0.02, 0.2, 30.0):
        upstream.connect(lambda _host, _port, _timeout_s, took_s=took_s: clock.advance(took_s))
    seen = scrape(upstream)
    below = {float(bound): count for (*_, bound), count in seen["attempt_seconds_bucket"].items()}
    assert (below[0.001], below[0.025], below[0.25], below[10.0], below[float("inf")]) == (1, 2, 3, 3, 4)
    assert seen["attempt_seconds_count"] == {A: 4}
    assert seen["attempt_seconds_sum"][A] == pytest.approx(30.22)


def test_what_is_under_way_is_a_gauge() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    for attempt in upstream.attempts():
        with attempt:
            assert scrape(upstream)["attempts_in_flight"] == {A: 1}
    assert scrape(upstream)["attempts_in_flight"] == {A: 0}


def test_last_resorts_and_calls_without_a_host_are_counted() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a"), "max_fails": 1}})
    take_down(upstream, "a")
    before = scrape(upstream)["exhausted_total"]["default",]
    visit_in_vain(upstream, {"a": refused})
    visit(upstream)
    seen = scrape(upstream)
    assert seen["last_resorts_total"] == {A: 2}
    assert seen["exhausted_total"]["default",] == before + 1


_ANOTHER: str = """
import sys
from resty_upstream import Upstream
upstream = Upstream(sys.argv[1])
for _ in range(7):
    upstream.connect(lambda host, port, timeout_s: None)
"""


def test_any_process_answers_for_all_also_for_those_that_are_gone(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store/upstreams.db"
    upstream = Upstream(url)
    upstream.configure({"p": {"hosts": hosts("a")}})
    visit(upstream)
    for _ in range(2):
        run(_ANOTHER, url)
    assert scrape(upstream)["attempts_total"][*A, "ok"] == 15
    upstream.close()


# ── health ────────────────────────────────────────────────────────────────────────────────────


def states(upstream: Upstream, host: str) -> dict[str, float]:
    seen = scrape(upstream)["host_state"]
    return {state: value for (_, _, of, state), value in seen.items() if of == host}


def test_a_host_is_in_one_of_four_states(clock: FakeClock) -> None:
    first, second = open_workers(2, {"p": {"hosts": hosts("a", "b", "c")}}, clock)
    none = dict.fromkeys(("up", "failed", "probing", "manual"), 0.0)
    take_down(first, "a")
    UpstreamAPI(first).down_host("p", "b")
    assert states(second, "a") == none | {"failed": 1}
    assert states(second, "b") == none | {"manual": 1}
    assert states(second, "c") == none | {"up": 1}
    clock.advance(12)
    attempt = next(first.attempts())
    assert attempt.is_probe
    assert states(second, "a") == none | {"probing": 1}
    assert scrape(second)["host_up"] == {A: 0, B: 0, ("default", "p", "c"): 1}


def test_weights_failures_and_pools_are_shown() -> None:
    pools = {
        "p": {"hosts": hosts("a", "b", weight=5)},
        "dr": {"hosts": hosts("c"), "priority": 10, "up": False},
    }
    upstream = open_upstream(pools)
    while not scrape(upstream)["host_failcount"][A]:
        visit(upstream, {"a": refused})
    UpstreamAPI(upstream).down_host("p", "b")
    seen = scrape(upstream)
    p, dr = ("default", "p"), ("default", "dr")
    assert seen["host_weight"] == {A: 5, B: 5, (*dr, "c"): 0}
    assert seen["host_failcount"] == {A: 1, B: 0, (*dr, "c"): 0}
    assert seen["host_last_failure_timestamp_seconds"].keys() == {A}
    assert seen["host_last_failure_timestamp_seconds"][A] > 1e9
    assert seen["pool_hosts"] == {p: 2, dr: 1}
    assert seen["pool_hosts_up"] == {p: 1, dr: 1}
    assert seen["pool_up"] == {p: 1, dr: 0}
    assert seen["pool_priority"] == {p: 0, dr: 10}
    assert seen["store_up"] == {("default",): 1}


def test_whether_somebody_checks_is_shown_where_there_is_something_to_check() -> None:
    assert "checked" not in scrape(open_pool())
    upstream = open_pool(healthcheck={"interval": 3600})
    assert scrape(upstream)["checked"] == {("default",): 0}
    assert upstream.store.lease("default", "checker", "somebody", 60)
    assert scrape(upstream)["checked"] == {("default",): 1}


def test_the_time_of_the_last_check_is_that_of_its_host(start_peer: Callable[..., Any]) -> None:
    peer = start_peer()
    pools = {"p": {"hosts": {"a": {**peer.options, "healthcheck": {"type": "tcp"}}, "b": peer.options}}}
    upstream = Upstream(MemoryStore(), pools=pools)
    upstream.start_checker()
    checks = wait_until(lambda: scrape(upstream).get("host_last_check_timestamp_seconds"), "a check was made")
    upstream.stop_checker()
    assert checks is not None
    assert checks.keys() == {A}
    assert checks[A] > 1e9


# ── whatever happens ──────────────────────────────────────────────────────────────────────────


def test_a_scrape_while_the_store_fails_shows_what_this_process_knows(tmp_path: Path) -> None:
    place = tmp_path / "store"
    place.write_text("in the way of a directory")
    upstream = Upstream(f"sqlite://{place}/upstreams.db", pools={"p": {"hosts": hosts("a", "b", weight=5)}})
    seen = scrape(upstream)
    assert seen["store_up"] == {("default",): 0}
    assert seen["host_weight"] == {A: 5, B: 5}
    place.unlink()
    UpstreamAPI(upstream).set_weight("p", "a", 1)
    assert scrape(upstream)["store_up"] == {("default",): 1}
    upstream.close()


def test_nothing_is_opened_before_the_first_scrape(tmp_path: Path) -> None:
    upstream = Upstream(f"sqlite://{tmp_path}/store/upstreams.db", pools={"p": {"hosts": hosts("a")}})
    registry = CollectorRegistry()
    registry.register(UpstreamCollector(upstream))
    assert not (tmp_path / "store").exists()
    generate_latest(registry)
    assert (tmp_path / "store").exists()
    upstream.close()


def test_an_upstream_without_pools_is_scraped() -> None:
    assert scrape(Upstream("memory://"))["exhausted_total"] == {("default",): 0}


def test_several_upstreams_are_told_apart_by_their_names() -> None:
    first, second = open_pool(), open_pool()
    seen = scrape({"cache": first, "db": second})
    assert {name for name, *_ in seen["host_up"]} == {"cache", "db"}
    assert {name for name, *_ in scrape([first, open_upstream({}, id="other")])["store_up"]} == {
        "default",
        "other",
    }
    with pytest.raises(ValueError, match="two upstreams have the same id"):
        UpstreamCollector([first, second])


def test_names_that_are_meant_to_break_the_format_do_not() -> None:
    hostile = 'a"} 1\\ <img src=x>'
    seen = scrape(open_upstream({hostile: {"hosts": {hostile: {"host": "a.test"}}}}))
    assert seen["host_up"] == {("default", hostile, hostile): 1}


def test_each_metric_is_described_and_named_once() -> None:
    families = list(UpstreamCollector(open_pool()).collect())
    names = [family.name for family in families]
    assert len(set(names)) == len(names)
    assert all(name.startswith("resty_upstream_") for name in names)
    assert all(family.documentation.endswith(".") for family in families)


# ── beside the metrics of others ──────────────────────────────────────────────────────────────

_BESIDE: str = """
import json, os, sys
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from resty_upstream import Upstream
from resty_upstream.contrib.prometheus import UpstreamCollector

requests = Counter("requests", "Of the application.")
upstream = Upstream("memory://", pools={"p": {"hosts": {"a": {"host": "a.test"}}}})
if os.fork():
    os.wait()
else:
    requests.inc(3)
    os._exit(0)
requests.inc()
registry = CollectorRegistry()
MultiProcessCollector(registry)
registry.register(UpstreamCollector(upstream))
print(json.dumps(generate_latest(registry).decode()))
"""


def test_it_goes_beside_the_collector_for_several_processes(tmp_path: Path) -> None:
    seen = parse(json.loads(run(_BESIDE, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))))
    assert seen["requests_total"] == {(): 4}
    assert seen["host_up"] == {A: 1}


def run(code: str, *arguments: str, **environment: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code, *arguments]
    env = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
