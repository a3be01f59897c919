"""Settings of the test site.

Every request that calls the upstream fails at ``primary``, whose host is dead and never taken down, and
succeeds at ``reserve``: one more in the count of the dead host's failures is one request that was told.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
INSTALLED_APPS = ["resty_upstream.contrib.django"]
MIDDLEWARE = [
    "tests.contrib.django.project.middleware.outer",
    "resty_upstream.contrib.django.UpstreamMiddleware",
    "tests.contrib.django.project.middleware.inner",
]
ROOT_URLCONF = "tests.contrib.django.project.urls"


def pools(dead: int, alive: int) -> dict[str, Any]:
    """Pools in which the first host tried refuses and the second answers."""
    patient = {"max_fails": 1_000_000, "failed_timeout": 3600}
    return {
        "primary": {**patient, "hosts": {"dead": {"host": "127.0.0.1", "port": dead}}},
        "reserve": {**patient, "priority": 10, "hosts": {"alive": {"host": "127.0.0.1", "port": alive}}},
    }


UPSTREAMS: dict[str, Any] = {}
if "SITE_STORE" in os.environ:
    UPSTREAMS["default"] = {
        "STORE": os.environ["SITE_STORE"],
        "POOLS": pools(int(os.environ["SITE_DEAD_PORT"]), int(os.environ["SITE_ALIVE_PORT"])),
    }
