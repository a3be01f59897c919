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
from collections.abc import Callable, Container, Sequence
from hashlib import blake2b, shake_128
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

from resty_upstream.errors import InvalidConfig, MethodNotFound

if TYPE_CHECKING:
    from random import Random

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


class Setting(NamedTuple):
    """What a method is built with, besides the hosts."""

    random: Random
    """This process's source of randomness."""
    secret: bytes
    """The same in every process that shares the store."""
    previous: Method | None
    """The method of this pool before the change, if it was of the same name: positions live on."""


class Method(Protocol):
    """One pool's balancing method."""

    uses_key: ClassVar[bool]
    """Whether ``pick`` looks at the key: working out a request's key is not free."""

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


# ── the registry ──────────────────────────────────────────────────────────────────────────────

_FACTORIES: Final[dict[str, Factory]] = {
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "hash": ConsistentHash,
}


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
