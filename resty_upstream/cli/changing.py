"""The verbs that change pools and hosts; each prints one line that says what is so now."""

from __future__ import annotations

import os
import pwd
import time
from typing import Any, Final

from resty_upstream.cli import arguments
from resty_upstream.cli.call import Call, Verb, WrongUsage, option
from resty_upstream.cli.text import counted, shown
from resty_upstream.model import Host
from resty_upstream.moments import parse_until, shown_moment

Options = dict[str, Any]


def user_name() -> str:
    """The user of this process, for the history: as the system has it, since anybody can set ``$LOGNAME``."""
    try:
        return shown(pwd.getpwuid(os.getuid()).pw_name)[:200]
    except (KeyError, OSError):  # an id without a name
        return f"user {os.getuid()}"


def _say(call: Call, what: str, now: str, *, before: bool = False) -> None:
    """Print what is so now, or that it was so ``before``.

    :param now: ``is down``, ``has weight 5``.
    """
    verb, _, rest = now.partition(" ")
    past = {"is": "was", "has": "had"}[verb]
    call.screen.line(shown(f"{what} {past} {rest} already" if before else f"{what} {now}"))


def _pool_before(call: Call) -> Options:
    """The pool as it was; nothing where there is none, which the change then says."""
    return call.upstream.get_pools().get(call.options.pool, {})


def _host_before(call: Call) -> Options:
    host: Options = _pool_before(call).get("hosts", {}).get(call.options.host, {})
    return host


def _pool(call: Call) -> str:
    return f"pool {call.options.pool}"


def _host(call: Call) -> str:
    return f"host {call.options.pool}/{call.options.host}"


# ── pools ─────────────────────────────────────────────────────────────────────────────────────

_POOL_OPTIONS: Final = (
    "method",
    "timeout",
    "priority",
    "max_fails",
    "failed_timeout",
    "failed_timeout_max",
    "healthcheck",
    "slow_start",
)


def create_pool(call: Call) -> None:
    """Add a pool."""
    given = {name: value for name in _POOL_OPTIONS if (value := getattr(call.options, name)) is not None}
    call.api.create_pool(call.options.pool, **given)
    _say(call, _pool(call), "is created, without hosts")


def remove_pool(call: Call) -> None:
    """Remove a pool, and say how many hosts went with it."""
    hosts = counted(len(_pool_before(call).get("hosts", {})), "host")
    call.api.remove_pool(call.options.pool)
    _say(call, _pool(call), f"is removed, with {hosts}")


def set_method(call: Call) -> None:
    """Set the method of a pool."""
    before = _pool_before(call).get("method") == call.options.new_method
    call.api.set_method(call.options.pool, call.options.new_method)
    _say(call, _pool(call), f"has method {call.options.new_method}", before=before)


def set_priority(call: Call) -> None:
    """Set the priority of a pool."""
    before = _pool_before(call).get("priority") == call.options.new_priority
    call.api.set_priority(call.options.pool, call.options.new_priority)
    _say(call, _pool(call), f"has priority {call.options.new_priority}", before=before)


def down_pool(call: Call) -> None:
    """Take a pool out of use."""
    before = _pool_before(call).get("up") is False
    call.api.down_pool(call.options.pool)
    _say(call, _pool(call), "is down", before=before)


def up_pool(call: Call) -> None:
    """Put a pool back into use."""
    before = _pool_before(call).get("up") is True
    call.api.up_pool(call.options.pool)
    _say(call, _pool(call), "is up", before=before)


# ── hosts ─────────────────────────────────────────────────────────────────────────────────────


def add_host(call: Call) -> None:
    """Add a host, and say which id it has."""
    host, port = _address(call)
    weight = call.options.weight
    host_id = call.api.add_host(call.options.pool, host=host, port=port, weight=weight, id=call.options.id)
    address = Host(id=host_id, host=host, port=port).address
    _say(call, f"host {call.options.pool}/{host_id}", f"is added: {address}, weight {weight}")


def _address(call: Call) -> tuple[str, int]:
    host, port = call.options.address
    if port is not None and call.options.port is not None:
        raise WrongUsage(f"the address has a port, and --port is another (see {call.options.prog} --help)")
    return host, port or call.options.port or 80


