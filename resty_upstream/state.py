"""The health of one host: which states there are, and what moves it from one to another.

Pure: ``apply(state, fact, rules) -> Change``. Time and randomness arrive with the fact.

::

             max_fails failures, or fall bad checks, in a row; Eject
              ┌────────────────────────────────────────────────┐
              │                                                ▼        Probe, once the time is over:
       ┌─────────────┐   Success · Revive · Up          ┌─────────────┐ one request, by lease  ┌─────────────┐
    ┌─▶│     UP      │◀─────────────────────────────────│   FAILED    │───────────────────────▶│   PROBING   │
    │  └─────────────┘                                  └─────────────┘◀───────────────────────└─────────────┘
    │    │    ▲  │ Failure: failcount + 1                      │         Failure of the prober:    │  │   ▲
    │    └────┘  │ Success: failcount = 0                      │         again, for twice as long  │  └───┘ Probe,
    │            │                                             │         Release: at once          │   lease over
    │            │ Down                                        │ Down                              │
    │            ▼                                             ▼                                   │
    │  ┌───────────────────────────────────────────────────────────────┐           Down            │
    │  │                     MANUAL (lastfail = 0)                     │◀──────────────────────────┘
    │  └───────────────────────────────────────────────────────────────┘
    │    │ Up; Expire, once its end is      Success of anyone while PROBING: UP
    └────┘ there; and nothing else          Down while MANUAL: another reason, or end

``up`` is true in UP alone. A result whose attempt *began* before the last change of ``up`` says nothing
about the state after it and is dropped: fifty requests in flight to a host that dies are one event.

The end of what a person did (``until``) alone is on the wall clock: see :mod:`resty_upstream.moments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from resty_upstream.errors import StoreFormatError
from resty_upstream.model import COUNT_LIMIT, GivenHealth, Host, Pool, Pools, with_weights_as_of
from resty_upstream.moments import shown_moment


class Status(StrEnum):
    """Where a host stands; the values are what the store keeps."""

    UP = "up"
    FAILED = "failed"
    PROBING = "probing"
    MANUAL = "manual"


class HostState(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The shared record of one host: some tens of bytes in the store.

    Times that are compared are seconds of the store's clock; ``lastfail`` is for people, ``until`` from them.
    """

    status: Status = Status.UP
    failcount: int = 0
    """Consecutive failures."""
    lastfail: float = 0
    """Epoch seconds of the last failure; 0 is none."""
    failed_at: float = 0
    """When the last failure was, on the store's clock."""
    changed_at: float = 0
    """When ``up`` last changed, or the host was added."""
    down_until: float = 0
    """When a failed host may be probed."""
    times_down: int = 0
    """How often in a row the host went down or failed its probe: 2 doubles the wait, 3 doubles it again."""
    prober: str = ""
    """The attempt that holds the probe's lease."""
    probe_until: float = 0
    """When that lease ends by itself."""
    reason: str = ""
    """Why the host is down, in a few words."""
    by: str = ""
    """Who took it down by hand, and said so."""
    until: float = 0
    """Until when it is down by hand, in epoch seconds; 0 is without an end."""
    back_at: float = 0
    """When the host last came back from being down; 0 is never."""
    bad_checks: int = 0
    """Checks in a row that were bad, of a host that is up."""
    fails_of_checks: int = 0
    """How much of ``failcount`` those of them made up: what a good check takes back."""
    good_checks: int = 0
    """Checks in a row that were good, of a host that failed."""

    @property
    def up(self) -> bool:
        """Whether the host takes traffic."""
        return self.status is Status.UP

    @property
    def failed(self) -> bool:
        """Whether failures took the host down, and not a person."""
        return self.status is Status.FAILED or self.status is Status.PROBING

    def due(self, now: float) -> bool:
        """Whether a request may probe the host."""
        return now >= self.due_at

    @property
    def ends_at(self) -> float:
        """When the host is up again that a person took down, in epoch seconds; never, for any other."""
        return self.until if self.status is Status.MANUAL and self.until > 0 else math.inf

    @property
    def due_at(self) -> float:
        """When a request may probe the host; never, for one that is up or was taken down by hand."""
        if self.status is Status.PROBING:
            return self.probe_until
        return self.down_until if self.status is Status.FAILED else math.inf


