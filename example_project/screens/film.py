"""A recorded terminal as an animated SVG: no script, nothing from elsewhere, and a still where nothing moves.

All frames are below each other on one strip, and a keyframe for each moves it. A line is drawn once, however many
frames show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .terminal import COLUMNS, ROWS, Frame, Line, Run

# All in px, for characters of 14 px; they are that wide in the widest of the fonts.
CELL_WIDTH = 8.43
LINE_HEIGHT = 18
MARGIN = 18
BAR = 40
LAST_S = 4.0
"""How long the last frame stays."""
WIDTH = round(COLUMNS * CELL_WIDTH) + 2 * MARGIN
FRAME_HEIGHT = (ROWS + 3) * LINE_HEIGHT

COLOURS = {"red": "#ff7b72", "green": "#56d364", "brown": "#e3b341", "brightblack": "#8b949e"}
STYLE = """\
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #e6edf3;
  white-space: pre }
.bold { font-weight: 700 }
"""


def svg(frames: Sequence[Frame], title: str) -> str:
    """The film of `frames`, which loops."""
    names = {line: f"l{number}" for number, line in enumerate(dict.fromkeys(_lines(frames)))}
    strip = "\n".join(_frame(frame, number, names) for number, frame in enumerate(frames))
    drawn = "\n".join(f'<text id="{name}">{"".join(map(_run, line))}</text>' for line, name in names.items())
    height = BAR + FRAME_HEIGHT
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"
  height="{height}">
<title>{escape(title)}</title>
<style>
{STYLE}{_colours()}{_keyframes(frames)}</style>
<defs>
{drawn}
</defs>
<rect x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="10" fill="#0d1117" stroke="#484f58"/>
<g fill="#484f58"><circle cx="22" cy="20" r="6"/><circle cx="42" cy="20" r="6"/><circle cx="62" cy="20" r="6"/></g>
<text x="86" y="25" class="brightblack">{escape(title)}</text>
<svg y="{BAR}" width="{WIDTH}" height="{FRAME_HEIGHT}"><g id="strip">
{strip}
</g></svg>
</svg>
"""


def _lines(frames: Sequence[Frame]) -> Iterator[Line]:
    for frame in frames:
        yield from (line for line in frame.lines if line)
        yield _caption(frame)


def _caption(frame: Frame) -> Line:
    return (Run(frame.caption, "brown", bold=True),)


def _frame(frame: Frame, number: int, names: dict[Line, str]) -> str:
    rows = dict(enumerate(frame.lines)) | {ROWS + 1: _caption(frame)}
    top = number * FRAME_HEIGHT + LINE_HEIGHT
    shown = (
        f'<use href="#{names[line]}" x="{MARGIN}" y="{top + row * LINE_HEIGHT}"/>'
        for row, line in rows.items()
        if line
    )
    return f"<g>{''.join(shown)}</g>"


def _run(run: Run) -> str:
    classes = " ".join([run.colour] * (run.colour in COLOURS) + ["bold"] * run.bold)
    return f'<tspan class="{classes}">{escape(run.text)}</tspan>' if classes else escape(run.text)


def _colours() -> str:
    return "".join(f".{name} {{ fill: {colour} }}\n" for name, colour in COLOURS.items())


def _keyframes(frames: Sequence[Frame]) -> str:
    """The strip stays at each frame as long as that was on the screen."""
    start = frames[0].at_s
    length = frames[-1].at_s - start + LAST_S
    steps = "\n".join(
        f"{100 * (frame.at_s - start) / length:.2f}% {{ transform: translateY({-number * FRAME_HEIGHT}px) }}"
        for number, frame in enumerate(frames)
    )
    return f"""\
@keyframes play {{
{steps}
}}
@media (prefers-reduced-motion: no-preference) {{
  #strip {{ animation: play {length:.2f}s step-end infinite }}
}}
"""
