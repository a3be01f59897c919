"""``manage.py upstream``: look at pools and hosts, and change them while the site runs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from resty_upstream.cli import (
    CommandFailed,
    Option,
    Parser,
    Screen,
    build_parser,
    option,
    own_process,
    perform,
)
from resty_upstream.contrib.django.conf import upstreams

_ABOUT = "The upstreams are those of the setting UPSTREAMS."


class Command(BaseCommand):
    """The verbs of :mod:`resty_upstream.cli` on the upstreams of the setting."""

    requires_system_checks = ()
    _called_from_command_line: bool  # Django's; its stubs do not know it

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Parser:  # type: ignore[override]  # not Django's own parser, but one
        """The parser of the verbs, which takes Django's options before and after the verb."""
        self._common: list[Option] = []
        prog = super().create_parser(prog_name, subcommand, **kwargs).prog.strip()
        return build_parser(prog, about=_ABOUT, common=self._common, refuse=self._refuse)

    def add_base_argument(self, parser: CommandParser, *args: str, **kwargs: Any) -> None:
        """Called by Django for each option that all commands have."""
        super().add_base_argument(parser, *args, **kwargs)
        self._common.append(option(*args, **kwargs))

    def handle(self, *_args: Any, **options: Any) -> None:
        """Do what was asked."""
        colour = True if options["force_color"] else False if options["no_color"] else None
        screen = Screen(_Output(self.stdout), colour=colour)
        asked = argparse.Namespace(**options)
        try:
            in_shell = self._called_from_command_line
            with own_process(self.stderr.write) if in_shell else contextlib.nullcontext() as heard:
                perform(asked, lambda: upstreams, screen, owns_memory=not in_shell, heard=heard)
        except CommandFailed as failed:
            raise CommandError(str(failed), returncode=failed.code) from None

    def _refuse(self, line: str) -> NoReturn:
        if not self._called_from_command_line:
            raise CommandError(line, returncode=2)
        self.stderr.write(f"CommandError: {line}")
        sys.exit(2)


class _Output:
    """Django's stream, without the newline that it adds."""

    def __init__(self, wrapper: OutputWrapper) -> None:
        self._wrapper = wrapper

    def write(self, text: str) -> None:
        """Print."""
        self._wrapper.write(text, ending="")

    def flush(self) -> None:
        """Have it printed now."""
        self._wrapper.flush()

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        return self._wrapper.isatty()
