"""A command in a terminal of its own, seen as a person sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

from tests.e2e.processes import PATIENCE_S, ROOT, wait_until


class Terminal:
    """A pseudoterminal with a command in it; a context manager that ends the command."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
        directory: Path = ROOT,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.Stream(self._screen)
        self.sent = ""
        """All that the command wrote."""
        self._resized_at = 0
        program, *arguments = command
        self.process = pexpect.spawn(
            program,
            arguments,
            cwd=str(directory),
            env={**_inherited(), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **(environment or {})},
            dimensions=(rows, columns),
            encoding="utf-8",
            timeout=PATIENCE_S,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.close(force=True)

    def _read(self) -> None:
        """Show what was written since the last time."""
        try:
            while not self.process.closed:
                text = self.process.read_nonblocking(65_536, timeout=0)
                self.sent += text
                self._stream.feed(text)
        except (pexpect.TIMEOUT, pexpect.EOF):
            pass

    @property
    def lines(self) -> list[str]:
        """What is on the screen, line by line."""
        self._read()
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(self.lines).rstrip()

    @property
    def shows_cursor(self) -> bool:
        self._read()
        return not self._screen.cursor.hidden

    def colour_of(self, text: str) -> str:
        """The colour in which a text is on the screen, where it is first."""
        row, line = next((row, line) for row, line in enumerate(self.lines) if text in line)
        return str(self._screen.buffer[row][line.index(text)].fg)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the screen shows something."""
        try:
            return wait_until(lambda: re.search(pattern, self.text), pattern)
        except AssertionError as error:
            raise AssertionError(f"{error}; the terminal shows:\n{self.text}") from None

    def type(self, text: str) -> None:
        self.process.send(text)

    @property
    def scrolled(self) -> int:
        """How many lines have left the screen at its top."""
        self._read()
        return len(self._screen.history.top)

    @property
    def history(self) -> str:
        """The lines that have left the screen at its top."""
        self._read()
        lines = ["".join(line[column].data for column in sorted(line)) for line in self._screen.history.top]
        return "\n".join(lines)

    def resize(self, columns: int, rows: int) -> None:
        """Another size, of which the command is told by a signal."""
        self._read()
        self._screen.resize(rows, columns)
        self._screen.reset()
        self._resized_at = len(self.sent)
        self.process.setwinsize(rows, columns)

    @property
    def drawn_since_resize(self) -> bool:
        """Whether the command has written two screens since then: the first may have been under way."""
        self._read()
        return self.sent.count("\x1b[H", self._resized_at) >= 2

    def wait(self) -> int:
        """The exit status, once all that was written is on the screen."""
        wait_until(lambda: self._read() or not self.process.isalive(), "the command ends")
        self._read()
        self.process.close()
        assert self.process.exitstatus is not None, f"ended by signal {self.process.signalstatus}"
        return int(self.process.exitstatus)


def _inherited() -> dict[str, str]:
    unwanted = {"COLUMNS", "LINES", "NO_COLOR", "RESTY_UPSTREAM_STORE", "DJANGO_SETTINGS_MODULE", "EXAMPLE_STORE"}
    return {name: value for name, value in os.environ.items() if name not in unwanted}
