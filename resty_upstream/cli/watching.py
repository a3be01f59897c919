"""The verb ``watch``: what happens to an upstream, as it happens."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from resty_upstream.cli import arguments
from resty_upstream.cli.call import Call, Verb, option
from resty_upstream.cli.events import Event, events_between
from resty_upstream.cli.look import Look, Stored, look_as_stored, look_at, read, read_checks
from resty_upstream.cli.screen import BOLD, DIM, Screen, terminal_size
from resty_upstream.cli.showing import list_lines
from resty_upstream.cli.signals import ENDS, Signals
from resty_upstream.cli.text import shown
from resty_upstream.errors import StoreBusy, StoreError
from resty_upstream.upstream import Upstream


class Watcher:
    """Looks at an upstream again and again, and tells what happened in between."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.trouble = ""
        """Why the store cannot be looked at."""
        self._version: int | None = None
        self._stored: Stored | None = None

    @property
    def now(self) -> Look | None:
        """The upstream at this moment, as far as is known; None until it was seen."""
        return look_at(self.upstream, self._stored) if self._stored else None

    def look(self) -> list[Event]:
        """What happened since the last time. Never raises for the store."""
        try:
            return self._look()
        except StoreBusy:
            return []  # the next time will do
        except StoreError as error:
            return self._lost(str(error))

    def _look(self) -> list[Event]:
        store = self.upstream.store
        if not store.examine():  # asking for its version would create it
            return self._lost("there is none any more" if self._stored else "there is none yet")
        version = store.version(self.upstream.id)
        if version == self._version:
            self._look_at_checks()
            return []
        stored = read(self.upstream)
        if stored is None:
            return self._lost(f"it holds nothing of upstream {self.upstream.id}")
        self._version = version
        return self._found(stored)

    def _look_at_checks(self) -> None:
        """Whose results move no version."""
        if self._stored is not None:
            checks = read_checks(self.upstream, self._stored.snapshot.pools)
            self._stored = self._stored._replace(checks=checks)

    def _found(self, stored: Stored) -> list[Event]:
        events = []
        if self._stored is not None and stored.identity != self._stored.identity and not self.trouble:
            events += self._lost("another one is in its place")
        if self.trouble:
            self.trouble = ""
            events.append(Event(event="store_back"))
        before, self._stored = self._stored, stored
        if before is not None:
            # As stored: what has ended happens when it is written.
            looks = (look_as_stored(self.upstream, each) for each in (before, stored))
            events += events_between(*looks)
        return events

    def _lost(self, why: str) -> list[Event]:
        self._version = None
        if self.trouble:
            return []
        self.trouble = why
        # What this process has open would be put in the place of what was taken away.
        self.upstream.store.close()
        return [Event(event="store_lost", reason=why)]


def watch(call: Call) -> None:
    """Print what happens until a signal, or until nobody reads it any more."""
    watcher = Watcher(call.upstream)
    if call.screen.is_live and not call.options.json:
        _watch_live(call, watcher)
    else:
        _watch_lines(call.screen, watcher, call.options.interval, _as_json if call.options.json else _as_text)


def _watch_lines(screen: Screen, watcher: Watcher, interval_s: float, say: Callable[[Event, str], str]) -> None:
    with Signals(screen.stream) as signals:
        came: frozenset[int] = frozenset()
        while not ENDS & came:
            screen.lines([say(event, watcher.upstream.id) for event in watcher.look()])
            screen.stream.flush()
            came = signals.wait(interval_s)


def _as_text(event: Event, _upstream: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {shown(str(event))}"


def _as_json(event: Event, upstream: str) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now.replace("+00:00", "Z"), "upstream": upstream, **event.known()})


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────

_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_TO_TOP: Final = "\x1b[H"
_TO_END_OF_LINE: Final = "\x1b[K"
_TO_END_OF_SCREEN: Final = "\x1b[J"
_EVENTS_KEPT: Final = 100


