"""Mail that goes to a server that takes it: aiosmtpd in processes, and servers that misbehave in every way."""

from __future__ import annotations

import errno
import signal
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

import pytest

from resty_upstream import NoHostAvailable
from resty_upstream.contrib.smtplib import UpstreamSMTP
from tests.contrib.cancelling import sockets_to
from tests.contrib.mailhost import MailHost
from tests.contrib.tls import (
    BAD,
    NAME,
    certificate,
    certified,
    expired,
    fails,
    in_order,
    never_answer,
    over_tls,
    reset,
    self_signed,
    trusting,
)
from tests.helpers import Peer, hanging, refusing

StartPeer = Callable[..., Peer]


def message(subject: str) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = subject, "a@app.example", "b@app.example"
    mail.set_content("Hello.\n" * 100)
    return mail


# ── scripted servers ──────────────────────────────────────────────────────────────────────────


def say(*lines: str) -> Callable[[socket.socket], None]:
    """Serve a connection by one line after the other, each in answer to one."""

    def serve(connection: Any) -> None:
        for line in lines:
            connection.sendall(line.encode() + b"\r\n")
            if not connection.recv(1000):
                return

    return serve


def plain_ehlo(*after: str) -> Callable[[socket.socket], None]:
    return say("220 here", "250 hello", *after)


TAKES = plain_ehlo("250 sender", "250 recipient", "354 go on", "250 taken", "221 bye")
OFFERS_TLS = ("220 here", "250-hello\r\n250 STARTTLS")


def starttls(then: Callable[[Any], object]) -> Callable[[socket.socket], None]:
    """Serve a connection up to STARTTLS, and then with ``then``."""

    def serve(connection: socket.socket) -> None:
        say(*OFFERS_TLS)(connection)
        connection.sendall(b"220 go on\r\n")
        then(connection)

    return serve


def break_off(connection: socket.socket) -> None:
    """Serve a connection by greeting, and closing it when the client spoke."""
    connection.sendall(b"220 here\r\n")
    connection.recv(1000)


def drip(connection: socket.socket) -> None:
    """Serve a connection by a greeting that has no end, a piece at a time."""
    while True:
        connection.sendall(b"220-wait a moment\r\n")
        time.sleep(0.05)


NOT_TAKING: dict[str, Callable[[socket.socket], None]] = {
    "421": say("421 4.3.2 too many connections"),
    "450": say("450-not\r\n450 now"),
    "554": say("554 no SMTP service here"),
    "521": say("521 no mail"),
    "garbage": say("HTTP/1.1 400 Bad Request"),
    "endless line": say("220 " + "x" * 10_000),
    "closed at once": lambda connection: None,
    "reset": reset,
    "closed at EHLO": break_off,
    "421 at EHLO": say("220 here", "421 shutting down", "421 shutting down"),
    "451 at EHLO": say("220 here", "451 not now", "451 not now"),
}


@pytest.mark.parametrize("how", NOT_TAKING)
def test_a_host_that_takes_no_session_counts_and_the_next_is_used(start_peer: StartPeer, how: str) -> None:
    bad, good = start_peer(NOT_TAKING[how]), start_peer(TAKES)
    if how == "reset":
        bad.serve = lambda connection: (connection.sendall(b"220 here\r\n"), reset(connection))
    upstream = in_order(bad.options, good.options)
    with UpstreamSMTP(upstream, local_hostname="me") as smtp:
        assert smtp.info.pool.id == "p1"
        assert smtp.sock
        assert smtp.sock.gettimeout() == 60
        assert smtp.send_message(message("hello")) == {}
    assert [fails(upstream, n) for n in (0, 1)] == [1, 0]
    assert not sockets_to(bad.port, good.port)


def test_hosts_that_are_dead_full_silent_or_endless_cost_the_pools_timeout(start_peer: StartPeer) -> None:
    silent, endless = start_peer(never_answer), start_peer(drip)
    with refusing() as dead, hanging() as full:
        peers = [dead, full, silent.options, endless.options, start_peer(TAKES).options]
        upstream = in_order(*peers, timeout="300ms")
        with UpstreamSMTP(upstream, local_hostname="me") as smtp:
            assert smtp.info.pool.id == "p4"
            smtp.send_message(message("hello"))
    reasons = [type(attempt.error).__name__ for attempt in smtp.info.attempts]
    assert reasons == ["ConnectionRefusedError", "TimeoutError", *["ConnectionResetError"] * 2, "NoneType"]
    assert [fails(upstream, n) for n in range(5)] == [1, 1, 1, 1, 0]
    assert not sockets_to(silent.port, endless.port)


