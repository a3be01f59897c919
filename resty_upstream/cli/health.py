"""The verbs ``history``, what happened to hosts, and ``run-checks``, a process that checks them."""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from resty_upstream.cli import arguments
from resty_upstream.cli.call import Call, StoredUpstreams, Verb, option
from resty_upstream.cli.screen import DIM, GREEN, RED, YELLOW, Cell, Column, Screen, table
from resty_upstream.cli.showing import JSON, dumped
from resty_upstream.cli.signals import ENDS, Signals
from resty_upstream.cli.text import counted, listed, shown
from resty_upstream.errors import StoreError
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
    with Signals(call.screen.stream) as signals:
        if call.heard:
            call.heard.say_at_once()
        checking = _Checking(call)
        try:
            for name in call.chosen:
                checking.begin(name)
            came: frozenset[int] = frozenset()
            while not ENDS & came:
                checking.go_on()
                came = signals.wait(_LOOK_S)
        finally:
            checking.end()


class _Checking:
    """What this process checks, and prints of it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._upstreams: dict[str, Upstream] = {}
        self._troubles: dict[str, str] = {}
        self._lines = _Lines(call.screen, _event_as_json if call.options.json else _event_as_text)

    def begin(self, name: str) -> None:
        """Take an upstream on."""
        upstream = self._call.usable(name)
        upstream.bind("host_up", self._lines.event)
        upstream.bind("host_down", self._lines.event)
        upstream.open()
        self._upstreams[name] = upstream
        self._say_what(upstream)

    def _say_what(self, upstream: Upstream) -> None:
        what, *warnings = _beginning(upstream)
        if not self._call.options.json:
            self._lines.say(what, *warnings)
        elif self._call.heard:
            for warning in warnings:
                self._call.heard.complain(warning)

    def go_on(self) -> None:
        """Take on what is new, and see to it that all is checked still."""
        with contextlib.suppress(StoreError):  # the next time will do
            for name in self._new():
                self.begin(name)
        for upstream in self._upstreams.values():
            upstream.start_checker(dedicated=True)  # again, should it have ended
            if self._call.options.json:
                self._look_for_trouble(upstream)

    def _new(self) -> list[str]:
        """The upstreams that have begun in the store since."""
        known = self._call.upstreams
        if self._call.options.upstream is not None or not isinstance(known, StoredUpstreams):
            return []
        return [name for name in known if name not in self._upstreams]

    def _look_for_trouble(self, upstream: Upstream) -> None:
        """Also for programs, which read no log."""
        trouble = str(upstream.replica.trouble or "")
        if trouble != self._troubles.get(upstream.id, ""):
            self._lines.trouble(upstream.id, trouble)
        self._troubles[upstream.id] = trouble

    def end(self) -> None:
        """Leave it to others, who go on at once."""
        for upstream in self._upstreams.values():
            upstream.stop_checker()


def _beginning(upstream: Upstream) -> list[str]:
    """What will be done, in a sentence, and what cannot be in another."""
    pools = upstream.replica.snapshot().pools
    checks = {
        f"{pool.id}/{host.id}": check.type
        for pool in pools
        for host in pool.hosts
        if (check := pool.check_of(host)) is not None
    }
    if not checks:
        return [f"upstream {upstream.id}: no host has a healthcheck; it is waited for one"]
    foreign = set(checks.values()) & (named_in(pools) - named_in(upstream.replica.declared or ()))
    left_out = [host for host, function in checks.items() if function in foreign]
    said = [f"upstream {upstream.id}: {counted(len(checks) - len(left_out), 'host')} to be checked"]
    if left_out:
        said.append(
            f"upstream {upstream.id}: not {listed(left_out)}, since {listed(sorted(foreign))} is only called by "
            "processes whose own settings name it: use manage.py upstream run-checks, or --config"
        )
    return said


class _Lines:
    """Prints a line at a time, from any thread, and has it seen at once."""

    def __init__(self, screen: Screen, form: Callable[[HostEvent], str]) -> None:
        self._screen = screen
        self._form = form
        self._lock = threading.Lock()

    def say(self, *lines: str) -> None:
        """Print sentences."""
        self._print(*map(shown, lines))

    def event(self, event: HostEvent) -> None:
        """Print that a host went up or down."""
        with contextlib.suppress(BrokenPipeError):  # which ends the command, not the checker
            self._print(self._form(event))

    def trouble(self, upstream_id: str, trouble: str) -> None:
        """Print that the store fails, or does no longer."""
        event = {"event": "store_lost", "reason": trouble} if trouble else {"event": "store_back"}
        self._print(json.dumps({"time": _iso(time.time()), "upstream": upstream_id, **event}))

    def _print(self, *lines: str) -> None:
        with self._lock:
            self._screen.lines(lines)
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
        "Print when hosts came up and went down, were taken down by hand, or got another weight: the last "
        "thousand times, by any process, the newest at the end; with the reason, and who did it.\n\n"
        "With --json each is an object with time (ISO 8601, UTC), pool, host, from and to (up, failed or manual; "
        "weight 10), reason, process and by.",
        (
            option(
                "--limit",
                metavar="N",
                type=arguments.limit,
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
        "A line is printed for each host that comes up or goes down; with --json it is an object. What goes "
        "wrong, as with the store, is said on standard error, and it goes on.",
        (option("--json", action="store_true", help="print each event as JSON"),),
        ("",),
        begins=True,
    ),
)
