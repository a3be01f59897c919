"""What the page says of hosts and pools, in the order of its cells; made here alone, for HTML and for updates."""

from __future__ import annotations

import re
import time
from typing import Final, NamedTuple

from resty_upstream.cli.text import counted, duration
from resty_upstream.status.data import HostStatus, Latency, PoolStatus, Setting, Status, UpstreamStatus


class HostWords(NamedTuple):
    """The texts of a host's row."""

    state: str
    detail: str
    share: str
    weight: str
    requests: str
    errors: str
    in_flight: str
    latency: str
    failures: str
    check: str


def state_of(host: HostStatus) -> str:
    """Where a host stands, as one of ``up, spare, drained, failed, probing, manual``."""
    if host.status != "up" or host.share_of_pool or host.weight:
        return host.status
    return "drained" if host.drained or host.until or host.by else "spare"


def state_word(state: str) -> str:
    """What a state is called on the page; other texts stay as they are."""
    return "down" if state == "manual" else state


_FAILURES: Final = re.compile(r" \(\d+ of \d+ failures in a row\)")


def host_words(host: HostStatus, at: float) -> HostWords:
    """A host at a moment in epoch seconds."""
    return HostWords(
        state=state_word(state_of(host)),
        detail=_detail(host),
        share=percent(host.share),
        weight=str(host.weight),
        requests=number(host.requests),
        errors=number(host.errors),
        in_flight=number(host.in_flight),
        latency=_latency(host.latency),
        failures=_failures(host, at),
        check=_when(host.last_check, at, host.last_result) if host.checked else "–",
    )


def _detail(host: HostStatus) -> str:
    """What is to be known of a host beside its state: all, for one that gets nothing."""
    why = _FAILURES.sub("", host.why).removeprefix("passed over: ")  # which have a cell of their own
    if why.startswith("failed ("):
        why = why.removeprefix("failed (").replace(")", "", 1)
    if host.share_of_pool:
        # Slow start, the end of a weight.
        why = why.partition(" (")[2].removesuffix(")").replace(") (", " · ")
    return why


def pool_words(pool: PoolStatus) -> tuple[str, str]:
    """How many hosts of a pool are up, and what is made of it."""
    up = f"{pool.hosts_up} of {counted(len(pool.hosts), 'host')} up"
    capacity = f"{percent(pool.capacity)} capacity"
    return up, capacity if pool.used else f"{capacity} · {pool.why.removeprefix('passed over: ')}"


def upstream_words(upstream: UpstreamStatus) -> tuple[str, str]:
    """What the next request does, and what was counted for all hosts together."""
    hosts = [host for pool in upstream.pools for host in pool.hosts]
    requests, errors = sum(host.requests for host in hosts), sum(host.errors for host in hosts)
    sums = [
        f"{sum(host.status == 'up' for host in hosts)} of {counted(len(hosts), 'host')} up",
        f"{number(requests)} requests",
        f"{number(errors)} errors",
        f"{number(upstream.exhausted)} found no host",
    ]
    return f"{upstream.summary}.", " · ".join(sums)


def notices(upstream: UpstreamStatus) -> list[str]:
    """What is wrong with an upstream as a whole."""
    found = []
    if upstream.store_trouble:
        found.append(f"The store cannot be used, requests are served from what is known: {upstream.store_trouble}")
    if upstream.checks == "missing":
        found.append("No process checks the hosts that are to be checked.")
    if not any(host.status == "up" for pool in upstream.pools for host in pool.hosts if pool.up):
        found.append("No host is available.")
    return found


def title(status: Status) -> str:
    """The title of the page, with what is wrong in front."""
    hosts = [host for upstream in status.upstreams for pool in upstream.pools for host in pool.hosts]
    failed = sum(host.status in ("failed", "probing") for host in hosts)
    return f"{failed} failed · Upstreams" if failed else "Upstreams"


def setting_words(setting: Setting) -> str:
    """What was set at run time."""
    return f"{setting.name} {_plain(setting.value)}, declared {_plain(setting.declared)}"


def _plain(value: object) -> str:
    text = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else "(long)"


def percent(part: float) -> str:
    """``50 %``; what is little is not called nothing, nor all what is nearly all."""
    text = "<1" if 0 < part < 0.01 else ">99" if 0.99 < part < 1 else f"{part * 100:.0f}"
    return f"{text}\N{NO-BREAK SPACE}%"


def number(count: int) -> str:
    """``9,999``, ``123.5k``, ``4.56M``: never wide."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= max(size, 100_000):
            return f"{count / size:.4g}{unit}"
    return f"{count:,}"


def _latency(latency: Latency | None) -> str:
    return " / ".join(map(milliseconds, (latency.p50, latency.p90, latency.p99))) if latency else "–"


def milliseconds(seconds: float) -> str:
    """``0.4``, ``12``, ``1,200``: milliseconds without their unit."""
    ms = seconds * 1000
    return f"{ms:.1f}" if ms < 9.95 else f"{ms:,.0f}"


def _when(then: float, at: float, what: str) -> str:
    if not then:
        return what or "never"
    ago = f"{duration(at - then)} ago".replace(" ", "\N{NO-BREAK SPACE}")
    return f"{what}, {ago}" if what else ago


def _failures(host: HostStatus, at: float) -> str:
    in_a_row = f"{host.failcount} in a row: " if host.failcount else ""
    return in_a_row + _when(host.last_failure, at, host.last_failure_reason) if host.last_failure else "–"


def clock(epoch: float, at: float) -> str:
    """A moment in the server's time zone: ``15:00:07`` today, ``Nov 3, 15:00:07`` on another day."""
    then, now = time.localtime(epoch), time.localtime(at)
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%b %d, %H:%M:%S", then)


def zone(epoch: float) -> str:
    """The server's time zone."""
    return time.strftime("%Z", time.localtime(epoch))
