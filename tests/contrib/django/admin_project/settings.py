"""Settings of the test site with an admin."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent
SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
USE_I18N = True
LANGUAGES = [("en", "English"), ("de", "German")]
WITH_ADMIN = "SITE_WITHOUT_ADMIN" not in os.environ
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    *(["django.contrib.admin"] if WITH_ADMIN else []),
    "resty_upstream.contrib.django",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "resty_upstream.contrib.django.UpstreamMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = f"tests.contrib.django.{'admin_project' if WITH_ADMIN else 'project'}.urls"
STATIC_URL = "static/"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# A file: the threads of a server would share the one connection to a database in memory.
DATABASE = os.environ.get("SITE_DB", f"{tempfile.gettempdir()}/resty-upstream-admin-{os.getpid()}.sqlite3")
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE, "TEST": {"NAME": DATABASE}},
}
# Tests put MIDDLEWARE of their own in place of that which the admin needs.
SILENCED_SYSTEM_CHECKS = ["admin.E408", "admin.E409", "admin.E410"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
UPSTREAMS: dict[str, Any] = {
    "default": {
        "STORE": "memory://",
        "POOLS": {"p": {"hosts": {"a": {"host": "192.0.2.1"}, "b": {"host": "192.0.2.2"}}}},
    }
}
