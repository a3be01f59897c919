"""The default store: one SQLite file for all processes of a machine, with a doorbell beside it.

Files, all in one private directory::

    upstreams.db            the truth, in WAL mode (with SQLite's own -wal and -shm)
    upstreams.db.bell       8 bytes, mapped by every process: the generation committed last
    upstreams.db.lock       flock held while the database is created, replaced or set aside
    upstreams.db.counts.0   what the first of several processes has counted; see :mod:`.counters`

``version()`` reads the bell: one load from mapped memory. The bell is a hint: once a second ``version()``
also looks whether the files are still the ones that are open and whether the bell shows the generation that
is stored, so a bell that was lost, late or deleted rings again within a second.

https://www.sqlite.org/wal.html and https://www.sqlite.org/howtocorrupt.html (§2.6: no connection is
carried over a fork; §4.2: the files of a database that is open are not unlinked piecemeal) are the ground
that this stands on.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import mmap
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

from resty_upstream.errors import StoreBusy, StoreError, StoreFormatError, StoreUnavailable, StoreUnsafe
from resty_upstream.stores import LOG_ENTRIES, WAIT_S, Changes, Document, View
from resty_upstream.stores.counters import Counters, Row
from resty_upstream.stores.places import examine_directory, require_private_directory

T = TypeVar("T")

_APPLICATION_ID: Final = 0x52555053  # "RUPS"
_SCHEMA_VERSION: Final = 3
_CHECK_EVERY_S: Final = 1.0
_FORK_WAIT_S: Final = 5.0
_READ_WAIT_S: Final = 0.25
_SLICE_S: Final = 0.05
_BELL_BYTES: Final = 4096
_CHECKPOINT_PAGES: Final = 1000  # SQLite's own default
_HURRIED_COMMITS: Final = 300  # some two pages each
_LOG_BYTES: Final = 4 << 20  # what a log that was emptied is cut to
_MOST_LOG_BYTES: Final = 8 << 20
_CHECKPOINT_S: Final = 0.5  # that a commit waits, at most, for who empties a log of more than that
_REPAIRS: Final = 6
_CONTENT: Final = {
    "config": "SELECT ns, data, 0 FROM config",
    "record": "SELECT ns, key, data, 0 FROM record",
    "generation": "SELECT ns, value, 0, NULL FROM generation WHERE ns <> ''",
    "log": "SELECT NULL, ns, data FROM log ORDER BY id",
}
_SHUT: Final[Sequence[int]] = (-1,)
_OUR_FILES: Final = ("", ".bell")
_SIDE_FILES: Final = ("-wal", "-shm")

_SCHEMA: Final = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE generation (ns TEXT PRIMARY KEY, value INTEGER NOT NULL, deleted INTEGER NOT NULL DEFAULT 0,
                             lineage INTEGER) WITHOUT ROWID;
    CREATE TABLE config (ns TEXT PRIMARY KEY, data BLOB NOT NULL, changed INTEGER NOT NULL);
    CREATE TABLE record (ns TEXT, key TEXT, data BLOB NOT NULL, changed INTEGER NOT NULL,
                         PRIMARY KEY (ns, key)) WITHOUT ROWID;
    CREATE INDEX record_changed ON record (ns, changed);
    CREATE TABLE lease (ns TEXT, name TEXT, owner TEXT NOT NULL, clock TEXT NOT NULL, expires REAL NOT NULL,
                        PRIMARY KEY (ns, name)) WITHOUT ROWID;
    CREATE TABLE log (id INTEGER PRIMARY KEY, ns TEXT NOT NULL, data BLOB NOT NULL);
    CREATE INDEX log_of ON log (ns, id);
    INSERT INTO generation VALUES ('', {{generation}}, 0, {{lineage}});
    PRAGMA application_id = {_APPLICATION_ID};
    PRAGMA user_version = {_SCHEMA_VERSION};
    COMMIT;
"""  # noqa: S608 - constants, and a number of our own
# The configuration is in a table with rowids: in one without, looking for a namespace reads its whole document.
# The generation of the namespace '' counts those commits of all that move it; ids are never empty. What a commit
# writes is `changed` at the generation after the one that it finds, whether it moves it or not: who looked at
# generation n knows all that is changed at n or before, and perhaps more. The lineage tells one file from another.

