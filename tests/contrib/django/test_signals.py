"""The signals ``host_up`` and ``host_down``: who hears them, when, and whom they do not hold up."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync
from django.dispatch import Signal
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import path

from resty_upstream import HostEvent, Upstream, UpstreamAPI
from resty_upstream.contrib.django import UpstreamHttpRequest, get_upstream
from resty_upstream.contrib.django.signals import host_down, host_up
from tests.contrib.bed.journal import write
from tests.contrib.bed.sites import Gate, Journal
from tests.e2e.processes import ROOT, Ports, Process, get, python, wait_until, wait_until_answers

WAIT_S = 10.0
Heard = list[tuple[type, HostEvent]]


def options(store: str = "memory://") -> dict[str, Any]:
    """An upstream of three hosts, one behind the other, that no failure keeps waiting."""
    pools = {name: {"priority": rank, "hosts": {name: {"host": "192.0.2.1"}}} for rank, name in enumerate("abc")}
    return {"STORE": store, "POOLS": {name: {**pool, "max_fails": 1} for name, pool in pools.items()}}


@pytest.fixture(autouse=True)
def _upstreams() -> Iterator[None]:
    with override_settings(UPSTREAMS={"default": options(), "other": options()}):
        yield


@pytest.fixture
def connect() -> Iterator[Callable[[Callable[..., object]], None]]:
    """Connects a receiver to both signals, until the end of the test."""
    connected = []

    def connect(receiver: Callable[..., object]) -> None:
        for signal in (host_up, host_down):
            signal.connect(receiver, weak=False)
            connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


@pytest.fixture
def heard(connect: Callable[..., None]) -> list[str]:
    """What a receiver has heard: ``host_down a of default``."""
    heard: list[str] = []

    def receiver(event: HostEvent, **kwargs: object) -> None:
        heard.append(described(event))

    connect(receiver)
    return heard


def described(event: HostEvent) -> str:
    return f"{event.name} {event.host.id} of {event.upstream}"


def api(alias: str = "default") -> UpstreamAPI:
    return UpstreamAPI(get_upstream(alias))


def fail(upstream: Any) -> None:
    """One call, at which the first host fails and the next one answers."""
    for number, attempt in enumerate(upstream.attempts()):
        with attempt:
            if not number:
                raise ConnectionRefusedError


# ── what is heard ─────────────────────────────────────────────────────────────────────────────


def test_each_transition_is_heard_once(heard: list[str]) -> None:
    """What changes nothing is no transition; the upstreams are told apart by the event."""
    for alias in ("default", "default", "other"):
        api(alias).down_host("a", "a")
    api().up_host("a", "a")
    assert heard == ["host_down a of default", "host_down a of other", "host_up a of default"]


def test_the_sender_is_the_class_of_upstreams(connect: Callable[..., None]) -> None:
    """So that a receiver may ask for it, and hears the event as the other listeners do."""
    heard: list[tuple[object, ...]] = []

    def receiver(sender: type[Upstream], signal: Signal, event: HostEvent) -> None:
        heard.append((signal, sender, event))

    host_down.connect(receiver, sender=Upstream)
    bound: list[HostEvent] = []
    get_upstream().bind("host_down", bound.append)
    try:
        api().down_host("a", "a")
    finally:
        host_down.disconnect(receiver, sender=Upstream)
    assert heard == [(host_down, Upstream, *bound)]
    assert isinstance(bound[0], HostEvent)


def test_it_is_committed_and_unlocked_when_it_is_heard(connect: Callable[..., None]) -> None:
    """A receiver sees the host down, and may change what it likes, by any thread."""
    seen: list[bool] = []

    def receiver(event: HostEvent, **kwargs: object) -> None:
        with ThreadPoolExecutor(1) as thread:
            seen.append(thread.submit(lambda: get_upstream().get_pools()["a"]["hosts"]["a"]["up"]).result(WAIT_S))
            thread.submit(api().set_priority, "a", 5).result(WAIT_S)

    connect(receiver)
    api().down_host("a", "a")
    assert seen == [False]
    assert get_upstream().get_pools()["a"]["priority"] == 5


def test_what_a_request_saw_is_heard_when_its_response_is_over(heard: list[str]) -> None:
    """And not before; a receiver harms no request."""
    heard_in_view: list[str] = []

    def view(request: UpstreamHttpRequest) -> HttpResponse:
        fail(request.upstream)
        heard_in_view.extend(heard)
        return HttpResponse("fine")

    class Urls:
        urlpatterns = (path("", view),)

    middleware = ["resty_upstream.contrib.django.UpstreamMiddleware"]
    with override_settings(ROOT_URLCONF=Urls, MIDDLEWARE=middleware):
        assert Client().get("/").content == b"fine"
    assert heard_in_view == []
    assert heard == ["host_down a of default"]


def test_one_that_raises_is_logged_and_harms_nobody(
    connect: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """The others hear it, and whoever caused it goes on; whether it is a coroutine function or not."""

    def broken(**kwargs: object) -> None:
        raise RuntimeError("the receiver")

    async def abroken(**kwargs: object) -> None:
        raise RuntimeError("the coroutine")

    heard: list[str] = []

    def receiver(event: HostEvent, **kwargs: object) -> None:
        heard.append(described(event))

    for each in (broken, abroken, receiver):
        connect(each)
    with caplog.at_level(logging.ERROR, "django.dispatch"):
        api().down_host("a", "a")
        asyncio.run(on_loop(lambda: api().up_host("a", "a")))
    assert heard == ["host_down a of default", "host_up a of default"]
    said = [record.getMessage() for record in caplog.records if record.name == "django.dispatch"]
    assert sorted("coroutine" in text for text in said) == [False, False, True, True]


def test_overridden_settings_have_signals_too(heard: list[str]) -> None:
    """Each upstream that is made of a setting has them; those of before keep theirs."""
    before = UpstreamAPI(get_upstream())
    with override_settings(UPSTREAMS={"inside": options()}):
        api("inside").down_host("b", "b")
    api().down_host("c", "c")
    before.down_host("a", "a")
    assert heard == ["host_down b of inside", "host_down c of default", "host_down a of default"]


# ── on an event loop ──────────────────────────────────────────────────────────────────────────


async def on_loop(*changes: Callable[[], object]) -> None:
    """Make changes on an event loop, which goes on until their signals are heard."""
    for change in changes:
        change()
    if tasks := others():
        await asyncio.wait(tasks, timeout=WAIT_S)


def others() -> set[asyncio.Task[Any]]:
    """All tasks of the loop but this one."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def test_a_receiver_that_blocks_does_not_block_the_loop(connect: Callable[..., None]) -> None:
    """It runs in a thread; a coroutine function runs on the loop."""
    heard: list[object] = []
    reached, goes_on = threading.Event(), threading.Event()

    def receiver(**kwargs: object) -> None:
        reached.set()
        heard.append(goes_on.wait(WAIT_S))

    async def areceiver(**kwargs: object) -> None:
        heard.append(asyncio.get_running_loop())

    async def main() -> asyncio.AbstractEventLoop:
        api().down_host("a", "a")
        assert await asyncio.to_thread(reached.wait, WAIT_S)
        goes_on.set()
        await on_loop()
        return asyncio.get_running_loop()

    connect(receiver)
    connect(areceiver)
    loop = asyncio.run(main())
    assert sorted(heard, key=str) == [loop, True]


