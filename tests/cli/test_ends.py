"""What is done to a host for some time: ``--until`` and ``--for``, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream.cli.arguments import moment
from resty_upstream.cli.changing import user_name
from resty_upstream.testing import FakeClock
from tests.cli.doors import DOORS, Done, Place

Command = Callable[..., Done]
HOUR = 3600


def words(out: str) -> str:
    """A table whose cells are on one line each."""
    return " ".join(out.split())


def of_host(place: Place, host_id: str) -> dict[str, Any]:
    host: dict[str, Any] = place.upstream.get_pools()["primary"]["hosts"][host_id]
    return host


@pytest.mark.parametrize(
    ("text", "in_s"),
    [
        ("15:00", 2 * HOUR),
        ("15:00:30", 2 * HOUR + 30),
        ("9:30", 20.5 * HOUR),
        ("13:00", 24 * HOUR),
        ("2026-11-26T15:00", 2 * HOUR),
        ("2026-11-26 15:00", 2 * HOUR),
        ("2026-11-26T15:00Z", 3 * HOUR),
        ("2026-11-26T15:00-05:00", 8 * HOUR),
        ("2026-11-27", 11 * HOUR),
    ],
)
def test_a_time_is_the_next_one_here_or_as_iso_8601_has_it(text: str, in_s: float, wall: FakeClock) -> None:
    assert moment(text) == wall() + in_s


def test_a_time_of_day_is_that_of_the_clocks_also_when_they_are_changed_before(wall: FakeClock) -> None:
    wall.advance(121 * 86_400 + 10 * HOUR)  # 23:00 before the night that has no 02:30
    assert moment("22:00") == wall() + 22 * HOUR
    assert moment("2:30") == wall() + 3.5 * HOUR


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_each_door_takes_an_end(place: Place, door: Callable[..., Done]) -> None:
    done = door(place, "down-host", "primary", "a", "--for", "2h", "--reason", "new kernel")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("host primary/a is down until ")
    assert {"reason", "by", "until"} <= of_host(place, "a").keys()
    done = door(place, "set-weight", "primary", "b", "0", "--until", "15:00", "--reason", "deploy")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("host primary/b has weight 0 until ")
    assert of_host(place, "b")["weight_then"] == 10


def test_what_is_done_says_until_when_and_is_never_so_already(
    place: Place, command: Command, wall: FakeClock
) -> None:
    down = ("down-host", "primary", "a")
    assert command(*down, "--until", "15:00").out == "host primary/a is down until 15:00\n"
    assert command(*down, "--for", "1d").out == "host primary/a is down until 2026-11-27 13:00\n"
    assert command(*down).out == "host primary/a is down\n"
    assert command(*down).out == "host primary/a was down already\n"
    drain = ("set-weight", "primary", "b", "0")
    assert command(*drain, "--for", "90s").out == "host primary/b has weight 0 until 13:01:30\n"
    assert command(*drain).out == "host primary/b has weight 0\n"
    assert command(*drain).out == "host primary/b had weight 0 already\n"


def test_who_did_it_until_when_and_why_is_shown_with_the_host(
    place: Place, command: Command, wall: FakeClock
) -> None:
    who = user_name()
    command("set-weight", "primary", "b", "0", "--until", "16:00", "--reason", "deploy")
    assert f" 0 - drained, weight 0 by {who} until 16:00, then 10: deploy" in words(command("list").out)
    command("down-host", "primary", "a", "--until", "15:00", "--reason", "new kernel")
    for shown in (command("list").out, command("show", "primary").out):
        assert f" 10 - down by hand by {who} until 15:00: new kernel b " in words(shown)
        assert f" 0 100% up, weight 0 by {who} until 16:00, then 10: deploy" in words(shown)
    assert f"taken down by hand by {who} until 15:00: new kernel" in words(command("explain").out)
    assert [each["to"] for each in json.loads(command("history", "--json").out)] == ["weight 0", "manual"]
    assert "weight 10" in command("history").out


def test_json_has_it_for_programs(place: Place, command: Command, wall: FakeClock) -> None:
    clean = json.loads(command("list", "--json").out)["pools"][0]["hosts"][0]
    assert not {"by", "until", "weight_then"} & clean.keys()
    command("down-host", "primary", "a", "--until", "15:00", "--reason", "new kernel")
    command("set-weight", "primary", "b", "0", "--until", "16:00", "--reason", "deploy")
    for asked in (["show", "primary", "--json"], ["list", "--json"]):
        found = json.loads(command(*asked).out)
        a, b = (found["pools"][0] if "pools" in found else found)["hosts"]
        said = {"by": user_name(), "until": wall() + 2 * HOUR, "reason": "by hand: new kernel", "status": "manual"}
        assert said.items() <= a.items()
        said = {"by": user_name(), "until": wall() + 3 * HOUR, "reason": "deploy", "weight_then": 10, "weight": 0}
        assert said.items() <= b.items()


def test_who_only_looks_sees_it_as_over_and_writes_nothing(
    place: Place, command: Command, wall: FakeClock
) -> None:
    clean = command("list").out
    command("down-host", "primary", "a", "--until", "15:00")
    command("set-weight", "primary", "b", "0", "--until", "15:00")
    written = len(place.upstream.history())
    wall.advance(2 * HOUR)
    assert command("list").out == clean
    assert "declared as" not in command("show", "primary").out.partition("\n\n")[2].partition("host ")[2]
    assert len(place.upstream.history()) == written


def test_what_is_exported_and_imported_has_no_end(place: Place, command: Command) -> None:
    command("down-host", "primary", "a", "--for", "2h", "--reason", "new kernel")
    command("set-weight", "primary", "b", "0", "--for", "2h")
    exported = json.loads(command("export").out)
    assert not {"reason", "by", "until", "weight_then"} & {
        name for pool in exported.values() for host in pool["hosts"].values() for name in host
    }
    command("import", place.file("pools.json", json.dumps(exported)))
    assert "until" in of_host(place, "a"), "nothing of it was changed"
    assert "until" in of_host(place, "b")
