"""smtplib: mail goes to a server that takes it.

::

    with UpstreamSMTP(upstream, "mail.example", starttls=ssl.create_default_context()) as smtp:
        smtp.login("user", "password")
        smtp.send_message(message)
        smtp.info.host.id  # which host has it
"""

from __future__ import annotations

from resty_upstream.clients.smtplib import UpstreamSMTP

__all__ = ["UpstreamSMTP"]
