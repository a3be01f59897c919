"""What cannot be done, and what is not understood: one line that helps, an exit status, and no traceback."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resty_upstream.cli import VERBS, main
from resty_upstream.cli.signals import Signals
from tests.cli.doors import DOORS, Done, Door, Place, called, flask, manage, neutral, run
from tests.e2e.processes import python

BIDI = "\u202eabc"
LONG = "x" * 300

# ── what was asked cannot be done: 1 ──────────────────────────────────────────────────────────

FAILURES: list[tuple[list[str], str]] = [
    (["show", "x"], "there is no pool 'x'; pools: primary, dr"),
    (["show", BIDI], r"there is no pool '\u202eabc'; pools: primary, dr"),
    (["down-host", "x", "a"], "there is no pool 'x'; pools: primary, dr"),
    (["down-host", "primary", "x"], "there is no host 'x' in pool 'primary'; hosts: a, b"),
    (["up-host", "primary", BIDI], r"there is no host '\u202eabc' in pool 'primary'; hosts: a, b"),
    (["set-weight", "primary", "x", "1"], "there is no host 'x' in pool 'primary'; hosts: a, b"),
    (["remove-host", "primary", "x"], "there is no host 'x' in pool 'primary'; hosts: a, b"),
    (["remove-pool", "x"], "there is no pool 'x'; pools: primary, dr"),
    (["add-host", "x", "10.0.0.1"], "there is no pool 'x'; pools: primary, dr"),
    (["set-method", "x", "hash"], "there is no pool 'x'; pools: primary, dr"),
    (["set-priority", "x", "1"], "there is no pool 'x'; pools: primary, dr"),
    (["down-pool", "x"], "there is no pool 'x'; pools: primary, dr"),
    (["up-pool", "x"], "there is no pool 'x'; pools: primary, dr"),
    (["create-pool", "primary"], "pools.primary exists already"),
    (["add-host", "primary", "10.0.0.1", "--id", "a"], "pools.primary.hosts.a exists already"),
    (["history", "--upstream", "x"], "there is no upstream 'x'; upstreams: default"),
    (["list", "--upstream", "x"], "there is no upstream 'x'; upstreams: default"),
    (["--upstream", BIDI, "list"], r"there is no upstream '\u202eabc'; upstreams: default"),
    (["import", "/nothing/there.json"], "/nothing/there.json: No such file or directory"),
    (["import", "/"], "/: Is a directory"),
    (["import", "/dev/zero"], "/dev/zero: it is not a regular file"),
    (["export", "/nothing/there.json"], "/nothing/there.json: No such file or directory"),
    (["export", "/dev/null"], "/dev/null is not a regular file"),
]


@pytest.mark.parametrize(("asked", "why"), FAILURES, ids=[ascii(" ".join(asked)) for asked, _ in FAILURES])
def test_what_cannot_be_done_is_said_in_one_line(
    asked: list[str], why: str, place: Place, command: Callable[..., Done]
) -> None:
    before = place.upstream.get_pools()
    code, out, err = command(*asked)
    assert (code, out) == (1, "")
    assert err.startswith(f"resty-upstream: {why}")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert place.upstream.get_pools() == before


FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty.json": (b" \n", ["empty.json: it is empty"]),
    "torn.json": (b'{"p": ', ["torn.json: Input data was truncated"]),
    "bytes.json": (b'{"p\xff": {}}', ["bytes.json: "]),
    "bytes.toml": (b'[p\xff]\na = "b"', ["bytes.toml: 'utf-8' codec can't decode"]),
    "torn.toml": (b"[p", ["torn.toml: Expected ']' at the end of a table declaration (at end of document)"]),
    "list.json": (b"[]", ["pools must be a mapping by id, not []"]),
    "null.json": (b"null", ["pools must be a mapping by id, not None"]),
    "deep.json": (b"[" * 100_000, ["deep.json: it is nested too deeply"]),
    "deep.toml": (b"a = " + b"[" * 100_000, ["deep.toml: it is nested too deeply"]),
    "deep-value.json": (b'{"p": {"timeout": ' + b"[" * 500 + b"]" * 500 + b"}}", ["pools.p.timeout must be"]),
    "huge.json": (b'{"p": {"priority": ' + b"9" * 5000 + b"}}", ["huge.json: Integer value out of range"]),
    "surrogate.json": (b'{"\\ud800": {}}', ["surrogate.json: "]),
    "control.json": (b'{"a\\u0000b": {}}', [r"not 'a\x00b'"]),
    "bidi.json": (b'{"\\u202e": 5}', [r"pools.\u202e must be a mapping of options, not 5"]),
    "several.json": (
        json.dumps(
            {"p": {"timout": 3, "hosts": {"a": {"port": 99_999}, "b": 5}}, "q": {"method": "fastest"}}
        ).encode(),
        [
            "pools.p.timout is not an option: did you mean timeout?",
            "pools.p.hosts.a.port must be a number from 1 to 65535, not 99999",
            "pools.p.hosts.a.host must be given",
            "pools.p.hosts.b must be a mapping of options, not 5",
        ],
    ),
    "method.json": (
        b'{"q": {"method": "fastest"}}',
        ["pools.q.method must be one of hash, least_conn, p2c, random, round_robin"],
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["", "--dry-run"])
def test_a_file_that_is_wrong_is_refused_as_a_whole_naming_every_problem(
    name: str, options: list[str], place: Place, command: Callable[..., Done]
) -> None:
    content, problems = FILES[name]
    before = place.upstream.get_pools()
    code, out, err = command("import", place.file(name, content), *options)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    for problem in problems:
        assert problem in err
    assert place.upstream.get_pools() == before


def test_a_pipe_is_no_file_to_import_from_nor_one_to_replace(place: Place, command: Callable[..., Done]) -> None:
    """Opening it would wait for somebody at its other end."""
    pipe = str(place.directory / "pipe.json")
    os.mkfifo(pipe)
    assert command("import", pipe).err == f"resty-upstream: {pipe}: it is not a regular file\n"
    assert command("export", pipe).code == 1
    assert run(python("-m", "resty_upstream", "--config", pipe, "list"), {}).code == 1
    assert Path(pipe).is_fifo()


@pytest.mark.parametrize(
    "url", ["sqlite:///etc/passwd", "sqlite:///etc", "sqlite:///proc/x/y", "sqlite:///dev/null"]
)
def test_a_store_that_is_none_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--store", url, "list"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert url.removeprefix("sqlite://") in err


def test_a_store_in_a_directory_that_others_can_write_is_refused(
    place: Place, command: Callable[..., Done]
) -> None:
    (place.directory / "store").chmod(0o777)
    for verb in (["list"], ["down-host", "primary", "a"], ["create-pool", "x"], ["check"]):
        assert command(*verb).err.startswith("resty-upstream: others can write in"), verb


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@as_root
def test_a_store_of_another_user_is_refused_also_where_its_directory_may_not_be_entered(place: Place) -> None:
    """In a child that has given up its rights, but has all modules already."""
    place.directory.chmod(0o755)
    for mode in (0o700, 0o000):
        (place.directory / "store").chmod(mode)
        reader, writer = os.pipe()
        if not (pid := os.fork()):
            os.setuid(65_534)
            with open(writer, "w") as err, redirect_stderr(err):
                code = main(["--store", place.url, "list"])
                err.flush()
            os._exit(code)
        os.close(writer)
        with open(reader) as err:
            said = err.read()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1, said
        assert said.count("\n") == 1, said


def test_a_damaged_store_is_said_to_be_so(place: Place, command: Callable[..., Done]) -> None:
    """The store sets it aside; who finds it must know."""
    file = place.directory / "store" / "upstreams.db"
    place.store.close()
    file.write_bytes(b"no database" * 1000)
    code, out, err = command("list")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is damaged" in err
    assert "moved to" in err


# ── what was given is not understood: 2 ───────────────────────────────────────────────────────

MISUSES: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: VERB"),
    (["lst"], "there is no verb 'lst': did you mean list?"),
    (["frobnicate"], "there is no verb 'frobnicate': there are list, show, "),
    (["--wieght", "list"], "there is no option '--wieght'"),
    (["list", "--jsn"], "there is no option '--jsn': did you mean --json?"),
    (["list", "--js"], "there is no option '--js': did you mean --json?"),
    (["list", "more"], "'more' is one argument too many"),
    (["show"], "the following arguments are required: POOL"),
    (["down-host", "primary"], "the following arguments are required: HOST"),
    (["show", ""], "argument POOL: must be 1 to 200 characters of text"),
    (["show", LONG], "argument POOL: must be 1 to 200 characters of text"),
    (["show", "a\nb"], "argument POOL: must be 1 to 200 characters of text"),
    (["show", "a\x00b"], "argument POOL: must be 1 to 200 characters of text"),
    (["show", "\x1b[31m"], "argument POOL: must be 1 to 200 characters of text"),
    (["show", "\udcff"], r"argument POOL: must be 1 to 200 characters of text"),
    (["down-host", "primary", ""], "argument HOST: must be 1 to 200 characters of text"),
    (["set-weight", "primary", "a", "heavy"], "argument N: must be a number from 0 to 1000000, not 'heavy'"),
    (["set-weight", "primary", "a", "-1"], "argument N: must be a number from 0 to 1000000, not '-1'"),
    (["set-weight", "primary", "a", "1.5"], "argument N: must be a number"),
    (["set-weight", "primary", "a", "nan"], "argument N: must be a number"),
    (["set-priority", "dr", "high"], "argument N: must be a whole number from -2147483648"),
    (["set-method", "dr", "fastest"], "argument METHOD: must be one of hash, least_conn, p2c, random"),
    (["create-pool", "x", "--method", "fastest"], "argument --method: must be one of hash, least_conn, p2c"),
    (["create-pool", "x", "--timeout", "soon"], "argument --timeout: must be a number of milliseconds"),
    (["create-pool", "x", "--timeout", "-1"], "argument --timeout: must be a number of milliseconds"),
    (["create-pool", "x", "--timeout", "inf"], "argument --timeout: must be a number of milliseconds"),
    (["create-pool", "x", "--max-fails", "-1"], "argument --max-fails: must be a number from 0"),
    (["create-pool", "x", "--failed-timeout", "0"], "argument --failed-timeout: must be a number of seconds"),
    (["create-pool", "x", "--failed-timeout-max", ""], "argument --failed-timeout-max: must be"),
    (["add-host", "dr", "10.0.0.1", "--port", "70000"], "argument --port: must be a number from 1 to 65535"),
    (["add-host", "dr", "10.0.0.1:70000"], "argument ADDRESS: its port must be a number from 1 to 65535"),
    (["add-host", "dr", "10.0.0.1:"], "argument ADDRESS: its port must be a number from 1 to 65535, not ''"),
    (["add-host", "dr", "[::1"], "argument ADDRESS: must be a host name, an IP address"),
    (["add-host", "dr", "a:b:c"], "argument ADDRESS: must be a host name, an IP address"),
    (["add-host", "dr", "a b"], "argument ADDRESS: must be a host name, an IP address"),
    (["add-host", "dr", ""], "argument ADDRESS: must be a host name, an IP address"),
    (["add-host", "dr", "unix:run"], "argument ADDRESS: must be a host name, an IP address"),
    (["add-host", "dr", BIDI], "argument ADDRESS: must be a host name, an IP address"),
    (["add-host", "dr", "a:80", "--port", "81"], "the address has a port, and --port is another"),
    (["add-host", "dr", "a", "--id", ""], "argument --id: must be 1 to 200 characters of text"),
    (["create-pool", "x", "--slow-start", "-1"], "argument --slow-start: must be a number of seconds from 0"),
    (["create-pool", "--healthcheck", "x"], "argument --healthcheck: must be a path that begins with /"),
    (["create-pool", "x", "--healthcheck", "/a b"], "argument --healthcheck: must be a path that begins with /"),
    (["history", "--limit", "0"], "argument --limit: must be a number above 0, not '0'"),
    (["history", "--limit", "few"], "argument --limit: must be a number from 0"),
    (["history", "primary"], "'primary' is one argument too many"),
    (["run-checks", "primary"], "'primary' is one argument too many"),
    (["run-checks", "--interval", "1"], "there is no option '--interval'"),
    (["down-host", "primary", "a", "--reason"], "argument --reason: expected one argument"),
    (["down-host", "primary", "a", "--reason", LONG], "argument --reason: must be at most 200 characters"),
    (["down-host", "primary", "a", "--until", "later"], "argument --until: must be a time like 15:00, or like "),
    (["down-host", "primary", "a", "--until", "25:00"], "argument --until: must be a time like 15:00, or like "),
    (["down-host", "primary", "a", "--until", "2020-01-01"], "until must be a time to come, within a year: "),
    (["down-host", "primary", "a", "--until", "9999-12-31"], "until must be a time to come, within a year: "),
    (["down-host", "primary", "a", "--for", "ever"], "argument --for: must be a number of seconds above 0"),
    (["set-weight", "primary", "a", "0", "--for", "0"], "argument --for: must be a number of seconds above 0"),
    (["set-weight", "primary", "a", "0", "--for", "1m", "--until", "15:00"], "--until and --for say the same"),
    (["up-host", "primary", "a", "--for", "1m"], "there is no option '--for'"),
    (["watch", "--interval", "0"], "argument --interval: must be a number of seconds above 0"),
    (["watch", "--interval", "often"], "argument --interval: must be a number of seconds above 0"),
    (["import"], "the following arguments are required: FILE"),
    (["import", ""], "argument FILE: must be the name of a file, not ''"),
    (["import", "a\x00b"], r"argument FILE: must be the name of a file, not 'a\x00b'"),
    (["export", "a\x00b"], r"argument FILE: must be the name of a file, not 'a\x00b'"),
    (["completion", "tcsh"], "there is no shell 'tcsh': there are bash, zsh, fish"),
    (["--upstream"], "argument --upstream: expected one argument"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "why"), MISUSES, ids=[ascii(" ".join(asked))[:60] for asked, _ in MISUSES])
def test_what_is_not_understood_is_said_in_one_line_that_ends_with_how_to_get_help(
    asked: list[str], why: str, place: Place, command: Callable[..., Done]
) -> None:
    code, out, err = command(*asked)
    assert (code, out) == (2, "")
    assert err.startswith(f"resty-upstream: {why}")
    verb = asked[0] if "verb" not in why.lower() and not asked[0].startswith("-") else ""
    assert err.endswith(f" (see {f'resty-upstream {verb}'.rstrip()} --help)\n")
    assert err[:-1].isprintable()


PLACES: list[tuple[list[str], dict[str, str], int, str]] = [
    (["list"], {}, 2, "name the store: with --store URL, --config FILE or $RESTY_UPSTREAM_STORE"),
    (["list"], {"RESTY_UPSTREAM_STORE": ""}, 2, "name the store: with --store URL"),
    (["--store", "", "list"], {}, 2, "--store must be a URL as sqlite:///run/myapp/upstreams.db, not ''"),
    (["--store", "/run/x.db", "list"], {}, 2, "--store must be a URL as"),
    (["--store", "sqlite://me:secret@x/y", "list"], {}, 2, "--store must be a URL as"),
    (["--store", "sqlite://x/y", "list"], {}, 2, "--store must be a URL as"),
    (
        ["--store", "sqlite:///a\x00b", "list"],
        {},
        2,
        r"--store must be a URL as sqlite:///run/myapp/upstreams.db, not 'sqlite:///a\x00b'",
    ),
    (["list"], {"RESTY_UPSTREAM_STORE": "x"}, 2, "$RESTY_UPSTREAM_STORE must be a URL as"),
    (["--store", "sqlite:///a/b", "--config", "c.toml", "list"], {}, 2, "--store and --config name two places"),
    (["list", "--config", ""], {}, 2, "argument --config: must be the name of a file, not ''"),
    (["--config", "nothing.toml", "list"], {}, 1, "nothing.toml: No such file or directory"),
    (["--config", "/", "list"], {}, 1, "/: the name of the file must end in .toml or .json"),
    (["--store", "memory://", "list"], {}, 1, "--store is memory://, in the memory of one process"),
    (["--store", "memory://", "run-checks"], {}, 1, "--store is memory://, in the memory of one process"),
    (["--store", "sqlite:///nothing/upstreams.db", "history"], {}, 1, "there is no store at sqlite:///nothing"),
    (
        ["list"],
        {"RESTY_UPSTREAM_STORE": "memory://"},
        1,
        "$RESTY_UPSTREAM_STORE is memory://, in the memory of one",
    ),
    (
        ["--store", "sqlite:///nothing/upstreams.db", "list"],
        {},
        1,
        "there is no store at sqlite:///nothing/upstreams.db: name the one that the application uses",
    ),
]


@pytest.mark.parametrize(("asked", "environment", "code", "why"), PLACES)
def test_a_place_that_is_none_is_refused(
    asked: list[str],
    environment: dict[str, str],
    code: int,
    why: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(asked) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"resty-upstream: {why}")
    assert "secret" not in err


@pytest.mark.parametrize(
    ("door", "prefix", "prog"),
    [
        (neutral, "resty-upstream: ", "resty-upstream"),
        (manage, "CommandError: ", "manage.py upstream"),
        (called, "", "upstream"),
        (flask, "flask upstream: ", "flask upstream"),
    ],
    ids=DOORS,
)
def test_each_door_says_in_one_line_what_is_wrong(door: Door, prefix: str, prog: str, place: Place) -> None:
    assert door(place, "show", "x") == (1, "", f"{prefix}there is no pool 'x'; pools: primary, dr\n")
    assert door(place, "set-weight", "primary", "a", "heavy") == (
        2,
        "",
        f"{prefix}argument N: must be a number from 0 to 1000000, not 'heavy' (see {prog} set-weight --help)\n",
    )


def test_what_is_given_in_bytes_that_are_no_text_is_refused(place: Place) -> None:
    command = [*map(os.fsencode, python("-m", "resty_upstream", "--store", place.url, "show")), b"\xff\xfe"]
    code, out, err = run(command, {})
    assert (code, out) == (2, "")
    assert r"not '\udcff\udcfe'" in err


# ── where it prints ───────────────────────────────────────────────────────────────────────────


def in_shell(place: Place, line: str) -> Done:
    """A line of bash; ``$C`` is the command."""
    command = f"{sys.executable} -m resty_upstream --store {place.url}"
    return run(["bash", "-c", f"set -o pipefail; C={command!r}; {line}"], {})


def test_a_reader_that_goes_away_is_none_to_complain_to(place: Place) -> None:
    for verb in ("list", "--help"):
        code, _, err = in_shell(place, f"$C {verb} | true")
        assert (code, err) == (0, "")
    environment = place.environment
    for command in (
        python("example_project/manage.py", "upstream"),
        python("-m", "flask", "--app", "tests.cli.app", "upstream"),
    ):
        done = run(["bash", "-c", f"set -o pipefail; {' '.join(command)} list | true"], environment)
        assert (done.code, done.err) == (0, "")


def test_what_cannot_be_written_is_said(place: Place) -> None:
    assert in_shell(place, "$C list > /dev/full") == (1, "", "resty-upstream: No space left on device\n")
    assert in_shell(place, "$C list >&-") == (0, "", "")
    assert in_shell(place, "$C show x 2>&-") == (1, "", "")


def test_an_encoding_that_lacks_a_character_is_no_reason_to_fail(place: Place) -> None:
    place.api.create_pool("größe")
    done = run(python("-m", "resty_upstream", "--store", place.url, "list"), {"PYTHONIOENCODING": "ascii"})
    assert done.code == 0
    assert r"pool gr\xf6\xdfe: " in done.out


# ── anything ──────────────────────────────────────────────────────────────────────────────────

_VERBS = [verb.name for verb in VERBS]
_WORDS = """
    --json --upstream default --store --config --key --port --weight --id --timeout --dry-run --strict --interval
    -- - -h --help --version primary dr a b c x 0 5 -5 10.0.0.9:8001 [::1] unix:/x hash bash = --upstream=default
    --json=1 memory:// sqlite:///etc/passwd
