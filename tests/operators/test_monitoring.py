"""``contrib/prometheus`` and ``contrib/grafana``: rules and a board about metrics that there are."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from resty_upstream.contrib.prometheus import UpstreamCollector
from resty_upstream.metrics import METRICS
from tests.contrib.exposition import exposition
from tests.e2e.processes import Ports, Process, get, python, wait_until, wait_until_answers
from tests.helpers import Peer, hosts, open_upstream, take_down, visit
from tests.operators.commands import CONTRIB, find, run_tool
from tests.operators.installed import Installed

RULES = CONTRIB / "prometheus" / "rules.yml"
BOARD = CONTRIB / "grafana" / "resty_upstream.json"

# Given by Prometheus itself
_LABELS_OF_ALL = {"job", "instance"}
_VARIABLES = {"$__rate_interval": "5m", "$__range": "1h"}
_SELECTOR = re.compile(r"\b(?<!:)(resty_upstream_\w+)(?:\{([^}]*)\})?")


def exported() -> dict[str, set[str]]:
    """The labels of each series that the collector can have, by its name."""
    names: dict[str, set[str]] = {}
    for family in UpstreamCollector(open_upstream({"p": {"hosts": hosts("a")}})).collect():
        for sample in family.samples:
            names.setdefault(sample.name, set()).update(sample.labels)
    for metric in METRICS:  # also those that are absent just now
        name = "_".join(filter(None, ("resty_upstream", metric.name, metric.unit)))
        names.setdefault(f"{name}_total" if metric.kind == "counter" else name, set(metric.labels))
    return names


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


def strings(of: object, key: str) -> Iterator[str]:
    """The values of a key, wherever it is."""
    if isinstance(of, dict):
        for name, value in of.items():
            if name == key and isinstance(value, str):
                yield value
            else:
                yield from strings(value, key)
    elif isinstance(of, list):
        for value in of:
            yield from strings(value, key)


def queries() -> list[str]:
    """All that the board asks for."""
    found = list(strings(board(), "expr"))
    for name, value in _VARIABLES.items():
        found = [query.replace(name, value) for query in found]
    return [re.sub(r"\$\w+", ".*", query) for query in found]


def unknown(expression: str) -> set[str]:
    """The series and labels in a query that the collector does not have."""
    known, wrong = exported(), set()
    for name, selector in _SELECTOR.findall(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        if name not in known:
            wrong.add(name)
        else:
            wrong |= {f"{name}.{label}" for label in labels - known[name] - _LABELS_OF_ALL}
    return wrong


def test_prometheus_accepts_the_rules() -> None:
    assert "SUCCESS" in run_tool("promtool", "check", "rules", "--lint-fatal", RULES)


def test_alerts_fire_when_they_should_and_not_else() -> None:
    tests = CONTRIB / "prometheus" / "rules_test.yml"
    assert "SUCCESS" in run_tool("promtool", "test", "rules", tests)
    tested = yaml.safe_load(tests.read_text())["tests"]
    fired = {each["alertname"] for test in tested for each in test["alert_rule_test"] if each.get("exp_alerts")}
    silent = {
        each["alertname"] for test in tested for each in test["alert_rule_test"] if not each.get("exp_alerts")
    }
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fired == silent == alerts


def test_rules_and_board_ask_for_what_there_is() -> None:
    assert len(queries()) > 20
    for expression in [*(rule["expr"] for rule in rules()), *queries()]:
        assert not unknown(expression), expression


def test_what_there_is_not_would_be_found() -> None:
    """A guard: the two above look into queries."""
    assert unknown("sum(resty_upstream_hosts_up)") == {"resty_upstream_hosts_up"}
    assert unknown('rate(resty_upstream_attempts_total{result="ok", pool="p"}[5m])') == {
        "resty_upstream_attempts_total.result"
    }


def test_the_board_shows_all_that_there_is() -> None:
    used = {name for query in queries() for name, _ in _SELECTOR.findall(query)}
    assert exported().keys() - used <= {
        "resty_upstream_pool_priority",  # rules ask for it
        "resty_upstream_host_last_failure_timestamp_seconds",
    }


def test_the_queries_of_the_board_are_valid(tmp_path: Path) -> None:
    """As rules, which promtool can read."""
    rules = [{"record": f"panel{number}", "expr": query} for number, query in enumerate(queries())]
    path = tmp_path / "board.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    run_tool("promtool", "check", "rules", "--lint=none", path)


def test_the_variables_of_the_board_are_those_that_its_queries_use() -> None:
    names = {variable["name"] for variable in board()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", BOARD.read_text())) - {"__rate_interval", "__range", "__all"}
    assert used == names


def test_panels_have_places_of_their_own() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered


@pytest.mark.parametrize("failing", [False, True])
def test_the_exposition_is_as_prometheus_wants_it(failing: bool) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b"), "healthcheck": True}})
    visit(upstream)
    if failing:
        take_down(upstream, "a")
    run_tool("promtool", "check", "metrics", given=exposition(upstream))


# ── a real Prometheus ─────────────────────────────────────────────────────────────────────────

_CONFIGURATION = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: myapp
    static_configs: [{{targets: ["127.0.0.1:{app}"]}}]
"""


class Prometheus:
    """A server that scrapes the application, with our rules."""

    def __init__(self, directory: Path, port: int, app: int) -> None:
        self._port = port
        self._directory = directory
        (directory / "prometheus.yml").write_text(_CONFIGURATION.format(rules=RULES, app=app))

    def start(self) -> Process:
        options = {
            "config.file": self._directory / "prometheus.yml",
            "storage.tsdb.path": self._directory / "tsdb",
            "web.listen-address": f"127.0.0.1:{self._port}",
            "log.level": "warn",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return Process([find("prometheus"), *arguments], {}, self._directory / "prometheus.log")

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that are the answer to a query, which must be a good one."""
        answer = get(self._port, f"/api/v1/query?query={quote(query)}")
        assert answer.status == 200, (query, answer.body)
        found: list[dict[str, Any]] = answer.json["data"]["result"]
        return found


def test_prometheus_has_an_answer_to_what_the_board_asks(
    tmp_path: Path, ports: Ports, start_peer: Callable[..., Peer]
) -> None:
    check = 'healthcheck = { type = "tcp", interval = 0.2 }'
    installed = Installed(tmp_path, check, host_port=start_peer().port)
    app, port = ports.reserve(), ports.reserve()
    gunicorn = python("-m", "gunicorn", "-c", "gunicorn.conf.py", f"--bind=127.0.0.1:{app}")
    prometheus = Prometheus(tmp_path, port, app)
    with installed.start(gunicorn) as site, prometheus.start() as server:
        wait_until_answers(site, app, "/")
        wait_until_answers(server, port, "/-/ready")

        def counted() -> bool:
            get(app, "/")
            answer = prometheus.ask('pool:resty_upstream_attempts:rate5m{outcome="ok"}')
            return any(float(series["value"][1]) > 0 for series in answer)

        wait_until(counted, "Prometheus sees attempts, and works out our rule")
        for query in queries():
            if query.endswith((" == 0", "> 0")):  # hosts that went down just now or have failures: there are none
                assert not prometheus.ask(query)
            else:
                wait_until(functools.partial(prometheus.ask, query), f"an answer to {query}")
