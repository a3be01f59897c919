"""What is wrong with an upstream, and what is valid and yet hardly meant.

Nothing is created, opened for the first time or changed: it is safe where the application does not run.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from resty_upstream.errors import ProblemKind, StoreError, StoreUnsafe
from resty_upstream.health.functions import named_in
from resty_upstream.model import Difference, HealthCheck, Host, Pool, Pools, differences, merge
from resty_upstream.sticky import problem_of
from resty_upstream.upstream import Upstream

Level = Literal["error", "warning"]


class Finding(NamedTuple):
    """One thing that is wrong, or hardly meant."""

    id: str
    """Stable: ``E003``, ``W001``."""
    path: str
    """``pools.primary.hosts.a.weight``; "" where it is about the whole upstream."""
    message: str
    hint: str
    """What to write instead."""

    @property
    def level(self) -> Level:
        """An error is refused when the upstream is used; a warning is not."""
        return "error" if self.id.startswith("E") else "warning"


PROBLEMS: Final[dict[ProblemKind, tuple[str, str]]] = {
    "structure": ("E001", "Upstreams are options by name, pools and hosts are options by id."),
    "option": ("E002", "Correct the name of the option, or leave it out."),
    "value": (
        "E003",
        "Numbers are as 10 or '10'; durations are numbers, timedeltas or text with a unit: '250ms', '2s', '1m'.",
    ),
    "missing": ("E004", "Add the option."),
    "id": ("E005", "Give each pool and host an id of its own, as 'primary' or 'a'."),
    "method": ("E006", "Correct the name of the method, or register it with register_method before it is used."),
    "store": ("E007", "Name a file in a directory of its own, as 'sqlite:///run/myapp/upstreams.db'."),
}
"""The id of each kind of problem in a configuration, and its hint."""


_DEFAULT: Final = Pool(id="default")


def lint(upstream: Upstream, *, behind_proxy: bool = False) -> list[Finding]:
    """All findings about an upstream: its pools as they will be used, and its store.

    The pools are those that are stored, merged with what was declared in this process and is not stored yet.

    :param behind_proxy: whether the application is known to be behind a proxy, so that the address of the client
        is the proxy's.
    """
    findings: list[Finding] = []
    declared = upstream.replica.declared
    used = declared or ()
    try:
        stored = upstream.replica.examine()
    except StoreError as error:
        findings.append(_of_store(error))
        stored = None
    if stored is not None:
        declared = stored.declared if declared is None else declared
        used = merge(stored.declared, declared, stored.pools)
        findings += hidden(declared, used)
    findings += _of_visitors(upstream, used)
    findings += _of_functions(upstream, used)
    # Behind a proxy that is trusted, the address of the client is his own.
    proxied = behind_proxy and not upstream.trusted_proxies
    return findings + lint_pools(used, total_timeout_s=upstream.total_timeout_s, behind_proxy=proxied)


def _of_functions(upstream: Upstream, pools: Pools) -> Iterator[Finding]:
    """Functions that check hosts, and that this process could not call."""
    declared = named_in(upstream.replica.declared or ())
    for name in sorted(named_in(pools)):
        if name not in declared:
            problem, hint = "is not named in the settings of this process", "Name it where pools are declared."
        elif upstream.replica.check_function(name) is None:
            problem, hint = "cannot be imported and called", "Correct the name: 'package.module.function'."
        else:
            continue
        yield Finding(
            "W016",
            "",
            f"the check {name} {problem}: hosts with it are not checked, and none of them is revived",
            hint,
        )


def _of_visitors(upstream: Upstream, pools: Pools) -> Iterator[Finding]:
    if upstream.trusted_proxies.everybody:
        yield Finding(
            "W012",
            "trusted_proxies",
            "trusted_proxies trusts everybody: each client may say in X-Forwarded-For that it is another",
            "Name the addresses or networks of the proxies alone, as ['10.0.0.0/8'].",
        )
    problem = None if upstream.signing.is_possible else problem_of(pools)
    if problem is not None:
        yield Finding(
            "W013",
            problem.partition(" ")[0],
            f"{problem}; without it, sessions do not stay at their hosts",
            "Run pip install 'resty-upstream[sticky]', or leave sticky out.",
        )


def _of_store(error: StoreError) -> Finding:
    if isinstance(error, StoreUnsafe):
        return Finding(
            "W008", "store", str(error), "A directory below /run, as systemd's RuntimeDirectory=, is safe."
        )
    return Finding(
        "W009", "store", str(error), "Until it can be used, each process serves from what is declared, by itself."
    )


def hidden(declared: Pools, used: Pools) -> list[Finding]:
    """What is declared and not used, because it was changed at run time."""
    return [_hidden(each) for each in differences(declared, used) if each.before is not None]


def _hidden(difference: Difference) -> Finding:
    path, declared, used = difference
    message = (
        f"{path} is declared, but was removed at run time"
        if used is None
        else f"{path} is declared as {declared!r}, but was changed to {used!r} at run time"
    )
    hint = "The change at run time counts until the declaration is changed; undo it, or declare what is used."
    return Finding("W007", path, message, hint)


def lint_pools(pools: Pools, *, total_timeout_s: float, behind_proxy: bool = False) -> list[Finding]:
    """What is hardly meant in pools that are valid."""
    findings = [*_of_all(pools)]
    for pool in pools:
        findings += _of_checks(pool, f"pools.{pool.id}")
        findings += _of_pool(pool, f"pools.{pool.id}", total_timeout_s, behind_proxy)
    return findings


def _of_all(pools: Pools) -> Iterator[Finding]:
    up = [pool for pool in pools if pool.up]
    hosts = [(pool, host) for pool in up for host in pool.hosts]
    if len(hosts) == 1 and hosts[0][0].max_fails:
        (pool, host) = hosts[0]
        yield Finding(
            "W002",
            f"pools.{pool.id}.hosts.{host.id}",
            f"pools.{pool.id}.hosts.{host.id} is the only host: when it fails there is none to go on with",
            "Add a host, or a pool with a higher priority number; or give the pool max_fails 0.",
        )
    by_priority = defaultdict(list)
    for pool in up:
        by_priority[pool.priority].append(pool.id)
    for priority, ids in by_priority.items():
        if len(ids) > 1:
            yield Finding(
                "W004",
                f"pools.{ids[1]}.priority",
                f"pools {', '.join(ids)} have the same priority ({priority}): "
                "they are tried in the order in which they were created",
                "Give each pool a priority of its own; the lowest is tried first.",
            )


def _of_pool(pool: Pool, path: str, total_timeout_s: float, behind_proxy: bool) -> Iterator[Finding]:
    weighted = [host.id for host in pool.hosts if host.weight]
    unweighted = [host.id for host in pool.hosts if not host.weight]
    if weighted and unweighted:
        yield Finding(
            "W001",
            f"{path}.hosts",
            f"{path} mixes hosts with a weight and without: nothing goes to {_some(unweighted)} while one of "
            f"{_some(weighted)} is available",
            "Give every host a weight, or none; 0 is for hosts that are spare or drained.",
        )
    if total_timeout_s < pool.timeout_s:
        yield Finding(
            "W003",
            f"{path}.timeout",
            f"{path}.timeout is {pool.timeout_s:g} s, but all attempts together may take {total_timeout_s:g} s "
            "(total_timeout): the first attempt that is not answered uses up all of it",
            "Make total_timeout several times the timeout of a pool.",
        )
    for ids in _with_one_address(pool.hosts):
        yield Finding(
            "W005",
            f"{path}.hosts.{ids[1]}",
            f"{path}.hosts: {_some(ids)} have the same address: when one of them fails, so do the others",
            "Leave one of them, and give it the weight of all.",
        )
    if pool.method == "hash" and pool.key == "ip" and behind_proxy:
        yield Finding(
            "W006",
            f"{path}.method",
            f"{path}.method is hash, which goes by the client's address, and that is the proxy's for all of them",
            "Name the proxies in trusted_proxies, give the pool another key, as 'header:Name' or 'cookie:name'; "
            "or give each call one (connect(key=…)).",
        )
    if pool.up and not pool.hosts:
        yield Finding("W010", f"{path}.hosts", f"{path} has no hosts: it is passed over", "Add a host.")
    if pool.failed_timeout_max < pool.failed_timeout and pool.failed_timeout_max != _DEFAULT.failed_timeout_max:
        yield Finding(
            "W011",
            f"{path}.failed_timeout_max",
            f"{path}.failed_timeout_max ({pool.failed_timeout_max:g} s) is below failed_timeout "
            f"({pool.failed_timeout:g} s): it has no effect",
            "Leave it out, or make it several times failed_timeout.",
        )


_LONG_S: Final = 3600.0


def _of_checks(pool: Pool, path: str) -> Iterator[Finding]:
    """What is hardly meant in how hosts are checked."""
    tables = [(f"{path}.healthcheck", pool.healthcheck)]
    tables += [(f"{path}.hosts.{host.id}.healthcheck", host.healthcheck or None) for host in pool.hosts]
    for where, check in tables:
        if check is not None:
            yield from _of_check(check, where, pool)
    if pool.ssl and not pool.ssl_verify:
        yield Finding(
            "W017",
            f"{path}.ssl_verify",
            f"{path}.ssl_verify is false: whoever answers in place of a host is believed",
            "Leave it out, and name in sni_host what the certificates are for.",
        )
    if not pool.ssl and (pool.sni_host or not pool.ssl_verify):
        option = "sni_host" if pool.sni_host else "ssl_verify"
        yield Finding(
            "W018",
            f"{path}.{option}",
            f"{path}.{option} is given, but the hosts are not checked by TLS",
            "Write ssl: true, or leave it out.",
        )


def _of_check(check: HealthCheck, where: str, pool: Pool) -> Iterator[Finding]:
    if check.type == "http" and check.status_codes == () and check.body is None:
        yield Finding(
            "W014",
            f"{where}.status_codes",
            f"{where}.status_codes is empty: any answer is a good one, also an error",
            "Name the statuses that are bad, as ['5xx'], or leave it out for all outside 200 to 399.",
        )
    found_out_s = check.fall * check.interval
    if found_out_s > _LONG_S:
        yield Finding(
            "W014",
            f"{where}.fall",
            f"{where} takes a host down after {check.fall} bad checks, {check.interval:g} s apart: "
            f"it hardly ever will within {found_out_s / 3600:.1f} hours",
            "Lower fall, or interval.",
        )
    longest_s = ((pool.timeout if check.timeout is None else check.timeout) + check.read_timeout) / 1000
    if longest_s > check.interval:
        yield Finding(
            "W015",
            f"{where}.interval",
            f"{where}.interval is {check.interval:g} s, but a host that hangs is given {longest_s:g} s "
            "(timeout and read_timeout): it is checked less often than that",
            "Lower timeout and read_timeout, or raise the interval.",
        )


def _with_one_address(hosts: tuple[Host, ...]) -> list[list[str]]:
    by_address = defaultdict(list)
    for host in hosts:
        by_address[_address(host)].append(host.id)
    return [ids for ids in by_address.values() if len(ids) > 1]


def _address(host: Host) -> tuple[object, ...]:
    if host.unix_path is not None:
        return (host.unix_path,)
    try:
        return ipaddress.ip_address(host.host), host.port
    except ValueError:
        return host.host.lower().rstrip("."), host.port


def _some(ids: list[str]) -> str:
    return ", ".join(ids) if len(ids) <= 5 else f"{', '.join(ids[:4])} and {len(ids) - 4} more"
