"""A full disk: requests go on, nothing is lost that was queued, and all heals when there is space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stores.support import A_SECOND, Worker, integrity, wait_until


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    directory = tmp_path / "small"
    directory.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(directory)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield directory
    unmount = ["umount", str(directory)]
    wait_until(lambda: subprocess.run(unmount, capture_output=True, check=False).returncode == 0, "unmounted")


@pytest.fixture
def disk_worker(small_disk: Path, start_worker: Callable[..., Worker]) -> Worker:
    """A process with its store on the small disk. (SIGBUS would end it, and not the tests.)"""
    return start_worker(small_disk / "private" / "upstreams.db")


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()


UPSTREAM = "upstream = Upstream(SqliteStore(path, clock=clock), pools=pools('a', 'b', max_fails=2))"


def test_requests_go_on_while_the_disk_is_full(small_disk: Path, disk_worker: Worker) -> None:
    disk_worker.run(f"{UPSTREAM}; ask(upstream)")
    fill(small_disk)
    for _ in range(5):
        assert disk_worker.run("[ask(upstream, 'a') for _ in range(20)]") == ["b"] * 20
        disk_worker.run(f"clock.advance({A_SECOND})")
    assert disk_worker.ended() is None


def test_a_full_disk_is_said_once(small_disk: Path, disk_worker: Worker) -> None:
    disk_worker.run(f"{UPSTREAM}; ask(upstream)")
    fill(small_disk)
    disk_worker.run(f"for _ in range(20): ask(upstream, 'a'); clock.advance({A_SECOND})")
    logged = disk_worker.run("logged")
    assert sum("StoreDegraded" in line for line in logged) == 1, logged


def test_failures_take_a_host_down_in_this_process_while_the_disk_is_full(
    small_disk: Path, disk_worker: Worker
) -> None:
    disk_worker.run(f"{UPSTREAM}; ask(upstream)")
    fill(small_disk)
    disk_worker.run("[ask(upstream, 'a') for _ in range(4)]")
    tried = disk_worker.run(
        "tried = []\n"
        "for _ in range(6):\n"
        "    with upstream.context():\n"
        "        for attempt in upstream.attempts():\n"
        "            with attempt as host:\n"
        "                tried.append(host.id)\n"
        "tried"
    )
    assert tried == ["b"] * 6


def test_what_was_queued_is_written_when_there_is_space(
    small_disk: Path, disk_worker: Worker, start_worker: Callable[..., Worker]
) -> None:
    disk_worker.run(f"{UPSTREAM}; ask(upstream)")
    other = start_worker(small_disk / "private" / "upstreams.db")
    assert other.run(f"{UPSTREAM}; ask(upstream)") in "ab"
    fill(small_disk)
    disk_worker.run("[ask(upstream, 'a') for _ in range(4)]")
    make_room(small_disk)
    disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    state = other.run("ask(upstream); upstream.get_pools()['p']['hosts']['a']")
    assert (state["up"], state["failcount"]) == (False, 2)
    assert not disk_worker.run("upstream.replica.has_queue")
    assert disk_worker.run("upstream.replica.trouble") is None
    assert "works again" in disk_worker.run("logged")[-1] or "works again" in disk_worker.run("logged")[-2]
    assert integrity(str(small_disk / "private" / "upstreams.db")) == "ok"


def test_a_disk_that_fills_and_empties_is_said_each_time(small_disk: Path, disk_worker: Worker) -> None:
    disk_worker.run(f"{UPSTREAM}; ask(upstream)")
    for _ in range(3):
        fill(small_disk)
        disk_worker.run(f"for _ in range(4): ask(upstream, 'a'); clock.advance({A_SECOND})")
        make_room(small_disk)
        disk_worker.run(
            f"clock.advance({A_SECOND}); ask(upstream); clock.advance(100); ask(upstream); ask(upstream)"
        )
    logged = disk_worker.run("logged")
    assert sum("StoreDegraded" in line for line in logged) == 3, logged
    assert sum("works again" in line for line in logged) == 3, logged


def test_an_api_call_on_a_full_disk_says_so_and_changes_nothing(small_disk: Path, disk_worker: Worker) -> None:
    disk_worker.run(f"{UPSTREAM}; ask(upstream)")
    before = disk_worker.run("upstream.get_pools()")
    fill(small_disk)
    error = disk_worker.run(
        "from resty_upstream.errors import StoreUnavailable\n"
        "def attempt():\n"
        "    try:\n"
        "        UpstreamAPI(upstream).set_weight('p', 'a', 5)\n"
        "    except StoreUnavailable as error:\n"
        "        return str(error)\n"
        "attempt()"
    )
    assert "full" in error
    assert disk_worker.run("upstream.get_pools()") == before
    make_room(small_disk)
    disk_worker.run("UpstreamAPI(upstream).set_weight('p', 'a', 5)")
    assert disk_worker.run("ask(upstream)") == "a"


def test_a_process_that_starts_on_a_full_disk_serves_from_its_settings_and_heals(
    small_disk: Path, disk_worker: Worker
) -> None:
    fill(small_disk)
    disk_worker.run(UPSTREAM)
    for _ in range(3):
        assert disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream)") in "ab"
    assert sum("StoreDegraded" in line for line in disk_worker.run("logged")) == 1
    make_room(small_disk)
    disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert disk_worker.run("upstream.replica.trouble") is None
    disk_worker.run("UpstreamAPI(upstream).set_weight('p', 'b', 5)")
    assert disk_worker.run("[ask(upstream) for _ in range(3)]") == ["b"] * 3
    assert integrity(str(small_disk / "private" / "upstreams.db")) == "ok"


@pytest.mark.parametrize("free", range(0, 120, 12))
def test_a_process_that_starts_on_a_nearly_full_disk_never_dies_of_it(
    small_disk: Path, disk_worker: Worker, free: int
) -> None:
    fill(small_disk)
    os.truncate(small_disk / "filler", (256 - free) * 1024)
    disk_worker.run(UPSTREAM)
    for _ in range(4):
        assert disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream, 'a')") == "b"
        disk_worker.run("upstream.store.version('default')")
    assert disk_worker.ended() is None
    make_room(small_disk)
    for _ in range(3):
        disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert disk_worker.run("upstream.replica.trouble") is None
    disk_worker.run("UpstreamAPI(upstream).down_host('p', 'a')")
    assert integrity(str(small_disk / "private" / "upstreams.db")) == "ok"


COUNTED = "[counted.successes for counted in upstream.counts().hosts.values()]"


def test_requests_are_counted_while_the_disk_is_full_and_by_all_when_there_is_space(
    small_disk: Path, disk_worker: Worker, start_worker: Callable[..., Worker]
) -> None:
    other = start_worker(small_disk / "private" / "upstreams.db")
    other.run(f"{UPSTREAM}; ask(upstream)")
    disk_worker.run(f"{UPSTREAM}; upstream.explain()")
    fill(small_disk)
    for _ in range(3):
        disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert sum(disk_worker.run(COUNTED)) == 4
    assert sum(other.run(COUNTED)) == 1
    assert sum("is not shared" in line for line in disk_worker.run("logged")) == 1
    make_room(small_disk)
    disk_worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert sum(disk_worker.run(COUNTED)) == sum(other.run(COUNTED)) == 5


@pytest.mark.parametrize("free", range(0, 40, 4))
def test_a_file_of_counters_that_grows_on_a_nearly_full_disk_kills_nobody(
    small_disk: Path, disk_worker: Worker, free: int
) -> None:
    disk_worker.run(f"{UPSTREAM}; upstream.explain()")
    fill(small_disk)
    os.truncate(small_disk / "filler", max(0, os.path.getsize(small_disk / "filler") - free * 1024))
    disk_worker.run("keys = [b'together%08d' % number for number in range(200)]")
    for _ in range(3):
        disk_worker.run("for key in keys: upstream.store.counters(key, lambda: keys).cells[1] += 1")
        disk_worker.run(f"clock.advance({A_SECOND}); upstream.explain()")
    counted = "{numbers[1] for key, numbers in upstream.store.sums().items() if key in keys}"
    assert disk_worker.run(f"list({counted})") == [3.0]
    make_room(small_disk)
    disk_worker.run(f"clock.advance({A_SECOND}); upstream.explain()")
    assert disk_worker.run(f"list({counted})") == [3.0]


def test_a_limit_of_the_file_size_is_as_a_full_disk(worker: Worker) -> None:
    worker.run(f"{UPSTREAM}; ask(upstream)")
    worker.run(
        "import os, resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path + '-wal') + 100, hard))"
    )
    worker.run(f"for _ in range(6): assert ask(upstream, 'a') == 'b'; clock.advance({A_SECOND / 3})")
    assert worker.run("upstream.replica.has_queue")
    assert sum("StoreDegraded" in line for line in worker.run("logged")) == 1
    worker.run("resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))")
    worker.run(f"clock.advance({A_SECOND}); ask(upstream)")
    assert not worker.run("upstream.replica.has_queue")
    assert not worker.run("Upstream(SqliteStore(path)).get_pools()['p']['hosts']['a']['up']")
    assert integrity(worker.run("path")) == "ok"
