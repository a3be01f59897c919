"""Which upstream is meant, and in which store."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings
from flask import Flask

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.cli import main
from resty_upstream.contrib.django import get_upstream
from resty_upstream.contrib.flask import Upstreams
from tests.cli.doors import POOLS, Done, Place, called, flask, manage, neutral, run
from tests.e2e.processes import python

Command = Callable[..., Done]
SMALL: dict[str, Any] = {"small": {"hosts": {"a": {"host": "192.0.2.1"}}}}


def begin(place: Place, *names: str) -> None:
    """Upstreams of these names in the store, and nothing else."""
    place.upstreams = {name: {"store": place.url, "pools": SMALL} for name in names}
    place.configure()


# ── names ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("asked", ["--upstream cache list", "list --upstream cache", "list --upstream=cache"])
def test_an_upstream_is_named_before_or_after_the_verb(asked: str, place: Place, command: Command) -> None:
    Upstream(place.store, id="cache").configure(SMALL)
    assert command(*asked.split()).out.startswith("upstream cache: ")
    assert command("list").out.startswith("upstream default: ")


@pytest.mark.parametrize("door", [neutral, manage, flask])
def test_each_door_takes_the_name_before_and_after_the_verb(door: Callable[..., Done], place: Place) -> None:
    place.upstreams["cache"] = {"store": place.url, "pools": SMALL}
    assert door(place, "--upstream", "cache", "list").out.startswith("upstream cache: ")
    assert door(place, "list", "--upstream", "x").err.endswith(
        "there is no upstream 'x'; upstreams: default, cache\n"
    )


def test_the_only_upstream_is_meant_where_none_is_named_default(empty_place: Place, command: Command) -> None:
    begin(empty_place, "cache")
    assert command("list").out.startswith("upstream cache: ")
    assert command("create-pool", "new").code == 0
    assert "new" in Upstream(empty_place.store, id="cache").get_pools()


@pytest.fixture
def command(empty_place: Place, capsys: pytest.CaptureFixture[str]) -> Command:
    """``resty-upstream --store … `` in this process; the store may not be there."""

    def run(*arguments: str) -> Done:
        code = main(["--store", empty_place.url, *arguments])
        return Done(code, *capsys.readouterr())

    return run


def test_of_several_without_a_default_one_must_be_chosen(empty_place: Place, command: Command) -> None:
    begin(empty_place, "cache", "db")
    for verb in (["list"], ["create-pool", "x"], ["watch"]):
        assert command(*verb) == (
            1,
            "",
            "resty-upstream: no upstream is named default: choose one with --upstream (cache, db)\n",
        )
    assert command("check").out.count("W002") == 2  # it looks at all of them


# ── stores ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "asked",
    [
        "list", "show p", "explain", "check", "watch", "export", "remove-pool p", "set-method p hash",
        "set-priority p 1", "set-weight p a 1", "add-host p a", "remove-host p a", "down-host p a", "up-host p a",
        "down-pool p", "up-pool p",
    ],
)  # fmt: skip
def test_a_store_that_is_not_there_is_not_created(asked: str, empty_place: Place, command: Command) -> None:
    why = f"there is no store at {empty_place.url}: name the one that the application uses"
    assert command(*asked.split()) == (1, "", f"resty-upstream: {why}\n")
    assert command("--upstream", "x", *asked.split()) == (1, "", f"resty-upstream: {why}\n")
    assert not empty_place.is_there


def test_a_store_and_an_upstream_may_begin_with_a_pool(empty_place: Place, command: Command) -> None:
    assert command("create-pool", "p").out == "pool p is created, without hosts\n"
    assert list(empty_place.upstream.get_pools()) == ["p"]
    assert command("--upstream", "cache", "create-pool", "q").code == 0
    assert list(Upstream(empty_place.store, id="cache").get_pools()) == ["q"]
    assert empty_place.store.namespaces() == ["cache", "default"]


def test_a_store_and_an_upstream_may_begin_with_an_import(empty_place: Place, command: Command) -> None:
    file = empty_place.file("pools.json", '{"p": {}}')
    assert command("--upstream", "cache", "import", file, "--dry-run").out == "pools.p would be added\n"
    assert not empty_place.is_there
    assert command("--upstream", "cache", "import", file).out == "upstream cache has 1 pool with 0 hosts\n"
    assert empty_place.store.namespaces() == ["cache"]


def test_an_unknown_name_is_refused_with_those_that_the_store_holds(empty_place: Place, command: Command) -> None:
    begin(empty_place, "cache", "default")
    assert command("--upstream", "x", "down-host", "small", "a").err == (
        "resty-upstream: there is no upstream 'x'; upstreams: cache, default\n"
    )


def test_a_store_may_be_named_by_the_environment(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTY_UPSTREAM_STORE", place.url)
    assert main(["list"]) == 0
    assert main(["--config", place.config, "list"]) == 0  # what is given counts more
    assert main(["list", "--store", "sqlite:///nothing/upstreams.db"]) == 1
    assert main(["list", "--store", place.url]) == 0


def test_a_file_of_configuration_names_the_stores_and_declares_the_pools(empty_place: Place) -> None:
    empty_place.upstreams["cache"] = {"store": empty_place.url, "pools": SMALL}
    assert neutral(empty_place, "--upstream", "cache", "down-host", "small", "a").code == 0
    assert not Upstream(empty_place.store, id="cache").get_pools()["small"]["hosts"]["a"]["up"]
    assert neutral(empty_place, "--upstream", "x", "create-pool", "p").err == (
        "resty-upstream: there is no upstream 'x'; upstreams: default, cache\n"
    )


def test_who_looks_does_not_bring_in_what_is_declared_anew(place: Place) -> None:
    """A command in a new release, beside the running site: it shows what runs."""
    place.upstreams["default"]["pools"] = SMALL
    for door in (neutral, called):
        assert "pool primary: " in door(place, "list").out
    assert list(place.upstream.get_pools()) == ["primary", "dr"]


# ── memory ────────────────────────────────────────────────────────────────────────────────────

MEMORY = {"default": {"store": "memory://", "pools": POOLS}}


@pytest.mark.parametrize("door", [neutral, manage, flask])
def test_a_store_in_the_memory_of_another_process_is_refused(
    door: Callable[..., Done], empty_place: Place
) -> None:
    empty_place.upstreams = MEMORY
    code, out, err = door(empty_place, "list")
    assert (code, out) == (1, "")
    assert err.endswith(
        "the store of upstream default is memory://, in the memory of one process: no other can see it\n"
    )


def test_the_configuration_of_a_store_in_memory_can_be_checked(empty_place: Place) -> None:
    empty_place.upstreams = MEMORY
    assert neutral(empty_place, "check") == (0, "no problems\n", "")


def test_django_changes_a_store_in_its_own_memory() -> None:
    with override_settings(UPSTREAMS={"default": {"STORE": "memory://", "POOLS": POOLS}}):
        out = StringIO()
        call_command("upstream", "down-host", "primary", "a", stdout=out)
        call_command("upstream", "list", stdout=out)
        assert not get_upstream().get_pools()["primary"]["hosts"]["a"]["up"]
    assert "down by hand" in out.getvalue()


def test_flask_changes_a_store_in_its_own_memory() -> None:
    """By the app's own runner, as tests use it."""
    app = Flask("app")
    Upstreams(app, MEMORY)
    result = app.test_cli_runner().invoke(args=["upstream", "down-host", "primary", "a"])
    assert (result.exit_code, result.output) == (0, "host primary/a is down\n")
    assert not app.extensions["resty_upstream"]["default"].get_pools()["primary"]["hosts"]["a"]["up"]
    assert app.test_cli_runner().invoke(args=["upstream", "show", "x"]).exit_code == 1


