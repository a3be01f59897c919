"""Pools and hosts, and the one place where what a person wrote is checked."""

from __future__ import annotations

import contextlib
import json
import math
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import Host, InvalidConfig, Pool, StoreFormatError
from resty_upstream.model import (
    Config,
    GivenHealth,
    HealthCheck,
    OutlierDetection,
    Pools,
    Sticky,
    changed_options,
    decode_config,
    differences,
    encode_config,
    flat_options,
    host_from_options,
    identifier,
    merge,
    parse_duration_s,
    plain_options,
    pool_from_options,
    pools_from_dicts,
    pools_to_dicts,
    unit_of,
)
from tests.unit import strategies


def host(**options: Any) -> Host:
    return host_from_options("p", "h", {"host": "a.test"} | options)[0]


def problems(**options: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidConfig) as caught:
        host(**options)
    return caught.value.problems


# ── defaults ──────────────────────────────────────────────────────────────────────────────────


def test_a_pool_has_the_defaults_of_the_seed() -> None:
    pool = pool_from_options("p", {})
    assert pool == Pool(
        id="p", up=True, method="round_robin", timeout=2000, priority=0, max_fails=3, failed_timeout=10, hosts=()
    )


def test_a_host_has_the_defaults_of_the_seed() -> None:
    assert host() == Host(id="h", host="a.test", port=80, weight=0)


def test_pools_and_hosts_are_frozen() -> None:
    with pytest.raises(AttributeError):
        host().weight = 5
    with pytest.raises(AttributeError):
        pool_from_options("p", {}).timeout = 5


# ── numbers ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("given", "port"), [(1, 1), (65_535, 65_535), ("80", 80), (80.0, 80)])
def test_a_port_may_be_a_number_or_numeric_text(given: object, port: int) -> None:
    assert host(port=given).port == port


@pytest.mark.parametrize(
    "given", [0, 65_536, -1, 1.5, "", "http", "80x", " 80", True, False, None, math.nan, math.inf, 10**40, [], {}]
)
def test_what_is_no_port_is_refused_with_its_path(given: object) -> None:
    (problem,) = problems(port=given)
    assert problem.startswith("pools.p.hosts.h.port must be a number from 1 to 65535, not ")


@pytest.mark.parametrize("given", [-1, "-1", 1.5, math.nan, -math.inf, True, "foobar", "nan", None, 1_000_001])
def test_what_is_no_weight_is_refused(given: object) -> None:
    (problem,) = problems(weight=given)
    assert problem.startswith("pools.p.hosts.h.weight must be ")


@pytest.mark.parametrize(("given", "priority"), [(-3, -3), ("5", 5), ("-5", -5), (0, 0)])
def test_a_priority_is_any_whole_number(given: object, priority: int) -> None:
    assert pool_from_options("p", {"priority": given}).priority == priority


@pytest.mark.parametrize("given", ["foobar", math.nan, math.inf, 0.5, True, None, 10**30])
def test_what_is_no_priority_is_refused(given: object) -> None:
    with pytest.raises(
        InvalidConfig, match=r"^pools\.p\.priority must be a whole number from -2147483648 to 2147483648, not "
    ):
        pool_from_options("p", {"priority": given})


@pytest.mark.parametrize("given", [1, 0, "true", "yes", None, "no"])
def test_up_is_true_or_false_and_nothing_like_it(given: object) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.up must be true or false, not "):
        pool_from_options("p", {"up": given})


# ── durations ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "timeout_s"),
    [
        (100, 0.1),
        (0.5, 0.0005),
        ("100", 0.1),
        ("250ms", 0.25),
        ("2s", 2),
        ("1.5 s", 1.5),
        ("1m", 60),
        ("1h", 3600),
        ("500us", 0.0005),
        (timedelta(milliseconds=20), 0.02),
        (timedelta(seconds=3), 3),
    ],
)
def test_a_timeout_is_milliseconds_or_says_its_unit(given: object, timeout_s: float) -> None:
    assert pool_from_options("p", {"timeout": given}).timeout_s == pytest.approx(timeout_s)