# Most records are written again and again between two changes of routing; this one leaves the index alone.
_REWRITE: Final = "UPDATE record SET data = ? WHERE ns = ? AND key = ? AND changed = ?"
_NOTE: Final = """
    INSERT INTO generation (ns, value, deleted) VALUES (:ns, :value, :deleted)
    ON CONFLICT (ns) DO UPDATE SET value = max(value, :value), deleted = max(deleted, :deleted)
"""
_HOLDER: Final = "SELECT owner FROM lease WHERE ns = ? AND name = ? AND clock = ? AND expires > ?"
_HISTORY: Final = "SELECT data FROM log WHERE ns = ? ORDER BY id DESC LIMIT ?"
_FORGET: Final = f"""
    DELETE FROM log WHERE ns = :ns
    AND id <= (SELECT id FROM log WHERE ns = :ns ORDER BY id DESC LIMIT 1 OFFSET {LOG_ENTRIES})
"""  # noqa: S608 - a constant

_log = logging.getLogger("resty_upstream.store")


class _Identity(NamedTuple):
    """Which file is behind a path."""

    device: int
    inode: int


class _Mark(NamedTuple):
    """How far a reader knows a file."""

    lineage: int
    """Of the file; another one knows nothing of its generations."""
    generation: int


class _Damaged(Exception):
    """SQLite says that the file is malformed, or no database at all."""


class _Moved(Exception):
    """The file that is open, or was being opened, has been replaced or deleted."""


