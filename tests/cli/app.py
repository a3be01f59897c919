"""A Flask app with the upstreams of the environment."""

from __future__ import annotations

import json
import os

from flask import Flask

from resty_upstream.contrib.flask import Upstreams

app = Flask(__name__)
app.config["UPSTREAMS"] = json.loads(os.environ["CLI_UPSTREAMS"])
Upstreams(app)
