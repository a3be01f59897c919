"""The test sites in real servers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.contrib.bed.sites import Gate, Journal, Site
from tests.contrib.mailhost import MailHost
from tests.contrib.postgres import Clusters, Postgres
from tests.e2e.processes import Ports
from tests.helpers import Peer

_numbers = itertools.count(1)


@pytest.fixture
def start_host(tmp_path: Path, ports: Ports) -> Iterator[Callable[..., MailHost]]:
    """Starts a mail server that is ended when the test is over."""
    hosts: list[MailHost] = []

    def start(*args: Any) -> MailHost:
        host = MailHost(tmp_path / f"host{len(hosts)}", ports.reserve(), *args)
        host.start()
        hosts.append(host)
        return host

    yield start
    for host in hosts:
        host.process.end()


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Makes servers of PostgreSQL."""
    with closing(Clusters()) as clusters:
        yield clusters


@pytest.fixture(scope="session")
def lasting_servers(clusters: Clusters, ports: Ports) -> Iterator[tuple[Postgres, Postgres]]:
    """See ``servers``, which has them running."""
    with clusters.make(ports.reserve()) as a, clusters.make(ports.reserve()) as b:
        yield a, b


@pytest.fixture
def servers(lasting_servers: tuple[Postgres, Postgres]) -> tuple[Postgres, Postgres]:
    """Two servers of PostgreSQL that run, whatever earlier tests did to them."""
    for server in lasting_servers:
        server.start_again()
    return lasting_servers


@pytest.fixture(scope="session")
def spare_server(clusters: Clusters, ports: Ports) -> Postgres:
    """See ``server``."""
    return clusters.make(ports.reserve())


@pytest.fixture
def server(spare_server: Postgres) -> Iterator[Postgres]:
    """Another server of PostgreSQL, to be started by the test as it likes."""
    with spare_server:
        yield spare_server


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
    """What happens in the test sites."""
    journal = Journal(tmp_path_factory.mktemp("journal") / "socket")
    yield journal
    journal.close()


@pytest.fixture(scope="session")
def environment(dead_port: int, alive_port: int, journal: Journal) -> dict[str, str]:
    """What the test sites read."""
    return {"SITE_DEAD_PORT": str(dead_port), "SITE_ALIVE_PORT": str(alive_port), "JOURNAL": str(journal.path)}


@pytest.fixture(scope="session")
def sites(
    ports: Ports, environment: dict[str, str], journal: Journal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Site]]:
    """Runs the test site of a name, once for all tests."""
    with ExitStack() as stack:

        @functools.cache
        def running(name: str) -> Site:
            directory = tmp_path_factory.mktemp("site")
            site = Site(name, ports.reserve(), environment, directory, journal)
            stack.callback(site.close)
            site.start()
            return site

        yield running


@pytest.fixture
def site(request: pytest.FixtureRequest, sites: Callable[[str], Site]) -> Site:
    """The test site whose name is the parameter."""
    return sites(request.param)


@pytest.fixture
def name() -> str:
    """A name for the request of a test."""
    return f"request-{next(_numbers)}"


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that the site waits at."""
    with Gate() as gate:
        yield gate
