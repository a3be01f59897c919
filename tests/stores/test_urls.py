"""Stores by URL, and the place of a store that nobody named."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from resty_upstream import Upstream
from resty_upstream.errors import InvalidConfig
from resty_upstream.stores import open_store
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.stores.places import default_url
from resty_upstream.stores.sqlite import SqliteStore
from tests.stores.support import ask, pools, putting


def test_memory_is_a_store_of_its_own_each_time() -> None:
    first, second = open_store("memory://"), open_store("memory://")
    assert isinstance(first, MemoryStore)
    first.transact("a", putting(x=b"1"))
    assert second.read("a").records == {}


def test_upstreams_that_are_given_one_store_object_share_it() -> None:
    store = open_store("memory://")
    first = Upstream(store, pools=pools("a"))
    second = Upstream(store)
    ask(first)
    assert ask(second) == "a"


def test_opening_creates_nothing(path: str) -> None:
    store = open_store(f"sqlite://{path}")
    assert isinstance(store, SqliteStore)
    assert store.path == path
    assert not Path(path).parent.exists()


def test_a_path_may_be_quoted(tmp_path: Path) -> None:
    store = open_store("sqlite://" + quote(f"{tmp_path}/with space/50%.db"))
    assert isinstance(store, SqliteStore)
    assert store.path == f"{tmp_path}/with space/50%.db"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "memory://x",
        "sqlite://",
        "sqlite:///",
        "sqlite://relative/path.db",
        "sqlite:///a/directory/",
        "sqlite:///path.db?mode=ro",
        "sqlite:///path.db#part",
        "sqlite:///with%00nul.db",
        "postgres://host/db",
        "/path.db",
        None,
        7,
    ],
)
def test_any_other_url_is_refused_with_what_it_may_be(url: object) -> None:
    with pytest.raises(InvalidConfig, match="'memory://', 'sqlite:///absolute/path"):
        open_store(url)  # type: ignore[arg-type]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No place is given, and the user is not root."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return monkeypatch


def place(application: str = "site") -> Path:
    """The directory above the application's own."""
    store = open_store(default_url(application))
    assert isinstance(store, SqliteStore)
    return Path(store.path).parent.parent


def test_the_runtime_directory_of_the_service_comes_first(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/one:{tmp_path}/two")
    environment.setenv("XDG_RUNTIME_DIR", f"{tmp_path}/xdg")
    assert place() == tmp_path / "one"


def test_then_the_runtime_directory_of_the_session(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("XDG_RUNTIME_DIR", f"{tmp_path}/xdg")
    assert place() == tmp_path / "xdg"


def test_then_run_for_root(environment: pytest.MonkeyPatch) -> None:
    environment.setattr("os.geteuid", lambda: 0)
    assert place() == Path("/run")


def test_else_the_state_directory_of_the_user(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert place() == tmp_path / ".local" / "state"
    environment.setenv("XDG_STATE_HOME", f"{tmp_path}/state")
    assert place() == tmp_path / "state"


@pytest.mark.usefixtures("environment")
def test_two_applications_of_a_user_do_not_meet() -> None:
    assert default_url("one") != default_url("two")
    assert default_url("one") == default_url("one")


def test_the_place_can_be_used(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.undo()
    environment.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/with space")
    store = open_store(default_url("a/../site"))
    store.transact("a", putting(x=b"1"))
    store.close()
    assert [file.name for file in (tmp_path / "with space").glob("*/upstreams.db")] == ["upstreams.db"]