@pytest.mark.parametrize("name", ["failed_timeout", "failed_timeout_max"])
@pytest.mark.parametrize(
    ("given", "seconds"), [(10, 10), ("10", 10), ("250ms", 0.25), ("1m", 60), (timedelta(minutes=2), 120)]
)
def test_failed_timeouts_are_seconds_or_say_their_unit(name: str, given: object, seconds: float) -> None:
    assert getattr(pool_from_options("p", {name: given}), name) == seconds


@pytest.mark.parametrize("name", ["timeout", "failed_timeout", "failed_timeout_max"])
@pytest.mark.parametrize(
    "given",
    [
        *[
            0,
            -1,
            "0s",
            "-1s",
            "1 fortnight",
            "s",
            "1e3s",
            "",
            True,
            None,
            math.nan,
            math.inf,
            "inf",
            "nan",
            "400d",
        ],
        *[timedelta(0), timedelta(seconds=-1), timedelta(days=400), [], {}],
    ],
)
def test_what_is_no_duration_is_refused(name: str, given: object) -> None:
    with pytest.raises(InvalidConfig, match=rf"^pools\.p\.{name} must be a number of (milli)?seconds above 0"):
        pool_from_options("p", {name: given})


def test_a_timeout_too_small_to_wait_is_refused() -> None:
    """A duration above 0 must not become a timeout of 0, which is not waiting at all."""
    with pytest.raises(InvalidConfig):
        pool_from_options("p", {"timeout": 5e-324})


@given(st.integers(1, 10**9))
def test_milliseconds_mean_the_same_as_a_number_as_text_and_as_a_timedelta(milliseconds: int) -> None:
    as_number = parse_duration_s(milliseconds, "t", bare="ms")
    assert parse_duration_s(f"{milliseconds}ms", "t", bare="ms") == pytest.approx(as_number)
    assert parse_duration_s(f"{milliseconds}ms", "t", bare="s") == pytest.approx(as_number)
    assert parse_duration_s(timedelta(milliseconds=milliseconds), "t", bare="s") == pytest.approx(as_number)


def test_a_duration_that_is_wrong_names_its_path() -> None:
    with pytest.raises(
        InvalidConfig, match=r"^total_timeout must be a number of milliseconds above 0.*, not 'soon'"
    ):
        parse_duration_s("soon", "total_timeout", bare="ms")


# ── addresses ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "address",
    [
        *["a.test", "a-b.test", "localhost", "_srv.test", "a.test.", "bücher.test", "unix:/run/app.sock"],
        *["127.0.0.1", "::1", "fe80::1%eth0", "2001:db8::7", "::ffff:10.0.0.1"],
    ],
)
def test_a_host_is_a_name_an_address_or_a_unix_socket(address: str) -> None:
    assert host(host=address).host == address


def test_brackets_around_an_ipv6_address_are_taken_off() -> None:
    assert host(host="[::1]").host == "::1"


def test_a_unix_host_knows_its_path() -> None:
    assert host(host="unix:/run/app.sock").unix_path == "/run/app.sock"
    assert host(host="a.test").unix_path is None


@pytest.mark.parametrize(
    "address",
    [
        *["", " ", "a b", " a.test", "a.test\n", "a\x00b", "a\tb", "a\x7f", "\ud800", "a\u00a0b"],
        *["-a.test", "a..b", ".", "http://a.test", "a.test/x", "user@a.test", "a" * 64, "a." * 200],
        *["a.test:80", "127.0.0.1:80", "[::1]:80"],
        *["unix:", "unix:relative", "unix:/" + "x" * 107, "unix:/a b", "unix:/a\nb"],
        *[None, 5, True, b"a.test", ["a.test"]],
    ],
)
def test_what_cannot_be_an_address_is_refused(address: object) -> None:
    (problem,) = problems(host=address)
    assert problem.startswith("pools.p.hosts.h.host must be a host name, an IP address")


