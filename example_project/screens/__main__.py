"""The pictures of the README, taken of what really happens: `make screens`.

Starts back ends, the site and its callers, `watch` in a terminal, and the status page in a browser. Then back ends
are killed, one host is taken down by hand, and all come back.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Page, ViewportSize, sync_playwright
from werkzeug.serving import WSGIRequestHandler, make_server

from example_project.demo import (
    ROOT,
    Demo,
    StartFailed,
    StopRequest,
    answers_http,
    backend_command,
    free_ports,
)
from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.status.wsgi import StatusApp

from . import settings
from .film import svg
from .terminal import Recorder, recording

SIZE: ViewportSize = {"width": 1280, "height": 600}
"""In px; the picture is as high as the page."""
SCALE = 1.3
CALLERS = 3
BETWEEN_CALLS_S = 0.03
PATIENCE_S = 20.0


class Stage(Demo):
    """The site, with back ends that can be started again."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": settings.__name__,
            "EXAMPLE_STORE": self.store,
            "SCREENS_PORTS": ",".join(map(str, self.ports.values())),
        }

    def kill(self, name: str) -> None:
        os.kill(self.pid_of(f"back end {name}"), signal.SIGKILL)

    def start_again(self, name: str) -> None:
        self._start_child(f"back end {name} again", backend_command(name, self.ports[name]))


class Callers:
    """Call the site all the time; a context manager."""

    def __init__(self, port: int) -> None:
        self.answered: list[bool] = []
        """Of each call, whether it was."""
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while not self._over.wait(BETWEEN_CALLS_S):
            self.answered.append(answers_http(self._port, "/raw"))


class Quiet(WSGIRequestHandler):
    """Prints no line for each request."""

    def log(self, *_args: Any) -> None:
        pass


def chromium() -> str:
    """The command of the browser."""
    command = shutil.which("chromium") or shutil.which("chromium-browser")
    if not command:
        raise StartFailed("the pictures need Chromium: apt-get install chromium")
    return command


@contextlib.contextmanager
def status_page(upstream: Upstream) -> Iterator[Page]:
    """The page in a browser, served by this process."""
    app = StatusApp(upstream, authorize=lambda _environ: "jane")
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), handle_sigint=False)
            page = browser.new_page(viewport=SIZE, device_scale_factor=SCALE, locale="en-GB")
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            yield page
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Stopped(Exception):
    """Somebody wanted it to end."""


class Story:
    """What happens, as the recorded `watch` shows it.

    :param pause_s: how long to look at each thing.
    """

    def __init__(self, stage: Stage, watch: Recorder, stop: StopRequest, pause_s: float) -> None:
        self._stage, self._watch, self._stop, self._pause_s = stage, watch, stop, pause_s

    def tell(self, api: UpstreamAPI, photograph: Callable[[], None]) -> None:
        self._show("all are well, and share the calls by weight", r"app-1 .* up\n.*app-2 .* up\n.*app-3 .* up\n")
        self._stage.kill("app-2")
        self._show("app-2 is killed: the others have its share", r"app-2 .* failed")
        api.down_host("primary", "app-3", reason="new kernel", by="jane", until="2h")
        self._show("jane takes app-3 down, for two hours", r"app-2 .* failed .*\n.*app-3 .* down by hand")
        photograph()
        self._stage.kill("app-1")
        self._show("app-1 is killed, too: pool dr takes over", r"app-1 .* failed .*\n.*app-2 .* failed ")
        self._stage.start_again("app-1")
        self._stage.start_again("app-2")
        self._show("app-1 and app-2 are started again: a request probes each", r"app-1 .* up\n.*app-2 .* up\n")
        api.up_host("primary", "app-3", reason="done", by="jane")
        self._show("jane brings app-3 back", r"app-3 .* up\n")

    def _show(self, caption: str, pattern: str) -> None:
        """Wait until `watch` shows what has to be seen, and look at it."""
        self._watch.caption = caption
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, shown := self._look()):
            if time.monotonic() > deadline:
                raise StartFailed(f"`watch` does not show {pattern!r}, but:\n{shown}")
        self.wait(self._pause_s)

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()

    def _look(self) -> str:
        """What is in the terminal."""
        if self._stop.made:
            raise Stopped
        frame = self._watch.look()
        return frame.text if frame else ""


def photograph(page: Page, into: Path) -> None:
    """The page in both themes, once it shows what was done by hand."""
    page.get_by_text("new kernel").first.wait_for()
    themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for theme in themes:
        page.emulate_media(color_scheme=theme)
        page.screenshot(path=into / f"status-{theme}.png", full_page=True)


def take(into: Path, pause_s: float, warm_up_s: float) -> list[bool]:
    """Take all pictures; of each call that was made meanwhile, whether it was answered."""
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        # The real path: the store refuses one that leads over a symbolic link, as /tmp is on some systems.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="screens-"))).resolve()
        site_port, *ports = free_ports([8000, *settings.PORTS])
        store = f"sqlite://{directory}/upstreams.db"
        stage = Stage(directory, store, dict(zip(settings.NAMES, ports, strict=True)), {}, site_port)
        stack.callback(stage.stop)
        stage.start(stop)
        callers = stack.enter_context(Callers(site_port))
        upstream = stack.enter_context(contextlib.closing(Upstream(store)))
        page = stack.enter_context(status_page(upstream))
        command = [sys.executable, "-m", "resty_upstream", "--store", store, "watch"]
        watch = stack.enter_context(recording(command, ROOT))
        story = Story(stage, watch, stop, pause_s)
        story.wait(warm_up_s)
        watch.frames.clear()
        story.tell(UpstreamAPI(upstream), functools.partial(photograph, page, into))
        (into / "watch.svg").write_text(svg(watch.frames, "$ resty-upstream watch"), "utf-8")
    return callers.answered


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.screens", description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "docs", help="the directory of the pictures")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds to look at each thing")
    parser.add_argument("--warm-up", type=float, default=110.0, help="seconds of calls before it begins")
    options = parser.parse_args(argv)
    try:
        answered = take(options.into, options.pause, options.warm_up)
    except StartFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    except Stopped:
        return 130
    print(f"{answered.count(True)} calls were answered, {answered.count(False)} failed.")
    return 0 if all(answered) else 1  # the README says that all were


if __name__ == "__main__":
    sys.exit(main())
