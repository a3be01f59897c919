"""Pools and hosts as frozen values, and the one place where what a person wrote is checked.

Three forms of the same thing:

* *options*: what a caller passes (``timeout="250ms"``, ``port="80"``): anything may be in there;
* :class:`Pool`, :class:`Host` and their tables: checked, frozen, in the units of the options;
* *plain dicts*: what :meth:`Upstream.get_pools` returns: options again, with the health of each host.

Each option's type, bounds and the words of its error message stand once, on the struct's field.
"""

from __future__ import annotations

import ipaddress
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from resty_upstream.errors import InvalidConfig, Problem, StoreFormatError, without_secrets

FORMAT_VERSION: Final = 1
_YEAR_S: Final = 365 * 86_400


Milliseconds = Annotated[
    float,
    Meta(
        description="a number of milliseconds above 0, up to a year, a timedelta, or text like '250ms'",
        ge=0.001,
        le=_YEAR_S * 1000,
        extra={"unit": "ms"},
    ),
]
Seconds = Annotated[
    float,
    Meta(
        description="a number of seconds above 0, up to a year, a timedelta, or text like '10s'",
        ge=0.000_001,
        le=_YEAR_S,
        extra={"unit": "s"},
    ),
]
Interval = Annotated[
    float,
    Meta(
        description="a number of seconds from 0.1 to a day, a timedelta, or text like '10s'",
        ge=0.1,
        le=86_400,
        extra={"unit": "s"},
    ),
]
_PRIORITIES: Final = f"a whole number from {-(2**31)} to {2**31}"
Flag = Annotated[bool, Meta(description="true or false")]
COUNT_LIMIT: Final = 1_000_000
Count = Annotated[int, Meta(description=f"a number from 0 to {COUNT_LIMIT}", ge=0, le=COUNT_LIMIT)]
InARow = Annotated[int, Meta(description="a number from 1 to 1000", ge=1, le=1000)]

_NAME: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}"  # RFC 9110, 5.6.2
_TABLE: Final = "true, false, or a mapping of options"
_KEY: Final = rf"^(ip|header:{_NAME}|cookie:{_NAME})\Z"


StatusCodes = Annotated[
    tuple[str, ...],
    Meta(description="a list of statuses like 503, '50x' or '5xx'", extra={"read": "status_codes"}),
]


def is_one_of(status: int, masks: Iterable[str]) -> bool:
    """Whether a status is one of those: ``503`` is one of ``503``, ``50x`` and ``5xx``."""
    text = str(status)
    return any(all(a in ("x", b) for a, b in zip(mask, text, strict=False)) for mask in masks)


class HealthCheck(Struct, frozen=True, kw_only=True):
    """How hosts are checked while nobody asks for them, as with nginx Plus, HAProxy and Envoy."""

    type: Annotated[
        str,
        Meta(
            description="'http', 'tcp', or the place of a function, as 'myapp.checks.ping'",
            pattern=r"^(http|tcp|[A-Za-z_]\w{0,99}(\.[A-Za-z_]\w{0,99}){1,20})\Z",
        ),
    ] = "http"
    interval: Interval = 10
    """Seconds from one check of a host that is up to the next, ±10 %."""
    interval_down: Interval = 5
    """The same, for a host that is down."""
    timeout: Milliseconds | None = None
    """Milliseconds that connecting, with TLS, may take; the pool's ``timeout`` where it is not given."""
    read_timeout: Milliseconds = 2000
    """Milliseconds that the answer may take, all of it."""
    rise: InARow = 2
    """Good checks in a row that bring a failed host back."""
    fall: InARow = 3
    """Bad checks in a row that take a host down."""
    method: Annotated[str, Meta(description="a method of HTTP, as 'GET' or 'HEAD'", pattern=r"^[A-Z]{1,20}\Z")] = (
        "GET"
    )
    path: Annotated[
        str,
        Meta(
            description="a path that begins with /, quoted where it must be, as '/health?full=1'",
            pattern=r"^/[!-~]{0,2000}\Z",
        ),
    ] = "/"
    headers: Annotated[
        tuple[tuple[str, str], ...],
        Meta(description="a mapping of names to text, as of HTTP", extra={"read": "headers"}),
    ] = ()
    """Sent with the request; those that the check sends anyway (``Host``, ``User-Agent``) are replaced."""
    status_codes: StatusCodes | None = None
    """Statuses that count as bad; all outside 200 to 399 where none are given."""
    body: (
        Annotated[str, Meta(description="1 to 1000 characters of text", min_length=1, max_length=1000)] | None
    ) = None
    """Text that must appear in the first 256 KiB of the answer."""

    def is_bad(self, status: int) -> bool:
        """Whether an answer of that status counts as bad."""
        if self.status_codes is None:
            return not 200 <= status <= 399
        return is_one_of(status, self.status_codes)


