"""``python -m benchmarks [--rounds N] [--json] [name …]``: run all, or those that are named."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final

from benchmarks.balancing import balancing
from benchmarks.counting import counting
from benchmarks.django_middleware import django_middleware
from benchmarks.event_loop import event_loop
from benchmarks.failures import failures
from benchmarks.gateways import gateways
from benchmarks.harness import Figure, Group, measure, plain, table
from benchmarks.http_clients import http_clients
from benchmarks.sockets import async_sockets, sync_sockets

_BENCHMARKS: Final[dict[str, Callable[[], AbstractContextManager[list[Group]]]]] = {
    "connect": balancing,
    "counts": counting,
    "socket": sync_sockets,
    "asyncio": async_sockets,
    "gateways": gateways,
    "django": django_middleware,
    "http": http_clients,
    "failure": failures,
    "loop": event_loop,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What the balancing costs.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"run only these: {', '.join(_BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="samples of each variant (100)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in _BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(_BENCHMARKS)}")
    if options.rounds < 1:
        parser.error("at least one round is needed")
    measured = _measured(options.names or list(_BENCHMARKS), options.rounds)
    if options.json:
        groups = [plain(group, figures) for group, figures in measured]
        print(json.dumps({"python": sys.version, "platform": platform.platform(), "groups": groups}, indent=2))
        return
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}")
    for group, figures in measured:
        print("", table(group, figures), sep="\n", flush=True)


def _measured(names: Sequence[str], rounds: int) -> Iterator[tuple[Group, list[Figure]]]:
    for name in names:
        with _BENCHMARKS[name]() as groups:
            for group in groups:
                yield group, measure(group, rounds)


if __name__ == "__main__":
    main()
