"""Redis and memcached processes that tests kill, stop and bring back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from resty_upstream import Upstream
from resty_upstream.testing import FakeClock
from tests.e2e.processes import Ports, Process, wait_until
from tests.helpers import health, open_upstream


class Server:
    """A server process on a loopback port that is its own for as long as the test runs."""

    def __init__(
        self, command: list[str], port: int, directory: Path, says: bytes, tls: ssl.SSLContext | None = None
    ) -> None:
        self.port = port
        self._command = command
        self._directory = directory
        self._says = says
        self._tls = tls
        self._process: Process | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The server as a host of a pool."""
        return {"host": "127.0.0.1", "port": self.port}

    def start(self, *more: str) -> None:
        """Start it, also after it was killed, and wait until it answers."""
        command = [*self._command, *more]
        self._process = Process(command, {}, self._directory / f"{self.port}.log", self._directory)
        wait_until(self._answers, f"an answer of {command}")

    def kill(self) -> None:
        """SIGKILL: its connections are reset or closed, and new ones refused."""
        assert self._process is not None
        self._process.kill()

    def stop(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections, and nobody answers."""
        assert self._process is not None
        self._process.signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        wait_until(lambda: all(_is_stopped(thread) for thread in threads.iterdir()), "a process that stands still")

    def go_on(self) -> None:
        """SIGCONT: it answers what has come in the meantime."""
        assert self._process is not None
        self._process.signal(signal.SIGCONT)

    def end(self) -> None:
        if self._process is not None and self._process.running:
            self._process.kill()

    def ask(self, line: bytes) -> bytes:
        """The beginning of what it answers to a line, over a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as sock:
            asked = sock if self._tls is None else self._tls.wrap_socket(sock)
            asked.sendall(line + b"\r\n")
            answer = asked.recv(65_536)
            if asked is not sock:
                asked.close()
            return answer

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.running, self._process.printed()
        with contextlib.suppress(OSError):
            return self.ask(self._says) != b""
        return False


def _is_stopped(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


class Servers:
    """Starts servers, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = Ports()
        self._servers: list[Server] = []

    def redis(self, *options: str, start: bool = True, tls: trustme.LeafCert | None = None) -> Server:
        """A Redis with a directory of its own."""
        port = self._ports.reserve()
        directory = self._directory / str(port)
        directory.mkdir()
        listen, context = ["--port", str(port)], None
        if tls is not None:
            pem = directory / "server.pem"
            tls.private_key_and_cert_chain_pem.write_to_path(str(pem))
            files = ["--tls-cert-file", str(pem), "--tls-key-file", str(pem), "--tls-ca-cert-file", str(pem)]
            listen = ["--port", "0", "--tls-port", str(port), *files, "--tls-auth-clients", "no"]
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        common = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory)]
        command = ["redis-server", *listen, *common, "--loglevel", "warning", *options]
        return self._add(Server(command, port, directory, b"PING", context), start)

    def memcached(self, *options: str, start: bool = True) -> Server:
        port = self._ports.reserve()
        command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "1", *options]
        if os.getuid() == 0:
            command += ["-u", "root"]
        return self._add(Server(command, port, self._directory, b"version"), start)

    def _add(self, server: Server, start: bool) -> Server:
        self._servers.append(server)
        if start:
            server.start()
        return server

    def end(self) -> None:
        for server in self._servers:
            server.end()
        self._ports.release()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Starts servers that are ended when the test is over."""
    started = Servers(tmp_path)
    try:
        yield started
    finally:
        started.end()


# ── upstreams ─────────────────────────────────────────────────────────────────────────────────


def in_order(
    *hosts: Server | dict[str, Any],
    clock: FakeClock | None = None,
    pool: dict[str, Any] | None = None,
    **options: Any,
) -> Upstream:
    """An upstream that tries its hosts in the order given: ``a`` of pool ``0``, ``b`` of pool ``1``, and so on."""
    pools = {
        str(index): {
            "priority": index,
            "timeout": 500,
            **(pool or {}),
            "hosts": {"abcdef"[index]: host.options if isinstance(host, Server) else host},
        }
        for index, host in enumerate(hosts)
    }
    return open_upstream(pools, clock, **options)


def failcounts(upstream: Upstream) -> list[int]:
    """The ``failcount`` of each host of :func:`in_order`."""
    pools = sorted(upstream.get_pools())
    return [health(upstream, "abcdef"[int(pool_id)], pool_id)["failcount"] for pool_id in pools]
