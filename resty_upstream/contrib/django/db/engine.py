"""What the engines share: the upstream of a database, and hosts that can be read only."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property

from resty_upstream import InvalidConfig, Upstream, UpstreamNotFound
from resty_upstream.contrib.django.conf import aliases, get_upstream

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.client import BaseDatabaseClient
else:
    BaseDatabaseWrapper = BaseDatabaseClient = object


class UpstreamDatabase(BaseDatabaseWrapper):
    """To be inherited from before one of Django's ``DatabaseWrapper``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.avoided: set[tuple[str, str]] = set()
        """The hosts, by pool, that are not connected to until the request is over."""

    def find_upstream(self) -> Upstream:
        """The upstream that ``OPTIONS`` names.

        :raises ImproperlyConfigured: naming what is wrong with it, by its path.
        """
        name = self.settings_dict["OPTIONS"].get("upstream")
        path = f"DATABASES[{self.alias!r}]['OPTIONS']['upstream']"
        try:
            if isinstance(name, str):
                return get_upstream(name)
            known = ", ".join(map(repr, aliases())) or "nothing"
        except (InvalidConfig, UpstreamNotFound) as error:
            raise ImproperlyConfigured(f"{path}: {error}") from error
        what = "is missing" if name is None else f"must be text, not {type(name).__name__}"
        raise ImproperlyConfigured(f"{path} {what}: name one of UPSTREAMS, which has {known}")

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        """What makes the driver's errors Django's."""
        return _Errors(self)

    def is_by_read_only_host(self, error: BaseException) -> bool:
        """Whether it is an error because the host of the current connection can be read only."""
        raise NotImplementedError

    def spoil(self, connection: Any) -> None:
        """See to it that no pool takes this connection back."""

    def leave_host(self) -> None:
        """Close the connection, and go to other hosts for the rest of the request."""
        connection = self.connection
        self.avoided.add((connection.upstream_info.pool.id, connection.upstream_info.host.id))
        self.spoil(connection)
        self.close()

    def close_if_unusable_or_obsolete(self) -> None:
        """Called before and after each request."""
        self.avoided.clear()
        super().close_if_unusable_or_obsolete()


class _Errors(DatabaseErrorWrapper):
    """Looks at errors on their way to being Django's."""

    def __init__(self, database: UpstreamDatabase) -> None:
        super().__init__(database)
        self._database = database

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        database = self._database
        if exc_value is not None and database.connection is not None and database.is_by_read_only_host(exc_value):
            database.leave_host()
        super().__exit__(exc_type, exc_value, traceback)


class UpstreamClient(BaseDatabaseClient):
    """``manage.py dbshell``, at a host that works. To be inherited from before one of Django's clients."""

    def place_of(self, connection: Any) -> dict[str, str]:
        """The settings that say where a connection of the driver went."""
        raise NotImplementedError

    def runshell(self, parameters: Iterable[str]) -> None:
        """Run it."""
        database = self.connection
        database.ensure_connection()
        place = self.place_of(database.connection)
        database.close()
        settings = database.settings_dict
        database.settings_dict = {**settings, **place}
        try:
            super().runshell(parameters)
        finally:
            database.settings_dict = settings
