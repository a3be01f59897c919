"""``export`` and ``import``: what is written can be read again, and comes to the same."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import override_settings
from hypothesis import given

from resty_upstream import Upstream
from resty_upstream.cli.look import look
from resty_upstream.cli.transfer import exported
from resty_upstream.stores.memory import MemoryStore
from tests.cli.doors import POOLS, Done, Place, neutral
from tests.helpers import open_upstream, take_down
from tests.unit import strategies

Command = Callable[..., Done]


def test_what_is_exported_is_configuration_and_what_was_taken_down_by_hand(place: Place, command: Command) -> None:
    take_down(place.upstream, "a", pool_id="primary")
    place.api.down_host("primary", "b")
    pools = json.loads(command("export").out)
    assert pools["primary"]["hosts"] == {
        "a": {"host": "127.0.0.1", "port": 8001, "weight": 10},
        "b": {"host": "127.0.0.1", "port": 8002, "weight": 10, "up": False},
    }
    assert pools["dr"] == {
        "up": True,
        "method": "round_robin",
        "timeout": 2000,
        "priority": 10,
        "max_fails": 3,
        "failed_timeout": 10,
        "failed_timeout_max": 60,
        "slow_start": 0,
        "key": "ip",
        "load": "in_flight",
        "status_codes": [],
        "read_timeout": 10_000,
        "keepalive_pool": 32,
        "keepalive_timeout": 60_000,
        "ssl": False,
        "ssl_verify": True,
        "sni_host": "",
        "hosts": {"c": {"host": "127.0.0.1", "port": 8003, "weight": 0}},
    }


@given(strategies.pools)
def test_what_is_exported_and_imported_elsewhere_is_exported_again_as_it_was(
    pools: dict[str, Any],
) -> None:
    """Pools with their order and options, and hosts that were taken down by hand."""
    one, other = open_upstream(pools), open_upstream({})
    written = exported(look(one))
    read = json.loads(json.dumps(written))
    other.save_pools(read)
    assert exported(look(other)) == written
    assert list(exported(look(other))) == list(written)
    by_hand = {
        (pool_id, host_id)
        for pool_id, pool in one.get_pools().items()
        for host_id, host in pool["hosts"].items()
        if not host["up"] and not host["lastfail"]
    }
    assert by_hand == {
        (pool_id, host_id)
        for pool_id, pool in other.get_pools().items()
        for host_id, host in pool["hosts"].items()
        if not host["up"]
    }


def test_through_a_file_and_a_pipe_it_comes_to_the_same(place: Place, tmp_path: Path) -> None:
    place.api.down_host("primary", "a")
    place.api.down_pool("primary")
    place.api.set_priority("dr", 0)
    file = tmp_path / "pools.json"
    assert neutral(place, "export", str(file)).out == f"{file} has 2 pools with 3 hosts\n"
    text = file.read_text("utf-8")
    assert neutral(place, "export").out == text == neutral(place, "export", "-").out
    before = place.upstream.get_pools()
    assert neutral(place, "import", str(file), "--dry-run").out == "nothing would change\n"
    place.upstream.save_pools({})
    assert neutral(place, "import", "-", given=text).out == "upstream default has 2 pools with 3 hosts\n"
    assert place.upstream.get_pools() == before
    assert list(place.upstream.get_pools()) == list(before)


def test_toml_is_taken_by_the_name_of_the_file_or_by_how_it_begins(place: Place, command: Command) -> None:
    toml = '[p]\ntimeout = "250ms"\nhosts.a = {host = "10.0.0.1", up = false}\n'
    assert list(tomllib.loads(toml)) == ["p"]
    for name in ("pools.toml", "pools"):
        place.upstream.save_pools({})
        assert command("import", place.file(name, toml)).code == 0
        assert place.upstream.get_pools()["p"]["timeout"] == 250
        assert not place.upstream.get_pools()["p"]["hosts"]["a"]["up"]


def test_a_dry_run_says_all_that_would_change_and_changes_nothing(place: Place, command: Command) -> None:
    place.api.create_pool("old")
    before = place.upstream.get_pools()
    pools: dict[str, Any] = {
        "dr": {**POOLS["dr"], "method": "hash"},
        "primary": {
            "timeout": 500,
            "hosts": {
                "a": {"host": "127.0.0.1", "port": 8001, "weight": 5, "up": False},
                "x": {"host": "10.0.0.1"},
            },
        },
        "new": {},
    }
    done = command("import", place.file("pools.json", json.dumps(pools)), "--dry-run")
    assert done == (
        0,
        """\
pools.primary.hosts.a.weight would be 5, is 10
pools.primary.hosts.b would be removed
pools.primary.hosts.x would be added
pools.dr.method would be hash, is round_robin
pools.old would be removed
pools.new would be added
pools would be in the order dr, primary, new
pools.primary.hosts.a would be taken down
""",
        "",
    )
    assert place.upstream.get_pools() == before


def test_hosts_that_stay_keep_their_state(place: Place, command: Command) -> None:
    take_down(place.upstream, "a", pool_id="primary")
    assert command("import", place.file("pools.json", json.dumps(POOLS))).code == 0
    host = place.upstream.get_pools()["primary"]["hosts"]["a"]
    assert (host["up"], host["failcount"]) == (False, 3)


# ── files ─────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_replaced_as_a_whole_with_its_mode_and_through_a_link(place: Place, command: Command) -> None:
    file, link = place.directory / "pools.json", place.directory / "link.json"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with file.open() as old:
        assert command("export", str(link)).code == 0
        assert old.read() == "old"  # who reads it meanwhile sees all of the old one
    assert list(json.loads(file.read_text())) == ["primary", "dr"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert {path.name for path in place.directory.iterdir()} == {"pools.json", "link.json", "store"}


def test_a_new_file_has_the_mode_that_new_files_have(place: Place, command: Command) -> None:
    before = os.umask(0o027)
    try:
        assert command("export", str(place.directory / "pools.json")).code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((place.directory / "pools.json").stat().st_mode) == 0o640


def test_nothing_is_left_where_a_file_cannot_be_written(place: Place, command: Command) -> None:
    (place.directory / "pools.json").mkdir()
    assert command("export", str(place.directory / "pools.json")).code == 1
    assert {path.name for path in place.directory.iterdir()} == {"pools.json", "store"}


def test_standard_input_may_be_text_or_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a caller in this process may have it."""
    out = StringIO()
    with override_settings(UPSTREAMS={"default": {"STORE": place.url}}):
        monkeypatch.setattr("sys.stdin", StringIO('{"p": {}}'))
        call_command("upstream", "import", "-", stdout=out)
        assert list(place.upstream.get_pools()) == ["p"]
        monkeypatch.setattr("sys.stdin", None)
        with pytest.raises(Exception, match=r"^there is no standard input$"):
            call_command("upstream", "import", "-")


def test_what_is_exported_is_what_the_setting_takes(place: Place, command: Command) -> None:
    pools = json.loads(command("export").out)
    declared = Upstream(MemoryStore(), pools=pools)
    assert exported(look(declared)) == pools
