"""A Django site with the upstreams of the environment."""

from __future__ import annotations

import json
import os

SECRET_KEY = "not a secret"
USE_TZ = True
INSTALLED_APPS = ["resty_upstream.contrib.django"]
UPSTREAMS = {
    name: {option.upper(): value for option, value in options.items()}
    for name, options in json.loads(os.environ["CLI_UPSTREAMS"]).items()
}
