"""Functions of the application that check its hosts."""

from __future__ import annotations

import asyncio
import errno
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream import InvalidConfig, Upstream, UpstreamAPI
from resty_upstream.health import runner
from resty_upstream.health.functions import CheckFunction, Functions
from resty_upstream.health.results import Result
from resty_upstream.model import pools_from_dicts
from resty_upstream.stores.memory import MemoryStore
from tests.health import functions
from tests.health.support import Site, checked, last_result
from tests.helpers import WAIT_S, health
from tests.stores.support import wait_until

OpenUpstream = Callable[..., Upstream]
StartSite = Callable[..., tuple[Site, dict[str, Any]]]

HERE = "tests.health.functions"
HOST = {"host": "a.test", "port": 8080}
SOON = {"interval": 0.1, "interval_down": 0.1}


def named(name: str, **options: Any) -> dict[str, Any]:
    """One pool with one host that this function checks."""
    return {"p": {"healthcheck": {"type": name, **SOON, **options}, "hosts": {"a": HOST}}}


def asked(function: CheckFunction, **check: Any) -> Result:
    """What a check by this function finds."""
    return checked(HOST, {"type": "named.there", "timeout": 50, "read_timeout": 100} | check, function)


# ── one call ──────────────────────────────────────────────────────────────────────────────────


def test_a_function_gets_host_port_and_the_seconds_that_it_has() -> None:
    for function in (functions.passes, functions.passes_async):
        assert asked(function, timeout=500, read_timeout=1500) == Result(True, "passed")
    assert functions.calls == [("a.test", 8080, 2.0)] * 2


@pytest.mark.parametrize(
    ("returned", "ok"), [(None, True), (True, True), (0, True), ("", True), (False, False)], ids=repr
)
def test_only_false_is_bad_of_what_a_function_returns(returned: object, ok: bool) -> None:
    async def coroutine(*_: object) -> object:
        return returned

    assert asked(lambda *_: returned).ok is ok
    assert asked(coroutine).ok is ok
    assert asked(lambda *args: coroutine(*args)).ok is ok


def failing(error: BaseException) -> list[CheckFunction]:
    def function(*_: object) -> None:
        raise error

    async def coroutine(*_: object) -> None:
        raise error

    return [function, coroutine]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no rows"), "ValueError: no rows"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "no"), "ECONNREFUSED"),
        (AssertionError(), "AssertionError: "),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 106),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_function_that_raises_is_bad_and_its_error_the_reason(error: BaseException, reason: str) -> None:
    for function in failing(error):
        assert asked(function) == Result(False, reason)


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(errno.EMFILE, "no"), "EMFILE"), (MemoryError(), "MemoryError")]
)
def test_an_error_of_this_machine_says_nothing_of_the_host(error: Exception, reason: str) -> None:
    for function in failing(error):
        assert asked(function) == Result(None, reason)


def test_a_function_that_hangs_is_bad_when_timeout_and_read_timeout_are_over() -> None:
    async def coroutine(*_: object) -> None:
        await asyncio.Event().wait()

    began = time.monotonic()
    assert asked(coroutine) == Result(False, "timed out")
    assert 0.14 < time.monotonic() - began < 5


# ── which may be called ───────────────────────────────────────────────────────────────────────


def test_only_what_the_settings_name_is_imported(caplog: pytest.LogCaptureFixture) -> None:
    declared = pools_from_dicts(named("tests.health.functions.passes")).pools
    module = "tests.health.never_imported"
    assert Functions().find(f"{module}.ping", declared) is None
    assert Functions().find("os.getcwd", declared) is None
    assert module not in sys.modules
    assert "do not name it" in caplog.text
    assert Functions().find(f"{HERE}.passes", declared) is functions.passes


@pytest.mark.parametrize(
    "pools",
    [
        {"p": {"healthcheck": {"type": f"{HERE}.passes"}}},
        {"p": {"hosts": {"a": {**HOST, "healthcheck": {"type": f"{HERE}.passes"}}}}},
        {"p": {"healthcheck": {"type": f"{HERE}.passes"}, "hosts": {"a": {**HOST, "healthcheck": False}}}},
    ],
    ids=["pool without hosts", "host", "pool whose host has none"],
)
def test_the_settings_name_a_function_wherever_it_is_in_them(pools: dict[str, Any]) -> None:
    assert Functions().find(f"{HERE}.passes", pools_from_dicts(pools).pools) is functions.passes