def remove_host(call: Call) -> None:
    """Remove a host."""
    call.api.remove_host(call.options.pool, call.options.host)
    _say(call, _host(call), "is removed")


def set_weight(call: Call) -> None:
    """Set the weight of a host."""
    host, until = _host_before(call), _until(call)
    before = host.get("weight") == call.options.new_weight and "weight_then" not in host
    call.api.set_weight(
        call.options.pool,
        call.options.host,
        call.options.new_weight,
        reason=call.options.reason,
        by=user_name(),
        until=until,
    )
    _say_until(call, f"has weight {call.options.new_weight}", until, before=before)


def down_host(call: Call) -> None:
    """Take a host down by hand."""
    host, until = _host_before(call), _until(call)
    before = bool(host) and not host["up"] and not host["lastfail"] and "until" not in host  # by hand
    call.api.down_host(
        call.options.pool, call.options.host, reason=call.options.reason, by=user_name(), until=until
    )
    _say_until(call, "is down", until, before=before)


def _until(call: Call) -> float | None:
    """When it is to be over, in epoch seconds; None for never."""
    until, lasting = call.options.until, call.options.lasting
    if until is not None and lasting is not None:
        raise WrongUsage(f"--until and --for say the same: give one of them (see {call.options.prog} --help)")
    return parse_until(until if lasting is None else lasting, "until", time.time()) or None


def _say_until(call: Call, now: str, until: float | None, *, before: bool) -> None:
    """As :func:`_say`, of a host; what has an end is new."""
    if until is None:
        _say(call, _host(call), now, before=before)
    else:
        _say(call, _host(call), f"{now} until {shown_moment(until, time.time())}")


def up_host(call: Call) -> None:
    """Put a host back."""
    host = _host_before(call)
    before = bool(host) and host["up"] and not host["failcount"]
    call.api.up_host(call.options.pool, call.options.host, reason=call.options.reason, by=user_name())
    _say(call, _host(call), "is up", before=before)


# ── how they are called ───────────────────────────────────────────────────────────────────────

# What is given by position has a name that no option has: Django's call_command takes options by name.
POOL: Final = option("pool", metavar="POOL", type=arguments.name, help="the id of the pool")
REASON: Final = option(
    "--reason",
    metavar="TEXT",
    type=arguments.reason,
    default="",
    help="why, for those who look at it; your user name is kept with it",
)
ENDS: Final = (
    option(
        "--until",
        metavar="TIME",
        type=arguments.moment,
        help="when it is over: the next 15:00, or 2026-11-27T15:00, in local time",
    ),
    option(
        "--for",
        dest="lasting",
        metavar="DURATION",
        type=arguments.lasting,
        help="how long it lasts, instead: 30m, 2h, or seconds",
    ),
)
HOST: Final = option("host", metavar="HOST", type=arguments.name, help="the id of the host in the pool")

