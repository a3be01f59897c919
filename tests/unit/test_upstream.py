"""The facade: opening, looking, saving; several upstreams and several workers in one store."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream import (
    HostExists,
    HostNotFound,
    InvalidConfig,
    MethodNotFound,
    NoHostAvailable,
    PoolNotFound,
    Problem,
    StoreBusy,
    StoreFormatError,
    StoreUnavailable,
    StoreUnsafe,
    Upstream,
    UpstreamAPI,
    UpstreamError,
    UpstreamNotFound,
)
from resty_upstream.model import decode_config
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import (
    Fate,
    health,
    hosts,
    open_upstream,
    open_workers,
    refused,
    take_down,
    visit,
    visit_in_vain,
)
from tests.stores.support import other_connection
from tests.unit import strategies

POOLS: dict[str, Any] = {"p": {"hosts": hosts("a", "b")}, "dr": {"priority": 1, "hosts": hosts("c")}}


# ── opening ───────────────────────────────────────────────────────────────────────────────────


def test_configured_says_whether_the_store_held_pools_before(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    first = Upstream(store)
    assert first.configured is False
    UpstreamAPI(first).create_pool("p")
    assert first.configured is False, "it says how it was at the beginning"
    assert Upstream(store).configured is True
    assert Upstream(store, id="another").configured is False


def test_configured_is_false_for_the_one_who_configures() -> None:
    upstream = Upstream("memory://", pools=POOLS)
    visit(upstream)
    assert upstream.configured is False


@pytest.mark.parametrize(
    "store",
    [
        "",
        "memory",
        "memory:",
        "memory://x",
        "redis://",
        "sqlite://",
        "sqlite:///",
        "sqlite:///dir/",
        "sqlite://rel.db",
        "sqlite:///a.db?x=1",
        "postgres://x/y",
        "/run/x.db",
    ],
)
def test_a_url_that_names_no_store_is_refused_with_those_that_do(store: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^store must be 'memory://', 'sqlite:///"):
        Upstream(store)


@pytest.mark.parametrize("store", [None, 5, object(), {}])
def test_what_is_no_store_is_refused(store: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"^store must be a URL or a store object; .* lacks "):
        Upstream(store)


def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    upstream = Upstream(f"sqlite://{tmp_path}/store/upstreams.db", pools=POOLS)
    assert list(tmp_path.iterdir()) == []
    visit(upstream)
    assert (tmp_path / "store" / "upstreams.db").exists()
    upstream.store.close()


@pytest.mark.parametrize(
    ("given", "seconds"), [("15s", 15), (2500, 2.5), ("250ms", 0.25), (timedelta(seconds=3), 3), ("100", 0.1)]
)
def test_total_timeout_is_milliseconds_or_says_its_unit(given: Any, seconds: float) -> None:
    assert Upstream("memory://", total_timeout=given).total_timeout_s == seconds


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"total_timeout": 0}, "total_timeout must be a number of milliseconds above 0"),
        ({"total_timeout": "soon"}, "total_timeout must be a number of milliseconds above 0"),
        ({"total_timeout": True}, "total_timeout must be a number of milliseconds above 0"),
        ({"last_resort": "yes"}, "last_resort must be true or false, not 'yes'"),
        ({"id": ""}, "the id of an upstream must be"),
        ({"id": None}, "the id of an upstream must be"),
        ({"pools": 5}, "pools must be a mapping by id, not 5"),
    ],
)
def test_options_that_are_wrong_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfig, match=f"^{problem}"):
        Upstream("memory://", **options)


def test_open_opens_the_store_and_stores_what_is_declared(tmp_path: Path) -> None:
    """As a server does before its first request."""
    url = f"sqlite://{tmp_path}/private/upstreams.db"
    upstream = Upstream(url, pools={"p": {"hosts": hosts("a")}})
    upstream.open()
    assert list(Upstream(url).get_pools()) == ["p"]


def test_open_refuses_a_store_that_others_could_change_and_nothing_else(tmp_path: Path) -> None:
    """Whatever else is wrong with it, requests are served from what is declared."""
    tmp_path.chmod(0o777)
    pools = {"p": {"hosts": hosts("a")}}
    with pytest.raises(StoreUnsafe, match="chmod 700"):
        Upstream(f"sqlite://{tmp_path}/upstreams.db", pools=pools).open()
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("")
    upstream = Upstream(f"sqlite://{tmp_path}/file/upstreams.db", pools=pools)
    upstream.open()
    assert visit(upstream) == ["a"]


def test_close_writes_what_waits_and_may_be_called_again(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/private/upstreams.db"
    upstream = Upstream(url, pools={"p": {"max_fails": 9, "hosts": hosts("a")}})
    visit(upstream)
    with other_connection(f"{tmp_path}/private/upstreams.db") as db:
        db.execute("BEGIN IMMEDIATE")
        visit_in_vain(upstream, {"a": refused})
        assert upstream.replica.has_queue
        db.execute("ROLLBACK")
    upstream.close()
    upstream.close()
    assert health(Upstream(url), "a")["failcount"] == 1
    assert visit(upstream) == ["a"], "use opens it again"


def test_a_memory_url_is_a_store_of_its_own_each_time() -> None:
    Upstream("memory://").configure(POOLS)
    assert Upstream("memory://").get_pools() == {}


def test_several_upstreams_share_a_store_and_nothing_else(clock: FakeClock) -> None:
    store = MemoryStore(clock)
    one, two = Upstream(store, id="one"), Upstream(store, id="two")
    one.configure(POOLS)
    two.configure({"p": {"hosts": hosts("x")}})
    UpstreamAPI(one).down_host("p", "a")
    take_down(one, "b")
    assert visit(two) == ["x"]
    assert list(two.get_pools()) == ["p"]
    UpstreamAPI(two).remove_pool("p")
    assert visit(one) == ["c"]


# ── looking ───────────────────────────────────────────────────────────────────────────────────


def test_get_pools_has_the_shape_of_the_seed() -> None:
    upstream = open_upstream(
        {"primary": {"timeout": 100, "hosts": {"web01": {"host": "127.0.0.1", "weight": 10}}}}
    )
    pool = upstream.get_pools()["primary"]
    assert {name: pool[name] for name in ("up", "method", "timeout", "priority", "hosts")} == {
        "up": True,
        "method": "round_robin",
        "timeout": 100,
        "priority": 0,
        "hosts": {
            "web01": {"host": "127.0.0.1", "weight": 10, "port": 80, "lastfail": 0, "failcount": 0, "up": True}
        },
    }


def test_what_get_pools_returned_can_be_changed_and_changes_nothing() -> None:
    upstream = open_upstream(POOLS)
    before = copy.deepcopy(upstream.get_pools())
    pools = upstream.get_pools()
    pools["p"]["hosts"]["a"]["up"] = False
    pools["p"]["hosts"].clear()
    pools.clear()
    assert upstream.get_pools() == before


def test_get_pools_is_plain_json() -> None:
    upstream = open_upstream(POOLS)
    visit_in_vain(upstream, dict.fromkeys("abc", refused))
    pools = upstream.get_pools()
    assert json.loads(json.dumps(pools)) == pools


def test_counts_that_need_not_be_told_to_other_workers_are_seen_by_who_looks() -> None:
    first, second = open_workers(2, {"p": {"hosts": hosts("a")}})
    visit_in_vain(first, {"a": refused})
    visit(second, {})
    visit_in_vain(first, {"a": refused})
    visit_in_vain(first, {"a": refused})
    take_down(first, "a")
    assert health(second, "a")["failcount"] == 3


# ── saving ────────────────────────────────────────────────────────────────────────────────────


def stored(upstream: Upstream) -> Any:
    document = upstream.store.read(upstream.id)
    return decode_config(document.config), document.records


@given(
    strategies.pools,
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.sampled_from([0, 0.5, 20])), max_size=15),
)
def test_what_get_pools_returned_saved_again_changes_nothing(
    pools: dict[str, Any], history: list[tuple[int, bool, float]]
) -> None:
    clock = FakeClock()
    upstream = open_upstream(pools, clock)
    heard: list[object] = []
    for skipped, succeeds, seconds in history:
        clock.advance(seconds)
        attempts = upstream.attempts(key=str(skipped))
        try:
            for number, attempt in enumerate(attempts):
                with attempt:
                    if number < skipped or not succeeds:
                        raise refused()
        except NoHostAvailable:
            pass
    upstream.bind("host_up", heard.append)
    upstream.bind("host_down", heard.append)
    before, shown = stored(upstream), upstream.get_pools()
    upstream.save_pools(json.loads(json.dumps(shown)))
    assert stored(upstream) == before
    assert upstream.get_pools() == shown
    assert not heard


def test_save_pools_replaces_all_pools() -> None:
    upstream = open_upstream(POOLS)
    upstream.save_pools({"q": {"hosts": hosts("x")}})
    assert list(upstream.get_pools()) == ["q"]
    assert visit(upstream) == ["x"]
    assert len(stored(upstream)[1]) == 1, "no record of a host that is gone stays behind"


def test_save_pools_honours_health_that_is_given_and_keeps_that_of_hosts_without() -> None:
    upstream = open_upstream(POOLS)
    take_down(upstream, "a")
    upstream.save_pools(POOLS)
    assert not health(upstream, "a")["up"], "nothing was said of it"
    table = hosts("a", "b", "new")
    table["a"] |= {"up": True, "failcount": 1, "lastfail": 5}
    table["b"] |= {"up": False, "lastfail": 0}
    table["new"] |= {"up": False}
    upstream.save_pools({"p": {"hosts": table}})
    assert health(upstream, "a") == {"up": True, "failcount": 1, "lastfail": 5}
    for host_id in ("b", "new"):
        assert health(upstream, host_id) == {"up": False, "failcount": 0, "lastfail": 0}
    assert visit(upstream) == ["a"]


def test_save_pools_checks_all_of_it_or_stores_none_of_it() -> None:
    upstream = open_upstream(POOLS)
    before = stored(upstream)
    with pytest.raises(InvalidConfig):
        upstream.save_pools({"good": {"hosts": hosts("x")}, "bad": {"timeout": -1}})
    with pytest.raises(MethodNotFound):
        upstream.save_pools({"good": {"hosts": hosts("x")}, "bad": {"method": "fair"}})
    assert stored(upstream) == before


def test_sort_pools_takes_over_priorities_and_the_order_of_ties_and_nothing_else() -> None:
    upstream = open_upstream({"x": {"hosts": hosts("a")}, "y": {"hosts": hosts("b")}, "z": {"hosts": hosts("c")}})
    wanted = {"y": {"priority": 5, "timeout": 1}, "z": {"priority": -1}, "x": {"priority": 5}, "gone": {}}
    assert upstream.sort_pools(wanted) == ["z", "y", "x"]
    assert visit(upstream, dict.fromkeys("cb", refused)) == ["c", "b", "a"]
    pools = upstream.get_pools()
    assert list(pools) == ["z", "y", "x"]
    assert pools["y"]["timeout"] == 2000
    assert list(pools["y"]["hosts"]) == ["b"]


def test_sort_pools_of_what_get_pools_returned_gives_their_order() -> None:
    upstream = open_upstream({"x": {"priority": 3}, "y": {"priority": 1}, "z": {"priority": 1}})
    before = upstream.get_pools()
    assert upstream.sort_pools(before) == ["y", "z", "x"]
    assert upstream.get_pools() == before


# ── reviving ──────────────────────────────────────────────────────────────────────────────────


def test_revive_hosts_revives_those_whose_time_is_over_and_nobody_taken_down_by_hand(clock: FakeClock) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("early", "late", "manual", "healthy")}}, clock)
    take_down(upstream, "early")
    clock.advance(6)
    take_down(upstream, "late")
    UpstreamAPI(upstream).down_host("p", "manual")
    clock.advance(6)
    upstream.revive_hosts()
    up = {host_id: health(upstream, host_id)["up"] for host_id in ("early", "late", "manual", "healthy")}
    assert up == {"early": True, "late": False, "manual": False, "healthy": True}
    assert health(upstream, "early") == {"up": True, "failcount": 0, "lastfail": 0}


# ── lost records ──────────────────────────────────────────────────────────────────────────────


def test_a_record_that_cannot_be_read_is_taken_as_healthy_and_said(caplog: pytest.LogCaptureFixture) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})

    def damage(view: Any) -> None:
        view.put(view.keys()[0], b"{")
        view.touch()

    upstream.store.transact(upstream.id, damage)
    assert visit(upstream) == ["a"]
    assert "taken as healthy" in caplog.text


def replace_config(upstream: Upstream, data: bytes) -> None:
    def change(view: Any) -> None:
        view.config = data

    upstream.store.transact(upstream.id, change)


def test_a_damaged_configuration_is_written_back_from_what_a_worker_knows(clock: FakeClock) -> None:
    upstream = open_upstream(POOLS, clock)
    UpstreamAPI(upstream).down_host("p", "a")
    before = upstream.get_pools()
    replace_config(upstream, b"{")
    assert visit(upstream) == ["b"]
    assert upstream.get_pools() == Upstream(upstream.store).get_pools() == before


def test_a_damaged_configuration_is_begun_anew_by_a_worker_that_knows_nothing_else() -> None:
    store = MemoryStore(FakeClock())
    replace_config(Upstream(store), b"{")
    upstream = Upstream(store, pools=POOLS)
    assert len(visit(upstream)) == 1
    assert list(upstream.get_pools()) == ["p", "dr"]


def test_a_configuration_of_a_newer_release_fails_no_request_and_is_left_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream = open_upstream({"p": {"hosts": hosts("a")}})
    visit(upstream)
    newer = upstream.store.read(upstream.id).config.replace(b'"version":1', b'"version":2')
    replace_config(upstream, newer)
    for _ in range(3):
        assert visit(upstream) == ["a"]
    assert caplog.text.count("StoreDegraded") == 1
    assert upstream.store.read(upstream.id).config == newer
    with pytest.raises(StoreFormatError, match="version 2, this release reads version 1"):
        UpstreamAPI(upstream).create_pool("q")


# ── errors ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        InvalidConfig(["pools.p must be …", Problem("pools.q is not …", "option")]),
        MethodNotFound("no such method"),
        HostExists("there already"),
        PoolNotFound("no pool"),
        HostNotFound("no host"),
        UpstreamNotFound("no upstream"),
        StoreBusy("held"),
        StoreUnavailable("away"),
        NoHostAvailable("none", (), 502),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error: UpstreamError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name in ("problems", "status_hint"):
        assert getattr(again, name, None) == getattr(error, name, None)
    kinds = [[problem.kind for problem in getattr(each, "problems", ())] for each in (again, error)]
    assert kinds[0] == kinds[1]


class ClientError(Exception):
    """An exception of a library that neither comes back from a pickle nor goes into one."""

    def __init__(self, status: int, response: object) -> None:
        super().__init__(f"status {status}")
        self.response = response


def of_a_client() -> ClientError:
    error = ClientError(502, threading.Lock())
    error.__cause__ = refused()
    return error


def decorated() -> OSError:
    error = refused()
    error.response = threading.Lock()
    return error


@pytest.mark.parametrize(
    "fate",
    [refused, of_a_client, lambda: ExceptionGroup("all", [of_a_client()]), decorated],
    ids=["builtin", "client", "group", "decorated"],
)
def test_an_error_with_attempts_survives_pickling_and_copying(fate: Fate) -> None:
    """A task's exception goes from one process to another."""
    error = visit_in_vain(open_upstream({"p": {"hosts": hosts("a")}}), {"a": fate})
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(again), again.status_hint) == (str(error), 504)
        (attempt,) = again.attempts
        assert (attempt.pool.id, attempt.host.id, attempt.outcome) == ("p", "a", "failed")
        assert isinstance(attempt.error, Exception)


def test_errors_are_of_the_kinds_that_callers_expect() -> None:
    assert issubclass(InvalidConfig, ValueError)
    assert issubclass(PoolNotFound, LookupError)
    assert issubclass(HostNotFound, LookupError)
    assert issubclass(NoHostAvailable, ConnectionError)
    assert issubclass(UpstreamNotFound, KeyError)
    assert str(UpstreamNotFound("without quotes")) == "without quotes"


def test_a_repr_names_the_upstream() -> None:
    assert repr(Upstream("memory://", id="backends")).startswith("<Upstream 'backends' in ")
