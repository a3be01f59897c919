"""The engine, where Django looks for it."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

import psycopg
from django.db.backends.postgresql import base, client

from resty_upstream.clients.psycopg import UpstreamConnection
from resty_upstream.contrib.django.db.engine import UpstreamClient, UpstreamDatabase

__all__ = ["DatabaseClient", "DatabaseWrapper"]

READ_ONLY: Final = "25006"


class _Database(ModuleType):
    """psycopg, but for how it connects."""

    def __init__(self) -> None:
        super().__init__(psycopg.__name__)
        self.__dict__.update(vars(psycopg))
        self.connect = UpstreamConnection.connect


class DatabaseClient(UpstreamClient, client.DatabaseClient):
    """psql."""

    def place_of(self, connection: Any) -> dict[str, str]:
        """Its name as in its certificate, and its address."""
        info = connection.info
        return {"HOST": info.host, "PORT": str(info.port), "HOSTADDR": info.hostaddr}

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        """As Django's, with the address."""
        arguments, environment = super().settings_to_cmd_args_env(settings_dict, parameters)
        if address := settings_dict.get("HOSTADDR"):
            environment = {**(environment or {}), "PGHOSTADDR": address}
        return arguments, environment


class DatabaseWrapper(UpstreamDatabase, base.DatabaseWrapper):
    """See :mod:`resty_upstream.contrib.django.db.postgresql`."""

    Database = _Database()
    client_class = DatabaseClient

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        options = dict(settings_dict["OPTIONS"])
        if options.get("pool"):
            given = {} if options["pool"] is True else options["pool"]
            options["pool"] = {"connection_class": UpstreamConnection, **given}
        super().__init__({**settings_dict, "OPTIONS": options}, *args, **kwargs)

    def get_connection_params(self) -> dict[str, Any]:
        """What ``UpstreamConnection.connect`` takes."""
        params: dict[str, Any] = {**super().get_connection_params(), "upstream": self.find_upstream()}
        if not self.settings_dict["OPTIONS"].get("pool"):  # whose connections are for all threads
            params["avoid"] = self.avoided
        return params

    def is_by_read_only_host(self, error: BaseException) -> bool:
        """And not because the application made its transaction read-only."""
        if getattr(error, "sqlstate", None) != READ_ONLY or self.connection.closed:
            return False
        # What PostgreSQL reports since 14; None before.
        reported = ("in_hot_standby", "default_transaction_read_only")
        return any(self.connection.info.parameter_status(name) != "off" for name in reported)

    def spoil(self, connection: Any) -> None:
        """Not by its ``close``, which may return it."""
        connection.pgconn.finish()