class Sticky(Struct, frozen=True, kw_only=True):
    """Sessions that stay at their host, by a signed cookie."""

    cookie: Annotated[str, Meta(description="the name of a cookie, as 'upstream'", pattern=rf"^{_NAME}\Z")] = (
        "upstream"
    )
    max_age: Seconds = 86_400
    """Seconds after which a cookie counts no more; one in use is renewed when half of it is over."""


class OutlierDetection(Struct, frozen=True, kw_only=True):
    """A soft rule: a host that answers too few of its requests goes down, though not all of them fail."""

    requests: Annotated[int, Meta(description=f"a number from 1 to {COUNT_LIMIT}", ge=1, le=COUNT_LIMIT)] = 20
    """Requests of one process that the host must have had in the window before it is judged."""
    success_rate: Annotated[float, Meta(description="a percentage from 0 to 100", ge=0, le=100)] = 50
    """Percent of them that must have succeeded."""
    window: Seconds = 10
    """Seconds that are looked at."""


class WeightEnd(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """That a person changed the weight of a host for some time."""

    until: float
    """When it is over, in epoch seconds."""
    weight: Count
    """What the weight is then."""
    reason: str = ""
    """Why, as the person says."""
    by: str = ""
    """Who it is."""


class Host(Struct, frozen=True, kw_only=True):
    """One address of a pool."""

    id: str
    host: Annotated[
        str,
        Meta(description="a host name, an IP address (without a port), or 'unix:/absolute/path'"),
    ]
    port: Annotated[int, Meta(description="a number from 1 to 65535", ge=1, le=65_535)] = 80
    weight: Count = 0
    """The host's share of the pool's traffic; 0 gets none while a host with a weight is available."""
    healthcheck: Annotated[HealthCheck | Literal[False] | None, Meta(description=_TABLE)] = None
    """Instead of the pool's; False for no check of this host."""
    weight_end: WeightEnd | msgspec.UnsetType = msgspec.UNSET
    """When ``weight`` is another one, if ever: nothing that is declared."""

    @property
    def unix_path(self) -> str | None:
        """The path of the socket, for a host given as ``unix:/path``."""
        return self.host[5:] if self.host.startswith("unix:") else None

    def with_weight_as_of(self, wall: float) -> Host:
        """The host at that moment, in epoch seconds: with the weight that it has after the end of this one."""
        end = self.weight_end or None
        if end is None or end.until > wall:
            return self
        return msgspec.structs.replace(self, weight=end.weight, weight_end=msgspec.UNSET)

    @property
    def address(self) -> str:
        """Where the host is, for people: ``127.0.0.1:8001``, ``[::1]:8001``, ``unix:/run/app.sock``."""
        if self.unix_path is not None:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Pool(Struct, frozen=True, kw_only=True):
    """Hosts that are balanced together."""

    id: str
    up: Flag = True
    method: Annotated[str, Meta(description="the name of a balancing method")] = "round_robin"
    timeout: Milliseconds = 2000
    """Milliseconds that one attempt at one host may take."""
    priority: Annotated[int, Meta(description=_PRIORITIES, ge=-(2**31), le=2**31)] = 0
    """Lower is tried first; ties keep the order in which the pools were created."""
    max_fails: Count = 3
    """Consecutive failures that take a host down; 0 never does (as ``max_fails=0`` in nginx)."""
    failed_timeout: Seconds = 10
    """Seconds that a failed host is left alone, doubled for each failed probe in a row."""
    failed_timeout_max: Seconds = 60
    """Seconds up to which ``failed_timeout`` is doubled; never below ``failed_timeout``."""
    healthcheck: Annotated[HealthCheck | None, Meta(description=_TABLE)] = None
    """How hosts are checked that have no check of their own."""
    slow_start: Annotated[
        float,
        Meta(
            description="a number of seconds from 0 (none) to a year, a timedelta, or text like '30s'",
            ge=0,
            le=_YEAR_S,
            extra={"unit": "s"},
        ),
    ] = 0
    """Seconds in which a host that comes back gets from 10 % of its share to all of it."""
    key: Annotated[str, Meta(description="'ip', 'header:Name' or 'cookie:name'", pattern=_KEY)] = "ip"
    """What of a web request the method ``hash`` goes by, where ``connect`` is given no key."""
    sticky: Annotated[Sticky | None, Meta(description=_TABLE)] = None
    """Whether sessions stay at their host."""
    load: Annotated[Literal["in_flight", "peak_ewma"], Meta(description="'in_flight' or 'peak_ewma'")] = (
        "in_flight"
    )
    """What the method ``p2c`` compares: requests in flight, or those times the latency."""
    outlier_detection: Annotated[OutlierDetection | None, Meta(description=_TABLE)] = None
    """Whether a host that answers too few of its requests goes down."""
    status_codes: StatusCodes = ()
    """Statuses of HTTP that count as failures of the host; those of a check that the host has of its own win."""
    read_timeout: Milliseconds = 10_000
    """Milliseconds that each read of an answer may take."""
    keepalive_pool: Count = 32
    """Idle connections that a process keeps for each host."""
    keepalive_timeout: Milliseconds = 60_000
    """Milliseconds for which they are kept."""
    ssl: Flag = False
    """Whether hosts speak TLS: what a check and a request of HTTP need to know."""
    ssl_verify: Flag = True
    """Whether certificates are verified."""
    sni_host: Annotated[str, Meta(description="a host name")] = ""
    """The name in SNI and certificates, and in ``Host`` of a check. Where it is empty: the host's own for a check,
    that of the URL for a request of HTTP."""
    hosts: tuple[Host, ...] = ()

    @property
    def timeout_s(self) -> float:
        """``timeout`` in seconds."""
        return self.timeout / 1000

    def status_codes_of(self, host: Host) -> tuple[str, ...]:
        """The masks of statuses with which a host of this pool fails."""
        own = host.healthcheck.status_codes if host.healthcheck else None
        return self.status_codes if own is None else own

    @property
    def read_timeout_s(self) -> float:
        """``read_timeout`` in seconds."""
        return self.read_timeout / 1000

    def find(self, host_id: str) -> Host | None:
        """The host of that id."""
        return next((host for host in self.hosts if host.id == host_id), None)

    def check_of(self, host: Host) -> HealthCheck | None:
        """How a host of this pool is checked; None where it is not."""
        check = self.healthcheck if host.healthcheck is None else host.healthcheck
        return check or None


class GivenHealth(Struct, frozen=True, kw_only=True):
    """The health of a host as plain dicts carry it."""

    up: Flag = True
    failcount: Count = 0
    """Consecutive failures."""
    lastfail: Annotated[float, Meta(description="a number of seconds since 1970, or 0", ge=0, le=1e12)] = 0
    """Epoch seconds of the last failure; 0 is none."""


_ONLY_SHOWN: Final = ("last_check", "last_result", "reason", "by", "until", "weight_then")
"""What plain dicts have of a host's last check, and of what a person did: nothing that could be given."""

Pools = tuple[Pool, ...]


class Config(Struct, frozen=True, kw_only=True):
    """The configuration document of one upstream, as the store keeps it."""

    version: int = FORMAT_VERSION
    clock: str
    """Which clock the times in the host records belong to (one boot of the machine)."""
    secret: str
    """Hex; keys the consistent hash, the same in every process."""
    pools: Pools = ()
    declared_json: msgspec.Raw = msgspec.field(name="declared", default=msgspec.Raw(b"[]"))
    """:attr:`declared`, which requests do without, as it is stored."""

    @property
    def declared(self) -> Pools:
        """What ``configure`` was given last: the base of the next three-way merge; nothing where it is damaged."""
        try:
            return _pools_decoder.decode(self.declared_json)
        except msgspec.DecodeError:
            return ()

    def declaring(self, declared: Pools) -> Config:
        """The same with another declaration."""
        return msgspec.structs.replace(self, declared_json=msgspec.Raw(msgspec.json.encode(declared)))


class Definition(NamedTuple):
    """Checked pools, with the health that was written beside some of their hosts."""

    pools: Pools
    health: Mapping[str, GivenHealth]
    """By :func:`record_key`; only hosts for which any of ``up, failcount, lastfail`` was given."""


def record_key(pool_id: str, host_id: str) -> str:
    """The key of a host's record in the store (ids hold no control characters)."""
    return f"{pool_id}\x1f{host_id}"


def split_key(key: str) -> tuple[str, str]:
    """The ids of pool and host in the key of a record."""
    pool_id, _, host_id = key.partition("\x1f")
    return pool_id, host_id


# ── the store's form ──────────────────────────────────────────────────────────────────────────


def encode_config(config: Config) -> bytes:
    """The document as JSON."""
    return msgspec.json.encode(config)


class _AnyVersion(Struct):
    version: int


def decode_config(data: bytes) -> Config | None:
    """The document of :func:`encode_config`; None when it is damaged.

    :raises StoreFormatError: when another version of this library wrote it.
    """
    try:
        config = _config_decoder.decode(data)
        bytes.fromhex(config.secret)
        version = config.version
    except ValueError:  # not JSON, not text, or not a configuration of this version
        try:
            config, version = None, _version_decoder.decode(data).version
        except ValueError:
            return None
    if version != FORMAT_VERSION:
        raise StoreFormatError(
            f"the stored configuration has format version {version}, this release reads version {FORMAT_VERSION}"
        )
    return config


_version_decoder = msgspec.json.Decoder(_AnyVersion)
_config_decoder = msgspec.json.Decoder(Config)
_pools_decoder = msgspec.json.Decoder(Pools)


# ── durations ─────────────────────────────────────────────────────────────────────────────────

_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(us|ms|s|m|h|d)\s*", re.ASCII)


def parse_duration_s(value: object, path: str, *, bare: str) -> float:
    """``value`` (a number of ``bare`` units, text with a unit, or a timedelta) in seconds.

    :raises InvalidConfig: naming ``path``.
    """
    kind = Milliseconds if bare == "ms" else Seconds
    problems: list[Problem] = []
    converted = _convert(kind, _in_units(value, bare), value, path, problems)
    _raise(problems)
    return float(converted) * _UNITS_S[bare]


def flag(value: object, path: str) -> bool:
    """``value`` if it is true or false.

    :raises InvalidConfig: naming ``path``.
    """
    problems: list[Problem] = []
    converted: bool = _convert(Flag, value, value, path, problems)
    _raise(problems)
    return converted


def _in_units(value: object, bare: str) -> object:
    """A timedelta or text with a unit as a number of ``bare`` units; anything else as it is."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        seconds = float(match[1]) * _UNITS_S[match[2]]
    else:
        return value
    return _whole_if_possible(round(seconds / _UNITS_S[bare], 9))


def _whole_if_possible(value: Any) -> Any:
    """What was declared as 100 is shown as 100, not as 100.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# ── addresses and ids ─────────────────────────────────────────────────────────────────────────

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,30}")
_UNIX_PATH_BYTES: Final = 107  # sun_path of Linux, less the closing NUL