class Rules(NamedTuple):
    """What the pool says of failures; durations in seconds."""

    max_fails: int
    failed_timeout_s: float
    failed_timeout_max_s: float

    @classmethod
    def of(cls, pool: Pool) -> Rules:
        """The rules of a pool."""
        return cls(
            pool.max_fails,
            float(pool.failed_timeout),
            float(max(pool.failed_timeout, pool.failed_timeout_max)),
        )


# ── facts ─────────────────────────────────────────────────────────────────────────────────────


class Success(NamedTuple):
    """An attempt succeeded."""

    at: float
    began: float


class Failure(NamedTuple):
    """An attempt failed in a way that counts against the host."""

    at: float
    began: float
    wall: float
    """Epoch seconds of ``at``."""
    jitter: float
    """From -1 to 1: where in its ±10 % the wait falls."""
    reason: str
    prober: str = ""
    """Set when the attempt was a probe."""


class Probe(NamedTuple):
    """A request asks to be the one that probes."""

    at: float
    prober: str
    lease_s: float


class Release(NamedTuple):
    """A probe ended without a verdict (cancelled, or an error of the caller)."""

    at: float
    prober: str


class CheckPassed(NamedTuple):
    """An active check was good."""

    at: float
    began: float
    rise: int
    """So many in a row bring a failed host back."""


class CheckFailed(NamedTuple):
    """An active check was bad."""

    at: float
    began: float
    wall: float
    """Epoch seconds of ``at``."""
    jitter: float
    """As of a :class:`Failure`."""
    reason: str
    fall: int
    """So many in a row take the host down."""


class Eject(NamedTuple):
    """A soft rule takes the host down; whoever applies it asks :func:`may_eject` first."""

    at: float
    began: float
    """When the window that was judged began."""
    wall: float
    """Epoch seconds of ``at``."""
    jitter: float
    """As of a :class:`Failure`."""
    reason: str
    least_s: float = 0.0
    """Seconds that the host is left alone at least, as it asked for."""


class Down(NamedTuple):
    """A person takes the host down."""

    at: float
    reason: str = ""
    """Why, as the person says."""
    by: str = ""
    """Who it is."""
    until: float = 0
    """When it is over, in epoch seconds; 0: when a person says so."""


class Up(NamedTuple):
    """A person puts the host back."""

    at: float
    reason: str = ""
    """Why, as the person says."""


class Expire(NamedTuple):
    """Somebody looked at the wall clock, and what a person did may be over."""

    at: float
    wall: float
    """Epoch seconds of ``at``."""


class Revive(NamedTuple):
    """``revive_hosts``: clean every host whose time is over."""

    at: float


Fact = Success | Failure | Probe | Release | CheckPassed | CheckFailed | Eject | Down | Up | Expire | Revive


class Change(NamedTuple):
    """What a fact did: the same state object where it did nothing."""

    state: HostState
    event: Literal["", "host_up", "host_down"] = ""
    """``host_up`` or ``host_down`` when ``up`` changed."""
    reason: str = ""
    routing: bool = False
    """Whether other processes must know before they would look by themselves."""


# ── transitions ───────────────────────────────────────────────────────────────────────────────

JITTER: Final = 0.1


def apply(state: HostState, fact: Fact, rules: Rules) -> Change:
    """What ``fact`` makes of ``state``; never raises, whatever the order of facts."""
    handler = _TRANSITIONS.get((state.status, type(fact)))
    return handler(state, fact, rules) if handler else Change(state)


def _count(state: HostState, fact: Failure, rules: Rules) -> Change:
    if fact.began < state.changed_at:
        return Change(state)
    in_a_row = state.failcount > 0 and fact.at - state.failed_at <= rules.failed_timeout_s
    failcount = _one_more(state) if in_a_row else 1
    counted = _with_failure(state, fact, failcount)
    if not in_a_row:
        counted = replace(counted, fails_of_checks=0)
    if 0 < rules.max_fails <= failcount:
        return _fail(counted, fact, rules)
    return Change(counted, routing=state.failcount == 0)


