"""The verbs that show: ``list``, ``show`` and ``explain``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from resty_upstream.cli import arguments
from resty_upstream.cli.call import Call, CommandFailed, Verb, option
from resty_upstream.cli.look import Look, has_checks, look
from resty_upstream.cli.screen import BOLD, DIM, GREEN, RED, YELLOW, Cell, Column, Screen, table
from resty_upstream.cli.text import counted, duration, listed, shown
from resty_upstream.model import (
    HealthCheck,
    Host,
    Pool,
    changed_options,
    flat_options,
    plain_options,
    record_key,
    unit_of,
)
from resty_upstream.selection import HostReason, PoolReason
from resty_upstream.state import HostState, Status, done_by_hand, told_of_down, told_of_weight

JSON = option("--json", action="store_true", help="print JSON")


# ── list ──────────────────────────────────────────────────────────────────────────────────────


def list_pools(call: Call) -> None:
    """All pools and hosts."""
    seen = look(call.upstream)
    if call.options.json:
        call.screen.line(dumped({"upstream": call.upstream.id, **_look_as_json(seen)}))
    else:
        call.screen.lines(list_lines(call.screen, call.upstream.id, seen, call.command))


def list_lines(screen: Screen, name: str, seen: Look, command: str, *, only_notable: bool = False) -> list[str]:
    """What ``list`` prints.

    :param command: what is typed to use the verbs.
    :param only_notable: whether hosts are left out that are up and no more.
    """
    lines = screen.paragraph(f"upstream {shown(name)}: {shown(seen.explanation.summary)}", style=BOLD)
    for pool in seen.explanation.pools:
        hosts = [host for host in pool.hosts if not (only_notable and _is_plainly_up(host))]
        left_out = len(pool.hosts) - len(hosts)
        lines += ["", *pool_lines(screen, seen, pool, hosts)]
        lines += [f"  … {counted(left_out, 'host')} more, up"] * (left_out > 0)
    return lines + _nobody_checks(screen, seen, seen.pools, command)


def _nobody_checks(screen: Screen, seen: Look, pools: Iterable[Pool], command: str) -> list[str]:
    """That hosts of these pools are to be checked, and are not; nothing where all is well."""
    if seen.checks.running or not has_checks(pools):
        return []
    what = f"No process checks hosts now: start the application, or {command} run-checks"
    return ["", *screen.paragraph(what, style=YELLOW)]


_HOST_COLUMNS: Final = (
    Column("host", may_shrink=True),
    Column("address", may_shrink=True),
    Column("weight", right=True),
    Column("share", right=True),
    Column("state"),
)


def _is_plainly_up(host: HostReason) -> bool:
    return host.share > 0 and not host.state.failcount and not host.host.weight_end


def pool_lines(screen: Screen, seen: Look, pool: PoolReason, hosts: Sequence[HostReason]) -> list[str]:
    """A pool's heading, and a table of these hosts."""
    return [*heading(screen, pool), *host_lines(screen, seen, pool, hosts)]


def heading(screen: Screen, pool: PoolReason) -> list[str]:
    """What a pool is, in a line."""
    up = sum(host.up for host in pool.hosts)
    hosts = f"{up} of {counted(len(pool.hosts), 'host')} up" if pool.hosts else "no hosts"
    what = f"priority {pool.pool.priority}, {shown(pool.pool.method)}, {hosts}, {_standing(pool)}"
    return screen.paragraph(f"pool {shown(pool.pool.id)}: {what}", rest="  ", style=BOLD if pool.used else "")


def _standing(pool: PoolReason) -> str:
    """Whether a pool is used, in a few words."""
    if pool.used:
        return "used"
    if not pool.pool.up:
        return "down"
    return "in reserve" if any(host.up for host in pool.hosts) else "not used"


def host_lines(screen: Screen, seen: Look, pool: PoolReason, hosts: Sequence[HostReason]) -> list[str]:
    """A table of hosts; nothing where there are none."""
    declared = seen.declared_pool(pool.pool.id)
    weights = {host.id: host.weight for host in declared.hosts} if declared else {}
    rows = [
        [
            Cell(shown(host.host.id)),
            Cell(shown(host.host.address)),
            Cell(str(host.host.weight)),
            Cell(_share(host.share)),
            state_cell(seen, host, pool.pool, drained=weights.get(host.host.id, 0) > 0),
        ]
        for host in hosts
    ]
    return table(screen, _HOST_COLUMNS, rows) if rows else []