@pytest.mark.parametrize("name", ["no.such.module", f"{HERE}.missing", f"{HERE}.not_callable", "tests.helpers"])
def test_what_cannot_be_imported_or_called_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    declared = pools_from_dicts(named(name)).pools
    found = Functions()
    with caplog.at_level(logging.ERROR):
        assert [found.find(name, declared) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert name in caplog.text


@pytest.mark.parametrize(
    "name", ["ping", "", ".ping", "app.", "app..ping", "app:ping", "app.ping()", "1.x", "a.b;c"]
)
def test_what_is_no_place_of_a_function_is_refused(name: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^pools\.p\.healthcheck\.type must be 'http', 'tcp', or the place"):
        pools_from_dicts(named(name))


def test_a_function_that_only_the_store_names_is_not_called_and_its_host_stays_as_it_is(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    _, host = start_site()
    store = MemoryStore()
    upstream = open_upstream({"p": {"hosts": {"a": {**host, "healthcheck": SOON}}}}, store)
    upstream.open()
    other = open_upstream(None, store)
    pools = other.get_pools()
    pools["p"]["hosts"]["b"] = {**HOST, "healthcheck": {"type": f"{HERE}.passes", **SOON, "fall": 1}}
    other.save_pools(pools)
    upstream.start_checker()
    wait_until(lambda: last_result(upstream, "b"), "a result", WAIT_S)
    assert last_result(upstream, "b") == f"unknown: {HERE}.passes is not called here"
    assert functions.calls == []
    assert health(upstream, "b") == {"up": True, "failcount": 0, "lastfail": 0}


# ── called by the checker ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["passes", "passes_async"])
def test_the_checker_calls_the_functions_that_the_settings_name(open_upstream: OpenUpstream, name: str) -> None:
    upstream = open_upstream(named(f"{HERE}.{name}"))
    upstream.start_checker()
    wait_until(lambda: len(functions.calls) >= 3, "three calls", WAIT_S)
    wait_until(lambda: last_result(upstream, "a") == "ok: passed", "a result", WAIT_S)


def test_hosts_that_are_added_at_run_time_are_checked_by_the_function_of_their_pool(
    open_upstream: OpenUpstream,
) -> None:
    upstream = open_upstream({"p": {"healthcheck": {"type": f"{HERE}.passes", **SOON}}})
    upstream.start_checker()
    UpstreamAPI(upstream).add_host("p", id="a", host="a.test", port=8080)
    wait_until(lambda: functions.calls, "a call", WAIT_S)


def test_a_function_that_hangs_takes_its_host_down_and_delays_no_other(
    open_upstream: OpenUpstream, start_site: StartSite
) -> None:
    """It is not called again while it is at work."""
    site, host = start_site()
    check = {"type": f"{HERE}.hangs", **SOON, "timeout": 50, "read_timeout": 50, "fall": 3}
    upstream = open_upstream(
        {"p": {"healthcheck": SOON, "hosts": {"a": {**HOST, "healthcheck": check}, "b": host}}}
    )
    upstream.start_checker()
    site.wait_for(3)
    wait_until(lambda: not health(upstream, "a")["up"], "a goes down", WAIT_S)
    wait_until(lambda: last_result(upstream, "a").endswith("still at work"), "why", WAIT_S)
    site.wait_for(3)
    assert len(functions.calls) == 1
    functions.leave.set()
    wait_until(lambda: health(upstream, "a")["up"], "a comes back", WAIT_S)


def test_a_function_that_wants_to_end_the_process_does_not_end_the_checks(open_upstream: OpenUpstream) -> None:
    upstream = open_upstream(named(f"{HERE}.exits", fall=1))
    upstream.start_checker()
    wait_until(lambda: len(functions.calls) >= 3, "three calls", WAIT_S)
    wait_until(lambda: last_result(upstream, "a") == "failed: SystemExit: 3", "a result", WAIT_S)


def test_where_no_thread_can_be_started_a_function_says_nothing_and_is_called_later(
    open_upstream: OpenUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Thread.start
    refused: list[str] = []

    def start(thread: threading.Thread) -> None:
        if thread.name == "resty_upstream check" and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        begun(thread)

    monkeypatch.setattr(runner.threading.Thread, "start", start)
    upstream = open_upstream(named(f"{HERE}.passes", fall=1))
    upstream.start_checker()
    wait_until(lambda: functions.calls, "a call", WAIT_S)
    wait_until(lambda: last_result(upstream, "a") == "ok: passed", "a result", WAIT_S)
    assert upstream.history() == []


def test_a_process_ends_though_a_function_hangs() -> None:
    source = (
        "from resty_upstream import Upstream\n"
        "from resty_upstream.stores.memory import MemoryStore\n"
        "from tests.health import functions\n"
        "from tests.stores.support import wait_until\n"
        f"check = {{'type': '{HERE}.hangs', 'interval': 0.1, 'interval_down': 0.1}}\n"
        "pools = {'p': {'healthcheck': check, 'hosts': {'a': {'host': 'a.test'}}}}\n"
        "upstream = Upstream(MemoryStore(), pools=pools)\n"
        "upstream.start_checker()\n"
        "wait_until(lambda: functions.calls, 'a call')\n"
    )
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", source], timeout=60, check=False).returncode == 0
    assert time.monotonic() - began < 20
