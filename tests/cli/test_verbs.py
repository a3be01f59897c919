"""Every verb, through every door: what it prints, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.cli.doors import DOORS, Done, Door, Place
from tests.helpers import take_down

Pools = dict[str, dict[str, Any]]


def host(pools: Pools, name: str) -> Any:
    """A host, by the id of its pool and its own."""
    pool, _, host_id = name.partition("/")
    return pools[pool]["hosts"][host_id]


def health(pools: Pools, name: str) -> tuple[bool, int, float]:
    found = host(pools, name)
    return found["up"], found["failcount"], found["lastfail"]


def fail_at_a(place: Place) -> None:
    """Have requests take host a down."""
    take_down(place.upstream, "a", pool_id="primary")


def nothing(_place: Place) -> None:
    pass


class Change(NamedTuple):
    """A verb that changes something."""

    asked: str
    says: str
    is_so: Callable[[Pools], bool]
    said_again: str = ""
    """What it prints the second time; "" where it cannot be done twice."""
    before: Callable[[Place], object] = nothing


CHANGES = [
    Change("create-pool new", "pool new is created, without hosts", lambda pools: pools["new"]["hosts"] == {}),
    Change(
        "create-pool new --method random --timeout 250ms --priority -1 --max-fails 1 --failed-timeout 5 "
        "--failed-timeout-max 1m",
        "pool new is created, without hosts",
        lambda pools: (
            pools["new"]
            == {
                "up": True,
                "method": "random",
                "timeout": 250,
                "priority": -1,
                "max_fails": 1,
                "failed_timeout": 5,
                "failed_timeout_max": 60,
                "slow_start": 0,
                "key": "ip",
                "load": "in_flight",
                "status_codes": [],
                "read_timeout": 10_000,
                "keepalive_pool": 32,
                "keepalive_timeout": 60_000,
                "ssl": False,
                "ssl_verify": True,
                "sni_host": "",
                "hosts": {},
            }
        ),
    ),
    Change(
        "create-pool new --healthcheck /health --slow-start 30s",
        "pool new is created, without hosts",
        lambda pools: (pools["new"]["healthcheck"]["path"], pools["new"]["slow_start"]) == ("/health", 30),
    ),
    Change(
        "create-pool new --healthcheck",
        "pool new is created, without hosts",
        lambda pools: pools["new"]["healthcheck"]["path"] == "/",
    ),
    Change("remove-pool dr", "pool dr is removed, with 1 host", lambda pools: "dr" not in pools),
    Change(
        "set-method primary hash",
        "pool primary has method hash",
        lambda pools: pools["primary"]["method"] == "hash",
        "pool primary had method hash already",
    ),
    Change(
        "set-priority dr -5",
        "pool dr has priority -5",
        lambda pools: pools["dr"]["priority"] == -5,
        "pool dr had priority -5 already",
    ),
    Change(
        "set-weight primary a 0",
        "host primary/a has weight 0",
        lambda pools: host(pools, "primary/a")["weight"] == 0,
        "host primary/a had weight 0 already",
    ),
    Change(
        "add-host primary 10.0.0.3:8001 --weight 5 --id x",
        "host primary/x is added: 10.0.0.3:8001, weight 5",
        lambda pools: (
            host(pools, "primary/x") | {"lastfail": 0}
            == {"host": "10.0.0.3", "port": 8001, "weight": 5, "up": True, "failcount": 0, "lastfail": 0}
        ),
    ),
    Change(
        "add-host dr [::1]:8001",
        "host dr/2 is added: [::1]:8001, weight 0",
        lambda pools: (host(pools, "dr/2")["host"], host(pools, "dr/2")["port"]) == ("::1", 8001),
        "host dr/3 is added: [::1]:8001, weight 0",
    ),
    Change(
        "remove-host primary b",
        "host primary/b is removed",
        lambda pools: "b" not in pools["primary"]["hosts"],
    ),
    Change(
        "down-host primary a",
        "host primary/a is down",
        lambda pools: health(pools, "primary/a") == (False, 0, 0),
        "host primary/a was down already",
    ),
    Change(
        "down-host primary a",
        "host primary/a is down",
        lambda pools: health(pools, "primary/a") == (False, 0, 0),
        "host primary/a was down already",
        fail_at_a,
    ),
    Change(
        "up-host primary a",
        "host primary/a is up",
        lambda pools: health(pools, "primary/a") == (True, 0, 0),
        "host primary/a was up already",
        fail_at_a,
    ),
    Change(
        "up-host primary a",
        "host primary/a is up",
        lambda pools: health(pools, "primary/a") == (True, 0, 0),
        "host primary/a was up already",
        lambda place: place.api.down_host("primary", "a"),
    ),
    Change(
        "down-pool primary",
        "pool primary is down",
        lambda pools: pools["primary"]["up"] is False,
        "pool primary was down already",
    ),
    Change(
        "up-pool primary",
        "pool primary is up",
        lambda pools: pools["primary"]["up"] is True,
        "pool primary was up already",
        lambda place: place.api.down_pool("primary"),
    ),
]
ADDRESSES = {
    "10.0.0.3": ("10.0.0.3", 80, "10.0.0.3:80"),
    "10.0.0.3:8001": ("10.0.0.3", 8001, "10.0.0.3:8001"),
    "::1": ("::1", 80, "[::1]:80"),
    "[::1]": ("::1", 80, "[::1]:80"),
    "[::1]:8001": ("::1", 8001, "[::1]:8001"),
    "backend": ("backend", 80, "backend:80"),
    "backend:8001": ("backend", 8001, "backend:8001"),
    "unix:/run/app.sock": ("unix:/run/app.sock", 80, "unix:/run/app.sock"),
    "unix:/run/a:b.sock": ("unix:/run/a:b.sock", 80, "unix:/run/a:b.sock"),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.asked)
def test_a_change_prints_what_is_so_now_and_also_when_it_was_so(
    change: Change, place: Place, command: Callable[..., Done]
) -> None:
    change.before(place)
    assert command(*change.asked.split()) == (0, f"{change.says}\n", "")
    assert change.is_so(place.upstream.get_pools())
    if change.said_again:
        assert command(*change.asked.split()) == (0, f"{change.said_again}\n", "")
        assert change.is_so(place.upstream.get_pools())
    else:
        assert command(*change.asked.split()).code == 1


ONE_OF_EACH = {change.asked.partition(" ")[0]: change for change in reversed(CHANGES)}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_all_changes_can_be_made_through_each_door(door: Door, place: Place) -> None:
    """In an order in which each finds what it needs. Nothing that is logged is printed besides."""
    for verb in (
        "create-pool",
        "set-method",
        "set-priority",
        "set-weight",
        "add-host",
        "down-host",
        "up-host",
        "down-pool",
        "up-pool",
        "remove-host",
        "remove-pool",
    ):
        change = ONE_OF_EACH[verb]
        assert door(place, *change.asked.split()) == (0, f"{change.says}\n", "")
        assert change.is_so(place.upstream.get_pools()), change.asked


@pytest.mark.parametrize("door", list(DOORS.values())[1:], ids=list(DOORS)[1:])
def test_each_door_shows_the_same(door: Door, place: Place, command: Callable[..., Done]) -> None:
    place.api.set_method("primary", "hash")
    for asked in ("list", "show primary --json", "explain --key x", "check", "export"):
        done = door(place, *asked.split())
        assert done == command(*asked.split())
        assert (done.code, done.err) == (0, "")
        assert "primary" in done.out


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_pools_are_replaced_through_each_door(door: Door, place: Place) -> None:
    file = place.file("pools.toml", '[new.hosts.a]\nhost = "10.0.0.1"\n')
    assert door(place, "import", file, "--dry-run").out.splitlines()[0] == "pools.primary would be removed"
    assert door(place, "import", file) == (0, "upstream default has 1 pool with 1 host\n", "")
    assert list(place.upstream.get_pools()) == ["new"]


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_what_is_declared_is_there_before_the_application_has_run(door: Door, empty_place: Place) -> None:
    """Looking creates nothing; changing does."""
    assert "2 of 2 hosts up" in door(empty_place, "list").out
    assert not empty_place.is_there
    assert door(empty_place, "down-host", "primary", "a").out == "host primary/a is down\n"
    assert list(empty_place.upstream.get_pools()) == ["primary", "dr"]


@pytest.mark.parametrize("given", ADDRESSES)
def test_a_host_is_added_at_an_address_as_people_write_it(
    given: str, place: Place, command: Callable[..., Done]
) -> None:
    name, port, shown = ADDRESSES[given]
    assert command("add-host", "dr", given, "--id", "x").out == f"host dr/x is added: {shown}, weight 0\n"
    added = host(place.upstream.get_pools(), "dr/x")
    assert (added["host"], added["port"]) == (name, port)


def test_a_port_may_be_an_option(place: Place, command: Callable[..., Done]) -> None:
    assert command("add-host", "dr", "::1", "--port", "8001").out == "host dr/2 is added: [::1]:8001, weight 0\n"


def test_an_id_that_looks_like_an_option_comes_after_two_dashes(
    place: Place, command: Callable[..., Done]
) -> None:
    place.api.create_pool("-x")
    assert command("down-pool", "--", "-x").out == "pool -x is down\n"
    assert command("--upstream", "default", "up-pool", "--", "-x").out == "pool -x is up\n"
