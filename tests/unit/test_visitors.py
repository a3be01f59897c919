"""Who makes a request, and who is believed about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import InvalidConfig, Pool, Upstream
from resty_upstream.model import Pools
from resty_upstream.visitors import KEY_CHARS, AsgiVisitor, Proxies, Visitor, WsgiVisitor, key_of
from tests.helpers import hosts, open_upstream, visit

TRUSTED = ["10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48"]
NOBODY = Proxies()

Headers = list[tuple[str, str]]


def wsgi(peer: str | None, headers: Iterable[tuple[str, str]] = ()) -> WsgiVisitor:
    """A visitor as servers of WSGI tell of him."""
    environ: dict[str, Any] = {} if peer is None else {"REMOTE_ADDR": peer}
    for name, value in headers:
        variable = f"HTTP_{name.upper().replace('-', '_')}"
        separator = "; " if name.lower() == "cookie" else ","
        environ[variable] = f"{environ[variable]}{separator}{value}" if variable in environ else value
    return WsgiVisitor(environ)


def asgi(peer: str | None, headers: Iterable[tuple[str, str]] = ()) -> AsgiVisitor:
    """A visitor as servers of ASGI tell of him."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return AsgiVisitor({"client": None if peer is None else (peer, 50_000), "headers": raw})


BOTH = pytest.mark.parametrize("tell", [wsgi, asgi])


def client(tell: Any, peer: str | None, *forwarded: str, trusted: Iterable[object] = TRUSTED) -> str | None:
    """The address of a client."""
    headers = [("X-Forwarded-For", line) for line in forwarded]
    found: str | None = tell(peer, headers).address(Proxies(trusted))
    return found


# ── the address ───────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8:2::1", "192.0.2.8", "testclient"])
def test_who_is_no_proxy_is_the_client_whatever_he_says(tell: Any, peer: str) -> None:
    assert client(tell, peer, "198.51.100.1") == peer
    assert client(tell, peer, "198.51.100.1", trusted=()) == peer


@BOTH
@pytest.mark.parametrize("nothing", [None, ""])
def test_a_unix_socket_has_no_address_unless_its_proxy_is_trusted(tell: Any, nothing: str | None) -> None:
    assert client(tell, nothing, "198.51.100.1", trusted=()) is None
    assert client(tell, nothing, "198.51.100.1") is None
    assert client(tell, nothing, "198.51.100.1", trusted=["unix"]) == "198.51.100.1"
    assert client(tell, nothing, "198.51.100.1, 10.1.1.1", trusted=["unix", *TRUSTED]) == "198.51.100.1"
    assert client(tell, nothing, trusted=["unix"]) is None
    assert client(tell, nothing, "garbage", trusted=["unix"]) is None
    assert client(tell, "10.0.0.1", "198.51.100.1", trusted=["unix"]) == "10.0.0.1"


@BOTH
@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
        (["198.51.100.1"], "198.51.100.1"),
        (["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
        (["1.1.1.1, 198.51.100.1, 10.2.2.2,192.0.2.7"], "198.51.100.1"),
        (["1.1.1.1, 198.51.100.1", "10.2.2.2"], "198.51.100.1"),
        (["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db8:2::1]:4711"], "2001:db8:2::1"),
        (["[2001:db8:2::1]"], "2001:db8:2::1"),
        (["2001:DB8:2:0::1"], "2001:db8:2::1"),
        (["198.51.100.1, 2001:db8:1::5"], "198.51.100.1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, ::ffff:10.9.9.9"], "198.51.100.1"),
    ],
)
def test_a_trusted_proxy_says_for_whom_it_speaks(tell: Any, forwarded: list[str], expected: str) -> None:
    """The rightmost that is no proxy: what is left of it, anybody may have written."""
    assert client(tell, "10.0.0.1", *forwarded) == expected


@BOTH
@pytest.mark.parametrize(
    "garbage",
    ["unknown", "_hidden", "198.51.100", "198.51.100.1.1", "0x7f.1", "é", "[", "[]:80", "::1::", " ", "1"],
)
def test_at_garbage_the_last_proxy_is_the_client(tell: Any, garbage: str) -> None:
    """Beyond it nothing can be believed."""
    assert client(tell, "10.0.0.1", f"198.51.100.1, {garbage}") == "10.0.0.1"
    assert client(tell, "10.0.0.1", f"198.51.100.1, {garbage}, 10.2.2.2") == "10.2.2.2"


@BOTH
def test_an_ipv4_client_is_the_same_one_at_a_socket_of_both_kinds(tell: Any) -> None:
    assert client(tell, "::ffff:192.0.2.200", trusted=()) == "192.0.2.200"
    assert client(tell, "::FFFF:192.0.2.200") == "192.0.2.200"
    assert client(tell, "::ffff:10.0.0.1", "198.51.100.1") == "198.51.100.1"
    assert client(tell, "::ffff:10.0.0.1", "198.51.100.1", trusted=["::ffff:10.0.0.0/104"]) == "198.51.100.1"


@BOTH
def test_the_zone_of_a_proxy_does_not_matter(tell: Any) -> None:
    assert client(tell, "fe80::1%eth0", "198.51.100.1", trusted=["fe80::/10"]) == "198.51.100.1"


