"""The verb ``check``: wrong configuration, what is hardly meant, and stores that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from resty_upstream.cli import main
from resty_upstream.lint import PROBLEMS, lint
from tests.cli.doors import DOORS, POOLS, Done, Door, Place, called, flask, manage, neutral, run
from tests.e2e.processes import python

Command = Callable[..., Done]
MIXED: dict[str, Any] = {"p": {"hosts": {"a": {"host": "a.test", "weight": 5}, "b": {"host": "b.test"}}}}
WRONG: dict[str, Any] = {"p": {"timout": 5, "hosts": {"a": {"port": 0}, "b": 5}}}
WRONG_IDS = ["E002", "E003", "E004", "E001"]


def flowing(text: str) -> str:
    """Text without the line breaks that fit it into a terminal."""
    return " ".join(text.split())


def test_what_is_hardly_meant_is_printed_with_what_to_write_instead(empty_place: Place, command: Command) -> None:
    empty_place.upstream.configure(MIXED)
    (finding,) = lint(empty_place.upstream)
    code, out, err = command("check")
    assert (code, err) == (0, "")
    assert flowing(out) == f"W001 pools.p.hosts: {finding.message} hint: {finding.hint}"
    assert out.startswith("W001 pools.p.hosts: pools.p mixes ")
    assert {line[:5].strip() for line in out.splitlines()} == {"W001", ""}


@pytest.fixture
def command(empty_place: Place, capsys: pytest.CaptureFixture[str]) -> Command:
    """``resty-upstream --store … `` in this process."""

    def run(*arguments: str) -> Done:
        code = main(["--store", empty_place.url, *arguments])
        return Done(code, *capsys.readouterr())

    return run


def test_with_strict_each_warning_counts(empty_place: Place, command: Command) -> None:
    empty_place.upstream.configure(MIXED)
    code, out, err = command("check", "--strict")
    assert (code, err) == (1, "resty-upstream: 1 warning\n")
    assert out.startswith("W001 ")


def test_a_change_at_run_time_that_hides_a_declaration_is_told(place: Place, command: Command) -> None:
    place.api.set_method("primary", "hash")
    out = flowing(command("check").out)
    assert out.startswith("W007 pools.primary.method: is declared as 'round_robin', but was changed to 'hash' at")


def test_behind_a_proxy_the_clients_address_is_not_the_clients(
    place: Place, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.upstream.configure({"p": {"method": "hash", "hosts": POOLS["primary"]["hosts"]}})
    assert command("check") == (0, "no problems\n", "")
    assert "W006 pools.p.method: " in command("check", "--behind-proxy").out
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    assert "W006 pools.p.method: " in command("check").out


def test_findings_as_json_have_all_their_parts(empty_place: Place, command: Command) -> None:
    empty_place.upstream.configure(MIXED)
    (finding,) = json.loads(command("check", "--json").out)
    assert {name: finding[name] for name in ("upstream", "id", "level", "path")} == {
        "upstream": "default",
        "id": "W001",
        "level": "warning",
        "path": "pools.p.hosts",
    }
    assert finding["message"].startswith("pools.p mixes")
    assert finding["hint"].startswith("Give every host")
    empty_place.upstream.configure(POOLS)
    assert json.loads(command("check", "--json").out) == []


@pytest.mark.parametrize(
    ("door", "place_of", "prefix"),
    [
        (neutral, "{config}: default.", "resty-upstream: "),
        (manage, "UPSTREAMS['default']: ", "CommandError: "),
        (called, "UPSTREAMS['default']: ", ""),
        (flask, "upstreams.default.", "flask upstream: "),
    ],
    ids=DOORS,
)
def test_a_wrong_configuration_is_printed_problem_by_problem(
    door: Door, place_of: str, prefix: str, empty_place: Place
) -> None:
    """Each with its id, through each door, without a traceback."""
    empty_place.upstreams["default"]["pools"] = WRONG
    code, out, err = door(empty_place, "check", "--json")
    assert (code, err) == (1, f"{prefix}{len(WRONG_IDS)} errors\n")
    found = json.loads(out)
    assert [finding["id"] for finding in found] == WRONG_IDS
    assert {finding["level"] for finding in found} == {"error"}
    expected = place_of.format(config=empty_place.config)
    assert found[0]["message"].startswith(f"{expected}pools.p.timout is not an option: did you mean timeout?")
    assert found[0]["hint"] == PROBLEMS["option"][1]


def test_a_wrong_configuration_is_printed_for_people_too(empty_place: Place) -> None:
    empty_place.upstreams["default"]["pools"] = WRONG
    code, out, _ = called(empty_place, "check")
    assert code == 1
    assert [line[:4] for line in out.splitlines() if line.startswith("E")] == WRONG_IDS
    assert flowing(out).startswith("E002 UPSTREAMS['default']: pools.p.timout is not an option: did you mean")


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_other_verbs_say_the_first_problem_and_who_names_the_others(door: Door, empty_place: Place) -> None:
    empty_place.upstreams["default"]["pools"] = WRONG
    code, out, err = door(empty_place, "list")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "pools.p.timout is not an option" in err
    assert err.endswith(" (and 3 more: the verb check names them all)\n")


def test_a_command_of_flask_that_is_not_ours_names_every_problem_too(empty_place: Place) -> None:
    empty_place.upstreams["default"]["pools"] = WRONG
    done = run(python("-m", "flask", "--app", "tests.cli.app", "routes"), empty_place.environment)
    assert (done.code, done.err) == (1, "flask upstream: 4 errors\n")
    assert "E002 upstreams.default.pools.p.timout: is not an option" in done.out


def test_all_upstreams_are_looked_at_or_the_one_that_is_named(empty_place: Place) -> None:
    empty_place.upstreams["cache"] = {"store": empty_place.url, "pools": MIXED}
    empty_place.upstreams["db"] = {"store": empty_place.url, "pools": WRONG}
    found = json.loads(called(empty_place, "check", "--json").out)
    assert [(each["upstream"], each["id"]) for each in found] == [
        ("cache", "W001"),
        *(("db", wrong) for wrong in WRONG_IDS),
    ]
    assert called(empty_place, "check").out.startswith("W001 upstream cache, pools.p.hosts: ")
    assert called(empty_place, "check", "--upstream", "cache").code == 0
    assert called(empty_place, "check", "--upstream", "default").out == "no problems\n"


@pytest.mark.parametrize("setting", [5, [], {"default": 5}, {5: {}}, {"default": {"STOER": "memory://"}}])
def test_a_setting_of_any_kind_is_checked(setting: Any) -> None:
    out = StringIO()
    with override_settings(UPSTREAMS=setting), pytest.raises(CommandError, match=r"^1 error$"):
        call_command("upstream", "check", stdout=out)
    assert out.getvalue().startswith("E00")


def test_a_store_that_cannot_be_used_fails(place: Place) -> None:
    (place.directory / "store").chmod(0o777)
    for door in (neutral, called):
        code, out, err = door(place, "check")
        assert code == 1
        assert flowing(out).startswith("W008 store: others can write in ")
        assert err.endswith("1 warning\n")


def test_to_check_creates_nothing(empty_place: Place) -> None:
    for door in (neutral, called):
        assert door(empty_place, "check") == (0, "no problems\n", "")
    assert not empty_place.is_there
