"""The engine, where Django looks for it."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType, TracebackType
from typing import Any, Final

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base
from django.db.backends.postgresql.client import DatabaseClient as PostgresClient
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property

from resty_upstream import InvalidConfig, Upstream, UpstreamNotFound
from resty_upstream.clients.psycopg import UpstreamConnection
from resty_upstream.contrib.django.conf import aliases, get_upstream

__all__ = ["DatabaseClient", "DatabaseWrapper"]

READ_ONLY: Final = "25006"


class _Database(ModuleType):
    """psycopg, but for how it connects."""

    def __init__(self) -> None:
        super().__init__(psycopg.__name__)
        self.__dict__.update(vars(psycopg))
        self.connect = UpstreamConnection.connect


class DatabaseClient(PostgresClient):
    """``manage.py dbshell``: psql, at a host that works."""

    def runshell(self, parameters: Iterable[str]) -> None:
        """Run it."""
        wrapper = self.connection
        wrapper.ensure_connection()
        info = wrapper.connection.info
        place = {"HOST": info.host, "PORT": str(info.port), "HOSTADDR": info.hostaddr}
        wrapper.close()
        settings = wrapper.settings_dict
        wrapper.settings_dict = {**settings, **place}
        try:
            super().runshell(parameters)
        finally:
            wrapper.settings_dict = settings

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        """As Django's; psql knows the address of the host, and the name that its certificate has."""
        arguments, environment = super().settings_to_cmd_args_env(settings_dict, parameters)
        if address := settings_dict.get("HOSTADDR"):
            environment = {**(environment or {}), "PGHOSTADDR": address}
        return arguments, environment


class _Errors(DatabaseErrorWrapper):
    """Tells the engine of errors, on their way to being Django's."""

    def __init__(self, engine: DatabaseWrapper) -> None:
        super().__init__(engine)
        self._engine = engine

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if getattr(exc_value, "sqlstate", None) == READ_ONLY:
            self._engine.leave_standby()
        super().__exit__(exc_type, exc_value, traceback)


class DatabaseWrapper(base.DatabaseWrapper):
    """See :mod:`resty_upstream.contrib.django.db.postgresql`."""

    Database = _Database()
    client_class = DatabaseClient

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        options = dict(settings_dict["OPTIONS"])
        if options.get("pool"):
            given = {} if options["pool"] is True else options["pool"]
            options["pool"] = {"connection_class": UpstreamConnection, **given}
        super().__init__({**settings_dict, "OPTIONS": options}, *args, **kwargs)
        self._avoided: set[tuple[str, str]] = set()

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        """What makes errors of psycopg Django's."""
        return _Errors(self)

    def get_connection_params(self) -> dict[str, Any]:
        """What ``UpstreamConnection.connect`` takes.

        :raises ImproperlyConfigured: naming what is wrong with ``OPTIONS["upstream"]``.
        """
        params: dict[str, Any] = super().get_connection_params()
        params["upstream"] = self._find_upstream(params.get("upstream"))
        if not self.settings_dict["OPTIONS"].get("pool"):  # whose connections are for all threads
            params["avoid"] = self._avoided
        return params

    def _find_upstream(self, name: object) -> Upstream:
        path = f"DATABASES[{self.alias!r}]['OPTIONS']['upstream']"
        if not isinstance(name, str):
            known = ", ".join(map(repr, aliases())) or "nothing"
            what = "is missing" if name is None else f"must be text, not {type(name).__name__}"
            raise ImproperlyConfigured(f"{path} {what}: name one of UPSTREAMS, which has {known}")
        try:
            return get_upstream(name)
        except (InvalidConfig, UpstreamNotFound) as error:
            raise ImproperlyConfigured(f"{path}: {error}") from error

    def leave_standby(self) -> None:
        """A write met a host that is to be read only: close the connection, and go elsewhere in this request.

        Not where it is the application that made its transaction read-only.
        """
        connection = self.connection
        if connection is None or connection.closed or not _is_read_only(connection):
            return
        info = connection.upstream_info
        self._avoided.add((info.pool.id, info.host.id))
        connection.pgconn.finish()  # a pool that gets it back drops it
        self.close()

    def close_if_unusable_or_obsolete(self) -> None:
        """Called before and after each request."""
        self._avoided.clear()
        super().close_if_unusable_or_obsolete()


def _is_read_only(connection: psycopg.Connection[Any]) -> bool:
    # What PostgreSQL reports since 14; None before.
    reported = [
        connection.info.parameter_status(name) for name in ("in_hot_standby", "default_transaction_read_only")
    ]
    return reported != ["off", "off"]
