"""The verb ``check``: what is wrong with upstreams, and what is hardly meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from resty_upstream.cli.call import Call, CommandFailed, Verb, option
from resty_upstream.cli.screen import DIM, RED, YELLOW, Screen
from resty_upstream.cli.showing import JSON, dumped
from resty_upstream.cli.text import counted, shown
from resty_upstream.errors import InvalidConfig
from resty_upstream.lint import PROBLEMS, Finding, lint

_OF_THE_STORE: Final = ("W008", "W009")


class _Found(NamedTuple):
    """A finding, and the upstream that it is about."""

    upstream: str
    """"" where no upstream could be made of the configuration."""
    finding: Finding


def check(call: Call) -> None:
    """Print all findings; fail where something must be done."""
    found = list(_find(call))
    if call.options.json:
        call.screen.line(dumped([_as_json(each) for each in found]))
    elif found:
        several = len({each.upstream for each in found}) > 1
        for each in found:
            call.screen.lines(_lines(call.screen, each, several=several))
    else:
        call.screen.line("no problems")
    failures = [each for each in found if call.options.strict or _must_be_mended(each.finding)]
    if failures:
        raise CommandFailed(_summary(found))


def _find(call: Call) -> Iterator[_Found]:
    """The findings about the upstream that is named, or about all."""
    try:
        names = call.names() if call.options.upstream is None else [call.name]
    except InvalidConfig as error:
        yield from _problems("", error)
        return
    for name in names:
        try:
            # Also one in the memory of another process: this is about its configuration.
            findings = lint(call.upstreams[name], behind_proxy=_behind_proxy(call))
            yield from (_Found(name, finding) for finding in findings)
        except InvalidConfig as error:
            yield from _problems(str(name), error)


def _behind_proxy(call: Call) -> bool:
    return bool(call.options.behind_proxy or os.environ.get("FORWARDED_ALLOW_IPS"))


def _problems(name: str, error: InvalidConfig) -> Iterator[_Found]:
    for problem in error.problems:
        finding_id, hint = PROBLEMS[problem.kind]
        path = problem.partition(" ")[0].rstrip(":")
        yield _Found(name, Finding(finding_id, path, problem, hint))


def _must_be_mended(finding: Finding) -> bool:
    return finding.level == "error" or finding.id in _OF_THE_STORE


def _summary(found: list[_Found]) -> str:
    levels = [each.finding.level for each in found]
    counts = [(levels.count("error"), "error"), (levels.count("warning"), "warning")]
    return " and ".join(counted(number, noun) for number, noun in counts if number)


def _lines(screen: Screen, found: _Found, *, several: bool) -> list[str]:
    """``W001 path: message``, with what to write instead below it."""
    finding = found.finding
    style = RED if _must_be_mended(finding) else YELLOW
    where = f"upstream {found.upstream}, " if several and found.upstream else ""
    # Most messages are whole sentences, which begin with the path.
    message = finding.message.removeprefix(finding.path).removeprefix(":").lstrip()
    text = f"{where}{finding.path}: {message}" if finding.path else f"{where}{message}"
    first, *more = screen.paragraph(shown(text), f"{finding.id} ", "     ")
    head = screen.paint(finding.id, style) + first.removeprefix(finding.id)
    return [head, *more, *screen.paragraph(f"hint: {shown(finding.hint)}", "     ", "     ", DIM)]


def _as_json(found: _Found) -> dict[str, str]:
    finding = found.finding
    return {
        "upstream": found.upstream,
        "id": finding.id,
        "level": finding.level,
        "path": finding.path,
        "message": finding.message,
        "hint": finding.hint,
    }


VERBS: Final = (
    Verb(
        "check",
        check,
        "what is wrong, and what is hardly meant",
        "Print what is wrong with the configuration (E001, …), and what is valid but hardly meant (W001, …), with "
        "what to write instead. All upstreams are looked at, or the one that is named.\n\n"
        "It fails for what is wrong and for a store that cannot be used; with --strict, for each warning.",
        (
            JSON,
            option("--strict", action="store_true", help="fail for each warning, too"),
            option(
                "--behind-proxy",
                action="store_true",
                help="the application is behind a proxy (default: whether $FORWARDED_ALLOW_IPS is set)",
            ),
        ),
        ("--strict",),
    ),
)
