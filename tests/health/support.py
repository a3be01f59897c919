"""What the tests of checks share: servers that are checked, and one check at a time."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from resty_upstream import Upstream
from resty_upstream.health.checks import run_check
from resty_upstream.health.functions import CheckFunction
from resty_upstream.health.results import CHECKER_LEASE, Result
from resty_upstream.health.runner import Checker
from resty_upstream.model import Host, Pool, pools_from_dicts
from tests.helpers import WAIT_S, read_head
from tests.stores.support import wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(code: int) -> bytes:
    """An answer of that status."""
    return b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % code


# ── servers ───────────────────────────────────────────────────────────────────────────────────


class Site:
    """Serves each connection with one answer, and notes what it was asked.

    :param answer: what is sent; ``b""`` closes the connection.
    """

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.at_once = 0
        self.most_at_once = 0
        self.goes_on = threading.Event()
        """Cleared, it keeps those who ask waiting."""
        self.goes_on.set()
        self._lock = threading.Lock()

    @property
    def hits(self) -> int:
        """How often it was asked."""
        return len(self.heads)

    @property
    def paths(self) -> list[str]:
        """What it was asked for."""
        return [head.split(b" ")[1].decode() for head in self.heads]

    def __call__(self, connection: socket.socket) -> None:
        head = read_head(connection)
        if not head:
            return
        with self._lock:
            self.heads.append(head)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.goes_on.wait(WAIT_S)
        with self._lock:
            self.at_once -= 1  # before the answer, which the next check may follow at once
        connection.sendall(self.answer)

    def wait_for(self, more: int) -> None:
        """Return once it was asked so many times more."""
        wanted = self.hits + more
        wait_until(lambda: self.hits >= wanted, f"{more} more checks", WAIT_S)


def forever(data: bytes, every_s: float = 0, first: bytes = b"") -> Callable[[socket.socket], None]:
    """Serve a connection by sending ``data`` until the other side is gone."""

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(first)
        pause = threading.Event()
        while True:
            connection.sendall(data)
            if every_s:
                pause.wait(every_s)

    return serve


# ── one check ─────────────────────────────────────────────────────────────────────────────────


def pool_of(host: Mapping[str, Any], check: object = True, **options: Any) -> Pool:
    """A pool with one host."""
    (pool,) = pools_from_dicts({"p": {**options, "healthcheck": check, "hosts": {"a": host}}}).pools
    return pool


async def check_once(pool: Pool, function: CheckFunction | None = None, *, is_our_turn: bool = True) -> Result:
    """One check of the only host of a pool."""
    host: Host = pool.hosts[0]
    check = pool.check_of(host)
    assert check is not None
    return await run_check(
        pool, host, check, is_our_turn=lambda: is_our_turn, in_thread=asyncio.to_thread, function=function
    )


def checked(
    host: Mapping[str, Any], check: object = True, function: CheckFunction | None = None, **options: Any
) -> Result:
    """One check of a host."""
    return asyncio.run(check_once(pool_of(host, check, **options), function))


# ── the checker ───────────────────────────────────────────────────────────────────────────────


def checker_of(upstream: Upstream) -> Checker:
    """What checks hosts for this upstream object."""
    checker = upstream.replica.checker
    assert checker is not None
    return checker


def holder(upstream: Upstream) -> str:
    """Whose turn it is to check."""
    return upstream.store.holder(upstream.id, CHECKER_LEASE)


def wait_for_turn(upstream: Upstream) -> None:
    """Return once it is the turn of this upstream object's checker."""
    checker = checker_of(upstream)
    wait_until(lambda: checker.is_checking and holder(upstream) == checker._owner, "its turn", WAIT_S)


def last_result(upstream: Upstream, host_id: str, pool_id: str = "p") -> str:
    """What ``get_pools`` says of the last check of a host; "" where there was none."""
    return str(upstream.get_pools()[pool_id]["hosts"][host_id].get("last_result", ""))