@BOTH
def test_a_huge_header_costs_little_and_is_cut_between_addresses(tell: Any) -> None:
    """Looked at is what proxies added to its end; half an address is none."""
    hops = ", ".join(["10.1.1.1"] * 1_000_000)
    assert client(tell, "10.0.0.1", f"{hops}, 198.51.100.1") == "198.51.100.1"
    assert client(tell, "10.0.0.1", hops) == "10.1.1.1"
    assert client(tell, "10.0.0.1", "9" * 1_000_000) == "10.0.0.1"
    for padding in range(7_000, 9_000):
        assert client(wsgi, "10.0.0.1", "198.51.100.1" + " " * padding) in ("198.51.100.1", "10.0.0.1")
    for length in range(8):
        assert client(wsgi, "10.0.0.1", "198.51.100.1," + " " * (8192 - length) + "10.2.2.2") in (
            "10.2.2.2",
            "10.0.0.1",
        )


addresses = st.ip_addresses().map(str)
proxies = st.ip_addresses(v=4, network="10.0.0.0/8").map(str)
strangers = addresses.filter(lambda text: not Proxies(TRUSTED)._trusts(_plain(text)))


def _plain(text: str) -> Any:
    address = ipaddress.ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


@given(
    st.text(max_size=50).filter(lambda text: text.isprintable()), strangers, st.lists(proxies, max_size=8), proxies
)
def test_what_a_client_writes_into_the_header_never_changes_who_he_is(
    forged: str, stranger: str, hops: list[str], peer: str
) -> None:
    """Proxies add the address that they see; they may also add one to another."""
    forwarded = ", ".join([forged, stranger, *hops])
    assert client(wsgi, peer, forwarded) == str(_plain(stranger))


@given(st.text(max_size=200) | addresses, st.text(max_size=200) | st.lists(addresses).map(",".join))
def test_whatever_is_said_the_answer_is_an_address_or_what_the_server_said(peer: str, forwarded: str) -> None:
    found = Proxies([*TRUSTED, "unix"]).client_address(peer, forwarded)
    if found is not None and found != peer:
        assert str(ipaddress.ip_address(found)) == found


# ── headers and cookies ───────────────────────────────────────────────────────────────────────


@BOTH
def test_a_header_is_found_whatever_its_case_with_all_its_lines(tell: Any) -> None:
    visitor = tell("", [("X-User", "ann"), ("x-user", "bob"), ("Empty", ""), ("Blank", " ")])
    assert visitor.header("x-USER") == "ann,bob"
    for missing in ("X-Other", "Empty", "Blank"):
        assert visitor.header(missing) is None


def test_the_two_headers_that_wsgi_keeps_elsewhere_are_found() -> None:
    visitor = WsgiVisitor({"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "5"})
    assert (visitor.header("Content-Type"), visitor.header("content-length")) == ("text/plain", "5")


@BOTH
@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (["name=v"], "v"),
        (["other=1; name=v; more=2"], "v"),
        (["other=1;name=v;name=w"], "v"),
        (["other=1", "name=v"], "v"),
        (["name = v "], "v"),
        (['name="v=1"'], '"v=1"'),
        (["name=v=w=="], "v=w=="),
        (["Name=v"], None),
        (["my-name=v; names=w"], None),
        (["name=; other"], None),
        (["name"], None),
        (["; ;=;"], None),
        ([], None),
    ],
)
def test_a_cookie_is_found_among_others(tell: Any, lines: list[str], value: str | None) -> None:
    """Of two, the first: browsers send the one whose path fits best in front."""
    assert tell("", [("Cookie", line) for line in lines]).cookie("name") == value


@BOTH
def test_of_a_long_value_the_beginning_counts(tell: Any) -> None:
    visitor = tell("", [("X-User", "x" * 1_000_000), ("Cookie", "name=" + "y" * 1_000_000)])
    assert visitor.header("X-User") == "x" * KEY_CHARS
    assert visitor.cookie("name") == "y" * KEY_CHARS
    assert tell("", [("Cookie", "a=1;" * 1_000_000 + "name=v")]).cookie("name") is None


@given(st.text(st.characters(max_codepoint=255), max_size=300), st.sampled_from(["name", "a", "!#$%&'*+.^_`|~-"]))
def test_whatever_the_cookies_are_the_answer_is_text_or_nothing_and_the_same_in_both(
    header: str, name: str
) -> None:
    one, other = (tell("", [("Cookie", header)]).cookie(name) for tell in (wsgi, asgi))
    assert one == other
    assert one is None or (one and one in header)


def test_a_visitor_who_left_is_remembered_by_his_address_alone() -> None:
    """A thread may outlive its request."""
    visitor = wsgi("192.0.2.200", [("X-User", "ann"), ("Cookie", "name=v")])
    visitor.forget()
    assert visitor.address(NOBODY) == "192.0.2.200"
    assert (visitor.header("X-User"), visitor.cookie("name")) == (None, None)