@pytest.mark.parametrize("address", ["1:2:3", "127.0.0.1:80:90", "::::", "1::2::3", "[1]", "[a.test]"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """Text with two colons or in brackets is an IPv6 address or a mistake."""
    assert problems(host=address)


def test_a_host_must_be_given() -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.hosts\.h\.host must be given$"):
        host_from_options("p", "h", {"port": 80})


# ── ids ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("given", "text"), [("a", "a"), (1, "1"), (0, "0"), (-3, "-3"), ("web 01", "web 01")])
def test_an_id_becomes_text(given: object, text: str) -> None:
    assert identifier(given, "id") == text


@pytest.mark.parametrize(
    "given", ["", "a\x1fb", "a\n", "\ud800", "x" * 201, True, None, 1.5, 10**18, b"a", [], ("a",)]
)
def test_what_cannot_be_an_id_is_refused(given: object) -> None:
    with pytest.raises(InvalidConfig, match=r"^the id must be 1 to 200 characters"):
        identifier(given, "the id")


# ── tables of options ─────────────────────────────────────────────────────────────────────────

TABLES = {"healthcheck": HealthCheck, "sticky": Sticky, "outlier_detection": OutlierDetection}


def check(**options: Any) -> HealthCheck:
    made = pool_from_options("p", {"healthcheck": options}).healthcheck
    assert made is not None
    return made


def refusal(**options: Any) -> str:
    """The only problem with a pool of these options."""
    with pytest.raises(InvalidConfig) as caught:
        pool_from_options("p", options)
    (problem,) = caught.value.problems
    return problem


def only(given: Any) -> Pool:
    (pool,) = pools_from_dicts({"p": given}).pools
    return pool


@pytest.mark.parametrize(("name", "kind"), TABLES.items())
def test_true_and_an_empty_table_are_the_defaults_and_false_and_none_are_none(name: str, kind: type) -> None:
    for value, made in ((True, kind()), ({}, kind()), (False, None), (None, None)):
        assert getattr(pool_from_options("p", {name: value}), name) == made
    assert getattr(pool_from_options("p", {}), name) is None


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("given", [1, 0, "true", "http", [], [("path", "/")], 1.5])
def test_what_is_no_table_is_refused(name: str, given: object) -> None:
    assert refusal(**{name: given}).startswith(
        f"pools.p.{name} must be true, false, or a mapping of options, not "
    )


def test_a_check_has_the_defaults_that_are_documented() -> None:
    made = check()
    assert (made.type, made.method, made.path) == ("http", "GET", "/")
    assert (made.interval, made.interval_down, made.timeout, made.read_timeout) == (10, 5, None, 2000)
    assert (made.rise, made.fall, made.headers, made.status_codes, made.body) == (2, 3, (), None, None)


@pytest.mark.parametrize(
    ("table", "option", "value", "must"),
    [
        ("healthcheck", "type", "ping", "'http', 'tcp', or the place of a function"),
        ("healthcheck", "interval", 0.05, "a number of seconds from 0.1 to a day"),
        ("healthcheck", "interval", "25h", "a number of seconds from 0.1 to a day"),
        ("healthcheck", "interval_down", 0, "a number of seconds from 0.1 to a day"),
        ("healthcheck", "timeout", 0, "a number of milliseconds above 0"),
        ("healthcheck", "read_timeout", None, "a number of milliseconds above 0"),
        ("healthcheck", "rise", 0, "a number from 1 to 1000"),
        ("healthcheck", "fall", 1001, "a number from 1 to 1000"),
        ("healthcheck", "fall", True, "a number from 1 to 1000"),
        ("healthcheck", "method", "get", "a method of HTTP"),
        ("healthcheck", "method", "GET\n", "a method of HTTP"),
        ("healthcheck", "path", "health", "a path that begins with /"),
        ("healthcheck", "path", "/a b", "a path that begins with /"),
        ("healthcheck", "path", "/a\r\nX: y", "a path that begins with /"),
        ("healthcheck", "path", "/ä", "a path that begins with /"),
        ("healthcheck", "status_codes", ["600"], "a list of statuses"),
        ("healthcheck", "status_codes", ["50"], "a list of statuses"),
        ("healthcheck", "status_codes", "503", "a list of statuses"),
        ("healthcheck", "status_codes", 503, "a list of statuses"),
        ("healthcheck", "status_codes", [True], "a list of statuses"),
        ("healthcheck", "body", "", "1 to 1000 characters of text"),
        ("healthcheck", "body", "x" * 1001, "1 to 1000 characters of text"),
        ("healthcheck", "headers", {"X Y": "1"}, "a mapping of names to text"),
        ("healthcheck", "headers", {"X": "a\r\nY: b"}, "a mapping of names to text"),
        ("healthcheck", "headers", {"X": "日"}, "a mapping of names to text"),
        ("healthcheck", "headers", {"X": 1}, "a mapping of names to text"),
        ("healthcheck", "headers", {"X": "1", "x": "2"}, "a mapping of names to text"),
        ("healthcheck", "headers", ["X"], "a mapping of names to text"),
        ("sticky", "cookie", "a b", "the name of a cookie"),
        ("sticky", "max_age", 0, "a number of seconds above 0"),
        ("outlier_detection", "requests", 0, "a number from 1 to 1000000"),
        ("outlier_detection", "success_rate", 101, "a percentage from 0 to 100"),
        ("outlier_detection", "window", "soon", "a number of seconds above 0"),
    ],
)
def test_a_wrong_option_of_a_table_is_refused_with_its_path(
    table: str, option: str, value: object, must: str
) -> None:
    assert refusal(**{table: {option: value}}).startswith(f"pools.p.{table}.{option} must be {must}")


def test_the_check_of_a_host_is_looked_at_as_that_of_a_pool_is() -> None:
    (problem,) = problems(healthcheck={"path": "health"})
    assert problem.startswith("pools.p.hosts.h.healthcheck.path must be a path that begins with /")
    (problem,) = problems(healthcheck={"pth": "/"})
    assert problem.startswith("pools.p.hosts.h.healthcheck.pth is not an option: did you mean path? ")
    (problem,) = problems(healthcheck="yes")
    assert problem.startswith("pools.p.hosts.h.healthcheck must be true, false, or a mapping")


def test_all_that_is_wrong_in_tables_is_named_at_once() -> None:
    with pytest.raises(InvalidConfig) as caught:
        pools_from_dicts(
            {
                "p": {
                    "healthcheck": {"rise": 0, "fal": 1},
                    "sticky": 1,
                    "hosts": {"a": {"host": "a.test", "healthcheck": {"fall": 0}}},
                }
            }
        )
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "pools.p.healthcheck.rise",
        "pools.p.healthcheck.fal",
        "pools.p.sticky",
        "pools.p.hosts.a.healthcheck.fall",
    ]


@pytest.mark.parametrize(
    ("of_pool", "of_host", "path"),
    [
        (None, None, None),
        ({"path": "/pool"}, None, "/pool"),
        ({"path": "/pool"}, {"path": "/host"}, "/host"),
        ({"path": "/pool"}, True, "/"),
        ({"path": "/pool"}, False, None),
        (None, {"path": "/host"}, "/host"),
        (False, {"path": "/host"}, "/host"),
        (False, None, None),
        (None, False, None),
    ],
)
def test_a_host_has_its_own_check_or_none_or_that_of_its_pool(
    of_pool: object, of_host: object, path: str | None
) -> None:
    pool = only({"healthcheck": of_pool, "hosts": {"a": {"host": "a.test", "healthcheck": of_host}}})
    check = pool.check_of(pool.hosts[0])
    assert (check and check.path) == path


def test_a_check_that_is_turned_off_for_a_host_stays_so_in_every_form() -> None:
    given = {
        "healthcheck": True,
        "hosts": {"a": {"host": "a.test", "healthcheck": False}, "b": {"host": "b.test"}},
    }
    pool = only(given)
    plain = pools_to_dicts([pool], lambda _key: GivenHealth())
    assert plain["p"]["hosts"]["a"]["healthcheck"] is False
    assert "healthcheck" not in plain["p"]["hosts"]["b"]
    assert pools_from_dicts(plain).pools == (pool,)
    again = decode_config(encode_config(Config(clock="boot", secret="00", pools=(pool,)).declaring((pool,))))
    assert again is not None
    assert again.pools == again.declared == (pool,)


@given(strategies.pools)
def test_pools_with_tables_come_back_from_their_stored_form(given: dict[str, Any]) -> None:
    pools = pools_from_dicts(given).pools
    again = decode_config(encode_config(Config(clock="boot", secret="00", pools=pools).declaring(pools)))
    assert again is not None
    assert again.pools == again.declared == pools


def test_what_is_known_of_the_last_check_is_no_option_and_may_be_given_back() -> None:
    host = {"host": "a.test", "last_check": 1e9, "last_result": "ok: 200"}
    definition = pools_from_dicts({"p": {"hosts": {"a": host}}})
    assert definition.pools[0].hosts[0] == Host(id="a", host="a.test")
    assert definition.health == {}


# ── statuses ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([503, "50x", "5XX"], ("503", "50x", "5xx")),
        ({"404": True, "5xx": True, "500": False}, ("404", "5xx")),
        ((404,), ("404",)),
        ([], ()),
    ],
)
def test_statuses_are_a_list_or_as_in_the_seed_a_mapping_to_true(given: object, kept: tuple[str, ...]) -> None:
    assert check(status_codes=given).status_codes == kept


