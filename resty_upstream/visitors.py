"""Who makes a web request: his address, headers and cookies, and which proxies are believed about the address.

All that a request says of itself may be made up, and of any length: every look takes bounded work.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from resty_upstream.errors import InvalidConfig, Problem, Problems
from resty_upstream.model import shown_value

if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KEY_CHARS: Final = 4096
"""What counts of a header or a cookie, from its beginning."""
_COOKIES_CHARS: Final = 65_536
_FORWARDED_CHARS: Final = 8192
_HOPS: Final = 32
_UNIX: Final = "unix"
_ADDRESSES: Final = (
    str,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


class Visitor(Protocol):
    """Who makes a request; each question is answered when it is asked."""

    def address(self, proxies: Proxies) -> str | None:
        """The address of the client, as far as ``proxies`` can be believed; None where there is none."""
        ...

    def header(self, name: str) -> str | None:
        """What a header holds, up to :data:`KEY_CHARS`; None where it is missing or empty."""
        ...

    def cookie(self, name: str) -> str | None:
        """What a cookie holds, up to :data:`KEY_CHARS`; None where it is missing or empty."""
        ...


def key_of(visitor: Visitor, rule: str, proxies: Proxies) -> str | None:
    """What the option ``key`` of a pool (``ip``, ``header:Name``, ``cookie:name``) means for a request."""
    kind, _, name = rule.partition(":")
    if kind == "header":
        return visitor.header(name)
    if kind == "cookie":
        return visitor.cookie(name)
    return visitor.address(proxies)


class WsgiVisitor:
    """What an environ says; Django's ``request.META`` is one, too, whatever its server."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ

    def forget(self) -> None:
        """Keep the address of the peer alone, and not the environ."""
        self._environ = {"REMOTE_ADDR": self._environ.get("REMOTE_ADDR")}

    def address(self, proxies: Proxies) -> str | None:
        """See :class:`Visitor`."""
        environ = self._environ
        return proxies.client_address(environ.get("REMOTE_ADDR") or "", environ.get("HTTP_X_FORWARDED_FOR") or "")

    def header(self, name: str) -> str | None:
        """See :class:`Visitor`."""
        variable = name.upper().replace("-", "_")
        if variable not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            variable = f"HTTP_{variable}"
        return _value(self._environ.get(variable) or "")

    def cookie(self, name: str) -> str | None:
        """See :class:`Visitor`."""
        return _cookie(self._environ.get("HTTP_COOKIE") or "", name)


class AsgiVisitor:
    """What the scope of a request or a websocket says.

    It holds the headers and not the scope, which holds its visitor: a cycle would wait for the garbage collector.
    """

    __slots__ = ("_client", "_headers")

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._client = scope.get("client")
        self._headers: Iterable[tuple[bytes, bytes]] = scope.get("headers") or ()

    def address(self, proxies: Proxies) -> str | None:
        """See :class:`Visitor`."""
        peer = (self._client[0] or "") if self._client else ""  # none at a unix socket
        return proxies.client_address(peer, self._joined("x-forwarded-for", ",") if proxies else "")

    def header(self, name: str) -> str | None:
        """See :class:`Visitor`."""
        return _value(self._joined(name.lower(), ","))

    def cookie(self, name: str) -> str | None:
        """See :class:`Visitor`."""
        return _cookie(self._joined("cookie", "; "), name)

    def _joined(self, name: str, separator: str) -> str:
        """All lines of a header as one, as servers of WSGI join them."""
        wanted = name.encode("latin-1")
        return separator.join([value.decode("latin-1") for each, value in self._headers if each == wanted])


def _value(text: str) -> str | None:
    return text[:KEY_CHARS].strip() or None


def _cookie(header: str, name: str) -> str | None:
    """The first cookie of that name: the one whose path fits best (RFC 6265, 5.4)."""
    for pair in header[:_COOKIES_CHARS].split(";"):
        key, _, value = pair.partition("=")
        if key.strip() == name:
            return _value(value)
    return None


# ── proxies ───────────────────────────────────────────────────────────────────────────────────


class Proxies:
    """The proxies in front of the application, which are believed when they say whom they speak for.

    :param given: IP addresses and networks, as text or of :mod:`ipaddress`; the text ``unix`` stands for whoever
        comes by the unix socket of the server.
    :param path: where they are configured, for errors.
    :raises InvalidConfig: naming every entry that is none.
    """

    __slots__ = ("networks", "unix")

    def __init__(self, given: Iterable[object] = (), path: str = "trusted_proxies") -> None:
        entries = _entries(given, path)
        self.unix = _UNIX in entries
        """Whether whoever comes by a unix socket is one of them."""
        with Problems() as problems:
            networks = []
            for number, entry in enumerate(entries):
                with problems.noted():
                    if entry != _UNIX:
                        networks.append(_network(entry, f"{path}[{number}]"))
        self.networks: tuple[Network, ...] = tuple(networks)

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    @property
    def everybody(self) -> bool:
        """Whether any client is believed whatever it says."""
        return any(network.prefixlen == 0 for network in self.networks)

    def client_address(self, peer: str, forwarded: str) -> str | None:
        """The rightmost address that is not a proxy's: whom the first proxy that is trusted speaks for.

        :param peer: the address that the connection comes from; "" for a unix socket.
        :param forwarded: ``X-Forwarded-For``: clients may begin it with anything, proxies add to its end.
        :returns: the last proxy's where what comes before it is no address; None where there is none at all.
        """
        if not self:
            return _unmapped(peer) or None
        address = _parse(peer)
        if not (self._trusts(address) if address else self.unix and not peer):
            return str(address) if address else peer or None
        for text in _last_hops(forwarded):
            before = _parse(_without_port(text))
            if before is None:
                break
            address = before
            if not self._trusts(before):
                break
        return str(address) if address else None

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def _entries(given: object, path: str) -> list[object]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        what = f"{path} must be a list of IP addresses and networks, as ['10.0.0.0/8'], not {shown_value(given)}"
        raise InvalidConfig(Problem(what))
    return list(given)


def _network(entry: object, path: str) -> Network:
    try:
        # Numbers and bytes would be addresses, too.
        return _unmapped_network(ipaddress.ip_network(str(entry) if isinstance(entry, _ADDRESSES) else ""))
    except ValueError:
        what = "an IP address, a network without host bits as '10.0.0.0/8', or 'unix'"
        raise InvalidConfig(Problem(f"{path} must be {what}, not {shown_value(entry)}")) from None


def _unmapped_network(network: Network) -> Network:
    """A network of IPv4 addresses that is written as IPv6, as what it is: so are all addresses."""
    first = network.network_address
    mapped = first.ipv4_mapped if isinstance(first, ipaddress.IPv6Address) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))


def _unmapped(peer: str) -> str:
    """An IPv4 client is the same one at a socket that takes both, where it is ``::ffff:192.0.2.1``."""
    return peer[7:] if peer[:7].lower() == "::ffff:" and "." in peer else peer


def _parse(text: str) -> Address | None:
    """An address without its zone; None where it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _last_hops(forwarded: str) -> list[str]:
    """The entries of a header, the last one first; no more than a chain of proxies is long."""
    hops = forwarded[-_FORWARDED_CHARS:].rsplit(",", _HOPS)
    if len(hops) > _HOPS or len(forwarded) > _FORWARDED_CHARS:
        del hops[0]  # which may be the end of another address
    return [hop.strip() for hop in reversed(hops)]


def _without_port(text: str) -> str:
    """``192.0.2.1:80``, ``[2001:db8::1]:80`` and ``[2001:db8::1]`` without what is around the address."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text
