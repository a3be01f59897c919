"""Django's Redis cache over the hosts of an upstream.

::

    CACHES = {
        "default": {
            "BACKEND": "resty_upstream.contrib.django.cache.RedisCache",
            "LOCATION": "upstream://cache/1",  # UPSTREAMS["cache"], database 1
            "OPTIONS": {"username": "web", "password": "…"},
        }
    }

Each connection chooses its host when it is made, and another one when that host is gone.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from django.core.cache.backends import redis as stock
from django.core.exceptions import ImproperlyConfigured
from redis.connection import parse_url

from resty_upstream import Upstream, UpstreamNotFound
from resty_upstream.clients.redis import UpstreamConnectionPool, check_options
from resty_upstream.contrib.django.conf import aliases, get_upstream

__all__ = ["RedisCache", "RedisCacheClient"]

_LIKE: Final = "LOCATION must be like 'upstream://cache' or 'upstream://cache/1', with a name that UPSTREAMS has"
_OF_DJANGO: Final = ("serializer", "pool_class")


class Location(NamedTuple):
    """What a ``LOCATION`` says."""

    alias: str
    """Of the upstream, in the setting ``UPSTREAMS``."""
    options: dict[str, Any]
    """Of connections: ``db``, ``username``, ``password``, and what stands behind the ``?``."""

    @classmethod
    def parse(cls, given: object) -> Location:
        """What ``upstream://[username:password@]name[/db][?option=value&…]`` says.

        :raises ImproperlyConfigured: saying what is wrong, without the password.
        """
        if not isinstance(given, str):
            raise ImproperlyConfigured(f"{_LIKE}; not {type(given).__name__}")
        try:
            parts = urlsplit(given.strip())
            port = parts.port
        except ValueError as error:
            raise ImproperlyConfigured(f"{_LIKE}: {error}") from None
        alias = unquote(parts.netloc.rpartition("@")[2])
        shown = f"{parts.scheme}://{alias}{parts.path}" if parts.scheme else "one without a scheme"
        if parts.scheme != "upstream" or not alias or port is not None:
            raise ImproperlyConfigured(f"{_LIKE}; not {shown}")
        if not re.fullmatch(r"(/[0-9]*)?", parts.path):
            raise ImproperlyConfigured(f"LOCATION {shown}: the path must be the number of a database")
        try:
            url = parts._replace(scheme="redis").geturl()
            options = dict(parse_url(url))  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ImproperlyConfigured(f"LOCATION {shown}: {error}") from None
        del options["host"]
        if "ssl" in options:
            options["ssl"] = _as_bool(options["ssl"], shown)
        return cls(alias, options)

    def upstream(self) -> Upstream:
        """The upstream as the setting is now.

        :raises ImproperlyConfigured: when the setting has no such upstream.
        """
        try:
            return get_upstream(self.alias)
        except UpstreamNotFound as error:
            raise ImproperlyConfigured(f"LOCATION upstream://{self.alias}: {error.args[0]}") from error


def _as_bool(value: object, shown: str) -> bool:
    choices = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in choices:
        raise ImproperlyConfigured(f"LOCATION {shown}: ssl must be true or false, not {value!r}")
    return choices[str(value).lower()]


class RedisCacheClient(stock.RedisCacheClient):
    """Django's client, with a pool of connections to an upstream for each location.

    As with Django's own, all writes go to the first location, and where there are more, reads go to the others.
    """

    _servers: list[Any]
    _pool_options: dict[str, Any]

    def __init__(self, servers: list[str], pool_class: Any = None, **options: Any) -> None:
        super().__init__(servers, pool_class=pool_class or UpstreamConnectionPool, **options)
        self._locations = [Location.parse(server) for server in self._servers]
        self._pools_of: dict[int, tuple[Upstream, Any]] = {}

    def _get_connection_pool(self, write: bool) -> Any:
        index = self._get_connection_pool_index(write)  # type: ignore[attr-defined]  # which its stubs leave out
        location = self._locations[index]
        upstream = location.upstream()
        of, pool = self._pools_of.get(index, (None, None))
        if of is not upstream:  # the first time, and in tests that override the setting
            if pool is not None:
                pool.disconnect()
            pool = self._pool_class(upstream, **self._pool_options | location.options)  # type: ignore[attr-defined]
            self._pools_of[index] = upstream, pool
        return pool


class RedisCache(stock.RedisCache):
    """Django's ``RedisCache``, with the hosts of an upstream.

    ``LOCATION`` is ``upstream://name``, ``upstream://name/1`` with a database, or a list of several: the first one
    is written to, the others are read from. ``OPTIONS`` are those of Django's ``RedisCache`` and of
    :class:`resty_upstream.contrib.redis.UpstreamConnectionPool`.

    :raises ImproperlyConfigured: for a location that is not like this, a name that the setting ``UPSTREAMS`` does
        not have, or an option that the upstream decides.
    """

    _class: type[stock.RedisCacheClient]
    _servers: Any
    _options: dict[str, Any]

    def __init__(self, server: str | list[str], params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self._class = RedisCacheClient
        if not self._servers:
            raise ImproperlyConfigured(f"{_LIKE}; not {self._servers!r}")
        for location in [Location.parse(server) for server in self._servers]:
            if location.alias not in aliases():
                location.upstream()  # raises, naming those that there are
            self._check_options(location)

    def _check_options(self, location: Location) -> None:
        options = {name: value for name, value in self._options.items() if name not in _OF_DJANGO}
        try:
            check_options(options | location.options)
        except TypeError as error:
            raise ImproperlyConfigured(f"the cache at upstream://{location.alias}: {error}") from None
