"""What is counted of a host, and where in its row. Pure.

A row is some numbers of 64 bits that one process writes and all read; what they mean is only known here. They are
floats: whole numbers up to 2⁵³ are exact, seconds need no conversion, and adding to one never raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, Literal, NamedTuple, Protocol, get_args

Kind = Literal["refused", "unreachable", "timeout", "reset", "tls", "name", "bad_answer", "other"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
"""The kinds of failures that count against a host."""
BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the buckets of durations, in seconds; what takes longer is in one more."""

# Of the row of a host. Of what was begun each is counted once more when it ends, in one of those up to ENDS.
BEGUN: Final = 0
IGNORED: Final = 1
FAILED: Final = {kind: 2 + number for number, kind in enumerate(KINDS)}
BUCKETS: Final = 2 + len(KINDS)
ENDS: Final = BUCKETS + len(BOUNDS_S) + 1
SECONDS: Final = ENDS
RETRIES: Final = ENDS + 1
LAST_RESORTS: Final = ENDS + 2
SIZE: Final = ENDS + 3
# Of the row of an upstream.
EXHAUSTED: Final = ENDS


class Row(Protocol):
    """Where a process counts."""

    ours: Sequence[int]
    """One number: 0 once the cells are no more this process's to write, as in a child after a fork."""
    cells: memoryview[float]


class HostCounts(NamedTuple):
    """What became of the attempts at a host, by all processes together; they survive restarts."""

    successes: int
    failures: Mapping[str, int]
    """By kind; all of :data:`KINDS`."""
    ignored: int
    """Attempts that say nothing of the host: they were cancelled, or ended in an error of the caller's own."""
    retries: int
    """Attempts here after another one of the same call had failed, here or elsewhere."""
    last_resorts: int
    """Attempts here while the host was down, because nothing else was left."""
    in_flight: int
    """Attempts under way, of processes that live."""
    seconds: float
    """What the attempts that succeeded took together."""
    buckets: tuple[int, ...]
    """How many of these took up to each of :data:`BOUNDS_S` and longer than the one before; the last, more."""


class UpstreamCounts(NamedTuple):
    """What was counted of an upstream since its store was made."""

    hosts: Mapping[tuple[str, str], HostCounts]
    """By the ids of pool and host: all that are configured now."""
    exhausted: int
    """How often a call ended without a host (:class:`~resty_upstream.NoHostAvailable`)."""


def row_key(upstream_id: str, pool_id: str = "", host_id: str = "") -> bytes:
    """The 16 bytes by which the row of a host is found, or that of the upstream itself.

    The first 8 are those of all rows of the upstream. Where the layout changes, so must the keys.
    """
    group, one = repr(("1", upstream_id)), repr((upstream_id, pool_id, host_id))
    return b"".join(blake2b(name.encode(), digest_size=8).digest() for name in (group, one))


def host_counts(cells: Sequence[float]) -> HostCounts:
    """What the sum of all rows of a host means; the first number is what is under way."""
    buckets = tuple([int(number) for number in cells[BUCKETS:ENDS]])
    return HostCounts(
        successes=sum(buckets),
        failures={kind: int(cells[cell]) for kind, cell in FAILED.items()},
        ignored=int(cells[IGNORED]),
        retries=int(cells[RETRIES]),
        last_resorts=int(cells[LAST_RESORTS]),
        in_flight=int(cells[BEGUN]),
        seconds=cells[SECONDS],
        buckets=buckets,
    )
