"""What hypothesis makes up: JSON-like values, options that are nearly right, and sets of pools."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from resty_upstream.model import GivenHealth, Host, Pool

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["80", "0", "-1", "1e3", "nan", "inf", "250ms", "2s", "1 m", "", "round_robin", "unix:/run/s"]
    )
)
json_like = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)

_POOL_NAMES = [name for name in Pool.__struct_fields__ if name not in ("id", "hosts")]
_HOST_NAMES = [
    *(name for name in Host.__struct_fields__ if name not in ("id", "weight_end")),
    *GivenHealth.__struct_fields__,
]
# Whole tables at once: what hypothesis makes up stays small.
_CHECKS = [
    True,
    False,
    {},
    {"type": "tcp", "interval": "2s", "timeout": 100, "rise": 1},
    {"type": "myapp.checks.ping", "interval_down": 0.5, "fall": 5},
    {"headers": {"X-Check": "1"}, "status_codes": ["5xx", 404], "body": "ok", "path": "/health?full=1"},
    {"status_codes": {"50x": True}, "method": "HEAD", "read_timeout": "1s"},
]
_GOOD: dict[str, st.SearchStrategy[Any]] = {
    "up": st.booleans(),
    "method": st.sampled_from(["round_robin", "random", "hash"]),
    "timeout": st.sampled_from([100, "100", "250ms", 1.5]),
    "priority": st.integers(-5, 5) | st.sampled_from(["3", "-1"]),
    "max_fails": st.integers(0, 5),
    "failed_timeout": st.sampled_from([1, "2s", 0.5]),
    "failed_timeout_max": st.sampled_from([1, "1m"]),
    "healthcheck": st.sampled_from(_CHECKS),
    "slow_start": st.sampled_from([0, 30, "1m"]),
    "key": st.sampled_from(["ip", "header:X-User", "cookie:session"]),
    "sticky": st.sampled_from([True, False, {"cookie": "host"}, {"max_age": "1h"}]),
    "load": st.sampled_from(["in_flight", "peak_ewma"]),
    "outlier_detection": st.sampled_from([True, False, {"requests": 5, "success_rate": 90, "window": "1m"}]),
    "status_codes": st.sampled_from([[], ["5xx"], [503, "50X"], {"429": True, "5xx": False}]),
    "read_timeout": st.sampled_from([500, "10s"]),
    "keepalive_pool": st.sampled_from([0, 8]),
    "keepalive_timeout": st.sampled_from([1000, "1m"]),
    "ssl": st.booleans(),
    "ssl_verify": st.booleans(),
    "sni_host": st.sampled_from(["", "app.test"]),
    "host": st.sampled_from(["127.0.0.1", "::1", "[::1]", "a.test", "unix:/run/a.sock"]),
    "port": st.integers(1, 65_535) | st.sampled_from(["80", "8080"]),
    "weight": st.integers(0, 100) | st.sampled_from(["5"]),
    "failcount": st.integers(0, 9),
    "lastfail": st.floats(0, 1e10),
}
ids = st.sampled_from(["a", "b", "c", "1", "2"])


def _options(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Options that are right; those of a host always have a ``host``."""
    required = {"host": _GOOD["host"]} if "host" in names else {}
    return st.fixed_dictionaries(required, optional={name: _GOOD[name] for name in names if name not in required})


pool_options = _options(_POOL_NAMES)
host_options = _options(_HOST_NAMES)
pools = st.dictionaries(
    ids,
    st.tuples(pool_options, st.dictionaries(ids, host_options, max_size=4)).map(
        lambda pair: {**pair[0], "hosts": pair[1]}
    ),
    max_size=3,
)


@st.composite
def _spoilt(draw: st.DrawFn, good: st.SearchStrategy[Any]) -> Any:
    """A value of ``good`` with something in it replaced by anything."""
    value = copy.deepcopy(draw(good))  # tables are sampled, and shared
    here: Any = value
    while isinstance(here, dict) and here:
        name = draw(st.sampled_from(sorted(here)) | st.text(max_size=10))
        inner = here.get(name)
        if isinstance(inner, dict) and inner and draw(st.booleans()):
            here = inner
            continue
        here[name] = draw(json_like)
        break
    return value


some_pool_options = st.dictionaries(st.text(max_size=10), json_like, max_size=4) | _spoilt(pool_options)
some_host_options = _spoilt(host_options)
some_pools = json_like | _spoilt(pools)
