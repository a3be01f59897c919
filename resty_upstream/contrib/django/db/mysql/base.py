"""The engine, where Django looks for it."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.mysql import base, client

from resty_upstream.clients.mysql import connect, is_read_only
from resty_upstream.contrib.django.db.engine import UpstreamClient, UpstreamDatabase

__all__ = ["DatabaseClient", "DatabaseWrapper"]


class DatabaseClient(UpstreamClient, client.DatabaseClient):
    """The mysql command."""

    def place_of(self, connection: Any) -> dict[str, str]:
        """The host as in its pool."""
        host = connection.upstream_info.host
        return {"HOST": host.unix_path or host.host, "PORT": "" if host.unix_path else str(host.port)}


class DatabaseWrapper(UpstreamDatabase, base.DatabaseWrapper):
    """See :mod:`resty_upstream.contrib.django.db.mysql`."""

    client_class = DatabaseClient

    def get_connection_params(self) -> dict[str, Any]:
        """What the driver takes, and the upstream.

        :raises ImproperlyConfigured: naming what is wrong.
        """
        upstream = self.find_upstream()
        for name in ("HOST", "PORT"):
            if self.settings_dict[name]:
                what = f"DATABASES[{self.alias!r}][{name!r}] must be left out"
                raise ImproperlyConfigured(f"{what}: the hosts are those of the upstream {upstream.id!r}")
        return {**super().get_connection_params(), "upstream": upstream}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection to a host of the upstream, to the next where one fails."""
        params = dict(conn_params)
        upstream = params.pop("upstream")
        return connect(upstream, self.Database, super().get_new_connection, params, self.avoided)

    def is_by_read_only_host(self, error: BaseException) -> bool:
        """And not because the application made its transaction read-only."""
        return is_read_only(error)
