"""Where pools and health are kept: a small protocol that knows nothing of balancing.

A store holds, for each namespace (an upstream's id), one configuration document, many small records and a log,
all of them bytes to it, and a generation that moves when routing may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from resty_upstream.errors import InvalidConfig, Problem, without_secrets

if TYPE_CHECKING:
    from resty_upstream.stores.counters import Row

T = TypeVar("T")

WAIT_S = 5.0
"""How long a change made by a person may wait for the store, in seconds."""
LOG_ENTRIES = 1000
"""How many entries of a namespace's log are kept: the last ones."""


class Document(NamedTuple):
    """A consistent view of one namespace."""

    generation: int
    """0 while nothing was ever written."""
    config: bytes
    """Empty while nothing was ever written."""
    records: Mapping[str, bytes]


class Changes(NamedTuple):
    """What became of one namespace since an earlier look at it."""

    mark: object
    """What the next :meth:`Store.changes` is to be given."""
    config: bytes | None
    """None where it is as it was."""
    records: Mapping[str, bytes]
    """Those that were written, perhaps some that were not."""
    is_all: bool
    """Whether this is everything that there is: what was known before is void."""


class View:
    """One namespace inside a transaction: reads see its own writes, and nothing is kept if it fails."""

    def __init__(
        self,
        load_config: Callable[[], bytes],
        load: Callable[[str], bytes | None],
        load_keys: Callable[[], list[str]],
        load_holder: Callable[[str], str],
        *,
        has_config: bool,
    ) -> None:
        self._load_config = load_config
        self._load = load
        self._load_keys = load_keys
        self.holder = load_holder
        """Who has a lease, or "": as of this transaction, which a holder that lost it meanwhile can rely on."""
        self._config: bytes | None = None
        self.has_config = has_config
        """Whether a configuration was ever written; told without loading it."""
        self.written: dict[str, bytes | None] = {}
        """The records to be written; None deletes."""
        self.logged: list[bytes] = []
        """What is to be added to the log."""
        self.config_written = False
        self.touched = False
        """Whether the generation is to move."""

    @property
    def config(self) -> bytes:
        """The configuration document; empty while there is none."""
        if self._config is None:
            self._config = self._load_config()
        return self._config

    @config.setter
    def config(self, data: bytes) -> None:
        self._config = data
        self.has_config = True
        self.config_written = True
        self.touched = True

    def get(self, key: str) -> bytes | None:
        """A record, or None."""
        return self.written[key] if key in self.written else self._load(key)

    def put(self, key: str, data: bytes) -> None:
        """Write a record. Routing does not change by that alone: see :meth:`touch`."""
        self.written[key] = data

    def delete(self, key: str) -> None:
        """Delete a record, if it is there."""
        self.written[key] = None

    def keys(self) -> list[str]:
        """The keys of all records."""
        keys = dict.fromkeys(self._load_keys())
        for key, data in self.written.items():
            if data is None:
                keys.pop(key, None)
            else:
                keys[key] = None
        return list(keys)

    def log(self, entry: bytes) -> None:
        """Add to the namespace's log, of which the last :data:`LOG_ENTRIES` are kept."""
        self.logged.append(entry)

    def touch(self) -> None:
        """Routing changes: move the generation when this is committed."""
        self.touched = True


class Store(Protocol):
    """What a store must do. Every error it raises is a :class:`~resty_upstream.errors.StoreError`."""

    clock_id: str
    """Names the clock of :meth:`now`; another name means that earlier times cannot be compared."""

    def version(self, ns: str) -> int:
        """A number that changes when routing may have. The hot path's only call: no lock, no network."""
        ...

    def read(self, ns: str) -> Document:
        """The namespace as of one commit."""
        ...

    def changes(self, ns: str, since: object = None, *, wait_s: float = WAIT_S) -> Changes:
        """What was written since the look that gave the mark ``since``, as of one commit; everything for None.

        Everything, too, where the store cannot tell, and where records were deleted.

        :raises StoreBusy: when another holds the store for more than ``wait_s`` seconds.
        """
        ...

    def examine(self) -> bool:
        """Whether there is anything to open, without opening or creating it.

        :raises StoreError: when it could not be opened or, if there is nothing, not created.
        """
        ...

    def namespaces(self) -> list[str]:
        """The namespaces with a configuration document, in alphabetical order."""
        ...

    def transact(self, ns: str, fn: Callable[[View], T], *, wait_s: float = WAIT_S) -> T:
        """Run a pure function on a view, alone; commit all it wrote, or nothing if it raises.

        ``fn`` may run again when there is a conflict. Who may not wait at all is not kept for anything that can
        be done by somebody else.

        :raises StoreBusy: when another holds the store for more than ``wait_s`` seconds.
        """
        ...

    def history(self, ns: str, limit: int = LOG_ENTRIES) -> list[bytes]:
        """The last entries of the namespace's log, at most ``limit``, the newest at the end."""
        ...

    def lease(self, ns: str, name: str, owner: str, ttl_s: float, *, wait_s: float = WAIT_S) -> bool:
        """Whether ``owner`` now has the exclusive right ``name``, for ``ttl_s`` seconds from now.

        An owner that has it already renews it.

        :raises StoreBusy: when another holds the store for more than ``wait_s`` seconds.
        """
        ...

    def holder(self, ns: str, name: str, *, wait_s: float = WAIT_S) -> str:
        """Who has the lease ``name`` now; "" where nobody has.

        :raises StoreBusy: when another holds the store for more than ``wait_s`` seconds.
        """
        ...

    def release(self, ns: str, name: str, owner: str) -> None:
        """Give a lease back; nothing happens when ``owner`` does not have it."""
        ...

    def counters(self, key: bytes, in_use: Callable[[], Collection[bytes]]) -> Row:
        """Numbers that only this process writes, to be added to as it likes; always the same ones for a key.

        What is counted outlives the process where the store does. Where it cannot be shared it is counted in this
        process alone: this never raises for the store.

        The first number counts what is begun, the 23 after it what of that has ended; there are 30.

        :param key: 16 bytes.
        :param in_use: gives all keys in use of those whose first 8 bytes are the same: what was counted under
            others is forgotten where room is short.
        """
        ...

    def sums(self) -> dict[bytes, list[float]]:
        """What all processes have counted together, by key.

        The first number is what is under way, in processes that live.
        """
        ...

    def now(self) -> float:
        """Seconds on a clock that all users of the store share and that never jumps."""
        ...

    def close(self) -> None:
        """Give up connections and files; may be called again, and use opens them again."""
        ...


def open_store(url: str) -> Store:
    """The store of a URL: ``memory://``, or ``sqlite:///absolute/path``.

    Nothing is opened before it is used. Every call makes a store of its own: to share the state of a
    ``memory://`` store, share the object.

    :raises InvalidConfig: saying what a URL may be.
    """
    scheme = url.partition("://")[0] if isinstance(url, str) else ""
    if url == "memory://":
        from resty_upstream.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite":
        quoted = url.removeprefix("sqlite://")
        path = unquote(quoted)
        plain = quoted.startswith("/") and "?" not in quoted and "#" not in quoted
        if plain and not path.endswith("/") and path.isprintable():
            from resty_upstream.stores.sqlite import SqliteStore

            return SqliteStore(path)
    what = "store must be 'memory://', 'sqlite:///absolute/path/of/a/file' or a Store object"
    raise InvalidConfig(Problem(f"{what}, not {without_secrets(repr(url))}", "store"))
