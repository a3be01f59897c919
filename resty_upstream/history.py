"""The flight recorder: each transition of a host, kept in the store's log by the commit that made it."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from resty_upstream.state import Status
from resty_upstream.stores import LOG_ENTRIES, Store


class Transition(Struct, frozen=True, kw_only=True, rename={"before": "from", "after": "to"}):
    """A host came up, went down, was taken down by hand while it was down, or got another weight."""

    at: float
    """When, in epoch seconds."""
    pool: str
    host: str
    before: str
    """``up``, ``failed`` or ``manual`` (taken down by hand); ``weight 10``, where the weight was changed."""
    after: str
    reason: str
    """Why, in a few words: ``ECONNREFUSED``, ``2 checks passed``, ``by hand: new kernel``,
    ``by hand until 15:00 is over``."""
    process: int
    """The id of the process that committed it."""
    by: str = ""
    """Who did it, where a person did and said so."""


def standing(status: Status) -> str:
    """A status as transitions have it: a request that probes a failed host has not moved it yet."""
    return str(Status.FAILED if status is Status.PROBING else status)


def encode_transition(transition: Transition) -> bytes:
    """An entry of the log as JSON."""
    return msgspec.json.encode(transition)


def read_history(store: Store, upstream_id: str, limit: int = LOG_ENTRIES) -> list[Transition]:
    """The last transitions of an upstream's hosts, the newest at the end; without any that are damaged.

    :raises StoreError: when the store cannot be read.
    """
    entries = (_decode(data) for data in store.history(upstream_id, limit))
    return [entry for entry in entries if entry is not None]


def _decode(data: bytes) -> Transition | None:
    try:
        return _decoder.decode(data)
    except ValueError:
        return None


_decoder = msgspec.json.Decoder(Transition)
