"""Django's mail through the hosts of an upstream: aiosmtpd in processes."""

from __future__ import annotations

import smtplib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import django
import pytest
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from resty_upstream import NoHostAvailable, UpstreamNotFound
from resty_upstream.contrib.django import get_upstream
from resty_upstream.contrib.django.mail import EmailBackend
from tests.contrib.mailhost import MailHost
from tests.contrib.tls import AUTHORITY, NAME, certificate
from tests.helpers import refusing

BACKEND = "resty_upstream.contrib.django.mail.EmailBackend"


def upstreams(*peers: Mapping[str, Any]) -> dict[str, Any]:
    """``UPSTREAMS`` with these mail servers, to be tried in this order."""
    pools = {f"p{n}": {"priority": n, "max_fails": 1, "hosts": {"h": peer}} for n, peer in enumerate(peers)}
    return {"mail": {"STORE": "memory://", "POOLS": pools, "LAST_RESORT": False}}


def failcount(number: int) -> int:
    return int(get_upstream("mail").get_pools()[f"p{number}"]["hosts"]["h"]["failcount"])


def message(subject: str) -> mail.EmailMessage:
    return mail.EmailMessage(subject, "Hello.", "a@app.example", ["b@app.example"])


def send(subject: str) -> int:
    return mail.send_mail(subject, "Hello.", "a@app.example", ["b@app.example"])


# The options of the backend as settings, before there was MAILERS
SETTINGS = {
    "host": "EMAIL_HOST",
    "upstream": "EMAIL_UPSTREAM",
    "username": "EMAIL_HOST_USER",
    "password": "EMAIL_HOST_PASSWORD",
    "use_tls": "EMAIL_USE_TLS",
    "use_ssl": "EMAIL_USE_SSL",
    "timeout": "EMAIL_TIMEOUT",
}
HAS_MAILERS = django.VERSION >= (6, 1)


def mail_settings(**options: Any) -> dict[str, Any]:
    """The settings of a site whose backend has these options."""
    options = {"host": NAME} | options
    if HAS_MAILERS:
        return {"MAILERS": {"default": {"BACKEND": BACKEND, "OPTIONS": options}}}
    return {"EMAIL_BACKEND": BACKEND} | {SETTINGS[name]: value for name, value in options.items()}


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Configures the mail of the site: the servers, and options of the backend."""

    def configure(*peers: Mapping[str, Any], **options: Any) -> None:
        settings.UPSTREAMS = upstreams(*peers)
        for name, value in mail_settings(upstream="mail", **options).items():
            setattr(settings, name, value)

    return configure


def open_backend() -> EmailBackend:
    """A backend as Django makes it for a message."""
    made: Any = mail.mailers["default"] if HAS_MAILERS else mail.get_connection()
    assert isinstance(made, EmailBackend)
    return made


def test_mail_goes_to_a_host_that_takes_it(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    a, b = start_host(), start_host()
    configure(a.options, b.options, username="user", password="password")
    assert send("1") == 1
    a.kill()
    assert send("2") == 1
    assert mail.send_mass_mail([(str(n), "Hi", "a@app.example", ["b@app.example"]) for n in (3, 4)]) == 2
    assert (a.subjects, b.subjects) == (["1"], ["2", "3", "4"])
    assert (failcount(0), failcount(1)) == (1, 0)


@pytest.mark.parametrize(("how", "option"), [("starttls", "use_tls"), ("tls", "use_ssl")])
def test_certificates_are_for_email_host(
    start_host: Callable[..., MailHost],
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    how: str,
    option: str,
) -> None:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    foreign, host = start_host(how, certificate("other.example")), start_host(how, certificate(NAME))
    configure(foreign.options, host.options, **{option: True})
    assert send("secret") == 1
    assert (foreign.subjects, host.subjects) == ([], ["secret"])
    assert (failcount(0), failcount(1)) == (1, 0)


def test_a_connection_that_is_kept_serves_many_messages_and_the_next_one_chooses_anew(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    a, b = start_host(), start_host()
    configure(a.options, b.options)
    with open_backend() as backend:
        assert [backend.send_messages([message(subject)]) for subject in ("1", "2")] == [1, 1]
        a.kill()
        with pytest.raises(smtplib.SMTPServerDisconnected):  # whatever became of it is not sent again
            backend.send_messages([message("3")])
    with open_backend() as backend:
        backend.send_messages([message("4")])
    assert (a.subjects, b.subjects) == (["1", "2"], ["4"])


def test_when_no_host_is_left_django_raises_or_is_silent_as_ever(configure: Callable[..., None]) -> None:
    with refusing() as dead:
        configure(dead)
        with pytest.raises(NoHostAvailable):
            send("1")
        backend = open_backend()
        backend.fail_silently = True
        assert backend.send_messages([message("2")]) == 0


def test_a_bad_password_is_raised_and_counts_against_nobody(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    configure(start_host().options, username="user", password="wrong")
    backend = open_backend()
    with pytest.raises(smtplib.SMTPAuthenticationError):
        backend.send_messages([message("1")])
    backend.close()  # which Django leaves to us then
    assert failcount(0) == 0


@pytest.mark.parametrize(("options", "expected"), [({"timeout": 7}, 7), ({}, 60)])
def test_the_timeout_of_the_backend_is_for_answers(
    start_host: Callable[..., MailHost], configure: Callable[..., None], options: Any, expected: int
) -> None:
    configure(start_host().options, **options)
    with open_backend() as backend:
        assert backend.connection.sock.gettimeout() == expected


def test_the_upstream_is_an_option_or_a_setting(
    start_host: Callable[..., MailHost], configure: Callable[..., None]
) -> None:
    host = start_host()
    configure(host.options)
    with override_settings(EMAIL_UPSTREAM="mail", **mail_settings()):
        assert send("1") == 1
    assert host.subjects == ["1"]


def test_an_upstream_that_is_not_named_or_not_there_is_said() -> None:
    with override_settings(UPSTREAMS=upstreams(), **mail_settings()):
        with pytest.raises(ImproperlyConfigured, match='write EMAIL_UPSTREAM = "mail"'):
            send("1")
        with (
            override_settings(EMAIL_UPSTREAM="post"),
            pytest.raises(UpstreamNotFound, match="no upstream 'post': the setting UPSTREAMS has 'mail'"),
        ):
            send("1")
