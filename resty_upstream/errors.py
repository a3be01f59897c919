"""Every error that this library raises on purpose.

::

    UpstreamError
    ├── InvalidConfig (ValueError)        what was given is wrong; .problems names each path
    │   ├── MethodNotFound                no balancing method of that name
    │   ├── PoolExists                    a pool of that id is there already
    │   └── HostExists                    a host of that id is in the pool already
    ├── UpstreamNotFound (KeyError)       no upstream of that name is configured
    ├── PoolNotFound (LookupError)
    ├── HostNotFound (LookupError)
    ├── NoHostAvailable (ConnectionError) every host that could be tried failed; .attempts, .status_hint
    └── StoreError                        the shared store; never raised out of a request
        ├── StoreUnavailable              it cannot be reached, written or trusted
        │   ├── StoreBusy                 another process held it for too long
        │   └── StoreUnsafe               others could change it, or put something in its place
        └── StoreFormatError              it holds something that this version cannot read
"""

from __future__ import annotations

import contextlib
import difflib
import re
from typing import TYPE_CHECKING, ClassVar, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from resty_upstream.attempts import Attempt

ProblemKind = Literal["structure", "option", "value", "missing", "id", "method", "store", "exists"]

_SECRET = re.compile(r":.*[@?].*(?=.)", re.DOTALL)


class UpstreamError(Exception):
    """The root of all errors of this library."""


class Problem(str):
    """One sentence that says what is wrong, beginning with its path, and what kind of thing that is."""

    __slots__ = ("kind",)

    kind: ProblemKind
    """``structure``: not the mapping or the file that it should be. ``option``: no option has that name.
    ``value``: of the wrong type, or out of its bounds. ``missing``: must be given. ``id``: not one, or given
    twice. ``method``: not registered. ``store``: no store has that URL. ``exists``: there already."""

    def __new__(cls, text: str, kind: ProblemKind = "value") -> Self:
        problem = super().__new__(cls, text)
        problem.kind = kind
        return problem

    @classmethod
    def unknown_option(cls, path: str, name: object, known: Iterable[str]) -> Self:
        """What is wrong with an option ``name`` at ``path``, where only the ``known`` ones are."""
        by_lower = {option.lower(): option for option in known}
        alike = difflib.get_close_matches(str(name).lower(), by_lower, 1)
        meant = f"did you mean {by_lower[alike[0]]}? " if alike else ""
        return cls(f"{path} is not an option: {meant}options are {', '.join(by_lower.values())}", "option")

    def __getnewargs__(self) -> tuple[str, ProblemKind]:  # type: ignore[override]  # of str: the text alone
        return str(self), self.kind


def without_secrets(shown: str) -> str:
    """The ``repr`` of a value that is wrong, without what may be a password: ``'redis:…'``."""
    return _SECRET.sub(":…", shown)


class InvalidConfig(UpstreamError, ValueError):
    """Configuration that was refused as a whole.

    ``problems`` holds one sentence for each thing that is wrong, each beginning with its path
    (``pools.primary.hosts.a.port must be …``); the message joins them.
    """

    problems: tuple[Problem, ...]
    kind: ClassVar[ProblemKind] = "value"
    """Of the problems that are given as plain text."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        given = (problems,) if isinstance(problems, str) else problems
        self.problems = tuple(each if isinstance(each, Problem) else Problem(each, self.kind) for each in given)
        super().__init__("; ".join(self.problems))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)

    def below(self, path: str) -> Self:
        """The same error, with ``path`` in front of each problem."""
        return type(self)([Problem(path + problem, problem.kind) for problem in self.problems])


class Problems:
    """Collects what is wrong, to be raised all at once at the end of the ``with`` block."""

    def __init__(self) -> None:
        self._found: list[InvalidConfig] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note an :class:`InvalidConfig` raised inside, and go on behind the block."""
        try:
            yield
        except InvalidConfig as error:
            self._found.append(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is None and self._found:
            kinds = {type(error) for error in self._found}
            kind = kinds.pop() if len(kinds) == 1 else InvalidConfig
            raise kind([problem for error in self._found for problem in error.problems])


class MethodNotFound(InvalidConfig):
    """No balancing method is registered under that name."""

    kind = "method"


class PoolExists(InvalidConfig):
    """A pool of that id exists already."""

    kind = "exists"


class HostExists(InvalidConfig):
    """A host of that id exists already in the pool."""

    kind = "exists"


class UpstreamNotFound(UpstreamError, KeyError):
    """No upstream of that name is configured."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class PoolNotFound(UpstreamError, LookupError):
    """No pool has that id."""


class HostNotFound(UpstreamError, LookupError):
    """No host of the pool has that id."""


class NoHostAvailable(UpstreamError, ConnectionError):
    """No host could serve: each that may be tried was tried, or the deadline is over.

    ``attempts`` holds what was tried, in order; the last failure is also the ``__cause__``.
    ``status_hint`` is the HTTP status a gateway would answer with: 502 when a host answered but
    badly, 504 when none could be reached.
    """

    attempts: tuple[Attempt, ...]
    status_hint: int

    def __init__(self, message: str, attempts: Sequence[Attempt] = (), status_hint: int = 504) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)
        self.status_hint = status_hint

    def __reduce__(self) -> tuple[type[Self], tuple[str, tuple[Attempt, ...], int]]:
        return type(self), (str(self), self.attempts, self.status_hint)


class StoreError(UpstreamError):
    """Something is wrong with the shared store."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written, or is not safe to use."""


class StoreBusy(StoreUnavailable):
    """Another process or thread held the store for longer than this call may wait."""


class StoreUnsafe(StoreUnavailable):
    """Others could change the store, or put something in its place."""


class StoreFormatError(StoreError):
    """The store holds data that this version of the library cannot read."""
