"""Settings of the test site."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.contrib.bed.upstreams import of_this_site

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
UPSTREAMS: dict[str, Any] = {}
if "SITE_STORE" in os.environ:
    UPSTREAMS["default"] = {option.upper(): value for option, value in of_this_site().items()}
