"""The verb ``watch``: what happened between two looks, line by line and on a terminal."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.cli import Watcher
from resty_upstream.cli.events import events_between
from resty_upstream.cli.look import look
from resty_upstream.cli.signals import Signals
from resty_upstream.cli.text import width_of
from resty_upstream.testing import FakeClock
from tests.cli.doors import POOLS, Place, flask, manage, run
from tests.cli.terminal import Terminal
from tests.e2e.processes import Process, python, wait_until
from tests.helpers import hosts, open_upstream, refused, take_down, visit, visit_in_vain

# ── two looks ─────────────────────────────────────────────────────────────────────────────────


def down_and_up(upstream: Upstream, clock: FakeClock) -> None:
    take_down(upstream, "a")
    clock.advance(1)
    UpstreamAPI(upstream).up_host("p", "a")


def fail_twice(upstream: Upstream, clock: FakeClock) -> None:
    for _ in range(2):
        visit_in_vain(upstream, {"a": refused, "b": refused})


def probe_in_vain(upstream: Upstream, clock: FakeClock) -> None:
    clock.advance(30)
    assert visit(upstream, {"a": refused}) == ["a", "b"]


def api(change: Callable[[UpstreamAPI], object]) -> Callable[[Upstream, FakeClock], None]:
    """A change by hand."""

    def run(upstream: Upstream, clock: FakeClock) -> None:
        clock.advance(1)
        change(UpstreamAPI(upstream))

    return run


def nothing(upstream: Upstream, clock: FakeClock) -> None:
    clock.advance(100)


def fail_at_a(upstream: Upstream, clock: FakeClock) -> None:
    take_down(upstream, "a")


def up_and_down(upstream: Upstream, clock: FakeClock) -> None:
    UpstreamAPI(upstream).up_host("p", "a")
    clock.advance(1)
    by_hand(upstream, clock)


Happening = Callable[[Upstream, FakeClock], None]
by_hand = api(lambda api: api.down_host("p", "a"))
ONE_MORE = "ECONNREFUSED (2 failures in a row)"
HAPPENINGS: list[tuple[Happening, Happening, list[str]]] = [
    (nothing, nothing, []),
    (nothing, fail_twice, [f"host p/a failed: {ONE_MORE}", f"host p/b failed: {ONE_MORE}"]),
    (nothing, fail_at_a, ["host p/a is down: ECONNREFUSED (3 failures in a row)"]),
    (fail_at_a, probe_in_vain, ["host p/a failed: ECONNREFUSED (4 failures in a row)"]),
    (nothing, by_hand, ["host p/a is down: by hand"]),
    (fail_at_a, by_hand, ["host p/a is down: by hand"]),
    (by_hand, by_hand, []),
    (by_hand, api(lambda api: api.up_host("p", "a")), ["host p/a is up"]),
    (nothing, down_and_up, ["host p/a is down", "host p/a is up"]),
    (by_hand, down_and_up, ["host p/a is up"]),
    (fail_at_a, up_and_down, ["host p/a is up", "host p/a is down: by hand"]),
    (nothing, api(lambda api: api.set_weight("p", "a", 5)), ["host p/a has weight 5, had 0"]),
    (nothing, api(lambda api: api.add_host("p", host="::1", port=81, id="x")), ["host p/x was added: [::1]:81"]),
    (
        nothing,
        api(lambda api: api.add_host("p", host="x.test", id="x", up=False)),
        ["host p/x was added: x.test:80", "host p/x is down: by hand"],
    ),
    (nothing, api(lambda api: api.remove_host("p", "a")), ["host p/a was removed"]),
    (nothing, api(lambda api: api.set_method("p", "hash")), ["pool p has method hash, had round_robin"]),
    (nothing, api(lambda api: api.set_priority("p", -1)), ["pool p has priority -1, had 0"]),
    (nothing, api(lambda api: api.down_pool("p")), ["pool p is down"]),
    (api(lambda api: api.down_pool("p")), api(lambda api: api.up_pool("p")), ["pool p is up"]),
    (nothing, api(lambda api: api.create_pool("q")), ["pool q was added"]),
    (
        nothing,
        api(lambda api: api.remove_pool("p")),
        ["host p/a was removed", "host p/b was removed", "pool p was removed"],
    ),
]


@pytest.mark.parametrize(("before", "meanwhile", "events"), HAPPENINGS)
def test_two_looks_tell_what_happened_between_them(
    before: Happening, meanwhile: Happening, events: list[str], clock: FakeClock
) -> None:
    upstream = open_upstream({"p": {"failed_timeout": 5, "hosts": hosts("a", "b")}}, clock)
    clock.advance(1)
    before(upstream, clock)
    first = look(upstream)
    meanwhile(upstream, clock)
    assert [str(event) for event in events_between(first, look(upstream))] == events


def test_an_event_has_all_that_is_known_of_it(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    first = look(upstream)
    take_down(upstream, "a")
    UpstreamAPI(upstream).set_weight("p", "b", 5)
    assert [event.known() for event in events_between(first, look(upstream))] == [
        {
            "event": "host_down",
            "pool": "p",
            "host": "a",
            "address": "a.test:80",
            "reason": "ECONNREFUSED",
            "failcount": 3,
        },
        {
            "event": "host_changed",
            "pool": "p",
            "host": "b",
            "address": "b.test:80",
            "option": "weight",
            "before": 0,
            "after": 5,
        },
    ]


def test_an_event_says_who_did_it_until_when_and_why(clock: FakeClock, wall: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    first = look(upstream)
    said: dict[str, Any] = {"reason": "new kernel", "by": "jane", "until": "2h"}
    UpstreamAPI(upstream).down_host("p", "a", **said)
    UpstreamAPI(upstream).set_weight("p", "b", 5, **said)
    events = list(events_between(first, look(upstream)))
    assert list(map(str, events)) == [
        "host p/a is down by hand by jane until 15:00: new kernel",
        "host p/b has weight 5, had 0 by jane until 15:00: new kernel",
    ]
    known = [event.known() for event in events]
    assert [each["until"] for each in known] == [wall() + 7200] * 2
    assert [each["by"] for each in known] == ["jane", "jane"]
    assert [each["reason"] for each in known] == ["by hand: new kernel", "new kernel"]


# ── line by line ──────────────────────────────────────────────────────────────────────────────


class Watch:
    """``watch`` in a process of its own, its output in a file."""

    def __init__(self, place: Place, *options: str) -> None:
        self.place = place
        command = python("-m", "resty_upstream", "--store", place.url, "watch", "--interval", "20ms", *options)
        self.process = Process(command, {}, place.directory / "watched")

    @property
    def lines(self) -> list[str]:
        return self.process.printed().splitlines()

    def begin(self) -> None:
        """Wait until it has looked for the first time: from then on it misses nothing."""
        weights = iter(range(1, 1000))
        wait_until(lambda: self.place.api.set_weight("dr", "c", next(weights)) or self.lines, "an event")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: any(text in line for line in self.lines), f"{text!r} in what it prints: {self.lines}")

    def events(self) -> list[dict[str, Any]]:
        """All events but those of :meth:`begin`."""
        given = [json.loads(line) for line in self.lines]
        return [event for event in given if event.get("host") != "c"]


@pytest.fixture
def watch(place: Place, request: pytest.FixtureRequest) -> Iterator[Watch]:
    """A running ``watch``, which has begun."""
    watch = Watch(place, *getattr(request, "param", []))
    with watch.process:
        watch.begin()
        yield watch


as_json = pytest.mark.parametrize("watch", [["--json"]], indirect=True, ids=["--json"])


def test_what_is_over_is_shown_as_soon_as_it_is_and_told_once_when_it_is_written(
    clock: FakeClock, wall: FakeClock
) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a", "b")}}, clock)
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    watcher = Watcher(Upstream(upstream.store))
    assert watcher.look() == []
    clock.advance(3600)
    wall.advance(3600)
    assert watcher.look() == []
    assert watcher.now is not None
    assert [state.up for state in watcher.now.states().values()] == [True, True]
    assert len(upstream.history()) == 1, "who only looks writes nothing"
    clock.advance(5)
    with upstream.context():
        visit(upstream)
    assert list(map(str, watcher.look())) == ["host p/a is up"]
    assert watcher.look() == []


@as_json
def test_each_event_is_an_object_in_a_line(watch: Watch, place: Place) -> None:
    take_down(place.upstream, "a", pool_id="primary")
    watch.wait_for("host_down")
    place.api.up_host("primary", "a")
    watch.wait_for("host_up")
    place.api.down_pool("dr")
    watch.wait_for("pool_down")
    events = watch.events()
    names = [event["event"] for event in events]
    assert [name for name in names if name != "host_failed"] == ["host_down", "host_up", "pool_down"]
    down = next(event for event in events if event["event"] == "host_down")
    seen = datetime.datetime.fromisoformat(down.pop("time"))
    assert abs(datetime.datetime.now(datetime.UTC) - seen) < datetime.timedelta(minutes=5)
    assert down == {
        "event": "host_down",
        "upstream": "default",
        "pool": "primary",
        "host": "a",
        "address": "127.0.0.1:8001",
        "reason": "ECONNREFUSED",
        "failcount": 3,
    }


def test_each_event_is_a_line_with_the_time(watch: Watch, place: Place) -> None:
    place.api.down_host("primary", "a")
    watch.wait_for("  host primary/a is down: by hand")
    line = watch.lines[-1]
    datetime.datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_what_the_store_says_is_escaped(watch: Watch, place: Place) -> None:
    place.api.create_pool("\u202eabc")
    watch.wait_for(r"pool \u202eabc was added")


@as_json
def test_it_goes_on_when_the_store_is_deleted_and_made_anew(watch: Watch, place: Place) -> None:
    """And does not put it back itself."""
    place.store.close()
    shutil.rmtree(place.directory / "store")
    watch.wait_for("store_lost")
    assert not place.is_there
    place.configure()
    watch.wait_for("store_back")
    place.api.down_host("primary", "a")
    watch.wait_for("host_down")
    events = watch.events()
    assert [event["event"] for event in events] == ["store_lost", "store_back", "host_down"]
    assert events[0]["reason"] == "there is none any more"


@as_json
def test_it_goes_on_when_the_store_is_unsafe_for_a_while(watch: Watch, place: Place) -> None:
    (place.directory / "store").chmod(0o777)
    watch.wait_for("store_lost")
    (place.directory / "store").chmod(0o700)
    watch.wait_for("store_back")
    assert [event["event"] for event in watch.events()] == ["store_lost", "store_back"]
    assert watch.events()[0]["reason"].startswith("others can write in ")


@as_json
def test_it_goes_on_when_another_store_is_put_in_its_place(watch: Watch, place: Place) -> None:
    other = Place(place.directory / "other")
    with other:
        other.configure()
        other.api.down_host("primary", "b")
    place.store.close()
    store = place.directory / "store"
    os.rename(store, place.directory / "old")
    os.rename(other.directory / "store", store)
    watch.wait_for('"host": "b"')
    assert [event["event"] for event in watch.events()] == ["store_lost", "store_back", "host_down"]


@as_json
def test_what_happened_while_the_store_was_away_is_told_when_it_is_back(watch: Watch, place: Place) -> None:
    (place.directory / "store").chmod(0o777)
    watch.wait_for("store_lost")
    (place.directory / "store").rename(place.directory / "elsewhere")
    (place.directory / "elsewhere").chmod(0o700)
    place.store.close()
    moved = Upstream(f"sqlite://{place.directory}/elsewhere/upstreams.db")
    UpstreamAPI(moved).down_host("primary", "a")
    moved.store.close()
    (place.directory / "elsewhere").rename(place.directory / "store")
    watch.wait_for("host_down")
    assert [event["event"] for event in watch.events()] == ["store_lost", "store_back", "host_down"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number: signal.Signals, watch: Watch) -> None:
    watch.process.signal(number)
    assert watch.process.wait() == 0
    assert all("  host dr/c has weight " in line for line in watch.lines)


def test_a_reader_that_has_enough_ends_it(place: Place) -> None:
    """As soon as the reader has gone, not at the next event."""
    command = f"{sys.executable} -m resty_upstream --store {place.url} watch --interval 20ms --json"
    line = f"set -o pipefail; {command} | head -1"
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(run(["bash", "-c", line], {})))
    thread.start()
    weights = iter(range(1, 1000))
    wait_until(lambda: not thread.is_alive() or place.api.set_weight("dr", "c", next(weights)), "head is content")
    thread.join()
    code, out, err = done[0]
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out)["event"] == "host_changed"


@pytest.mark.parametrize("command", [manage, flask])
def test_the_other_doors_watch_too(command: Callable[..., Any], place: Place) -> None:
    done: list[Any] = []
    asked = ["watch", "--json", "--interval", "20ms"]
    prefix = {
        manage: python("example_project/manage.py", "upstream"),
        flask: python("-m", "flask", "--app", "tests.cli.app", "upstream"),
    }
    output = place.directory / "printed"
    with Process([*prefix[command], *asked], place.environment, output) as process:
        weights = iter(range(1, 1000))
        wait_until(lambda: place.api.set_weight("dr", "c", next(weights)) or process.printed(), "an event")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert {json.loads(line)["event"] for line in process.printed().splitlines()} == {"host_changed"}
    assert not done


def test_it_can_be_called_in_a_thread_which_leaves_signals_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = StringIO()
    waits = iter(range(5))
    ours = signal.getsignal(signal.SIGTERM)

    def wait(_signals: Signals, _seconds: float) -> frozenset[int]:
        place.api.set_weight("primary", "a", weight := next(waits))
        return frozenset({signal.SIGTERM} if weight == 4 else {})

    monkeypatch.setattr(Signals, "wait", wait)
    with override_settings(UPSTREAMS={"default": {"STORE": place.url}}):
        thread = threading.Thread(target=call_command, args=["upstream", "watch"], kwargs={"stdout": out})
        thread.start()
        thread.join()
    assert out.getvalue().count(" host primary/a has weight ") == 4
    assert signal.getsignal(signal.SIGTERM) is ours


# ── on a terminal ─────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def live(place: Place, *before: str, **options: Any) -> Iterator[Terminal]:
    """``watch`` in a terminal, which shows its first screen."""
    command = python("-m", "resty_upstream", "--store", place.url, "watch", "--interval", "50ms")
    with Terminal([*before, *command], **options) as there:
        there.wait_for("Ctrl-C ends this")
        yield there


def table_of(there: Terminal) -> list[str]:
    """The lines of all tables."""
    return [line for line in there.lines if line.startswith("  ")]


def test_the_table_is_redrawn_in_place_with_the_last_events_below(place: Place) -> None:
    with live(place) as there:
        assert table_of(there) == [
            "  host  address         weight  share  state",
            "  a     127.0.0.1:8001      10    50%  up",
            "  b     127.0.0.1:8002      10    50%  up",
            "  host  address         weight  share  state",
            "  c     127.0.0.1:8003       0   100%  up",
        ]
        assert not there.shows_cursor
        above = there.scrolled
        place.api.down_host("primary", "a")
        there.wait_for(r"\d\d:\d\d:\d\d  host primary/a is down: by hand")
        place.api.set_weight("primary", "b", 0)
        there.wait_for("host primary/b has weight 0, had 10")
        assert table_of(there)[1:3] == [
            "  a     127.0.0.1:8001      10      -  down by hand",
            "  b     127.0.0.1:8002       0   100%  up",
        ]
        assert there.text.count("pool primary: ") == 1
        assert there.scrolled == above
        assert there.colour_of("down by hand") == "brown"


def test_it_follows_the_size_of_the_terminal(place: Place) -> None:
    place.api.down_host("primary", "a")
    with live(place) as there:
        for columns, rows in ((50, 24), (120, 40), (40, 16), (80, 24)):
            there.resize(columns, rows)
            above = there.scrolled
            wait_until(lambda: there.drawn_since_resize, "it is drawn again")
            there.wait_for("(?m)hand$")
            assert there.text.count("pool primary: ") == 1
            assert there.text.count("pool dr: ") == 1
            assert max(map(width_of, there.lines)) <= columns
            assert there.scrolled == above


def test_what_does_not_fit_is_left_out_first_of_all_what_is_well(place: Place) -> None:
    many = {f"h{number}": {"host": f"10.0.0.{number}"} for number in range(1, 100)}
    place.upstream.save_pools({"primary": {"hosts": many}, "dr": POOLS["dr"]})
    place.api.down_host("primary", "h57")
    with live(place) as there:
        assert table_of(there)[1:3] == [
            "  h57   10.0.0.57:80       0      -  down by hand",
            "  … 98 hosts more, up",
        ]
        above = there.scrolled
        for number in range(30):
            place.api.down_host("primary", f"h{number + 1}")
        there.wait_for("host primary/h30 is down: by hand")
        there.wait_for(r"… \d+ lines more")
        assert there.scrolled == above


def test_ctrl_c_leaves_the_last_screen_and_gives_the_cursor_back(place: Place) -> None:
    with live(place, "bash", "-c", 'echo what was there before; "$@"', "-") as there:
        before = table_of(there)
        there.type("\x03")
        assert there.wait() == 0
        assert there.shows_cursor
        assert table_of(there) == before
        assert there.text.count("Ctrl-C ends this") == 1
        assert "what was there before" in there.history
        assert "Traceback" not in there.sent


def test_sigterm_ends_the_live_view_in_order(place: Place) -> None:
    with live(place) as there:
        there.process.kill(signal.SIGTERM)
        assert there.wait() == 0
        assert there.shows_cursor


def test_ctrl_z_gives_the_cursor_back_for_as_long_as_it_is_stopped(place: Place) -> None:
    with live(place) as there:
        there.type("\x1a")
        wait_until(lambda: _state_of(there.process.pid) == "T", "it is stopped")
        assert there.shows_cursor
        place.api.down_host("primary", "a")
        there.process.kill(signal.SIGCONT)
        there.wait_for("host primary/a is down: by hand")
        assert not there.shows_cursor


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_live_view_says_that_the_store_is_lost_and_shows_what_was_known(place: Place) -> None:
    with live(place) as there:
        place.store.close()
        shutil.rmtree(place.directory / "store")
        there.wait_for("the store is lost: there is none any more")
        assert "pool primary: " in there.text
        place.configure()
        there.wait_for(r"\d\d:\d\d:\d\d  the store is back")
        assert "the store is lost: " not in "\n".join(there.lines[:3])


def test_json_on_a_terminal_is_json(place: Place) -> None:
    command = python("-m", "resty_upstream", "--store", place.url, "watch", "--interval", "50ms", "--json")
    with Terminal(command, columns=300) as there:
        weights = iter(range(1, 1000))
        wait_until(lambda: place.api.set_weight("dr", "c", next(weights)) or there.text, "an event")
        assert json.loads(there.lines[0])["event"] == "host_changed"
        there.type("\x03")
        assert there.wait() == 0
