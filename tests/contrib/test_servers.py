"""``post_process`` runs exactly once per request, after the last byte, in real servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import pytest

from tests.contrib.bed import bodies
from tests.contrib.bed.sites import (
    DJANGO_ASGI,
    DJANGO_WSGI,
    FASTAPI,
    FLASK,
    STARLETTE,
    WRAPPED,
    WSGI,
    Gate,
    Journal,
    Site,
    on,
)
from tests.contrib.bed.visits import MEETING
from tests.e2e.processes import PATIENCE_S, Ports, wait_until, wait_until_answers

DJANGO = DJANGO_WSGI + DJANGO_ASGI
ANY_WSGI = DJANGO_WSGI + WSGI + FLASK
PLUGIN_ASGI = STARLETTE + WRAPPED + FASTAPI
ANY_ASGI = DJANGO_ASGI + PLUGIN_ASGI
ANY = ANY_WSGI + ANY_ASGI

# ── whole responses ───────────────────────────────────────────────────────────────────────────

ONE_BODY = bodies.ONE_BODY
STREAM = 2 * ONE_BODY
# Granian gives no `write`, and wants the head of a response before its body is asked for anything.
WSGI_TO_THE_LETTER = [site for site in WSGI if "granian" not in site]
WHOLE_RESPONSES = {
    "/plain": (ANY, 200, ONE_BODY),
    "/aplain": (DJANGO + FLASK + PLUGIN_ASGI, 200, ONE_BODY),
    "/writes": (WSGI_TO_THE_LETTER, 200, ONE_BODY),
    "/thread": (ANY, 200, ONE_BODY),
    "/hops": (ANY_ASGI, 200, ONE_BODY),
    "/raises": (DJANGO + FLASK + WRAPPED, 500, None),
    "/araises": (DJANGO + FLASK + WRAPPED, 500, None),
    "/missing": (ANY, 404, None),
    "/no-such-view?inner=calls": (DJANGO + FLASK + PLUGIN_ASGI, 404, None),
    "/unused?inner=answers": (ANY, 200, b"early"),
    "/unused?inner=calls": (ANY, 200, b"unused"),
    "/plain?outer=calls": (DJANGO, 200, ONE_BODY),
    "/plain?outer=replaces": (DJANGO, 304, b""),
    "/plain?outer=raises": (DJANGO, 500, None),
    "/file": (ANY, 200, bodies.FILE.read_bytes()),
    "/closing": (WSGI, 200, ONE_BODY),
    "/background": (PLUGIN_ASGI, 200, ONE_BODY),
    "/teardown": (FASTAPI, 200, ONE_BODY),
    "/blueprint/plain": (FLASK, 200, ONE_BODY),
    "/stream": (ANY, 200, STREAM),
    "/stream?outer=calls": (DJANGO, 200, STREAM),
    "/astream": (ANY_ASGI, 200, STREAM),
    "/generator": (WSGI_TO_THE_LETTER, 200, STREAM),
    "/mounted/stream": (FLASK + PLUGIN_ASGI, 200, STREAM),
    "/own/stream": (WSGI + FLASK + PLUGIN_ASGI, 200, STREAM),
}
# Werkzeug and Granian begin no stream that nobody is going to get.
DROPS_STREAMS_FOR_HEAD = [site for site in ANY if site in FLASK or "granian" in site]


@pytest.mark.parametrize(
    ("site", "method", "path"),
    [
        (site, method, path)
        for path, (sites, _, body) in WHOLE_RESPONSES.items()
        for site in sites
        for method in ("GET", "HEAD")
        if not (method == "HEAD" and body == STREAM and site in DROPS_STREAMS_FOR_HEAD)
    ],
    indirect=["site"],
)
def test_post_process_runs_once_after_the_client_has_the_last_byte(
    site: Site, name: str, gate: Gate, method: str, path: str
) -> None:
    """The gate keeps ``post_process`` waiting until the client has read everything."""
    before = site.failures()
    separator = "&" if "?" in path else "?"

    with site.client() as client:
        status, body, _ = client.get(f"{path}{separator}name={name}&hold={gate.port}", method)

        _, expected_status, expected_body = WHOLE_RESPONSES[path]
        assert status == expected_status
        if method == "GET" and expected_body is not None:
            assert body == expected_body
        gate.wait_until_reached()
        assert site.failures() == before
        site.journal.write("received", name)
        gate.open()
        assert site.told_of(name) == ["received", "post_process", "told"]
        assert site.failures() == before + 1


@on(
    (STARLETTE + FASTAPI, "/raises"),
    (STARLETTE + FASTAPI, "/araises"),
    (WSGI, "/raises"),
    (WSGI, "/raises_late"),
)
def test_post_process_runs_once_before_an_error_page_that_is_sent_outside_of_the_middleware(
    site: Site, name: str, gate: Gate, path: str
) -> None:
    """By Starlette, around what is added to it, or by a WSGI server: the client has none of it at the gate."""
    before = site.failures()

    with site.ask(f"{path}?name={name}&hold={gate.port}") as client:
        gate.wait_until_reached()
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        gate.open()
        client.settimeout(PATIENCE_S)
        with HTTPResponse(client) as response:
            response.begin()
            assert response.status == 500
    assert site.told_of(name) == ["post_process", "told"]
    assert site.failures() == before + 1


@on((DJANGO, "/unused?outer=calls"), (DJANGO, "/plain?outer=calls"))
def test_what_an_outer_middleware_sees_is_told_once(site: Site, name: str, path: str) -> None:
    """It has the request in hand after the response has passed our middleware."""
    before = site.failures()

    assert site.get(f"{path}&name={name}").status == 200

    wait_until(lambda: site.failures() > before, "the failure is told")
    assert site.get("/collect").status == 200
    assert site.failures() == before + 1


# ── requests that end otherwise ───────────────────────────────────────────────────────────────


@on((ANY, "/broken_stream"), (ANY_ASGI, "/abroken_stream"))
def test_a_stream_that_raises_is_told_once(site: Site, name: str, path: str) -> None:
    """An exception in the middle of a stream ends the request for us, although Django never closes it on ASGI."""
    before = site.failures()

    with pytest.raises((HTTPException, OSError)):
        site.get(f"{path}?name={name}")

    assert site.told_of(name) == ["raises", "post_process", "told"]
    assert site.failures() == before + 1


# Django makes a synchronous stream under ASGI into a list before its first part is sent.
@on((ANY_WSGI + PLUGIN_ASGI, "/long_stream"), (ANY_ASGI, "/along_stream"))
def test_a_client_that_leaves_a_stream_is_told_once(site: Site, name: str, path: str) -> None:
    """The stream ends when the server notices that nobody reads."""
    before = site.failures()

    site.leave(
        f"{path}?name={name}", read=2 * len(bodies.PART), after=lambda: site.journal.write("client leaves", name)
    )

    assert site.told_of(name) == ["client leaves", "post_process", "told"]
    assert site.failures() == before + 1


@on((ANY_ASGI, "/aheld_stream"), (DJANGO_ASGI, "/aheld"))
def test_what_a_client_leaves_while_it_waits_is_told_once(site: Site, name: str, gate: Gate, path: str) -> None:
    """An asynchronous stream, or view of Django, is cancelled where it waits; of the view there is no response."""
    before = site.failures()

    site.leave(f"{path}?name={name}&gate={gate.port}", after=gate.wait_until_reached)

    assert site.told_of(name) == ["post_process", "told"]
    assert site.failures() == before + 1


@on((ANY, "/held"), (FLASK + PLUGIN_ASGI, "/aheld"))
def test_a_client_that_leaves_a_view_is_told_once(site: Site, name: str, gate: Gate, path: str) -> None:
    """Django under ASGI tells at once and while the view still runs; all others notice when the view is done."""
    before = site.failures()
    at_once = site.name in DJANGO_ASGI

    site.leave(f"{path}?name={name}&gate={gate.port}", after=gate.wait_until_reached)
    if at_once:
        site.journal.wait_for("told", name)
    gate.open()

    site.journal.wait_for("answers", name)
    ending = ["post_process", "told", "answers"] if at_once else ["answers", "post_process", "told"]
    assert site.told_of(name) == ending
    assert site.failures() == before + 1


# ── what is seen late ─────────────────────────────────────────────────────────────────────────


@on((ANY, "/late"), (DJANGO, "/latest"), (ANY, "/late_stream"))
def test_what_is_seen_after_the_client_left_is_not_lost(site: Site, name: str, gate: Gate, path: str) -> None:
    """ASGI: the thread of a view or of a synchronous stream goes on, and what it finds is told."""
    before = site.failures()

    site.leave(f"{path}?name={name}&gate={gate.port}", after=gate.wait_until_reached)
    if site.name in DJANGO_ASGI and path == "/late":
        site.journal.wait_for("told", name)
        assert site.failures() == before
    gate.open()

    site.journal.wait_for("goes on", name)
    wait_until(lambda: site.failures() > before, "the failure is told")
    assert site.get("/collect").status == 200
    assert site.failures() == before + 1


@on((ANY, "/thread_goes_on"), (ANY_ASGI, "/task_goes_on"))
def test_what_is_seen_by_what_outlives_its_request_is_told_at_once(
    site: Site, name: str, gate: Gate, path: str
) -> None:
    """A thread or a task that a view leaves behind calls the upstream when the request has been told."""
    before = site.failures()

    assert site.get(f"{path}?name={name}&gate={gate.port}").status == 200
    assert site.told_of(name) == ["post_process", "told"]
    assert site.failures() == before
    gate.wait_until_reached()
    gate.open()

    site.journal.wait_for("goes on", name)
    wait_until(lambda: site.failures() > before, "the failure is told")
    assert site.failures() == before + 1


# ── requests at once ──────────────────────────────────────────────────────────────────────────


@on(([site for site in ANY if "gunicorn sync" not in site], "/meets"), (ANY_ASGI, "/ameets"))
def test_requests_at_once_have_failures_of_their_own(site: Site, name: str, path: str) -> None:
    """In threads and on one loop: a host on which one failed is tried by the others, and not again by that one."""
    before = site.failures()

    with ThreadPoolExecutor(MEETING) as clients:
        answers = clients.map(site.get, [f"{path}?name={name}-{number}" for number in range(MEETING)])

    assert [answer.body for answer in answers] == [b"dead alive, alive"] * MEETING
    for number in range(MEETING):
        assert site.told_of(f"{name}-{number}") == ["post_process", "told"]
    more = itertools.count(1)

    def all_are_told() -> bool:
        # What could not be written at once, for another thread was writing, a later request takes along.
        calls = next(more)
        assert site.get(f"/plain?name={name}-after-{calls}").status == 200
        return site.failures() == before + MEETING + calls

    wait_until(all_are_told, "each failure is told once")


# ── opening the store ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def new_site(
    ports: Ports, environment: dict[str, str], journal: Journal, tmp_path: Path
) -> Iterator[Callable[[str], Site]]:
    """Starts a site for this test alone, whose store is in ``tmp_path``."""
    with ExitStack() as stack:

        def start(name: str) -> Site:
            site = Site(name, ports.reserve(), environment, tmp_path, journal)
            stack.callback(site.close)
            return site

        yield start


@pytest.mark.parametrize("site_name", DJANGO + WSGI[:1] + FLASK[:1])
def test_a_server_opens_no_store_before_somebody_uses_it(
    site_name: str, new_site: Callable[[str], Site], name: str
) -> None:
    """Neither its start nor a request that does not call the upstream creates as much as a directory."""
    site = new_site(site_name)
    wait_until_answers(site.process, site.port, "/unused")
    assert not site.store.parent.exists()
    assert site.get(f"/plain?name={name}").status == 200
    assert site.store.exists()


@pytest.mark.parametrize("site_name", WRAPPED + FASTAPI[:1])
def test_a_server_that_tells_of_its_start_has_its_stores_opened_then(
    site_name: str, new_site: Callable[[str], Site]
) -> None:
    """Before the first request."""
    site = new_site(site_name)
    wait_until_answers(site.process, site.port, "/unused")
    assert site.store.exists()


@pytest.mark.parametrize("site_name", WRAPPED + FASTAPI[:1])
def test_a_server_does_not_start_with_a_store_that_others_could_change(
    site_name: str, new_site: Callable[[str], Site], tmp_path: Path
) -> None:
    """It prints what is wrong with it, and what to do."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    site = new_site(site_name)
    assert site.process.wait() != 0
    assert f"give the store a directory of its own (chmod 700 {tmp_path}/store)" in site.process.printed()