@given(st.integers(100, 999))
def test_without_statuses_all_outside_200_to_399_are_bad(status: int) -> None:
    assert check().is_bad(status) == (status not in range(200, 400))


masks = st.from_regex(r"[1-5x][0-9x]{2}", fullmatch=True)


@given(st.lists(masks, max_size=4), st.integers(100, 999))
def test_a_status_is_bad_where_one_of_the_masks_has_each_of_its_digits_or_an_x(
    given: list[str], status: int
) -> None:
    matching = [mask for mask in given if all(m in {"x", d} for m, d in zip(mask, str(status), strict=True))]
    assert check(status_codes=given).is_bad(status) == bool(matching)


# ── secrets ───────────────────────────────────────────────────────────────────────────────────

SECRET = "Zm9vOmJhcg"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Basic {SECRET}\n\n.", "X": "\n"},
        {"Authorization": f"Basic {SECRET}", "X Y": "1"},
        {"Authorization": [f"Basic {SECRET}"]},
        {"Authorization": f"Basic {SECRET}", "authorization": "x"},
        [("Authorization", f"Basic {SECRET}")],
        f"Authorization Basic {SECRET}",
        {f"Basic {SECRET}"},
        SECRET.encode(),
    ],
    ids=["line", "name", "list", "twice", "pairs", "text", "set", "bytes"],
)
def test_what_headers_say_is_in_no_error(headers: object) -> None:
    for options in ({"headers": headers, "fall": 0}, {"headers": headers}):
        with pytest.raises(InvalidConfig) as caught:
            pool_from_options("p", {"healthcheck": options})
        assert "pools.p.healthcheck.headers must be a mapping of names to text" in str(caught.value)
        assert SECRET not in str(caught.value)


