"""Django in this process, and the test site in real servers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import django
import pytest

from tests.contrib.django.support import ASGI, WSGI, Journal, Site
from tests.e2e.processes import Ports
from tests.helpers import Peer

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DJANGO_SETTINGS_MODULE", "tests.contrib.django.project.settings")
    django.setup()


@pytest.fixture(scope="session")
def ports() -> Iterator[Ports]:
    """Loopback ports that stay ours."""
    ports = Ports()
    yield ports
    ports.release()


@pytest.fixture(scope="session")
def dead_port(ports: Ports) -> int:
    """A port that refuses."""
    return ports.reserve()


@pytest.fixture(scope="session")
def alive_port() -> Iterator[int]:
    """A port that accepts, and closes."""
    with Peer(lambda connection: None) as peer:
        yield peer.port


@pytest.fixture(scope="session")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    """What happens in the test site."""
    journal = Journal(tmp_path_factory.mktemp("journal") / "socket")
    yield journal
    journal.close()


@pytest.fixture(scope="session")
def environment(dead_port: int, alive_port: int, journal: Journal) -> dict[str, str]:
    """What the test site reads."""
    return {"SITE_DEAD_PORT": str(dead_port), "SITE_ALIVE_PORT": str(alive_port), "JOURNAL": str(journal.path)}


@pytest.fixture(scope="session")
def sites(
    ports: Ports, environment: dict[str, str], journal: Journal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Site]]:
    """Runs the test site in the server of a name, once for all tests."""
    with ExitStack() as stack:

        @functools.cache
        def running(server: str) -> Site:
            directory = tmp_path_factory.mktemp("site")
            site = Site(server, ports.reserve(), environment, directory, journal)
            stack.callback(site.close)
            site.start()
            return site

        yield running


@pytest.fixture(params=WSGI + ASGI)
def site(request: pytest.FixtureRequest, sites: Callable[[str], Site]) -> Site:
    """The test site, in each server."""
    return sites(request.param)