def _with_failure(state: HostState, fact: Failure | CheckFailed | Eject, failcount: int) -> HostState:
    return replace(
        state,
        failcount=failcount,
        failed_at=max(fact.at, state.failed_at),
        lastfail=max(fact.wall, state.lastfail),
        reason=fact.reason,
    )


def _one_more(state: HostState) -> int:
    return min(state.failcount + 1, COUNT_LIMIT)


def _fail(state: HostState, fact: Failure | CheckFailed | Eject, rules: Rules, least_s: float = 0.0) -> Change:
    """UP or PROBING to FAILED, each time in a row for twice as long, up to the cap."""
    doublings = min(state.times_down, 64)
    wait_s = min(max(rules.failed_timeout_s * 2.0**doublings, least_s), rules.failed_timeout_max_s)
    failed = replace(
        state,
        status=Status.FAILED,
        changed_at=fact.at if state.up else state.changed_at,
        down_until=fact.at + wait_s * (1 + JITTER * fact.jitter),
        times_down=doublings + 1,
        prober="",
        probe_until=0,
        bad_checks=0,
        fails_of_checks=0,
        good_checks=0,
    )
    return Change(failed, "host_down" if state.up else "", fact.reason, routing=True)


def _probe_failed(state: HostState, fact: Failure, rules: Rules) -> Change:
    if not fact.prober or fact.prober != state.prober:
        return Change(state)  # a last resort, or a prober whose lease went to another
    return _fail(_with_failure(state, fact, _one_more(state)), fact, rules)


def _check_failed(state: HostState, fact: CheckFailed, rules: Rules) -> Change:
    """A bad check of a host that is up: it counts as a failure, however long ago the one before was."""
    if fact.began < state.changed_at:
        return Change(state)
    bad_checks = min(state.bad_checks + 1, COUNT_LIMIT)
    failcount = _one_more(state)
    fails_of_checks = state.fails_of_checks + failcount - state.failcount
    counted = replace(
        _with_failure(state, fact, failcount), bad_checks=bad_checks, fails_of_checks=fails_of_checks
    )
    if bad_checks >= fact.fall:
        return _fail(counted, fact, rules)
    return Change(counted, routing=state.failcount == 0)


def _check_passed(state: HostState, fact: CheckPassed, _rules: Rules) -> Change:
    """A good check of a host that is up takes back what bad checks counted, and nothing that requests did."""
    if fact.began < state.changed_at or not state.bad_checks:
        return Change(state)
    failcount = max(0, state.failcount - state.fails_of_checks)
    if not failcount:
        return Change(_clean(state), routing=state.failcount > 0)
    return Change(replace(state, failcount=failcount, bad_checks=0, fails_of_checks=0))


def _still_bad(state: HostState, fact: CheckFailed, _rules: Rules) -> Change:
    if fact.began < state.changed_at or not state.good_checks:
        return Change(state)
    return Change(replace(state, good_checks=0))


def _rise(state: HostState, fact: CheckPassed, _rules: Rules) -> Change:
    if fact.began < state.changed_at:
        return Change(state)
    good_checks = min(state.good_checks + 1, COUNT_LIMIT)
    if good_checks < fact.rise:
        return Change(replace(state, good_checks=good_checks))
    checks = "check passed" if fact.rise == 1 else f"{fact.rise} checks passed"
    return Change(_back(fact.at), "host_up", checks, routing=True)


def _eject(state: HostState, fact: Eject, rules: Rules) -> Change:
    if fact.began < state.changed_at:
        return Change(state)
    return _fail(_with_failure(state, fact, state.failcount), fact, rules, fact.least_s)


def may_eject(hosts_up: int, hosts: int) -> bool:
    """Whether a soft rule may take one more host of a pool: at least half of it stays up."""
    return 2 * (hosts_up - 1) >= hosts


def _clear(state: HostState, fact: Success, _rules: Rules) -> Change:
    if fact.began < state.changed_at or state.failcount == 0:
        return Change(state)
    return Change(replace(_clean(state), bad_checks=state.bad_checks), routing=True)


def _recover(state: HostState, fact: Success, _rules: Rules) -> Change:
    if fact.began < state.changed_at:
        return Change(state)
    reason = "probe succeeded" if state.status is Status.PROBING else "answered again"
    return Change(_back(fact.at), "host_up", reason, routing=True)


