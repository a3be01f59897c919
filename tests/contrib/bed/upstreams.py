"""The upstreams of the test sites.

Every request that calls one fails at ``primary``, whose host is dead and never taken down, and succeeds at
``reserve``: one more in the count of the dead host's failures is one request that was told.
"""

from __future__ import annotations

import os
from typing import Any


def pools(dead: int, alive: int) -> dict[str, Any]:
    """Pools in which the first host tried refuses and the second answers."""
    patient = {"max_fails": 1_000_000, "failed_timeout": 3600}
    return {
        "primary": {**patient, "hosts": {"dead": {"host": "127.0.0.1", "port": dead}}},
        "reserve": {**patient, "priority": 10, "hosts": {"alive": {"host": "127.0.0.1", "port": alive}}},
    }


def of_this_site() -> dict[str, Any]:
    """The store and the pools of the site that this process serves."""
    ports = int(os.environ["SITE_DEAD_PORT"]), int(os.environ["SITE_ALIVE_PORT"])
    return {"store": os.environ["SITE_STORE"], "pools": pools(*ports)}
