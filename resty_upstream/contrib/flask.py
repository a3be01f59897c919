"""Flask: ``current_upstream``, configured by ``UPSTREAMS``.

::

    app = Flask(__name__)
    app.config["UPSTREAMS"] = {"default": {"store": "sqlite:///run/myapp/upstreams.db", "pools": {...}}}
    Upstreams(app)


    @app.get("/users")
    def users():
        sock, info = current_upstream.connect()
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import current_app, has_request_context, request
from werkzeug.local import LocalProxy

from resty_upstream import InvalidConfig, Problem, RequestContext, RequestUpstreams, Upstream, UpstreamError
from resty_upstream import Upstreams as UpstreamsByName
from resty_upstream.wsgi import UpstreamMiddleware

if TYPE_CHECKING:
    from flask import Flask

    Given = Upstream | Mapping[str, Any] | str | os.PathLike[str]

__all__ = ["Upstreams", "current_upstream", "current_upstreams"]

_EXTENSION = "resty_upstream"


class Upstreams:
    """The extension: gives requests ``current_upstream``, and the app its upstreams and ``flask upstream``.

    :param app: initialised at once; or call :meth:`init_app` later, for one app or several.
    :param upstreams: what :class:`resty_upstream.Upstreams` takes; ``app.config["UPSTREAMS"]`` if not given. The
        path of a file is relative to the app's ``root_path``, as those of Flask's own configuration are.

    What a request sees of hosts is shared with all workers after the last byte of its response.
    """

    def __init__(self, app: Flask | None = None, upstreams: Given | None = None) -> None:
        self._given = upstreams
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the upstreams to an app; ``app.extensions["resty_upstream"]`` has them by name.

        :raises InvalidConfig: naming every problem.
        """
        given = self._given if self._given is not None else app.config.get("UPSTREAMS")
        if given is None:
            what = 'app.config["UPSTREAMS"] must be given: a mapping of upstreams by name, or the path of a file'
            raise InvalidConfig(Problem(what, "missing"))
        if isinstance(given, str | os.PathLike):
            given = os.path.join(app.root_path, given)
        upstreams = UpstreamsByName(given, application=f"{app.import_name} {app.root_path}")
        app.extensions[_EXTENSION] = upstreams
        app.wsgi_app = UpstreamMiddleware(app.wsgi_app, upstreams)  # type: ignore[method-assign]  # Flask's own way


def _upstreams() -> RequestUpstreams | UpstreamsByName:
    of_request = request.environ.get("resty_upstreams") if has_request_context() else None
    found = of_request if of_request is not None else current_app.extensions.get(_EXTENSION)
    if found is None:
        raise UpstreamError("this app has no upstreams: add resty_upstream.contrib.flask.Upstreams(app)")
    return found  # type: ignore[no-any-return]  # the middleware or the extension put it there


current_upstreams: RequestUpstreams = LocalProxy(_upstreams)  # type: ignore[assignment]  # as Flask's own proxies
"""All upstreams of the request, by name; outside a request those of the app."""
current_upstream: RequestContext = LocalProxy(lambda: _upstreams()["default"])  # type: ignore[assignment]
"""The upstream named ``default`` of the request; outside a request that of the app."""