def _address(value: object) -> str | None:
    """The address as it will be used, or None where it is not one."""
    if not isinstance(value, str) or _has_control_characters(value) or " " in value:
        return None
    if value.startswith("unix:"):
        path = value[5:]
        return value if path.startswith("/") and len(path.encode()) <= _UNIX_PATH_BYTES else None
    if ":" in value:
        inside = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        return inside if _is_ipv6(inside) else None
    try:
        ascii_name = value.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    return value if len(ascii_name) <= 253 and _HOST_NAME.fullmatch(ascii_name) else None


def _is_ipv6(text: str) -> bool:
    digits, percent, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(digits)
    except ValueError:
        return False
    return not percent or _SCOPE.fullmatch(scope) is not None


def _has_control_characters(text: str) -> bool:
    return not text.isprintable() and any(unicodedata.category(c) in {"Cc", "Cs"} for c in text)


def identifier(value: object, path: str) -> str:
    """An id as text; whole numbers are converted.

    :raises InvalidConfig: for anything but 1 to 200 characters without control characters.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    if isinstance(value, str) and 0 < len(value) <= 200 and not _has_control_characters(value):
        return str(value)
    raise InvalidConfig(
        Problem(
            f"{path} must be 1 to 200 characters of text without control characters, or a whole number, "
            f"not {shown_value(value)}",
            "id",
        )
    )


def remark(value: object, path: str) -> str:
    """What a person says, if it is up to 200 characters of text in one line.

    :raises InvalidConfig: naming ``path``.
    """
    if isinstance(value, str) and len(value) <= 200 and not _has_control_characters(value):
        return value
    what = f"{path} must be at most 200 characters of text in one line"
    raise InvalidConfig(Problem(f"{what}, not {shown_value(value)}"))


# ── checking ──────────────────────────────────────────────────────────────────────────────────


def pool_from_options(pool_id: str, options: Mapping[str, object]) -> Pool:
    """A pool without hosts.

    :raises InvalidConfig: naming every problem.
    """
    problems: list[Problem] = []
    path = f"pools.{pool_id}"
    if "hosts" in options:
        problems.append(Problem(f"{path}.hosts cannot be given here: add each with add_host", "option"))
        options = {name: value for name, value in options.items() if name != "hosts"}
    values = _checked(Pool, options, path, problems)
    _raise(problems)
    return Pool(id=pool_id, **values)


def host_from_options(
    pool_id: str, host_id: str, options: Mapping[str, object]
) -> tuple[Host, GivenHealth | None]:
    """A host, and its health where it was given.

    :raises InvalidConfig: naming every problem.
    """
    problems: list[Problem] = []
    host, health = _host(host_id, options, f"pools.{pool_id}.hosts.{host_id}", problems)
    _raise(problems)
    if host is None:  # pragma: no cover - a host is missing only where there is a problem
        raise InvalidConfig(f"pools.{pool_id}.hosts.{host_id} could not be read")
    return host, health


def pools_from_dicts(given: object) -> Definition:
    """Pools and their hosts, checked as a whole.

    :param given: pools by id, each with its hosts by id, in the form of :func:`pools_to_dicts`.
    :raises InvalidConfig: naming every problem.
    """
    problems: list[Problem] = []
    pools: list[Pool] = []
    health: dict[str, GivenHealth] = {}
    for pool_id, options in _items(given, "pools", problems):
        path = f"pools.{pool_id}"
        if not isinstance(options, Mapping):
            problems.append(_not_options(path, options))
            continue
        plain = {name: value for name, value in options.items() if name != "hosts"}
        values = _checked(Pool, plain, path, problems, more=["hosts"])
        hosts = []
        for host_id, host_options in _items(options.get("hosts", {}), f"{path}.hosts", problems):
            host, given_health = _host(host_id, host_options, f"{path}.hosts.{host_id}", problems)
            if host is not None:
                hosts.append(host)
            if given_health is not None:
                health[record_key(pool_id, host_id)] = given_health
        pools.append(Pool(id=pool_id, hosts=tuple(hosts), **values))
    _raise(problems)
    return Definition(tuple(pools), health)


def pools_to_dicts(pools: Iterable[Pool], health_of: Callable[[str], GivenHealth]) -> dict[str, dict[str, Any]]:
    """Plain dicts in the shape of lua-resty-upstream: pools by id, each with hosts by id."""
    result = {}
    for pool in pools:
        options = plain_options(pool)
        options["hosts"] = {
            host.id: plain_options(host) | plain_options(health_of(record_key(pool.id, host.id)))
            for host in pool.hosts
        }
        result[pool.id] = options
    return result


def plain_options(value: Struct, *, masked: bool = False) -> dict[str, Any]:
    """The options of a pool, without its hosts, of a host, or of a table in them, by name.

    Those that are left to others, as the check of a host that has none of its own, are not there.

    :param masked: whether what may be a secret, as headers of checks, is to be shown as ``***``.
    """
    return {
        name: _plain_value(name, each, masked=masked)
        for name in _option_names(value)
        if (each := getattr(value, name)) is not None
    }


def _option_names(value: Struct) -> list[str]:
    return [name for name in value.__struct_fields__ if name not in {"id", "hosts", "weight_end"}]


def _plain_value(name: str, value: Any, *, masked: bool) -> Any:
    if isinstance(value, Struct):
        return plain_options(value, masked=masked)
    if isinstance(value, tuple):
        if name == "headers":
            return dict.fromkeys(dict(value), "***") if masked else dict(value)
        return list(value)
    return _whole_if_possible(value)


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain options with those of their tables by names like ``healthcheck.path``."""
    flat = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and name != "headers":
            flat.update({f"{name}.{inner}": each for inner, each in value.items()})
        else:
            flat[name] = value
    return flat


