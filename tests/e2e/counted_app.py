"""An application that makes one call for each request: to a host that answers, or to one that refuses before."""

from __future__ import annotations

import os
from typing import Any

from resty_upstream import Upstream
from tests.helpers import hosts, refused

POOLS = {"primary": {"max_fails": 10**6, "hosts": hosts("a", "b")}}

upstream = Upstream(os.environ["E2E_STORE"], pools=POOLS)
if "E2E_USED_BEFORE_FORK" in os.environ:
    upstream.connect(lambda host, _port, _timeout_s: host)


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """``/retry`` fails at the first host."""
    fails = environ["PATH_INFO"] == "/retry"

    def call(host: str, _port: int, _timeout_s: float) -> str:
        nonlocal fails
        if fails:
            fails = False
            raise refused()
        return host

    upstream.connect(call)
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
