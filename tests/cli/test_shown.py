"""What ``list``, ``show``, ``explain`` and the help look like."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream.cli import VERBS, main
from resty_upstream.cli.look import look
from resty_upstream.cli.showing import state_cell
from resty_upstream.cli.text import duration, padded, shortened, shown, width_of, wrapped
from resty_upstream.testing import FakeClock
from tests.cli.doors import POOLS, Done, Place, called, flask, manage, run
from tests.cli.terminal import Terminal
from tests.e2e.processes import python
from tests.helpers import hosts, open_upstream, refused, take_down, visit, visit_in_vain

Command = Callable[..., Done]


def longest(text: str) -> int:
    """The width of the longest line."""
    return max(width_of(line) for line in text.split("\n"))


# ── list ──────────────────────────────────────────────────────────────────────────────────────


def test_a_list_has_a_heading_for_each_pool_and_an_aligned_table_of_its_hosts(
    place: Place, command: Command
) -> None:
    place.api.set_weight("primary", "b", 5)
    place.api.down_host("dr", "c")
    place.api.create_pool("empty", priority=-1)
    place.api.down_pool("empty")
    assert (
        command("list").out
        == """\
upstream default: connect tries pool primary first

pool primary: priority 0, round_robin, 2 of 2 hosts up, used
  host  address         weight  share  state
  a     127.0.0.1:8001      10    67%  up
  b     127.0.0.1:8002       5    33%  up

pool dr: priority 10, round_robin, 0 of 1 host up, not used
  host  address         weight  share  state
  c     127.0.0.1:8003       0      -  down by hand

pool empty: priority -1, round_robin, no hosts, down
"""
    )


def test_an_upstream_without_pools_is_listed_as_such(empty_place: Place) -> None:
    empty_place.upstreams["default"]["pools"] = {}
    assert called(empty_place, "list").out == "upstream default: connect fails: there are no pools\n"


def test_a_state_says_what_happened_and_what_comes_next(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)

    def states() -> list[str]:
        seen = look(upstream)
        (pool,) = seen.explanation.pools
        return [state_cell(seen, host, pool.pool, drained=False).text for host in pool.hosts]

    assert states() == ["up", "up"]
    take_down(upstream, "a")
    visit_in_vain(upstream, {"a": refused, "b": refused})
    clock.advance(6)
    failed, counted = states()
    assert re.fullmatch(r"failed 6 s ago \(ECONNREFUSED\), probed in [345] s", failed)
    assert counted == "up, 1 of 3 failures"
    clock.advance(6)
    assert states()[0] == "failed 12 s ago (ECONNREFUSED), probed by the next request"
    with contextlib.suppress(ConnectionRefusedError), next(iter(upstream.attempts())) as host:
        assert host.id == "a"
        assert states()[0] == "failed 12 s ago (ECONNREFUSED), being probed"


def test_a_host_whose_weight_was_set_to_0_is_drained_and_one_declared_so_is_a_spare(
    place: Place, command: Command
) -> None:
    place.api.set_weight("primary", "a", 0)
    place.api.add_host("primary", id="x", host="10.0.0.1")
    listed = command("list").out
    assert re.search(r"^  a .* 0      -  drained$", listed, re.MULTILINE)
    assert re.search(r"^  x .* 0      -  spare$", listed, re.MULTILINE)


def test_a_pool_that_never_takes_a_host_down_counts_all_the_same(place: Place, command: Command) -> None:
    place.upstream.save_pools({"p": {"max_fails": 0, "hosts": {"a": {"host": "a.test"}}}})
    visit_in_vain(place.upstream, {"a": refused})
    assert "up, 1 failure\n" in command("list").out


def test_a_list_as_json_has_all_that_is_known(place: Place, command: Command) -> None:
    take_down(place.upstream, "a", pool_id="primary")
    place.api.down_host("dr", "c")
    listed = json.loads(command("list", "--json").out)
    assert listed["upstream"] == "default"
    primary, dr = listed["pools"]
    assert (primary["id"], primary["used"], primary["hosts_up"]) == ("primary", True, 1)
    a, b = primary["hosts"]
    assert (a["status"], a["up"], a["failcount"], a["reason"]) == ("failed", False, 3, "ECONNREFUSED")
    assert 0 < a["probe_in_s"] <= 11
    assert a["lastfail"] > 1.6e9
    assert (b["share"], b["address"], b["probe_in_s"]) == (1.0, "127.0.0.1:8002", None)
    assert (dr["hosts"][0]["status"], dr["hosts"][0]["share"]) == ("manual", 0)


# ── show ──────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_is_shown_with_where_each_option_comes_from(place: Place, command: Command) -> None:
    place.api.set_method("primary", "hash")
    place.api.set_weight("primary", "b", 0)
    place.api.add_host("primary", id="x", host="10.0.0.1")
    place.api.remove_host("primary", "a")
    assert (
        command("show", "primary").out
        == """\
