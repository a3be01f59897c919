"""The verbs about checks: who checks, what was found, and what happened to hosts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resty_upstream import Upstream
from resty_upstream.cli import Watcher, main
from resty_upstream.cli.changing import user_name
from resty_upstream.cli.logs import unseen_logs
from resty_upstream.health.results import CHECKER_LEASE, LastCheck
from resty_upstream.health.runner import Checker
from resty_upstream.history import Transition, encode_transition
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
    listed = command("list").out
    assert re.search(rf"^  a .* down by hand by {re.escape(user_name())}: new kernel$", listed, re.MULTILINE)
    assert f"taken down by hand by {user_name()}: new kernel" in command("explain").out


def test_who_did_it_is_the_user_as_the_system_has_him(
    place: Place, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment names whom it likes, or nobody; and a user need not have a name."""
    monkeypatch.setenv("LOGNAME", "somebody\nelse")
    assert command("down-host", "primary", "a").code == 0
    assert place.upstream.history()[-1].by == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert command("up-host", "primary", "a").code == 0
    assert place.upstream.history()[-1].by == f"user {2**31 - 7}"


def test_hostile_text_is_escaped_in_the_history(place: Place, command: Command) -> None:
    """Also what a record holds that no command would have stored."""
    entry = Transition(
        at=0.0,
        pool="p\u202e",
        host="h\x1b[2J",
        before="up",
        after="odd\x07",
        reason="a\x1b]0;b" * 20,
        process=1,
        by="\x9b",
    )
    place.store.transact("default", lambda view: view.log(encode_transition(entry)))
    out = command("history").out
    assert out.replace("\n", "").isprintable()
    assert r"p\u202e/h\x1b[2J" in out
    assert json.loads(command("history", "--json").out)[0]["pool"] == "p\u202e"


def test_long_reasons_are_wrapped_in_the_history(command: Command) -> None:
    command("down-host", "primary", "a", "--reason", "new kernel " * 15)
    head, first, *rest = command("history").out.splitlines()
    column = head.index("reason")
    assert first[column:].startswith("by hand: new")
    assert rest
    assert all(not line[:column].strip() and line[column:].strip() for line in rest)


def test_looking_at_the_history_creates_no_store(empty_place: Place) -> None:
    done = DOORS["resty-upstream"](empty_place, "history")
    assert done == Done(0, "nothing has happened to any host yet\n", "")
    assert not empty_place.is_there


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
def run_checks(place: Place, *arguments: str, source: tuple[str, str] | None = None) -> Iterator[Process]:
    command = python("-m", "resty_upstream", *(source or ("--config", place.config)), "run-checks", *arguments)
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
def test_every_door_names_the_command_that_checks(checked_place: Place, door: str) -> None:
    """Where hosts are to be checked, and no process does it."""
    says = f"No process checks hosts now: start the application, or {door} run-checks\n"
    assert " ".join(DOORS[door](checked_place, "list").out.split()).endswith(says.strip())
    shown = " ".join(DOORS[door](checked_place, "show", "primary").out.split())
    assert shown.endswith(says.strip())
    assert "not checked yet" in shown


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
    with run_checks(place, source=("--store", place.url)) as process:
        wait_until(lambda: "last_check" in host(place, "a"), "a was to be checked")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    first, second = process.printed().splitlines()[:2]
    assert first == "upstream default: 0 hosts to be checked"
    assert second == (
        "upstream default: not primary/a, since os.getpid is only called by processes whose own settings name it: "
        "use manage.py upstream run-checks, or --config"
    )
    assert host(place, "a")["last_result"] == "unknown: os.getpid is not called here"
    assert host(place, "a")["up"]


def test_it_waits_for_a_store_and_for_upstreams_that_are_begun_later(checked_place: Place) -> None:
    """It may be started before the application is."""
    with run_checks(checked_place, source=("--store", checked_place.url)) as process:
        wait_until(lambda: "it is waited for one" in process.printed(), "it has begun")
        Upstream(checked_place.store, id="other").configure(checked_place.upstreams["default"]["pools"])
        wait_until(lambda: "upstream other: host primary/b is down" in process.printed(), "other is checked")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "upstream other: 2 hosts to be checked" in process.printed().splitlines()


def test_only_the_upstream_that_is_named_is_checked(checked_place: Place) -> None:
    checked_place.upstreams["other"] = checked_place.upstreams["default"]
    with run_checks(checked_place, "--upstream", "other") as process:
        wait_until(lambda: " is down: " in process.printed(), "b is found to be down")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert "upstream default" not in process.printed()


def test_trouble_with_the_store_is_said_once_as_it_happens_and_it_goes_on(checked_place: Place) -> None:
    with run_checks(checked_place) as process:
        wait_until(lambda: " is down: " in process.printed(), "b is found to be down")
        directory = checked_place.directory / "store"
        shutil.rmtree(directory)
        directory.mkdir()
        directory.chmod(0o777)
        wait_until(lambda: "StoreDegraded: others can write in" in process.printed(), "the trouble is said")
        assert process.running
        directory.chmod(0o700)
        wait_until(lambda: "works again" in process.printed(), "it has found the store again")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert process.printed().count("StoreDegraded") == 1


def test_a_checker_that_ended_is_begun_again(
    checked_place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when it could not be had the first time; that is said once, and nothing of it is kept."""
    start, begun = Checker.start, []

    def start_late(checker: Checker) -> bool:
        begun.append(checker)
        if len(begun) > 2:
            return start(checker)
        logging.getLogger("resty_upstream.health").error("no thread for %s", "it")
        return False

    def end() -> None:
        wait_until(lambda: checked_place.is_there and "last_check" in host(checked_place, "a"), "a was checked")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checker, "start", start_late)
    monkeypatch.setattr("resty_upstream.cli.health._LOOK_S", 0.05)
    ending = threading.Thread(target=end)
    ending.start()
    assert main(["--config", checked_place.config, "run-checks"]) == 0
    ending.join()
    assert len(begun) == 3
    assert capsys.readouterr().err == "resty-upstream: no thread for it\n"


def test_what_goes_wrong_is_said_at_once_and_not_kept() -> None:
    said: list[str] = []
    log = logging.getLogger("resty_upstream.store")
    with unseen_logs(said.append) as heard:
        log.error("the store is %s", "torn\x1b")
        log.warning("it is no news")
        assert (said, heard.messages) == ([], ["the store is torn\x1b"])
        heard.say_at_once()
        for number in range(1000):
            log.warning("again %s", number // 500)
        log.warning("a host is down", extra={"upstream_event": "host_down"})
        assert said == [r"the store is torn\x1b", "again 0", "again 1"]
        assert heard.messages == []


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