VERBS: Final = (
    Verb(
        "create-pool",
        create_pool,
        "add a pool without hosts",
        "Add a pool without hosts.",
        (
            option("pool", metavar="POOL", type=arguments.name, help="the id of the new pool"),
            option(
                "--method",
                type=arguments.method,
                metavar="METHOD",
                help="how hosts are chosen: round_robin (the default), random, hash, least_conn or p2c",
            ),
            option(
                "--timeout",
                type=arguments.timeout,
                metavar="MS",
                help="how long one attempt at one host may take: milliseconds, or 250ms, 2s (default 2000)",
            ),
            option(
                "--priority",
                type=arguments.priority,
                metavar="N",
                help="pools with lower numbers are tried first (default 0)",
            ),
            option(
                "--max-fails",
                type=arguments.max_fails,
                metavar="N",
                help="so many failures in a row take a host down; 0: never (default 3)",
            ),
            option(
                "--failed-timeout",
                type=arguments.failed_timeout,
                metavar="S",
                help="how long a failed host is left alone: seconds, or 2s, 1m (default 10)",
            ),
            option(
                "--failed-timeout-max",
                type=arguments.failed_timeout_max,
                metavar="S",
                help="up to which that is doubled with each failed probe (default 60)",
            ),
            option(
                "--healthcheck",
                type=arguments.healthcheck,
                nargs="?",
                const=True,
                metavar="PATH",
                help="check hosts, by asking for / or for that path",
            ),
            option(
                "--slow-start",
                type=arguments.slow_start,
                metavar="S",
                help="how long a host that comes back gets less than its share: seconds, or 30s (default 0)",
            ),
        ),
        ("reserve --priority 10 --timeout 250ms", "primary --healthcheck /health --slow-start 30s"),
        begins=True,
    ),
    Verb(
        "remove-pool",
        remove_pool,
        "remove a pool and its hosts",
        "Remove a pool and its hosts, without asking.",
        (POOL,),
        ("reserve",),
    ),
    Verb(
        "set-method",
        set_method,
        "set the balancing method of a pool",
        "Set how the hosts of a pool are chosen: round_robin, random, hash (the same key, the same host), "
        "least_conn (the least requests in flight) or p2c (the less loaded of two).",
        (
            POOL,
            option("new_method", type=arguments.method, metavar="METHOD", help="the name of the method"),
        ),
        ("primary hash",),
    ),
    Verb(
        "set-priority",
        set_priority,
        "set the priority of a pool",
        "Set the priority of a pool: those with lower numbers are tried first.",
        (
            POOL,
            option("new_priority", type=arguments.priority, metavar="N", help="a whole number; may be negative"),
        ),
        ("reserve -1",),
    ),
    Verb(
        "down-pool",
        down_pool,
        "take a pool out of use",
        "Take a pool out of use; its hosts keep their state.",
        (POOL,),
        ("primary",),
    ),
    Verb(
        "up-pool",
        up_pool,
        "put a pool back into use",
        "Put a pool back into use.",
        (POOL,),
        ("primary",),
    ),
    Verb(
        "add-host",
        add_host,
        "add a host to a pool",
        "Add a host to a pool.\n\n"
        "While another host of the pool has a weight above 0, one of weight 0 is a spare: it gets nothing.",
        (
            POOL,
            option(
                "address",
                metavar="ADDRESS",
                type=arguments.address,
                help="10.0.0.3, 10.0.0.3:8001, [::1]:8001, name:8001 or unix:/path",
            ),
            option(
                "--port", metavar="N", type=arguments.port, help="the port, if not in the address (default 80)"
            ),
            option(
                "--weight",
                metavar="N",
                type=arguments.weight,
                default=0,
                help="its share of the pool's traffic, beside the weights of the others (default 0)",
            ),
            option(
                "--id",
                metavar="ID",
                type=arguments.name,
                help="its id (default: the number of hosts + 1, or the next that is free)",
            ),
        ),
        ("primary 10.0.0.3:8001 --weight 10 --id c",),
    ),
    Verb(
        "remove-host",
        remove_host,
        "remove a host from a pool",
        "Remove a host from a pool, without asking.",
        (POOL, HOST),
        ("primary c",),
    ),
    Verb(
        "set-weight",
        set_weight,
        "set the weight of a host; 0 drains it",
        "Set the weight of a host: its share of the pool's traffic, beside the weights of the others.\n\n"
        "0 drains it: no new request goes there while another host of the pool has a weight.\n\n"
        "With --until or --for the weight is then what it was, unless it was changed meanwhile.",
        (
            POOL,
            HOST,
            option("new_weight", metavar="N", type=arguments.weight, help="a whole number, 0 or more"),
            REASON,
            *ENDS,
        ),
        ("primary a 0", "primary a 0 --for 30m --reason 'new kernel'"),
    ),
    Verb(
        "down-host",
        down_host,
        "take a host down by hand",
        "Take a host down by hand: it gets no request until up-host puts it back, or the time that is given is "
        "there. Said again, what was said last counts.",
        (POOL, HOST, REASON, *ENDS),
        ("primary a --reason 'new kernel'", "primary a --until 15:00"),
    ),
    Verb(
        "up-host",
        up_host,
        "put a host back, whatever took it down",
        "Put a host back with a clean state, whether it failed or was taken down by hand.",
        (POOL, HOST, REASON),
        ("primary a",),
    ),
)
