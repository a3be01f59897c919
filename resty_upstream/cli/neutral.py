"""The command ``resty-upstream``, which knows no framework: a store, or a file of configuration, is named."""

from __future__ import annotations

import argparse
import os
from typing import Final

from resty_upstream.cli import arguments
from resty_upstream.cli.call import MEMORY, CommandFailed, StoredUpstreams, WrongUsage, option
from resty_upstream.config import Upstreams
from resty_upstream.errors import InvalidConfig, without_secrets

PROG: Final = "resty-upstream"
VARIABLE: Final = "RESTY_UPSTREAM_STORE"

OPTIONS: Final = (
    option("--store", metavar="URL", help=f"the store that the application uses (default: ${VARIABLE})"),
    option(
        "--config",
        metavar="FILE",
        type=arguments.file,
        help="the file of TOML or JSON that configures the application's upstreams, instead of a store",
    ),
)
ABOUT: Final = (
    "The upstreams are those of a store that is named by --store or by the variable "
    f"{VARIABLE}, as sqlite:///run/myapp/upstreams.db, or those that a file of configuration describes."
)
EXAMPLES: Final = (
    "--store sqlite:///run/myapp/upstreams.db list",
    "--config upstreams.toml check",
    "down-host primary a",
)


def find_upstreams(options: argparse.Namespace) -> StoredUpstreams | Upstreams:
    """The upstreams that are meant.

    :raises InvalidConfig: naming every problem of the file.
    :raises WrongUsage: when not exactly one of store and file is given.
    """
    if options.config is not None and options.store is not None:
        raise WrongUsage(f"--store and --config name two places: give one of them (see {PROG} --help)")
    if options.config is not None:
        return Upstreams(options.config)
    source, url = ("--store", options.store) if options.store is not None else (f"${VARIABLE}", _of_environment())
    if not url and options.store is None:
        raise WrongUsage(f"name the store: with --store URL, --config FILE or ${VARIABLE} (see {PROG} --help)")
    return _stored(source, url)


def _of_environment() -> str:
    return os.environ.get(VARIABLE, "")


def _stored(source: str, url: str) -> StoredUpstreams:
    if url == MEMORY:
        raise CommandFailed(f"{source} is {MEMORY}, in the memory of one process: no other can see it")
    try:
        return StoredUpstreams(url)
    except InvalidConfig:
        what = "must be a URL as sqlite:///run/myapp/upstreams.db"
        raise WrongUsage(f"{source} {what}, not {without_secrets(repr(url))} (see {PROG} --help)") from None
