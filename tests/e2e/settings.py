"""The settings of the example, with the options of its pools from the environment."""

from __future__ import annotations

import json
import os

from example_project.site.settings import *  # noqa: F403 - settings are what another module has, and more
from example_project.site.settings import UPSTREAMS

for pool in UPSTREAMS["default"]["POOLS"].values():
    pool.update(json.loads(os.environ["E2E_POOL"]))