def test_sync_code_that_waits_for_a_loop_runs_receivers_in_its_own_thread(connect: Callable[..., None]) -> None:
    """As Django has it: so they share the transaction of a test."""
    heard: list[threading.Thread] = []
    connect(lambda **kwargs: heard.append(threading.current_thread()))
    async_to_sync(on_loop)(lambda: api().down_host("a", "a"))
    assert heard == [threading.current_thread()]


def test_on_a_loop_signals_come_in_the_order_of_the_events(connect: Callable[..., None]) -> None:
    """Also when a receiver takes longer with the first than with the others."""
    heard: list[str] = []

    async def receiver(event: HostEvent, **kwargs: object) -> None:
        if not heard:
            for _ in range(20):
                await asyncio.sleep(0)
        heard.append(f"{event.name} {event.host.id}")

    connect(receiver)
    changes = [lambda name=name: api().down_host(name, name) for name in "abc"]
    asyncio.run(on_loop(*changes, lambda: api().up_host("a", "a")))
    assert heard == ["host_down a", "host_down b", "host_down c", "host_up a"]


def test_a_loop_that_goes_on_sends_what_comes_later(connect: Callable[..., None]) -> None:
    """After a signal that was sent, and after one that was cancelled with all other tasks."""
    heard: list[str] = []
    tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
    reached = asyncio.Event()

    async def receiver(event: HostEvent, **kwargs: object) -> None:
        heard.append(event.host.id)
        tasks.update(asyncio.all_tasks())
        if event.host.id == "b":
            reached.set()
            await asyncio.Event().wait()

    async def main() -> None:
        await on_loop(lambda: api().down_host("a", "a"))
        api().down_host("b", "b")
        await reached.wait()
        for task in others():
            task.cancel()
        await on_loop()
        await on_loop(lambda: api().down_host("c", "c"))

    connect(receiver)
    asyncio.run(main())
    assert heard == ["a", "b", "c"]
    gc.collect()
    assert not list(tasks)  # none is kept when it is over


