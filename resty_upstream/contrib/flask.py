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
import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click
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
        try:
            upstreams = UpstreamsByName(given, application=f"{app.import_name} {app.root_path}")
        except InvalidConfig as error:
            if click.get_current_context(silent=True):
                raise _WrongInCommand(error) from error  # a command says it without a traceback
            raise
        app.cli.add_command(_UpstreamCommand(app.cli, upstreams))
        app.extensions[_EXTENSION] = upstreams
        app.wsgi_app = UpstreamMiddleware(app.wsgi_app, upstreams)  # type: ignore[method-assign]  # Flask's own way


_COMMAND = "upstream"
_PROG = f"flask {_COMMAND}"
_ABOUT = "The upstreams are those that the app is configured with."


class _UpstreamCommand(click.Command):
    """``flask upstream``: the arguments are for the parser of :mod:`resty_upstream.cli`, as they are."""

    def __init__(self, group: click.Command, upstreams: UpstreamsByName) -> None:
        super().__init__(_COMMAND, add_help_option=False, short_help="Look at pools and hosts, and change them.")
        self._group = group
        self._upstreams = upstreams

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> NoReturn:
        # Called by the app's own group, in a test, this is the process that uses the upstreams.
        in_process = ctx.find_root().command is self._group
        ctx.exit(_run(ctx.args, self._upstreams, owns_memory=in_process))


class _WrongInCommand(click.ClickException):
    """A wrong configuration, as ``flask upstream`` shows it; as the verb ``check`` does, for any other command."""

    def __init__(self, error: InvalidConfig) -> None:
        super().__init__(str(error))
        self._error = error

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002 - as click calls it
        given = sys.argv[sys.argv.index(_COMMAND) + 1 :] if _COMMAND in sys.argv else ["check"]
        self.exit_code = _run(given, self._error)  # type: ignore[misc]  # where click looks for it, of this error


def _run(given: list[str], upstreams: UpstreamsByName | InvalidConfig, *, owns_memory: bool = False) -> int:
    from resty_upstream.cli import build_parser, run

    def find(_options: object) -> UpstreamsByName:
        if isinstance(upstreams, InvalidConfig):
            raise upstreams
        return upstreams

    return run(build_parser(_PROG, about=_ABOUT), given, find, owns_memory=owns_memory)


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
