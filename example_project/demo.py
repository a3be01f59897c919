"""The whole example in one command: three back ends, two Redis servers, the site, and what happens to them.

It prints what to try in a second terminal; Ctrl-C ends everything that it started.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import io
import itertools
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resty_upstream import Upstream
from resty_upstream.cli import Watcher

from .site import settings
from .site.checks import ping

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("a", "b", "c")
REDIS_NAMES = ("r1", "r2")
REDIS_PORTS = (6381, 6382)
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 6.0
POLL_S = 0.2


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
                env={**os.environ, **environment},
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

    def __init__(
        self, directory: Path, store: str, ports: dict[str, int], redis_ports: dict[str, int], site_port: int
    ) -> None:
        self.directory = directory
        self.store = store
        self.ports = ports
        self.redis_ports = redis_ports
        """Empty where there is no Redis."""
        self.site_port = site_port
        self.status_token = secrets.token_hex(8)
        self.children: list[Child] = []

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to mean the same pools as the site."""
        return {
            "DJANGO_SETTINGS_MODULE": settings.__name__,  # a shell may hold those of another project
            "EXAMPLE_STORE": self.store,
            "EXAMPLE_BACKEND_PORTS": ",".join(map(str, self.ports.values())),
            "EXAMPLE_REDIS_PORTS": ",".join(map(str, self.redis_ports.values())),
            "EXAMPLE_STATUS_TOKEN": self.status_token,
        }

    def start(self, stop: StopRequest) -> None:
        """Start all and wait until they answer; StartFailed with the output of the one that does not."""
        for child, answers in list(self._start_children()):
            wait_until_answers(child, answers, stop)

    def _start_children(self) -> Iterator[tuple[Child, Callable[[], bool]]]:
        """Each with what tells whether it answers."""
        for name, port in self.ports.items():
            child = self._start_child(f"back end {name}", backend_command(name, port))
            yield child, functools.partial(answers_http, port, "/stats")
        for name, port in self.redis_ports.items():
            child = self._start_child(f"Redis {name}", redis_command(port, self.directory))
            yield child, functools.partial(answers_ping, port)
        child = self._start_child("the site", site_command(self.site_port))
        yield child, functools.partial(answers_http, self.site_port, "/raw")

    def _start_child(self, title: str, command: Sequence[str]) -> Child:
        output = self.directory / f"{title.replace(' ', '-')}.log"
        child = Child(title, command, self.environment, output)
        self.children.append(child)
        return child

    def pid_of(self, title: str) -> int:
        return next(child.pid for child in self.children if child.title == title)

    def stop(self) -> None:
        for child in self.children:
            child.ask_to_end()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in self.children:
            child.make_end(deadline)

    def follow(self, stop: StopRequest) -> None:
        """Print a line for each change, by whichever process, until stopped."""
        running = list(self.children)
        names = ["default", "cache"] if self.redis_ports else ["default"]
        watchers = [Watcher(Upstream(self.store, id=name)) for name in names]
        while not stop.made:
            for child in [child for child in running if child.ended()]:
                running.remove(child)
                say(f"{child.title} (pid {child.pid}) has ended: {child.ended()}")
            for event in itertools.chain.from_iterable(map(news, watchers)):
                say(event)
            time.sleep(POLL_S)


def news(watcher: Watcher) -> list[str]:
    """What happened since the last look; nothing until the upstream was seen."""
    is_known = watcher.now is not None
    events = watcher.look()
    return list(map(str, events)) if is_known else []


def backend_command(name: str, port: int) -> list[str]:
    return [sys.executable, "-m", "example_project.backend", "--port", str(port), "--name", name]


def redis_command(port: int, directory: Path) -> list[str]:
    """A Redis that keeps everything in memory."""
    options = {"port": str(port), "bind": "127.0.0.1", "save": "", "dir": str(directory), "loglevel": "warning"}
    return ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))]


