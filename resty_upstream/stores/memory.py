"""The store of one process: the reference that the others are tested against."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import NamedTuple, TypeVar

from resty_upstream.errors import StoreBusy
from resty_upstream.stores import LOG_ENTRIES, WAIT_S, Changes, Document, View
from resty_upstream.stores.counters import Row, Shelf, sums_of

T = TypeVar("T")


@dataclass
class _Namespace:
    generation: int = 0
    config: bytes = b""
    config_changed: int = 0
    records: dict[str, bytes] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    """Which commit wrote each record, the last one at the end."""
    commits: int = 0
    deleted: int = 0
    """The last commit that deleted a record."""
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    log: deque[bytes] = field(default_factory=lambda: deque(maxlen=LOG_ENTRIES))


class _Mark(NamedTuple):
    space: _Namespace
    commits: int


class MemoryStore:
    """Pools and health in this process's memory, gone with it. After a fork each process has its own.

    :param clock: seconds that never go back; for tests.
    """

    clock_id = "process"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._spaces: dict[str, _Namespace] = {}
        self._generations: dict[str, int] = {}
        self._lock = threading.Lock()
        self._shelf_lock = threading.Lock()  # of its own: a request must not wait for who changes something
        self._shelf = Shelf([1])
        _stores.add(self)

    def version(self, ns: str) -> int:
        """See :class:`~resty_upstream.stores.Store`."""
        return self._generations.get(ns, 0)

    def read(self, ns: str) -> Document:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._lock:
            space = self._space(ns)
            return Document(space.generation, space.config, dict(space.records))

    def changes(self, ns: str, since: object = None, *, wait_s: float = WAIT_S) -> Changes:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._held(wait_s):
            space = self._space(ns)
            mark = _Mark(space, space.commits)
            if not isinstance(since, _Mark) or since.space is not space or since.commits < space.deleted:
                return Changes(mark, space.config, dict(space.records), is_all=True)
            written = takewhile(lambda key: space.writes[key] > since.commits, reversed(space.writes))
            config = space.config if space.config_changed > since.commits else None
            return Changes(mark, config, {key: space.records[key] for key in written}, is_all=False)

    def examine(self) -> bool:
        """See :class:`~resty_upstream.stores.Store`."""
        return True

    def namespaces(self) -> list[str]:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._lock:
            return sorted(ns for ns, space in self._spaces.items() if space.config)

    def transact(self, ns: str, fn: Callable[[View], T], *, wait_s: float = WAIT_S) -> T:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._held(wait_s):
            space = self._space(ns)
            view = View(
                lambda: space.config,
                space.records.get,
                lambda: list(space.records),
                lambda name: self._holder(space, name),
                has_config=bool(space.config),
            )
            result = fn(view)
            self._write(ns, space, view)
            return result

    def _write(self, ns: str, space: _Namespace, view: View) -> None:
        space.commits += 1
        for key, data in view.written.items():
            space.writes.pop(key, None)
            if data is None:
                space.records.pop(key, None)
                space.deleted = space.commits
            else:
                space.records[key] = data
                space.writes[key] = space.commits
        if view.config_written:
            space.config = view.config
            space.config_changed = space.commits
        space.log.extend(view.logged)
        if view.touched:
            space.generation += 1
            self._generations[ns] = space.generation

    def history(self, ns: str, limit: int = LOG_ENTRIES) -> list[bytes]:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._lock:
            log = self._space(ns).log
            return list(islice(log, max(0, len(log) - limit), None))

    def lease(self, ns: str, name: str, owner: str, ttl_s: float, *, wait_s: float = WAIT_S) -> bool:
        """See :class:`~resty_upstream.stores.Store`."""
        now = self.now()
        with self._held(wait_s):
            space = self._space(ns)
            if self._holder(space, name) not in ("", owner):
                return False
            space.leases[name] = (owner, now + ttl_s)
            return True

    def holder(self, ns: str, name: str, *, wait_s: float = WAIT_S) -> str:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._held(wait_s):
            return self._holder(self._space(ns), name)

    def release(self, ns: str, name: str, owner: str) -> None:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._lock:
            leases = self._space(ns).leases
            if leases.get(name, ("", 0.0))[0] == owner:
                del leases[name]

    def counters(self, key: bytes, in_use: Callable[[], Collection[bytes]]) -> Row:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._shelf_lock:
            return self._shelf.row(key, in_use)

    def sums(self) -> dict[bytes, list[float]]:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._shelf_lock:
            return sums_of(self._shelf.contents())

    def _holder(self, space: _Namespace, name: str) -> str:
        owner, expires = space.leases.get(name, ("", 0.0))
        return owner if self.now() < expires else ""

    @contextmanager
    def _held(self, wait_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=wait_s):
            raise StoreBusy(f"another thread held the store for more than {wait_s * 1000:g} ms")
        try:
            yield
        finally:
            self._lock.release()

    def close(self) -> None:
        """Nothing to give up: what is stored stays until the object goes."""

    def _space(self, ns: str) -> _Namespace:
        return self._spaces.setdefault(ns, _Namespace())

    def _after_fork(self) -> None:
        # The old ones may be held by threads that are not here.
        self._lock, self._shelf_lock = threading.Lock(), threading.Lock()
        self._shelf.begin()  # a copy of what the parent counted


_stores: weakref.WeakSet[MemoryStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
