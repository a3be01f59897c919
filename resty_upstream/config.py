"""Upstreams by name, as code, a mapping or a file configures them."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from resty_upstream.errors import InvalidConfig, Problem, Problems, UpstreamNotFound
from resty_upstream.model import identifier, shown_value
from resty_upstream.sticky import Signer, problem_of
from resty_upstream.stores import Store, open_store
from resty_upstream.stores.places import default_url
from resty_upstream.upstream import Upstream

OPTIONS: Final = ("store", "pools", "total_timeout", "last_resort", "trusted_proxies", "cookie_secret")
"""What an upstream is configured with: the arguments of :class:`~resty_upstream.Upstream`."""


class Upstreams(Mapping[str, Upstream]):
    """The upstreams of an application, by name.

    ::

        Upstreams(Upstream("sqlite:///run/myapp/upstreams.db", pools={...}))  # the one named default
        Upstreams({"default": {"store": "sqlite:///run/myapp/upstreams.db", "pools": {...}}})
        Upstreams("upstreams.toml")  # or .json

    :param given: an :class:`~resty_upstream.Upstream`; a mapping by name, each an ``Upstream`` or a mapping of
        ``store``, ``pools``, ``total_timeout``, ``last_resort``, ``trusted_proxies`` and ``cookie_secret``; or the
        path of a file that holds such a mapping, in which the names are its tables. Upstreams that name the same
        store share one store object.
    :param application: what the store of an upstream that names none is named after, so that two applications of
        one user do not meet; the path of the file, where there is one.
    :raises InvalidConfig: naming every problem by its path. Nothing is opened before it is used.

    An unknown name is an :class:`~resty_upstream.UpstreamNotFound`, a ``KeyError`` that says which there are.
    """

    def __init__(
        self, given: Upstream | Mapping[str, Any] | str | os.PathLike[str], *, application: str = ""
    ) -> None:
        self._stores: dict[str, Store] = {}
        self._upstreams = self._find(given, application)
        self._replicas = tuple(upstream.replica for upstream in self._upstreams.values())

    def _find(
        self, given: Upstream | Mapping[str, Any] | str | os.PathLike[str], application: str
    ) -> dict[str, Upstream]:
        if isinstance(given, Upstream):
            return {"default": given}
        if isinstance(given, str | os.PathLike):
            path = os.fspath(given)
            return self._read(load(path), f"{path}: ", application or os.path.abspath(path))
        return self._read(given, "upstreams.", application)

    def _read(self, given: object, place: str, application: str) -> dict[str, Upstream]:
        if not isinstance(given, Mapping):
            what = f"{place.rstrip('.: ')} must be a mapping by name, not {type(given).__name__}"
            raise InvalidConfig(Problem(what, "structure"))
        made = {}
        with Problems() as problems:
            for key, options in given.items():
                with problems.noted():
                    name = identifier(key, "the name of an upstream")
                    if name in made:
                        raise InvalidConfig(Problem(f"{place}{name} is given twice", "id"))
                    made[name] = self._make(name, options, f"{place}{name}", application)
        return made

    def _make(self, name: str, options: object, path: str, application: str) -> Upstream:
        if isinstance(options, Upstream):
            return options
        if not isinstance(options, Mapping):
            what = f"{path} must be an Upstream or a mapping of {', '.join(OPTIONS)}"
            raise InvalidConfig(Problem(f"{what}, not {shown_value(options)}", "structure"))
        try:
            return make_upstream(name, options, self._stores, application)
        except InvalidConfig as error:
            raise error.below(f"{path}.") from None

    def __getitem__(self, name: str) -> Upstream:
        try:
            return self._upstreams[name]
        except KeyError:
            known = ", ".join(map(repr, self._upstreams)) or "none"
            raise UpstreamNotFound(f"there is no upstream {name!r}; configured: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._upstreams)

    def __len__(self) -> int:
        return len(self._upstreams)

    def __repr__(self) -> str:
        return f"<Upstreams {', '.join(self._upstreams)}>"

    @property
    def ask_visitors(self) -> bool:
        """Whether any pool goes by who makes a request, by its key or its session; most do not.

        As far as this process knows: a pool that begins to do so counts from the request after the first one.
        """
        for replica in self._replicas:  # noqa: SIM110 - runs for each request, where any() costs a call
            if replica.asks_visitors:
                return True
        return False

    def serve(self) -> None:
        """Told by a web worker at its first request: hosts are checked from here on, where any is to be."""
        for upstream in self._upstreams.values():
            upstream.serve()

    def require_signers(self) -> None:
        """So that what is missing for sticky sessions is said when an application starts, and not by its log.

        :raises InvalidConfig: naming each pool that is declared sticky without anything to sign with.
        """
        with Problems() as problems:
            for name, upstream in self._upstreams.items():
                problem = None if upstream.signing.is_possible else problem_of(upstream.replica.declared or ())
                if problem is not None:
                    with problems.noted():
                        raise InvalidConfig(problem).below(f"upstreams.{name}.")

    def open(self) -> None:
        """Open the stores now, and not at the first request; what is declared is stored.

        :raises StoreUnsafe: when others could change a store. No other trouble with one is an error here or later:
            requests are served from what is declared.
        """
        for upstream in self._upstreams.values():
            upstream.open()

    def close(self) -> None:
        """Write what waits to be written, and close the stores. Use opens them again."""
        for upstream in self._upstreams.values():
            upstream.close()


def make_upstream(
    name: str,
    options: Mapping[Any, Any],
    stores: dict[str, Store],
    application: str = "",
    signer: Signer | None = None,
) -> Upstream:
    """The upstream that ``options`` describe.

    :param stores: stores by URL, to be shared with other upstreams; a new one is added.
    :param application: what the store is named after when the options name none.
    :param signer: what signs cookies instead of itsdangerous.
    :raises InvalidConfig: naming every problem by its path below the upstream.
    """
    given = {option: options[option] for option in OPTIONS[1:] if option in options}
    with Problems() as problems:
        for option in options:
            if option not in OPTIONS:
                with problems.noted():
                    raise InvalidConfig(Problem.unknown_option(str(option), option, OPTIONS))
        store: Store | str = "memory://"  # so that the rest is looked at, too
        with problems.noted():
            store = _store(options.get("store"), stores, application)
        with problems.noted():
            upstream = Upstream(store, id=name, signer=signer, **given)
    return upstream


def _store(given: Any, stores: dict[str, Store], application: str) -> Store:
    if given is None:
        if not application:
            what = "store must be given, as 'sqlite:///run/myapp/upstreams.db'"
            raise InvalidConfig(Problem(what, "missing"))
        given = default_url(application)
    if not isinstance(given, str):
        return given  # type: ignore[no-any-return]  # Upstream looks at it
    if given not in stores:
        stores[given] = open_store(given)
    return stores[given]


def load(path: str) -> Any:
    """What a TOML or JSON file holds.

    :raises InvalidConfig: naming the file and, where the file is not what its name says, the place in it.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".toml", ".json"):
        raise InvalidConfig(Problem(f"{path}: the name of the file must end in .toml or .json", "structure"))
    return parse(read_file(path), kind, path)


def read_file(path: str) -> bytes:
    """What a regular file holds; others might never end.

    :raises InvalidConfig: naming the file.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file.read()
            problem = "it is not a regular file"
    except OSError as error:
        problem = error.strerror or str(error)
    except ValueError as error:  # a NUL in the path
        problem = str(error)
    raise InvalidConfig(Problem(f"{path}: {problem}", "structure"))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for somebody who writes


def parse(data: bytes, kind: str, place: str) -> Any:
    """What ``data`` says, as TOML where ``kind`` is ``.toml``, else as JSON.

    :raises InvalidConfig: naming ``place``, and where in it.
    """
    try:
        return tomllib.loads(data.decode()) if kind == ".toml" else msgspec.json.decode(data)
    except RecursionError:
        problem = "it is nested too deeply"
    except ValueError as error:
        problem = str(error)
    raise InvalidConfig(Problem(f"{place}: {problem}", "structure"))
