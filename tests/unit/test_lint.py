"""What is valid and yet hardly meant."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.errors import InvalidConfig, ProblemKind
from resty_upstream.lint import PROBLEMS, Finding, hidden, lint
from resty_upstream.model import pools_from_dicts
from tests.helpers import hosts, open_upstream


def found(pools: dict[str, Any], *, behind_proxy: bool = False, **options: Any) -> dict[str, Finding]:
    """The findings about pools that are declared and not yet stored, by id."""
    findings = lint(Upstream("memory://", pools=pools, **options), behind_proxy=behind_proxy)
    assert len({finding.id for finding in findings}) == len(findings)
    return {finding.id: finding for finding in findings}


FINE: dict[str, Any] = {"p": {"hosts": hosts("a", "b", weight=10)}, "dr": {"priority": 10, "hosts": hosts("c")}}


def test_pools_that_are_as_they_should_be_give_no_findings() -> None:
    assert not found(FINE)
    assert not found({"p": {"max_fails": 0, "hosts": hosts("a")}})
    assert not found({"p": {"method": "hash", "failed_timeout": 300, "hosts": hosts("a", "b")}})
    assert not found({})


WRONG: list[tuple[str, str, str, dict[str, Any]]] = [
    ("W001", "pools.p.hosts", "nothing goes to b while one of a is", {"hosts": hosts("a", weight=1) | hosts("b")}),
    ("W002", "pools.p.hosts.a", "the only host", {"hosts": hosts("a")}),
    ("W003", "pools.p.timeout", "20 s.*15 s", {"timeout": "20s", "hosts": hosts("a", "b")}),
    ("W005", "pools.p.hosts.b", "a, b have the same", {"hosts": {h: {"host": "x.test"} for h in "ab"}}),
    ("W010", "pools.p.hosts", "no hosts", {}),
    (
        "W011",
        "pools.p.failed_timeout_max",
        "5 s.*below failed_timeout.*10 s",
        {"failed_timeout_max": 5, "hosts": hosts("a", "b")},
    ),
    (
        "W014",
        "pools.p.healthcheck.status_codes",
        "any answer is a good one",
        {"healthcheck": {"status_codes": []}, "hosts": hosts("a", "b")},
    ),
    (
        "W014",
        "pools.p.hosts.b.healthcheck.fall",
        "after 1000 bad checks, 10 s apart.*2.8 hours",
        {"hosts": hosts("a") | hosts("b", healthcheck={"fall": 1000})},
    ),
    (
        "W015",
        "pools.p.healthcheck.interval",
        "is 3 s, but a host that hangs is given 4 s",
        {"healthcheck": {"interval": 3}, "hosts": hosts("a", "b")},
    ),
    (
        "W017",
        "pools.p.ssl_verify",
        "whoever answers",
        {"ssl": True, "ssl_verify": False, "hosts": hosts("a", "b")},
    ),
    ("W018", "pools.p.sni_host", "not checked by TLS", {"sni_host": "app.test", "hosts": hosts("a", "b")}),
]


def test_a_check_by_a_function_that_nobody_can_call_here_is_found() -> None:
    def pool(name: str) -> dict[str, Any]:
        return {"p": {"healthcheck": {"type": name}, "hosts": hosts("a", "b")}}

    assert not found(pool("os.path.exists"))
    assert "cannot be imported and called" in found(pool("os.no_such_thing"))["W016"].message
    stored = open_upstream(pool("os.path.exists"))
    (finding,) = lint(Upstream(stored.store))
    assert (finding.id, "not named in the settings" in finding.message) == ("W016", True)


@pytest.mark.parametrize(
    ("finding_id", "path", "message", "pool"), WRONG, ids=[f"{row[0]} {row[1]}" for row in WRONG]
)
def test_what_is_hardly_meant_is_found(finding_id: str, path: str, message: str, pool: dict[str, Any]) -> None:
    """By an id that stays, with the path, and what to write instead."""
    findings = found({"p": pool})
    assert list(findings) == [finding_id]
    finding = findings[finding_id]
    assert finding.path == path
    assert finding.message.startswith(("pools.p", "pools p"))
    assert re.search(message, finding.message)
    assert finding.hint
    assert finding.level == "warning"


def test_pools_of_one_priority_are_named_together() -> None:
    findings = found({name: {"hosts": hosts(name)} for name in "xyz"})
    assert findings["W004"].message.startswith("pools x, y, z have the same priority (0)")
    down = {"x": {"hosts": hosts("a")}, "y": {"up": False, "hosts": hosts("b")}, "z": {"priority": 1}}
    assert "W004" not in found(down)


def test_one_host_in_each_of_two_pools_has_somewhere_to_fail_over_to() -> None:
    assert "W002" not in found({"p": {"hosts": hosts("a")}, "dr": {"priority": 1, "hosts": hosts("b")}})
    assert "W002" in found({"p": {"hosts": hosts("a")}, "dr": {"priority": 1, "up": False, "hosts": hosts("b")}})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"host": "10.0.0.1"}, {"host": "10.0.0.1", "port": 80}, True),
        ({"host": "10.0.0.1"}, {"host": "10.0.0.1", "port": 81}, False),
        ({"host": "::1"}, {"host": "0:0:0:0:0:0:0:1"}, True),
        ({"host": "name.test"}, {"host": "NAME.test."}, True),
        ({"host": "unix:/run/a"}, {"host": "unix:/run/a", "port": 81}, True),
        ({"host": "unix:/run/a"}, {"host": "unix:/run/A"}, False),
    ],
)
def test_one_address_may_be_written_in_several_ways(
    one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    assert ("W005" in found({"p": {"hosts": {"a": one, "b": other}}})) == same


def test_hash_goes_by_the_address_of_a_proxy_only_behind_one() -> None:
    pools = {"p": {"method": "hash", "hosts": hosts("a", "b")}}
    assert "W006" not in found(pools)
    hint = found(pools, behind_proxy=True)["W006"].hint
    assert all(option in hint for option in ("trusted_proxies", "cookie:name", "connect(key=…)"))


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ({}, {"trusted_proxies": ["10.0.0.0/8"]}),
        ({"key": "header:X-User"}, {}),
        ({"key": "cookie:session"}, {}),
        ({"method": "random"}, {}),
    ],
)
def test_hash_behind_a_proxy_is_right_where_it_is_told_what_to_go_by(
    pool: dict[str, Any], options: dict[str, Any]
) -> None:
    pools = {"p": {"method": "hash", "hosts": hosts("a", "b"), **pool}}
    assert not found(pools, behind_proxy=True, **options)


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0", "::ffff:0:0/96"])
def test_to_trust_everybody_is_hardly_meant(everybody: str) -> None:
    finding = found(FINE, trusted_proxies=["10.0.0.1", everybody])["W012"]
    assert finding.path == "trusted_proxies"
    assert finding.message.startswith("trusted_proxies trusts everybody")
    assert "10.0.0.0/8" in finding.hint
    assert not found(FINE, trusted_proxies=["10.0.0.0/8", "unix", "::1"])


def test_sticky_sessions_without_anything_to_sign_with_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = {**FINE, "p": {**FINE["p"], "sticky": True}}
    assert not found(pools)
    monkeypatch.setitem(sys.modules, "itsdangerous", None)
    assert not found(FINE)
    finding = found(pools)["W013"]
    assert finding.path == "pools.p.sticky"
    assert finding.message.startswith("pools.p.sticky needs itsdangerous")
    assert "pip install 'resty-upstream[sticky]'" in finding.hint


def test_the_deadline_is_that_of_the_upstream() -> None:
    one = {"p": FINE["p"]}
    assert "W003" in found(one, total_timeout="1s")
    assert "W003" not in found(one, total_timeout="2s")


def test_many_hosts_make_no_long_sentence() -> None:
    many = {f"h{number}": {"host": f"{number}.test"} for number in range(500)}
    message = found({"p": {"hosts": many | hosts("a", weight=1)}})["W001"].message
    assert "and 496 more" in message
    assert len(message) < 200


# ── what a change at run time hides ───────────────────────────────────────────────────────────


def test_a_declaration_that_a_change_at_run_time_hides_is_named_with_what_is_used() -> None:
    upstream = open_upstream(FINE)
    api = UpstreamAPI(upstream)
    api.set_weight("p", "a", 0)
    api.set_priority("dr", 20)
    api.remove_host("p", "b")
    api.add_host("p", id="new", host="new.test", weight=10)
    api.down_host("dr", "c")  # is health, and no setting
    hiding = {finding.path: finding.message for finding in lint(upstream) if finding.id == "W007"}
    assert hiding == {
        "pools.p.hosts.a.weight": "pools.p.hosts.a.weight is declared as 10, but was changed to 0 at run time",
        "pools.p.hosts.b": "pools.p.hosts.b is declared, but was removed at run time",
        "pools.dr.priority": "pools.dr.priority is declared as 10, but was changed to 20 at run time",
    }


def test_a_declaration_that_is_new_is_compared_as_it_will_be_merged() -> None:
    """One that was edited since wins over the change at run time, and hides nothing."""
    upstream = open_upstream(FINE)
    UpstreamAPI(upstream).set_weight("p", "a", 0)
    edited = {"p": {"hosts": hosts("a", "b", weight=7)}, "dr": FINE["dr"]}
    assert [f.id for f in lint(Upstream(upstream.store, pools=edited))] == []
    for same in (Upstream(upstream.store, pools=FINE), Upstream(upstream.store)):
        assert "pools.p.hosts.a.weight" in [finding.path for finding in lint(same)]


def test_what_was_added_at_run_time_hides_nothing() -> None:
    declared, used = (pools_from_dicts(pools).pools for pools in ({"p": {}}, {"p": {"hosts": hosts("a")}}))
    assert not hidden(declared, used)
    assert [finding.path for finding in hidden(used, declared)] == ["pools.p.hosts.a"]


# ── the store ─────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_created_or_changed(tmp_path: Path) -> None:
    """Neither where there is no store yet, nor in one that is in use."""
    place = tmp_path / "private" / "upstreams.db"
    upstream = Upstream(f"sqlite://{place}", pools=FINE)
    assert lint(upstream) == []
    assert not place.parent.exists()
    upstream.get_pools()
    UpstreamAPI(upstream).set_weight("p", "a", 0)
    before = upstream.store.read("default"), upstream.store.version("default")
    other = Upstream(f"sqlite://{place}", pools={"q": {"hosts": hosts("a")}})
    assert {finding.id for finding in lint(other)} == {"W002"}
    assert (upstream.store.read("default"), upstream.store.version("default")) == before
    for each in (upstream, other):
        each.close()


def test_a_store_that_others_could_change_is_found(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (finding,) = lint(Upstream(f"sqlite://{tmp_path}/open/upstreams.db", pools=FINE))
    assert (finding.id, finding.path) == ("W008", "store")
    assert f"chmod 700 {tmp_path}/open" in finding.message


def test_a_store_that_cannot_be_opened_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (finding,) = lint(Upstream(f"sqlite://{tmp_path}/file/upstreams.db", pools=FINE))
    assert (finding.id, finding.path) == ("W009", "store")
    monkeypatch.setattr(os, "access", lambda *_: False)
    (finding,) = lint(Upstream(f"sqlite://{tmp_path}/closed/upstreams.db", pools=FINE))
    assert finding.id == "W009"
    assert "cannot be created by user" in finding.message
    assert not (tmp_path / "closed").exists()


def test_the_rest_is_looked_at_although_the_store_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = Upstream(f"sqlite://{tmp_path}/file/upstreams.db", pools={"p": {"hosts": hosts("a")}})
    assert {finding.id for finding in lint(broken)} == {"W009", "W002"}


# ── what is refused ───────────────────────────────────────────────────────────────────────────

REFUSED: list[tuple[ProblemKind, dict[str, Any]]] = [
    ("structure", {"p": []}),
    ("option", {"p": {"max_fail": 3}}),
    ("value", {"p": {"timeout": "soon"}}),
    ("missing", {"p": {"hosts": {"a": {}}}}),
    ("id", {"": {}}),
    ("method", {"p": {"method": "fastest"}}),
]


@pytest.mark.parametrize(("kind", "pools"), REFUSED, ids=[row[0] for row in REFUSED])
def test_each_kind_of_problem_has_an_id_and_a_hint(kind: ProblemKind, pools: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Upstream("memory://", pools=pools)
    assert [problem.kind for problem in caught.value.problems] == [kind]
    finding_id, hint = PROBLEMS[kind]
    assert finding_id.startswith("E")
    assert hint


def test_all_problems_are_named_at_once_unknown_methods_too() -> None:
    with pytest.raises(InvalidConfig) as caught:
        Upstream("memory://", pools={"p": {"method": "fastest", "timeout": -1}, "q": {"method": "slowest"}})
    assert sorted(problem.kind for problem in caught.value.problems) == ["method", "method", "value"]


def test_ids_are_given_once() -> None:
    ids = [finding_id for finding_id, _ in PROBLEMS.values()]
    assert len(set(ids)) == len(ids)
    assert Finding("E001", "", "", "").level == "error"
