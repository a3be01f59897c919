"""The ``UPSTREAMS`` setting, and ``get_upstream``."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.test import override_settings

from resty_upstream import InvalidConfig, MethodNotFound, Upstream, UpstreamNotFound
from resty_upstream.contrib.django import get_upstream
from resty_upstream.stores import open_store
from tests.e2e.processes import ROOT, python

POOLS = {"p": {"hosts": {"a": {"host": "192.0.2.1", "weight": 1}}}}
MEMORY = {"STORE": "memory://", "POOLS": POOLS}


def with_options(**options: Any) -> Mapping[str, Any]:
    """The setting, with these options in a valid upstream."""
    return {"default": {**MEMORY, **options}}


# ── what is wrong is named ────────────────────────────────────────────────────────────────────

DEFAULT = r"^UPSTREAMS\['default'\]"
WRONG: list[tuple[object, str]] = [
    (None, "^UPSTREAMS must be a dict.*NoneType"),
    ([], "^UPSTREAMS must be a dict.*list"),
    ("sqlite:///x/y", "^UPSTREAMS must be a dict.*str"),
    ({"default": None}, DEFAULT + " must be a dict.*NoneType"),
    ({"default": [("STORE", "memory://")]}, DEFAULT + " must be a dict.*list"),
    ({"default": "memory://"}, DEFAULT + " must be a dict.*str"),
    ({"default": {"STOER": "memory://"}}, DEFAULT + r"\['STOER'\] is not an option.*STORE"),
    ({"default": {"store": "memory://"}}, DEFAULT + r"\['store'\] is not an option.*STORE"),
    (with_options(STORE=5), DEFAULT + r"\['STORE'\] must be"),
    (with_options(STORE=""), DEFAULT + r"\['STORE'\] must be.*not ''"),
    (with_options(STORE=object()), DEFAULT + r"\['STORE'\] must be.*lacks"),
    (with_options(STORE=b"memory://"), DEFAULT + r"\['STORE'\] must be"),
    (with_options(STORE="sqlite://relative/upstreams.db"), DEFAULT + r"\['STORE'\] must be.*absolute"),
    (with_options(STORE="mysql://localhost/db"), DEFAULT + r"\['STORE'\] must be.*'mysql:"),
    (with_options(STORE="sqlite:///run/x/?mode=ro"), DEFAULT + r"\['STORE'\] must be"),
    (with_options(TOTAL_TIMEOUT=-1), DEFAULT + r"\['TOTAL_TIMEOUT'\] must be.*-1"),
    (with_options(TOTAL_TIMEOUT="soon"), DEFAULT + r"\['TOTAL_TIMEOUT'\] must be.*'soon'"),
    (with_options(TOTAL_TIMEOUT=True), DEFAULT + r"\['TOTAL_TIMEOUT'\] must be.*True"),
    (with_options(LAST_RESORT="no"), DEFAULT + r"\['LAST_RESORT'\] must be.*'no'"),
    (with_options(POOLS=[]), DEFAULT + r"\['POOLS'\] must be a mapping.*\[\]"),
    (with_options(POOLS={"p": None}), DEFAULT + r".*pools\.p must be a mapping"),
    (with_options(POOLS={"p": {"hosts": []}}), DEFAULT + r".*pools\.p\.hosts must be a mapping"),
    (with_options(POOLS={"p": {"hosts": {"a": None}}}), DEFAULT + r".*pools\.p\.hosts\.a must be a mapping"),
    (with_options(POOLS={"p": {"hosts": {"a": {}}}}), DEFAULT + r".*pools\.p\.hosts\.a\.host must be given"),
    (
        with_options(POOLS={"p": {"hosts": {"a": {"host": "x", "port": "http"}}}}),
        DEFAULT + r".*pools\.p\.hosts\.a\.port must be a number.*'http'",
    ),
    (with_options(POOLS={"p": {"max_fail": 3}}), DEFAULT + r".*pools\.p\.max_fail is not an option.*max_fails"),
    (with_options(TRUSTED_PROXIES=["x"]), DEFAULT + r"\['TRUSTED_PROXIES'\]\[0\] must be an IP address.*'x'"),
    (with_options(COOKIE_SECRET="x" * 20), DEFAULT + r"\['COOKIE_SECRET'\] is not an option"),
    (with_options(POOLS={"p": {"timeout": -1}}), DEFAULT + r".*pools\.p\.timeout must be.*milliseconds"),
    (with_options(POOLS={"p": {"method": "fastest"}}), DEFAULT + r".*pools\.p\.method must be.*round_robin"),
    (with_options(POOLS={"": {}}), DEFAULT + ".*an id in pools must be"),
]


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_a_wrong_setting_is_an_error_that_names_its_path(setting: object, message: str) -> None:
    """At the first use, and again at every other."""
    with override_settings(UPSTREAMS=setting):
        for _ in range(2):
            with pytest.raises(InvalidConfig, match=message):
                get_upstream()
    with override_settings(UPSTREAMS={"default": MEMORY}):
        assert get_upstream().get_pools()


def test_all_problems_are_named_at_once() -> None:
    """Whoever repairs the setting has to try once."""
    options = {"STOER": 1, "STORE": 5, "TOTAL_TIMEOUT": -1, "LAST_RESORT": "no", "POOLS": {"p": {"timeout": -1}}}
    with (
        override_settings(UPSTREAMS={"default": options}),
        pytest.raises(InvalidConfig) as caught,
    ):
        get_upstream()
    for part in ("stoer", "['store'] must", "total_timeout", "last_resort", "pools.p.timeout"):
        assert part in str(caught.value).lower()


def test_the_class_of_the_error_is_kept() -> None:
    """Code that looks for an unknown method finds it in the setting too."""
    with (
        override_settings(UPSTREAMS=with_options(POOLS={"p": {"method": "fastest"}})),
        pytest.raises(MethodNotFound),
    ):
        get_upstream()


@pytest.mark.parametrize("setting", [{}, {"other": MEMORY}])
def test_an_upstream_that_is_not_there_is_an_error_that_names_those_there_are(setting: dict[str, Any]) -> None:
    """An empty setting has nothing."""
    with (
        override_settings(UPSTREAMS=setting),
        pytest.raises(UpstreamNotFound, match=r"no upstream 'default'.*UPSTREAMS has ('other'|nothing)"),
    ):
        get_upstream()


def test_a_site_without_the_setting_has_no_upstreams() -> None:
    """That is an error only where one is used."""
    with override_settings():
        from django.conf import settings

        del settings.UPSTREAMS
        with pytest.raises(UpstreamNotFound, match="nothing"):
            get_upstream()


# ── get_upstream ──────────────────────────────────────────────────────────────────────────────


@override_settings(UPSTREAMS={"default": MEMORY, "other": MEMORY})
def test_there_is_one_object_for_each_name() -> None:
    """Whichever thread asks first."""
    together = threading.Barrier(8)
    found: list[Upstream] = []

    def ask() -> None:
        together.wait(10)
        found.append(get_upstream())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    assert get_upstream("default") is found[0]
    assert get_upstream("other") is not found[0]
    assert get_upstream("other").id == "other"


def test_all_options_arrive() -> None:
    """A store object is taken as it is."""
    store = open_store("memory://")
    options = with_options(
        STORE=store, TOTAL_TIMEOUT="2s", LAST_RESORT=False, TRUSTED_PROXIES=["10.0.0.0/8", "unix"]
    )
    with override_settings(UPSTREAMS=options):
        upstream = get_upstream()
        assert upstream.store is store
        assert upstream.total_timeout_s == 2.0
        assert upstream.last_resort is False
        assert upstream.trusted_proxies.client_address("", "192.0.2.1, 10.0.0.9") == "192.0.2.1"
        assert list(upstream.get_pools()["p"]["hosts"]) == ["a"]


def test_upstreams_with_one_store_keep_to_their_own_pools(tmp_path: Path) -> None:
    """The store is one object, opened once; what is in it is by upstream."""
    url = f"sqlite://{tmp_path}/private/upstreams.db"
    other = {"STORE": url, "POOLS": {"q": {"hosts": {"b": {"host": "192.0.2.2"}}}}}
    with override_settings(UPSTREAMS={"default": {"STORE": url, "POOLS": POOLS}, "other": other}):
        assert get_upstream().store is get_upstream("other").store
        assert list(get_upstream().get_pools()) == ["p"]
        assert list(get_upstream("other").get_pools()) == ["q"]


def test_override_settings_gives_upstreams_of_its_own() -> None:
    """And those of before come back with the settings of before."""
    with override_settings(UPSTREAMS={"default": MEMORY}):
        outside = get_upstream()
        assert list(outside.get_pools()) == ["p"]
        with override_settings(UPSTREAMS=with_options(POOLS={"q": {}})):
            assert list(get_upstream().get_pools()) == ["q"]
        assert get_upstream() is not outside
        assert list(get_upstream().get_pools()) == ["p"]


def test_an_upstream_still_held_after_override_settings_works(tmp_path: Path) -> None:
    """Its store was closed, and opens again when it is used."""
    with override_settings(UPSTREAMS=with_options(STORE=f"sqlite://{tmp_path}/private/upstreams.db")):
        held = get_upstream()
        held.get_pools()
    assert list(held.get_pools()) == ["p"]
    held.store.close()


# ── the default place of the store ────────────────────────────────────────────────────────────


@pytest.fixture
def _no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def default_place(**settings: object) -> Path:
    """Where the store of a site goes that names none."""
    with override_settings(UPSTREAMS={"default": {"POOLS": POOLS}}, **settings):
        return Path(get_upstream().store.path)  # type: ignore[attr-defined]  # a SqliteStore


@pytest.mark.usefixtures("_no_places")
def test_the_default_place_is_a_directory_for_run_time_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """systemd's, the login's, ``/run`` for root, else the user's state directory: in this order; never /tmp."""
    expected = []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_place().is_relative_to(tmp_path / "home" / ".local" / "state")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_place().is_relative_to(tmp_path / "state")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_place().is_relative_to("/run")
    for name in ("XDG_RUNTIME_DIR", "RUNTIME_DIRECTORY"):
        expected.append(tmp_path / name)
        monkeypatch.setenv(name, str(expected[-1]))
        assert default_place().is_relative_to(expected[-1])
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    assert default_place().is_relative_to(tmp_path / "first")
    assert not list(tmp_path.iterdir())  # saying where opens nothing


