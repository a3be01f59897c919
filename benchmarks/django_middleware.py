"""What the Django middleware adds to a request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from benchmarks.harness import Group, Sample, Variant, at_most_more_us
from benchmarks.upstreams import do_nothing
from resty_upstream.contrib.django import UpstreamMiddleware, get_upstream

_CALLS = 250

GetResponse = Callable[[HttpRequest], Any]


@contextlib.contextmanager
def django_middleware() -> Iterator[list[Group]]:
    """Sync and async, used and not."""
    if not settings.configured:
        hosts = {name: {"host": "127.0.0.1"} for name in "abc"}
        settings.configure(UPSTREAMS={"default": {"STORE": "memory://", "POOLS": {"primary": {"hosts": hosts}}}})
    get_upstream().connect(do_nothing)
    with asyncio.Runner() as runner:
        yield [_unused_sync(), _unused_async(runner), _used()]


def _unused_sync() -> Group:
    return Group(
        "Django: a request that does not use it",
        _CALLS,
        [
            Variant("a no-op middleware", _serving(_NoOp, _ignore)),
            Variant("UpstreamMiddleware", _serving(UpstreamMiddleware, _ignore), at_most_more_us(2)),
        ],
        comparison="difference",
    )


def _unused_async(runner: asyncio.Runner) -> Group:
    return Group(
        "Django, async: a request that does not use it",
        _CALLS,
        [
            Variant("a no-op middleware", _serving_async(_async_no_op, runner)),
            Variant("UpstreamMiddleware", _serving_async(UpstreamMiddleware, runner)),
        ],
        comparison="difference",
    )


def _used() -> Group:
    return Group(
        "Django: a request, its response closed; memory store, a connector that does nothing",
        _CALLS,
        [
            Variant("a no-op middleware, no connect", _serving(_NoOp, _ignore, closing=True)),
            Variant("a no-op middleware, upstream.connect", _serving(_NoOp, _use_directly, closing=True)),
            Variant(
                "UpstreamMiddleware, with connect",
                _serving(UpstreamMiddleware, _use, closing=True),
                at_most_more_us(6),
            ),
        ],
        comparison="difference",
    )


class _NoOp:
    def __init__(self, get_response: GetResponse) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self._get_response(request)


def _async_no_op(get_response: GetResponse) -> GetResponse:
    async def serve(request: HttpRequest) -> Any:
        return await get_response(request)

    return serve


def _ignore(_request: HttpRequest) -> None:
    pass


def _use(request: Any) -> None:
    request.upstream.connect(do_nothing)


def _use_directly(_request: HttpRequest) -> None:
    get_upstream().connect(do_nothing)


def _serving(make: Callable[[GetResponse], GetResponse], view: GetResponse, *, closing: bool = False) -> Sample:
    def sample(calls: int) -> int:
        # Made before, freed one by one: what a middleware hangs on them has to be made, and to go again.
        requests, responses = _requests(calls), _responses(calls)
        next_response = responses.pop

        def get_response(request: HttpRequest) -> HttpResponse:
            view(request)
            return next_response()

        serve, next_request = make(get_response), requests.pop
        began = time.perf_counter_ns()
        if closing:
            for _ in repeat(None, calls):
                request = next_request()
                serve(request).close()
                request.close()  # as Django does when it closes the response
        else:
            for _ in repeat(None, calls):
                serve(next_request())
        return time.perf_counter_ns() - began

    return sample


def _serving_async(make: Callable[[GetResponse], GetResponse], runner: asyncio.Runner) -> Sample:
    async def sample(calls: int) -> int:
        requests, responses = _requests(calls), _responses(calls)
        next_response = responses.pop

        async def get_response(_request: HttpRequest) -> HttpResponse:
            return next_response()

        serve, next_request = make(get_response), requests.pop
        began = time.perf_counter_ns()
        for _ in repeat(None, calls):
            await serve(next_request())
        return time.perf_counter_ns() - began

    return lambda calls: runner.run(sample(calls))


def _requests(count: int) -> list[HttpRequest]:
    factory = RequestFactory()
    return [factory.get("/") for _ in range(count)]


def _responses(count: int) -> list[HttpResponse]:
    return [HttpResponse() for _ in range(count)]
