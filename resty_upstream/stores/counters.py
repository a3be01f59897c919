"""Counters that each process writes for itself and every process can read: no lock, no write of a file.

Each process has a file that it maps, beside the database: ``upstreams.db.counts.<n>``, with ``flock`` held on
it until the process ends, however that comes about. The next process takes the file over and goes on adding to
what is there, so sums stay true, and there are as many files as there were processes at once. (Perhaps one more:
where a process looks for a file while another looks whether that one's owner lives.)

A file is a table of rows: 16 bytes of key, then :data:`CELLS` floats. A row whose key is zero is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import mmap
import os
import re
import stat
import struct
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import add
from typing import Final
from weakref import WeakValueDictionary

from resty_upstream.errors import StoreError
from resty_upstream.stores.places import require_private_directory

CELLS: Final = 30
"""Numbers in a row."""
ENDS: Final = 24
"""The first number counts what is begun, those up to here what of that has ended; the rest is under way."""
KEY_BYTES: Final = 16
GROUP_BYTES: Final = 8
"""Rows whose keys begin alike belong together."""

_ROW: Final = struct.Struct(f"{KEY_BYTES}s{CELLS}d")
_PAGE: Final = max(mmap.PAGESIZE, mmap.ALLOCATIONGRANULARITY)
_MAGIC: Final = b"resty_upstream\x00\x01"
_FREE: Final = bytes(KEY_BYTES)
_MOST: Final = 2.0**53
_MOST_FILES: Final = 4096
_MADV_WIPEONFORK: Final = 18  # Linux; the module mmap has no name for it

InUse = Callable[[], Collection[bytes]]

_log = logging.getLogger("resty_upstream.store")


class Row:
    """Where a process counts something."""

    __slots__ = ("__weakref__", "cells", "ours")

    def __init__(self, ours: Sequence[int], cells: memoryview[float]) -> None:
        self.ours = ours
        """One number: 0 once the cells are no more this process's to write."""
        self.cells = cells


class Shelf:
    """Rows in this process's own memory.

    :param ours: what its rows have of that name; a list where a child of a fork may go on with a copy.
    """

    def __init__(self, ours: list[int] | memoryview) -> None:
        self._ours = ours
        self._rows: list[memoryview] = []
        self._numbers: dict[bytes, int] = {}
        self._free: list[int] = []
        self._given: WeakValueDictionary[int, Row] = WeakValueDictionary()

    def row(self, key: bytes, in_use: InUse) -> Row:
        """The row of a key, as long as anyone has it the same object.

        :param in_use: the keys that are, of those that begin alike: rows of others are taken where room is short.
        :raises OSError: where there is no room.
        """
        number = self._numbers.get(key)
        if number is None:
            number = self._take(key, in_use)
        row = self._given.get(number)
        if row is None:
            self._given[number] = row = Row(self._ours, self._cells(number))
        return row

    def contents(self) -> Iterator[tuple[bytes, list[float]]]:
        """The keys and numbers of its rows."""
        return ((key, list(self._cells(number))) for key, number in self._numbers.items())

    def adopt(self, other: Shelf) -> None:
        """Add what another shelf has counted to what is here; it may not be used then.

        :raises OSError: where there is no room; nothing was added then.
        """
        rows = {key: self.row(key, self._numbers.keys) for key in other._numbers if key != _MAGIC}
        other.disown()
        for key, row in rows.items():
            _, *counted = other._cells(other._numbers[key])
            for cell, more in enumerate(counted, 1):
                row.cells[cell] += more
            row.cells[0] += sum(counted[: ENDS - 1])  # what is under way is not noticed here when it ends

    def disown(self) -> None:
        """Have nobody write to it any more."""
        self._ours[0] = 0

    def begin(self) -> None:
        """Nothing is under way."""
        for number in self._numbers.values():
            cells = self._cells(number)
            cells[0] = sum(cells[1:ENDS])

    def _cells(self, number: int) -> memoryview[float]:
        return self._rows[number][KEY_BYTES:].cast("d")

    def _take(self, key: bytes, in_use: InUse) -> int:
        if not self._free:
            self._forget(key[:GROUP_BYTES], in_use)
        if not self._free:
            self._add(self._more(max(_PAGE, len(self._rows) * _ROW.size)))
        number = self._free.pop()
        self._rows[number][:KEY_BYTES] = key
        self._numbers[key] = number
        return number

    def _forget(self, group: bytes, in_use: InUse) -> None:
        """Free the rows of this group that are not in use, nor in anybody's hands."""
        given = self._given
        idle = {key for key, number in self._numbers.items() if key.startswith(group) and number not in given}
        for key in idle.difference(in_use()) if idle else ():
            self._clear(self._numbers.pop(key))

    def _clear(self, number: int) -> None:
        self._rows[number][:] = bytes(_ROW.size)
        self._free.append(number)

    def _more(self, size: int) -> memoryview:
        """So many more bytes."""
        return memoryview(bytearray(size))

    def _add(self, data: memoryview) -> None:
        """Take in rows as they are found; free those that make no sense."""
        for begin in reversed(range(0, len(data), _ROW.size)):
            number = len(self._rows)
            self._rows.append(data[begin : begin + _ROW.size])
            key, *numbers = _ROW.unpack(self._rows[number])
            if key == _FREE or key in self._numbers or not _is_sane(numbers):
                self._clear(number)
            else:
                self._numbers[key] = number