def _share(share: float) -> str:
    return "-" if not share else f"{share:.0%}" if share >= 0.005 else "<1%"


def state_cell(seen: Look, host: HostReason, pool: Pool, *, drained: bool) -> Cell:
    """What a host's record says, for people, and what its last check found.

    :param drained: whether a weight of 0 was set at run time.
    """
    cell = _state_cell(seen, host, pool, drained=drained)
    more = (shown(told_of_weight(host.host, seen.wall)), _checked(seen, host, pool))
    return cell._replace(text=", ".join(filter(None, (cell.text, *more))))


def _state_cell(seen: Look, host: HostReason, pool: Pool, *, drained: bool) -> Cell:
    state, now = host.state, seen.now
    if state.status is Status.MANUAL:
        return Cell(f"down {shown(told_of_down(state, seen.wall))}", YELLOW)
    if state.failed:
        left = seen.checks.running and pool.check_of(host.host)
        then = _by_checks(left, state) if left else _next_probe(state, now)
        return Cell(f"failed {_ago(state, now)}{_why(state)}, {then}", RED)
    if state.failcount:
        of_all = f"{state.failcount} of {counted(pool.max_fails, 'failure')}"
        return Cell(f"up, {of_all if pool.max_fails else counted(state.failcount, 'failure')}", GREEN)
    if not host.share:
        return Cell("drained" if drained else "spare", DIM)
    return Cell("up", GREEN)


def _by_checks(check: HealthCheck, state: HostState) -> str:
    return f"back after {counted(max(1, check.rise - state.good_checks), 'good check')}"


def _checked(seen: Look, host: HostReason, pool: Pool) -> str:
    """When a host was checked, and what was found; nothing where it is not to be checked."""
    if pool.check_of(host.host) is None:
        return ""
    last = seen.checks.last.get(record_key(pool.id, host.host.id))
    if last is None:
        return "not checked yet"
    found = {True: "", False: "failed, ", None: "unknown, "}[last.ok] + shown(last.reason)
    return f"checked {duration(max(0.0, seen.now - last.at))} ago: {found}"


def _ago(state: HostState, now: float) -> str:
    return f"{duration(now - state.failed_at)} ago"


def _why(state: HostState) -> str:
    return f" ({shown(state.reason)})" if state.reason else ""


def _next_probe(state: HostState, now: float) -> str:
    if state.due(now):
        return "probed by the next request"
    if state.status is Status.PROBING:
        return "being probed"
    return f"probed in {duration(math.ceil(state.due_at - now))}"


# ── show ──────────────────────────────────────────────────────────────────────────────────────


class _Origin(NamedTuple):
    """Where the value of an option comes from."""

    name: str
    value: Any
    origin: str
    """``default``, ``declared`` or ``run time``."""
    declared: Any
    """What the declaration says; None where there is none."""

    def __str__(self) -> str:
        if self.origin != "run time":
            return self.origin
        return "set at run time" + (f", declared as {_text(self.declared)}" if self.declared is not None else "")


_DEFAULTS: Final = flat_options(plain_options(Pool(id="default")))


def show_pool(call: Call) -> None:
    """One pool, with all its options."""
    seen = look(call.upstream)
    pool = find_pool(seen, call.options.pool)
    if call.options.json:
        call.screen.line(dumped(_shown_as_json(call.upstream.id, seen, pool)))
        return
    call.screen.lines(heading(call.screen, pool))
    call.screen.line()
    call.screen.lines(_option_lines(call.screen, seen, pool.pool))
    if pool.hosts:
        call.screen.lines(["", *host_lines(call.screen, seen, pool, pool.hosts)])
        call.screen.lines(_nobody_checks(call.screen, seen, [pool.pool], call.command))
    for number, sentence in enumerate(_host_origins(seen, pool.pool)):
        call.screen.lines([""] * (not number) + call.screen.paragraph(shown(sentence), "  ", "    "))


