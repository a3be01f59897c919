"""Gunicorn for an application with upstreams: ``gunicorn -c gunicorn.conf.py``, in the application's directory."""

import os
from pkgutil import resolve_name
from typing import Any

# ── yours ─────────────────────────────────────────────────────────────────────────────────────

wsgi_app = "myapp.wsgi:application"
UPSTREAMS = "myapp.upstreams:upstreams"
"""The upstreams by name; of a Django project ``resty_upstream.contrib.django.conf:upstreams``."""
bind = "127.0.0.1:8000"  # a socket that systemd hands over goes before it

# ── workers ───────────────────────────────────────────────────────────────────────────────────

workers = int(os.environ.get("WEB_CONCURRENCY", "4"))
worker_class = "gthread"
threads = 8
# Beyond what the slowest request may take; the total_timeout of upstreams (15 s) has to fit into it.
timeout = 60
# What requests that are under way have when workers are replaced; systemd and Kubernetes wait longer than this.
graceful_timeout = 30
# Longer than nginx keeps idle connections, so that it never sends a request into one that is just being closed.
keepalive = 75
max_requests = 10_000
max_requests_jitter = 1_000
# Gunicorn's heartbeat is a file, which must not be on a disk that may be slow.
worker_tmp_dir = "/dev/shm"  # noqa: S108 - a private file in it
# It has one place for each user, at which two applications would meet.
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    """Open the stores before the first request: a directory that others can write ends the start here."""
    worker.upstreams = list(resolve_name(UPSTREAMS).values())
    for upstream in worker.upstreams:
        upstream.open()


def worker_exit(_server: Any, worker: Any) -> None:
    """Write what waits to be written; if hosts are checked from here, another worker goes on at once."""
    for upstream in getattr(worker, "upstreams", ()):
        upstream.close()
