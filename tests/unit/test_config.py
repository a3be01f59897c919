"""Upstreams by name, from code, a mapping or a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import InvalidConfig, MethodNotFound, StoreBusy, Upstream, UpstreamNotFound, Upstreams
from resty_upstream.errors import StoreUnsafe
from resty_upstream.stores import open_store
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.testing import FakeClock
from tests.helpers import health, hosts, refused, visit, visit_in_vain

POOLS: dict[str, Any] = {"p": {"hosts": hosts("a")}}
MEMORY: dict[str, Any] = {"store": "memory://", "pools": POOLS}

TOML = """
[default]
store = "memory://"
total_timeout = "2s"
last_resort = false

[default.pools.p]
timeout = 100
hosts.a = { host = "a.test", port = 8001 }

[other]
store = "memory://"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a file."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def problems_of(given: Any, **options: Any) -> dict[str, str]:
    """What is wrong with a configuration: the kind of each problem, by its sentence."""
    with pytest.raises(InvalidConfig) as caught:
        Upstreams(given, **options)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return {str(problem): problem.kind for problem in caught.value.problems}


# ── what may be given ─────────────────────────────────────────────────────────────────────────


def test_an_upstream_alone_is_the_one_named_default() -> None:
    upstream = Upstream("memory://", id="of another name")
    assert dict(Upstreams(upstream)) == {"default": upstream}