def _lease(state: HostState, fact: Probe, _rules: Rules) -> Change:
    if not state.due(fact.at):
        return Change(state)
    return Change(
        replace(state, status=Status.PROBING, prober=fact.prober, probe_until=fact.at + max(0.0, fact.lease_s))
    )


def _release(state: HostState, fact: Release, _rules: Rules) -> Change:
    if fact.prober != state.prober:
        return Change(state)
    return Change(replace(state, status=Status.FAILED, prober="", probe_until=0), routing=True)


def _take_down(state: HostState, fact: Down, _rules: Rules) -> Change:
    reason = by_hand(fact.reason)
    down = HostState(
        status=Status.MANUAL,
        changed_at=fact.at if state.up else state.changed_at,
        reason=reason,
        by=fact.by,
        until=fact.until,
    )
    if down == state:
        return Change(state)
    return Change(down, "host_down" if state.up else "", reason, routing=True)


def _expire(state: HostState, fact: Expire, _rules: Rules) -> Change:
    if fact.wall < state.ends_at:
        return Change(state)
    return Change(_back(fact.at), "host_up", over(state.until, fact.wall), routing=True)


def over(until: float, wall: float) -> str:
    """Why what a person did has ended."""
    return f"by hand until {shown_moment(until, wall)} is over"


def _put_back(_state: HostState, fact: Up, _rules: Rules) -> Change:
    return Change(_back(fact.at), "host_up", by_hand(fact.reason), routing=True)


def by_hand(reason: str) -> str:
    """Why a host is in a state to which a person brought it, who may have said more."""
    return f"by hand: {reason}" if reason else "by hand"


def _forgive(state: HostState, _fact: Up, _rules: Rules) -> Change:
    return Change(_clean(state), routing=True) if state.failcount or state.bad_checks else Change(state)


def _revive(state: HostState, fact: Revive, _rules: Rules) -> Change:
    if fact.at < state.down_until:
        return Change(state)
    return Change(_back(fact.at), "host_up", "revived", routing=True)


def _clean(state: HostState) -> HostState:
    """A host that is up and has no failures, as one that is up now."""
    return HostState(changed_at=state.changed_at, back_at=state.back_at)


def _back(at: float) -> HostState:
    return HostState(changed_at=at, back_at=at)


# A pair that is not here leaves the state as it is.
_TRANSITIONS: Final[dict[tuple[Status, type], Callable[[HostState, Any, Rules], Change]]] = {
    (Status.UP, Failure): _count,
    (Status.UP, Success): _clear,
    (Status.UP, CheckFailed): _check_failed,
    (Status.UP, CheckPassed): _check_passed,
    (Status.UP, Eject): _eject,
    (Status.UP, Down): _take_down,
    (Status.UP, Up): _forgive,
    (Status.FAILED, Success): _recover,
    (Status.FAILED, Probe): _lease,
    (Status.FAILED, CheckFailed): _still_bad,
    (Status.FAILED, CheckPassed): _rise,
    (Status.FAILED, Down): _take_down,
    (Status.FAILED, Up): _put_back,
    (Status.FAILED, Revive): _revive,
    (Status.PROBING, Success): _recover,
    (Status.PROBING, Failure): _probe_failed,
    (Status.PROBING, Probe): _lease,
    (Status.PROBING, Release): _release,
    (Status.PROBING, CheckFailed): _still_bad,
    (Status.PROBING, CheckPassed): _rise,
    (Status.PROBING, Down): _take_down,
    (Status.PROBING, Up): _put_back,
    (Status.PROBING, Revive): _revive,
    (Status.MANUAL, Down): _take_down,
    (Status.MANUAL, Up): _put_back,
    (Status.MANUAL, Expire): _expire,
}


# ── other forms of a state ────────────────────────────────────────────────────────────────────


def added(at: float) -> HostState:
    """The state of a host that was just added: attempts of an earlier host of that id say nothing of it."""
    return HostState(changed_at=at)


