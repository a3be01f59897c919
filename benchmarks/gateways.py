"""What the ASGI and WSGI middleware add to a request: those of Starlette and FastAPI, of Werkzeug and Flask."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from benchmarks.harness import Group, Sample, Variant, at_most_more_us
from benchmarks.upstreams import do_nothing
from resty_upstream import Upstreams
from resty_upstream.asgi import UpstreamMiddleware as AsgiMiddleware
from resty_upstream.wsgi import UpstreamMiddleware as WsgiMiddleware

_CALLS = 300
_BODY = [b"answer"]


@contextlib.contextmanager
def gateways() -> Iterator[list[Group]]:
    """Unused, and used with a connector that does nothing."""
    hosts = {name: {"host": "127.0.0.1"} for name in "abc"}
    upstreams = Upstreams({"default": {"store": "memory://", "pools": {"primary": {"hosts": hosts}}}})
    upstreams["default"].connect(do_nothing)
    with asyncio.Runner() as runner:
        yield [_asgi(upstreams, runner), _wsgi(upstreams)]


def _asgi(upstreams: Upstreams, runner: asyncio.Runner) -> Group:
    async def unused(_scope: Any, _receive: Any, _send: Any) -> None:
        pass

    async def used(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"]["upstream"].connect(do_nothing)

    return Group(
        "ASGI: a request; memory store, a connector that does nothing",
        _CALLS,
        [
            Variant("a no-op middleware", _serving_asgi(_AsgiNoOp(unused), runner)),
            Variant(
                "UpstreamMiddleware, unused",
                _serving_asgi(AsgiMiddleware(unused, upstreams), runner),
                at_most_more_us(1.5),
            ),
            Variant(
                "UpstreamMiddleware, with connect",
                _serving_asgi(AsgiMiddleware(used, upstreams), runner),
                at_most_more_us(6),
            ),
        ],
        comparison="difference",
    )


def _wsgi(upstreams: Upstreams) -> Group:
    def unused(_environ: Any, _start_response: Any) -> list[bytes]:
        return _BODY

    def used(environ: Any, _start_response: Any) -> list[bytes]:
        environ["resty_upstream"].connect(do_nothing)
        return _BODY

    return Group(
        "WSGI: a request, its response closed; memory store, a connector that does nothing",
        _CALLS,
        [
            Variant("a no-op middleware", _serving_wsgi(_WsgiNoOp(unused))),
            Variant(
                "UpstreamMiddleware, unused",
                _serving_wsgi(WsgiMiddleware(unused, upstreams)),
                at_most_more_us(1.5),
            ),
            Variant(
                "UpstreamMiddleware, with connect",
                _serving_wsgi(WsgiMiddleware(used, upstreams)),
                at_most_more_us(6),
            ),
        ],
        comparison="difference",
    )


class _AsgiNoOp:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


class _WsgiNoOp:
    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return self._app(environ, start_response)


def _serving_asgi(serve: Any, runner: asyncio.Runner) -> Sample:
    async def sample(calls: int) -> int:
        # As servers make them; freed one by one, as there: what hangs on them has to be made, and to go again.
        scopes = [{"type": "http", "client": ("127.0.0.1", 50_000), "state": {}} for _ in range(calls)]
        next_scope = scopes.pop
        began = time.perf_counter_ns()
        for _ in repeat(None, calls):
            await serve(next_scope(), None, None)
        return time.perf_counter_ns() - began

    return lambda calls: runner.run(sample(calls))


def _serving_wsgi(serve: Any) -> Sample:
    def sample(calls: int) -> int:
        environs = [{"REMOTE_ADDR": "127.0.0.1"} for _ in range(calls)]
        next_environ = environs.pop
        began = time.perf_counter_ns()
        for _ in repeat(None, calls):
            body = serve(next_environ(), None)
            for _part in body:
                pass
            close = getattr(body, "close", None)
            if close is not None:
                close()
        return time.perf_counter_ns() - began

    return sample