def test_when_no_host_is_left_the_error_says_what_they_said(start_peer: StartPeer) -> None:
    upstream = in_order(start_peer(say("421 4.3.2 too many connections")).options, last_resort=False)
    with pytest.raises(OSError, match=r"p0/h: the server said 421 '4\.3\.2 too many connections'") as caught:
        UpstreamSMTP(upstream, local_hostname="me")
    assert isinstance(caught.value, NoHostAvailable)
    assert caught.value.status_hint == 502
    assert isinstance(caught.value.__cause__, Exception)
    assert isinstance(caught.value.__cause__.__cause__, smtplib.SMTPConnectError)


def test_a_silent_host_is_a_timeout_whatever_is_handled_just_now(start_peer: StartPeer) -> None:
    upstream = in_order(start_peer(never_answer).options, timeout="100ms", last_resort=False)
    try:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "of something else")
    except ConnectionRefusedError:
        with pytest.raises(NoHostAvailable) as caught:
            UpstreamSMTP(upstream, local_hostname="me")
    assert caught.value.status_hint == 504
    assert fails(upstream) == 1


def test_a_host_that_does_not_like_our_name_is_not_to_blame(start_peer: StartPeer) -> None:
    peer = start_peer(say("220 here", "550 bad name", "550 bad name"))
    upstream = in_order(peer.options, start_peer(TAKES).options)
    with pytest.raises(smtplib.SMTPHeloError):
        UpstreamSMTP(upstream, local_hostname="me")
    assert fails(upstream) == 0
    assert not sockets_to(peer.port)


def test_what_goes_wrong_after_the_session_began_is_raised_as_smtplib_does(start_peer: StartPeer) -> None:
    spare = start_peer(TAKES)
    answers = {
        smtplib.SMTPSenderRefused: plain_ehlo("421 going down"),
        smtplib.SMTPRecipientsRefused: plain_ehlo("250 ok", "550 nobody", "250 reset"),
        smtplib.SMTPDataError: plain_ehlo("250 ok", "250 ok", "354 go on", "421 going down"),
        smtplib.SMTPServerDisconnected: plain_ehlo("250 ok", "250 ok", "354 go on"),
    }
    for error, serve in answers.items():
        upstream = in_order(start_peer(serve).options, spare.options)
        smtp = UpstreamSMTP(upstream, local_hostname="me")
        with pytest.raises(error):
            smtp.send_message(message("hello"))
        smtp.close()
        assert fails(upstream) == 0
    assert spare.hits == 0


def test_a_context_of_the_request_will_do(start_peer: StartPeer) -> None:
    upstream = in_order(start_peer(say("554 no")).options, start_peer(TAKES).options)
    with upstream.context() as request:
        for _ in range(2):  # it does not try again the host on which it failed
            UpstreamSMTP(request, local_hostname="me").close()
        assert fails(upstream) == 0
    assert fails(upstream) == 1


def test_connect_begins_anew_and_takes_no_host(start_peer: StartPeer) -> None:
    first, second = start_peer(TAKES), start_peer(TAKES)
    upstream = in_order(first.options, second.options)
    smtp = UpstreamSMTP(upstream, local_hostname="me")
    smtp.quit()
    first.stop()
    assert smtp.connect() == (220, b"here")
    assert smtp.info.pool.id == "p1"
    assert smtp.send_message(message("again")) == {}
    with pytest.raises(TypeError, match="the upstream chooses the host"):
        smtp.connect("mail.example", 25)
    smtp.close()
    with pytest.raises(smtplib.SMTPServerDisconnected):
        smtp.noop()


def test_what_cannot_work_is_said_at_once(start_peer: StartPeer) -> None:
    peer = start_peer(TAKES)
    upstream = in_order(peer.options)
    with pytest.raises(ValueError, match="exclude each other"):
        UpstreamSMTP(upstream, NAME, tls=trusting(), starttls=trusting())
    for timeout in (0, -1, None, float("nan"), True):
        with pytest.raises(ValueError, match=f"timeout must be a number of seconds above 0, not {timeout}"):
            UpstreamSMTP(upstream, timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"context must be an ssl\.SSLContext, not bool"):
        UpstreamSMTP(upstream, NAME, starttls=True)  # type: ignore[arg-type]
    assert peer.hits == 0


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["starttls", "tls"])
def test_real_hosts_are_verified_by_the_logical_name(start_host: Callable[..., MailHost], how: str) -> None:
    foreign, host = start_host(how, certificate("other.example")), start_host(how, certificate(NAME))
    upstream = in_order(foreign.options, host.options)
    options: dict[str, Any] = {how: trusting()}
    with UpstreamSMTP(upstream, NAME, **options) as smtp:
        assert isinstance(smtp.sock, ssl.SSLSocket)
        assert smtp.starttls(context=trusting())[0] == 220  # as code does that is written for smtplib
        smtp.login("user", "password")
        smtp.send_message(message("secret"))
        assert smtp.info.pool.id == "p1"
    assert (foreign.subjects, host.subjects) == ([], ["secret"])
    assert [fails(upstream, n) for n in (0, 1)] == [1, 0]
    assert isinstance(smtp.info.attempts[0].error, ssl.SSLCertVerificationError)


