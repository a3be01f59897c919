"""Settings of the site: an upstream for its requests, and one for what it does on its event loop."""

from __future__ import annotations

import os
from typing import Any

SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
INSTALLED_APPS = ["resty_upstream.contrib.django", "tests.contrib.django.signals_project"]
MIDDLEWARE = ["resty_upstream.contrib.django.UpstreamMiddleware"]
ROOT_URLCONF = "tests.contrib.django.signals_project.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["SITE_DATABASE"]}}
PATIENT = {"max_fails": 1, "failed_timeout": 3600, "failed_timeout_max": 3600}


def pools() -> dict[str, Any]:
    """One failure takes the first host down, for longer than a test takes."""
    return {
        "primary": {**PATIENT, "hosts": {"dead": {"host": "127.0.0.1", "port": os.environ["SITE_DEAD_PORT"]}}},
        "reserve": {
            "priority": 10,
            "hosts": {"alive": {"host": "127.0.0.1", "port": os.environ["SITE_ALIVE_PORT"]}},
        },
    }


UPSTREAMS = {name: {"STORE": os.environ["SITE_STORE"], "POOLS": pools()} for name in ("default", "loop")}
