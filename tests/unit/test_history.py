"""The flight recorder: every transition of a host is one record, and every record was a transition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import HostEvent, InvalidConfig, Upstream, UpstreamAPI
from resty_upstream.history import Transition, standing
from resty_upstream.replica import Observation
from resty_upstream.state import CheckFailed, CheckPassed, Eject, Failure, Success
from resty_upstream.testing import FakeClock
from tests.helpers import hosts, open_workers, take_down

IDS = "abc"


def stand(upstream: Upstream) -> dict[str, str]:
    """Where each host stands: up, failed or manual."""
    targets = upstream.replica.snapshot().targets.values()
    return {target.id: standing(target.state.status) for target in targets}


def do(action: str, host_id: str, upstream: Upstream, clock: FakeClock) -> None:
    """Something that a person, a request or a check does."""
    clock.advance(1)
    api, now = UpstreamAPI(upstream), clock()
    if action in ("down", "up"):
        getattr(api, f"{action}_host")("p", host_id, by="me")
        return
    if action == "revive":
        clock.advance(100)
        upstream.revive_hosts()
        return
    if action == "save":
        pools: dict[str, Any] = upstream.get_pools()
        host = pools["p"]["hosts"][host_id]
        host.update(up=not host["up"], lastfail=0)
        upstream.save_pools(pools)
        return
    facts = {
        "fails": Failure(now, now, now, 0, "refused"),
        "answers": Success(now, now),
        "bad": CheckFailed(now, now, now, 0, "check: status 503", 2),
        "good": CheckPassed(now, now, 2),
        "outlier": Eject(now, now, now, 0, "rate"),
    }
    target = upstream.replica.snapshot().targets[f"p\x1f{host_id}"]
    upstream.replica.observe([Observation(target, facts[action])])


_ACTIONS = st.sampled_from(
    ["down", "up", "revive", "save", "fails", "fails", "answers", "bad", "bad", "good", "good", "outlier"]
)


@given(st.lists(st.tuples(_ACTIONS, st.sampled_from(IDS), st.integers(0, 1)), max_size=40))
def test_no_transition_is_without_a_record_and_no_record_without_a_transition(
    actions: list[tuple[str, str, int]],
) -> None:
    """Whoever does what, in whichever process; events are the records that changed whether the host is up."""
    clock = FakeClock()
    workers = open_workers(2, {"p": {"hosts": hosts(*IDS), "max_fails": 2}}, clock)
    events: list[HostEvent] = []
    for worker in workers:
        worker.bind("host_up", events.append)
        worker.bind("host_down", events.append)
    moved: list[tuple[str, str, str]] = []
    for action, host_id, worker in actions:
        before = stand(workers[0])
        do(action, host_id, workers[worker], clock)
        after = stand(workers[0])
        moved += [(each, before[each], after[each]) for each in IDS if before[each] != after[each]]
    history = workers[1].history()
    recorded = [(each.host, each.before, each.after) for each in history]
    assert sorted(recorded) == sorted(moved)
    for host_id in IDS:
        of_host = [each for each in recorded if each[0] == host_id]
        assert [each[1] for each in of_host] == ["up", *(each[2] for each in of_host)][: len(of_host)]
    up_or_down = [each for each in recorded if "up" in each[1:]]
    told = [(event.host.id, event.name == "host_up") for event in events]
    assert sorted(told) == sorted((each[0], each[2] == "up") for each in up_or_down)


def test_a_record_says_what_why_when_who_and_which_process(tmp_path: Path) -> None:
    """Also to another process, after the one that wrote it is gone."""
    url = f"sqlite://{tmp_path}/store/upstreams.db"
    upstream = Upstream(url, pools={"p": {"hosts": hosts("a", "b")}})
    upstream.open()
    take_down(upstream, "a")
    UpstreamAPI(upstream).down_host("p", "b", reason="new kernel", by="ann")
    upstream.close()
    first, second = Upstream(url).history()
    assert (first.host, first.before, first.after, first.reason, first.by) == (
        "a",
        "up",
        "failed",
        "ECONNREFUSED",
        "",
    )
    assert (second.reason, second.by, second.process) == ("by hand: new kernel", "ann", first.process)
    assert 0 <= second.at - first.at < 60
    assert Upstream(url).history(1) == [second]


def test_what_cannot_be_read_is_left_out() -> None:
    (upstream,) = open_workers(1, {"p": {"hosts": hosts("a")}})
    for damaged in (b"", b"{", b'{"at": 1}', b"\xff"):
        upstream.store.transact(upstream.id, lambda view, data=damaged: view.log(data))  # type: ignore[misc]
    UpstreamAPI(upstream).down_host("p", "a")
    (transition,) = upstream.history()
    assert isinstance(transition, Transition)


@pytest.mark.parametrize("given_text", ["x" * 201, "two\nlines", 5, None])
@pytest.mark.parametrize("name", ["reason", "by"])
def test_remarks_are_text_in_one_line(name: str, given_text: Any) -> None:
    (upstream,) = open_workers(1, {"p": {"hosts": hosts("a")}})
    with pytest.raises(InvalidConfig, match=rf"^{name} must be at most 200 characters of text in one line, not "):
        UpstreamAPI(upstream).down_host("p", "a", **{name: given_text})
    assert upstream.get_pools()["p"]["hosts"]["a"]["up"]