def test_two_sites_of_one_user_do_not_meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The place is named after the site, and is the same each time."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    one, two = default_place(BASE_DIR="/srv/one"), default_place(BASE_DIR=Path("/srv/two"))
    assert one != two
    assert one.parent != two.parent
    assert one == default_place(BASE_DIR=Path("/srv/one"))


SITE_IN_ONE_FILE = """
from django.conf import settings
settings.configure(UPSTREAMS={"default": {"POOLS": {"p": {}}}}, ROOT_URLCONF=__name__)
from resty_upstream import InvalidConfig
from resty_upstream.contrib.django import get_upstream
try:
    print(get_upstream().store.path)
except InvalidConfig as error:
    assert "STORE" in str(error)
    print(__file__)
"""


def test_two_sites_in_one_file_each_do_not_meet(tmp_path: Path) -> None:
    """They have neither a settings module nor a ``BASE_DIR``: another name is found, or asked for."""
    places = set()
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(SITE_IN_ONE_FILE)
        places.add(run_python(tmp_path / name, XDG_RUNTIME_DIR=str(tmp_path)))
    assert len(places) == 2


def run_python(*arguments: object, **environment: str) -> str:
    """What a Python process prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        python(*arguments),
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


USE_DEFAULT_PLACE = """
import django
django.setup()
from resty_upstream.contrib.django import get_upstream
print(get_upstream().store.path if get_upstream().get_pools() else "")
"""


@pytest.fixture
def site_without_store(tmp_path: Path) -> dict[str, str]:
    """The environment of a site whose setting names no store."""
    (tmp_path / "site_without_store.py").write_text(f'UPSTREAMS = {{"default": {{"POOLS": {POOLS!r}}}}}\n')
    return {
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "DJANGO_SETTINGS_MODULE": "site_without_store",
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "RUNTIME_DIRECTORY": "",
    }


def test_all_processes_of_a_site_share_its_default_place(
    tmp_path: Path, site_without_store: dict[str, str]
) -> None:
    """In a directory of its own, closed to others, whatever directory a process was started in."""
    place, again = (run_python("-c", USE_DEFAULT_PLACE, **site_without_store).strip() for _ in range(2))

    assert place == again
    store = Path(place)
    assert store.parent.parent == tmp_path / "run"
    assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store.parent.iterdir()} == {0o600}


def test_overriding_another_setting_does_not_move_the_store(site_without_store: dict[str, str]) -> None:
    """Tests of the site that override something else meet the site's own store."""
    overriding = USE_DEFAULT_PLACE.replace(
        "print(", "from django.test import override_settings\nwith override_settings(DEBUG=True):\n    print("
    )
    assert run_python("-c", overriding, **site_without_store) == run_python(
        "-c", USE_DEFAULT_PLACE, **site_without_store
    )


# ── nothing before it is used ─────────────────────────────────────────────────────────────────


def test_the_app_is_there_and_opens_nothing(tmp_path: Path) -> None:
    """Commands load all apps; they and the checks must work where the store does not."""
    place = tmp_path / "private" / "upstreams.db"
    assert apps.get_app_config("resty_upstream").name == "resty_upstream.contrib.django"
    with override_settings(UPSTREAMS=with_options(STORE=f"sqlite://{place}")):
        call_command("check")
        get_upstream()
    assert not place.parent.exists()
