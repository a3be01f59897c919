"""The application for gunicorn: who answered a call, and for whom it was made."""

import json
import os
from typing import Any

from myapp.upstreams import upstreams
from prometheus_client import CollectorRegistry, make_wsgi_app

from resty_upstream.contrib.prometheus import UpstreamCollector
from resty_upstream.contrib.werkzeug import UpstreamMiddleware

registry = CollectorRegistry()
registry.register(UpstreamCollector(upstreams))
metrics = make_wsgi_app(registry)


def call(environ: dict[str, Any], start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    answer: dict[str, Any] = {"worker": os.getpid(), "scheme": environ["wsgi.url_scheme"]}
    if environ["PATH_INFO"] != "/healthz":
        upstream = environ["resty_upstream"]
        info = upstream.connect(lambda host, port, timeout_s: None).info
        answer |= {"host": info.host.id, "client": upstream.key(info.pool)}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


application = UpstreamMiddleware(call, upstreams)
