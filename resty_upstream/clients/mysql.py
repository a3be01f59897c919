"""MySQL and MariaDB, by mysqlclient or PyMySQL: connecting to the next server where one fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, Final

from resty_upstream import Host, NoHostAvailable, RequestContext, Upstream
from resty_upstream.attempts import BadAnswer, Excused, classify

_UNREACHED: Final = frozenset({2002, 2003})
# Unknown host, gone, lost, lost in the handshake; too many connections, shutting down, bad handshake, host blocked
# for its errors, host not allowed; TLS.
_HOST_FAILED: Final = _UNREACHED | {2005, 2006, 2013, 2055, 1040, 1053, 1043, 1129, 1130, 2026}
_READ_ONLY_OPTION: Final = 1290  # or another option
_READ_ONLY_MODE: Final = 1836


def connect(
    upstream: Upstream | RequestContext,
    driver: Any,
    dial: Callable[[dict[str, Any]], Any],
    params: dict[str, Any],
    avoid: Collection[tuple[str, str]] = (),
) -> Any:
    """A connection of the driver, whose ``upstream_info`` says where it went.

    :param driver: the module: ``MySQLdb``, or ``pymysql`` in its place.
    :param dial: what connects with the parameters that it is given, those of the host among them.
    :param avoid: hosts that are passed over, by the ids of pool and host.
    :raises OperationalError: the driver's, where no host is left, with
        :class:`~resty_upstream.NoHostAvailable` as its cause; or for what the caller did wrong.
    """
    try:
        for attempt in upstream.attempts():
            with attempt as host:
                if (attempt.pool.id, host.id) in avoid:
                    raise Excused(ConnectionError("not wanted here"), next_host=True)
                connection = _dial(driver, dial, {**params, **_place(host)}, attempt.timeout_s)
                connection.upstream_info = attempt.info
    except NoHostAvailable as error:
        raise driver.OperationalError(2003, str(error)) from error
    return connection


def is_read_only(error: BaseException) -> bool:
    """Whether a server says that it is read-only: not that a transaction is, which its client made so."""
    number, text = _number(error), str(error)
    return number == _READ_ONLY_MODE or (
        number == _READ_ONLY_OPTION and ("read-only" in text or "read_only" in text)
    )


def _dial(driver: Any, dial: Callable[[dict[str, Any]], Any], params: dict[str, Any], timeout_s: float) -> Any:
    waits: dict[str, Any] = {"connect_timeout": math.ceil(timeout_s)}
    is_pymysql = driver.__name__ == "pymysql"
    if is_pymysql:  # whose own `connect_timeout` ends where the server accepts
        waits = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
    try:
        connection = dial({**params, **waits})
    except driver.Error as error:
        if _number(error) in _HOST_FAILED and classify(error).reason.startswith("unclassified"):
            raise BadAnswer(str(error), answered=_number(error) not in _UNREACHED) from error
        raise
    if is_pymysql:
        connection._read_timeout = params.get("read_timeout")
    return connection


def _place(host: Host) -> dict[str, Any]:
    if host.unix_path is not None:
        return {"unix_socket": host.unix_path}
    return {"host": host.host, "port": host.port}


def _number(error: BaseException) -> object:
    """MySQL's number of an error; None where there is none."""
    return error.args[0] if error.args else None