def _watch_live(call: Call, watcher: Watcher) -> None:
    """The table, redrawn in place, with the last events below it."""
    screen = call.screen
    events: deque[str] = deque(maxlen=_EVENTS_KEPT)
    with Signals(screen.stream, (signal.SIGWINCH, signal.SIGTSTP)) as signals, _full_screen(screen):
        came: frozenset[int] = frozenset()
        while not ENDS & came:
            events += [f"{_clock()}  {shown(str(event))}" for event in watcher.look()]
            _draw(screen, _frame(call, watcher, events))
            came = signals.wait(call.options.interval)
            if signal.SIGTSTP in came:
                _stop(screen)


@contextlib.contextmanager
def _full_screen(screen: Screen) -> Iterator[None]:
    """A context for drawing on the whole screen; what was there is above it, what was drawn last stays."""
    screen.stream.write("\n" * terminal_size().lines + _HIDE_CURSOR)
    try:
        yield
    finally:
        screen.stream.write(f"\r\n{_SHOW_CURSOR}")
        screen.stream.flush()


def _stop(screen: Screen) -> None:
    """What SIGTSTP would have done, with the cursor back for the shell."""
    screen.stream.write(f"\r\n{_SHOW_CURSOR}")
    screen.stream.flush()
    os.kill(os.getpid(), signal.SIGSTOP)
    screen.stream.write(_HIDE_CURSOR)


def _draw(screen: Screen, lines: list[str]) -> None:
    """Draw over what is there: a screen that is cleared first would flicker."""
    text = "\r\n".join(line + _TO_END_OF_LINE for line in lines)
    screen.stream.write(_TO_TOP + text + _TO_END_OF_SCREEN)
    screen.stream.flush()


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _frame(call: Call, watcher: Watcher, events: deque[str]) -> list[str]:
    """What fits on the terminal: the table as far as it does, the last events, and how to end it."""
    screen = call.screen
    room = terminal_size().lines - 2
    last = [screen.fitted(event) for event in list(events)[-max(room // 3, 1) :]]
    below = ["", *last] if last else []
    table = _table(call, watcher, room - len(below))
    return [*table, *below, "", screen.paint(f"{_clock()}  Ctrl-C ends this", DIM)]


def _table(call: Call, watcher: Watcher, room: int) -> list[str]:
    """What ``list`` prints; where that is too much, only hosts with which something is the matter."""
    screen, name = call.screen, watcher.upstream.id
    lines = []
    if watcher.trouble:
        lines += screen.paragraph(f"the store is lost: {shown(watcher.trouble)}", style=BOLD)
    seen = watcher.now
    if seen is None:
        return lines
    are_many = sum(len(pool.hosts) for pool in seen.pools) > room
    table = [] if are_many else list_lines(screen, name, seen, call.command)
    if are_many or len(lines) + len(table) > room:
        table = list_lines(screen, name, seen, call.command, only_notable=True)
    return _cut(lines + table, room)


def _cut(lines: list[str], room: int) -> list[str]:
    if len(lines) <= room:
        return lines
    kept = max(room - 1, 0)
    return [*lines[:kept], f"… {len(lines) - kept} lines more"]


VERBS: Final = (
    Verb(
        "watch",
        watch,
        "what happens, as it happens",
        "On a terminal, show the table of list, redrawn in place, and the last events. Elsewhere print a line for "
        "each event. It goes on when the store is away for a while, and ends at Ctrl-C or SIGTERM.\n\n"
        "With --json each event is an object in a line of its own, with time (ISO 8601, UTC), upstream, event, "
        "and where they apply pool, host, address, reason, by, until (seconds since 1970), failcount, option, "
        "before and after. The events: "
        "host_down, host_up, host_failed (a failure that did not take it down), host_added, host_removed, "
        "host_changed, pool_down, pool_up, pool_added, pool_removed, pool_changed, store_lost and store_back.",
        (
            option("--json", action="store_true", help="print each event as JSON, also on a terminal"),
            option(
                "--interval",
                metavar="S",
                type=arguments.seconds,
                default=0.5,
                help="how often to look: seconds, or 100ms, 2s (default 0.5)",
            ),
        ),
        ("", "--json | head -1"),
    ),
)
