"""The programs of the README, each typed into an empty directory, in the server that it names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.processes import ROOT, Ports, Process, get, wait_until, wait_until_answers
from tests.helpers import Peer, answer_http

CHAPTER = re.compile(r"^## In your framework\n.*?(?=^## )", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|toml))\n")
SERVERS = ("gunicorn", "uvicorn")
README = (ROOT / "README.md").read_text("utf-8")


class Program(NamedTuple):
    """What one section of the README has the reader type."""

    files: Mapping[str, str]
    server: str
    commands: list[str]
    """What is run beside the server."""
    answers: list[str]
    """What the reader is told to expect of ``curl``."""


def files_in(text: str) -> dict[str, str]:
    """The files among the blocks of a text, by the name in their first line."""
    return {
        match[1]: code
        for _, code in BLOCK.findall(text)
        if (match := FILE.match(code)) and match[1] != "settings.py"
    }


def program(text: str) -> Program:
    """The program of a section: its first console block says how it is run."""
    console = next(code for kind, code in BLOCK.findall(text) if kind == "console").splitlines()
    commands = [line.removeprefix("$ ") for line in console if line.startswith("$ ")]
    return Program(
        files={"upstreams.toml": files_in(README)["upstreams.toml"]} | {"app.py": files_in(text)["app.py"]},
        server=next(command for command in commands if command.startswith(SERVERS)),
        commands=[c for c in commands if not c.startswith((*SERVERS, "pip install", "curl "))],
        answers=[line for line in console if not line.startswith("$ ")],
    )


PROGRAMS = {
    title: program(text) for chapter in CHAPTER.findall(README) for title, text in SECTION.findall(chapter)
}


class Place:
    """An empty directory with a program in it, and two back ends; other ports than those of the README."""

    def __init__(self, program: Program, directory: Path, ports: Mapping[str, int]) -> None:
        self.directory = directory
        self._ports = ports
        self.site = ports["8000"]
        self._environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "HOME": str(directory),
            "LANG": "C.UTF-8",
        }
        (directory / "run").mkdir()
        for name, content in program.files.items():
            (directory / name).write_text(self._with_ports(content))

    def _with_ports(self, text: str) -> str:
        return re.sub(r"\b800[012]\b", lambda match: str(self._ports[match[0]]), text)

    def start(self, command: str) -> Process:
        """Start the server, on another port than it would choose."""
        name, *arguments = shlex.split(command)
        where = ["--port", str(self.site)] if name == "uvicorn" else ["--bind", f"127.0.0.1:{self.site}"]
        return Process([name, *where, *arguments], self._environment, self.directory / "log", cwd=self.directory)

    def run(self, command: str) -> str:
        """What a command prints, which must succeed."""
        done = subprocess.run(
            shlex.split(self._with_ports(command)),
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr, done.stderr
        return done.stdout


def test_the_programs_are_found() -> None:
    """A guard: each framework has its section."""
    titles = "Django", "Starlette", "FastAPI", "Flask", "Werkzeug"
    assert [title.partition(",")[0] for title in PROGRAMS] == list(titles)


@pytest.mark.parametrize("title", PROGRAMS)
def test_a_program_works_as_it_stands(title: str, ports: Ports, tmp_path: Path) -> None:
    """It answers as the README says, goes on when a back end dies, and obeys the command line."""
    program = PROGRAMS[title]
    with ExitStack() as stack:
        backends = [stack.enter_context(Peer(answer_http(b"hello"))) for _ in range(2)]
        numbers = {"8000": ports.reserve(), "8001": backends[0].port, "8002": backends[1].port}
        place = Place(program, tmp_path, numbers)
        server = stack.enter_context(place.start(program.server))
        wait_until_answers(server, place.site, "/")
        (expected,) = program.answers
        hosts = {text(get(place.site, "/").body) for _ in range(20)}
        assert {normal(expected, "a"), normal(expected, "b")} == {normal(answer) for answer in hosts}

        printed = {command: place.run(command) for command in program.commands}
        listed = next(output for command, output in printed.items() if command.endswith("list"))
        assert f"127.0.0.1:{numbers['8001']}" in listed
        if any("down-host primary a" in command for command in printed):
            assert {normal(text(get(place.site, "/").body)) for _ in range(10)} == {normal(expected, "b")}
        else:
            backends[0].stop()
            assert {normal(text(get(place.site, "/").body)) for _ in range(10)} == {normal(expected, "b")}
            wait_until(lambda: "failed" in place.run(list_command(program)), "the list shows the failed host")
    assert "Traceback" not in server.printed()


def list_command(program: Program) -> str:
    return next(command for command in program.commands if command.endswith("list"))


def text(body: bytes) -> str:
    return body.decode().strip()


def normal(answer: str, host: str | None = None) -> str:
    """An answer, with ``host`` in the place of the one that answered, and without the version of HTTP."""
    answer = re.sub(r"HTTP/1\.\d", "HTTP", answer)
    return answer if host is None else re.sub(r'(host )[ab]|(:")[ab](?=")', rf"\g<1>\g<2>{host}", answer)
