"""The site of the pictures: the example site with other back ends, on the ports in `SCREENS_PORTS`."""

from __future__ import annotations

import os
from typing import Any

from example_project.site import settings as example
from example_project.site.settings import *  # noqa: F403  # all that is not said below is the same

_LIVELY: dict[str, Any] = {"timeout": 500, "max_fails": 2, "failed_timeout": 2, "failed_timeout_max": 4}
POOLS = {
    "primary": {"app-1": 20, "app-2": 20, "app-3": 10},
    "dr": {"dr-1": 10, "dr-2": 10},
}
"""The weights of the hosts."""
NAMES = [name for hosts in POOLS.values() for name in hosts]
PORTS = [int(port) for port in os.environ.get("SCREENS_PORTS", "8001,8002,8003,8004,8005").split(",")]
_PORT_OF = dict(zip(NAMES, PORTS, strict=True))


def _pool(number: int, hosts: dict[str, int]) -> dict[str, Any]:
    return {
        **_LIVELY,
        "priority": 10 * number,
        # No request tells how a pool in reserve is.
        **({"healthcheck": {"path": "/stats", "interval": 5}} if number else {}),
        "hosts": {
            name: {"host": "127.0.0.1", "port": _PORT_OF[name], "weight": weight} for name, weight in hosts.items()
        },
    }


UPSTREAMS = {
    "default": {
        "STORE": example.UPSTREAMS["default"]["STORE"],
        "POOLS": {pool: _pool(number, hosts) for number, (pool, hosts) in enumerate(POOLS.items())},
    }
}
