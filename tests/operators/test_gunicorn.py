"""``contrib/gunicorn.conf.py``: real gunicorn, started with it."""

from __future__ import annotations

import runpy
import signal
from pathlib import Path

import pytest

from tests.contrib.exposition import parse
from tests.e2e.processes import Ports, Process, get, python, wait_until, wait_until_answers
from tests.operators.installed import Installed, ask, workers_of


def start(installed: Installed, port: int, *, workers: int = 2) -> Process:
    gunicorn = python("-m", "gunicorn", "-c", "gunicorn.conf.py", f"--bind=127.0.0.1:{port}")
    return installed.start(gunicorn, workers=workers)


def test_workers_serve_and_have_the_store_open_before_the_first_request(
    installed: Installed, ports: Ports
) -> None:
    port = ports.reserve()
    with start(installed, port) as gunicorn:
        wait_until(installed.store.exists, f"the store is there; it printed:\n{gunicorn.printed()}")
        wait_until_answers(gunicorn, port, "/healthz")
        wait_until(lambda: len(workers_of(gunicorn)) == 2, "both workers have begun")
        assert ask(port)["host"] == "a"
        assert installed.store.parent.stat().st_mode & 0o777 == 0o700


def test_any_worker_tells_prometheus_of_all(installed: Installed, ports: Ports) -> None:
    port = ports.reserve()
    with start(installed, port) as gunicorn:
        wait_until_answers(gunicorn, port, "/healthz")
        seen: dict[object, int] = {}

        def both_answered() -> bool:
            worker = ask(port)["worker"]
            seen[worker] = seen.get(worker, 0) + 1
            return len(seen) == 2

        wait_until(both_answered, "both workers have answered")
        for _ in range(10):
            attempts = parse(get(port, "/metrics").body.decode())["attempts_total"]
            assert attempts["default", "p", "a", "ok"] == sum(seen.values())


def test_a_reload_loses_no_request_and_the_end_is_in_order(tmp_path: Path, ports: Ports) -> None:
    check = 'healthcheck = { type = "tcp", interval = 3600 }'
    installed, port = Installed(tmp_path, check), ports.reserve()
    upstream = installed.look()["default"]
    with start(installed, port) as gunicorn:
        wait_until_answers(gunicorn, port, "/healthz")
        before = workers_of(gunicorn)
        gunicorn.signal(signal.SIGHUP)

        def all_are_new() -> bool:
            assert ask(port)["host"] == "a"
            return len(workers_of(gunicorn)) == 2 and not workers_of(gunicorn) & before

        wait_until(all_are_new, "all workers are new")
        wait_until(lambda: upstream.store.holder("default", "checker"), "a worker checks")
        gunicorn.signal(signal.SIGTERM)
        assert gunicorn.wait() == 0, gunicorn.printed()
    assert not upstream.store.holder("default", "checker"), "the lease was given back"
    assert "Traceback" not in gunicorn.printed()
    upstream.close()


def test_a_store_that_others_can_write_ends_the_start(installed: Installed, ports: Ports) -> None:
    installed.store.parent.mkdir()
    installed.store.parent.chmod(0o777)
    with start(installed, ports.reserve()) as gunicorn:
        assert gunicorn.wait() != 0
    assert "StoreUnsafe: others can write in" in gunicorn.printed()


@pytest.mark.parametrize("setting", ["timeout", "graceful_timeout"])
def test_requests_may_take_as_long_as_upstreams_may(setting: str, installed: Installed) -> None:
    values = runpy.run_path(str(installed.srv / "gunicorn.conf.py"))
    assert values[setting] > installed.look()["default"].total_timeout_s
