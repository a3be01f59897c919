"""``post_process`` runs exactly once per websocket, when it is over, in real servers."""

from __future__ import annotations

import pytest

from tests.contrib.bed.sites import FASTAPI, STARLETTE, WRAPPED, Gate, Site
from tests.contrib.bed.websockets import CLOSE, TEXT, WebSocket

SITES = STARLETTE + WRAPPED + FASTAPI
on_every_site = pytest.mark.parametrize("site", SITES, indirect=True)


@on_every_site
def test_a_websocket_that_the_client_closes_is_told_once(site: Site, name: str) -> None:
    """And not before: it is over when it is closed."""
    before = site.failures()

    with WebSocket(site, f"/listens?name={name}") as websocket:
        assert websocket.receive() == (TEXT, b"called")
        site.journal.write("client closes", name)
        websocket.send_close()
        assert websocket.receive()[0] == CLOSE

    assert site.told_of(name) == ["client closes", "post_process", "told"]
    assert site.failures() == before + 1


@on_every_site
def test_a_websocket_that_the_client_leaves_is_told_once(site: Site, name: str) -> None:
    """Abruptly, without closing anything."""
    before = site.failures()

    with WebSocket(site, f"/listens?name={name}") as websocket:
        assert websocket.receive() == (TEXT, b"called")
        site.journal.write("client leaves", name)
        websocket.vanish()

    assert site.told_of(name) == ["client leaves", "post_process", "told"]
    assert site.failures() == before + 1


@on_every_site
def test_a_websocket_that_the_server_closes_is_told_once_after_that(site: Site, name: str, gate: Gate) -> None:
    """The gate keeps ``post_process`` waiting until the client has the last frame."""
    before = site.failures()

    with WebSocket(site, f"/closes?name={name}&hold={gate.port}") as websocket:
        assert websocket.receive()[0] == CLOSE
        websocket.send_close()
        gate.wait_until_reached()
        assert site.failures() == before
        site.journal.write("received", name)
        gate.open()

    assert site.told_of(name) == ["received", "post_process", "told"]
    assert site.failures() == before + 1


# Granian sends the refusal when the application has returned.
@pytest.mark.parametrize("site", [site for site in SITES if "granian" not in site], indirect=True)
def test_a_websocket_that_is_rejected_is_told_once_after_that(site: Site, name: str, gate: Gate) -> None:
    """The gate keeps ``post_process`` waiting until the client has the refusal."""
    before = site.failures()

    with WebSocket(site, f"/rejects?name={name}&hold={gate.port}") as websocket:
        assert websocket.status == 403
        gate.wait_until_reached()
        assert site.failures() == before
        site.journal.write("received", name)
        gate.open()

    assert site.told_of(name) == ["received", "post_process", "told"]
    assert site.failures() == before + 1


@on_every_site
def test_a_websocket_whose_endpoint_raises_is_told_once(site: Site, name: str) -> None:
    """The exception ends it."""
    before = site.failures()

    with WebSocket(site, f"/breaks?name={name}"):
        site.journal.wait_for("told", name)

    assert site.told_of(name) == ["raises", "post_process", "told"]
    assert site.failures() == before + 1


@on_every_site
def test_what_is_seen_after_the_client_left_is_not_lost(site: Site, name: str, gate: Gate) -> None:
    """The endpoint hears of it only when it listens, and goes on until then."""
    before = site.failures()

    with WebSocket(site, f"/waits?name={name}&gate={gate.port}") as websocket:
        gate.wait_until_reached()
        websocket.vanish()
    gate.open()

    assert site.told_of(name) == ["goes on", "post_process", "told"]
    assert site.failures() == before + 1
