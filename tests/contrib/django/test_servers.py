"""``post_process`` runs exactly once per request, after the last byte, in real servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.contrib.django.project import views
from tests.contrib.django.support import ASGI, WSGI, Gate, Journal, Site
from tests.e2e.processes import Ports, wait_until, wait_until_answers

_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A name for the request of a test."""
    return f"request-{next(_numbers)}"


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that the site waits at."""
    with Gate() as gate:
        yield gate


def on(*cases: tuple[list[str], str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each path in the servers given with it."""
    pairs = [(server, path) for servers, path in cases for server in servers]
    return pytest.mark.parametrize(("site", "path"), pairs, indirect=["site"])


ONE_BODY = views.PART * views.PARTS
WHOLE_RESPONSES = {
    "/plain": (200, ONE_BODY),
    "/aplain": (200, ONE_BODY),
    "/raises": (500, None),
    "/araises": (500, None),
    "/missing": (404, None),
    "/no-such-view?inner=calls": (404, None),
    "/unused?inner=answers": (200, b"early"),
    "/unused?inner=calls": (200, b"unused"),
    "/plain?outer=calls": (200, ONE_BODY),
    "/plain?outer=replaces": (304, b""),
    "/plain?outer=raises": (500, None),
    "/file": (200, views.FILE.read_bytes()),
    "/stream": (200, 2 * ONE_BODY),
    "/stream?outer=calls": (200, 2 * ONE_BODY),
    "/astream": (200, 2 * ONE_BODY),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@on(*((ASGI if path == "/astream" else WSGI + ASGI, path) for path in WHOLE_RESPONSES))
def test_post_process_runs_once_after_the_client_has_the_last_byte(
    site: Site, name: str, gate: Gate, method: str, path: str
) -> None:
    """The gate keeps ``post_process`` waiting until the client has read everything."""
    before = site.failures()
    separator = "&" if "?" in path else "?"

    with site.client() as client:
        status, body, _ = client.get(f"{path}{separator}name={name}&hold={gate.port}", method)

        expected_status, expected_body = WHOLE_RESPONSES[path]
        assert status == expected_status
        if method == "GET" and expected_body is not None:
            assert body == expected_body
        gate.wait_until_reached()
        assert site.failures() == before
        site.journal.write("received", name)
        gate.open()
        assert site.told_of(name) == ["received", "post_process", "told"]
        assert site.failures() == before + 1


@on((WSGI + ASGI, "/unused?outer=calls"), (WSGI + ASGI, "/plain?outer=calls"))
def test_what_an_outer_middleware_sees_is_told_once(site: Site, name: str, path: str) -> None:
    """It has the request in hand after the response has passed our middleware."""
    before = site.failures()

    assert site.get(f"{path}&name={name}").status == 200

    wait_until(lambda: site.failures() > before, "the failure is told")
    assert site.get("/collect").status == 200
    assert site.failures() == before + 1


@on((WSGI + ASGI, "/broken_stream"), (ASGI, "/abroken_stream"))
def test_a_stream_that_raises_is_told_once(site: Site, name: str, path: str) -> None:
    """An exception in the middle of a stream ends the request for us, although Django never closes it on ASGI."""
    before = site.failures()

    with pytest.raises((HTTPException, OSError)):
        site.get(f"{path}?name={name}")

    assert site.told_of(name) == ["raises", "post_process", "told"]
    assert site.failures() == before + 1


# A synchronous stream under ASGI is made into a list before its first part is sent.
@on((WSGI, "/long_stream"), (ASGI, "/along_stream"))
def test_a_client_that_leaves_a_stream_is_told_once(site: Site, name: str, path: str) -> None:
    """The stream ends when the server notices that nobody reads."""
    before = site.failures()

    site.leave(
        f"{path}?name={name}", read=2 * len(views.PART), after=lambda: site.journal.write("client leaves", name)
    )

    assert site.told_of(name) == ["client leaves", "post_process", "told"]
    assert site.failures() == before + 1


@on((ASGI, "/aheld_stream"), (ASGI, "/aheld"))
def test_what_a_client_leaves_while_it_waits_is_told_once(site: Site, name: str, gate: Gate, path: str) -> None:
    """An asynchronous stream or view is cancelled where it waits; of the view there is no response."""
    before = site.failures()

    site.leave(f"{path}?name={name}&gate={gate.port}", after=gate.wait_until_reached)

    assert site.told_of(name) == ["post_process", "told"]
    assert site.failures() == before + 1


def test_a_client_that_leaves_a_sync_view_is_told_once(site: Site, name: str, gate: Gate) -> None:
    """ASGI tells at once and while the view still runs; WSGI notices nothing, and tells when the view is done."""
    before = site.failures()

    site.leave(f"/held?name={name}&gate={gate.port}", after=gate.wait_until_reached)
    if site.is_asgi:
        site.journal.wait_for("told", name)
    gate.open()

    site.journal.wait_for("answers", name)
    ending = ["post_process", "told", "answers"] if site.is_asgi else ["answers", "post_process", "told"]
    assert site.told_of(name) == ending
    assert site.failures() == before + 1


@on((WSGI + ASGI, "/late"), (WSGI + ASGI, "/latest"), (WSGI + ASGI, "/late_stream"))
def test_what_is_seen_after_the_client_left_is_not_lost(site: Site, name: str, gate: Gate, path: str) -> None:
    """ASGI: the thread of a view or of a synchronous stream goes on, and what it finds is told at once."""
    before = site.failures()

    site.leave(f"{path}?name={name}&gate={gate.port}", after=gate.wait_until_reached)
    if site.is_asgi and path == "/late":
        site.journal.wait_for("told", name)
        assert site.failures() == before
    gate.open()

    site.journal.wait_for("goes on", name)
    wait_until(lambda: site.failures() > before, "the failure is told")
    assert site.get("/collect").status == 200
    assert site.failures() == before + 1


@pytest.mark.parametrize("server", WSGI + ASGI)
def test_a_server_opens_no_store_before_somebody_uses_it(
    server: str, ports: Ports, environment: dict[str, str], journal: Journal, tmp_path: Path
) -> None:
    """Neither its start nor a request that does not call the upstream creates as much as a directory."""
    site = Site(server, ports.reserve(), environment, tmp_path, journal)
    try:
        wait_until_answers(site.process, site.port, "/unused")
        assert not site.store.parent.exists()
        assert site.get(f"/plain?name={server.split()[-1]}-first").status == 200
        assert site.store.exists()
    finally:
        site.close()
