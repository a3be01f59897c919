"""The verbs ``history``, what happened to hosts, and ``run-checks``, a process that checks them."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from resty_upstream.cli import arguments
from resty_upstream.cli.call import Call, Verb, option
from resty_upstream.cli.screen import DIM, GREEN, RED, YELLOW, Cell, Column, Screen, table
from resty_upstream.cli.showing import JSON, dumped
from resty_upstream.cli.signals import ENDS, Signals
from resty_upstream.cli.text import counted, listed, shown
from resty_upstream.events import HostEvent
from resty_upstream.health.functions import named_in
from resty_upstream.history import Transition
from resty_upstream.upstream import Upstream

_LOOK_S: Final = 1.0
_STYLES: Final = {"up": GREEN, "failed": RED, "manual": YELLOW}
_WORDS: Final = {"up": "up", "failed": "failed", "manual": "down by hand"}


# ── history ───────────────────────────────────────────────────────────────────────────────────


def history(call: Call) -> None:
    """The last transitions of hosts."""
    upstream = call.upstream
    transitions = upstream.history(call.options.limit) if upstream.store.examine() else []
    if call.options.json:
        call.screen.line(dumped([_as_json(each) for each in transitions]))
    elif transitions:
        call.screen.lines(table(call.screen, _COLUMNS, [_row(each) for each in transitions]))
    else:
        call.screen.line("nothing has happened to any host yet")


_COLUMNS: Final = (
    Column("time"),
    Column("host", may_shrink=True),
    Column("was"),
    Column("is"),
    Column("by"),
    Column("process", right=True),
    Column("reason"),
)


def _row(transition: Transition) -> list[Cell]:
    return [
        Cell(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(transition.at)), DIM),
        Cell(shown(f"{transition.pool}/{transition.host}")),
        Cell(shown(_WORDS.get(transition.before, transition.before))),
        Cell(shown(_WORDS.get(transition.after, transition.after)), _STYLES.get(transition.after, "")),
        Cell(shown(transition.by) or "-"),
        Cell(str(transition.process)),
        Cell(shown(transition.reason)),
    ]


def _as_json(transition: Transition) -> dict[str, Any]:
    return {
        "time": _iso(transition.at),
        "pool": transition.pool,
        "host": transition.host,
        "from": transition.before,
        "to": transition.after,
        "reason": transition.reason,
        "process": transition.process,
        "by": transition.by,
    }


def _iso(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ── run-checks ────────────────────────────────────────────────────────────────────────────────


def run_checks(call: Call) -> None:
    """Check hosts until a signal comes."""
    upstreams = call.chosen
    lines = _Lines(call.screen, _event_as_json if call.options.json else _event_as_text)
    for upstream in upstreams:
        upstream.bind("host_up", lines.event)
        upstream.bind("host_down", lines.event)
        upstream.open()
    with Signals(call.screen.stream) as signals:
        try:
            _check_until_it_ends(upstreams, lines, signals, says_what=not call.options.json)
        finally:
            for upstream in upstreams:
                upstream.stop_checker()


def _check_until_it_ends(
    upstreams: Sequence[Upstream], lines: _Lines, signals: Signals, *, says_what: bool
) -> None:
    for upstream in upstreams if says_what else ():
        for line in _beginning(upstream):
            lines.say(line)
    troubles = dict.fromkeys((upstream.id for upstream in upstreams), "")
    came: frozenset[int] = frozenset()
    while not ENDS & came:
        for upstream in upstreams:
            upstream.start_checker(dedicated=True)  # again, should it have ended
            trouble = str(upstream.replica.trouble or "")
            if trouble != troubles[upstream.id]:
                troubles[upstream.id] = trouble
                lines.trouble(upstream.id, trouble)
        came = signals.wait(_LOOK_S)


def _beginning(upstream: Upstream) -> list[str]:
    """What will be done, in sentences."""
    pools = upstream.replica.snapshot().pools
    checked = [(pool, host) for pool in pools for host in pool.hosts if pool.check_of(host) is not None]
    if not checked:
        return [f"upstream {upstream.id}: no host has a healthcheck; it is waited for one"]
    said = [f"upstream {upstream.id}: {counted(len(checked), 'host')} to be checked"]
    foreign = sorted(named_in(pools) - named_in(upstream.replica.declared or ()))
    if foreign:
        said.append(
            f"upstream {upstream.id}: {listed(foreign)} is only called by processes whose own settings name it: "
            "use manage.py upstream run-checks, or --config"
        )
    return said


class _Lines:
    """Prints a line at a time, from any thread, and has it seen at once."""

    def __init__(self, screen: Screen, form: Callable[[HostEvent], str]) -> None:
        self._screen = screen
        self._form = form
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        """Print a sentence."""
        self._print(shown(line))

    def event(self, event: HostEvent) -> None:
        """Print that a host went up or down."""
        self._print(self._form(event))

    def trouble(self, upstream_id: str, trouble: str) -> None:
        """Print that the store fails, or does no longer."""
        if self._form is _event_as_json:
            event = {"event": "store_lost", "reason": trouble} if trouble else {"event": "store_back"}
            self._print(json.dumps({"time": _iso(time.time()), "upstream": upstream_id, **event}))
        else:
            what = f"the store cannot be used: {trouble}" if trouble else "the store works again"
            self.say(f"{_local(time.time())}  upstream {upstream_id}: {what}")

    def _print(self, line: str) -> None:
        with self._lock:
            self._screen.line(line)
            self._screen.stream.flush()


def _local(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _event_as_text(event: HostEvent) -> str:
    word = "up" if event.name == "host_up" else "down"
    what = f"upstream {event.upstream}: host {event.pool.id}/{event.host.id} is {word}: {event.reason}"
    return f"{_local(event.at)}  {shown(what)}"


def _event_as_json(event: HostEvent) -> str:
    return json.dumps(
        {
            "time": _iso(event.at),
            "upstream": event.upstream,
            "event": event.name,
            "pool": event.pool.id,
            "host": event.host.id,
            "address": event.host.address,
            "reason": event.reason,
        }
    )


VERBS: Final = (
    Verb(
        "history",
        history,
        "what happened to hosts",
        "Print when hosts came up and went down, or were taken down by hand: the last thousand times, by any "
        "process, the newest at the end; with the reason, and who did it.\n\n"
        "With --json each is an object with time (ISO 8601, UTC), pool, host, from and to (up, failed or manual), "
        "reason, process and by.",
        (
            option(
                "--limit",
                metavar="N",
                type=arguments.max_fails,
                default=1000,
                help="how many of them, the newest (default 1000)",
            ),
            JSON,
        ),
        ("", "--limit 10 --json"),
    ),
    Verb(
        "run-checks",
        run_checks,
        "check hosts, as a process of its own",
        "Check all hosts that have a healthcheck, of all upstreams or of the one that is named, until Ctrl-C or "
        "SIGTERM. Web workers leave it to this process while it runs, and do it by themselves when it does not. "
        "Of several such processes one checks, and the others stand by.\n\n"
        "A line is printed for each host that comes up or goes down; with --json it is an object.",
        (option("--json", action="store_true", help="print each event as JSON"),),
        ("",),
    ),
)