def test_without_a_name_each_hosts_own_is_verified(start_host: Callable[..., MailHost]) -> None:
    upstream = in_order(start_host("starttls", certificate("127.0.0.1")).options)
    with UpstreamSMTP(upstream, starttls=trusting()) as smtp:
        assert isinstance(smtp.sock, ssl.SSLSocket)
    with UpstreamSMTP(upstream) as smtp:
        assert smtp.starttls(context=trusting())[0] == 220
        assert isinstance(smtp.sock, ssl.SSLSocket)


BAD_TLS: dict[str, tuple[str, Callable[[socket.socket], object]]] = {
    **{f"tls, {how}": ("tls", serve) for how, serve in BAD.items()},
    **{f"starttls, {how}": ("starttls", starttls(serve)) for how, serve in BAD.items() if how != "plain"},
    "starttls, expired 2": ("starttls", starttls(over_tls(expired(), never_answer))),
    "starttls, self-signed 2": ("starttls", starttls(over_tls(self_signed(), never_answer))),
    "starttls, not offered": ("starttls", plain_ehlo()),
    "starttls, not now": ("starttls", say(*OFFERS_TLS, "454 TLS not available")),
    "starttls, silent": ("starttls", starttls(never_answer)),
    "tls, silent": ("tls", never_answer),
    "tls, no greeting": ("tls", over_tls(certified(), never_answer)),
}


@pytest.mark.parametrize("what", BAD_TLS)
def test_a_host_that_fails_in_tls_counts_and_no_mail_goes_there(start_peer: StartPeer, what: str) -> None:
    how, serve = BAD_TLS[what]
    peer = start_peer(serve)
    upstream = in_order(peer.options, timeout="1s", last_resort=False)
    options: dict[str, Any] = {how: trusting()}
    with pytest.raises(NoHostAvailable):
        UpstreamSMTP(upstream, NAME, local_hostname="me", **options)
    assert fails(upstream) == 1
    assert not sockets_to(peer.port)


# ── real servers that die ─────────────────────────────────────────────────────────────────────


def test_mail_goes_on_while_hosts_are_killed_stopped_and_brought_back(
    start_host: Callable[..., MailHost],
) -> None:
    a, b = start_host(), start_host()
    upstream = in_order(a.options, b.options, timeout="500ms")

    def send(subject: str) -> None:
        with UpstreamSMTP(upstream, local_hostname="me") as smtp:
            smtp.send_message(message(subject))

    send("1")
    a.kill()
    send("2")
    a.start()
    assert fails(upstream) == 1
    send("3")
    b.process.signal(signal.SIGSTOP)
    send("4")  # b is silent, and a the last resort
    b.process.signal(signal.SIGCONT)
    assert (a.subjects, b.subjects) == (["1", "4"], ["2", "3"])


def test_a_message_whose_host_dies_before_it_says_that_it_took_it_is_not_sent_again(
    start_host: Callable[..., MailHost],
) -> None:
    a, b = start_host(), start_host()
    upstream = in_order(a.options, b.options)
    smtp = UpstreamSMTP(upstream, local_hostname="me")
    with pytest.raises(smtplib.SMTPServerDisconnected):
        smtp.send_message(message("die"))
    a.process.wait()
    assert (a.subjects, b.subjects) == (["die"], [])
    smtp.connect()
    assert smtp.info.pool.id == "p1"
    smtp.quit()


def test_a_bad_password_is_raised_and_counts_against_nobody(start_host: Callable[..., MailHost]) -> None:
    upstream = in_order(start_host().options, start_host().options)
    smtp = UpstreamSMTP(upstream, local_hostname="me")
    with pytest.raises(smtplib.SMTPAuthenticationError):
        smtp.login("user", "wrong")
    smtp.quit()
    assert [fails(upstream, n) for n in (0, 1)] == [0, 0]


def test_many_threads_send_at_once(start_host: Callable[..., MailHost]) -> None:
    a, b = start_host(), start_host()
    upstream = in_order(a.options, b.options)

    def send(n: int) -> None:
        with UpstreamSMTP(upstream, local_hostname="me") as smtp:
            smtp.send_message(message(str(n)))

    a.kill()
    threads = [threading.Thread(target=send, args=[n]) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(b.subjects, key=int) == [str(n) for n in range(10)]