def test_what_headers_say_is_in_no_difference() -> None:
    def pool(value: str, **options: Any) -> Pool:
        headers = {"Authorization": value}
        given = {"healthcheck": {"headers": headers, **options}}
        return only({**given, "hosts": {"a": {"host": "a.test", **given}}})

    pairs = [
        (pool(SECRET), pool("other")),
        (pool(SECRET), only({"hosts": {"a": {"host": "a.test"}}})),
        (pool(SECRET), only({})),
        (pool(SECRET, path="/a"), pool(SECRET, path="/b")),
    ]
    for one, two in pairs:
        for before, after in (((one,), (two,)), ((two,), (one,)), ((one,), ()), ((), (one,))):
            found = list(differences(before, after))
            assert found
            assert SECRET not in repr(found)
    assert SECRET not in repr(plain_options(pairs[0][0], masked=True))
    assert list(changed_options(*pairs[0])) == [
        ("healthcheck.headers", {"Authorization": "***"}, {"Authorization": "***"})
    ]


# ── tables by their options ───────────────────────────────────────────────────────────────────


def test_changed_options_of_a_table_are_named_one_by_one_and_a_whole_table_as_one() -> None:
    one = only({"healthcheck": {"path": "/a", "fall": 2}, "timeout": 100})
    two = only({"healthcheck": {"path": "/b", "fall": 2}, "timeout": 200})
    assert list(changed_options(one, two)) == [("timeout", 100, 200), ("healthcheck.path", "/a", "/b")]
    assert list(changed_options(one, only({"timeout": 100}))) == [
        ("healthcheck", plain_options(one)["healthcheck"], None)
    ]
    off = Host(id="a", host="a.test", healthcheck=False)
    assert list(changed_options(Host(id="a", host="a.test"), off)) == [("healthcheck", None, False)]


