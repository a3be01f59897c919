"""The store's files are private, and a place in which others could put theirs is refused with words that help."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resty_upstream.errors import StoreUnavailable
from resty_upstream.stores.sqlite import SqliteStore
from resty_upstream.testing import FakeClock
from tests.stores.support import putting, touch

OpenStore = Callable[..., SqliteStore]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
NOBODY = 65_534


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def assert_refused(store: SqliteStore, *words: str) -> None:
    """The store cannot be used, says so with these words, and does no harm on the hot path."""
    with pytest.raises(StoreUnavailable) as reading:
        store.read("a")
    with pytest.raises(StoreUnavailable) as writing:
        store.transact("a", touch)
    with pytest.raises(StoreUnavailable) as leasing:
        store.lease("a", "probe", "me", 1)
    for raised in (reading, writing, leasing):
        for word in words:
            assert word in str(raised.value)
    assert isinstance(store.version("a"), int)
    store.close()


# ── what is created ───────────────────────────────────────────────────────────────────────────


def test_directories_are_made_private(tmp_path: Path, umask: None, open_store: OpenStore) -> None:
    open_store(tmp_path / "one" / "two" / "upstreams.db").transact("a", touch)
    assert mode(tmp_path / "one") == 0o700
    assert mode(tmp_path / "one" / "two") == 0o700


def test_files_are_made_private(path: str, umask: None, store: SqliteStore) -> None:
    store.transact("a", touch)
    modes = {name: mode(Path(path).parent / name) for name in os.listdir(Path(path).parent)}
    names = [f"upstreams.db{suffix}" for suffix in ("", "-wal", "-shm", ".bell", ".lock")]
    assert modes == dict.fromkeys(names, 0o600)


def test_a_private_directory_that_is_there_is_used(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine").chmod(0o755)
    open_store(tmp_path / "mine" / "upstreams.db").transact("a", touch)
    assert mode(tmp_path / "mine") == 0o755
    assert mode(tmp_path / "mine" / "upstreams.db") == 0o600


def test_a_file_that_others_may_read_is_tightened_with_all_that_is_beside_it(
    path: str, store: SqliteStore, open_store: OpenStore
) -> None:
    store.transact("a", putting(x=b"1"))
    store.close()
    os.chmod(path, 0o644)
    other = open_store()
    assert other.read("a").records == {"x": b"1"}
    other.transact("a", touch)
    assert {suffix: oct(mode(path + suffix)) for suffix in ("", "-wal", "-shm")} == {
        "": "0o600",
        "-wal": "0o600",
        "-shm": "0o600",
    }


def test_a_directory_below_one_like_tmp_is_fine(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    open_store(tmp_path / "tmp" / "mine" / "upstreams.db").transact("a", touch)
    assert mode(tmp_path / "tmp" / "mine") == 0o700


def test_an_ancestor_that_a_group_can_write_is_fine(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o775)
    open_store(tmp_path / "shared" / "mine" / "upstreams.db").transact("a", touch)


# ── what is refused ───────────────────────────────────────────────────────────────────────────


def test_a_path_must_be_absolute() -> None:
    with pytest.raises(StoreUnavailable, match="must be absolute"):
        SqliteStore("upstreams.db")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path, open_store: OpenStore, dangling: bool) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    target = tmp_path / "target"
    if not dangling:
        target.write_bytes(b"precious")
    (tmp_path / "mine" / "upstreams.db").symlink_to(target)
    assert_refused(open_store(tmp_path / "mine" / "upstreams.db"), "is not a regular file", "name a file")
    assert target.exists() != dangling
    assert dangling or target.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".bell", ".lock"])
def test_a_link_in_place_of_a_file_beside_it_is_not_followed(
    tmp_path: Path, open_store: OpenStore, suffix: str
) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    target = tmp_path / "target"
    (tmp_path / "mine" / f"upstreams.db{suffix}").symlink_to(target)
    assert_refused(open_store(tmp_path / "mine" / "upstreams.db"))
    assert not target.exists()


def test_a_link_in_place_of_the_directory_is_refused(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    store = open_store(tmp_path / "link" / "upstreams.db")
    assert_refused(store, "is a symbolic link", str(tmp_path / "real"))
    assert os.listdir(tmp_path / "real") == []


@pytest.mark.parametrize("there", [False, True])
def test_a_link_above_the_directory_is_refused(tmp_path: Path, open_store: OpenStore, there: bool) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    if there:
        (tmp_path / "real" / "mine").mkdir(mode=0o700)
    store = open_store(tmp_path / "link" / "mine" / "upstreams.db")
    assert_refused(store, "is a symbolic link", str(tmp_path / "real" / "mine"))
    assert os.listdir(tmp_path / "real") == ["mine"] * there


@pytest.mark.parametrize("bits", [0o720, 0o770, 0o702, 0o777, 0o1777], ids=oct)
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, open_store: OpenStore, bits: int) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(bits)
    store = open_store(tmp_path / "mine" / "upstreams.db")
    # One with the sticky bit is everybody's, as /tmp is: nobody should make it his own.
    todo = f"as {tmp_path}/mine/myapp" if bits & stat.S_ISVTX else f"chmod 700 {tmp_path}/mine"
    assert_refused(store, "others can write", todo)
    assert os.listdir(tmp_path / "mine") == []


@pytest.mark.parametrize("there", [False, True])
def test_an_ancestor_that_everyone_can_write_is_refused(
    tmp_path: Path, open_store: OpenStore, there: bool
) -> None:
    (tmp_path / "open" / "between").mkdir(parents=True)
    if there:
        (tmp_path / "open" / "between" / "mine").mkdir(mode=0o700)
    (tmp_path / "open").chmod(0o777)
    store = open_store(tmp_path / "open" / "between" / "mine" / "upstreams.db")
    assert_refused(store, f"everyone can write in {tmp_path / 'open'}", "name a place")
    assert os.listdir(tmp_path / "open" / "between") == ["mine"] * there


@as_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    store = open_store(tmp_path / "theirs" / "upstreams.db")
    assert_refused(store, f"belongs to user {NOBODY}", "sudo -u")
    assert os.listdir(tmp_path / "theirs") == []


@as_root
def test_a_file_of_another_user_is_refused(path: str, store: SqliteStore, open_store: OpenStore) -> None:
    store.transact("a", touch)
    store.close()
    os.chown(path, NOBODY, NOBODY)
    assert_refused(open_store(), f"belongs to user {NOBODY}", "sudo -u")


@pytest.mark.parametrize("kind", ["directory", "pipe", "socket"])
def test_what_is_no_file_is_refused(
    tmp_path: Path, open_store: OpenStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir(mode=0o700)
    path = tmp_path / "mine" / "upstreams.db"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(path.parent)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    assert_refused(open_store(path), "is not a regular file")


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "mine").write_text("")
    assert_refused(open_store(tmp_path / "mine" / "upstreams.db"), "is not a directory")


def test_a_file_above_the_directory_is_refused(tmp_path: Path, open_store: OpenStore) -> None:
    (tmp_path / "mine").write_text("")
    assert_refused(open_store(tmp_path / "mine" / "deeper" / "upstreams.db"), str(tmp_path / "mine"))


@pytest.mark.parametrize("name", [".bell", ".lock"])
def test_a_directory_in_place_of_a_file_beside_it_is_refused(
    tmp_path: Path, open_store: OpenStore, name: str
) -> None:
    (tmp_path / "mine" / f"upstreams.db{name}").mkdir(parents=True)
    (tmp_path / "mine").chmod(0o700)
    assert_refused(open_store(tmp_path / "mine" / "upstreams.db"), "upstreams.db")


def test_a_place_that_was_put_right_is_used_without_a_restart(
    tmp_path: Path, open_store: OpenStore, clock: FakeClock
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine").chmod(0o777)
    store = open_store(tmp_path / "mine" / "upstreams.db")
    with pytest.raises(StoreUnavailable):
        store.read("a")
    (tmp_path / "mine").chmod(0o700)
    store.transact("a", putting(x=b"1"))
    assert store.read("a").records == {"x": b"1"}
    version = store.version("a")
    store.transact("a", touch)
    assert store.version("a") != version


def test_a_store_without_a_directory_for_new_files_says_which(tmp_path: Path, open_store: OpenStore) -> None:
    store = open_store("/proc/nowhere/upstreams.db")
    assert_refused(store, "/proc/nowhere")