# ── the key of a pool ─────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize(
    ("rule", "key"),
    [
        ("ip", "198.51.100.1"),
        ("header:X-User", "ann"),
        ("header:X-Other", None),
        ("cookie:session", "s1"),
        ("cookie:other", None),
    ],
)
def test_the_key_of_a_pool_is_what_its_option_says(tell: Any, rule: str, key: str | None) -> None:
    headers = [("X-Forwarded-For", "198.51.100.1"), ("X-User", "ann"), ("Cookie", "session=s1")]
    assert key_of(tell("10.0.0.1", headers), rule, Proxies(TRUSTED)) == key


HASHED: dict[str, Any] = {"method": "hash", "hosts": hosts(*"abcdefgh")}


def homes(upstream: Upstream, visitors: Iterable[Visitor], **options: Any) -> list[str]:
    """The host that each visitor is sent to."""
    from resty_upstream import RequestContext

    return [visit(RequestContext(upstream, None, visitor), **options)[0] for visitor in visitors]


@BOTH
@pytest.mark.parametrize(
    ("rule", "header", "form"),
    [("header:X-User", "X-User", "{}"), ("cookie:session", "Cookie", "a=b; session={}")],
)
def test_hash_by_header_or_cookie_keeps_a_value_at_one_host_whatever_the_address(
    tell: Any, rule: str, header: str, form: str
) -> None:
    """Different values are spread, and so are requests without one."""
    upstream = open_upstream({"p": {**HASHED, "key": rule}})

    def by(value: object, address: object = 1) -> Visitor:
        made: Visitor = tell(f"192.0.2.{address}", [(header, form.format(value))])
        return made

    assert len(set(homes(upstream, [by("ann", number) for number in range(20)]))) == 1
    assert len(set(homes(upstream, [by(f"user {number}") for number in range(30)]))) > 3
    assert sorted(homes(upstream, [tell("192.0.2.1")] * 8)) == list("abcdefgh")


@BOTH
def test_hash_by_address_behind_a_proxy_goes_by_the_client(tell: Any) -> None:
    """Whom a proxy that is trusted speaks for; without that, all clients are one."""
    clients = [tell("10.0.0.1", [("X-Forwarded-For", f"198.51.100.{number}")]) for number in range(30)]
    assert len(set(homes(open_upstream({"p": HASHED}, trusted_proxies=["10.0.0.1"]), clients))) > 3
    assert len(set(homes(open_upstream({"p": HASHED}), clients))) == 1


def test_each_pool_goes_by_its_own_key() -> None:
    visitor = wsgi("192.0.2.1", [("X-User", "ann")])
    pools: Pools = (Pool(id="p"), Pool(id="q", key="header:X-User"))
    from resty_upstream import RequestContext

    context = RequestContext(open_upstream({}), None, visitor)
    assert [context.key(pool) for pool in pools] == ["192.0.2.1", "ann"]


def test_a_key_that_is_given_wins() -> None:
    upstream = open_upstream({"p": {**HASHED, "key": "header:X-User"}})
    (expected,) = visit(upstream, key="given")
    visitors = [wsgi("", [("X-User", f"{number}")]) for number in range(20)]
    assert set(homes(upstream, visitors, key="given")) == {expected}


# ── what is configured ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("10.0.0.0/8", "trusted_proxies must be a list of IP addresses and networks, as"),
        (b"10", "trusted_proxies must be a list"),
        (5, "trusted_proxies must be a list"),
        ({"10.0.0.0/8": True}, "trusted_proxies must be a list"),
        (["10.0.0.0/8", "10.0.0.1/8"], r"trusted_proxies\[1\] must be .* without host bits .*, not '10.0.0.1/8'"),
        (["proxy.test"], r"trusted_proxies\[0\] must be an IP address"),
        ([5], r"trusted_proxies\[0\] must be"),
        ([b"\x0a\x00\x00\x01"], r"trusted_proxies\[0\] must be"),
        ([None], r"trusted_proxies\[0\] must be"),
        ([""], r"trusted_proxies\[0\] must be"),
        (["unix:/run/app.sock"], r"trusted_proxies\[0\] must be"),
    ],
)
def test_what_is_no_proxy_is_refused_by_its_path(given: Any, wrong: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{wrong}"):
        Upstream("memory://", trusted_proxies=given)


def test_every_proxy_that_is_wrong_is_named() -> None:
    with pytest.raises(InvalidConfig) as caught:
        Proxies(["x", "10.0.0.0/8", "y"])
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "trusted_proxies[0]",
        "trusted_proxies[2]",
    ]


def test_proxies_are_text_or_of_ipaddress() -> None:
    given = [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_network("192.0.2.0/24"), "unix"]
    found = Proxies(iter(given))
    assert [found.client_address(peer, "198.51.100.1") for peer in ("10.0.0.1", "192.0.2.1", "")] == (
        ["198.51.100.1"] * 3
    )


def test_nobody_is_trusted_unless_told() -> None:
    assert not NOBODY
    assert Proxies(["unix"])
    assert Proxies(["10.0.0.1"])
    assert Proxies(["::/0"]).everybody
    assert not Proxies(["0.0.0.0/1", "unix"]).everybody
