"""Measuring variants against a baseline in one process, in alternating rounds.

A machine is never equally fast twice: its clock rate, its caches and its other work drift over seconds. So a
baseline and its candidates take turns every few milliseconds, each as often before the others as after them, and
are compared by medians. Of each turn the first calls are not timed: they pay for caches that the others used.

CPython keeps its frames in chunks of 16 KiB. What happens to cross the end of one in each call pays some
microseconds for a chunk that is made and dropped, and whether it does is chance. So each round begins at another
depth.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from statistics import median
from typing import Any, Literal, NamedTuple

Sample = Callable[[int], int]
"""Makes so many calls, and returns how many nanoseconds they took."""
Comparison = Literal["ratio", "difference"]

_DEPTHS = 113  # some 16 KiB together
_WIDTHS = (42, 11, 11, 9, 9, 11, 7)


class Figure(NamedTuple):
    """What one variant cost: per call, in microseconds."""

    name: str
    median_us: float
    fastest_us: float
    ratio: float
    """Of the medians, to the baseline's."""
    ratio_by_round: float
    """The median of each round's ratio."""
    more_us: float
    """Of the medians, over the baseline's."""
    more_by_round_us: float
    """The median of each round's difference."""
    target: str
    met: bool | None
    """None where there is no target."""


class Target(NamedTuple):
    """What a figure should be."""

    text: str
    holds: Callable[[Figure], bool]


def at_most_us(limit: float) -> Target:
    """The median of one call."""
    return Target(f"≤ {limit:g} µs", lambda figure: figure.median_us <= limit)


def at_most_times(limit: float) -> Target:
    """The ratio of the medians."""
    return Target(f"≤ {limit:g} ×", lambda figure: figure.ratio <= limit)


def at_most_more_us(limit: float) -> Target:
    """The difference of the medians."""
    return Target(f"≤ +{limit:g} µs", lambda figure: figure.more_us <= limit)


def at_least_per_s(limit: int) -> Target:
    """Calls in a second, one after the other."""
    return Target(f"≥ {limit:,}/s", lambda figure: figure.median_us * limit <= 1e6)


class Variant(NamedTuple):
    """One way of doing a thing."""

    name: str
    sample: Sample
    target: Target | None = None


class Group(NamedTuple):
    """Variants that are compared; the first is the baseline of the others."""

    title: str
    calls: int
    """In each sample."""
    variants: Sequence[Variant]
    comparison: Comparison = "ratio"


def calling(func: Callable[[], object]) -> Sample:
    """A sample that calls ``func``."""

    def sample(calls: int) -> int:
        began = time.perf_counter_ns()
        for _ in repeat(None, calls):
            func()
        return time.perf_counter_ns() - began

    return sample


def measure(group: Group, rounds: int) -> list[Figure]:
    """The figures of a group, in the order of its variants."""
    variants = list(enumerate(group.variants))
    times_us: list[list[float]] = [[] for _ in variants]
    for _, variant in variants:
        variant.sample(group.calls)  # caches, lazy imports, specialised bytecode
    for number in range(rounds):
        first = number // 2 % len(variants)
        turns = [*variants[first:], *variants[:first]]
        for index, variant in turns if number % 2 else reversed(turns):
            took_ns = _deeper(number * 37 % _DEPTHS, variant.sample, group.calls)
            times_us[index].append(took_ns / group.calls / 1000)
    return [_figure(variant, times_us[index], times_us[0]) for index, variant in variants]


def _deeper(depth: int, sample: Sample, calls: int) -> int:
    return _undisturbed(sample, calls) if depth == 0 else _deeper(depth - 1, sample, calls)


def _undisturbed(sample: Sample, calls: int) -> int:
    gc.disable()
    try:
        sample(max(1, calls // 5))
        return sample(calls)
    finally:
        gc.enable()


def _figure(variant: Variant, times_us: list[float], baseline_us: list[float]) -> Figure:
    middle, middle_of_baseline = median(times_us), median(baseline_us)
    figure = Figure(
        name=variant.name,
        median_us=middle,
        fastest_us=min(times_us),
        ratio=middle / middle_of_baseline,
        ratio_by_round=median(a / b for a, b in zip(times_us, baseline_us, strict=True)),
        more_us=middle - middle_of_baseline,
        more_by_round_us=median(a - b for a, b in zip(times_us, baseline_us, strict=True)),
        target="",
        met=None,
    )
    if variant.target is None:
        return figure
    return figure._replace(target=variant.target.text, met=variant.target.holds(figure))


# ── showing ───────────────────────────────────────────────────────────────────────────────────


def table(group: Group, figures: Sequence[Figure]) -> str:
    """The figures of a group for people; 100 columns wide."""
    compared = "ratio" if group.comparison == "ratio" else "more"
    lines = [_line("", "median", "fastest", compared, "by round", "target", "")]
    lines += [_row(figure, group.comparison, baseline=index == 0) for index, figure in enumerate(figures)]
    return "\n".join([group.title, *lines])


def _row(figure: Figure, comparison: Comparison, *, baseline: bool) -> str:
    if baseline:
        compared = ("", "")
    elif comparison == "ratio":
        compared = (f"{figure.ratio:.2f}", f"{figure.ratio_by_round:.2f}")
    else:
        compared = (f"{figure.more_us:+.2f}", f"{figure.more_by_round_us:+.2f}")
    verdict = {None: "", True: "ok", False: "missed"}[figure.met]
    return _line(
        figure.name, _shown(figure.median_us), _shown(figure.fastest_us), *compared, figure.target, verdict
    )


def _line(name: str, *columns: str) -> str:
    cells = [f"{column:>{width}}" for column, width in zip(columns, _WIDTHS[1:], strict=True)]
    return ("  " + f"{name:<{_WIDTHS[0] - 2}}" + "".join(cells)).rstrip()


def _shown(microseconds: float) -> str:
    return f"{microseconds:,.2f} µs" if microseconds < 100 else f"{microseconds:,.0f} µs"


def plain(group: Group, figures: Sequence[Figure]) -> dict[str, Any]:
    """The same for programs."""
    return {"title": group.title, "calls": group.calls, "figures": [figure._asdict() for figure in figures]}
