"""Settings of the site, and of Celery: a broker that is a directory."""

from __future__ import annotations

import os

SECRET_KEY = "not a secret"
USE_TZ = True
INSTALLED_APPS = ["resty_upstream.contrib.django"]
PATIENT = {"max_fails": 1, "failed_timeout": 3600, "failed_timeout_max": 3600}
POOLS = {
    "primary": {**PATIENT, "hosts": {"dead": {"host": "127.0.0.1", "port": os.environ["SITE_DEAD_PORT"]}}},
    "reserve": {"priority": 10, "hosts": {"alive": {"host": "127.0.0.1", "port": os.environ["SITE_ALIVE_PORT"]}}},
}
UPSTREAMS = {"cache": {"STORE": os.environ["SITE_STORE"], "POOLS": POOLS}}

CELERY_BROKER_URL = "filesystem://"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "data_folder_in": os.environ["SITE_QUEUE"],
    "data_folder_out": os.environ["SITE_QUEUE"],
    "control_folder": os.environ["SITE_QUEUE"] + "-control",
    "polling_interval": 0.02,
}
