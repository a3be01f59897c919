"""An application installed with the files of ``contrib/``, in a directory instead of ``/srv`` and ``/run``."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from resty_upstream import Upstreams
from tests.e2e.processes import Process, get
from tests.operators.commands import CONTRIB

MYAPP = Path(__file__).parent / "myapp"

# What systemd does for a unit with a socket: the listening descriptor is number 3, and variables say so.
_WITH_SOCKET = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def read_unit(path: Path) -> dict[str, list[str]]:
    """The settings of a unit file, each with its values in their order."""
    settings: dict[str, list[str]] = {}
    for line in path.read_text().replace("\\\n", "").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


class Installed:
    """The application and its configuration, as the files of ``contrib/`` expect them.

    :param options: of the pool, in TOML.
    :param host_port: of its one host, which no call connects to, but checks do.
    """

    def __init__(self, root: Path, options: str = "", host_port: int = 1) -> None:
        self.root = root
        self.srv = root / "srv" / "myapp"
        self.run = root / "run"
        self.store = self.run / "myapp" / "upstreams.db"
        self.socket = self.run / "myapp.sock"
        shutil.copytree(MYAPP, self.srv / "myapp", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(CONTRIB / "gunicorn.conf.py", self.srv)
        (self.srv / "upstreams.toml").write_text(
            f'[default]\nstore = "sqlite://{self.store}"\ntrusted_proxies = ["unix"]\n'
            f'[default.pools.p]\nmethod = "hash"\n{options}\n'
            f'[default.pools.p.hosts]\na = {{ host = "127.0.0.1", port = {host_port} }}\n'
        )
        self.run.mkdir()

    def here(self, text: str) -> str:
        """A text of ``contrib/`` with this application's places in it."""
        text = text.replace("/srv/myapp/.venv/bin", os.path.dirname(sys.executable))
        return text.replace("/srv/myapp", str(self.srv)).replace("/run/myapp", str(self.run / "myapp"))

    def command_of(self, unit: str) -> list[str]:
        """What a unit starts, with its socket where it has one."""
        settings = read_unit(CONTRIB / "systemd" / unit)
        (command,) = settings["ExecStart"]
        socket = [sys.executable, "-c", _WITH_SOCKET, str(self.socket)] if "Requires" in settings else []
        return [*socket, *shlex.split(self.here(command))]

    def start(self, command: Sequence[str], *, workers: int = 2) -> Process:
        return Process(command, {"WEB_CONCURRENCY": str(workers)}, self.root / "output", cwd=self.srv)

    def look(self) -> Upstreams:
        """Its upstreams, seen from this process."""
        return Upstreams(self.srv / "upstreams.toml")


def workers_of(process: Process) -> set[int]:
    """The children of a server's first process."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(child) for child in children.split()}


def ask(port: int, path: str = "/") -> dict[str, object]:
    """What the application says, which must answer."""
    answer = get(port, path)
    assert answer.status == 200, answer
    said: dict[str, object] = json.loads(answer.body)
    return said
