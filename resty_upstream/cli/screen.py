"""Where a command prints: how wide it is, what it can show, and tables that fit into it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from resty_upstream.cli.text import padded, shortened, width_of, wrapped

RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"
BOLD: Final = "1"
DIM: Final = "2"

PIPE_COLUMNS: Final = 80
"""How long a line is made where nothing says how long it may be."""
_LEAST_COLUMNS: Final = 20
_LEAST_OF_LAST: Final = 16
"""Columns for the last column of a table, for which others are shortened."""
_GAP: Final = "  "
_INDENT: Final = "  "


class Stream(Protocol):
    """What a screen needs of a text stream."""

    def write(self, text: str, /) -> object:
        """Print."""
        ...

    def flush(self) -> object:
        """Have it printed now."""
        ...

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        ...


class Cell(NamedTuple):
    """A text in a table."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """The head of a column."""

    title: str
    right: bool = False
    may_shrink: bool = False
    """Whether its texts may be shortened on a terminal that is too narrow."""


class Screen:
    """A stream to print on.

    :param colour: whether there are colours; if not given, a terminal has them unless ``NO_COLOR`` is set.
    """

    def __init__(self, stream: Stream, *, colour: bool | None = None) -> None:
        self.stream = stream
        self.is_terminal = stream.isatty()
        self.is_live = self.is_terminal and os.environ.get("TERM", "dumb") != "dumb"
        """Whether the cursor can be moved."""
        self.colour = (self.is_live and not os.environ.get("NO_COLOR")) if colour is None else colour

    @property
    def width(self) -> int:
        """How many columns a line may have."""
        return terminal_size().columns if self.is_terminal else PIPE_COLUMNS

    def line(self, text: str = "") -> None:
        """Print a line."""
        self.stream.write(f"{text}\n")

    def lines(self, lines: Iterable[str]) -> None:
        """Print lines."""
        self.stream.write("".join(f"{line}\n" for line in lines))

    def paint(self, text: str, style: str) -> str:
        """``text`` in a style, where there are any."""
        return f"\x1b[{style}m{text}\x1b[0m" if style and self.colour and text else text

    def fitted(self, text: str, width: int | None = None) -> str:
        """``text`` shortened to the width of the terminal; as it is where it goes into a pipe."""
        return shortened(text, self.width if width is None else width) if self.is_terminal else text

    def paragraph(self, text: str, first: str = "", rest: str = "", style: str = "") -> list[str]:
        """``text`` in as many lines as it needs.

        :param first: put in front of the first line, :param rest: of the others.
        """
        room = self.width - max(width_of(first), width_of(rest))
        head, *more = (self.paint(self.fitted(line, room), style) for line in wrapped(text, room))
        return [first + head, *(rest + line for line in more)]


def table(screen: Screen, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Aligned lines below a head; the text of the last column is wrapped where a line would be too long."""
    widths = _widths(screen, columns, rows)
    room = screen.width - len(_INDENT) - sum(widths) - len(_GAP) * len(widths)
    room = max(room, _LEAST_OF_LAST // 2 if screen.is_terminal else _LEAST_OF_LAST)
    head = [Cell(column.title, DIM) for column in columns]
    lines = []
    for row in (head, *rows):
        cells = zip(row, columns, widths, strict=False)  # the last column has no width
        start = _GAP.join(_cell(screen, *each) for each in cells)
        text, style = row[-1]
        blanks = _INDENT + " " * (sum(widths) + len(_GAP) * len(widths))
        first, *more = wrapped(text, room)
        lines.append(_INDENT + start + _GAP + screen.paint(screen.fitted(first, room), style))
        lines += [blanks + screen.paint(screen.fitted(line, room), style) for line in more]
    return lines


def _cell(screen: Screen, cell: Cell, column: Column, width: int) -> str:
    text = padded(shortened(cell.text, width), width, right=column.right)
    return screen.paint(text, cell.style)


def _widths(screen: Screen, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[int]:
    """Of all columns but the last; on a terminal that is too narrow, the widest that may shrink do."""
    widths = [
        max(width_of(column.title), *(width_of(row[number].text) for row in rows), 0)
        for number, column in enumerate(columns[:-1])
    ]
    while screen.is_terminal and sum(widths) + len(_GAP) * len(columns) + _LEAST_OF_LAST > screen.width:
        shrinkable = [
            number for number, column in enumerate(columns[:-1]) if column.may_shrink and widths[number] > 4
        ]
        if not shrinkable:
            break
        widths[max(shrinkable, key=widths.__getitem__)] -= 1
    return widths


def terminal_size() -> os.terminal_size:
    """The size of the terminal that is standard output, as it is now; 80 × 24 where it is not known."""
    try:
        size = os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]  # None is an AttributeError
    except (AttributeError, ValueError, OSError):
        size = os.terminal_size((0, 0))
    return os.terminal_size((max(size.columns or PIPE_COLUMNS, _LEAST_COLUMNS), max(size.lines or 24, 4)))
