"""A mail server in a process of its own: aiosmtpd, which puts each message into a directory.

A message with the subject ``die`` is kept, and the process killed before it says so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult

from tests.contrib.tls import NAME
from tests.e2e.processes import Process, python, wait_until


class Keep:
    """Keeps what comes in files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        (self._directory / f"{os.getpid()}-{next(self._numbers)}").write_bytes(envelope.content)
        if b"Subject: die" in envelope.content:
            os.kill(os.getpid(), signal.SIGKILL)
        return "250 OK"


def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    """``user`` and ``password``."""
    return AuthResult(success=(data.login, data.password) == (b"user", b"password"), handled=False)


async def serve(directory: Path, port: int, how: str) -> None:
    """Serve on loopback.

    :param how: "plain", "starttls" or "tls".
    """
    context = None
    if how != "plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "certificate.pem")

    keep = Keep(directory)

    def session() -> SMTP:
        return SMTP(
            keep,
            hostname=NAME,
            authenticator=authenticate,
            auth_require_tls=False,
            tls_context=context if how == "starttls" else None,
        )

    loop = asyncio.get_running_loop()
    await loop.create_server(session, "127.0.0.1", port, ssl=context if how == "tls" else None)
    (directory / "ready").touch()
    await asyncio.Event().wait()


class MailHost:
    """A mail server that can be killed, stopped, and brought back."""

    def __init__(self, directory: Path, port: int, how: str = "plain", certificate: bytes = b"") -> None:
        directory.mkdir()
        (directory / "certificate.pem").write_bytes(certificate)
        self._directory, self.port, self._how = directory, port, how
        self.process: Process

    @property
    def options(self) -> dict[str, Any]:
        """The server as a host of a pool."""
        return {"host": "127.0.0.1", "port": self.port}

    @property
    def subjects(self) -> list[str]:
        """Of the messages that it got."""
        texts = [path.read_text() for path in sorted(self._directory.glob("*-*"))]
        return [line[9:] for text in texts for line in text.splitlines() if line.startswith("Subject: ")]

    def start(self) -> None:
        """Start it, or bring it back."""
        ready = self._directory / "ready"
        ready.unlink(missing_ok=True)
        command = python("-W", "ignore", "-m", "tests.contrib.mailhost", self._directory, self.port, self._how)
        self.process = Process(command, {}, self._directory / "log")
        wait_until(ready.exists, "the mail server is there")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def __enter__(self) -> MailHost:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.end()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