def test_what_happens_as_the_last_signal_is_over_is_heard(connect: Callable[..., None]) -> None:
    """When its task has ended, and the loop does not know yet."""
    heard: list[str] = []

    async def receiver(event: HostEvent, **kwargs: object) -> None:
        heard.append(event.host.id)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        api().down_host("a", "a")
        (task,) = others()
        happened = loop.create_future()

        def happen_when_over() -> None:
            if task.done():
                api().down_host("b", "b")
                happened.set_result(None)
            else:
                loop.call_soon(happen_when_over)  # and so before any callback of the task

        happen_when_over()
        await happened
        await asyncio.sleep(0)
        await on_loop()

    connect(receiver)
    asyncio.run(main())
    assert heard == ["a", "b"]


def test_a_receiver_that_nobody_else_refers_to_is_kept(connect: Callable[..., None]) -> None:
    """A loop alone would leave it to the garbage collector."""
    waiting: list[weakref.ref[asyncio.Future[None]]] = []
    reached = asyncio.Event()
    heard: list[str] = []

    async def receiver(event: HostEvent, **kwargs: object) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(weakref.ref(future))
        reached.set()
        await future
        heard.append(event.host.id)

    async def main() -> None:
        api().down_host("a", "a")
        await reached.wait()
        await asyncio.sleep(0)
        gc.collect()
        future = waiting[0]()
        assert future is not None
        future.set_result(None)
        await on_loop()

    connect(receiver)
    asyncio.run(main())
    assert heard == ["a"]


def test_the_end_of_a_request_does_not_wait_for_receivers(connect: Callable[..., None]) -> None:
    """Nor do they see its context: Django ends the threads of a request with it."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    reached, goes_on = threading.Event(), threading.Event()
    heard: list[object] = []

    def receiver(**kwargs: object) -> None:
        reached.set()
        heard.append((goes_on.wait(WAIT_S), variable.get()))

    async def request() -> None:
        variable.set("of the request")
        async with ThreadSensitiveContext():
            api().down_host("a", "a")
            assert await asyncio.to_thread(reached.wait, WAIT_S)

    async def main() -> None:
        await asyncio.create_task(request())
        goes_on.set()
        await on_loop()

    connect(receiver)
    asyncio.run(main())
    assert heard == [(True, "none")]


def test_a_loop_that_ends_at_once_loses_no_signal(connect: Callable[..., None]) -> None:
    """The last call of a script may be the one that fails: what is not sent yet is sent by a thread."""
    heard: list[str] = []

    async def main() -> None:
        for name in "abc":
            api().down_host(name, name)

    async def receiver(event: HostEvent, **kwargs: object) -> None:
        heard.append(event.host.id)

    connect(receiver)
    asyncio.run(main())
    wait_for_threads()
    assert heard == ["a", "b", "c"]


def test_a_loop_that_ends_while_a_receiver_is_at_work_loses_no_signal(connect: Callable[..., None]) -> None:
    """Nor is the one that is being sent cut off, or sent again."""
    heard: list[str] = []
    reached, goes_on, complete = threading.Event(), threading.Event(), threading.Semaphore(0)

    def receiver(event: HostEvent, **kwargs: object) -> None:
        if event.host.id == "a":
            reached.set()
            goes_on.wait(WAIT_S)
        heard.append(event.host.id)
        complete.release()

    async def main() -> None:
        for name in "abc":
            api().down_host(name, name)
        assert await asyncio.to_thread(reached.wait, WAIT_S)

    connect(receiver)
    asyncio.run(main())
    wait_for_threads()
    goes_on.set()
    assert all(complete.acquire(timeout=WAIT_S) for _ in "abc")
    assert heard == ["b", "c", "a"]


def wait_for_threads() -> None:
    """Wait until the threads have ended that send what a loop left."""
    for thread in threading.enumerate():
        if thread.name == "resty_upstream signals":
            thread.join(WAIT_S)


def test_each_loop_has_signals_of_its_own(connect: Callable[..., None]) -> None:
    """One after the other, and one beside the other."""
    heard: list[asyncio.AbstractEventLoop] = []
    together = threading.Barrier(2)

    async def receiver(**kwargs: object) -> None:
        await asyncio.to_thread(together.wait, WAIT_S)
        heard.append(asyncio.get_running_loop())

    def run(name: str) -> None:
        asyncio.run(on_loop(lambda: api().down_host(name, name)))

    connect(receiver)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(run, "ab"))
    assert len(set(map(id, heard))) == 2


# ── nothing for those who do not want it ──────────────────────────────────────────────────────


def test_without_receivers_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on a loop nor elsewhere."""
    sent: list[str] = []
    for name in ("send_robust", "asend_robust"):
        monkeypatch.setattr(host_down, name, lambda *args, name=name, **options: sent.append(name))

    async def main() -> set[Any]:
        api().down_host("a", "a")
        return others()

    assert asyncio.run(main()) == set()
    api().down_host("b", "b")
    assert sent == []


