"""The last check of each host, for those who look; kept beside the pools, where no request reads it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from resty_upstream.stores import Store, View

CHECKER_LEASE: Final = "checker"
"""The lease of the process that checks the hosts of an upstream."""


class Result(NamedTuple):
    """What a check found."""

    ok: bool | None
    """None where it says nothing of the host: this machine is to blame."""
    reason: str
    """In a few words: ``200``, ``status 503``, ``ECONNREFUSED``."""

    def __str__(self) -> str:
        word = {True: "ok", False: "failed", None: "unknown"}[self.ok]
        return f"{word}: {self.reason}"


class LastCheck(Struct, frozen=True, kw_only=True):
    """The last check of a host."""

    began: float
    """When it began, on the store's clock."""
    at: float
    """When it was over, on the store's clock."""
    wall: float
    """Epoch seconds of ``at``."""
    ok: bool | None
    reason: str

    @property
    def result(self) -> Result:
        """What it found."""
        return Result(self.ok, self.reason)


def namespace(upstream_id: str) -> str:
    """Where the results of an upstream are kept; no upstream has that id."""
    return f"{upstream_id}\x1fchecks"


def read_results(store: Store, upstream_id: str) -> dict[str, LastCheck]:
    """The last check of each host that was ever checked, by :func:`~resty_upstream.model.record_key`.

    :raises StoreError: when the store cannot be read.
    """
    records = store.read(namespace(upstream_id)).records
    found = {key: _decode(data) for key, data in records.items()}
    return {key: last for key, last in found.items() if last is not None}


def write_results(
    store: Store, upstream_id: str, results: Mapping[str, LastCheck], keep: Set[str], *, wait_s: float
) -> None:
    """Keep the last checks of these hosts, and forget those of hosts that are not to be kept.

    :raises StoreError: when they could not be written.
    """

    def change(view: View) -> None:
        for key, last in results.items():
            view.put(key, msgspec.json.encode(last))
        for key in set(view.keys()) - keep:
            view.delete(key)

    store.transact(namespace(upstream_id), change, wait_s=wait_s)


def _decode(data: bytes) -> LastCheck | None:
    try:
        return _decoder.decode(data)
    except ValueError:
        return None


_decoder = msgspec.json.Decoder(LastCheck)
