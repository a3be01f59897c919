"""What a person did to a host for some time, in a file that several processes share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import Worker, ask, held_by_another, pools, wait_until

OpenStore = Callable[..., SqliteStore]

OPEN = """
upstream = Upstream(url)
heard = []
upstream.bind("host_up", lambda event: heard.append([event.host.id, event.reason]))
ask(upstream)
"""


def test_of_processes_that_serve_one_writes_what_is_over_and_has_the_event(
    path: str, start_worker: Callable[..., Worker]
) -> None:
    """Each asks again and again, as under traffic, on a wall clock that jumps to the time; none is told."""
    upstream = Upstream(f"sqlite://{path}", pools=pools("a", "b"))
    upstream.open()
    workers = [start_worker(), start_worker()]
    for worker in workers:
        worker.run(OPEN)
    api = UpstreamAPI(upstream)
    until = time.time() + 3600
    api.set_weight("p", "b", 5, reason="deploy", by="alice", until=until)
    api.down_host("p", "a", reason="new kernel", by="alice", until=until)
    for worker in workers:
        wait_until(lambda worker=worker: worker.run("{ask(upstream) for _ in range(4)} == {'b'}"), "what was done")
    serve = f"""
time.time = lambda: {until}
deadline = time.monotonic() + 10
while len(upstream.history()) < 4 and time.monotonic() < deadline:
    ask(upstream)
for _ in range(200):
    ask(upstream)
[heard, [each.after for each in upstream.history()], upstream.get_pools()["p"]["hosts"]]
"""
    for worker in workers:
        worker.begin(serve)
    (one, history, hosts), (other, same_history, same_hosts) = (worker.result() for worker in workers)
    assert [host_id for host_id, _ in one + other] == ["a"]
    assert sorted(history[2:]) == ["up", "weight 0"]
    assert (history, hosts) == (same_history, same_hosts)
    assert (hosts["a"]["up"], hosts["b"]["weight"]) == (True, 0)
    made_it = {each.process for each in upstream.history()[2:]}
    assert made_it <= {worker.pid for worker in workers}
    upstream.close()


def test_a_process_that_begins_after_it_was_over_finds_the_host_up_and_says_so(
    path: str, wall: FakeClock, open_store: OpenStore, clock: FakeClock
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    upstream.close()
    wall.advance(3600)
    later = Upstream(open_store())
    assert {ask(later) for _ in range(4)} == {"a", "b"}
    assert [each.after for each in later.history()] == ["manual", "up"]
    later.close()


@pytest.mark.parametrize("in_use", [True, False], ids=["in use", "new"])
def test_while_another_process_holds_the_file_it_is_over_all_the_same_and_written_later(
    path: str, wall: FakeClock, open_store: OpenStore, clock: FakeClock, in_use: bool
) -> None:
    upstream = Upstream(open_store(), pools=pools("a", "b"))
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    other = upstream if in_use else Upstream(open_store())
    other.explain()
    wall.advance(3600)
    clock.advance(5)
    with held_by_another(path):
        assert {ask(other) for _ in range(4)} == {"a", "b"}
        assert len(other.history()) == 1
    clock.advance(5)
    ask(other)
    assert [each.after for each in other.history()] == ["manual", "up"]
    for each in {upstream, other}:
        each.close()


def test_a_killed_process_takes_nothing_with_it_that_is_over(
    path: str, start_worker: Callable[..., Worker], wall: FakeClock
) -> None:
    """It noticed, and did not come to write it."""
    upstream = Upstream(f"sqlite://{path}", pools=pools("a", "b"))
    UpstreamAPI(upstream).down_host("p", "a", until="1h")
    wall.advance(3600)
    worker = start_worker()
    noticed: Any = worker.run(f"""
time.time = lambda: {wall()}
upstream = Upstream(url)
upstream.context().explain()
[upstream.replica.has_queue, upstream.get_pools()["p"]["hosts"]["a"]["up"]]
""")
    assert noticed == [True, True]
    worker.kill()
    assert [each.after for each in upstream.history()] == ["manual"]
    wait_until(lambda: ask(upstream) == "a", "the host that is back")
    assert [each.after for each in upstream.history()] == ["manual", "up"]
    upstream.close()