# ── Django ────────────────────────────────────────────────────────────────────────────────────


def test_django_passes_options_by_name(place: Place) -> None:
    setting = {"default": {"STORE": place.url}, "cache": {"STORE": place.url, "POOLS": SMALL}}
    with override_settings(UPSTREAMS=setting):
        out = StringIO()
        call_command("upstream", "list", upstream="cache", json=True, stdout=out)
        assert '"upstream": "cache"' in out.getvalue()
        call_command("upstream", "add-host", "small", "10.0.0.1", weight=5, id="x", upstream="cache")
        assert UpstreamAPI(get_upstream("cache")).get_pools()["small"]["hosts"]["x"]["weight"] == 5


@pytest.mark.parametrize("asked", [["lst"], ["show", "x"], ["set-weight", "primary", "a", "heavy"], []])
def test_django_raises_what_a_process_would_print(asked: list[str], place: Place) -> None:
    with override_settings(UPSTREAMS={"default": {"STORE": place.url}}):
        with pytest.raises(CommandError) as raised:
            call_command("upstream", *asked)
        assert raised.value.returncode == (1 if asked == ["show", "x"] else 2)


def test_djangos_own_options_are_taken_before_and_after_the_verb(place: Place) -> None:
    options = ["--settings=tests.cli.settings", "--pythonpath=/", "-v2", "--no-color", "--traceback"]
    for asked in ([*options, "list"], ["list", *options]):
        done = run(
            python("example_project/manage.py", "upstream", *asked),
            {**place.environment, "DJANGO_SETTINGS_MODULE": "nothing.there"},
        )
        assert (done.code, done.err) == (0, "")
    failing = run(python("example_project/manage.py", "upstream", "show", "x", "--traceback"), place.environment)
    assert failing.code == 1
    assert "Traceback" in failing.err  # as it was asked for


def test_the_commands_start_where_no_home_nor_directory_is(place: Place, tmp_path: Path) -> None:
    """As under a service manager."""
    command = python("-m", "resty_upstream", "--store", place.url, "list")
    assert run(command, {"HOME": "/nothing"}, cwd="/").code == 0
