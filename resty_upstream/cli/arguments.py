"""The command line, as argparse reads it: the same verbs behind each door."""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from resty_upstream.cli.call import Option, Verb, WrongUsage, option
from resty_upstream.cli.text import meant, wrapped
from resty_upstream.errors import InvalidConfig
from resty_upstream.methods import find_method
from resty_upstream.model import host_from_options, identifier, pool_from_options, remark
from resty_upstream.moments import read_moment

T = TypeVar("T")

HELP_COLUMNS = 78
_SOME_HOST = "checked.invalid"

METHODS = ("round_robin", "random", "hash", "least_conn", "p2c")
"""Those that are always there; an application may register more."""

DESCRIPTION = (
    "Look at the pools and hosts of an upstream, and change them while the application runs: "
    "a change counts for the next request of every worker process."
)
_ENDS = (
    "exit status: 0, done; 1, it could not be done, and a line on standard error says why; 2, the command was "
    "not understood."
)


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, and how to get help.

    :param refuse: called with that line.
    """

    def __init__(self, *, refuse: Callable[[str], NoReturn] | None = None, **settings: Any) -> None:
        if sys.version_info >= (3, 14):
            settings.setdefault("color", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        self._refuse = refuse or _raise

    def error(self, message: str) -> NoReturn:
        """Refuse what was given."""
        self._refuse(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but nothing stays unknown: each verb names its own."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            first = unknown[0].partition("=")[0]
            if first.startswith("-"):
                self.error(f"there is no option {first!r}{meant(first, self._option_string_actions)}")
            self.error(f"{first!r} is one argument too many")
        return options, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(map(str, action.choices))
            hint = meant(str(value), known) or f": there are {', '.join(known)}"
            self.error(f"there is no {action.dest} {value!r}{hint}")


def _raise(line: str) -> NoReturn:
    raise WrongUsage(line)


def build_parser(
    prog: str,
    verbs: Iterable[Verb],
    *,
    options: Sequence[Option] = (),
    common: Sequence[Option] = (),
    refuse: Callable[[str], NoReturn] | None = None,
    about: str = "",
    examples: Sequence[str] = (),
) -> Parser:
    """A parser of the verbs.

    :param options: that say which upstream is meant; taken before and after the verb, as all that follow.
    :param common: that a framework gives to each of its commands.
    :param refuse: called with the line that says what is wrong; a :class:`WrongUsage` is raised if not given.
    :param about: more of the description.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} [options] VERB ...",
        description=_paragraphs(DESCRIPTION, about),
        epilog=_paragraphs(_examples(prog, examples), _ENDS),
        refuse=refuse,
    )
    which = (_UPSTREAM, *options)
    _add_options(parser, "which upstream", which)
    after = Parser(add_help=False)
    _add_options(after, "which upstream", which, default=argparse.SUPPRESS)
    _add_options(after, None, common, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    make: Any = functools.partial(Parser, refuse=refuse, parents=[after])
    into = parser.add_subparsers(
        title="verbs", dest="verb", metavar="VERB", required=True, parser_class=make, prog=prog
    )
    for verb in verbs:
        _add_verb(into, prog, verb)
    if common:
        _add_options(parser, "options of all commands", common)
    return parser


def _add_options(parser: Parser, title: str | None, options: Sequence[Option], **instead: Any) -> None:
    group = parser.add_argument_group(title)
    for flags, settings in options:
        group.add_argument(*flags, **(settings | instead))


def _add_verb(into: Any, prog: str, verb: Verb) -> None:
    parser = into.add_parser(
        verb.name,
        help=verb.summary,
        description=_paragraphs(verb.description),
        epilog=_examples(f"{prog} {verb.name}", verb.examples),
    )
    parser.set_defaults(prog=parser.prog)
    for flags, settings in verb.options:
        parser.add_argument(*flags, **settings)


def _paragraphs(*texts: str) -> str:
    paragraphs = [paragraph for text in texts if text for paragraph in text.split("\n\n")]
    return "\n\n".join(map(_filled, paragraphs))


def _filled(paragraph: str) -> str:
    """A paragraph in lines of the width of a help page; one that has lines already stays as it is."""
    return paragraph if "\n" in paragraph else "\n".join(wrapped(paragraph, HELP_COLUMNS))


def _examples(command: str, examples: Sequence[str]) -> str:
    if not examples:
        return ""
    title = "example" if len(examples) == 1 else "examples"
    return "\n".join([f"{title}:", *(f"  {command} {example}".rstrip() for example in examples)])


# ── types of arguments: the model says what is right ──────────────────────────────────────────


def _checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """A type of argument that is refused with what the model says of it, less the path in front."""

    def convert(text: str) -> T:
        try:
            return check(text)
        except InvalidConfig as error:
            what = error.problems[0].partition(" ")[2]
            raise argparse.ArgumentTypeError(what.replace(", a timedelta", "")) from None  # there is none here

    return convert


def _pool_option(name: str) -> Callable[[str], Any]:
    return _checked(lambda text: getattr(pool_from_options("-", {name: text}), name))


def _host_option(name: str) -> Callable[[str], Any]:
    return _checked(lambda text: getattr(host_from_options("-", "-", {"host": _SOME_HOST, name: text})[0], name))


def _method(text: str) -> str:
    find_method(text)
    return text


class Address(NamedTuple):
    """Where a host is."""

    host: str
    port: int | None
    """None where it was not given."""


def parse_address(text: str) -> Address:
    """``10.0.0.3``, ``10.0.0.3:8001``, ``[::1]:8001``, ``name:8001``, or ``unix:/path``.

    :raises InvalidConfig: saying what a host, or a port, must be.
    """
    bracket = text.rfind("]")
    colon = text.find(":", bracket + 1)
    is_bare = text.startswith("unix:") or (bracket < 0 and text.count(":") > 1)  # a path, or an IPv6 address
    if colon < 0 or is_bare:
        return Address(_host(text), None)
    return Address(_host(text[:colon]), _port(text[colon + 1 :]))


def _host(host: str) -> str:
    return host_from_options("-", "-", {"host": host})[0].host


def _port(port: str) -> int:
    try:
        return host_from_options("-", "-", {"host": _SOME_HOST, "port": port})[0].port
    except InvalidConfig as error:
        raise InvalidConfig(f"address: its port {error.problems[0].partition(' ')[2]}") from None


name = _checked(lambda text: identifier(text, "it"))
"""The id of an upstream, a pool or a host."""
method = _checked(_method)
"""A balancing method that this process knows."""
reason = _checked(lambda text: remark(text, "it"))
"""What a person says about what is done."""
address = _checked(parse_address)
port = _host_option("port")
weight = _host_option("weight")
priority = _pool_option("priority")
timeout = _pool_option("timeout")
max_fails = _pool_option("max_fails")
failed_timeout = _pool_option("failed_timeout")
failed_timeout_max = _pool_option("failed_timeout_max")
slow_start = _pool_option("slow_start")


def moment(text: str) -> float:
    """A time as seconds since 1970: of a time of day the next, or ISO 8601; local where no zone is given."""
    try:
        return read_moment(text, time.time())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _asking_for(path: str) -> dict[str, str]:
    pool_from_options("-", {"healthcheck": {"path": path}})
    return {"path": path}


healthcheck = _checked(_asking_for)
"""A check of hosts that asks for a path."""


def limit(text: str) -> int:
    """How many at most: one at least."""
    number = int(max_fails(text))
    if not number:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def seconds(text: str) -> float:
    """A time to wait."""
    return float(failed_timeout(text))


def lasting(text: str) -> datetime.timedelta:
    """How long something lasts."""
    return datetime.timedelta(seconds=seconds(text))


def file(text: str) -> str:
    """The name of a file, which may be there or not."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be the name of a file, not {text!r}")
    return text


_UPSTREAM = option(
    "--upstream",
    metavar="NAME",
    type=name,
    help="the upstream that is meant, here or before the verb; default: the one named default, or the only one",
)