class _Foreign(Exception):
    """A file that is none of counters."""


class FileShelf(Shelf):
    """Rows in a file that is this process's until it ends.

    :raises BlockingIOError: where it is another's.
    :raises OSError: where it cannot be used.
    """

    def __init__(self, path: str) -> None:
        super().__init__(_true_until_fork())
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        found = os.fstat(self._fd)
        head = os.pread(self._fd, KEY_BYTES, 0) if stat.S_ISREG(found.st_mode) else b"?"
        if head.strip(b"\0") and not _MAGIC.startswith(head):
            raise _Foreign
        os.fchmod(self._fd, 0o600)
        self._size = 0
        data = self._more(max(_PAGE, found.st_size // _PAGE * _PAGE))
        data[: _ROW.size] = _MAGIC.ljust(_ROW.size, b"\0")  # a row as the others
        self._add(data)
        self.begin()

    def _more(self, size: int) -> memoryview:
        # Allocated before it is mapped: on a full disk a hole is a SIGBUS when it is written.
        os.posix_fallocate(self._fd, self._size, size)
        # Opened again, for mmap keeps a copy of the descriptor: one that has the lock would keep it, in a child
        # of a fork, too, as long as anybody has a row.
        fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not self.is_there():
                raise FileNotFoundError(f"{self._path} was replaced")
            data = memoryview(mmap.mmap(fd, size, offset=self._size))
        finally:
            os.close(fd)
        self._size += size
        return data

    def is_there(self) -> bool:
        """Whether the file still has its name."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._path))
        return False

    def close(self) -> None:
        """Leave the file to others. A child of a fork takes nothing from its parent: no unlocking is done."""
        self.disown()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Counters:
    """The counters of one process, and all that others count in the files beside its own.

    :param path: of the database; the files have its name and more.

    Counting never fails for the files: what finds no place in one is counted in this process alone, until it does.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._file: FileShelf | None = None
        self._alone: Shelf | None = None
        self._foreign: set[str] = set()

    def row(self, key: bytes, in_use: InUse) -> Row:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._lock:
            if self._alone is None:
                try:
                    return self._own_file().row(key, in_use)
                except (OSError, StoreError) as error:
                    _log.error(
                        "%s: what this process counts is not shared: %s",
                        self._path,
                        error,
                        extra=self._fields("counts_not_shared"),
                    )
                    self._alone = Shelf(_true_until_fork())
            return self._alone.row(key, in_use)

    def sums(self) -> dict[bytes, list[float]]:
        """See :class:`~resty_upstream.stores.Store`."""
        with self._lock:
            alone = [] if self._alone is None else list(self._alone.contents())
        return sums_of(itertools.chain(_read_all(self._path), alone))

    def look(self) -> None:
        """Notice a file that is gone, and give what is counted in this process alone a place in one."""
        with self._lock:
            if self._file is not None and not self._file.is_there():
                _log.warning(
                    "%s: a file of counters was replaced or deleted: begun anew",
                    self._path,
                    extra=self._fields("counts_replaced"),
                )
                lost, self._file = self._file, None
                lost.close()
                self._alone = self._alone or Shelf(_true_until_fork())
                self._alone.adopt(lost)
            if self._alone is not None:
                with contextlib.suppress(OSError, StoreError):
                    self._own_file().adopt(self._alone)
                    self._alone = None
                    _log.warning(
                        "%s: what this process counts is shared again",
                        self._path,
                        extra=self._fields("counts_shared_again"),
                    )

    def close(self) -> None:
        """Leave the file to others."""
        with self._lock:
            self._leave()

    def after_fork(self) -> None:
        """In the child, which has none of its parent's."""
        self._leave()
        self._reset()  # the lock, too, which may be held by a thread that is not here

    def _leave(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        alone, self._alone = self._alone, None
        if alone is not None:
            alone.disown()

    def _fields(self, event: str) -> dict[str, object]:
        """What structured logs have of an event."""
        return {"upstream_event": event, "upstream_store": self._path}

    def _own_file(self) -> FileShelf:
        if self._file is None:
            require_private_directory(os.path.dirname(self._path))
            self._file = self._take_file()
        return self._file

    def _take_file(self) -> FileShelf:
        for number in range(_MOST_FILES):
            path = f"{self._path}.counts.{number}"
            try:
                file = FileShelf(path)
                if file.is_there():
                    return file
                file.close()  # deleted at this moment
            except BlockingIOError:
                continue
            except _Foreign:
                if path not in self._foreign:
                    self._foreign.add(path)
                    _log.error(
                        "%s is no file of counters, or damaged: left alone",
                        path,
                        extra=self._fields("counts_damaged"),
                    )
        raise OSError(f"all of {_MOST_FILES} files are taken")


def _true_until_fork() -> memoryview:
    """A byte that is 1, and 0 in a child, whoever forks and however; told without a system call."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":  # elsewhere only forks that run Python's hooks are noticed at once
        with contextlib.suppress(OSError):  # before Linux 4.14
            page.madvise(_MADV_WIPEONFORK)
    page[0] = 1
    return memoryview(page)


def _is_sane(numbers: Sequence[float]) -> bool:
    """Whether they can have been counted; not where one of them is no number."""
    return min(numbers) >= 0 and sum(numbers) < _MOST


def sums_of(rows: Iterable[tuple[bytes, list[float]]]) -> dict[bytes, list[float]]:
    """The sums of all rows of each key, the first number of them what is under way."""
    sums: dict[bytes, list[float]] = {}
    for key, numbers in rows:
        before = sums.get(key)
        sums[key] = numbers if before is None else list(map(add, before, numbers))
    for numbers in sums.values():
        numbers[0] = max(0.0, numbers[0] - sum(numbers[1:ENDS]))  # it may have ended while we looked
    return sums


def _read_all(path: str) -> Iterator[tuple[bytes, list[float]]]:
    """The rows of all files, what is under way only of those whose owner lives."""
    directory, name = os.path.split(path)
    is_ours = re.compile(re.escape(name) + r"\.counts\.\d+").fullmatch
    with contextlib.suppress(OSError):
        for found in filter(is_ours, os.listdir(directory)):
            with contextlib.suppress(OSError, ValueError):  # it went, or was cut short, at this moment
                yield from _read(os.path.join(directory, found))


def _read(path: str) -> Iterator[tuple[bytes, list[float]]]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        size = found.st_size // _PAGE * _PAGE
        if not stat.S_ISREG(found.st_mode) or not size or os.pread(fd, KEY_BYTES, 0) != _MAGIC:
            return
        # Mapped, not read: each number is loaded at once, and never half of it.
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapped:
            rows = list(_ROW.iter_unpack(mapped))
        is_alive = _is_locked(fd)
    finally:
        os.close(fd)
    for key, *numbers in rows:
        if key not in (_FREE, _MAGIC) and _is_sane(numbers):
            if not is_alive:
                numbers[0] = sum(numbers[1:ENDS])
            yield key, numbers


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
