"""Settings of a site whose database is an upstream."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.contrib.postgres import PASSWORD, USER

SECRET_KEY = "not a secret"
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", "resty_upstream.contrib.django"]
UPSTREAMS: dict[str, Any] = {
    "databases": {"STORE": "memory://", "POOLS": json.loads(os.environ.get("DB_POOLS", "{}"))}
}
DATABASES = {
    "default": {
        "ENGINE": "resty_upstream.contrib.django.db.postgresql",
        "NAME": os.environ.get("DB_NAME", "postgres"),
        "USER": USER,
        "PASSWORD": PASSWORD,
        "OPTIONS": {"upstream": "databases"},
    }
}
