"""Completion in the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resty_upstream import UpstreamAPI
from resty_upstream.cli import VERBS, main
from resty_upstream.cli.arguments import METHODS
from resty_upstream.methods import find_method
from tests.cli.doors import Done, Place, run
from tests.cli.terminal import Terminal
from tests.e2e.processes import python

VERB_NAMES = {verb.name for verb in VERBS}
SHELLS = ("bash", "zsh", "fish")


def path_of(shell: str) -> str:
    """Where a shell is; the tests need all of them."""
    path = shutil.which(shell)
    assert path, f"the tests need {shell}: install it, on Debian and Ubuntu with: apt-get install {shell}"
    return path


@pytest.fixture(scope="module")
def bin_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the command ``resty-upstream``, as it is installed."""
    directory = tmp_path_factory.mktemp("bin")
    command = directory / "resty-upstream"
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom resty_upstream.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    return directory


@pytest.fixture
def environment(place: Place, bin_directory: Path) -> dict[str, str]:
    """What a shell finds."""
    return {
        "PATH": f"{bin_directory}:{os.environ['PATH']}",
        "HOME": str(place.directory),
        "RESTY_UPSTREAM_STORE": place.url,
    }


# ── asked as the shells ask ───────────────────────────────────────────────────────────────────

Ask = Callable[..., set[str]]


@pytest.fixture
def complete(place: Place) -> Ask:
    """What is offered after a line, by the process that shells start."""

    def ask(line: str, **environment: str) -> set[str]:
        reader, writer = os.pipe()
        asking = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SHELL": "bash",
            "COMP_LINE": f"resty-upstream {line}",
            "COMP_POINT": str(len(f"resty-upstream {line}".encode())),
            "COMP_TYPE": "9",
            "RESTY_UPSTREAM_STORE": place.url,
        }
        command = ["bash", "-c", 'exec 8>&"$1"; shift; exec "$@"', "-", str(writer)]
        done = run([*command, *python("-m", "resty_upstream")], asking | environment, pass_fds=[writer])
        os.close(writer)
        with open(reader) as offered:
            words = {word.strip() for word in offered.read().split("\n")} - {""}
        assert (done.code, done.out, done.err) == (0, "", "")
        return words

    return ask


def test_verbs_options_and_what_the_store_holds_are_offered(place: Place, complete: Ask) -> None:
    assert complete("") == VERB_NAMES
    assert complete("--") == {"--help", "--version", "--upstream", "--store", "--config"}
    assert complete("create-pool --f") == {"--failed-timeout", "--failed-timeout-max"}
    assert complete("show ") == {"primary", "dr"}
    assert complete("set-weight primary ") == {"a", "b"}
    assert complete("--upstream default up-host dr ") == {"c"}
    assert complete("set-method primary ") == {"round_robin", "random", "hash", "least_conn", "p2c"}
    assert complete("create-pool new --method r") == {"round_robin", "random"}
    assert complete("list --upstream ") == {"default"}


def test_nothing_is_offered_where_only_the_user_knows(place: Place, complete: Ask) -> None:
    for line in ("create-pool ", "add-host primary ", "up-host x "):
        assert complete(line) == set(), line


def test_the_store_that_is_named_on_the_line_counts(place: Place, complete: Ask, tmp_path: Path) -> None:
    with Place(tmp_path / "other", {"q": {}}) as other:
        other.configure()
        assert complete(f"show --store {other.url} ") == {"q"}
    assert complete(f"--config {place.config} show ", RESTY_UPSTREAM_STORE="") == {"primary", "dr"}


def test_where_there_is_no_store_nothing_is_offered_said_or_created(
    empty_place: Place, complete: Ask, tmp_path: Path
) -> None:
    nothing = f"sqlite://{tmp_path}/nothing/upstreams.db"
    for store in (nothing, "memory://", "nonsense", "sqlite:///etc/passwd"):
        assert complete("show ", RESTY_UPSTREAM_STORE=store) == set()
    assert complete("--config /nothing.toml show ") == set()
    assert not (tmp_path / "nothing").exists()