def given(state: HostState, health: GivenHealth, at: float, rules: Rules) -> HostState:
    """``state`` as plain dicts describe it; unchanged where they describe what it is already.

    ``up: false`` with ``lastfail: 0`` is a host taken down by hand; with a ``lastfail``, a failed one.
    """
    if health == shown(state):
        return state
    changed_at = state.changed_at if health.up == state.up else at
    if health.up:
        return HostState(
            failcount=health.failcount,
            lastfail=health.lastfail,
            failed_at=at,
            changed_at=changed_at,
            back_at=state.back_at if state.up else at,
        )
    if not health.lastfail:
        return HostState(status=Status.MANUAL, changed_at=changed_at, reason="by hand")
    return HostState(
        status=Status.FAILED,
        failcount=health.failcount,
        lastfail=health.lastfail,
        failed_at=at,
        changed_at=changed_at,
        down_until=at + rules.failed_timeout_s,
        times_down=1,
        reason="by hand",
    )


def shown(state: HostState) -> GivenHealth:
    """A state as plain dicts show it."""
    return GivenHealth(up=state.up, failcount=state.failcount, lastfail=state.lastfail)


def rebooted(state: HostState) -> HostState:
    """A state after the machine came up again: health is forgotten, what a person did is kept."""
    if state.status is not Status.MANUAL:
        return HostState()
    return HostState(status=Status.MANUAL, reason=state.reason, by=state.by, until=state.until)


def as_of(
    pools: Pools, states: Mapping[str, HostState], at: float, wall: float
) -> tuple[Pools, dict[str, HostState]]:
    """Pools and states, as they are stored, at this moment: what is over is so, written or not.

    :param at: seconds of the store's clock.
    :param wall: epoch seconds.
    """
    fact = Expire(at, wall)
    now = {key: apply(state, fact, _NO_RULES).state for key, state in states.items()}
    return with_weights_as_of(pools, wall), now


_NO_RULES: Final = Rules(0, 0, 0)  # those of a pool have no say in it


# ── what a person did to a host, for people ───────────────────────────────────────────────────


def done_by_hand(host: Host, state: HostState) -> dict[str, Any]:
    """What a person did to a host that is down by hand, or whose weight has an end, as plain dicts show it.

    ``reason``, ``by`` and ``until`` (epoch seconds), each where it is set; ``weight_then``, the weight to be.
    """
    change = host.weight_end or None
    manual = state.status is Status.MANUAL
    said: dict[str, Any] = {}
    if manual:
        said = {"reason": said_of(state.reason), "by": state.by, "until": state.until}
    elif change:
        said = {"reason": change.reason, "by": change.by, "until": change.until}
    then = {"weight_then": change.weight} if change else {}
    return {name: value for name, value in said.items() if value} | then


def said_of(reason: str) -> str:
    """What a person said, of the reason of what was done by hand."""
    return reason.removeprefix("by hand").removeprefix(": ")


def told_of_down(state: HostState, wall: float) -> str:
    """How a host is down by hand: ``by hand by alice until 15:00: new kernel``.

    :param wall: epoch seconds, now.
    """
    return told("by hand", state.by, state.until, said_of(state.reason), wall)


def told_of_weight(host: Host, wall: float) -> str:
    """Of a weight that has an end: ``weight 0 by alice until 15:00, then 10: new kernel``; nothing of another."""
    change = host.weight_end or None
    if change is None:
        return ""
    what = f"weight {host.weight}"
    return told(what, change.by, change.until, change.reason, wall, then=f", then {change.weight}")


def told(what: str, by: str, until: float, reason: str, wall: float, *, then: str = "") -> str:
    """Who did something, until when and why: ``by alice until 15:00: new kernel``, of which all may be missing."""
    words = [what, f"by {by}" if by else "", f"until {shown_moment(until, wall)}{then}" if until > 0 else ""]
    return " ".join(filter(None, words)) + (f": {reason}" if reason else "")


def encode_state(state: HostState) -> bytes:
    """The record as JSON."""
    return msgspec.json.encode(state)


def decode_state(data: bytes) -> HostState:
    """The record of :func:`encode_state`.

    :raises StoreFormatError: when it is not one.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreFormatError(f"a stored host record cannot be read: {error}") from error


_decoder = msgspec.json.Decoder(HostState)