def unit_of(name: str) -> str:
    """The unit of a pool's option, as ``timeout`` or ``healthcheck.interval``: ``ms``, ``s`` or nothing."""
    kind: type[Struct] = Pool
    unit = ""
    for part in name.split("."):
        option = _OPTIONS[kind].get(part)
        if option is None:
            return ""
        kind, unit = option.table or kind, option.unit
    return unit


def _items(given: object, path: str, problems: list[Problem]) -> Iterable[tuple[str, object]]:
    """The (id, options) pairs of a mapping, with ids as text and each id once."""
    if not isinstance(given, Mapping):
        problems.append(Problem(f"{path} must be a mapping by id, not {shown_value(given)}", "structure"))
        return
    seen = set()
    for key, options in given.items():
        try:
            key_text = identifier(key, f"an id in {path}")
        except InvalidConfig as error:
            problems.extend(error.problems)
            continue
        if key_text in seen:
            problems.append(Problem(f"{path}.{key_text} is given twice", "id"))
            continue
        seen.add(key_text)
        yield key_text, options


def _host(
    host_id: str, options: object, path: str, problems: list[Problem]
) -> tuple[Host | None, GivenHealth | None]:
    if not isinstance(options, Mapping):
        problems.append(_not_options(path, options))
        return None, None
    health_options = {name: options[name] for name in options if name in GivenHealth.__struct_fields__}
    others = {*health_options, *_ONLY_SHOWN}
    host_options = {name: options[name] for name in options if name not in others}
    before = len(problems)
    values = _checked(Host, host_options, path, problems, more=GivenHealth.__struct_fields__)
    if "host" not in host_options:
        problems.append(Problem(f"{path}.host must be given", "missing"))
    health = GivenHealth(**_checked(GivenHealth, health_options, path, problems)) if health_options else None
    if len(problems) > before:
        return None, None
    return Host(id=host_id, **values), health


