"""A command in a pseudo-terminal, recorded: what was on the screen, and when."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyte

COLUMNS = 96
ROWS = 22
QUIET_S = 0.04
"""How long nothing must have come before a screen counts as drawn."""


class Run(NamedTuple):
    """Neighbouring characters of one look."""

    text: str
    colour: str
    bold: bool


Line = tuple[Run, ...]


class Frame(NamedTuple):
    """What was on the screen from one moment on."""

    at_s: float
    caption: str
    """What was done when it was on the screen."""
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        return "\n".join("".join(run.text for run in line) for line in self.lines)


class Screen(pyte.Screen):
    """A screen that also knows dim text, as a colour."""

    def select_graphic_rendition(self, *attrs: int, **options: Any) -> None:
        super().select_graphic_rendition(*(90 if code == 2 else code for code in attrs), **options)

    def styled(self) -> tuple[Line, ...]:
        return tuple(tuple(self._runs(self.buffer[row])) for row in range(self.lines))

    def _runs(self, cells: Mapping[int, Any]) -> Iterator[Run]:
        end = max((column for column in cells if cells[column].data.strip()), default=-1) + 1
        row = [cells[column] for column in range(end)]
        for (colour, bold), same in groupby(row, key=lambda cell: (cell.fg, cell.bold)):
            yield Run("".join(cell.data for cell in same), colour, bold)


class Recorder:
    """Follows a command in a terminal of its own."""

    def __init__(self, terminal: int) -> None:
        self.caption = ""
        self.frames: list[Frame] = []
        self._terminal = terminal
        self._screen = Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)

    def look(self) -> Frame | None:
        """Take in what has come; the last frame."""
        while select.select([self._terminal], [], [], QUIET_S)[0]:
            self._stream.feed(os.read(self._terminal, 65_536))
        lines = self._screen.styled()
        last = self.frames[-1] if self.frames else None
        if any(lines) and (last is None or (last.caption, last.lines) != (self.caption, lines)):
            last = Frame(time.monotonic(), self.caption, lines)
            self.frames.append(last)
        return last


@contextmanager
def recording(command: Sequence[str], directory: Path) -> Iterator[Recorder]:
    """Start a command in a terminal, and end it."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (ROWS, COLUMNS))
    process = subprocess.Popen(
        command,
        cwd=directory,
        stdin=its,
        stdout=its,
        stderr=its,
        env={**environment, "TERM": "xterm-256color"},
        process_group=0,
    )
    os.close(its)
    try:
        yield Recorder(ours)
    finally:
        process.kill()  # it may be waiting for somebody to read what it wrote
        process.wait()
        os.close(ours)
