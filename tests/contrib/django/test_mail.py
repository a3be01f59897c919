"""Django's mail through the hosts of an upstream: aiosmtpd in processes."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from resty_upstream import NoHostAvailable, UpstreamNotFound
from resty_upstream.contrib.django import get_upstream
from resty_upstream.contrib.django.mail import EmailBackend
from tests.contrib.mailhost import MailHost
from tests.contrib.tls import AUTHORITY, NAME
from tests.e2e.processes import Ports
from tests.helpers import refusing

BACKEND = "resty_upstream.contrib.django.mail.EmailBackend"


def certified(*names: str) -> bytes:
    """Key and certificate for names, as a server's file."""
    return AUTHORITY.issue_cert(*names).private_key_and_cert_chain_pem.bytes()


@pytest.fixture
def start_host(tmp_path: Path, ports: Ports) -> Iterator[Callable[..., MailHost]]:
    """Starts a mail server that is ended when the test is over."""
    hosts: list[MailHost] = []

    def start(*args: Any) -> MailHost:
        host = MailHost(tmp_path / f"host{len(hosts)}", ports.reserve(), *args)
        host.start()
        hosts.append(host)
        return host

    yield start
    for host in hosts:
        host.process.end()


def upstreams(*peers: Mapping[str, Any]) -> dict[str, Any]:
    """``UPSTREAMS`` with these mail servers, to be tried in this order."""
    pools = {f"p{n}": {"priority": n, "max_fails": 1, "hosts": {"h": peer}} for n, peer in enumerate(peers)}
    return {"mail": {"STORE": "memory://", "POOLS": pools, "LAST_RESORT": False}}


def failcount(number: int) -> int:
    return int(get_upstream("mail").get_pools()[f"p{number}"]["hosts"]["h"]["failcount"])


def send(subject: str) -> int:
    return mail.send_mail(subject, "Hello.", "a@app.example", ["b@app.example"])


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Configures the mail of the site."""

    def configure(*peers: Mapping[str, Any], **options: Any) -> None:
        settings.UPSTREAMS = upstreams(*peers)
        settings.EMAIL_BACKEND, settings.EMAIL_UPSTREAM, settings.EMAIL_HOST = BACKEND, "mail", NAME
        for name, value in options.items():
            setattr(settings, name, value)

    return configure


def test_mail_goes_to_a_host_that_takes_it(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    a, b = start_host(), start_host()
    configure(a.options, b.options, EMAIL_HOST_USER="user", EMAIL_HOST_PASSWORD="password")
    assert send("1") == 1
    a.kill()
    assert send("2") == 1
    assert mail.send_mass_mail([(str(n), "Hi", "a@app.example", ["b@app.example"]) for n in (3, 4)]) == 2
    assert (a.subjects, b.subjects) == (["1"], ["2", "3", "4"])
    assert (failcount(0), failcount(1)) == (1, 0)


@pytest.mark.parametrize(("how", "setting"), [("starttls", "EMAIL_USE_TLS"), ("tls", "EMAIL_USE_SSL")])
def test_certificates_are_for_email_host(
    start_host: Callable[..., MailHost],
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
    setting: str,
) -> None:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    foreign, host = start_host(how, certified("other.example")), start_host(how, certified(NAME))
    configure(foreign.options, host.options, **{setting: True})
    assert send("secret") == 1
    assert (foreign.subjects, host.subjects) == ([], ["secret"])
    assert (failcount(0), failcount(1)) == (1, 0)


def test_a_connection_that_is_kept_serves_many_messages_and_the_next_one_chooses_anew(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    a, b = start_host(), start_host()
    configure(a.options, b.options)
    with mail.get_connection() as connection:
        for subject in ("1", "2"):
            mail.EmailMessage(subject, "Hi", "a@x.test", ["b@x.test"], connection=connection).send()
        a.kill()
        with pytest.raises(smtplib.SMTPServerDisconnected):  # whatever became of it is not sent again
            mail.EmailMessage("3", "Hi", "a@x.test", ["b@x.test"], connection=connection).send()
    with mail.get_connection() as connection:
        mail.EmailMessage("4", "Hi", "a@x.test", ["b@x.test"], connection=connection).send()
    assert (a.subjects, b.subjects) == (["1", "2"], ["4"])


def test_when_no_host_is_left_django_raises_or_is_silent_as_ever(configure: Callable[..., None]) -> None:
    with refusing() as dead:
        configure(dead)
        with pytest.raises(NoHostAvailable):
            send("1")
        assert mail.send_mail("2", "Hi", "a@x.test", ["b@x.test"], fail_silently=True) == 0


def test_a_bad_password_is_raised_and_counts_against_nobody(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    configure(start_host().options, EMAIL_HOST_USER="user", EMAIL_HOST_PASSWORD="wrong")
    with pytest.raises(smtplib.SMTPAuthenticationError):
        send("1")
    assert failcount(0) == 0


def test_options_of_the_backend_win_over_settings(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    host = start_host()
    configure(host.options, EMAIL_UPSTREAM="other", EMAIL_TIMEOUT=7)
    with EmailBackend(upstream="mail", timeout=3) as connection:
        assert connection.connection.sock.gettimeout() == 3
    with EmailBackend(upstream="mail") as connection:
        assert connection.connection.sock.gettimeout() == 7


def test_an_upstream_that_is_not_named_or_not_there_is_said() -> None:
    with override_settings(EMAIL_BACKEND=BACKEND, UPSTREAMS=upstreams()):
        with pytest.raises(ImproperlyConfigured, match='write EMAIL_UPSTREAM = "mail"'):
            send("1")
        with (
            override_settings(EMAIL_UPSTREAM="post"),
            pytest.raises(UpstreamNotFound, match="no upstream 'post': the setting UPSTREAMS has 'mail'"),
        ):
            send("1")
