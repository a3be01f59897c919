"""Django's mail through the hosts of an upstream.

::

    EMAIL_BACKEND = "resty_upstream.contrib.django.mail.EmailBackend"
    EMAIL_UPSTREAM = "mail"  # in UPSTREAMS
    EMAIL_HOST = "mail.example"  # the name in the hosts' certificates
    EMAIL_USE_TLS = True

From Django 6.1 on::

    MAILERS = {
        "default": {
            "BACKEND": "resty_upstream.contrib.django.mail.EmailBackend",
            "OPTIONS": {"upstream": "mail", "host": "mail.example", "use_tls": True},
        }
    }
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail.backends import smtp

from resty_upstream.clients.smtplib import UpstreamSMTP
from resty_upstream.contrib.django.conf import get_upstream


class EmailBackend(smtp.EmailBackend):
    """Django's own backend for SMTP, whose connections go to a host that takes them.

    ``EMAIL_HOST`` is the one name that the certificates of all hosts have; where the hosts are, at which ports,
    and how long to wait for them is in ``UPSTREAMS``. ``EMAIL_TIMEOUT`` is for the answers of a server that is
    connected, 60 seconds if not set. All else is as it is without an upstream.

    :param upstream: the name of the upstream in ``UPSTREAMS``; ``EMAIL_UPSTREAM`` if not given.
    :raises ImproperlyConfigured: where neither is there.
    """

    def __init__(self, *args: Any, upstream: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        name = upstream or getattr(settings, "EMAIL_UPSTREAM", None)
        if not name:
            raise ImproperlyConfigured(
                'Name the upstream of the mail servers: write EMAIL_UPSTREAM = "mail", '
                'or "OPTIONS": {"upstream": "mail"} in MAILERS, and "mail" in UPSTREAMS.'
            )
        self.upstream: str = name

    @property
    def connection_class(self) -> Callable[..., UpstreamSMTP]:  # type: ignore[override]  # it makes one
        """What makes a connection, as a class of smtplib does."""
        return self._connect

    def _connect(
        self,
        host: str,
        _port: int,
        *,
        local_hostname: str,
        timeout: float = 60.0,
        context: ssl.SSLContext | None = None,
    ) -> UpstreamSMTP:
        return UpstreamSMTP(
            get_upstream(self.upstream),
            host,
            tls=context,
            # Here, so that a host whose handshake fails is followed by the next; Django's own comes to nothing.
            starttls=self.ssl_context if self.use_tls else None,
            local_hostname=local_hostname,
            timeout=timeout,
        )