pool primary: priority 0, hash, 2 of 2 hosts up, used

  option              value      origin
  up                  true       default
  method              hash       set at run time, declared as round_robin
  timeout             500 ms     declared
  priority            0          default
  max_fails           3          default
  failed_timeout      10 s       default
  failed_timeout_max  60 s       default
  slow_start          0 s        default
  key                 ip         default
  load                in_flight  default
  status_codes        -          default
  read_timeout        10000 ms   default
  keepalive_pool      32         default
  keepalive_timeout   60000 ms   default
  ssl                 false      default
  ssl_verify          true       default
  sni_host            -          default

  host  address         weight  share  state
  b     127.0.0.1:8002       0    50%  up
  x     10.0.0.1:80          0    50%  up

  Host b: weight was set at run time, declared as 10.
  Host x was added at run time.
  Host a is declared, but was removed at run time.
"""
    )


def test_a_pool_that_was_created_at_run_time_is_shown_as_such(place: Place, command: Command) -> None:
    place.api.create_pool("new", timeout=100)
    out = command("show", "new").out
    assert re.search(r"^  timeout +100 ms +set at run time$", out, re.MULTILINE)
    assert re.search(r"^  method +round_robin +default$", out, re.MULTILINE)
    assert "The pool was created at run time." in out


def test_a_pool_as_json_has_the_value_the_origin_and_the_declaration_of_each_option(
    place: Place, command: Command
) -> None:
    place.api.set_weight("primary", "b", 0)
    place.api.set_priority("primary", 5)
    place.api.remove_host("primary", "a")
    pool = json.loads(command("show", "primary", "--json").out)
    assert pool["options"]["priority"] == {"value": 5, "origin": "run time", "declared": 0}
    assert pool["options"]["timeout"] == {"value": 500, "origin": "declared", "declared": 500}
    assert pool["options"]["max_fails"] == {"value": 3, "origin": "default", "declared": 3}
    (b,) = pool["hosts"]
    assert (b["weight"], b["declared"]["weight"]) == (0, 10)
    assert (pool["declared"], pool["removed_hosts"]) == (True, ["a"])


# ── explain ───────────────────────────────────────────────────────────────────────────────────


def test_an_explanation_names_every_pool_and_host_with_the_reason(place: Place, command: Command) -> None:
    place.api.down_host("primary", "a")
    assert (
        command("explain").out
        == """\
connect tries pool primary first
pool primary (priority 0, round_robin): used: the first in order with a host
  to try
  host a 127.0.0.1:8001: passed over: taken down by hand
  host b 127.0.0.1:8002: taken: 100% of the pool's traffic
pool dr (priority 10, round_robin): in reserve behind pool primary
  host c 127.0.0.1:8003: ready: 100% of the pool's traffic