def test_flat_options_have_those_of_tables_by_path_and_headers_as_they_are() -> None:
    headers = {"X-Check": "1"}
    flat = flat_options({"timeout": 5, "healthcheck": {"path": "/a", "headers": headers}, "sticky": False})
    assert flat == {"timeout": 5, "healthcheck.path": "/a", "healthcheck.headers": headers, "sticky": False}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *[("timeout", "ms"), ("failed_timeout", "s"), ("slow_start", "s"), ("priority", ""), ("healthcheck", "")],
        *[("healthcheck.interval", "s"), ("healthcheck.read_timeout", "ms"), ("healthcheck.timeout", "ms")],
        *[("healthcheck.path", ""), ("sticky.max_age", "s"), ("outlier_detection.window", "s")],
        *[("none", ""), ("none.timeout", ""), ("healthcheck.none", ""), ("", "")],
    ],
)
def test_the_unit_of_an_option_is_known_by_its_path(name: str, unit: str) -> None:
    assert unit_of(name) == unit


# ── merging tables ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("base", "declared", "current", "merged"),
    [
        ({"path": "/a"}, {"path": "/a"}, {"path": "/run-time"}, {"path": "/run-time"}),
        ({"path": "/a"}, {"path": "/b"}, {"path": "/run-time", "fall": 9}, {"path": "/b"}),
        ({"path": "/a"}, {"path": "/a", "fall": 5}, {"path": "/run-time"}, {"path": "/a", "fall": 5}),
        ({"path": "/a"}, {"path": "/a"}, False, False),
        ({"path": "/a"}, False, {"path": "/run-time"}, False),
        (False, {"path": "/b"}, False, {"path": "/b"}),
        (False, False, {"path": "/run-time"}, {"path": "/run-time"}),
    ],
)
def test_a_table_whose_declaration_changed_is_as_declared_as_a_whole(
    base: object, declared: object, current: object, merged: object
) -> None:
    def pools(of: object) -> Pools:
        # The same for the pool and for a host
        return (only({"healthcheck": of, "hosts": {"a": {"host": "a.test", "healthcheck": of}}}),)

    assert merge(pools(base), pools(declared), pools(current)) == pools(merged)


# ── problems ──────────────────────────────────────────────────────────────────────────────────


def test_all_problems_are_named_at_once_each_with_its_path() -> None:
    wrong = {
        "primary": {
            "timeout": "soon",
            "colour": "blue",
            "hosts": {"a": {"host": "a b", "port": 0, "wait": 1}, "b": {"port": "x"}, "c": 7},
        },
        "dr": 5,
        "": {},
    }
    with pytest.raises(InvalidConfig) as caught:
        pools_from_dicts(wrong)
    paths = [problem.split(" ")[0] for problem in caught.value.problems]
    assert paths == [
        "pools.primary.timeout",
        "pools.primary.colour",
        "pools.primary.hosts.a.host",
        "pools.primary.hosts.a.port",
        "pools.primary.hosts.a.wait",
        "pools.primary.hosts.b.port",
        "pools.primary.hosts.b.host",
        "pools.primary.hosts.c",
        "pools.dr",
        "an",
    ]
    assert str(caught.value) == "; ".join(caught.value.problems)


def test_an_unknown_option_is_answered_with_those_that_there_are() -> None:
    (problem,) = problems(ports=80)
    assert problem == (
        "pools.p.hosts.h.ports is not an option: did you mean port? "
        "options are host, port, weight, healthcheck, up, failcount, lastfail"
    )