def _boot_clock() -> tuple[Callable[[], float], str]:
    """Seconds since boot, sleep included, and a name for this boot; the wall clock where there is neither."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME), boot_id
    except (OSError, AttributeError, UnicodeError):
        return time.time, "wall clock"


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


class SqliteStore:
    """Pools and health in one SQLite file.

    :param path: absolute path of the file; created, with its directory, when first used.
    :param clock: seconds that never go back, the same in every process; for tests.
    """

    def __init__(self, path: str | Path, clock: Callable[[], float] | None = None) -> None:
        self.path = os.fspath(path)
        if not os.path.isabs(self.path):
            raise StoreUnavailable(f"the path of a store must be absolute, not {self.path!r}")
        boot_clock, self.clock_id = _boot_clock()
        self.now = clock or boot_clock
        self._lock = threading.Lock()
        self._checkpoint_lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._bell: Sequence[int] | memoryview = _SHUT
        self._next_check = float("-inf")
        self._busy_ms = 0
        self._files: dict[str, _Identity | None] = {}
        self._side_files: dict[str, _Identity | None] = {}
        self._held: dict[str, list[tuple[object, ...]]] = {}  # content of a lost file, until a new one has it
        self._wait_s = 0.0  # of the call at work
        self._hurried = 0  # commits since a checkpoint that could not wait for one
        self._locks_held_for_fork: list[threading.Lock] = []
        self._counters = Counters(self.path)
        _stores.add(self)

    def __repr__(self) -> str:
        return f"<SqliteStore {self.path}>"

    def __del__(self) -> None:
        # A connection is part of a cycle: unclosed, it would be open at the next fork with nobody to know of it.
        with contextlib.suppress(Exception):
            if os.getpid() != _pid:
                self._after_fork()
            self._close()
            self._counters.close()

    # ── the protocol ──────────────────────────────────────────────────────────────────────────

    def version(self, ns: str) -> int:  # noqa: ARG002 - one bell rings for all
        """The generation committed last by anyone, of any namespace; -1 while the store cannot be opened."""
        if self.now() >= self._next_check:
            self._check()
        return self._bell[0]

    def read(self, ns: str) -> Document:
        """See :class:`~resty_upstream.stores.Store`."""
        return self._run(functools.partial(self._read, ns), _READ_WAIT_S)

    def changes(self, ns: str, since: object = None, *, wait_s: float = WAIT_S) -> Changes:
        """See :class:`~resty_upstream.stores.Store`."""
        return self._run(functools.partial(self._changes, ns, since), min(wait_s, _READ_WAIT_S))

    def examine(self) -> bool:
        """See :class:`~resty_upstream.stores.Store`."""
        try:
            is_there = examine_directory(os.path.dirname(self.path)) and self._require_own_file()
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror or error}") from error
        if not is_there:
            return False
        self._run(lambda _db: None, _READ_WAIT_S)
        return True

    def namespaces(self) -> list[str]:
        """See :class:`~resty_upstream.stores.Store`."""
        query = "SELECT ns FROM config ORDER BY ns"
        return self._run(lambda db: [ns for (ns,) in db.execute(query)], _READ_WAIT_S)

    def transact(self, ns: str, fn: Callable[[View], T], *, wait_s: float = WAIT_S) -> T:
        """See :class:`~resty_upstream.stores.Store`."""
        return self._run(functools.partial(self._transact, ns, fn), wait_s)

    def history(self, ns: str, limit: int = LOG_ENTRIES) -> list[bytes]:
        """See :class:`~resty_upstream.stores.Store`."""

        def work(db: sqlite3.Connection) -> list[bytes]:
            return [data for (data,) in db.execute(_HISTORY, (ns, max(0, limit)))][::-1]

        return self._run(work, _READ_WAIT_S)

    def lease(self, ns: str, name: str, owner: str, ttl_s: float, *, wait_s: float = WAIT_S) -> bool:
        """See :class:`~resty_upstream.stores.Store`."""
        now = self.now()

        def work(db: sqlite3.Connection) -> bool:
            if self._holder(ns, name, db) not in ("", owner):
                return False
            written = db.execute(
                "INSERT INTO lease VALUES (:ns, :name, :owner, :clock, :expires) ON CONFLICT (ns, name) "
                "DO UPDATE SET owner = :owner, clock = :clock, expires = :expires "
                "WHERE owner = :owner OR clock <> :clock OR expires <= :now",
                {
                    "ns": ns,
                    "name": name,
                    "owner": owner,
                    "clock": self.clock_id,
                    "expires": now + ttl_s,
                    "now": now,
                },
            )
            return written.rowcount == 1

        return self._run(work, wait_s)

    def holder(self, ns: str, name: str, *, wait_s: float = WAIT_S) -> str:
        """See :class:`~resty_upstream.stores.Store`."""
        return self._run(functools.partial(self._holder, ns, name), wait_s)

    def release(self, ns: str, name: str, owner: str) -> None:
        """See :class:`~resty_upstream.stores.Store`."""
        delete = "DELETE FROM lease WHERE ns = ? AND name = ? AND owner = ?"
        self._run(lambda db: db.execute(delete, (ns, name, owner)), WAIT_S)

    def counters(self, key: bytes, in_use: Callable[[], Collection[bytes]]) -> Row:
        """See :class:`~resty_upstream.stores.Store`."""
        if os.getpid() != _pid:
            _notice_fork()
        return self._counters.row(key, in_use)

    def sums(self) -> dict[bytes, list[float]]:
        """See :class:`~resty_upstream.stores.Store`."""
        if os.getpid() != _pid:
            _notice_fork()
        return self._counters.sums()

    def close(self) -> None:
        """See :class:`~resty_upstream.stores.Store`."""
        if os.getpid() != _pid:
            _notice_fork()
        self._counters.close()
        with self._lock:
            self._close()
            self._bell = _SHUT
            self._next_check = float("-inf")

    # ── operations on an open database ────────────────────────────────────────────────────────

    def _holder(self, ns: str, name: str, db: sqlite3.Connection) -> str:
        return _value(db, str, _HOLDER, (ns, name, self.clock_id, self.now())) or ""

    def _read(self, ns: str, db: sqlite3.Connection) -> Document:
        db.execute("BEGIN")
        try:
            generation = _value(db, int, "SELECT value FROM generation WHERE ns = ?", (ns,)) or 0
            config = _value(db, bytes, "SELECT data FROM config WHERE ns = ?", (ns,)) or b""
            records = dict(db.execute("SELECT key, data FROM record WHERE ns = ?", (ns,)))
        finally:
            db.execute("ROLLBACK")
        _require_bytes(records)
        return Document(generation, config, records)

    def _changes(self, ns: str, since: object, db: sqlite3.Connection) -> Changes:
        db.execute("BEGIN")
        try:
            mark = _Mark(_lineage(db), _generation(db))
            known = -1
            if isinstance(since, _Mark) and since.lineage == mark.lineage and since.generation <= mark.generation:
                deleted = _value(db, int, "SELECT deleted FROM generation WHERE ns = ?", (ns,)) or 0
                known = since.generation if deleted <= since.generation else -1
            config = _value(db, bytes, "SELECT data FROM config WHERE ns = ? AND changed > ?", (ns, known))
            records = dict(db.execute("SELECT key, data FROM record WHERE ns = ? AND changed > ?", (ns, known)))
        finally:
            db.execute("ROLLBACK")
        _require_bytes(records)
        is_all = known < 0
        return Changes(mark, config or b"" if is_all else config, records, is_all)

    def _transact(self, ns: str, fn: Callable[[View], T], db: sqlite3.Connection) -> T:
        def load_config() -> bytes:
            return _value(db, bytes, "SELECT data FROM config WHERE ns = ?", (ns,)) or b""

        def load(key: str) -> bytes | None:
            return _value(db, bytes, "SELECT data FROM record WHERE ns = ? AND key = ?", (ns, key))

        def load_keys() -> list[str]:
            return [key for (key,) in db.execute("SELECT key FROM record WHERE ns = ?", (ns,))]

        db.execute("BEGIN IMMEDIATE")
        try:
            if self._files[""] != _identity(self.path):
                # What is written to a file that has no name any more is lost.
                raise _Moved("the file is another one")
            has_config = db.execute("SELECT 1 FROM config WHERE ns = ?", (ns,)).fetchone() is not None
            load_holder = functools.partial(self._holder, ns, db=db)
            view = View(load_config, load, load_keys, load_holder, has_config=has_config)
            result = fn(view)
            generation = self._write(ns, view, db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        if generation is not None:
            self._ring(generation)
        self._hurried = 0 if self._wait_s else self._hurried + 1
        if self._hurried == _HURRIED_COMMITS:
            self._hurried = 0
            self._checkpoint_soon(db)
        return result

    def _write(self, ns: str, view: View, db: sqlite3.Connection) -> int | None:
        """Put what ``fn`` wrote into the open transaction; the new generation, where it moves."""
        for entry in view.logged:
            db.execute("INSERT INTO log (ns, data) VALUES (?, ?)", (ns, entry))
        if view.logged:
            db.execute(_FORGET, {"ns": ns})
        if not (view.config_written or view.written or view.touched):
            return None
        changed = _generation(db) + 1
        if view.config_written:
            db.execute("INSERT OR REPLACE INTO config VALUES (?, ?, ?)", (ns, view.config, changed))
        deleted = 0
        for key, data in view.written.items():
            if data is None:
                deleted = changed
                db.execute("DELETE FROM record WHERE ns = ? AND key = ?", (ns, key))
            elif not db.execute(_REWRITE, (data, ns, key, changed)).rowcount:
                db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", (ns, key, data, changed))
        if view.touched:
            db.execute("UPDATE generation SET value = ? WHERE ns = ''", (changed,))
        if view.touched or deleted:
            db.execute(_NOTE, {"ns": ns, "value": changed if view.touched else 0, "deleted": deleted})
        return changed if view.touched else None

    def _ring(self, generation: int) -> None:
        if isinstance(self._bell, memoryview):
            # One aligned 8-byte store: struct.pack_into would zero the bytes first, for all to see.
            self._bell[0] = generation

    # ── running them ──────────────────────────────────────────────────────────────────────────

    def _run(self, work: Callable[[sqlite3.Connection], T], wait_s: float) -> T:
        """``work`` on the open database, alone in this process; every error as a :class:`StoreError`.

        A long wait is cut into slices, so that it does not keep the other threads of this process out.
        """
        if os.getpid() != _pid:
            _notice_fork()
        deadline = time.monotonic() + wait_s
        while True:
            try:
                return self._run_slice(work, min(wait_s, _SLICE_S))
            except StoreBusy:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.001)

    def _run_slice(self, work: Callable[[sqlite3.Connection], T], wait_s: float) -> T:
        if not self._lock.acquire(timeout=wait_s):
            raise StoreBusy(f"{self.path} is in use by other threads")
        moved = False
        last: Exception | None = None
        try:
            for tried in range(_REPAIRS):
                try:
                    if moved:
                        time.sleep(0.002 * tried)  # whoever replaces it may need a moment more
                    return self._attempt(work, wait_s, moved=moved)
                except _Damaged as error:
                    self._set_aside(error)
                    moved, last = False, error
                except _Moved as error:
                    moved, last = True, error
            raise StoreUnavailable(f"{self.path} is damaged or replaced again and again: {last}") from last
        finally:
            self._lock.release()

    def _attempt(self, work: Callable[[sqlite3.Connection], T], wait_s: float, *, moved: bool = False) -> T:
        self._wait_s = wait_s
        try:
            db = self._reopen() if moved else self._db or self._open()
            self._allow(round(wait_s * 1000), db)
            return work(db)
        except sqlite3.Error as error:
            raise self._translated(error) from error
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror or error}") from error

    def _allow(self, busy_ms: int, db: sqlite3.Connection) -> None:
        """Set how long a call may take: one that may not wait for a lock does not wait for the disk either."""
        if busy_ms != self._busy_ms:
            db.execute(f"PRAGMA busy_timeout = {busy_ms}")
            if not busy_ms or not self._busy_ms:
                # Who empties the log into the database waits until the disk has it.
                db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES if busy_ms else 0}")
            self._busy_ms = busy_ms

    def _checkpoint_soon(self, db: sqlite3.Connection) -> None:
        """Have a thread that can wait for the disk empty the log, unless commits come faster than it can."""
        with contextlib.suppress(OSError, sqlite3.Error):  # what called is committed, whatever becomes of this
            if os.path.getsize(self.path + "-wal") > _MOST_LOG_BYTES:
                # A thread that is at it already keeps others from it, and may get no processor while commits do.
                if self._checkpoint_lock.acquire(timeout=_CHECKPOINT_S):
                    self._checkpoint_lock.release()
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                return
        if self._checkpoint_lock.acquire(blocking=False):
            try:
                threading.Thread(target=self._checkpoint, name="resty_upstream checkpoint", daemon=True).start()
            except RuntimeError:  # no more threads, or the interpreter is about to end
                self._checkpoint_lock.release()

    def _checkpoint(self) -> None:
        lock = self._checkpoint_lock
        try:
            # A connection of its own, so that nobody waits for the other one.
            db = sqlite3.connect(f"file:{quote(self.path)}?mode=rw", uri=True)
            try:
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                db.close()
        except sqlite3.Error:
            pass  # there will be another
        finally:
            lock.release()

    def _translated(self, error: sqlite3.Error) -> Exception:
        code = _primary_code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreBusy(f"{self.path} is being written by another process")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return _Damaged(str(error))
        if code == sqlite3.SQLITE_ERROR and "no such" in str(error):
            return _Damaged(str(error))  # a table or column that every store has
        self._next_check = float("-inf")
        return StoreUnavailable(f"{self.path}: {error}")

    def _check(self) -> None:
        """Once a second: are these still our files, and does the bell show what is stored?"""
        if os.getpid() != _pid:
            _notice_fork()
            return
        if not self._lock.acquire(blocking=False):
            return  # a thread is at work on the database; a later call looks
        try:
            try:
                self._attempt(self._poll, 0.0)
            except _Damaged as error:
                self._set_aside(error)
                self._bell = _SHUT
            except _Moved:
                self._close()
                self._bell = _SHUT
        except StoreBusy:
            pass
        except StoreError:
            self._close()
            self._bell = _SHUT  # users see another version, read, and get the error with its words
        finally:
            self._next_check = self.now() + _CHECK_EVERY_S
            self._lock.release()

    def _poll(self, db: sqlite3.Connection) -> None:
        if self._files != self._identities(*_OUR_FILES):
            db = self._reopen()
        self._correct_bell(db)

    def _correct_bell(self, db: sqlite3.Connection) -> None:
        """Have the bell show what is stored, if a ring was lost."""
        bell = self._bell[0]  # before the generation: who commits in between rings for more
        generation = _generation(db)
        if bell != generation:
            self._ring(generation)
        self._counters.look()

    # ── opening, closing, replacing ───────────────────────────────────────────────────────────

    def _open(self) -> sqlite3.Connection:
        require_private_directory(os.path.dirname(self.path))
        if _orphans and _identity(self.path) in _orphans:
            raise StoreUnavailable(
                f"{self.path}: this process was forked, without Python's hooks, while a thread used the store"
            )
        try:
            if not self._require_own_file():
                with self._exclusively():
                    if not self._require_own_file():
                        self._create_file()
        except FileNotFoundError as error:
            raise _Moved(str(error)) from error  # the directory was there a moment ago
        # Taken before the file is opened: if it is replaced in between, the next look finds the difference.
        self._files = self._identities("")
        db = sqlite3.connect(self.path, timeout=self._wait_s, isolation_level=None, check_same_thread=False)
        try:
            # Safe in WAL mode: a killed process loses nothing, a power cut the last commits but never the file.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            if not self._is_ready(db):
                with self._exclusively():
                    if not self._is_ready(db):
                        self._initialise(db)
            # By path: opening and closing the file would drop the locks of another connection to it.
            for suffix in ("", *_SIDE_FILES):
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(self.path + suffix, 0o600)
            self._bell, self._files[".bell"] = self._open_bell()
            self._busy_ms = -1
            self._allow(round(self._wait_s * 1000), db)
            self._correct_bell(db)
            self._side_files = self._identities(*_SIDE_FILES)
        except BaseException as error:
            db.close()
            if self._was_moved(error):
                raise _Moved(str(error)) from error
            raise
        self._db = db
        self._next_check = self.now() + _CHECK_EVERY_S
        return db

    def _was_moved(self, error: BaseException) -> bool:
        """Whether opening failed because somebody deletes or replaces files meanwhile."""
        if isinstance(error, sqlite3.Error) and _primary_code(error) in (
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_CANTOPEN,
        ):
            return True  # of a -wal or -shm that went, perhaps; if not, it says the same again
        return isinstance(error, (sqlite3.Error, OSError)) and self._files[""] != _identity(self.path)

    def _is_ready(self, db: sqlite3.Connection) -> bool:
        """Whether the database is ours and in WAL mode; False when it is new and empty."""
        db.execute("BEGIN")  # one moment: another process may be creating it
        try:
            (application_id,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            is_empty = db.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        finally:
            db.execute("ROLLBACK")
        if application_id == _APPLICATION_ID:
            if version != _SCHEMA_VERSION:
                todo = "run the newer release" if version > _SCHEMA_VERSION else "delete it while nothing uses it"
                raise StoreFormatError(
                    f"{self.path} has schema version {version}, this release uses {_SCHEMA_VERSION}: "
                    f"{todo}, or name another file"
                )
            return bool(db.execute("PRAGMA journal_mode").fetchone() == ("wal",))
        if application_id or version or not is_empty:
            raise StoreFormatError(f"{self.path} is another application's database: name another file")
        return False

    def _initialise(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            # Begin anywhere, so that a file that replaces another does not happen to be at its generation.
            generation, lineage = (int.from_bytes(os.urandom(size), "big") for size in (5, 7))
            db.executescript(_SCHEMA.format(generation=generation, lineage=lineage))

    def _create_file(self) -> None:
        for suffix in _SIDE_FILES:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)  # of a database that is gone; they do not belong to a new one
        os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def _open_bell(self) -> tuple[memoryview, _Identity]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path + ".bell", flags, 0o600)
        try:
            found = os.fstat(fd)
            if found.st_size < _BELL_BYTES:
                # Written, not truncated to size: on a full disk a hole is a SIGBUS when the bell rings.
                os.pwrite(fd, bytes(_BELL_BYTES - found.st_size), found.st_size)
                os.fsync(fd)
            bell = memoryview(mmap.mmap(fd, _BELL_BYTES)).cast("Q")
            return bell, _Identity(found.st_dev, found.st_ino)
        finally:
            os.close(fd)

    def _require_own_file(self) -> bool:
        """Whether the database exists; if so, it is a regular file of this user."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise StoreUnsafe(f"{self.path} is not a regular file: name a file, not a link to one")
        if found.st_uid != os.geteuid():
            raise StoreUnavailable(
                f"{self.path} belongs to user {found.st_uid}, this process is user {os.geteuid()}: "
                "run as the user that owns the store (sudo -u …)"
            )
        return True

    def _identities(self, *suffixes: str) -> dict[str, _Identity | None]:
        return {suffix: _identity(self.path + suffix) for suffix in suffixes}

    def _reopen(self) -> sqlite3.Connection:
        """Open the file that is there now; one that is new and empty gets all that the old one held."""
        _log.warning(
            "%s was replaced or deleted: opening it again",
            self.path,
            extra={"upstream_event": "store_replaced", "upstream_store": self.path},
        )
        if self._db is not None and self._files[""] != _identity(self.path):
            self._held = self._content(self._db)
        self._leave_old_files()
        db = self._open()
        if self._held:
            self._restore(self._held, db)
            self._held = {}
        return db

    def _content(self, db: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
        """What was ever committed to the file that is open, whatever became of its name."""
        try:
            return {table: db.execute(query).fetchall() for table, query in _CONTENT.items()}
        except sqlite3.Error:
            return {}

    def _restore(self, held: dict[str, list[tuple[object, ...]]], db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("SELECT 1 FROM config UNION ALL SELECT 1 FROM record").fetchone():
                return  # not empty: somebody put it there, or was faster
            for table, rows in held.items():
                if rows:
                    places = ", ".join("?" * len(rows[0]))
                    db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({places})", rows)  # noqa: S608 - our own names
            db.execute("UPDATE generation SET value = value + 1 WHERE ns = ''")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        self._ring(_generation(db))

    def _leave_old_files(self) -> None:
        """Close a database whose file is gone or another one.

        Its -wal and -shm, where they are still there, do not belong to the file that has its name now.
        """
        if not os.path.isdir(os.path.dirname(self.path)):
            self._close()  # all of it is gone, the lock file too
            return
        with self._exclusively():
            if self._files[""] != _identity(self.path):
                for suffix, ours in self._side_files.items():
                    if ours is not None and ours == _identity(self.path + suffix):
                        os.unlink(self.path + suffix)
            self._close()

    def _set_aside(self, error: _Damaged) -> None:
        """Move a damaged database out of the way, once for all processes, and open a new one."""
        aside = f"{self.path}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**9:09}"
        try:
            before = self._files.get("")  # as it was opened
            self._close()
            if not os.path.lexists(self.path + ".bell"):
                raise StoreUnavailable(f"{self.path} is not a store ({error}): name another file") from error
            with self._exclusively():
                if before != _identity(self.path):
                    return  # another process was faster
                for suffix in ("", *_SIDE_FILES):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(self.path + suffix, aside + suffix)
        except OSError as failure:
            raise StoreUnavailable(f"{self.path} is damaged and cannot be moved: {failure}") from failure
        _log.error(
            "%s is damaged (%s): moved to %s and begun anew; "
            "changes made at run time are lost unless this process has them in its copy",
            self.path,
            error,
            aside,
            extra={"upstream_event": "store_damaged", "upstream_store": self.path, "upstream_aside": aside},
        )

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the lock file: one process at a time creates, replaces or sets aside."""
        # A descriptor of its own each time: one inherited over a fork would exclude nobody.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path + ".lock", flags, 0o600)
        try:
            deadline = time.monotonic() + self._wait_s
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise StoreBusy(f"another process creates or replaces {self.path}") from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(fd)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    # ── forks ─────────────────────────────────────────────────────────────────────────────────

    def _before_fork(self) -> None:
        """No connection may cross a fork: SQLite in the child would believe in locks it does not hold."""
        deadline = time.monotonic() + _FORK_WAIT_S
        locks = [self._lock, self._checkpoint_lock]
        self._locks_held_for_fork = [
            lock for lock in locks if lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        ]
        if self._lock in self._locks_held_for_fork:
            self._close()

    def _after_fork_in_parent(self) -> None:
        held, self._locks_held_for_fork = self._locks_held_for_fork, []
        for lock in held:
            lock.release()

    def _after_fork(self) -> None:
        """In the child, before any store is used there."""
        self._counters.after_fork()
        idle = self._lock in self._locks_held_for_fork or self._lock.acquire(blocking=False)
        self._lock, self._checkpoint_lock = threading.Lock(), threading.Lock()
        self._locks_held_for_fork = []
        self._next_check = float("-inf")
        self._bell = _SHUT  # users notice the new process, too: they read
        db, self._db = self._db, None
        if db is None:
            return  # closed before the fork, as it should be
        if not idle or not _close_blind(db, self._files[""]):
            _orphans.setdefault(self._files[""], []).append(db)


def _close_blind(db: sqlite3.Connection, identity: _Identity | None) -> bool:
    """Close a connection that was opened in the parent without touching its files; whether that was possible.

    SQLite keeps one table of open files per process, which believes in locks that did not cross the fork, so
    the connection must go before the file is opened again. But closing it as usual may checkpoint and delete a
    -wal that others use. With a descriptor on which every lock fails it can do neither.
    """
    try:
        blind = os.open("/", os.O_PATH | os.O_CLOEXEC)
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except (OSError, AttributeError):
        return False
    for number in numbers:
        # This process holds no locks yet, so replacing its descriptors drops none.
        with contextlib.suppress(OSError):
            found = os.fstat(number)
            if (found.st_dev, found.st_ino) == identity:
                os.dup2(blind, number, inheritable=False)
    os.close(blind)
    with contextlib.suppress(sqlite3.Error):
        db.close()
    return True


def _notice_fork() -> None:
    """All at once, and before the first is used: connections to one file share what SQLite knows of it."""
    global _pid
    with _fork_guard:
        if _pid != os.getpid():
            for store in list(_stores):
                store._after_fork()
            _pid = os.getpid()


def _require_bytes(records: Mapping[str, object]) -> None:
    if not all(isinstance(data, bytes) for data in records.values()):
        raise _Damaged("a record is not bytes")


def _generation(db: sqlite3.Connection) -> int:
    value = _value(db, int, "SELECT value FROM generation WHERE ns = ''", ())
    if value is None or not 0 < value < 2**63:
        raise _Damaged("its generation is missing")
    return value


def _lineage(db: sqlite3.Connection) -> int:
    value = _value(db, int, "SELECT lineage FROM generation WHERE ns = ''", ())
    if value is None:
        raise _Damaged("its lineage is missing")
    return value


def _value(db: sqlite3.Connection, kind: type[T], query: str, parameters: tuple[str | float, ...]) -> T | None:
    """The single value of a query, of the type that was written; None when there is no row."""
    row = db.execute(query, parameters).fetchone()
    if row is not None and not isinstance(row[0], kind):
        raise _Damaged(f"a value that should be {kind.__name__} is {type(row[0]).__name__}")
    return row[0] if row else None


def _identity(path: str) -> _Identity | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return _Identity(found.st_dev, found.st_ino)


_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_fork_guard = threading.Lock()
_orphans: dict[_Identity | None, list[sqlite3.Connection]] = {}  # of files that this process cannot use any more
_pid = os.getpid()


def _for_all(method: Callable[[SqliteStore], None]) -> Callable[[], None]:
    def run() -> None:
        for store in list(_stores):
            method(store)

    return run


os.register_at_fork(
    before=_for_all(SqliteStore._before_fork),
    after_in_parent=_for_all(SqliteStore._after_fork_in_parent),
    after_in_child=_notice_fork,
)
