"""Balancing methods: which host of a pool comes next. Pure; registered under a name.

A method is a small class that is built for one pool whenever the hosts of that pool, their weights or
their availability change, and whose ``pick`` runs for every request.

Weights are shares: while any available host has a weight above 0, hosts of weight 0 get nothing;
when all available hosts have weight 0 they share equally (:func:`shares`).
"""

from __future__ import annotations

import itertools
import math
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from hashlib import blake2b, shake_128
from typing import TYPE_CHECKING, ClassVar, Final, Literal, NamedTuple, Protocol

from resty_upstream.errors import InvalidConfig, MethodNotFound

if TYPE_CHECKING:
    from random import Random

    from resty_upstream.load import Load

Key = str | bytes


class Candidate(Protocol):
    """A host as a method sees it."""

    @property
    def id(self) -> str:
        """Unique in the pool."""
        ...

    @property
    def weight(self) -> int:
        """As configured."""
        ...

    @property
    def available(self) -> bool:
        """Whether it may be picked."""
        ...

    @property
    def back_at(self) -> float:
        """When it came back from being down, on the clock of :attr:`Setting.now`; 0 is never."""
        ...

    @property
    def load(self) -> Load | None:
        """What this process has under way there; None in pools that do not ask for it."""
        ...


class Setting(NamedTuple):
    """What a method is built with, besides the hosts."""

    random: Random
    """This process's source of randomness."""
    secret: bytes
    """The same in every process that shares the store."""
    previous: Method | None
    """The method of this pool before the change, if it was of the same name: positions live on."""
    now: Callable[[], float] = float
    """The clock of the store, in seconds."""
    slow_start_s: float = 0.0
    """In which a host that comes back gets from a tenth of its share to all of it."""
    load: Literal["in_flight", "peak_ewma"] = "in_flight"
    """What ``p2c`` compares."""


