"""The status page: all pools and hosts at a glance, and the switches for them.

:class:`resty_upstream.status.asgi.StatusApp` and :class:`resty_upstream.status.wsgi.StatusApp` are applications of
their own. A framework that knows who its users are has :class:`Board` answer for them.
"""

from resty_upstream.status.access import Request
from resty_upstream.status.actions import VERBS, Order
from resty_upstream.status.assets import TYPES, digest
from resty_upstream.status.data import Status, schema, status
from resty_upstream.status.page import Viewer, content
from resty_upstream.status.site import Board, Response
from resty_upstream.status.words import title

__all__ = [
    "TYPES",
    "VERBS",
    "Board",
    "Order",
    "Request",
    "Response",
    "Status",
    "Viewer",
    "content",
    "digest",
    "schema",
    "status",
    "title",
]