def find_pool(seen: Look, pool_id: str) -> PoolReason:
    """The pool of that id.

    :raises CommandFailed: naming those that there are.
    """
    for pool in seen.explanation.pools:
        if pool.pool.id == pool_id:
            return pool
    raise CommandFailed(f"there is no pool {pool_id!r}; pools: {listed(pool.id for pool in seen.pools)}")


_OPTION_COLUMNS: Final = (Column("option"), Column("value", may_shrink=True), Column("origin"))


def _option_lines(screen: Screen, seen: Look, pool: Pool) -> list[str]:
    rows = [
        [
            Cell(each.name),
            Cell(f"{_text(each.value)} {unit_of(each.name)}".rstrip()),
            Cell(str(each), YELLOW if each.origin == "run time" else DIM),
        ]
        for each in _origins(pool, seen.declared_pool(pool.id))
    ]
    return table(screen, _OPTION_COLUMNS, rows)


def _origins(pool: Pool, declared: Pool | None) -> Iterator[_Origin]:
    """Each option of a pool, and where its value comes from."""
    was = {} if declared is None else _shown_options(declared)
    now = _shown_options(pool)
    for name in now | was:
        yield _origin(name, now.get(name), was.get(name), _DEFAULTS.get(name))


def _shown_options(pool: Pool) -> dict[str, Any]:
    return flat_options(plain_options(pool, masked=True))


def _origin(name: str, value: Any, declared: Any, default: Any) -> _Origin:
    if value == declared or (declared is None and value == default):
        return _Origin(name, value, "default" if value == default else "declared", declared)
    return _Origin(name, value, "run time", declared)


def _host_origins(seen: Look, pool: Pool) -> Iterator[str]:
    """What of the hosts is not as it was declared."""
    declared = seen.declared_pool(pool.id)
    if declared is None:
        yield "The pool was created at run time."
        return
    before_by_id = {host.id: host for host in declared.hosts}
    for host in pool.hosts:
        before = before_by_id.get(host.id)
        if before is None:
            yield f"Host {host.id} was added at run time."
            continue
        for name, was, _ in changed_options(before, host):
            yield f"Host {host.id}: {name} was set at run time, declared as {_text(was)}."
    for host_id in _removed(declared, pool):
        yield f"Host {host_id} is declared, but was removed at run time."


def _removed(declared: Pool, pool: Pool) -> list[str]:
    left = {host.id for host in pool.hosts}
    return [host.id for host in declared.hosts if host.id not in left]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        value = [f"{name}: {each}" for name, each in value.items()]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return shown(str(value)) if value not in (None, "") else "-"


# ── explain ───────────────────────────────────────────────────────────────────────────────────


def explain(call: Call) -> None:
    """What ``connect`` would do now, and why."""
    seen = look(call.upstream, call.options.key)
    if call.options.json:
        call.screen.line(dumped(_explanation_as_json(call.upstream.id, seen)))
    else:
        call.screen.lines(_explanation_lines(call.screen, seen))


def _explanation_lines(screen: Screen, seen: Look) -> Iterator[str]:
    yield from screen.paragraph(shown(seen.explanation.summary), style=BOLD)
    for pool in seen.explanation.pools:
        what = f"(priority {pool.pool.priority}, {shown(pool.pool.method)})"
        text = f"pool {shown(pool.pool.id)} {what}: {shown(pool.reason)}"
        yield from screen.paragraph(text, rest="  ", style=BOLD if pool.used else "")
        for host in pool.hosts:
            where = f"host {shown(host.host.id)} {shown(host.host.address)}"
            style = state_cell(seen, host, pool.pool, drained=False).style
            yield from screen.paragraph(f"{where}: {shown(host.reason)}", "  ", "    ", style)


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────


def dumped(value: object) -> str:
    """JSON for programs; what is not ASCII is escaped."""
    return json.dumps(value, indent=2)


def _look_as_json(seen: Look) -> dict[str, Any]:
    pools = [
        {
            **_options_of(pool.pool),
            "used": pool.used,
            "reason": pool.reason,
            "hosts_up": sum(host.up for host in pool.hosts),
            "hosts": [_host_as_json(seen, pool.pool, host) for host in pool.hosts],
        }
        for pool in seen.explanation.pools
    ]
    return {"summary": seen.explanation.summary, "pools": pools}


