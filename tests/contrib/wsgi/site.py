"""A bare WSGI site that tells a journal what happens in it, and does all that is hard for ``post_process``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qsl
from wsgiref.types import StartResponse, WSGIEnvironment

from resty_upstream.contrib.werkzeug import UpstreamMiddleware
from tests.contrib.bed import bodies
from tests.contrib.bed.upstreams import of_this_site
from tests.contrib.bed.visits import Visit, tell_of_post_process

Answer = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


def query(environ: WSGIEnvironment) -> dict[str, str]:
    return dict(parse_qsl(environ["QUERY_STRING"]))


def visit(environ: WSGIEnvironment) -> Visit:
    return Visit(lambda: environ["resty_upstream"], query(environ))


def begin(start_response: StartResponse, length: int, status: str = "200 OK") -> Callable[[bytes], object]:
    return start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(length))])


def unused(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Does not use the upstream."""
    begin(start_response, 6)
    return [b"unused"]


def collect(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Whatever waits for the garbage collector happens before this answers."""
    gc.collect()
    begin(start_response, 9)
    return [b"collected"]


def plain(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).call()
    begin(start_response, len(bodies.ONE_BODY))
    return [bodies.PART] * bodies.PARTS


def thread(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).call_in_thread()
    begin(start_response, len(bodies.ONE_BODY))
    return [bodies.ONE_BODY]


def writes(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Sends its body by ``write``."""
    visit(environ).call()
    write = begin(start_response, len(bodies.ONE_BODY))
    for _ in range(bodies.PARTS):
        write(bodies.PART)
    return []


def raises(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).call()
    raise RuntimeError("the application")


def raises_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Has begun a response when it raises."""
    visit(environ).call()
    begin(start_response, 1)
    raise RuntimeError("the application")


def missing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).call()
    begin(start_response, 7, "404 Not Found")
    return [b"missing"]


def file(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).call()
    begin(start_response, bodies.FILE.stat().st_size)
    content = bodies.FILE.open("rb")
    wrapper = environ.get("wsgi.file_wrapper")
    return content if wrapper is None else wrapper(content)


# ── streams ───────────────────────────────────────────────────────────────────────────────────


def stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    begin(start_response, 2 * len(bodies.ONE_BODY))
    return bodies.stream(visit(environ))


def broken_stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    begin(start_response, 2 * len(bodies.PART))
    return bodies.broken_stream(visit(environ))


def long_stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    begin(start_response, (1 + bodies.MANY_PARTS) * len(bodies.PART))
    return bodies.long_stream(visit(environ))


def late_stream(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    begin(start_response, 2 * len(bodies.PART))
    return bodies.late_stream(visit(environ))


def generator(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Is a generator as a whole: begins its response when it is asked for the first part."""
    begin(start_response, 2 * len(bodies.ONE_BODY))
    yield from bodies.stream(visit(environ))


class Closing:
    """A body that sees what it sees of hosts when it is closed."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def __iter__(self) -> Iterator[bytes]:
        return iter([bodies.ONE_BODY])

    def close(self) -> None:
        self._visit.call()


def closing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    begin(start_response, len(bodies.ONE_BODY))
    return Closing(visit(environ))


# ── what the client does not wait for, and requests at once ───────────────────────────────────


def held(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).call_and_wait()
    begin(start_response, 4)
    return [b"held"]


def late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).wait_and_call()
    begin(start_response, 4)
    return [b"late"]


def thread_goes_on(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    visit(environ).leave_thread()
    begin(start_response, 4)
    return [b"over"]


def meets(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    met = visit(environ).meet().encode()
    begin(start_response, len(met))
    return [met]


ANSWERS: list[Answer] = [
    unused,
    collect,
    plain,
    thread,
    writes,
    raises,
    raises_late,
    missing,
    file,
    stream,
    broken_stream,
    long_stream,
    late_stream,
    generator,
    closing,
    held,
    late,
    thread_goes_on,
    meets,
]
_answers = {f"/{answer.__name__}": answer for answer in ANSWERS}


def routed(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Each answer at the address of its name, behind a middleware that may answer by itself."""
    inner = query(environ).get("inner")
    if inner:
        visit(environ).call()
    if inner == "answers":
        begin(start_response, 5)
        return [b"early"]
    return _answers[environ["PATH_INFO"]](environ, start_response)


def mounting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """``/own`` is an application with upstreams of its own."""
    path = environ["PATH_INFO"]
    if path.startswith("/own/"):
        return _own({**environ, "SCRIPT_NAME": "/own", "PATH_INFO": path.removeprefix("/own")}, start_response)
    return routed(environ, start_response)


tell_of_post_process()
_own = UpstreamMiddleware(routed, {"default": of_this_site()})
application = UpstreamMiddleware(mounting, {"default": of_this_site()})
