"""Werkzeug, and any WSGI application: ``environ["resty_upstream"]``, and ``request.upstream``.

::

    class MyRequest(UpstreamRequestMixin, Request):
        pass


    application = UpstreamMiddleware(application, upstreams="upstreams.toml")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resty_upstream import RequestContext, RequestUpstreams
from resty_upstream.wsgi import UpstreamMiddleware, upstreams_of

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

__all__ = ["UpstreamMiddleware", "UpstreamRequestMixin"]


class UpstreamRequestMixin:
    """Gives a request class of Werkzeug or Flask ``upstream`` and ``upstreams``."""

    environ: WSGIEnvironment

    @property
    def upstream(self) -> RequestContext:
        """The upstream named ``default``.

        :raises UpstreamError: naming the middleware, where it is missing.
        """
        return self.upstreams["default"]

    @property
    def upstreams(self) -> RequestUpstreams:
        """All upstreams, by name.

        :raises UpstreamError: naming the middleware, where it is missing.
        """
        return upstreams_of(self.environ)
