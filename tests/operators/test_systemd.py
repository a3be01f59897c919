"""``contrib/systemd``: units that systemd takes, what they start, and nginx in front of it."""

from __future__ import annotations

import http.client
import os
import re
import runpy
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import Ports, Process, get, wait_until, wait_until_answers
from tests.operators.commands import CONTRIB, find, run_tool
from tests.operators.installed import Installed, ask, read_unit

SYSTEMD = CONTRIB / "systemd"
SERVERS = ["gunicorn", "uvicorn"]
GUNICORN: dict[str, Any] = runpy.run_path(str(CONTRIB / "gunicorn.conf.py"))
SERVICES = ["gunicorn/myapp.service", "uvicorn/myapp.service", "myapp-checks.service"]


@pytest.fixture(params=SERVERS)
def units(request: pytest.FixtureRequest, tmp_path: Path, installed: Installed) -> Path:
    """The units of an application on one of the servers, as they are installed."""
    directory = tmp_path / "units"
    directory.mkdir()
    for path in [*SYSTEMD.glob("*.s*"), *(SYSTEMD / request.param).iterdir()]:
        (directory / path.name).write_text(installed.here(path.read_text()))
    return directory


def test_systemd_has_nothing_to_say_against_the_units(units: Path) -> None:
    names = sorted(path.name for path in units.iterdir())
    assert names == ["myapp-checks.service", "myapp.service", "myapp.socket"]
    said = run_tool("systemd-analyze", "verify", "--man=no", *(units / name for name in names))
    assert "myapp" not in said  # it may complain of other units of the machine


def test_services_may_do_little(units: Path) -> None:
    for path in units.glob("*.service"):
        run_tool("systemd-analyze", "security", "--offline=true", "--threshold=20", path)


def test_services_that_share_a_store_agree_on_its_place_and_none_deletes_it() -> None:
    directories = ("User", "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "UMask")
    seen = {tuple(read_unit(SYSTEMD / name)[setting][0] for setting in directories) for name in SERVICES}
    assert seen == {("myapp", "myapp", "0700", "yes", "0077")}


def test_systemd_waits_longer_than_servers_need_to_end() -> None:
    for name, graceful_s in (
        ("gunicorn", GUNICORN["graceful_timeout"]),
        ("uvicorn", uvicorn("graceful-shutdown")),
    ):
        assert int(read_unit(SYSTEMD / name / "myapp.service")["TimeoutStopSec"][0]) > graceful_s >= 30


def test_the_service_of_checks_runs_them_and_ends_in_order(tmp_path: Path) -> None:
    installed = Installed(tmp_path, 'healthcheck = { type = "tcp", interval = 3600 }')
    upstream = installed.look()["default"]
    with installed.start(installed.command_of("myapp-checks.service")) as checks:
        wait_until(lambda: upstream.store.holder("default", "checker"), "hosts are checked")
        checks.signal(signal.SIGTERM)
        assert checks.wait() == 0, checks.printed()
    upstream.close()


def uvicorn(timeout: str) -> int:
    """A timeout in seconds that the service gives to uvicorn."""
    (command,) = read_unit(SYSTEMD / "uvicorn" / "myapp.service")["ExecStart"]
    arguments = shlex.split(command)
    return int(arguments[arguments.index(f"--timeout-{timeout}") + 1])


# ── nginx ─────────────────────────────────────────────────────────────────────────────────────


class Nginx:
    """nginx with the file of ``contrib/``, on a port of loopback."""

    def __init__(self, installed: Installed, port: int) -> None:
        self._root = installed.root
        site = installed.here((CONTRIB / "nginx" / "myapp.conf").read_text())
        site = site.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("    listen [::]:80;\n", "")
        (self._root / "myapp.conf").write_text(site)
        user = "user root;\n" if os.geteuid() == 0 else ""  # others cannot look into the directory of a test
        temporary = "".join(
            f"{kind}_temp_path {self._root}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self._root / "nginx.conf").write_text(
            f"{user}pid {self._root}/nginx.pid;\nerror_log stderr;\ndaemon off;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}include {self._root}/myapp.conf;\n}}\n"
        )

    @property
    def arguments(self) -> list[str]:
        return ["-e", "stderr", "-p", str(self._root), "-c", str(self._root / "nginx.conf")]

    def start(self) -> Process:
        return Process([find("nginx"), *self.arguments], {}, self._root / "nginx.log")


@contextmanager
def behind_nginx(installed: Installed, port: int, server: str) -> Iterator[Process]:
    """The application as its unit starts it, at its socket, with nginx at the port."""
    with installed.start(installed.command_of(f"{server}/myapp.service")) as process:
        wait_until(installed.socket.exists, "the socket is there")
        with Nginx(installed, port).start() as nginx:
            wait_until_answers(nginx, port, "/")
            yield process


def test_nginx_accepts_its_configuration(installed: Installed, ports: Ports) -> None:
    said = run_tool("nginx", "-t", *Nginx(installed, ports.reserve()).arguments)
    assert "test is successful" in said
    assert "[warn]" not in said


@pytest.mark.parametrize("server", SERVERS)
def test_the_client_is_who_nginx_says_it_is_and_not_who_it_says(
    installed: Installed, ports: Ports, server: str
) -> None:
    port = ports.reserve()
    with behind_nginx(installed, port, server):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
        connection.request("GET", "/", headers=forged)
        answer = connection.getresponse().read()
        connection.close()
    assert b'"client": "127.0.0.1"' in answer
    assert b'"scheme": "http"' in answer


@pytest.mark.parametrize("server", SERVERS)
def test_the_socket_outlives_the_server(installed: Installed, ports: Ports, server: str) -> None:
    """What systemd holds open is not removed by a server that ends."""
    with behind_nginx(installed, ports.reserve(), server) as process:
        process.signal(signal.SIGTERM)
        process.wait()
        assert installed.socket.exists()


def test_nginx_gives_up_idle_connections_before_the_application_does() -> None:
    site = (CONTRIB / "nginx" / "myapp.conf").read_text()
    (kept_s,) = re.findall(r"keepalive_timeout (\d+)s;", site)
    assert int(kept_s) < min(GUNICORN["keepalive"], uvicorn("keep-alive"))


def test_metrics_are_for_this_machine(installed: Installed, ports: Ports) -> None:
    port = ports.reserve()
    with behind_nginx(installed, port, "gunicorn"):
        assert ask(port)["host"] == "a"
        assert b"resty_upstream_host_up" in get(port, "/metrics").body
    site = (CONTRIB / "nginx" / "myapp.conf").read_text()
    assert site.index("allow 127.0.0.1;") < site.index("deny all;")