@pytest.mark.parametrize("given", [None, 5, "pools", [], [("p", {})], True])
def test_pools_and_hosts_are_mappings_by_id(given: object) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools must be a mapping by id, not "):
        pools_from_dicts(given)
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.hosts must be a mapping by id, not "):
        pools_from_dicts({"p": {"hosts": given}})


def test_two_ids_that_are_the_same_as_text_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.1 is given twice$"):
        pools_from_dicts({1: {}, "1": {}})


def test_hosts_in_the_options_of_one_pool_are_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.hosts cannot be given here: add each with add_host$"):
        pool_from_options("p", {"hosts": {}})


def test_a_value_that_breaks_its_repr_or_is_huge_still_gives_a_short_problem() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert problems(port=Hostile()) == ("pools.p.hosts.h.port must be a number from 1 to 65535, not a Hostile",)
    assert len(problems(port="9" * 10_000)[0]) < 200


@given(strategies.some_pools)
def test_any_json_like_pools_are_checked_or_refused(given: object) -> None:
    problems: tuple[str, ...] = ("none",)
    pools: Pools = ()
    try:
        pools = pools_from_dicts(given).pools
    except InvalidConfig as error:
        problems = error.problems
    assert problems
    assert all(problem.startswith(("pools", "an id in pools", "none")) for problem in problems)
    assert all(isinstance(pool, Pool) for pool in pools)


@given(strategies.pools)
def test_pools_that_are_right_are_accepted_and_come_back_the_same_from_plain_dicts(given: dict[str, Any]) -> None:
    definition = pools_from_dicts(given)
    plain = pools_to_dicts(definition.pools, lambda key: definition.health.get(key, GivenHealth()))
    again = pools_from_dicts(plain)
    assert again.pools == definition.pools
    assert definition.health.items() <= again.health.items()


# ── forms ─────────────────────────────────────────────────────────────────────────────────────


def test_plain_dicts_have_the_shape_of_the_seed() -> None:
    given = {"primary": {"timeout": 100, "hosts": {"web01": {"host": "127.0.0.1", "weight": 10, "port": "80"}}}}
    plain = pools_to_dicts(pools_from_dicts(given).pools, lambda _key: GivenHealth())
    assert plain == {
        "primary": {
            "up": True,
            "method": "round_robin",
            "timeout": 100,
            "priority": 0,
            "max_fails": 3,
            "failed_timeout": 10,
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
            "hosts": {
                "web01": {
                    "host": "127.0.0.1",
                    "weight": 10,
                    "port": 80,
                    "lastfail": 0,
                    "failcount": 0,
                    "up": True,
                }
            },
        }
    }


def test_whole_durations_are_shown_without_a_fraction() -> None:
    plain = pools_to_dicts(pools_from_dicts({"p": {"timeout": 100.0}}).pools, lambda _key: GivenHealth())
    assert str(plain["p"]["timeout"]) == "100"


def test_a_configuration_comes_back_from_its_stored_form() -> None:
    pools = pools_from_dicts({"p": {"hosts": {"a": {"host": "::1"}}}}).pools
    config = Config(clock="boot", secret="00", pools=pools).declaring(pools)
    again = decode_config(encode_config(config))
    assert again == config
    assert again.declared == pools


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": "x"}', b"\xff\xfe", b"null"])
def test_a_damaged_configuration_is_none(data: bytes) -> None:
    assert decode_config(data) is None


def test_a_configuration_of_a_newer_version_is_a_format_error_that_names_both() -> None:
    newer = msgspec.structs.replace(Config(clock="boot", secret="00"), version=2)
    with pytest.raises(StoreFormatError, match="version 2, this release reads version 1"):
        decode_config(encode_config(newer))


@given(st.binary(max_size=60) | strategies.json_like.map(lambda value: json.dumps(value).encode()))
def test_no_stored_bytes_break_the_reader(data: bytes) -> None:
    with contextlib.suppress(StoreFormatError):
        assert decode_config(data) is None
