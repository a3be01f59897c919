"""Real PostgreSQL servers: a cluster that is made once, and copied for each server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
import trustme

from tests.e2e.processes import Process, wait_until

USER, PASSWORD = "app", "secret"
LOGIN = {"user": USER, "password": PASSWORD, "dbname": "postgres"}
_SETTINGS = {
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "lc_messages": "C",
    "max_connections": "20",
    "max_wal_senders": "0",
    "shared_buffers": "1MB",
    "superuser_reserved_connections": "0",
}


def _binary(name: str) -> str:
    """The path of a program of PostgreSQL; the test is skipped where there is none."""
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    return found


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to be run by root."""
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


def _give(*paths: Path) -> None:
    if os.getuid() == 0:
        for path in paths:
            shutil.chown(path, "postgres", "postgres")


def directory_for_all(prefix: str) -> Path:
    """A new directory for the data of servers; pytest's directories are for one user alone."""
    memory = "/dev/shm"
    is_roomy = os.path.isdir(memory) and shutil.disk_usage(memory).free > 2 * 1024**3
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=memory if is_roomy else None))
    directory.chmod(0o755)
    return directory


class Clusters:
    """Makes servers; each has the role :data:`USER`, a superuser."""

    def __init__(self) -> None:
        self._directory = directory_for_all("pg-")
        self._template = self._directory / "template"
        self._template.mkdir(0o700)
        password = self._directory / "password"
        password.write_text(PASSWORD)
        _give(self._template)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]
        command = [*_as_postgres(), _binary("initdb"), "-U", USER, f"--pwfile={password}", *options]
        subprocess.run([*command, "-D", self._template], check=True, stdout=subprocess.DEVNULL, cwd="/")
        self._count = 0

    def make(self, port: int, host: str = "127.0.0.1") -> Postgres:
        """A server that is not started."""
        self._count += 1
        directory = self._directory / str(self._count)
        copy = ["cp", "--recursive", "--reflink=auto", "--", self._template, directory]
        subprocess.run(copy, check=True)
        subprocess.run(["chown", "--recursive", f"--reference={self._template}", directory], check=True)
        return Postgres(directory, host, port)

    def close(self) -> None:
        shutil.rmtree(self._directory)


class Postgres:
    """A server of PostgreSQL, to be started and killed again and again."""

    def __init__(self, directory: Path, host: str, port: int) -> None:
        self.directory, self.host, self.port = directory, host, port
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    @property
    def options(self) -> dict[str, Any]:
        """The server as a host of a pool."""
        return {"host": self.host, "port": self.port}

    @property
    def socket(self) -> Path:
        """Its unix socket."""
        return self.directory / f".s.PGSQL.{self.port}"

    def start(self, *, standby: bool = False, answers: bool = True, **settings: str) -> None:
        """Start it, and wait until it can be connected to.

        :param standby: as a hot standby of nobody.
        :param answers: whether it takes connections; otherwise it says why not.
        """
        if standby:  # which needs no less than the cluster was made with
            settings = {"max_connections": "100", "max_wal_senders": "10", **settings}
        signal_file = self.directory / "standby.signal"
        signal_file.unlink(missing_ok=True)
        if standby:
            signal_file.touch()
            _give(signal_file)
        addresses = {"listen_addresses": self.host, "port": str(self.port)}
        given = {**_SETTINGS, **addresses, "unix_socket_directories": str(self.directory), **settings}
        arguments = [argument for name, value in given.items() for argument in ("-c", f"{name}={value}")]
        command = [*_as_postgres(), _binary("postgres"), "-D", str(self.directory), *arguments]
        process = self._process = Process(command, {}, self.directory / "log", cwd=Path("/"))

        def ready() -> bool:
            assert process.running, process.printed()
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                return not answers and "FATAL" in str(error)
            return True

        wait_until(ready, "PostgreSQL answers")

    def start_with_certificate(self, certificate: trustme.LeafCert) -> None:
        """Start it with TLS."""
        key, chain = self.directory / "server.key", self.directory / "server.crt"
        certificate.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        certificate.cert_chain_pems[0].write_to_path(chain)
        _give(key, chain)
        self.start(ssl="on")

    def start_again(self) -> None:
        """Unless it runs as it was started."""
        if self._process is None or not self._process.running:
            self.start()
        else:
            self._process.signal(signal.SIGCONT)

    def connect(self, **kwargs: Any) -> psycopg.Connection[Any]:
        """A plain connection of psycopg."""
        where = {"host": self.host, "port": self.port, "connect_timeout": 10}
        return psycopg.connect(**{**LOGIN, **where, "autocommit": True, **kwargs})

    def signal(self, number: signal.Signals) -> None:
        """Send the postmaster a signal."""
        assert self._process is not None
        self._process.signal(number)

    def kill(self) -> None:
        """SIGKILL; the server's processes are gone then, and the connections they had."""
        process = self._process
        if process is None or not process.running:
            return
        children = _children(process.pid)
        process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        wait_until(lambda: not any(map(_is_running, children)), "the children of PostgreSQL end")

    def sessions(self) -> int:
        """How many clients are connected, but for the one that asks."""
        with self.connect() as connection:
            others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
            count = connection.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {others}").fetchone()
        assert count is not None
        return int(count[0])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_running(pid: int) -> bool:
    try:
        # Its name may have spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