"""
    )


def test_with_a_key_it_names_the_host_that_the_application_takes_for_it(place: Place, command: Command) -> None:
    place.api.set_method("primary", "hash")
    for number in range(5):
        key = f"192.0.2.{number}"
        explained = json.loads(command("explain", "--key", key, "--json").out)
        hosts = {host["id"]: host["reason"] for host in explained["pools"][0]["hosts"]}
        (taken,) = visit(place.upstream, key=key)
        assert hosts.pop(taken) == "taken: the host of this key"
        assert set(hosts.values()) == {"passed over: not this key's host"}


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────


def terminal(place: Place, *asked: str, **options: Any) -> Terminal:
    """The command in a terminal."""
    return Terminal(python("-m", "resty_upstream", "--store", place.url, *asked), **options)


def test_on_a_terminal_states_have_colours(place: Place) -> None:
    take_down(place.upstream, "a", pool_id="primary")
    place.api.down_host("dr", "c")
    with terminal(place, "list") as shown_there:
        assert shown_there.wait() == 0
        assert shown_there.colour_of("failed") == "red"
        assert shown_there.colour_of("by hand") == "brown"  # as pyte calls yellow
        assert [shown_there.colour_of(f"{name} ") for name in "abc"] == ["default"] * 3
        place.api.up_host("primary", "a")
    with terminal(place, "list") as shown_there:
        assert shown_there.wait() == 0
        assert re.search(r"\x1b\[32mup\x1b\[0m", shown_there.sent)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_colours_can_be_turned_off(place: Place, environment: dict[str, str]) -> None:
    with terminal(place, "list", environment=environment) as shown_there:
        assert shown_there.wait() == 0
        assert "\x1b[" not in shown_there.sent
        assert "2 of 2 hosts up" in shown_there.text


def test_in_a_pipe_there_are_no_colours(place: Place, command: Command) -> None:
    assert "\x1b" not in command("list").out


def test_django_colours_when_it_is_told_to(place: Place) -> None:
    assert "\x1b[32mup" in called(place, "list", "--force-color").out
    assert "\x1b[32mup" in called(place, "--force-color", "list").out
    assert "\x1b" not in called(place, "list").out
    with Terminal(python("example_project/manage.py", "upstream", "list"), environment=place.environment) as there:
        assert there.wait() == 0
        assert "\x1b[32mup" in there.sent
    no_colour = python("example_project/manage.py", "upstream", "list", "--no-color")
    with Terminal(no_colour, environment=place.environment) as there:
        assert there.wait() == 0
        assert "\x1b[" not in there.sent


NAMES = {
    "ascii": "a-rather-long-id-of-a-host-in-some-availability-zone",
    "wide": "日本語の名前がとても長いホストの識別子です日本語の名前",
    "combining": "e\u0301" * 40,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("columns", [40, 60, 80])
def test_names_are_shortened_where_a_terminal_is_too_narrow(name: str, columns: int, place: Place) -> None:
    place.api.add_host("primary", id=name, host="backend-1.eu-central.internal.example.com", port=8001)
    with terminal(place, "list", columns=columns) as there:
        assert there.wait() == 0
        lines = [line for line in there.sent.replace("\r", "").split("\n") if line]
        plain = [re.sub(r"\x1b\[\d*m", "", line) for line in lines]
        assert max(map(width_of, plain)) <= columns
        assert any("…" in line for line in plain)
        heads = [line for line in plain if line.startswith("  host ")]
        assert len({head.index("state") for head in heads[:1]}) == 1


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_in_a_pipe_nothing_is_shortened_and_columns_are_aligned(name: str, place: Place, command: Command) -> None:
    place.api.add_host("primary", id=name, host="backend-1.eu-central.internal.example.com", port=8001)
    out = command("list").out
    assert name in out
    assert "…" not in out
    rows = [line for line in out.split("\n\n")[1].splitlines() if line.endswith(("up", "state"))]
    ends = {width_of(line.rpartition(" up")[0] or line.rpartition(" state")[0]) for line in rows[1:]}
    assert len(ends) == 1


def test_a_wide_terminal_is_used(place: Place) -> None:
    place.api.create_pool("x" * 100)
    with terminal(place, "list", columns=200) as there:
        assert there.wait() == 0
        assert f"pool {'x' * 100}: priority 0, round_robin, no hosts, not used" in there.lines


# ── 80 columns ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["", *(verb.name for verb in VERBS)])
def test_a_page_of_help_fits_and_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert longest(out) <= 80
    assert f"\n  resty-upstream {verb}".rstrip() in out
    assert "example" in out


def test_each_argument_of_each_verb_has_a_help() -> None:
    assert all(option.settings["help"] for verb in VERBS for option in verb.options)


@pytest.mark.parametrize("door", [manage, flask])
def test_the_help_of_the_other_doors_is_ours(door: Callable[..., Done], place: Place) -> None:
    for asked in (["--help"], ["add-host", "-h"]):
        code, out, err = door(place, *asked)
        assert (code, err) == (0, "")
        assert longest(out) <= 80
        assert "--upstream NAME" in out
        assert "--store" not in out
    assert "10.0.0.3:8001" in out


def test_what_is_shown_fits_into_80_columns(place: Place, command: Command) -> None:
    """With hosts in every state, and names of an ordinary length."""
    asks = ["list", "show payments-api", "explain", "explain --key x", "check --behind-proxy"]
    pools: dict[str, Any] = {
        "payments-api": {
            "method": "hash",
            "hosts": {
                f"payments-{name}": {"host": f"192.168.100.{number}", "port": 8001, "weight": number}
                for number, name in enumerate("abcde")
            },
        },
        "payments-api-disaster-recovery": {"priority": 10, "hosts": {"1": {"host": "192.168.200.1"}}},
    }
    place.upstream.configure(pools | POOLS)
    place.upstream.save_pools(pools)
    take_down(place.upstream, "payments-b", "payments-c", pool_id="payments-api")
    place.api.down_host("payments-api", "payments-d")
    place.api.set_weight("payments-api", "payments-e", 0)
    for asked in asks:
        done = command(*asked.split())
        assert done.code == 0
        assert done.out
        assert longest(done.out) <= 80, done.out


# ── text ──────────────────────────────────────────────────────────────────────────────────────


def test_text_that_a_terminal_would_not_print_is_escaped() -> None:
    assert shown("a b/ä日本") == "a b/ä日本"
    assert shown("\x1b[31m\u202e\u2066\ud800\x00\n\x85\U000e0001") == (
        r"\x1b[31m\u202e\u2066\ud800\x00\n\x85\U000e0001"
    )


def test_the_width_of_text_is_counted_in_columns() -> None:
    assert [width_of(text) for text in ("", "abc", "日本", "e\u0301", "\uff41")] == [0, 3, 4, 1, 2]
    assert padded("日本", 6) + "|" == "日本  |"
    assert padded("5", 3, right=True) == "  5"
    assert [shortened("日本語", width) for width in (6, 5, 4, 1)] == ["日本語", "日本…", "日…", "…"]
    assert wrapped("a bb ccc dddd", 6) == ["a bb", "ccc", "dddd"]


def test_times_are_in_the_unit_that_people_would_use() -> None:
    given = {-1: "0 s", 0.4: "0 s", 12.7: "12 s", 119: "119 s", 120: "2 min", 7199: "119 min", 7200: "2 h"}
    assert {seconds: duration(seconds) for seconds in given} == given
    assert duration(86_400 * 400) == "400 d"


def test_ten_thousand_hosts_are_listed_with_every_line(place: Place) -> None:
    """In a process of its own, as an operator would; how long it takes is for the benchmarks."""
    many = {f"host-{number}": {"host": f"10.0.{number // 250}.{number % 250 + 1}"} for number in range(10_000)}
    place.upstream.save_pools({"p": {"hosts": many}})
    done = run(python("-m", "resty_upstream", "--store", place.url, "list"), {})
    assert done.code == 0
    assert done.out.count("\n") == 10_004