def test_a_mapping_holds_upstreams_or_their_options() -> None:
    upstream, store = Upstream("memory://"), open_store("memory://")
    options = {"store": store, "pools": POOLS, "total_timeout": "2s", "last_resort": False}
    upstreams = Upstreams({"ready": upstream, "made": options})
    assert upstreams["ready"] is upstream
    made = upstreams["made"]
    assert (made.id, made.store, made.total_timeout_s, made.last_resort) == ("made", store, 2.0, False)
    assert list(made.get_pools()["p"]["hosts"]) == ["a"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_toml_file_holds_an_upstream_in_each_table(
    kind: Callable[[Path], str | Path], write: Callable[..., Path]
) -> None:
    upstreams = Upstreams(kind(write("upstreams.toml", TOML)))
    assert list(upstreams) == ["default", "other"]
    assert (upstreams["default"].total_timeout_s, upstreams["default"].last_resort) == (2.0, False)
    pool = upstreams["default"].get_pools()["p"]
    assert (pool["timeout"], pool["hosts"]["a"]["port"]) == (100, 8001)
    assert upstreams["other"].get_pools() == {}


def test_a_json_file_holds_the_mapping(write: Callable[..., Path]) -> None:
    upstreams = Upstreams(write("upstreams.JSON", json.dumps({"default": MEMORY, "other": MEMORY})))
    assert list(upstreams) == ["default", "other"]
    assert upstreams["other"].get_pools() == upstreams["default"].get_pools()


def test_upstreams_are_a_mapping_that_cannot_be_changed() -> None:
    upstreams = Upstreams({"default": MEMORY, 5: MEMORY})
    assert isinstance(upstreams, Mapping)
    assert (list(upstreams), len(upstreams)) == (["default", "5"], 2)
    assert "5" in upstreams
    assert "6" not in upstreams
    assert upstreams.get("6") is None
    assert repr(upstreams) == "<Upstreams default, 5>"
    assert not hasattr(upstreams, "__setitem__")


@pytest.mark.parametrize(
    ("given", "known"), [({"default": MEMORY, "other": MEMORY}, "'default', 'other'"), ({}, "none")]
)
def test_an_unknown_name_is_a_key_error_that_names_those_there_are(given: dict[str, Any], known: str) -> None:
    with pytest.raises(UpstreamNotFound) as caught:
        Upstreams(given)["defualt"]
    assert isinstance(caught.value, KeyError)
    assert str(caught.value) == f"there is no upstream 'defualt'; configured: {known}"


# ── what is wrong is named ────────────────────────────────────────────────────────────────────

ONE_PROBLEM: list[tuple[Any, str, str]] = [
    (None, "upstreams must be a mapping by name, not NoneType", "structure"),
    ([MEMORY], "upstreams must be a mapping by name, not list", "structure"),
    (
        {"default": "memory://"},
        "upstreams.default must be an Upstream or a mapping of store, pools, total_timeout, last_resort, "
        "trusted_proxies, cookie_secret, not 'memory://'",
        "structure",
    ),
    ({"default": {**MEMORY, "pools": []}}, "upstreams.default.pools must be a mapping by id, not []", "structure"),
    (
        {"default": {**MEMORY, "pools": {"p": {"hosts": {"a": "a.test"}}}}},
        "upstreams.default.pools.p.hosts.a must be a mapping of options, not 'a.test'",
        "structure",
    ),
    (
        {"default": {**MEMORY, "totaltimeout": 5}},
        "upstreams.default.totaltimeout is not an option: did you mean total_timeout? "
        "options are store, pools, total_timeout, last_resort, trusted_proxies, cookie_secret",
        "option",
    ),
    (
        {"default": {**MEMORY, "zzz": 5}},
        "upstreams.default.zzz is not an option: "
        "options are store, pools, total_timeout, last_resort, trusted_proxies, cookie_secret",
        "option",
    ),
    (
        {"default": {**MEMORY, "last_resort": "no"}},
        "upstreams.default.last_resort must be true or false, not 'no'",
        "value",
    ),
    (
        {"default": {**MEMORY, "trusted_proxies": "10.0.0.0/8"}},
        "upstreams.default.trusted_proxies must be a list of IP addresses and networks, as ['10.0.0.0/8'], "
        "not '10.0.0.0/8'",
        "value",
    ),
    (
        {"default": {**MEMORY, "trusted_proxies": ["10.0.0.0/8", "proxy"]}},
        "upstreams.default.trusted_proxies[1] must be an IP address, a network without host bits as '10.0.0.0/8', "
        "or 'unix', not 'proxy'",
        "value",
    ),
    (
        {"default": {**MEMORY, "cookie_secret": "too short"}},
        "upstreams.default.cookie_secret must be text of at least 16 characters",
        "value",
    ),
    (
        {"default": {**MEMORY, "pools": {"p": {"hosts": hosts("a", port=0)}}}},
        "upstreams.default.pools.p.hosts.a.port must be a number from 1 to 65535, not 0",
        "value",
    ),
    ({"default": {}}, "upstreams.default.store must be given, as 'sqlite:///run/myapp/upstreams.db'", "missing"),
    (
        {"default": {**MEMORY, "pools": {"p": {"hosts": {"a": {}}}}}},
        "upstreams.default.pools.p.hosts.a.host must be given",
        "missing",
    ),
    (
        {"": MEMORY},
        "the name of an upstream must be 1 to 200 characters of text without control characters, "
        "or a whole number, not ''",
        "id",
    ),
    ({5: MEMORY, "5": MEMORY}, "upstreams.5 is given twice", "id"),
    ({"default": {**MEMORY, "pools": {1: {}, "1": {}}}}, "upstreams.default.pools.1 is given twice", "id"),
]


@pytest.mark.parametrize(("given", "sentence", "kind"), ONE_PROBLEM)
def test_a_problem_is_a_sentence_that_begins_with_its_path_and_knows_its_kind(
    given: Any, sentence: str, kind: str
) -> None:
    assert problems_of(given) == {sentence: kind}


@pytest.mark.parametrize(
    ("options", "path", "kind"),
    [
        ({"store": "mysql://localhost/db"}, "upstreams.default.store must be 'memory://', ", "store"),
        ({"store": ""}, "upstreams.default.store must be 'memory://', ", "store"),
        ({"store": 5}, "upstreams.default.store must be ", "store"),
        ({"total_timeout": -1}, "upstreams.default.total_timeout must be a number of milliseconds ", "value"),
        (
            {"pools": {"p": {"max_fail": 1}}},
            "upstreams.default.pools.p.max_fail is not an option: did you ",
            "option",
        ),
        ({"pools": {"p": {"method": "fastest"}}}, "upstreams.default.pools.p.method must be one of ", "method"),
        ({"pools": {"": {}}}, "upstreams.default.an id in pools must be ", "id"),
    ],
)
def test_problems_of_an_option_begin_with_its_path(options: dict[str, Any], path: str, kind: str) -> None:
    ((sentence, found),) = problems_of({"default": {**MEMORY, **options}}).items()
    assert sentence.startswith(path)
    assert found == kind


def test_all_problems_of_all_upstreams_are_named_at_once() -> None:
    """Whoever repairs the configuration has to try once."""
    wrong = {
        "stoer": 1,
        "store": "mysql://",
        "total_timeout": -1,
        "last_resort": "no",
        "trusted_proxies": [True, "10.0.0.1/8"],
        "cookie_secret": 5,
        "pools": {"p": {"timeout": -1}},
    }
    found = problems_of({"one": wrong, "two": {}, "three": MEMORY, "four": 4})
    assert [sentence.split()[0] for sentence in found] == [
        "upstreams.one.stoer",
        "upstreams.one.store",
        "upstreams.one.total_timeout",
        "upstreams.one.last_resort",
        "upstreams.one.trusted_proxies[0]",
        "upstreams.one.trusted_proxies[1]",
        "upstreams.one.cookie_secret",
        "upstreams.one.pools.p.timeout",
        "upstreams.two.store",
        "upstreams.four",
    ]


def test_the_class_of_the_error_is_kept_where_all_problems_are_of_one() -> None:
    unknown = {**MEMORY, "pools": {"p": {"method": "fastest"}}}
    with pytest.raises(MethodNotFound):
        Upstreams({"one": unknown, "two": unknown})
    with pytest.raises(InvalidConfig) as caught:
        Upstreams({"one": unknown, "two": {}})
    assert type(caught.value) is InvalidConfig


def test_a_wrong_configuration_opens_nothing(tmp_path: Path) -> None:
    problems_of({"one": {"store": f"sqlite://{tmp_path}/store/upstreams.db", "pools": POOLS}, "two": {}})
    assert not list(tmp_path.iterdir())


# ── files that are wrong ──────────────────────────────────────────────────────────────────────


def test_problems_in_a_file_begin_with_its_path(write: Callable[..., Path]) -> None:
    path = write(
        "upstreams.toml", '[default]\nstore = "memory://"\n[default.pools.p]\ntimeout = -1\n[other]\nstoer = 5\n'
    )
    found = problems_of(path)
    assert [sentence.split(" must be")[0].split(" is not")[0] for sentence in found] == [
        f"{path}: default.pools.p.timeout",
        f"{path}: other.stoer",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("upstreams.toml", '[default]\nstore = "memory://\n', r"line 2, column 19"),
        ("upstreams.json", '{"default": }', r"JSON is malformed.*\(byte 12\)"),
        ("upstreams.json", "", r"truncated"),
        ("upstreams.toml", b"[default]\nstore = '\xff'", r"utf-8.*position 19"),
        ("upstreams.yaml", "default: 5", r"the name of the file must end in \.toml or \.json"),
        ("toml", "", r"the name of the file must end in \.toml or \.json"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_that_names_the_place(
    name: str, content: str | bytes, message: str, write: Callable[..., Path]
) -> None:
    path = write(name, content)
    with pytest.raises(InvalidConfig, match=rf"^{path}: .*{message}") as caught:
        Upstreams(path)
    assert [problem.kind for problem in caught.value.problems] == ["structure"]


def test_a_file_that_is_not_there_is_a_problem_that_names_it(tmp_path: Path) -> None:
    missing, directory = tmp_path / "upstreams.toml", tmp_path / "directory.toml"
    directory.mkdir()
    assert problems_of(missing) == {f"{missing}: No such file or directory": "structure"}
    assert problems_of(directory) == {f"{directory}: Is a directory": "structure"}


def test_a_file_that_holds_something_else_is_a_problem_that_names_it(write: Callable[..., Path]) -> None:
    path = write("upstreams.json", "[]")
    assert problems_of(path) == {f"{path} must be a mapping by name, not list": "structure"}


# ── stores ────────────────────────────────────────────────────────────────────────────────────


def test_upstreams_that_name_the_same_store_share_it_and_keep_to_their_own_pools(tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite://{tmp_path}/store/upstreams.db"):
        upstreams = Upstreams({"one": {"store": url, "pools": POOLS}, "two": {"store": url, "pools": {"q": {}}}})
        assert upstreams["one"].store is upstreams["two"].store
        assert [list(upstream.get_pools()) for upstream in upstreams.values()] == [["p"], ["q"]]
        upstreams.close()


def test_two_configurations_share_no_store_object() -> None:
    assert Upstreams({"default": MEMORY})["default"].store is not Upstreams({"default": MEMORY})["default"].store


@pytest.fixture
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stores go that nobody names."""
    directory = tmp_path / "runtime"
    directory.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory))
    return directory


def default_place(given: Any, **options: Any) -> str:
    """The directory of the store of an upstream that names none."""
    upstreams = Upstreams(given, **options)
    upstreams.open()
    upstreams.close()
    store: Any = upstreams["default"].store
    return str(os.path.dirname(store.path))


def test_the_store_of_an_upstream_that_names_none_is_named_after_the_application(runtime_directory: Path) -> None:
    given = {"default": {"pools": POOLS}}
    one = default_place(given, application="one")
    assert os.path.dirname(one) == str(runtime_directory)
    assert default_place(given, application="one") == one
    assert default_place(given, application="two") != one


def test_the_application_of_a_file_is_its_path(
    runtime_directory: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a process was started that reads it; unless another name is given."""
    one, two = (write(f"{name}.toml", "[default.pools]\n") for name in ("one", "two"))
    monkeypatch.chdir(one.parent)
    assert default_place(one) == default_place("one.toml")
    assert default_place(one) != default_place(two)
    assert default_place(one, application="both") == default_place(two, application="both")


def test_upstreams_that_name_no_store_share_the_one_of_the_application(runtime_directory: Path) -> None:
    upstreams = Upstreams({"one": {}, "two": {}}, application="app")
    assert upstreams["one"].store is upstreams["two"].store


# ── opening and closing ───────────────────────────────────────────────────────────────────────


def open_files(directory: Path) -> list[str]:
    """The files below a directory that this process has open."""
    files = []
    for number in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the one with which the directory was listed
            continue
    return [file for file in files if file.startswith(str(directory))]


def test_stores_are_opened_by_open_or_by_use_and_closed_by_close(tmp_path: Path) -> None:
    upstreams = Upstreams({"default": {"store": f"sqlite://{tmp_path}/store/upstreams.db", "pools": POOLS}})
    assert not list(tmp_path.iterdir())
    for use in (upstreams.open, upstreams["default"].get_pools, upstreams.open):
        use()
        assert open_files(tmp_path)
        for _ in range(2):
            upstreams.close()
            assert not open_files(tmp_path)


def test_open_stores_what_is_declared(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store/upstreams.db"
    upstreams = Upstreams({"default": {"store": url, "pools": POOLS}})
    upstreams.open()
    other = Upstream(url)
    assert list(other.get_pools()) == ["p"]
    for each in (upstreams, other):
        each.close()


def test_open_refuses_a_store_that_others_could_change(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o777)
    upstreams = Upstreams({"default": {"store": f"sqlite://{tmp_path}/store/upstreams.db", "pools": POOLS}})
    with pytest.raises(StoreUnsafe, match=f"chmod 700 {tmp_path}/store"):
        upstreams.open()


def test_open_forgives_every_other_trouble_with_a_store(tmp_path: Path) -> None:
    """Requests are served from what is declared."""
    (tmp_path / "file").touch()
    upstreams = Upstreams({"default": {"store": f"sqlite://{tmp_path}/file/upstreams.db", "pools": POOLS}})
    upstreams.open()
    assert visit(upstreams["default"]) == ["a"]


class Held(MemoryStore):
    """A store that another process may hold."""

    held = False

    def transact(self, *args: Any, **options: Any) -> Any:
        if self.held:
            raise StoreBusy("held")
        return super().transact(*args, **options)


def test_close_writes_what_waits_to_be_written(clock: FakeClock) -> None:
    store = Held(clock=clock)
    upstreams = Upstreams({"default": {"store": store, "pools": POOLS}})
    upstreams.open()
    store.held = True
    visit_in_vain(upstreams["default"], {"a": refused})
    store.held = False
    clock.advance(1)
    upstreams.close()
    assert health(Upstream(store), "a")["failcount"] == 1
