"""The verbs about checks: who checks, what was found, and what happened to hosts."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resty_upstream import Upstream
from resty_upstream.cli import Watcher
from resty_upstream.health.results import CHECKER_LEASE, LastCheck
from tests.cli.doors import DOORS, Done, Place
from tests.e2e.processes import Process, python, wait_until
from tests.helpers import Peer, answer_http, refusing

Command = Callable[..., Done]
CHECKS = {"interval": 0.2, "interval_down": 0.2, "fall": 2}


def test_without_any_transition_the_history_says_so(command: Command) -> None:
    assert command("history") == Done(0, "nothing has happened to any host yet\n", "")
    assert json.loads(command("history", "--json").out) == []


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_the_history_says_what_happened_why_and_who_did_it(place: Place, door: Callable[..., Done]) -> None:
    assert door(place, "down-host", "primary", "a", "--reason", "new kernel") == (
        0,
        "host primary/a is down\n",
        "",
    )
    door(place, "up-host", "primary", "a")
    out = door(place, "history").out
    assert re.match(r" +time +host +was +is +by +process +reason\n", out)
    shown = " ".join(out.split())
    moment, who = r"[-0-9]{10} [:0-9]{8}", r"\S+ \d+"
    assert re.search(f"{moment} primary/a up down by hand {who} by hand: new kernel", shown), out
    assert re.search(f"{moment} primary/a down by hand up {who} by hand$", shown), out
    (last,) = json.loads(door(place, "history", "--limit", "1", "--json").out)
    assert (last["host"], last["from"], last["to"], last["reason"]) == ("a", "manual", "up", "by hand")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", last["time"])


def test_the_reason_of_a_person_is_shown_with_the_host(place: Place, command: Command) -> None:
    command("down-host", "primary", "a", "--reason", "new kernel")
    assert re.search(r"^  a .* down by hand: new kernel$", command("list").out, re.MULTILINE)
    assert "taken down by hand: new kernel" in command("explain").out


def test_a_reason_in_two_lines_is_refused(command: Command) -> None:
    done = command("down-host", "primary", "a", "--reason", "one\ntwo")
    assert (done.code, done.out) == (2, "")
    assert "argument --reason: must be at most 200 characters of text in one line" in done.err


# ── run-checks ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def checked_place(tmp_path: Path) -> Iterator[Place]:
    """A place with a host that answers checks, and one that refuses them."""
    with Peer(answer_http(b"well")) as peer, refusing() as gone:
        pools = {"primary": {"healthcheck": CHECKS, "hosts": {"a": peer.options, "b": gone}}}
        with Place(tmp_path, pools) as place:
            yield place


@contextlib.contextmanager
def run_checks(place: Place, *arguments: str) -> Iterator[Process]:
    command = python("-m", "resty_upstream", "--config", place.config, "run-checks", *arguments)
    with Process(command, {}, place.directory / "printed") as process:
        yield process


def host(place: Place, host_id: str) -> dict[str, object]:
    """A host as the store has it; nothing as long as it has none."""
    hosts: dict[str, dict[str, object]] = place.upstream.get_pools().get("primary", {}).get("hosts", {})
    return hosts.get(host_id, {"up": True})


def test_a_process_of_its_own_checks_and_prints_what_it_finds_until_it_is_ended(checked_place: Place) -> None:
    """SIGTERM ends it in order: another process may check at once."""
    with run_checks(checked_place) as process:
        wait_until(lambda: " is down: " in process.printed(), "b is found to be down")
        wait_until(lambda: "last_check" in host(checked_place, "a"), "a was checked")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    first, second = process.printed().splitlines()
    assert first == "upstream default: 2 hosts to be checked"
    assert second.endswith("  upstream default: host primary/b is down: check: ECONNREFUSED")
    assert not checked_place.store.holder("default", CHECKER_LEASE)
    assert (host(checked_place, "a")["up"], host(checked_place, "a")["last_result"]) == (True, "ok: 200")
    assert host(checked_place, "b")["last_result"] == "failed: ECONNREFUSED"


def test_events_of_checks_as_json_are_objects_in_lines(checked_place: Place) -> None:
    with run_checks(checked_place, "--json") as process:
        wait_until(lambda: "host_down" in process.printed(), "b is found to be down")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    event = json.loads(process.printed())
    assert (event["event"], event["pool"], event["host"]) == ("host_down", "primary", "b")
    assert (event["upstream"], event["reason"]) == ("default", "check: ECONNREFUSED")


@pytest.mark.parametrize("door", [name for name in DOORS if name != "call_command"])
def test_every_door_has_it(checked_place: Place, door: str, tmp_path: Path) -> None:
    commands = {
        "resty-upstream": python("-m", "resty_upstream", "--config", checked_place.config),
        "manage.py upstream": python("example_project/manage.py", "upstream"),
        "flask upstream": python("-m", "flask", "--app", "tests.cli.app", "upstream"),
    }
    with Process([*commands[door], "run-checks"], checked_place.environment, tmp_path / "printed") as process:
        wait_until(lambda: " is down: " in process.printed(), "b is found to be down")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.printed()


def test_a_function_is_called_only_where_the_settings_name_it(place: Place) -> None:
    """With nothing but the address of the store it is said, and not called."""
    place.upstream.configure(
        {"primary": {"healthcheck": {"type": "os.getpid", "interval": 0.2}, "hosts": {"a": {"host": "a.test"}}}}
    )
    command = python("-m", "resty_upstream", "--store", place.url, "run-checks")
    with Process(command, {}, place.directory / "printed") as process:
        wait_until(lambda: "last_check" in host(place, "a"), "a was to be checked")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "os.getpid is only called by processes whose own settings name it" in process.printed()
    assert host(place, "a")["last_result"] == "unknown: os.getpid is not called here"
    assert host(place, "a")["up"]


def test_who_watches_sees_the_last_checks(checked_place: Place) -> None:
    """Though a check that is good changes nothing that requests read."""
    upstream = Upstream(checked_place.store, pools=checked_place.upstreams["default"]["pools"])
    upstream.open()
    watcher = Watcher(upstream)
    watcher.look()
    upstream.start_checker()
    try:

        def seen() -> LastCheck | None:
            watcher.look()
            return watcher.now.checks.last.get("primary\x1fa") if watcher.now else None

        first = wait_until(seen, "a first check is seen")
        wait_until(lambda: seen() != first, "another check is seen")
    finally:
        upstream.close()


# ── what list says of checks ──────────────────────────────────────────────────────────────────


def test_the_list_says_what_checks_found_and_whether_anybody_makes_them(checked_place: Place) -> None:
    out = DOORS["resty-upstream"](checked_place, "list").out
    assert "up, not checked yet" in out
    assert "No process checks hosts now" in out
    upstream = Upstream(checked_place.store, pools=checked_place.upstreams["default"]["pools"])
    upstream.open()
    upstream.start_checker()
    try:
        wait_until(lambda: not host(checked_place, "b")["up"], "b is down")
        wait_until(lambda: "last_check" in host(checked_place, "a"), "a was checked")
        out = DOORS["resty-upstream"](checked_place, "list").out
        assert re.search(r"^  a .* up, checked .* ago: 200$", out, re.MULTILINE), out
        rest = " ".join(out.split())
        assert "back after 2 good checks, checked" in rest, out
        assert "failed, ECONNREFUSED" in rest
        assert "No process checks" not in out
        explained = " ".join(DOORS["resty-upstream"](checked_place, "explain").out.split())
        assert "2 good checks in a row bring it back" in explained
        (pool,) = json.loads(DOORS["resty-upstream"](checked_place, "list", "--json").out)["pools"]
        a, b = pool["hosts"]
        assert (a["last_result"], b["last_result"]) == ("ok: 200", "failed: ECONNREFUSED")
        assert b["probe_in_s"] is None
    finally:
        upstream.close()


def test_headers_of_checks_are_shown_by_name_alone(place: Place, command: Command) -> None:
    check = {"path": "/health", "headers": {"Authorization": "Bearer secret"}}
    place.upstream.configure({"primary": {"healthcheck": check, "hosts": {}}})
    shown = [
        command("show", "primary").out,
        command("show", "primary", "--json").out,
        command("list", "--json").out,
    ]
    assert not any("secret" in out for out in shown)
    assert re.search(r"^  healthcheck.headers +Authorization: \*\*\* ", shown[0], re.MULTILINE)
    assert re.search(r"^  healthcheck.interval +10 s ", shown[0], re.MULTILINE)
    assert "Bearer secret" in command("export").out