class Method(Protocol):
    """One pool's balancing method."""

    @property
    def uses_key(self) -> bool:
        """Whether ``pick`` looks at the key: working out a request's key is not free."""
        ...

    def pick(self, key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """An available host that is not in ``tried``; None when there is none."""
        ...


Factory = Callable[[Sequence[Candidate], Setting], Method]


def shares(hosts: Sequence[Candidate]) -> list[tuple[Candidate, int]]:
    """The available hosts that take part, with the weight that counts."""
    available = [host for host in hosts if host.available]
    weighted = [(host, weight) for host in available if (weight := host.weight)]
    return weighted or [(host, 1) for host in available]


# ── round robin ───────────────────────────────────────────────────────────────────────────────

# Up to this many steps of arithmetic a cycle is laid out in full, in the order of nginx.
_LAID_OUT_STEPS: Final = 2_000
# Beyond it the weights are rounded so that a cycle is at most this long, or this many times the hosts.
_CYCLE: Final = 10_000
_CYCLE_PER_HOST: Final = 100


class RoundRobin:
    """Smooth weighted round robin: exact shares over each cycle, spread evenly inside it.

    Small cycles are in the order of nginx (``ngx_http_upstream_round_robin.c``: weights 5, 1, 1 give
    a a b a c a a). Large ones walk the range of all weights in steps of the golden ratio, which visits
    each unit of weight once per cycle and needs no memory. The first position is random, so that freshly
    started workers do not all begin at the first host.
    """

    uses_key: ClassVar[bool] = False

    def __init__(self, hosts: Sequence[Candidate], setting: Setting) -> None:
        previous = setting.previous
        if isinstance(previous, RoundRobin):
            self._turns: itertools.count[int] = previous._turns
        else:
            self._turns = itertools.count(setting.random.randrange(1 << 30))
        parts = shares(hosts)
        self._hosts = [host for host, _ in parts]
        weights = [weight for _, weight in parts]
        distinct = len(set(weights))
        self._cycle: list[Candidate] | None = None
        if distinct <= 1:
            self._length = len(weights)
            self._cycle = self._hosts
            return
        weights = _reduced(weights)
        self._length = sum(weights)
        if self._length * distinct <= _LAID_OUT_STEPS:
            self._cycle = [self._hosts[i] for i in smooth_cycle(weights)]
        else:
            self._ends = list(itertools.accumulate(weights))
            self._step = _golden_step(self._length)

    def pick(self, _key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """The next host of the cycle that is not in ``tried``."""
        if not self._length:
            return None
        turn, cycle = next(self._turns), self._cycle
        host = cycle[turn % self._length] if cycle is not None else self._at(turn)
        if not tried or host not in tried:
            return host
        for _ in range(min(self._length, 2 * len(self._hosts))):
            host = self._at(next(self._turns))
            if host not in tried:
                return host
        return next((host for host in self._hosts if host not in tried), None)

    def _at(self, turn: int) -> Candidate:
        if self._cycle is not None:
            return self._cycle[turn % self._length]
        return self._hosts[bisect_right(self._ends, turn * self._step % self._length)]


def smooth_cycle(weights: Sequence[int]) -> list[int]:
    """One cycle of smooth weighted round robin as indexes into ``weights`` (all above 0).

    nginx adds each weight to a running value, takes the host with the largest, and subtracts the sum of
    all weights from it. Hosts of one weight take turns, so only the head of each distinct weight competes.
    """
    by_weight: dict[int, list[int]] = {}
    for index, weight in enumerate(weights):
        by_weight.setdefault(weight, []).append(index)
    if len(by_weight) == 1:
        return list(range(len(weights)))
    total = sum(weights)
    shares_of = list(by_weight)
    members = list(by_weight.values())
    values = [0] * len(members)
    taken = [0] * len(members)
    heads = [group[0] for group in members]
    cycle = []
    for _ in range(total):
        best = 0
        for index, share in enumerate(shares_of):
            values[index] = value = values[index] + share
            lead = value - values[best]
            if lead > 0 or (lead == 0 and heads[index] < heads[best]):
                best = index
        cycle.append(heads[best])
        group = members[best]
        taken[best] += 1
        heads[best] = group[taken[best] % len(group)]
        if not taken[best] % len(group):  # each of them had its turn
            values[best] -= total
    return cycle


def _reduced(weights: list[int]) -> list[int]:
    """The same shares in smaller numbers; rounded, none to 0, where a cycle would still be huge."""
    divisor = math.gcd(*weights)
    weights = [weight // divisor for weight in weights]
    total, limit = sum(weights), max(_CYCLE, _CYCLE_PER_HOST * len(weights))
    if total <= limit:
        return weights
    return [max(1, round(weight * limit / total)) for weight in weights]


def _golden_step(length: int) -> int:
    """A step near ``length / φ`` that visits every position (coprime to ``length``)."""
    step = max(1, round(length * 0.6180339887498949))
    while math.gcd(step, length) != 1:
        step += 1
    return step


# ── random ────────────────────────────────────────────────────────────────────────────────────


_DRAWS: Final = 8  # before what is left is weighed anew, which takes longer the more hosts there are


class RandomChoice:
    """Weighted random choice."""

    uses_key: ClassVar[bool] = False

    def __init__(self, hosts: Sequence[Candidate], setting: Setting) -> None:
        self._random = setting.random.random
        self._parts = shares(hosts)
        self._hosts = [host for host, _ in self._parts]
        self._ends = list(itertools.accumulate(weight for _, weight in self._parts))

    def pick(self, _key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """A host by chance, in proportion to the weights of those not in ``tried``."""
        if not self._hosts:
            return None
        host = self._hosts[bisect_right(self._ends, int(self._random() * self._ends[-1]))]
        if not tried or host not in tried:
            return host
        for _ in range(_DRAWS):
            host = self._hosts[bisect_right(self._ends, int(self._random() * self._ends[-1]))]
            if host not in tried:
                return host
        parts = [(host, weight) for host, weight in self._parts if host not in tried]
        if not parts:
            return None
        ends = list(itertools.accumulate(weight for _, weight in parts))
        return parts[bisect_right(ends, int(self._random() * ends[-1]))][0]


# ── consistent hash ───────────────────────────────────────────────────────────────────────────

_POINTS: Final = 256  # of a host on one ring: its share varies by about 6 %
_WEIGHT_BITS: Final = 6  # a weight is rounded to so many binary digits: at most 1.6 % off
_RING_BITS: Final = 64


_OWNER_BITS: Final = 20  # of a point: whose it is, below 44 bits of where it is
_OWNER: Final = (1 << _OWNER_BITS) - 1
_PLACE: Final = (1 << _RING_BITS) - 1


class _Ring(NamedTuple):
    points: array[int]
    bit: int


class _Rings(NamedTuple):
    """The rings of a set of hosts, whether they are available or not."""

    members: tuple[tuple[str, int], ...]
    rings: list[_Ring]


class ConsistentHash:
    """The same key goes to the same host, in every process; a host that goes moves only its own keys.

    A key looks for the nearest point on a ring (Karger et al., 1997). Instead of giving a host points in
    proportion to its weight, which would depend on everyone's weights and move healthy hosts' keys when
    one is removed, there is a ring for each binary digit of the weights: the distance to the nearest of a
    host's points is exponentially distributed, so dividing it by the digit's value makes the nearest host
    a weighted draw (an exponential race, as in weighted rendezvous hashing) in which each host's distance
    depends on that host alone. Hosts that are down are passed over on the ring, so going down is exactly
    like being removed. Without a key: round robin.
    """

    uses_key: ClassVar[bool] = True

    def __init__(self, hosts: Sequence[Candidate], setting: Setting) -> None:
        previous = setting.previous if isinstance(setting.previous, ConsistentHash) else None
        self._secret = setting.secret[:64]
        self._keyless: RoundRobin = RoundRobin(hosts, setting._replace(previous=previous and previous._keyless))
        weighted = [host for host in hosts if host.weight > 0]
        if any(host.available for host in weighted):
            self._hosts = weighted
        else:
            self._hosts = [host for host in hosts if host.weight == 0]
        members = tuple((host.id, max(1, host.weight)) for host in self._hosts)
        self._any_available = any(host.available for host in self._hosts)
        if previous is not None and previous._rings.members == members:
            self._rings: _Rings = previous._rings
        else:
            self._rings = _Rings(members, _build_rings(members, self._secret))

    def pick(self, key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """The host of ``key``; the one after it where that is in ``tried``."""
        if key is None:
            return self._keyless.pick(None, tried)
        if not self._any_available:
            return None
        data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        places = _places(blake2b(data, key=self._secret, digest_size=64).digest())
        hosts = self._hosts
        nearest: Candidate | None = None
        least = 0
        for points, bit in self._rings.rings:
            place = places[bit] if bit < 8 else _later_place(places, bit)
            index = start = bisect_left(points, place) % len(points)
            point = points[index]
            host = hosts[point & _OWNER]
            while not host.available or host in tried:
                index = index + 1 if index + 1 < len(points) else 0
                if index == start:
                    break
                point = points[index]
                host = hosts[point & _OWNER]
            else:
                # Divided by the digit's value, without fractions: 2**20 bounds all weights.
                distance = (point - place & _PLACE) << (20 - bit)
                if nearest is None or distance < least:
                    nearest, least = host, distance
        return nearest


_places = struct.Struct("<8Q").unpack


def _later_place(places: Sequence[int], bit: int) -> int:
    """A place for the rings beyond the eighth, mixed from the digest's words."""
    return (places[bit % 8] * 0x9E3779B97F4A7C15 + places[(bit + 1) % 8] * (2 * bit + 1)) % (1 << _RING_BITS)


def _build_rings(members: Sequence[tuple[str, int]], secret: bytes) -> list[_Ring]:
    by_bit: dict[int, list[int]] = {}
    unpack = struct.Struct(f"<{_POINTS}Q").unpack
    for owner, (host_id, weight) in enumerate(members):
        for bit in _digits(weight):
            name = b"%d:%b" % (bit, host_id.encode("utf-8", "surrogatepass"))
            points = unpack(shake_128(secret + name).digest(8 * _POINTS))
            by_bit.setdefault(bit, []).extend([point & ~_OWNER | owner for point in points])
    for points_of_all in by_bit.values():
        points_of_all.sort()
    return [_Ring(array("Q", points_of_all), bit) for bit, points_of_all in sorted(by_bit.items())]


def _digits(weight: int) -> list[int]:
    """The places of the ones in ``weight``, rounded to its leading digits."""
    excess = max(0, weight.bit_length() - _WEIGHT_BITS)
    rounded = ((weight + (1 << excess >> 1)) >> excess) << excess
    return [bit for bit in range(rounded.bit_length()) if rounded >> bit & 1]


# ── by load ───────────────────────────────────────────────────────────────────────────────────

_ALL_COMPARED: Final = 64
_SOME_COMPARED: Final = 16


class LeastConnections:
    """The host with the least requests of this process in flight, for its weight (``least_conn`` of nginx).

    Of hosts with the same load the one whose turn it is by weight. In pools of more than 64 hosts 16 are compared
    that are chosen at random by weight, so that a pick does not take longer the more hosts there are.
    """

    uses_key: ClassVar[bool] = False

    def __init__(self, hosts: Sequence[Candidate], setting: Setting) -> None:
        previous = setting.previous if isinstance(setting.previous, LeastConnections) else None
        turns: RoundRobin | None = previous._turns if previous else None
        self._turns: RoundRobin = RoundRobin(hosts, setting._replace(previous=turns))
        self._parts = shares(hosts)
        self._weights = {host.id: weight for host, weight in self._parts}
        self._random = RandomChoice(hosts, setting)
        self._now = setting.now

    def pick(self, _key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """The least loaded host that is not in ``tried``."""
        best = self._turns.pick(None, tried)
        if best is None:
            return None
        now = self._now()
        least = self._load(best, now)
        lesser: list[Candidate] = []
        for host in self._compared(tried):
            load = self._load(host, now)
            if load < least and host not in tried:
                least, lesser = load, [host]
            elif lesser and load == least and host not in tried:
                lesser.append(host)
        if len(lesser) < 2:
            return lesser[0] if lesser else best
        # Those that were chosen by weight are in no order: the first is as good as any.
        return self._turns.pick(None, _AllBut(lesser)) if self._compares_all else lesser[0]

    @property
    def _compares_all(self) -> bool:
        return len(self._parts) <= _ALL_COMPARED

    def _compared(self, tried: Container[Candidate]) -> Iterator[Candidate]:
        if self._compares_all:
            return (host for host, _ in self._parts)
        some = (self._random.pick(None, tried) for _ in range(_SOME_COMPARED))
        return (host for host in some if host is not None)

    def _load(self, host: Candidate, now: float) -> float:
        return host.load.in_flight(now, self._weights[host.id]) if host.load else 0.0


class _AllBut:
    """All hosts but some."""

    __slots__ = ("_some",)

    def __init__(self, some: Container[Candidate]) -> None:
        self._some = some

    def __contains__(self, host: object) -> bool:
        return host not in self._some


class _Either:
    """What is in one of two containers."""

    __slots__ = ("_one", "_other")

    def __init__(self, one: Container[Candidate], other: Container[Candidate]) -> None:
        self._one = one
        self._other = other

    def __contains__(self, host: object) -> bool:
        return host in self._one or host in self._other


class PowerOfTwoChoices:
    """The less loaded of two hosts that are chosen at random by weight, of any number (Mitzenmacher, 2001)."""

    uses_key: ClassVar[bool] = False

    def __init__(self, hosts: Sequence[Candidate], setting: Setting) -> None:
        parts = shares(hosts)
        mean = sum(weight for _, weight in parts) / max(1, len(parts))
        self._random = RandomChoice(hosts, setting)
        self._weights = {host.id: weight / mean for host, weight in parts}
        self._is_by_latency = setting.load == "peak_ewma"
        self._now = setting.now

    def pick(self, _key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """The better of two that are not in ``tried``."""
        one = self._random.pick(None, tried)
        if one is None or len(self._weights) == 1:
            return one
        other = self._random.pick(None, _Either(tried, (one,)))
        if other is None:
            return one
        now = self._now()
        return one if self._cost(one, now) <= self._cost(other, now) else other

    def _cost(self, host: Candidate, now: float) -> float:
        load, weight = host.load, self._weights[host.id]
        if load is None:
            return 0.0
        return load.peak_ewma(now, weight) if self._is_by_latency else load.in_flight(now, weight)


# ── slow start ────────────────────────────────────────────────────────────────────────────────

_FIRST_SHARE: Final = 0.1
_MOST_REFUSALS: Final = 100
_MOST_CREDIT: Final = 2.0  # a host that the load speaks against is not to make up for it later
_WEIGHED_TIMES: Final = 1000


def ramp(host: Candidate, now: float, slow_start_s: float) -> float:
    """Which part of its share a host gets, from 0.1 when it came back to 1 after the slow start."""
    if not host.back_at or now >= host.back_at + slow_start_s:
        return 1.0
    return _FIRST_SHARE + (1 - _FIRST_SHARE) * max(0.0, now - host.back_at) / slow_start_s


class SlowStart:
    """Another method, with hosts that came back refused for a part of their turns.

    The shares are exact at any moment: of the turns that the other method gives a host, it gets a part of
    :func:`ramp`, relative to the host with the largest; what is refused is asked for again. A method by load
    would give an idle host nearly all turns: there the host gets so many of the pool's requests as its part of
    the weights allows. A method by key refuses by key, so that a key moves to the host once, as its share grows,
    and keys of other hosts stay where they are.
    """

    def __init__(
        self,
        inner: Method,
        parts: Sequence[tuple[Candidate, int]],
        ramping: Sequence[Candidate],
        setting: Setting,
    ) -> None:
        previous = setting.previous if isinstance(setting.previous, SlowStart) else None
        self.inner = inner
        self.uses_key = inner.uses_key
        self._setting = setting
        self._parts = parts
        self._ramping = {host.id: weight for host, weight in parts if host in ramping}
        self._until = max(host.back_at for host in ramping) + setting.slow_start_s
        self._is_by_load = isinstance(inner, LeastConnections | PowerOfTwoChoices)
        self._turn: int = previous._turn if previous else 0
        known: dict[str, tuple[float, int]] = previous._credits if previous else {}
        # Begun anywhere, so that all workers together give the share from the first moment.
        self._credits: dict[str, tuple[float, int]] = {
            host.id: known.get(host.id) or (setting.random.random(), self._turn) for host in ramping
        }
        """What each may take, and the turn when that was said."""
        self._weigh(setting.now())

    def pick(self, key: Key | None, tried: Container[Candidate]) -> Candidate | None:
        """The other method's next host that is not refused."""
        now = self._setting.now()
        if now >= self._until:
            return self.inner.pick(key, tried)
        if now >= self._weigh_again_at:
            self._weigh(now)
        self._turn += 1
        by_key = key if self.uses_key else None
        refused: set[Candidate] = set()
        first = None
        for _ in range(_MOST_REFUSALS):
            host = self.inner.pick(key, _Either(tried, refused) if refused else tried)
            if host is None or self._accepts(host, now, by_key):
                return host if host is not None else first
            first = first or host
            if by_key is not None or self._is_by_load:  # which would give the same host again
                refused.add(host)
        return first

    def _weigh(self, now: float) -> None:
        """Note what the parts are relative to; it takes longer the more hosts there are, so not at each pick."""
        slow_start_s = self._setting.slow_start_s
        ramps = [(ramp(host, now, slow_start_s), weight) for host, weight in self._parts]
        self._most = max(part for part, _ in ramps)
        self._total = sum(part * weight for part, weight in ramps)
        self._weigh_again_at = now + slow_start_s / _WEIGHED_TIMES

    def _accepts(self, host: Candidate, now: float, key: Key | None) -> bool:
        weight = self._ramping.get(host.id)
        if weight is None:
            return True
        part = ramp(host, now, self._setting.slow_start_s)
        if part >= self._most:
            return True
        if key is not None:
            return _chance(key, host.id, self._setting.secret) < part / self._most
        credit, turn = self._credits[host.id]
        credit += (self._turn - turn) * part * weight / self._total if self._is_by_load else part / self._most
        accepts = credit >= 1
        self._credits[host.id] = min(credit, _MOST_CREDIT) - accepts, self._turn
        return accepts


def _chance(key: Key, host_id: str, secret: bytes) -> float:
    """From 0 to 1: always the same for a key and a host."""
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    name = host_id.encode("utf-8", "surrogatepass")
    digest = blake2b(b"%d:%b%b" % (len(name), name, data), key=secret[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def with_slow_start(factory: Factory, hosts: Sequence[Candidate], setting: Setting) -> Method:
    """What ``factory`` builds, with those hosts at their part of the share that came back a moment ago."""
    previous = setting.previous
    inner_previous = previous.inner if isinstance(previous, SlowStart) else previous
    inner = factory(hosts, setting._replace(previous=inner_previous))
    if not setting.slow_start_s:
        return inner
    now, parts = setting.now(), shares(hosts)
    ramping = [host for host, _ in parts if ramp(host, now, setting.slow_start_s) < 1]
    return SlowStart(inner, parts, ramping, setting) if ramping else inner


# ── the registry ──────────────────────────────────────────────────────────────────────────────

_FACTORIES: Final[dict[str, Factory]] = {
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "hash": ConsistentHash,
    "least_conn": LeastConnections,
    "p2c": PowerOfTwoChoices,
}
BY_LOAD: Final = frozenset({"least_conn", "p2c"})
"""Methods that look at the load of hosts."""


def register_method(name: str, factory: Factory) -> None:
    """Make ``method: name`` build its balancing with ``factory(hosts, setting)``.

    Register before pools are declared, in every process. A name can be registered again.

    :raises InvalidConfig: when the name is not text or the factory not callable.
    """
    if not isinstance(name, str) or not name:
        raise InvalidConfig(f"a method's name must be text, not {name!r}")
    if not callable(factory):
        raise InvalidConfig(f"the factory of method {name!r} must be callable, not {type(factory).__name__}")
    _FACTORIES[name] = factory


def is_registered(name: str) -> bool:
    """Whether this process knows a method of that name."""
    return name in _FACTORIES


def find_method(name: str, path: str = "method") -> Factory:
    """The factory of that name.

    :param path: where the name stands, for the error.
    :raises MethodNotFound: naming those that there are.
    """
    try:
        return _FACTORIES[name]
    except KeyError:
        raise MethodNotFound(f"{path} must be one of {', '.join(sorted(_FACTORIES))}, not {name!r}") from None
