"""Real servers of MariaDB: a data directory that is made once, and copied for each server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.contrib.postgres import directory_for_all
from tests.e2e.processes import Process, wait_until

LOGIN = {"USER": "app", "PASSWORD": "secret", "NAME": "shop"}
# Not a superuser: those may write to a server that is read-only.
_SQL = """
CREATE DATABASE IF NOT EXISTS shop;
CREATE USER IF NOT EXISTS app@'%' IDENTIFIED BY 'secret';
GRANT ALL ON shop.* TO app@'%';
"""
_OPTIONS = {
    "innodb-buffer-pool-size": "8M",
    "innodb-data-file-path": "ibdata1:10M:autoextend",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-log-file-size": "4M",
    "performance-schema": "off",
    "skip-log-bin": "on",
    "skip-name-resolve": "on",
    "thread-cache-size": "0",
}


def find_driver() -> None:
    """Django's engine imports MySQLdb: that is mysqlclient, or PyMySQL under its name."""
    try:
        import MySQLdb  # noqa: F401
    except ImportError:
        import pymysql

        pymysql.install_as_MySQLdb()


class DataDirectories:
    """Makes servers."""

    def __init__(self) -> None:
        self._directory = directory_for_all("my-")
        self._template = self._directory / "template"
        self._tmp = self._directory / "tmp"  # those in /tmp take each other's files
        self._tmp.mkdir()
        self._tmp.chmod(0o1777)
        self._sql = self._directory / "users.sql"
        self._sql.write_text(_SQL)
        options = [f"--{name}={_OPTIONS[name]}" for name in ("innodb-data-file-path", "innodb-log-file-size")]
        users = ["--user=mysql"] if os.getuid() == 0 else []
        quiet = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
        command = [
            "mariadb-install-db",
            *quiet,
            *users,
            *options,
            f"--datadir={self._template}",
            f"--tmpdir={self._tmp}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        self._count = 0

    def make(self, port: int) -> Mysql:
        """A server that is not started."""
        self._count += 1
        directory = self._directory / str(self._count)
        subprocess.run(["cp", "--archive", "--reflink=auto", "--", self._template, directory], check=True)
        return Mysql(directory, port, self._sql)

    def close(self) -> None:
        shutil.rmtree(self._directory)


class Mysql:
    """A server of MariaDB, to be started and killed again and again."""

    def __init__(self, directory: Path, port: int, sql: Path) -> None:
        self.directory, self.port = directory, port
        self._sql = sql
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    @property
    def options(self) -> dict[str, Any]:
        """The server as a host of a pool."""
        return {"host": "127.0.0.1", "port": self.port}

    @property
    def socket(self) -> Path:
        """Its unix socket."""
        return self.directory / "socket"

    def start(self, **options: str) -> None:
        """Start it, and wait until it answers."""
        given = {
            **_OPTIONS,
            "bind-address": "127.0.0.1",
            "datadir": str(self.directory),
            "init-file": str(self._sql),
            "pid-file": str(self.directory / "pid"),
            "port": str(self.port),
            "socket": str(self.socket),
            "tmpdir": str(self.directory),
            **{name.replace("_", "-"): value for name, value in options.items()},
        }
        as_mysql = (
            ["setpriv", "--reuid=mysql", "--regid=mysql", "--clear-groups", "--"] if os.getuid() == 0 else []
        )
        command = [*as_mysql, "mariadbd", "--no-defaults", *(f"--{name}={value}" for name, value in given.items())]
        process = self._process = Process(command, {}, self.directory / "log", cwd=Path("/"))

        def ready() -> bool:
            assert process.running, process.printed()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    return bool(connection.recv(1))  # its greeting
            except ConnectionRefusedError:
                return False

        wait_until(ready, "MariaDB answers")

    def start_again(self) -> None:
        """Unless it runs as it was started."""
        if self._process is None or not self._process.running:
            self.start()
        else:
            self._process.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.signal(number)

    def kill(self) -> None:
        """SIGKILL, and the connections it had are gone."""
        if self._process is not None and self._process.running:
            self._process.kill()
