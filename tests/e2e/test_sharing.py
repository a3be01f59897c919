"""What one worker learns, all know: failures, probes, and what a person did."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.processes import PATIENCE_S, ROOT, Client, Silence, python, wait_until
from tests.e2e.site import Load, Site, ask, host_of
from tests.helpers import Peer

StartSite = Callable[..., Site]
LONG = {"failed_timeout": 60}  # no probe comes by during a test

# How the workers come to have the application
APPLICATIONS = {
    "imported by each worker": (),
    "imported before the fork": ("--preload",),
    "used before the fork": ("--preload", "tests.e2e.preloaded:application"),
}
in_each_way = pytest.mark.parametrize("options", APPLICATIONS.values(), ids=APPLICATIONS)


def fail_at(client: Client, site: Site, recorder: Peer, times: int) -> None:
    """Calls through one worker until it has failed at host a so often, each failure shared before the next."""
    for _ in range(20):
        ask(client)
        wait_until(lambda: site.host("a")["failcount"] == recorder.hits, "the failure is in the store")
        if recorder.hits == times:
            return
    raise AssertionError(f"host a was tried {recorder.hits} times")


def put_in_place_of_a(stack: ExitStack, site: Site, serve: Callable[[Any], None]) -> Peer:
    """Kill host a and serve its port from this process, where connections are counted."""
    site.backends["a"].kill()
    return stack.enter_context(Peer(serve, port=site.backends["a"].port))


@in_each_way
def test_after_one_worker_saw_max_fails_failures_the_others_stop_trying(
    start_site: StartSite, options: tuple[str, ...]
) -> None:
    """Counted by what is there instead of the host: it accepts, and closes at once."""
    site = start_site(workers=3, options=options, max_fails=3, timeout="2s", **LONG)
    with ExitStack() as stack:
        first, *others = [stack.enter_context(each) for each in site.connect_to_each_worker().values()]
        recorder = put_in_place_of_a(stack, site, lambda connection: None)
        fail_at(first, site, recorder, times=3)
        assert not site.host("a")["up"]
        assert {host_of(client) for client in others for _ in range(10)} == {"b"}
        assert recorder.hits == 3


def test_under_load_a_dead_host_is_tried_by_those_that_were_under_way_and_no_other(start_site: StartSite) -> None:
    """Besides ``max_fails``: calls under way, and calls that began while a failure was on its way to the store."""
    site = start_site(workers=3, max_fails=3, timeout="2s", **LONG)
    with ExitStack() as stack:
        load = stack.enter_context(Load(site.port, connections=6))
        load.wait_until_all_began_after_now()
        recorder = put_in_place_of_a(stack, site, lambda connection: None)
        wait_until(lambda: not site.host("a")["up"], "a is down")
        load.wait_until_all_began_after_now()
        tried = recorder.hits
        load.wait_until_all_began_after_now()
        assert recorder.hits == tried
        assert tried <= 3 + 3 * 6
        assert not load.failed()


def test_one_probe_at_a_time_across_all_workers(start_site: StartSite) -> None:
    """A host that accepts and never answers: while traffic flows past it, one request at a time tries it."""
    failed_timeout_s = 0.5
    site = start_site(
        workers=3, timeout="500ms", failed_timeout=failed_timeout_s, failed_timeout_max=failed_timeout_s
    )
    silence = Silence()
    with ExitStack() as stack:
        load = stack.enter_context(Load(site.port, connections=8))
        put_in_place_of_a(stack, site, silence)
        wait_until(lambda: not site.host("a")["up"], "a is down")
        load.wait_until_all_began_after_now()
        silence.forget()
        began = time.monotonic()
        wait_until(lambda: silence.total >= 3, "three probes")
        took_s = time.monotonic() - began
        assert silence.most_open == 1
        # Each waits for what is left of the jitter, and is then silent itself for the pool's timeout.
        assert silence.total <= 1 + took_s / (0.9 * failed_timeout_s)
        probing = [result for result in load.since(began) if "'attempts': 1" not in result.said]
        assert len(probing) <= silence.total + 1
        assert not load.failed()
        assert not site.host("a")["up"]


def test_a_worker_killed_in_the_middle_of_a_probe_blocks_nothing(start_site: StartSite) -> None:
    """Its lease ends by itself: the others go on, and one of them probes the host and brings it back."""
    site = start_site(workers=3, timeout="2s", max_fails=1, failed_timeout=1, failed_timeout_max=1)
    silence = Silence()
    with ExitStack() as stack:
        clients = site.connect_to_each_worker()
        for client in clients.values():
            stack.enter_context(client)
        victim = min(clients)
        others = [clients[pid] for pid in clients if pid != victim]
        recorder = put_in_place_of_a(stack, site, silence)
        wait_until(lambda: ask(others[0]) and not site.host("a")["up"], "a is down")
        wait_until(lambda: not silence.open, "the failed attempt is over")
        silence.forget()
        wait_until(lambda: _probe_is_under_way(clients[victim], silence), "the victim's next call is a probe")
        os.kill(victim, signal.SIGKILL)

        assert [ask(client).json["attempts"] for client in others for _ in range(2)] == [1] * 4
        assert silence.total == 1
        recorder.stop()
        site.backends["a"].start()
        site.backends["a"].wait_until_answers()
        wait_until(lambda: [ask(client) for client in others] and site.host("a")["up"], "a is probed and back")
        wait_until(lambda: len(site.pids()) == site.workers, "gunicorn has replaced the worker")
        assert {host_of(client) for client in others for _ in range(4)} == {"a", "b"}


def _probe_is_under_way(client: Client, silence: Silence) -> bool:
    """Make a call; whether it hangs at the silent host. It is left hanging then."""
    before = silence.total
    thread = threading.Thread(target=_ask_whatever_comes, args=[client], daemon=True)
    thread.start()
    return (
        bool(wait_until(lambda: silence.total > before or not thread.is_alive(), "an answer"))
        and thread.is_alive()
    )


def _ask_whatever_comes(client: Client) -> None:
    try:
        client.get("/raw")
    except OSError:
        pass  # the worker was killed


def change_host(site: Site, action: str, name: str) -> None:
    """``down`` or ``up`` in a process of its own, as an operator would."""
    pool = "dr" if name == "c" else "primary"
    command = python("-m", "resty_upstream", "--store", site.store, f"{action}-host", pool, name)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE_S)


@in_each_way
def test_a_host_taken_down_by_another_process_is_left_by_every_workers_next_request(
    start_site: StartSite, options: tuple[str, ...]
) -> None:
    """And used again by every worker as soon as it is put back."""
    site = start_site(options=options, **LONG)
    with ExitStack() as stack:
        clients = [stack.enter_context(client) for client in site.connect_to_each_worker().values()]
        for client in clients:
            assert {host_of(client), host_of(client)} == {"a", "b"}

        change_host(site, "down", "a")
        connections = site.backends["a"].connections()
        for client in clients:
            assert [host_of(client) for _ in range(4)] == ["b"] * 4
        assert site.backends["a"].connections() == connections

        change_host(site, "down", "b")
        assert {host_of(client) for client in clients for _ in range(2)} == {"c"}

        change_host(site, "up", "a")
        assert {host_of(client) for client in clients for _ in range(2)} == {"a"}

        change_host(site, "up", "b")
        for client in clients:
            assert {host_of(client), host_of(client)} == {"a", "b"}


def test_under_load_no_request_that_begins_after_down_host_reaches_the_host(start_site: StartSite) -> None:
    """Nor do failures or the passing of time bring it back."""
    site = start_site(failed_timeout=0.3, failed_timeout_max=0.3)
    with Load(site.port) as load:
        load.wait_until_all_began_after_now()
        change_host(site, "down", "a")
        down = load.wait_until_all_began_after_now()
        site.backends["b"].kill()  # not even when another host dies
        wait_until(lambda: not site.host("b")["up"], "b is down")
        site.backends["b"].start()
        site.backends["b"].wait_until_answers()
        wait_until(lambda: site.host("b")["up"], "b is back")
        again = load.wait_until_all_began_after_now()
        assert {result.host for result in load.since(down)} == {"b", "c"}
        assert {result.host for result in load.since(again)} == {"b"}

        change_host(site, "up", "a")
        up = time.monotonic()
        used = {(worker, host) for worker in site.pids() for host in "ab"}
        wait_until(
            lambda: {(result.worker, result.host) for result in load.since(up)} == used, "each worker uses a and b"
        )
    assert not load.failed()


# ── new workers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options", [(), ("--preload", "tests.e2e.preloaded:application")], ids=["new", "preloaded"]
)
def test_a_reload_keeps_what_was_learned_and_what_was_changed_by_hand(
    start_site: StartSite, options: tuple[str, ...]
) -> None:
    """``kill -HUP``: all workers are new, and know the failed host, the one taken down, and the weight."""
    site = start_site(options=options, **LONG)
    with ExitStack() as stack:
        old = site.connect_to_each_worker()
        recorder = put_in_place_of_a(stack, site, lambda connection: None)
        fail_at(next(iter(old.values())), site, recorder, times=2)
        for client in old.values():
            client.close()
        change_host(site, "down", "c")
        site.api.set_weight("primary", "b", 7)
        before = site.upstream.get_pools()

        site.process.signal(signal.SIGHUP)
        wait_until(
            lambda: not site.pids() & old.keys() and len(site.pids()) == site.workers, "all workers are new"
        )
        new = [stack.enter_context(client) for client in site.connect_to_each_worker().values()]

        assert {host_of(client) for client in new for _ in range(4)} == {"b"}
        assert recorder.hits == 2
        assert site.upstream.get_pools() == before
        assert (before["primary"]["hosts"]["b"]["weight"], before["primary"]["hosts"]["a"]["weight"]) == (7, 10)
        assert (before["dr"]["hosts"]["c"]["up"], before["dr"]["hosts"]["c"]["lastfail"]) == (False, 0)


def test_workers_with_an_upstream_that_was_used_before_the_fork_are_told_apart(start_site: StartSite) -> None:
    """The use in the master happened there, and harms neither the master nor its workers."""
    site = start_site(options=("--preload", "tests.e2e.preloaded:application"), **LONG)
    printed = site.process.printed()
    assert f"process {site.process.pid} was told" in printed
    with Load(site.port) as load:
        load.wait_until_all_began_after_now()
        load.wait_until_all_began_after_now()
    assert not load.failed()
    assert {result.host for result in load.results} == {"a", "b"}
    assert "Error" not in site.process.printed()