def _options_of(pool: Pool | Host) -> dict[str, Any]:
    return {"id": pool.id, **plain_options(pool, masked=True)}


def _host_as_json(seen: Look, pool: Pool, host: HostReason) -> dict[str, Any]:
    state = host.state
    due_in_s = state.due_at - seen.now
    if seen.checks.running and pool.check_of(host.host):
        due_in_s = math.inf
    return {
        **_options_of(host.host),
        **(said := done_by_hand(host.host, state)),
        "address": host.host.address,
        "share": round(host.share, 6),
        "up": host.up,
        "status": str(state.status),
        "failcount": state.failcount,
        "lastfail": state.lastfail,
        "reason": state.reason or said.get("reason", ""),
        "probe_in_s": round(max(0.0, due_in_s), 1) if math.isfinite(due_in_s) else None,
        **_check_as_json(seen, pool, host),
    }


def _check_as_json(seen: Look, pool: Pool, host: HostReason) -> dict[str, Any]:
    if pool.check_of(host.host) is None:
        return {}
    last = seen.checks.last.get(record_key(pool.id, host.host.id))
    if last is None:
        return {"last_check": None, "last_result": None}
    return {"last_check": last.wall, "last_result": str(last.result)}


def _shown_as_json(name: str, seen: Look, pool: PoolReason) -> dict[str, Any]:
    declared = seen.declared_pool(pool.pool.id)
    declared_hosts = {host.id: _options_of(host) for host in declared.hosts} if declared else {}
    return {
        "upstream": name,
        "id": pool.pool.id,
        "used": pool.used,
        "reason": pool.reason,
        "declared": declared is not None,
        "options": {
            each.name: {"value": each.value, "origin": each.origin, "declared": each.declared}
            for each in _origins(pool.pool, declared)
        },
        "hosts": [
            {**_host_as_json(seen, pool.pool, host), "declared": declared_hosts.get(host.host.id)}
            for host in pool.hosts
        ],
        "removed_hosts": _removed(declared, pool.pool) if declared else [],
    }


def _explanation_as_json(name: str, seen: Look) -> dict[str, Any]:
    pools = [
        {
            "id": pool.pool.id,
            "priority": pool.pool.priority,
            "method": pool.pool.method,
            "used": pool.used,
            "reason": pool.reason,
            "hosts": [
                {
                    "id": host.host.id,
                    "address": host.host.address,
                    "up": host.up,
                    "share": round(host.share, 6),
                    "reason": host.reason,
                }
                for host in pool.hosts
            ],
        }
        for pool in seen.explanation.pools
    ]
    return {"upstream": name, "summary": seen.explanation.summary, "pools": pools}


VERBS: Final = (
    Verb(
        "list",
        list_pools,
        "all pools and hosts, with their state",
        "Print a table of all pools, in the order in which they are tried, and of their hosts.\n\n"
        "A host is up, failed (with the reason, and when a request tries it again), down by hand, drained (its "
        "weight was set to 0 at run time) or spare (its weight is 0). Its share is the part of the pool's traffic "
        "that it gets now.\n\n"
        "With --json there are upstream, summary and pools: each with its options, used, reason, hosts_up and "
        "hosts; of these also address, share (from 0 to 1), up, status (up, failed, probing or manual), "
        "failcount, lastfail (seconds since 1970; 0 is none), reason and probe_in_s; where the host is checked "
        "also last_check and last_result; where a person took it down, or changed its weight for a time, also by, "
        "until (seconds since 1970) and weight_then (the weight to be), where they are known.",
        (JSON,),
        ("", "--json"),
    ),
    Verb(
        "show",
        show_pool,
        "one pool, and where each option comes from",
        "Print all options of a pool and its hosts, with where each comes from: it is the default, it was "
        "declared (by the settings of the application), or it was set at run time; then with what the declaration "
        "says.",
        (option("pool", metavar="POOL", type=arguments.name, help="the id of the pool"), JSON),
        ("primary",),
    ),
    Verb(
        "explain",
        explain,
        "what connect would do now, and why",
        "Print what connect would do now: every pool and host, with the reason why it is taken or passed over.",
        (
            option("--key", metavar="KEY", help="what the method hash goes by, for example a client's address"),
            JSON,
        ),
        ("", "--key 192.0.2.7"),
    ),
)