BEFORE_USE = """
import sys, django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["resty_upstream.contrib.django"],
    UPSTREAMS={"default": {"STORE": "memory://"}},
)
django.setup()
from resty_upstream.contrib.django import get_upstream
before = "resty_upstream.contrib.django.signals" in sys.modules
get_upstream()
print(before, "resty_upstream.contrib.django.signals" in sys.modules)
"""


def test_nothing_of_it_is_loaded_before_an_upstream_is_used() -> None:
    """By a process that serves no request, or none that uses one."""
    command = python("-W", "error", "-c", BEFORE_USE)
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"]


# ── in real servers ───────────────────────────────────────────────────────────────────────────

PROJECT = "tests.contrib.django.signals_project"
UVICORN = ("-m", "uvicorn", f"{PROJECT}.asgi:application", "--timeout-graceful-shutdown=3", "--port")
GUNICORN = ("-m", "gunicorn", f"{PROJECT}.wsgi", "--workers=2", "--no-control-socket", "--bind")


class Site:
    """The site in a server, and its commands."""

    def __init__(self, environment: dict[str, str], directory: Path, port: int, name: str) -> None:
        self.port = port
        self._name = name
        self.database = directory / "database"
        self._directory = directory
        self._environment = {
            **environment,
            "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings",
            "SITE_STORE": f"sqlite://{directory}/store/upstreams.db",
            "SITE_DATABASE": str(self.database),
        }

    def serve(self, *command: object) -> Process:
        """A server that answers; a context manager that ends it."""
        server = self._run("server", *command)
        wait_until_answers(server, self.port, "/ping")
        return server

    def take_down(self) -> None:
        """``manage.py`` takes a host down by hand, and is over."""
        options = ["upstream", "down-host", "reserve", "alive", "--upstream", "loop"]
        command = self._run("command", "-m", "django", *options)
        assert command.wait() == 0, command.printed()

    def _run(self, role: str, *command: object) -> Process:
        environment = {**self._environment, "SITE_ROLE": f"{role} of {self._name}"}
        return Process(python(*command), environment, self._directory / role)


@pytest.fixture
def site(environment: dict[str, str], tmp_path: Path, ports: Ports, name: str) -> Site:
    return Site(environment, tmp_path, ports.reserve(), name)


@pytest.fixture
def all_heard(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """All events that a process wrote before it ended, in alphabetical order."""
    monkeypatch.setenv("JOURNAL", str(journal.path))

    def all_heard(hearer: str) -> list[str]:
        write("now", hearer)
        journal.wait_for("now", hearer)
        return sorted(event for event in journal.of(hearer) if event != "now")

    return all_heard


BOTH_HEARD = ["host_down on a loop", "host_down with a new connection"]


@pytest.mark.parametrize("alias", ["default", "loop"])
def test_under_asgi_a_receiver_that_blocks_holds_up_nobody(
    site: Site, alias: str, gate: Gate, journal: Journal, name: str, all_heard: Callable[[str], list[str]]
) -> None:
    """Neither its request nor others."""
    hearer = f"{alias} in server of {name}"
    with site.serve(*UVICORN, site.port):
        with gate:
            assert get(site.port, f"/{alias}?gate={gate.port}").body == b"alive"
            gate.wait_until_reached()
            assert get(site.port, "/ping").body == b"pong"
            assert "host_down with a new connection" not in journal.of(hearer)
        for event in BOTH_HEARD:
            journal.wait_for(event, hearer)
    assert all_heard(hearer) == BOTH_HEARD


def open_files(process: Process) -> set[str]:
    """What a process has open."""
    found = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(link))
    return found


def test_under_asgi_a_receiver_may_use_the_database(site: Site, journal: Journal, name: str) -> None:
    """And leaves no connection behind, which may have died when the next one comes."""
    hearer = f"loop in server of {name}"
    with site.serve(*UVICORN, site.port) as server:
        for path, event in [("/loop", "host_down"), ("/up", "host_up")]:
            assert get(site.port, path).status == 200
            journal.wait_for(f"{event} with a new connection", hearer)
            wait_until(lambda: str(site.database) not in open_files(server), "the database is closed")


def test_one_of_all_processes_hears_it(site: Site, name: str, all_heard: Callable[[str], list[str]]) -> None:
    """The one that caused it: of several workers the first, and of a server and a command the command."""
    with site.serve(*GUNICORN, f"127.0.0.1:{site.port}"):
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: get(site.port, "/default"), range(16)))
        assert {answer.body for answer in answers} == {b"alive"}
        site.take_down()
    assert all_heard(f"default in server of {name}") == BOTH_HEARD
    assert all_heard(f"loop in command of {name}") == BOTH_HEARD
    assert all_heard(f"loop in server of {name}") == []
