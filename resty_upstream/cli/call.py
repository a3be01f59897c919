"""One use of the command: what was asked, of which upstream, and where the answer goes."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from resty_upstream.api import UpstreamAPI
from resty_upstream.cli.logs import Heard
from resty_upstream.cli.screen import Screen
from resty_upstream.cli.text import listed, shown
from resty_upstream.errors import InvalidConfig
from resty_upstream.stores import open_store
from resty_upstream.upstream import Upstream

MEMORY = "memory://"


class CommandFailed(Exception):
    """What was asked could not be done; the message is one line that says why."""

    code = 1
    """The exit status."""

    def __str__(self) -> str:
        return shown(super().__str__())


class WrongUsage(CommandFailed):
    """The command was given something that it does not take."""

    code = 2


class Option(NamedTuple):
    """An argument of the command, as argparse takes it."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


def option(*flags: str, **settings: Any) -> Option:
    """An :class:`Option`, written as ``add_argument`` would be called."""
    return Option(flags, settings)


class Verb(NamedTuple):
    """Something that the command does."""

    name: str
    run: Callable[[Call], None]
    summary: str
    """One line, in the list of all verbs."""
    description: str
    """What its own help says, in paragraphs."""
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()
    """What may follow the name of the command."""
    begins: bool = False
    """Whether it may begin an upstream, and a store."""


class StoredUpstreams(Mapping[str, Upstream]):
    """The upstreams that a store holds, by name; by any other name, one that may begin there.

    :raises InvalidConfig: when there are no stores of that URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._store = open_store(url)

    def __getitem__(self, name: str) -> Upstream:
        return Upstream(self._store, id=name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.namespaces() if self._store.examine() else [])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def require_store(self) -> None:
        """Refuse a store that is not there: opening it would create it."""
        if not self._store.examine():
            raise CommandFailed(f"there is no store at {self._url}: name the one that the application uses")

    def close(self) -> None:
        """Give up the store."""
        self._store.close()


class Call:
    """What a verb works with.

    :param options: what was asked, as the parser of :func:`resty_upstream.cli.build_parser` gives it.
    :param find: makes the upstreams by name.
    :param begins: whether an upstream, and a store, may begin.
    :param owns_memory: whether this process may be the one that uses a store in memory.
    :param heard: what goes wrong meanwhile; None where others are told by the log.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        find: Callable[[], Mapping[str, Upstream]],
        screen: Screen,
        *,
        begins: bool = False,
        owns_memory: bool = False,
        heard: Heard | None = None,
    ) -> None:
        self.options = options
        self.screen = screen
        self.begins = begins
        self.heard = heard
        self._find = find
        self._owns_memory = owns_memory

    @cached_property
    def upstreams(self) -> Mapping[str, Upstream]:
        """All upstreams, by name.

        :raises InvalidConfig: naming every problem of the configuration.
        """
        return self._find()

    @cached_property
    def upstream(self) -> Upstream:
        """The upstream that is meant.

        :raises CommandFailed: when there is no such upstream, or none that can be used from here.
        """
        with _naming_one_problem():
            name = self.name
        return self.usable(name)

    @property
    def api(self) -> UpstreamAPI:
        """What changes the upstream that is meant."""
        return UpstreamAPI(self.upstream)

    @property
    def command(self) -> str:
        """The command without its verb, as it would be typed."""
        return str(self.options.prog).rpartition(" ")[0]

    @property
    def chosen(self) -> list[str]:
        """The name of the upstream that is meant, or those of all; one that may begin where there is none yet.

        :raises CommandFailed: when there is none, and none may begin; for a configuration that is wrong.
        """
        with _naming_one_problem():
            is_one = self.options.upstream is not None or (self._may_begin and not list(self.upstreams))
            return [self.name] if is_one else self.names()

    @property
    def _may_begin(self) -> bool:
        return self.begins and isinstance(self.upstreams, StoredUpstreams)

    def usable(self, name: str) -> Upstream:
        """The upstream of that name.

        :raises CommandFailed: when it cannot be used from here; for a configuration that is wrong.
        """
        with _naming_one_problem():
            upstream = self.upstreams[name]
        if upstream.store.clock_id == "process" and not self._owns_memory:
            raise CommandFailed(
                f"the store of upstream {name} is {MEMORY}, in the memory of one process: no other can see it"
            )
        return upstream

    @property
    def name(self) -> str:
        """The name of the upstream that is meant.

        :raises InvalidConfig: naming every problem of the configuration.
        :raises CommandFailed: when there is no such upstream.
        """
        given = self.options.upstream
        if given is not None and self._may_begin:
            return str(given)
        known = [] if self._may_begin and not list(self.upstreams) else self.names()
        if given is None:
            return _default(known)
        if given not in known:
            raise CommandFailed(f"there is no upstream {given!r}; upstreams: {listed(known)}")
        return str(given)

    def names(self) -> list[str]:
        """The names of all upstreams; there is one at least.

        :raises InvalidConfig: naming every problem of the configuration.
        """
        if isinstance(self.upstreams, StoredUpstreams):
            self.upstreams.require_store()
        known = list(self.upstreams)
        if not known:
            raise CommandFailed("there are no upstreams yet")
        return known


@contextlib.contextmanager
def _naming_one_problem() -> Iterator[None]:
    """A context for those who need a configuration that is right: one line says what is wrong with it."""
    try:
        yield
    except InvalidConfig as error:
        more = len(error.problems) - 1
        rest = f" (and {more} more: the verb check names them all)" if more else ""
        raise CommandFailed(f"{error.problems[0]}{rest}") from None


def _default(known: list[str]) -> str:
    if "default" in known or not known:
        return "default"
    if len(known) == 1:
        return str(known[0])
    raise CommandFailed(f"no upstream is named default: choose one with --upstream ({listed(known)})")


def strerror(error: OSError) -> str:
    """What the system says, with the file's name where there is one."""
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if isinstance(error.filename, str | bytes) else what
