"""smtplib: a session with a server that takes it. See :mod:`resty_upstream.contrib.smtplib`."""

from __future__ import annotations

import errno
import io
import smtplib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

from resty_upstream import Attempt, Info, OverTLS, RequestContext, Upstream, register_connector
from resty_upstream.attempts import BadAnswer
from resty_upstream.connectors import open_socket
from resty_upstream.tls import shake_hands

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["UpstreamSMTP"]


class UpstreamSMTP(smtplib.SMTP):
    """A session with a host of an upstream; of smtplib in all else.

    It chooses the host where it connects: when it is made, and again in :meth:`connect`, to be called after it was
    closed. Another host is tried when one cannot be reached, does not answer in time, greets with anything but 220
    (421 and 554 are what busy and closed servers say), breaks off, is short of something at EHLO (a code below
    500), or fails in TLS. All that is before a message: what goes wrong later is raised as smtplib raises it, and
    nothing is sent twice.

    :param upstream: an :class:`~resty_upstream.Upstream`, or the one of a request.
    :param server_hostname: the one name that the certificates of all hosts have; each host's own name or address
        if not given.
    :param starttls: begin TLS with this context as soon as the host greeted. A host without TLS is not used.
    :param tls: speak TLS with this context from the beginning, as ``smtplib.SMTP_SSL``.
    :param local_hostname: how this machine introduces itself, as for smtplib.
    :param timeout: seconds to wait for each answer once a session is there; until then the pool's timeout is for
        all together. Servers may look at a message for long before they say that they took it.
    :raises NoHostAvailable: where no host is left: an ``OSError``, as smtplib raises it for a server that is dead.
    :raises smtplib.SMTPHeloError: where a host does not like ``local_hostname``.
    :raises TypeError: for a context that is none.
    :raises ValueError: for both ``tls`` and ``starttls``, or a timeout that is not above 0.
    """

    info: Info
    """Where the session is: ``info.host``, ``info.pool``, ``info.attempts``."""
    _until: float | None = None
    """While an attempt runs: when its time is over."""
    _greeting = b""

    def __init__(
        self,
        upstream: Upstream | RequestContext,
        server_hostname: str = "",
        *,
        starttls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        local_hostname: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        if tls is not None and starttls is not None:
            raise ValueError("tls and starttls exclude each other: give one of them")
        for context in (tls, starttls):
            if context is not None:
                OverTLS(context, server_hostname or "a.host")  # which says what is wrong with them
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        super().__init__(local_hostname=local_hostname, timeout=timeout)
        self._upstream = upstream
        self._server_hostname = server_hostname
        self._tls = tls
        self._starttls = starttls
        self.connect()

    def connect(self, host: str = "", port: int = 0, source_address: Any = None) -> tuple[int, bytes]:
        """Begin a session with a host that the upstream chooses; what is open is closed.

        :returns: 220 and the text of the greeting.
        :raises TypeError: where a host, a port or an address is given.
        """
        if host or port or source_address:
            raise TypeError("the upstream chooses the host: call connect() without one")
        self.info = self._upstream.connect(self).info
        return 220, self._greeting

    def starttls(self, *args: Any, **options: Any) -> tuple[int, bytes]:
        """As smtplib's; does nothing where the session has TLS already, as the class was given ``starttls``.

        What fails here is raised, and counts against nobody.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            return 220, b"has TLS"
        return super().starttls(*args, **options)

    def getreply(self) -> tuple[int, bytes]:
        """As smtplib's; while a session begins, no later than the time of the attempt is over."""
        if self._until is not None and self.file is None and self.sock is not None:
            self.file = io.BufferedReader(_Replies(self.sock, self._until))
        return super().getreply()

    # ── an attempt ────────────────────────────────────────────────────────────────────────────

    def begin(self, attempt: Attempt) -> None:
        """Have a session with the host of an attempt, within the attempt's time."""
        attempt.bounded = True
        self._forget()
        self._until = time.monotonic() + attempt.timeout_s
        # For smtplib the name in certificates.
        self._host = self._server_hostname or attempt.host.host
        try:
            if self._tls is None:
                self.sock = open_socket(attempt)
            else:
                self.sock = shake_hands(OverTLS(self._tls, self._host), attempt)
            self._introduce()
            self.sock.settimeout(self.timeout)
        except BaseException:
            self._forget()
            raise
        self._until = self.file = None

    def _forget(self) -> None:
        """Close what is open, and forget what its server said."""
        self.close()
        self._until = self.helo_resp = self.ehlo_resp = None
        self.esmtp_features = {}
        self.does_esmtp = False

    def _introduce(self) -> None:
        try:
            code, self._greeting = self.getreply()
            if code != 220:
                raise smtplib.SMTPConnectError(code, self._greeting)
            self.ehlo_or_helo_if_needed()
            if self._starttls is not None:
                super().starttls(context=self._starttls)
        except smtplib.SMTPServerDisconnected as error:
            # A timeout, or whatever was behind it, is seen behind this, too.
            raise ConnectionResetError(errno.ECONNRESET, f"the server broke off: {error}") from error
        except smtplib.SMTPNotSupportedError as error:
            raise BadAnswer("the server has no STARTTLS") from error
        except smtplib.SMTPResponseException as error:
            if isinstance(error, smtplib.SMTPHeloError) and error.smtp_code >= 500:
                raise  # it is we whom it does not like
            raise BadAnswer(f"the server said {error.smtp_code} {_text(error.smtp_error)!r}") from error


def _text(reply: bytes | str) -> str:
    """The beginning of what a server said."""
    text = reply if isinstance(reply, str) else reply.decode("utf-8", "backslashreplace")
    return text if len(text) <= 80 else text[:77] + "..."


class _Replies(io.RawIOBase):
    """What a server says, until a time on the monotonic clock: in how many pieces ever, it may take no longer."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._sock.settimeout(max(0.001, self._until - time.monotonic()))
        return self._sock.recv_into(buffer)


def _connect(session: UpstreamSMTP, attempt: Attempt) -> UpstreamSMTP:
    session.begin(attempt)
    return session


register_connector(UpstreamSMTP, _connect)
