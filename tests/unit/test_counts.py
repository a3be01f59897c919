"""What is counted of each host: what became of every attempt, once, in the right place."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import HostCounts, NoHostAvailable, Upstream, UpstreamAPI
from resty_upstream import counts as layout
from resty_upstream.attempts import BadAnswer, Excused
from resty_upstream.counts import BOUNDS_S, KINDS, host_counts, row_key
from resty_upstream.stores import counters
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import Peer, hosts, open_upstream, open_workers, refused, take_down, visit, visit_in_vain
from tests.stores.support import in_threads

ONE = {"p": {"hosts": hosts("a"), "max_fails": 1000}}
TWO = {"p": {"hosts": hosts("a", "b"), "max_fails": 1000}}


def counts(upstream: Upstream, host_id: str = "a", pool_id: str = "p") -> HostCounts:
    return upstream.counts().hosts[pool_id, host_id]


def failures(counted: HostCounts) -> dict[str, int]:
    """Those kinds of which there were any."""
    return {kind: number for kind, number in counted.failures.items() if number}


def of_each_host(upstream: Upstream, number: Callable[[HostCounts], int]) -> int:
    return sum(number(counted) for counted in upstream.counts().hosts.values())


# ── the layout ────────────────────────────────────────────────────────────────────────────────


def test_each_number_has_a_cell_of_its_own() -> None:
    single = ("BEGUN", "IGNORED", "SECONDS", "RETRIES", "LAST_RESORTS")
    cells = [getattr(layout, name) for name in single]
    cells += [*layout.FAILED.values(), *range(layout.BUCKETS, layout.BUCKETS + len(BOUNDS_S) + 1)]
    assert sorted(cells) == list(range(layout.SIZE))


def test_rows_of_stores_have_room_for_it_and_the_same_idea_of_what_is_under_way() -> None:
    assert layout.SIZE <= counters.CELLS
    assert (layout.BEGUN, layout.ENDS) == (0, counters.ENDS)
    assert {layout.IGNORED, *layout.FAILED.values()} <= set(range(1, counters.ENDS))
    assert layout.EXHAUSTED >= counters.ENDS


def test_bounds_go_up() -> None:
    assert sorted(set(BOUNDS_S)) == list(BOUNDS_S)


ids = st.text(min_size=1, max_size=5)


@given(st.lists(st.tuples(ids, ids, ids), unique=True, min_size=2, max_size=20))
def test_each_host_has_a_key_of_its_own_and_those_of_an_upstream_begin_alike(
    names: list[tuple[str, str, str]],
) -> None:
    keys = [row_key(*name) for name in names]
    upstreams = {name[0]: row_key(name[0]) for name in names}
    assert len({*keys, *upstreams.values()}) == len(names) + len(upstreams)
    assert {len(key) for key in keys} == {counters.KEY_BYTES}
    groups = {key[: counters.GROUP_BYTES] for key in [*keys, *upstreams.values()]}
    assert len(groups) == len(upstreams)


@given(st.lists(st.integers(0, 2**50), min_size=layout.SIZE, max_size=layout.SIZE))
def test_a_row_is_read_as_it_was_written(numbers: list[int]) -> None:
    counted = host_counts([float(number) for number in numbers])
    assert [counted.in_flight, counted.ignored] == numbers[:2]
    assert [*counted.failures.values(), *counted.buckets, counted.seconds] == numbers[2 : layout.ENDS + 1]
    assert [counted.retries, counted.last_resorts] == numbers[layout.ENDS + 1 :]
    assert counted.successes == sum(counted.buckets)


# ── what is counted ───────────────────────────────────────────────────────────────────────────


def test_before_the_first_request_all_numbers_of_every_host_are_0() -> None:
    found = open_upstream(TWO).counts()
    nothing = HostCounts(0, dict.fromkeys(KINDS, 0), 0, 0, 0, 0, 0.0, (0,) * (len(BOUNDS_S) + 1))
    assert found.hosts == {("p", "a"): nothing, ("p", "b"): nothing}
    assert found.exhausted == 0


def test_an_upstream_without_pools_has_no_counts() -> None:
    assert Upstream("memory://").counts().hosts == {}


@pytest.mark.parametrize(
    ("took_s", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (0.07, 6), (10.0, 12), (10.1, 13), (1e6, 13)],
)
def test_a_success_is_counted_with_the_time_that_it_took(took_s: float, bucket: int) -> None:
    clock = FakeClock(0.0)  # where no digit is lost
    upstream = open_upstream(ONE, clock)
    for attempt in upstream.attempts():
        with attempt:
            clock.advance(took_s)
    counted = counts(upstream)
    assert (counted.successes, counted.seconds) == (1, took_s)
    assert [number for number, times in enumerate(counted.buckets) if times] == [bucket]
    assert not failures(counted)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refused(), "refused"),
        (OSError(errno.EHOSTUNREACH, "no route"), "unreachable"),
        (OSError(errno.ETIMEDOUT, "timed out"), "timeout"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset"),
        (BadAnswer("status 503"), "bad_answer"),
        (BadAnswer("no answer", answered=False), "timeout"),
    ],
    ids=repr,
)
def test_a_failure_is_counted_by_its_kind(error: Exception, kind: str) -> None:
    upstream = open_upstream(ONE)
    visit_in_vain(upstream, {"a": lambda: error})
    counted = counts(upstream)
    assert failures(counted) == {kind: 1}
    assert (counted.successes, counted.ignored, counted.seconds, counted.in_flight) == (0, 0, 0.0, 0)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        TimeoutError(),  # at once, which was the caller's own
        OSError(errno.EMFILE, "too many"),
        Excused(ValueError("not its fault")),
    ],
    ids=repr,
)
def test_what_says_nothing_of_the_host_is_counted_apart(error: BaseException) -> None:
    upstream = open_upstream(ONE)
    with pytest.raises(type(error)):
        visit(upstream, {"a": lambda: error})
    counted = counts(upstream)
    assert (counted.ignored, counted.successes, counted.in_flight) == (1, 0, 0)
    assert not failures(counted)


def test_an_attempt_after_a_failed_one_is_a_retry_there() -> None:
    upstream = open_upstream(TWO)
    for _ in range(10):
        visit(upstream, {"a": refused})
    a, b = counts(upstream, "a"), counts(upstream, "b")
    assert (a.retries, b.retries) == (0, a.failures["refused"])
    assert b.successes == 10


def test_an_attempt_at_a_host_that_is_down_is_a_last_resort_there() -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a"), "failed_timeout": 60}})
    take_down(upstream, "a")
    before = counts(upstream).last_resorts
    assert visit(upstream) == ["a"]
    assert counts(upstream).last_resorts == before + 1


def test_calls_that_end_without_a_host_are_counted_of_the_upstream() -> None:
    upstream = open_upstream(TWO)
    for _ in range(3):
        visit_in_vain(upstream, {"a": refused, "b": refused})
    assert upstream.counts().exhausted == 3
    assert visit(upstream) in (["a"], ["b"])
    assert upstream.counts().exhausted == 3


def test_a_call_without_any_host_is_counted() -> None:
    upstream = Upstream("memory://")
    with pytest.raises(NoHostAvailable):
        upstream.connect()
    assert upstream.counts().exhausted == 1


def test_an_attempt_is_in_flight_until_it_ends() -> None:
    upstream = open_upstream(ONE)
    for outer in upstream.attempts():
        with outer:
            for inner in upstream.attempts():
                with inner:
                    assert counts(upstream).in_flight == 2
            assert counts(upstream).in_flight == 1
    assert counts(upstream).in_flight == 0


FATES: dict[str, Callable[[], BaseException] | None] = {
    "ok": None,
    "refused": refused,
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "reset"),
    "ignored": lambda: ValueError("a bug"),
}


@given(st.lists(st.tuples(st.sampled_from(sorted(FATES)), st.floats(0, 20)), max_size=30))
def test_every_attempt_is_counted_once(story: list[tuple[str, float]]) -> None:
    clock = FakeClock(0.0)
    upstream = open_upstream(TWO, clock)
    seen: Counter[str] = Counter()
    seconds = 0.0
    for fate, took_s in story:
        try:
            for attempt in upstream.attempts():
                with attempt:
                    clock.advance(took_s)
                    if make := FATES[fate]:
                        raise make()
                seen[attempt.outcome] += 1
                seconds += attempt.duration_s if attempt.outcome == "ok" else 0.0
        except NoHostAvailable:
            seen["exhausted"] += 1
        except ValueError:
            seen["ignored"] += 1
    assert of_each_host(upstream, lambda c: c.successes) == seen["ok"]
    assert of_each_host(upstream, lambda c: sum(c.failures.values())) == seen["failed"]
    assert of_each_host(upstream, lambda c: c.ignored) == seen["ignored"]
    assert of_each_host(upstream, lambda c: c.in_flight) == 0
    assert sum(c.seconds for c in upstream.counts().hosts.values()) == pytest.approx(seconds)
    assert upstream.counts().exhausted == seen["exhausted"]


@pytest.mark.anyio
async def test_connect_and_aconnect_are_counted(start_peer: Callable[..., Peer]) -> None:
    upstream = Upstream("memory://", pools={"p": {"hosts": {"a": start_peer().options}}})
    upstream.connect().client.close()
    (_, writer), _ = await upstream.aconnect()
    writer.close()
    await writer.wait_closed()
    counted = counts(upstream)
    assert (counted.successes, counted.in_flight) == (2, 0)
    assert 0 < counted.seconds < 10


# ── whose it is ───────────────────────────────────────────────────────────────────────────────


def test_those_that_share_a_store_count_together() -> None:
    one, two = open_workers(2, ONE)
    visit(one)
    visit(two)
    visit_in_vain(two, {"a": refused})
    assert one.counts() == two.counts()
    assert (counts(one).successes, failures(counts(one)), one.counts().exhausted) == (2, {"refused": 1}, 1)


def test_upstreams_of_one_store_count_apart() -> None:
    store = MemoryStore()
    one, two = Upstream(store, "one", pools=ONE), Upstream(store, "two", pools=ONE)
    visit(one)
    assert (counts(one).successes, counts(two).successes) == (1, 0)
    visit_in_vain(two, {"a": refused})
    assert (one.counts().exhausted, two.counts().exhausted) == (0, 1)


def test_hosts_of_one_name_in_two_pools_count_apart() -> None:
    pools = {"p": {"hosts": hosts("a")}, "q": {"hosts": hosts("a"), "priority": 1}}
    upstream = open_upstream(pools)
    visit(upstream)
    assert (counts(upstream).successes, counts(upstream, pool_id="q").successes) == (1, 0)


def test_counts_go_on_while_hosts_go_down_and_come_back_and_their_options_change() -> None:
    clock = FakeClock()
    upstream = open_upstream({"p": {"hosts": hosts("a", "b"), "failed_timeout": 10}}, clock)
    visit(upstream)
    take_down(upstream, "a")
    succeeded = of_each_host(upstream, lambda c: c.successes)
    assert failures(counts(upstream)) == {"refused": 3}
    clock.advance(60)
    visit(upstream)
    UpstreamAPI(upstream).set_weight("p", "a", 5)
    UpstreamAPI(upstream).add_host("p", host="c.test", id="c")
    for _ in range(4):
        visit(upstream)
    assert failures(counts(upstream)) == {"refused": 3}
    assert of_each_host(upstream, lambda c: c.successes) == succeeded + 5
    assert list(upstream.counts().hosts) == [("p", "a"), ("p", "b"), ("p", "c")]


def test_a_host_that_was_removed_is_not_shown() -> None:
    upstream = open_upstream(TWO)
    visit(upstream)
    UpstreamAPI(upstream).remove_host("p", "a")
    assert list(upstream.counts().hosts) == [("p", "b")]


# ── threads ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hasty_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="some may be lost without the GIL")
def test_no_count_of_threads_is_lost(hasty_switches: None) -> None:
    upstream = open_upstream(TWO)
    threads, calls = 8, 2000

    def work(_number: int) -> None:
        for call in range(calls):
            visit(upstream, {"a": refused} if call % 10 == 0 else None)

    in_threads(threads, work)
    assert of_each_host(upstream, lambda c: c.successes) == threads * calls
    a, b = counts(upstream, "a"), counts(upstream, "b")
    assert a.failures["refused"] == b.retries > 0
    for target in upstream.replica.snapshot().targets.values():
        assert target.row is not None
        cells = list(target.row.cells)
        assert cells[layout.BEGUN] == sum(cells[layout.BEGUN + 1 : layout.ENDS])
