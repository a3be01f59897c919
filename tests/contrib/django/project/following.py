"""Which context belongs to which request, and when ``post_process`` runs for it."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from resty_upstream import RequestContext
from tests.contrib.django.project import journal

_followed: dict[int, tuple[str, int]] = {}


def call(request: HttpRequest) -> None:
    """A call of the upstream: one host fails, another answers."""
    follow(request)
    request.upstream.connect().client.close()  # type: ignore[attr-defined]  # the middleware put it there


def follow(request: HttpRequest) -> None:
    """Have the journal name this request when its context is post-processed."""
    context = request.upstreams["default"]  # type: ignore[attr-defined]  # the middleware put it there
    _followed[id(context)] = (request.GET["name"], int(request.GET.get("hold", "0")))


def tell_of_post_process() -> None:
    """Write to the journal when ``post_process`` begins and ends, and hold it up where the request asks for it."""
    original_init, original = RequestContext.__init__, RequestContext.post_process

    def init(self: RequestContext, *args: Any, **options: Any) -> None:
        _followed.pop(id(self), None)  # of an earlier context in the same place
        original_init(self, *args, **options)

    def post_process(self: RequestContext) -> None:
        name, hold = _followed.get(id(self), ("unknown", 0))
        if hold:
            journal.pass_gate(hold)
        journal.write("post_process", name)
        original(self)
        journal.write("told", name)

    RequestContext.__init__ = init  # type: ignore[method-assign]  # to watch it
    RequestContext.post_process = post_process  # type: ignore[method-assign]  # to watch it
