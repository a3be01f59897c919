"""The upstreams that are measured."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count, cycle
from typing import Any

from resty_upstream import Upstream

_numbers = count(1)


def do_nothing(_host: str, _port: int, _timeout_s: float) -> None:
    """A connector."""


@contextlib.contextmanager
def private_directory() -> Iterator[str]:
    """A directory of our own, where ``TMPDIR`` says; gone afterwards."""
    path = os.path.realpath(tempfile.mkdtemp(prefix="resty_upstream-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def in_sqlite(directory: str, hosts: int, **pool: Any) -> Upstream:
    """An upstream of one pool, in a database of its own."""
    return _configured(Upstream(f"sqlite://{directory}/{next(_numbers)}.db"), hosts, **pool)


def in_memory(hosts: int, **pool: Any) -> Upstream:
    """An upstream of one pool, in this process."""
    return _configured(Upstream("memory://"), hosts, **pool)


def on_loopback(port: int) -> Upstream:
    """An upstream of one host."""
    upstream = Upstream("memory://")
    upstream.configure({"primary": {"hosts": {"a": {"host": "127.0.0.1", "port": port}}}})
    return upstream


def _configured(
    upstream: Upstream, hosts: int, weights: Sequence[int] = (0,), failed: int = 0, **pool: Any
) -> Upstream:
    addresses = {
        f"h{number}": {"host": f"10.0.{number >> 8}.{number & 255}", "weight": weight}
        for number, weight in zip(range(hosts), cycle(weights), strict=False)
    }
    for host in list(addresses.values())[:failed]:
        host.update(up=False, lastfail=time.time())
    upstream.configure({"primary": {"failed_timeout": "1d"} | pool | {"hosts": addresses}})
    return upstream
