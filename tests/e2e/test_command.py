"""The command line and a running site: what it changes is what the next request of every worker does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import PATIENCE_S, ROOT, Client, Ports, Process, python, wait_until
from tests.e2e.site import Site, ask


class Workers:
    """A site, and a connection to each of its workers."""

    def __init__(self, site: Site, clients: list[Client]) -> None:
        self.site = site
        self._clients = clients

    def use(self) -> set[str]:
        """Which hosts the next requests of every worker use; all workers use the same."""
        used = [{self._host_of(client) for _ in range(6)} for client in self._clients]
        assert all(hosts == used[0] for hosts in used), used
        return used[0]

    def _host_of(self, client: Client) -> str:
        said = ask(client).json
        return f"{said['pool']}/{said['host']}"

    def address(self, name: str) -> str:
        """Where a back end is."""
        return f"127.0.0.1:{self.site.backends[name].port}"


@pytest.fixture(scope="module")
def running(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """A site with three workers, for all tests here."""
    with ExitStack() as stack:
        site = stack.enter_context(Site(ports, tmp_path_factory.mktemp("site"), workers=3, failed_timeout=60))
        clients = [stack.enter_context(client) for client in site.connect_to_each_worker().values()]
        yield Workers(site, clients)


@pytest.fixture
def workers(running: Workers) -> Iterator[Workers]:
    """The site as it is declared."""
    declared = running.site.upstream.get_pools()
    assert running.use() == {"primary/a", "primary/b"}
    yield running
    running.site.upstream.save_pools(declared)


def manage(workers: Workers, *arguments: str) -> str:
    """``manage.py upstream``, which must do what is asked; what it prints."""
    command = python("example_project/manage.py", "upstream", *arguments)
    return _run(command, workers.site.environment)


def neutral(workers: Workers, *arguments: str) -> str:
    """``resty-upstream``, likewise."""
    return _run(python("-m", "resty_upstream", "--store", workers.site.store, *arguments), {})


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("door", [manage, neutral])
def test_a_host_that_is_taken_down_gets_no_request_until_it_is_put_back(
    door: Callable[..., str], workers: Workers
) -> None:
    door(workers, "down-host", "primary", "a")
    assert workers.use() == {"primary/b"}
    door(workers, "down-host", "primary", "b")
    assert workers.use() == {"dr/c"}
    door(workers, "up-host", "primary", "a")
    assert workers.use() == {"primary/a"}
    door(workers, "up-host", "primary", "b")
    assert workers.use() == {"primary/a", "primary/b"}


def test_a_host_of_weight_0_is_drained(workers: Workers) -> None:
    manage(workers, "set-weight", "primary", "a", "0")
    assert workers.use() == {"primary/b"}
    manage(workers, "set-weight", "primary", "a", "5")
    assert workers.use() == {"primary/a", "primary/b"}


def test_a_method_is_obeyed(workers: Workers) -> None:
    """By hash, all requests of one address go to one host, which ``explain`` names."""
    neutral(workers, "set-method", "primary", "hash")
    (used,) = workers.use()
    explained = json.loads(neutral(workers, "explain", "--key", "127.0.0.1", "--json"))
    hosts = {host["id"]: host["reason"] for host in explained["pools"][0]["hosts"]}
    assert hosts[used.removeprefix("primary/")] == "taken: the host of this key"


def test_the_pool_with_the_lowest_number_is_used(workers: Workers) -> None:
    manage(workers, "set-priority", "dr", "-1")
    assert workers.use() == {"dr/c"}


def test_a_host_that_is_added_is_used_and_one_that_is_removed_is_not(workers: Workers) -> None:
    manage(workers, "add-host", "primary", workers.address("c"), "--weight", "10", "--id", "x")
    assert workers.use() == {"primary/a", "primary/b", "primary/x"}
    manage(workers, "remove-host", "primary", "a")
    assert workers.use() == {"primary/b", "primary/x"}


def test_a_pool_that_is_created_is_used_and_one_that_is_removed_is_not(workers: Workers) -> None:
    neutral(workers, "create-pool", "first", "--priority", "-5")
    neutral(workers, "add-host", "first", workers.address("c"))
    assert workers.use() == {"first/1"}
    neutral(workers, "remove-pool", "first")
    assert workers.use() == {"primary/a", "primary/b"}
    neutral(workers, "remove-pool", "primary")
    assert workers.use() == {"dr/c"}


def test_a_pool_that_is_taken_down_is_passed_over(workers: Workers) -> None:
    neutral(workers, "down-pool", "primary")
    assert workers.use() == {"dr/c"}
    neutral(workers, "up-pool", "primary")
    assert workers.use() == {"primary/a", "primary/b"}


def test_pools_that_are_imported_are_used(workers: Workers, tmp_path: Path) -> None:
    exported = tmp_path / "exported.json"
    manage(workers, "export", str(exported))
    only_b = {"only": {"hosts": {"b": {"host": "127.0.0.1", "port": workers.site.backends["b"].port}}}}
    (tmp_path / "pools.json").write_text(json.dumps(only_b))
    manage(workers, "import", str(tmp_path / "pools.json"), "--dry-run")
    assert workers.use() == {"primary/a", "primary/b"}
    manage(workers, "import", str(tmp_path / "pools.json"))
    assert workers.use() == {"only/b"}
    manage(workers, "import", str(exported))
    assert workers.use() == {"primary/a", "primary/b"}


def test_who_watches_sees_a_host_die_and_come_back(start_site: Callable[..., Site], tmp_path: Path) -> None:
    site = start_site(max_fails=2, failed_timeout=0.5, failed_timeout_max=0.5)
    command = python("-m", "resty_upstream", "--store", site.store, "watch", "--json", "--interval", "20ms")
    with Process(command, {}, tmp_path / "watched") as watch, Client(site.port) as client:

        def events() -> list[dict[str, Any]]:
            return [json.loads(line) for line in watch.printed().splitlines()]

        weights = iter(range(1, 1000))
        wait_until(lambda: site.api.set_weight("dr", "c", next(weights)) or events(), "it has begun to watch")
        site.backends["a"].kill()
        wait_until(lambda: ask(client) and not site.host("a")["up"], "a is down")
        site.backends["a"].start()
        site.backends["a"].wait_until_answers()
        wait_until(lambda: ask(client) and site.host("a")["up"], "a is back")
        wait_until(lambda: events()[-1]["event"] == "host_up", f"the event, after {events()}")
        of_a = [event for event in events() if event.get("host") == "a" and event["event"] != "host_failed"]
        assert [event["event"] for event in of_a] == ["host_down", "host_up"]
        assert (of_a[0]["reason"], of_a[0]["pool"]) == ("ECONNREFUSED", "primary")
        assert of_a[0]["address"] == f"127.0.0.1:{site.backends['a'].port}"