def site_command(port: int) -> list[str]:
    configuration = str(ROOT / "example_project" / "gunicorn_conf.py")
    return [sys.executable, "-m", "gunicorn", "-c", configuration, "--bind", f"127.0.0.1:{port}"]


def wait_until_answers(child: Child, answers: Callable[[], bool], stop: StopRequest) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not stop.made:
        if ending := child.ended():
            raise StartFailed(f"{child.title} ended at once ({ending}). It printed:\n\n{child.printed()}")
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{child.title} did not answer in {START_TIMEOUT_S:.0f} s. It printed:\n\n{child.printed()}"
            )
        if answers():
            return
        time.sleep(0.05)


def answers_http(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def answers_ping(port: int) -> bool:
    try:
        return ping("127.0.0.1", port, timeout_s=2.0)
    except OSError:
        return False


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


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}")


def instructions(demo: Demo) -> str:
    address = f"http://127.0.0.1:{demo.site_port}"
    upstream = f"{shlex.quote(sys.executable)} example_project/manage.py upstream"
    pid_a = demo.pid_of("back end a")
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
     {upstream} down-host primary b
     {upstream} up-host primary b

  8. Take both a and b out: pool dr answers. All three: a 504 that says so.

  9. See the pools and hosts as all workers do, once, all the time, or in a browser with switches (you sign in with
     the token {demo.status_token}):
     {upstream} list
     {upstream} watch
     {address}/upstreams/

{redis_instructions(demo, address, upstream) if demo.redis_ports else NO_REDIS}

Ctrl-C here ends what this command started; what you started yourself is yours: see `jobs`, and kill %1

What happens to the hosts:
"""


NO_REDIS = """\
There is no redis-server on this machine, so the page /cache is left out: to see Redis fail over, too, install it
(Debian and Ubuntu: apt-get install redis-server, macOS: brew install redis) and start the demo again."""


def redis_instructions(demo: Demo, address: str, upstream: str) -> str:
    again = shlex.join(redis_command(demo.redis_ports["r1"], demo.directory))
    return f"""\
  10. Count visits in Redis, the upstream named cache: r1 counts, r2 stands by. In a browser: {address}/cache
     while sleep 0.2; do curl -s {address}/count; echo; done

  11. Kill Redis r1. The visits go on at r2, which has a count of its own:
     kill -9 {demo.pid_of("Redis r1")}

  12. Start it again. Within some seconds a check finds it up; the connections to r2 stay while they work:
     {again} &

  13. Kill Redis r2. The visits go on at r1:
     kill -9 {demo.pid_of("Redis r2")}

  14. See its pools and hosts as all workers do:
     {upstream} list --upstream cache"""


def run(store: str | None, site_port: int) -> int:
    """Start everything, follow what happens, end everything."""
    stop = StopRequest()
    # The real path: the store refuses one that leads over a symbolic link, as /tmp is on some systems.
    directory = Path(tempfile.mkdtemp(prefix="resty-upstream-demo-")).resolve()
    demo: Demo | None = None
    try:
        wanted = (settings.REDIS_PORTS or REDIS_PORTS) if shutil.which("redis-server") else ()
        site_port, a, b, c, *redis_ports = free_ports([site_port, *settings.BACKEND_PORTS, *wanted])
        demo = Demo(
            directory=directory,
            store=store or f"sqlite://{directory}/upstreams.db",
            ports=dict(zip(NAMES, (a, b, c), strict=True)),
            redis_ports=dict(zip(REDIS_NAMES, redis_ports, strict=False)),  # none where there is no Redis
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
    print("Stopped all that this command started.")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m example_project.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", help="a store of your own; without it the demo uses a temporary one")
    parser.add_argument("--port", type=int, default=8000, help="where the site listens, if it is free")
    options = parser.parse_args(argv)
    # Line by line also into a pipe or a file: what happens is of interest when it happens.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return run(options.store, options.port)


if __name__ == "__main__":
    sys.exit(main())
