"""The status page: all pools and hosts at a glance, and the switches for them.

:class:`resty_upstream.status.asgi.StatusApp` and :class:`resty_upstream.status.wsgi.StatusApp` are applications of
their own. A framework that knows who its users are has :class:`Board` answer for them.
"""

from resty_upstream.status.access import Request
from resty_upstream.status.actions import Order
from resty_upstream.status.assets import TYPES
from resty_upstream.status.data import Status, schema, status
from resty_upstream.status.page import Viewer
from resty_upstream.status.site import Board, Response

__all__ = ["TYPES", "Board", "Order", "Request", "Response", "Status", "Viewer", "schema", "status"]