def test_what_a_terminal_would_not_print_is_not_offered(place: Place, complete: Ask) -> None:
    place.api.create_pool("\u202eabc")
    assert complete("show ") == {"primary", "dr"}


def test_the_methods_that_are_offered_are_those_that_there_are() -> None:
    assert all(find_method(method) for method in METHODS)
    with pytest.raises(Exception, match=f"must be one of {', '.join(sorted(METHODS))}, not"):
        find_method("nothing")


def test_without_argcomplete_it_is_said_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setitem(sys.modules, "argcomplete.shell_integration", None)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr() == (
        "",
        "resty-upstream: completion needs argcomplete: pip install 'resty-upstream[completion]'\n",
    )


def test_argcomplete_is_not_loaded_for_anything_else(place: Place) -> None:
    listing = f"from resty_upstream.cli import main; main(['--store', {place.url!r}, 'list'])"
    done = run(python("-c", f"import sys; {listing}; print(*sys.modules)"), {})
    assert "resty_upstream.cli.completion" in done.out.split()
    assert "argcomplete" not in done.out.split()


# ── in the shells ─────────────────────────────────────────────────────────────────────────────

SET_UP = {
    "bash": 'eval "$(resty-upstream completion bash)"',
    "zsh": 'autoload -U compinit; compinit -u -d "$HOME/dump"; eval "$(resty-upstream completion zsh)"',
    "fish": "resty-upstream completion fish | source",
}
START = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
    "fish": ["--no-config", "--private", "-i"],
}


def in_shell(shell: str, line: str, environment: dict[str, str]) -> Done:
    """A line in a shell that nobody looks at."""
    return run([path_of(shell), "-c", f"{SET_UP[shell]}; {line}"], environment)


def test_bash_asks_the_command(environment: dict[str, str]) -> None:
    line = (
        'COMP_LINE="resty-upstream down-host primary "; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; '
        'complete -p resty-upstream; _python_argcomplete resty-upstream; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    code, out, err = in_shell("bash", line, environment)
    assert (code, err) == (0, "")
    registered, *offered = out.splitlines()
    assert registered.endswith("-F _python_argcomplete resty-upstream")
    assert offered == ["a", "b"]


def test_fish_asks_the_command_and_shows_what_each_verb_does(environment: dict[str, str]) -> None:
    code, out, err = in_shell(
        "fish", 'complete -C "resty-upstream down-"; complete -C "resty-upstream up-host primary "', environment
    )
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "down-host\ttake a host down by hand",
        "down-pool\ttake a pool out of use",
        "a",
        "b",
    ]


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, place: Place, environment: dict[str, str]) -> Iterator[Terminal]:
    """A shell that somebody types into."""
    name = request.param
    UpstreamAPI(place.upstream).create_pool("payments")
    quiet = {"PS1": "$ ", "PROMPT": "$ ", "ZDOTDIR": environment["HOME"], "XDG_CONFIG_HOME": environment["HOME"]}
    with Terminal([path_of(name), *START[name]], environment=environment | quiet, columns=120) as terminal:
        terminal.type(f"{SET_UP[name]}; echo re''ady\r")
        terminal.wait_for("(?m)^ready")
        yield terminal


def test_who_presses_tab_in_a_shell_gets_the_rest_of_the_word(shell: Terminal) -> None:
    """A verb, a pool of the store, and a host of the pool; then the line is run."""
    shell.type("resty-upstream down-h\t")
    shell.wait_for(r"resty-upstream down-host\Z")
    shell.type("prim\t")
    shell.wait_for(r"down-host primary\Z")
    shell.type("a\r")
    shell.wait_for("(?m)^host primary/a is down")
    shell.type("resty-upstream show pay\t\r")
    shell.wait_for("(?m)^pool payments: ")


def test_who_presses_tab_twice_in_a_shell_gets_a_list(shell: Terminal) -> None:
    shell.type("resty-upstream show \t\t")
    shell.wait_for(r"primary")
    shell.wait_for(r"payments")
    shell.wait_for(r"\bdr\b")


def test_the_command_that_is_installed_is_this_one() -> None:
    command = Path(sys.executable).parent / "resty-upstream"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("resty-upstream ")
