"""The command line: ``resty-upstream``, ``manage.py upstream`` and ``flask upstream``.

One parser and one set of verbs; what differs between the doors is where the upstreams come from. A door makes a
parser with :func:`build_parser` and has :func:`perform` do what was asked, or leaves both to :func:`run`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

from resty_upstream import __version__
from resty_upstream.cli import (
    arguments,
    changing,
    checking,
    completion,
    health,
    neutral,
    showing,
    transfer,
    watching,
)
from resty_upstream.cli.arguments import Parser
from resty_upstream.cli.call import (
    Call,
    CommandFailed,
    Option,
    StoredUpstreams,
    Verb,
    WrongUsage,
    option,
    strerror,
)
from resty_upstream.cli.logs import Heard, unseen_logs
from resty_upstream.cli.screen import Screen
from resty_upstream.cli.watching import Watcher
from resty_upstream.config import Upstreams
from resty_upstream.errors import HostExists, InvalidConfig, PoolExists, UpstreamError
from resty_upstream.upstream import Upstream

__all__ = [
    "VERBS",
    "CommandFailed",
    "Option",
    "Parser",
    "Screen",
    "Watcher",
    "WrongUsage",
    "build_parser",
    "main",
    "option",
    "own_process",
    "perform",
    "run",
]

_VERBS: Final = (
    *showing.VERBS,
    *checking.VERBS,
    *watching.VERBS,
    *health.VERBS,
    *changing.VERBS,
    *transfer.VERBS,
)
VERBS: Final = (*_VERBS, completion.VERB)
"""All that the command does; the last one is for ``resty-upstream`` alone."""
_BY_NAME: Final = {verb.name: verb for verb in VERBS}

_INTERRUPTED: Final = 130  # as shells count a process that SIGINT ended


def build_parser(prog: str, verbs: Sequence[Verb] = _VERBS, **settings: Any) -> Parser:
    """A parser of all verbs; its settings are those of :func:`resty_upstream.cli.arguments.build_parser`."""
    return arguments.build_parser(prog, verbs, **settings)


def perform(
    options: argparse.Namespace,
    find: Callable[[], Mapping[str, Upstream]],
    screen: Screen,
    *,
    owns_memory: bool = False,
    heard: Heard | None = None,
) -> None:
    """Do what was asked.

    :param options: what the parser made of it.
    :param find: makes the upstreams by name.
    :param owns_memory: whether this process may be the one that uses a store in memory.
    :param heard: what :func:`own_process` gave.
    :raises CommandFailed: when it cannot be done.
    """
    verb = _BY_NAME[options.verb]
    try:
        verb.run(Call(options, find, screen, begins=verb.begins, owns_memory=owns_memory, heard=heard))
        screen.stream.flush()
    except BrokenPipeError:
        raise
    except (PoolExists, HostExists) as error:
        raise CommandFailed(str(error)) from None
    except InvalidConfig as error:
        raise WrongUsage(f"{error} (see {options.prog} --help)") from None
    except UpstreamError as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(strerror(error)) from None


@contextlib.contextmanager
def own_process(complain: Callable[[str], object]) -> Iterator[Heard]:
    """A context for a command that is a process of its own.

    Nothing is logged on the terminal, a reader that has gone away is none to complain to, and Ctrl-C ends it.

    :param complain: called with what the user must know although the command did what was asked.
    :returns: for :func:`perform`, so that a command that goes on says such things as they happen.
    :raises CommandFailed: as it is raised inside, with what else the user must know.
    """
    with unseen_logs(complain) as heard:
        try:
            yield heard
            if heard.messages:
                complain("; ".join(heard.messages))
        except BrokenPipeError:
            pass
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None
        except CommandFailed as failed:
            raise type(failed)("; ".join([str(failed), *heard.messages])) from None
        finally:
            _drop_what_cannot_be_written()


def _drop_what_cannot_be_written() -> None:
    """Else the interpreter would try again at its end, and complain."""
    if sys.stdout is None or sys.stdout.closed:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(
    parser: Parser,
    given: Sequence[str] | None,
    find: Callable[[argparse.Namespace], Mapping[str, Upstream]],
    *,
    owns_memory: bool = False,
) -> int:
    """Do what a command line asks for; the exit status.

    :param given: what was given to the command; that of this process for None.
    :param find: makes the upstreams by name, of what was asked.
    """

    def complain(line: str) -> None:
        with contextlib.suppress(OSError):  # then there is nobody to tell it
            errors.write(f"{parser.prog}: {line}\n")
            errors.flush()

    output, errors = _prepared(sys.stdout), _prepared(sys.stderr)
    try:
        with own_process(complain) as heard:
            options = parser.parse_args(given)
            finder = functools.partial(find, options)
            perform(options, finder, Screen(output), owns_memory=owns_memory, heard=heard)
    except CommandFailed as failed:
        complain(str(failed))
        return failed.code
    except SystemExit as end:  # argparse ends after --help
        return end.code if isinstance(end.code, int) else 0
    return 0


def _prepared(stream: TextIO | None) -> TextIO:
    """A standard stream that prints what its encoding lacks in ASCII; nowhere, where it is closed."""
    if stream is None:
        return _Nowhere()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


class _Nowhere(io.StringIO):
    """A stream that keeps nothing: what is printed may go on for weeks."""

    def write(self, text: str, /) -> int:
        """Forget it."""
        return len(text)


def main(given: Sequence[str] | None = None) -> int:
    """The command ``resty-upstream``; the exit status.

    :param given: what was given to it; that of this process if not given.
    """
    parser = build_parser(
        neutral.PROG,
        VERBS,
        options=neutral.OPTIONS,
        about=neutral.ABOUT,
        examples=neutral.EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"{neutral.PROG} {__version__}")
    completion.complete_if_asked(parser)
    with contextlib.ExitStack() as stack:

        def find(options: argparse.Namespace) -> StoredUpstreams | Upstreams:
            return stack.enter_context(contextlib.closing(neutral.find_upstreams(options)))

        return run(parser, given, find)
