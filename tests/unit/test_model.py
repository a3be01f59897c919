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
    Pools,
    decode_config,
    encode_config,
    host_from_options,
    identifier,
    parse_duration_s,
    pool_from_options,
    pools_from_dicts,
    pools_to_dicts,
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
