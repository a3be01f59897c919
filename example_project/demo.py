"""The whole example in one command: three back ends, the site in two workers, and what happens to them.

    python -m example_project.demo                    run it; Ctrl-C ends everything it started
    python -m example_project.demo down primary a     take a host out by hand
    python -m example_project.demo up primary a       and bring it back

`down` and `up` change the store that `EXAMPLE_STORE` or `--store` names; the demo prints which it uses.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resty_upstream import Upstream, UpstreamAPI, UpstreamError

from .site import settings

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("a", "b", "c")
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 6.0
POLL_S = 0.2

Pools = dict[str, dict[str, Any]]


class StartFailed(Exception):
    """A child did not come up; the message holds what it printed."""


class StopRequest:
    """Set by SIGINT, SIGTERM and SIGHUP, and looked at between steps.

    A handler that raised could do so in the middle of starting a child and lose it.
    """

    def __init__(self) -> None:
        self.made = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._make)

    def _make(self, *_signal: object) -> None:
        self.made = True


class Child:
    """One process that the demo started, in a process group of its own, its output in a file."""

    def __init__(self, title: str, command: Sequence[str], environment: dict[str, str], output: Path) -> None:
        self.title = title
        self.output = output
        with output.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                # A shell may hold the settings of another project.
                env={**os.environ, **environment, "DJANGO_SETTINGS_MODULE": settings.__name__},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C at the terminal is for the demo alone, which ends them in order
            )
        self.pid = self.process.pid

    def ended(self) -> str | None:
        """How the process ended, None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def printed(self) -> str:
        return self.output.read_text(errors="replace").strip() or "(it printed nothing)"

    def ask_to_end(self) -> None:
        # The whole group is woken first: a stopped process would take no SIGTERM.
        self._signal_group(signal.SIGCONT)
        if self.process.poll() is None:
            self.process.terminate()

    def make_end(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic seconds), then kill the group."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._signal_group(signal.SIGKILL)
            self.process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        # Only while the leader is not reaped: after that its id may be anybody's.
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Demo:
    """Everything that one run of the demo started."""

    def __init__(self, directory: Path, store: str, ports: dict[str, int], site_port: int) -> None:
        self.directory = directory
        self.store = store
        self.ports = ports
        self.site_port = site_port
        self.children: list[Child] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to mean the same pools as the site."""
        return {
            "EXAMPLE_STORE": self.store,
            "EXAMPLE_BACKEND_PORTS": ",".join(str(self.ports[name]) for name in NAMES),
        }

    def start(self, stop: StopRequest) -> None:
        """Start all and wait until they answer; StartFailed with the output of the one that does not."""
        waiting = [
            (self._start_child(f"back end {name}", backend_command(name, port)), port, "/stats")
            for name, port in self.ports.items()
        ]
        waiting.append((self._start_child("the site", site_command(self.site_port)), self.site_port, "/raw"))
        for child, port, path in waiting:
            wait_until_answers(child, port, path, stop)

    def _start_child(self, title: str, command: Sequence[str]) -> Child:
        output = self.directory / f"{title.replace(' ', '-')}.log"
        child = Child(title, command, self.environment, output)
        self.children.append(child)
        return child

    def stop(self) -> None:
        for child in self.children:
            child.ask_to_end()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in self.children:
            child.make_end(deadline)

    def follow(self, stop: StopRequest) -> None:
        """Print a line for each change, by whichever process, until stopped."""
        running = list(self.children)
        upstream = Upstream(self.store)
        pools: Pools = upstream.get_pools()
        while not stop.made:
            time.sleep(POLL_S)
            for child in [child for child in running if child.ended()]:
                running.remove(child)
                say(f"{child.title} (pid {child.pid}) has ended: {child.ended()}")
            now = upstream.get_pools()
            for line in differences(pools, now):
                say(line)
            pools = now


def backend_command(name: str, port: int) -> list[str]:
    return [sys.executable, "-m", "example_project.backend", "--port", str(port), "--name", name]


def site_command(port: int) -> list[str]:
    configuration = str(ROOT / "example_project" / "gunicorn_conf.py")
    return [sys.executable, "-m", "gunicorn", "-c", configuration, "--bind", f"127.0.0.1:{port}"]


def wait_until_answers(child: Child, port: int, path: str, stop: StopRequest) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not stop.made:
        if ending := child.ended():
            raise StartFailed(f"{child.title} ended at once ({ending}). It printed:\n\n{child.printed()}")
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{child.title} did not answer in {START_TIMEOUT_S:.0f} s. It printed:\n\n{child.printed()}"
            )
        if answers(port, path):
            return
        time.sleep(0.05)


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_ports(wanted: Sequence[int]) -> list[int]:
    """The wanted loopback ports, another free one in the place of each that is taken."""
    with contextlib.ExitStack() as held:
        # All are held until all are chosen, so that no two are the same.
        return [held.enter_context(listener(port)).getsockname()[1] for port in wanted]


def listener(port: int) -> socket.socket:
    for candidate in (port, 0):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", candidate))
    raise StartFailed("no free port on 127.0.0.1")


def differences(old: Pools, new: Pools) -> Iterator[str]:
    """What changed between two results of `get_pools`, a sentence for each change."""
    for pool_id in old.keys() - new.keys():
        yield f"pool {pool_id} was removed"
    for pool_id, pool in new.items():
        if pool_id not in old:
            yield f"pool {pool_id} was added"
            continue
        before = old[pool_id]
        yield from option_changes(f"pool {pool_id}", before, pool, ignored={"hosts"})
        for host_id in before["hosts"].keys() - pool["hosts"].keys():
            yield f"host {pool_id}/{host_id} was removed"
        for host_id, host in pool["hosts"].items():
            title = f"host {pool_id}/{host_id}"
            if host_id not in before["hosts"]:
                yield f"{title} was added"
                continue
            yield from health_changes(title, before["hosts"][host_id], host)
            yield from option_changes(
                title, before["hosts"][host_id], host, ignored={"up", "failcount", "lastfail"}
            )


def health_changes(title: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if new["up"] != old["up"]:
        if new["up"]:
            yield f"{title} is UP"
        elif new["lastfail"]:
            yield f"{title} is DOWN after {new['failcount']} failures"
        else:
            yield f"{title} is DOWN, taken down by hand"
    elif new["up"] and new["failcount"] > old["failcount"]:
        yield f"{title} has failed {new['failcount']} in a row"


def option_changes(title: str, old: dict[str, Any], new: dict[str, Any], ignored: set[str]) -> Iterator[str]:
    for name in sorted((old.keys() | new.keys()) - ignored):
        if old.get(name) != new.get(name):
            yield f"{title}: {name} was {old.get(name)}, is {new.get(name)}"


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}")


def instructions(demo: Demo) -> str:
    address = f"http://127.0.0.1:{demo.site_port}"
    python = shlex.quote(sys.executable)
    pid_a = demo.children[0].pid
    again = shlex.join(backend_command("a", demo.ports["a"]))
    exports = "\n".join(f"     export {name}={shlex.quote(value)}" for name, value in demo.environment.items())
    running = "\n".join(f"     {child.title}: pid {child.pid}, log {child.output}" for child in demo.children)
    return f"""\
