"""Settings of the example site: the smallest that shows `resty_upstream` at work.

Read from the environment, so that several copies can run at once:

- `EXAMPLE_BACKEND_PORTS`: ports of the back ends a, b and c (default `8001,8002,8003`)
- `EXAMPLE_REDIS_PORTS`: ports of the Redis servers r1 and r2 (default: no Redis, and no pages that need it)
- `EXAMPLE_STORE`: where pools and health live (default: a file in a private directory of this user)
- `EXAMPLE_STATUS_TOKEN`: who has it may change hosts on the status page (default: nobody)
- `EXAMPLE_SECRET_KEY`, `EXAMPLE_DEBUG`: as the Django settings of that name
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key


def _ports(variable: str, like: str) -> list[int]:
    """As many ports as `like` has; none where the variable is empty or missing."""
    value = os.environ.get(variable)
    if not value:
        return []
    try:
        ports = [int(port) for port in value.split(",")]
    except ValueError:
        ports = []
    if len(ports) != len(like.split(",")):
        raise ImproperlyConfigured(f"{variable} must be ports, as {like}: {value!r}")
    return ports


BACKEND_PORTS = _ports("EXAMPLE_BACKEND_PORTS", like="8001,8002,8003") or [8001, 8002, 8003]
REDIS_PORTS = _ports("EXAMPLE_REDIS_PORTS", like="6381,6382")


def _default_store() -> str:
    """The same file for every worker and command of this user, in a directory nobody else can write."""
    parent = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("XDG_STATE_HOME")
    directory = Path(parent) if parent else Path.home() / ".local" / "state"
    return f"sqlite://{directory.absolute() / 'resty-upstream-example' / 'upstreams.db'}"


# Random is enough: nothing here outlives a process that would be signed with it.
SECRET_KEY = os.environ.get("EXAMPLE_SECRET_KEY") or get_random_secret_key()
DEBUG = os.environ.get("EXAMPLE_DEBUG", "") == "1"
STATUS_TOKEN = os.environ.get("EXAMPLE_STATUS_TOKEN") or None
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]"]

INSTALLED_APPS = ["resty_upstream.contrib.django", "example_project.site"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "resty_upstream.contrib.django.UpstreamMiddleware",
]
ROOT_URLCONF = "example_project.site.urls"
WSGI_APPLICATION = "example_project.site.wsgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
USE_TZ = True
TIME_ZONE = "UTC"

# Options of every pool here
_lively: dict[str, Any] = {
    "timeout": 500,  # milliseconds, to connect
    # Down after two failures and tried again after two seconds: lively, for somebody who watches.
    # The defaults (3, 10 and 60) suit a service.
    "max_fails": 2,
    "failed_timeout": 2,
    "failed_timeout_max": 8,
}

UPSTREAMS: dict[str, dict[str, Any]] = {
    "default": {
        "STORE": os.environ.get("EXAMPLE_STORE") or _default_store(),
        "POOLS": {
            "primary": {
                **_lively,
                "read_timeout": 500,  # milliseconds, of an answer of HTTP
                "hosts": {
                    "a": {"host": "127.0.0.1", "port": BACKEND_PORTS[0], "weight": 10},
                    "b": {"host": "127.0.0.1", "port": BACKEND_PORTS[1], "weight": 10},
                },
            },
            # Used when nothing in `primary` is available: a higher number is tried later.
            "dr": {
                **_lively,
                "read_timeout": 500,
                "priority": 10,
                "hosts": {"c": {"host": "127.0.0.1", "port": BACKEND_PORTS[2], "weight": 10}},
            },
        },
    },
}

# Another service is another upstream. Connections to Redis are kept, so that a server may die and come back while
# nobody connects: checks notice it.
if REDIS_PORTS:
    _checked: dict[str, Any] = {
        **_lively,
        "healthcheck": {
            "type": "example_project.site.checks.ping",
            "interval": 1,
            "interval_down": 1,
            "read_timeout": 400,
        },
    }
    UPSTREAMS["cache"] = {
        "STORE": UPSTREAMS["default"]["STORE"],
        "POOLS": {
            "redis": {**_checked, "hosts": {"r1": {"host": "127.0.0.1", "port": REDIS_PORTS[0]}}},
            "standby": {
                **_checked,
                "priority": 10,
                "hosts": {"r2": {"host": "127.0.0.1", "port": REDIS_PORTS[1]}},
            },
        },
    }

# Errors of requests and hosts that go up or down, also without DEBUG
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler", "level": "WARNING"}},
    "root": {"handlers": ["stderr"]},
}
