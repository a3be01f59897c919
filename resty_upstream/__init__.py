"""Client-side load balancing and failover, with one view of health for all worker processes."""

from resty_upstream.api import UpstreamAPI
from resty_upstream.attempts import Attempt, Attempts, Info
from resty_upstream.config import Upstreams
from resty_upstream.connectors import Connected, register_connector
from resty_upstream.context import RequestContext, RequestUpstreams
from resty_upstream.counts import HostCounts, UpstreamCounts
from resty_upstream.errors import (
    HostExists,
    HostNotFound,
    InvalidConfig,
    MethodNotFound,
    NoHostAvailable,
    PoolExists,
    PoolNotFound,
    Problem,
    StoreBusy,
    StoreError,
    StoreFormatError,
    StoreUnavailable,
    StoreUnsafe,
    UpstreamError,
    UpstreamNotFound,
)
from resty_upstream.events import HostEvent
from resty_upstream.history import Transition
from resty_upstream.methods import register_method
from resty_upstream.model import HealthCheck, Host, OutlierDetection, Pool, Sticky
from resty_upstream.selection import Explanation
from resty_upstream.tls import OverTLS
from resty_upstream.upstream import Upstream

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "Attempts",
    "Connected",
    "Explanation",
    "HealthCheck",
    "Host",
    "HostCounts",
    "HostEvent",
    "HostExists",
    "HostNotFound",
    "Info",
    "InvalidConfig",
    "MethodNotFound",
    "NoHostAvailable",
    "OutlierDetection",
    "OverTLS",
    "Pool",
    "PoolExists",
    "PoolNotFound",
    "Problem",
    "RequestContext",
    "RequestUpstreams",
    "Sticky",
    "StoreBusy",
    "StoreError",
    "StoreFormatError",
    "StoreUnavailable",
    "StoreUnsafe",
    "Transition",
    "Upstream",
    "UpstreamAPI",
    "UpstreamCounts",
    "UpstreamError",
    "UpstreamNotFound",
    "Upstreams",
    "__version__",
    "register_connector",
    "register_method",
]
