"""What a request to the Django site does."""

from __future__ import annotations

from typing import cast

from django.http import HttpRequest

from resty_upstream.contrib.django import UpstreamHttpRequest
from tests.contrib.bed.visits import Visit


def visit(request: HttpRequest) -> Visit:
    """Looks the upstream up when it is called."""
    return Visit(lambda: cast("UpstreamHttpRequest", request).upstreams["default"], request.GET)
