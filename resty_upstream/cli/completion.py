"""Completion of ``resty-upstream`` in bash, zsh and fish, by argcomplete, which is imported where it is used."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from resty_upstream.cli.arguments import METHODS
from resty_upstream.cli.call import Call, CommandFailed, Verb, option
from resty_upstream.cli.look import Look, look
from resty_upstream.cli.neutral import PROG, find_upstreams
from resty_upstream.cli.screen import Screen

SHELLS: Final = ("bash", "zsh", "fish")


def complete_if_asked(parser: argparse.ArgumentParser) -> None:
    """Where a shell asks for completions, print them and end the process."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        from argcomplete import autocomplete
        from argcomplete.completers import FilesCompleter, SuppressCompleter
    except ImportError:
        os._exit(1)  # a shell is no place for an explanation
    for action in _actions(parser):
        if action.dest in _NAMES:
            action.completer = _completer(_NAMES[action.dest])  # type: ignore[attr-defined]  # where it looks
        elif action.dest in {"config", "file"}:
            action.completer = FilesCompleter()  # type: ignore[attr-defined]
    autocomplete(parser, always_complete_options=False, default_completer=SuppressCompleter())


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All actions of a parser and of its verbs, but what a verb makes up itself."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb, of_verb in action.choices.items():
                yield from (each for each in _actions(of_verb) if (verb, each.dest) != ("create-pool", "pool"))


def _completer(names: Callable[[argparse.Namespace], Iterable[str]]) -> Callable[..., list[str]]:
    """Names for what was typed so far; none where they cannot be had, for whatever reason."""

    def complete(*, parsed_args: argparse.Namespace, **_context: Any) -> list[str]:
        with contextlib.suppress(Exception, SystemExit):
            return [name for name in names(parsed_args) if name.isprintable()]
        return []

    return complete


def _upstreams(options: argparse.Namespace) -> Iterable[str]:
    return find_upstreams(options)


def _pools(options: argparse.Namespace) -> Iterable[str]:
    return [pool.id for pool in _look(options).pools]


def _hosts(options: argparse.Namespace) -> Iterable[str]:
    return [host.id for pool in _look(options).pools if pool.id == options.pool for host in pool.hosts]


def _methods(_options: argparse.Namespace) -> Iterable[str]:
    return METHODS


def _look(options: argparse.Namespace) -> Look:
    with open(os.devnull, "w") as nowhere:
        call = Call(options, lambda: find_upstreams(options), Screen(nowhere))
        return look(call.upstream)


_NAMES: Final = {
    "upstream": _upstreams,
    "pool": _pools,
    "host": _hosts,
    "method": _methods,
    "new_method": _methods,
}


# ── the verb ──────────────────────────────────────────────────────────────────────────────────


def completion(call: Call) -> None:
    """Print what a shell is to run."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise CommandFailed("completion needs argcomplete: pip install 'resty-upstream[completion]'") from None
    call.screen.stream.write(shellcode([PROG], use_defaults=False, shell=call.options.shell))


VERB: Final = Verb(
    "completion",
    completion,
    "what makes a shell complete this command",
    "Print what makes a shell complete verbs, options, and the ids of the upstreams, pools and hosts in the "
    "store. It needs argcomplete: pip install 'resty-upstream[completion]'.\n\n"
    "Let the shell run it when it starts:\n"
    f'  bash, in ~/.bashrc: eval "$({PROG} completion bash)"\n'
    f'  zsh, in ~/.zshrc, after compinit: eval "$({PROG} completion zsh)"\n'
    f"  fish, in ~/.config/fish/config.fish: {PROG} completion fish | source",
    (option("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish"),),
    ("bash",),
)