The site answers on {address}/  (open it in a browser)

{running}

In a second terminal:

  1. Be where the example is, and mean the same pools:
     cd {shlex.quote(str(ROOT))}
{exports}

  2. Call it. Hosts a and b take turns, whichever worker answers:
     curl {address}/raw
     curl {address}/http

  3. Keep calling, in a third terminal, and watch it through the next steps. No call must fail:
     while sleep 0.2; do curl -s {address}/raw; echo; done

  4. Kill back end a. Two calls take two attempts, then b has all of them:
     kill -9 {pid_a}

  5. Start it again. Within some seconds one call tries it, and a is back:
     {again} &

  6. Stop it, so that it accepts connections and never answers. The same as after the kill, but the calls
     that find it out take half a second each; then let it go on:
     kill -STOP $!
     kill -CONT $!

  7. Take host b out by hand. It stays out until you bring it back:
     {python} -m example_project.demo down primary b
     {python} -m example_project.demo up primary b

  8. Take both a and b out: pool dr answers. All three: a 504 that says so.

Ctrl-C here ends what this command started; what you started in step 5 is yours: kill $!

What happens to the hosts:
"""


def run(store: str | None, site_port: int) -> int:
    """Start everything, follow what happens, end everything."""
    stop = StopRequest()
    # The real path: the store refuses one that leads over a symbolic link, as /tmp is on some systems.
    directory = Path(tempfile.mkdtemp(prefix="resty-upstream-demo-")).resolve()
    demo: Demo | None = None
    try:
        site_port, *ports = free_ports([site_port, *settings.BACKEND_PORTS])
        demo = Demo(
            directory=directory,
            store=store or f"sqlite://{directory}/upstreams.db",
            ports=dict(zip(NAMES, ports, strict=True)),
            site_port=site_port,
        )
        demo.start(stop)
        if not stop.made:
            print(instructions(demo))
            demo.follow(stop)
    except StartFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    finally:
        if demo is not None:
            demo.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print("Stopped: the site and its back ends.")
    return 0


def change_host(store: str | None, action: str, pool_id: str, host_id: str) -> int:
    """Take a host down or up by hand, for every worker that uses the store."""
    store = store or settings.UPSTREAMS["default"]["STORE"]
    api = UpstreamAPI(Upstream(store))
    try:
        (api.down_host if action == "down" else api.up_host)(pool_id, host_id)
    except UpstreamError as exc:
        print(f"{exc}. The store is {store}: export EXAMPLE_STORE as the demo printed it.", file=sys.stderr)
        return 1
    print(f"host {pool_id}/{host_id} is {action}")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m example_project.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", help="a store of your own; without it the demo uses a temporary one")
    parser.add_argument("--port", type=int, default=8000, help="where the site listens, if it is free")
    actions = parser.add_subparsers(dest="action", metavar="down|up")
    for action in ("down", "up"):
        command = actions.add_parser(action, help=f"take a host {action} by hand")
        command.add_argument("pool")
        command.add_argument("host")
    options = parser.parse_args(argv)
    if options.action:
        return change_host(options.store, options.action, options.pool, options.host)
    # Line by line also into a pipe or a file: what happens is of interest when it happens.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return run(options.store, options.port)


if __name__ == "__main__":
    sys.exit(main())
