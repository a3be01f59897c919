"""Text for people: what others wrote made safe to print, how wide it is, how long something takes."""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Iterable


def shown(text: str) -> str:
    """``text`` with everything escaped that a terminal would not print: controls, bidi overrides, surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def width_of(text: str) -> int:
    """How many columns of a terminal ``text`` takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def padded(text: str, width: int, *, right: bool = False) -> str:
    """``text`` with blanks up to ``width`` columns."""
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def shortened(text: str, width: int) -> str:
    """``text`` cut to ``width`` columns, with … at its end where something is missing."""
    if width_of(text) <= width:
        return text
    kept = ""
    for char in text:
        if width_of(kept + char) > width - 1:
            break
        kept += char
    return f"{kept}…"


def wrapped(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` columns; a word that is longer has a line of its own."""
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and width_of(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


def duration(seconds: float) -> str:
    """Seconds as people say them: ``12 s``, ``3 min``, ``2 h``, ``5 d``."""
    whole = math.floor(max(0.0, seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def counted(number: int, noun: str) -> str:
    """``1 host``, ``2 hosts``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: Iterable[object], most: int = 20) -> str:
    """Names one after the other, not all where they are many."""
    given = list(map(str, names))
    rest = f" and {len(given) - most} more" if len(given) > most else ""
    return (", ".join(given[:most]) or "none") + rest


def meant(given: str, known: Iterable[str]) -> str:
    """A question for the one that was probably meant, or nothing."""
    alike = difflib.get_close_matches(given, list(known), 1)
    return f": did you mean {alike[0]}?" if alike else ""