"""
words = st.sampled_from([*_VERBS, *_WORDS.split(), "", "\x00", "\udcff", BIDI, LONG])


@example(["show", "\ud800"])
@example(["--upstream", "\x00", "create-pool", "x"])
@given(st.lists(words | st.text(max_size=8), max_size=6))
@settings(max_examples=300)
def test_whatever_is_given_it_ends_with_one_of_three_codes_and_at_most_one_line(
    tmp_path_factory: pytest.TempPathFactory, asked: list[str]
) -> None:
    directory = _sandbox(tmp_path_factory)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(sys, "stdin", io.StringIO("{}"))
        patch.setattr(Signals, "wait", _interrupted)
        patch.setenv("RESTY_UPSTREAM_STORE", f"sqlite://{directory}/store/upstreams.db")
        code = main(asked)
    assert code in {0, 1, 2}
    assert err.getvalue().count("\n") <= 1
    assert "Traceback" not in err.getvalue()
    assert (code == 0) or err.getvalue()
    assert all(line.isprintable() for line in (err.getvalue() + out.getvalue()).split("\n"))


def _interrupted(_signals: Signals, _seconds: float) -> Any:
    """As if Ctrl-C had been pressed."""
    return frozenset({2})


_directories: list[Path] = []


def _sandbox(factory: pytest.TempPathFactory) -> Path:
    """One directory for all examples, in which commands may write what they will."""
    if not _directories:
        directory = factory.mktemp("anything")
        with Place(directory) as place:
            place.configure()
        _directories.append(directory)
    return _directories[0]