class _Option(NamedTuple):
    type: Any
    phrase: str
    unit: Literal["", "ms", "s"]
    read: Callable[[Any], object] | None
    """Brings what people write into the form of the type."""
    table: type[Struct] | None
    """Of options, where this one has some."""


def _option_table(kind: type[Struct]) -> dict[str, _Option]:
    """The options of a struct: its fields with a description."""
    table = {}
    for field in msgspec.structs.fields(kind):
        # `Annotated[…] | None` is an option that may be left to others.
        annotated = next((t for t in (field.type, *get_args(field.type)) if _meta(t)), None)
        if annotated is None:
            continue
        meta, inner = _meta(annotated), get_args(annotated)[0]
        tables = [t for t in get_args(inner) if isinstance(t, type) and issubclass(t, Struct)]
        extra = meta.extra or {}
        read = _READERS.get(extra.get("read", field.name))
        table[field.name] = _Option(
            annotated, meta.description, extra.get("unit", ""), read, tables[0] if tables else None
        )
    return table


def _meta(kind: Any) -> Any:
    return next((each for each in get_args(kind)[1:] if isinstance(each, Meta)), None)


def _checked(
    kind: type[Struct],
    given: Mapping[Any, object],
    path: str,
    problems: list[Problem],
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """The options of ``given`` converted to the types of ``kind``; what is wrong goes to ``problems``.

    :param more: options that are looked at elsewhere, for the problem with one that is not an option.
    """
    table = _OPTIONS[kind]
    values = {}
    for name, value in given.items():
        option = table.get(name) if isinstance(name, str) else None
        if option is None:
            known = [*table, *more]
            problems.append(Problem.unknown_option(f"{path}.{_plain(name)}", name, known))
            continue
        where = f"{path}.{name}"
        if option.table is not None:
            values[name] = _checked_table(kind, option.table, value, where, problems)
            continue
        plain = value
        if option.unit:
            plain = _in_units(value, option.unit)
        elif option.read is not None:
            plain = option.read(value)
            if name == "headers":  # they may be credentials
                value = dict.fromkeys(value, "***") if isinstance(value, Mapping) else "***"
        values[name] = _convert(option.type, plain, value, where, problems)
    return values


def _checked_table(
    kind: type[Struct], table: type[Struct], value: object, path: str, problems: list[Problem]
) -> Struct | Literal[False] | None:
    """A table of options: true stands for its defaults, false for none at all."""
    if value is True:
        return table()
    if value is None or (value is False and kind is not Host):
        return None
    if value is False:
        return False
    if not isinstance(value, Mapping):
        problems.append(Problem(f"{path} must be {_TABLE}, not {shown_value(value)}", "structure"))
        return None
    before = len(problems)
    options = _checked(table, value, path, problems)
    return None if len(problems) > before else table(**options)


def _convert(kind: Any, value: object, given: object, path: str, problems: list[Problem]) -> Any:
    """``value`` as ``kind``; numbers may be text. A problem shows what was ``given``."""
    base, meta = get_args(kind)[:2]
    try:
        converted = msgspec.convert(value, kind, strict=base is bool)
        if isinstance(converted, float) and not math.isfinite(converted):
            raise ValueError("not finite")
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
        problems.append(Problem(f"{path} must be {meta.description}, not {shown_value(given)}"))
        return None
    return converted


# ── what people write in another form than it is kept in; None, or as it is, where it is wrong ──

_HEADER_NAME: Final = re.compile(_NAME)
_HEADER_VALUE: Final = re.compile(r"[ -~\x80-\xff\t]{0,4000}")
_STATUS: Final = re.compile(r"[1-5x][0-9x]{2}")


def _read_headers(value: object) -> object:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        return None
    pairs = [(name, text.strip()) for name, text in value.items()]
    right = all(_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(text) for name, text in pairs)
    return pairs if right and len({name.lower() for name, _ in pairs}) == len(pairs) else None


def _read_status_codes(value: object) -> object:
    """A list, or as lua-resty-upstream has it a mapping of each to true."""
    if isinstance(value, Mapping):
        value = [status for status, counts in value.items() if counts]
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    masks = [str(each).lower() if isinstance(each, str | int) else "" for each in value]
    return masks if all(_STATUS.fullmatch(mask) for mask in masks) else 0


def _read_host_name(value: object) -> object:
    return value if value == "" or (_address(value) and not str(value).startswith("unix:")) else None


_READERS: Final[dict[str, Callable[[Any], object]]] = {
    "host": _address,
    "headers": _read_headers,
    "status_codes": _read_status_codes,
    "sni_host": _read_host_name,
}

_OPTIONS: Final[dict[type[Struct], dict[str, _Option]]] = {
    kind: _option_table(kind) for kind in (Pool, Host, GivenHealth, HealthCheck, Sticky, OutlierDetection)
}


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise InvalidConfig(problems)


def _not_options(path: str, given: object) -> Problem:
    return Problem(f"{path} must be a mapping of options, not {shown_value(given)}", "structure")


def shown_value(value: object) -> str:
    """A short repr: what was given may be huge, hold a password, or break its own ``repr``."""
    try:
        text = without_secrets(ascii(value))
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(name: object) -> str:
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 80 else shown_value(name)


# ── differences ───────────────────────────────────────────────────────────────────────────────


class Difference(NamedTuple):
    """One option, pool or host that is not the same in two configurations."""

    path: str
    """``pools.primary.hosts.a.weight``; ``pools.primary`` where one of them has no such pool."""
    before: Any
    """The option's value; None where there is no such pool or host."""
    after: Any


_S = TypeVar("_S", bound=Struct)


def changed_options(before: _S, after: _S) -> Iterator[tuple[str, Any, Any]]:
    """The options of one pool, or of one host, that are not the same: name, before, after.

    Those of a table have names like ``healthcheck.path``; what may be a secret is masked.
    """
    for name in _option_names(after):
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if isinstance(old, Struct) and isinstance(new, Struct):
            yield from ((f"{name}.{inner}", *values) for inner, *values in changed_options(old, new))
        else:
            yield name, _plain_value(name, old, masked=True), _plain_value(name, new, masked=True)


def differences(before: Pools, after: Pools) -> Iterator[Difference]:
    """What is not the same in ``after``, in the order of ``before``; then what only ``after`` has."""
    return _differences("pools", before, after)


def _differences(place: str, before: Iterable[Pool | Host], after: Iterable[Pool | Host]) -> Iterator[Difference]:
    old = {item.id: item for item in before}
    new = {item.id: item for item in after}
    for key in old | new:
        path, one, other = f"{place}.{key}", old.get(key), new.get(key)
        if one is None or other is None:
            yield Difference(path, *(each and plain_options(each, masked=True) for each in (one, other)))
            continue
        for name, *values in changed_options(one, other):
            yield Difference(f"{path}.{name}", *values)
        if isinstance(one, Pool) and isinstance(other, Pool):
            yield from _differences(f"{path}.hosts", one.hosts, other.hosts)


# ── weights that have an end ──────────────────────────────────────────────────────────────────


def with_weights_as_of(pools: Pools, wall: float) -> Pools:
    """Pools in which the weights that are over at ``wall`` (epoch seconds) are what they were before.

    The same object where there are none.
    """
    if not any(host.weight_end and host.weight_end.until <= wall for pool in pools for host in pool.hosts):
        return pools
    return tuple(
        msgspec.structs.replace(pool, hosts=tuple(host.with_weight_as_of(wall) for host in pool.hosts))
        for pool in pools
    )


def with_ends_of(pools: Pools, before: Pools) -> Pools:
    """``pools``; a weight that is as it was ``before`` ends when it was to end."""
    old = {record_key(pool.id, host.id): host for pool in before for host in pool.hosts if host.weight_end}

    def with_end(pool: Pool, host: Host) -> Host:
        was = old.get(record_key(pool.id, host.id))
        if was is None or was.weight != host.weight:
            return host
        return msgspec.structs.replace(host, weight_end=was.weight_end)

    return tuple(
        msgspec.structs.replace(pool, hosts=tuple(with_end(pool, host) for host in pool.hosts)) for pool in pools
    )


# ── the three-way merge of configure() ────────────────────────────────────────────────────────


class _Named(Protocol):
    @property
    def id(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def merge(base: Pools, declared: Pools, current: Pools) -> Pools:
    """``current``, with what differs between ``base`` and ``declared`` applied to it.

    ``base`` is what was declared last time. An option that is declared as it was before keeps its
    run-time value; one whose declaration changed takes the declared value. The same goes for the
    presence of hosts and pools: what was removed at run time stays away until its declaration
    changes, what was added at run time stays, what is no longer declared goes. What is declared for the
    first time is as declared, whatever there is of that id.
    """
    return _merge_all(base, declared, current, _merge_pool)


def _merge_pool(base: Pool | None, declared: Pool, current: Pool) -> Pool:
    hosts = _merge_all(base.hosts if base else (), declared.hosts, current.hosts, _merge_options)
    return msgspec.structs.replace(_merge_options(base, declared, current), hosts=hosts)


_P = TypeVar("_P", Pool, Host)


def _merge_options(base: _P | None, declared: _P, current: _P) -> _P:
    if base is None:
        return declared
    changed = {
        name: getattr(declared, name)
        for name in declared.__struct_fields__
        if name != "hosts" and getattr(declared, name) != getattr(base, name)
    }
    if "weight" in changed:
        changed["weight_end"] = msgspec.UNSET
    return msgspec.structs.replace(current, **changed) if changed else current


def _merge_all(
    base: tuple[_N, ...],
    declared: tuple[_N, ...],
    current: tuple[_N, ...],
    merge_one: Callable[[_N | None, _N, _N], _N],
) -> tuple[_N, ...]:
    before = {item.id: item for item in base}
    now = {item.id: item for item in declared}
    merged: dict[str, _N] = {}
    for item in current:
        if item.id not in now:
            if item.id not in before:
                merged[item.id] = item
        else:
            merged[item.id] = merge_one(before.get(item.id), now[item.id], item)
    for item in declared:
        if item.id not in merged and before.get(item.id) != item:
            merged[item.id] = item
    if list(now) != list(before):
        ordered = [item.id for item in declared if item.id in merged]
        merged = {key: merged[key] for key in [*ordered, *(k for k in merged if k not in now)]}
    return tuple(merged.values())
