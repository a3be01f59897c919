"""The verbs ``export`` and ``import``: the pools of an upstream as a file."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from resty_upstream.cli import arguments
from resty_upstream.cli.call import Call, CommandFailed, Verb, option
from resty_upstream.cli.look import Look, look
from resty_upstream.cli.showing import dumped
from resty_upstream.cli.text import counted, shown
from resty_upstream.config import parse, read_file
from resty_upstream.errors import InvalidConfig, Problem
from resty_upstream.model import (
    Difference,
    GivenHealth,
    Pools,
    differences,
    pools_from_dicts,
    pools_to_dicts,
    record_key,
)
from resty_upstream.state import HostState, Status
from resty_upstream.stores.memory import MemoryStore
from resty_upstream.upstream import Upstream

STANDARD: Final = "-"
_MOST_BYTES: Final = 64 << 20


# ── export ────────────────────────────────────────────────────────────────────────────────────


def export(call: Call) -> None:
    """Print the pools, or write them to a file."""
    pools = exported(look(call.upstream))
    if call.options.file in (None, STANDARD):
        call.screen.line(dumped(pools))
        return
    write_file(call.options.file, dumped(pools) + "\n")
    call.screen.line(f"{shown(call.options.file)} has {_size(pools)}")


def exported(seen: Look) -> dict[str, dict[str, Any]]:
    """Pools as ``save_pools`` takes them: what a person decided, and nothing of what hosts did."""
    states = seen.states()
    pools = pools_to_dicts(seen.pools, lambda key: GivenHealth(up=states[key].status is not Status.MANUAL))
    for pool in pools.values():
        for host in pool["hosts"].values():
            del host["failcount"], host["lastfail"]
            if host["up"]:
                del host["up"]
    return pools


def write_file(path: str, text: str) -> None:
    """Put a file in the place of another one, whole or not at all.

    :raises CommandFailed: for what is there and no file: a device, a pipe.
    """
    target = os.path.realpath(path)
    found = os.stat(target) if os.path.lexists(target) else None
    if found and not stat.S_ISREG(found.st_mode):
        raise CommandFailed(f"{path} is not a regular file: leave FILE out, and redirect what is printed")
    new = f"{target}.{secrets.token_hex(4)}"
    try:
        _write(new, text, found)
        os.replace(new, target)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(new)


def _write(path: str, text: str, like: os.stat_result | None) -> None:
    with open(path, "x", encoding="utf-8") as file:
        if like:
            os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode))
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _size(pools: dict[str, dict[str, Any]]) -> str:
    hosts = sum(len(pool.get("hosts", ())) for pool in pools.values())
    return f"{counted(len(pools), 'pool')} with {counted(hosts, 'host')}"


# ── import ────────────────────────────────────────────────────────────────────────────────────


def import_pools(call: Call) -> None:
    """Replace all pools by those of a file."""
    try:
        given = _given(call.options.file)
        after = _checked(given)
        if call.options.dry_run:
            call.screen.lines(_would_change(look(call.upstream), after, given))
            return
        call.upstream.save_pools(given)
    except InvalidConfig as error:
        raise CommandFailed(str(error)) from None
    call.screen.line(f"upstream {shown(call.upstream.id)} has {_size(given)}")


def _given(path: str) -> Any:
    if path == STANDARD:
        return _parsed(_standard_input(), "", "standard input")
    return _parsed(read_file(path), Path(path).suffix.lower(), path)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise CommandFailed("there is no standard input")
    data = getattr(sys.stdin, "buffer", sys.stdin).read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise CommandFailed(f"standard input has more than {_MOST_BYTES >> 20} MiB")
    return data.encode() if isinstance(data, str) else bytes(data)


def _parsed(data: bytes, suffix: str, place: str) -> Any:
    """What a file holds: JSON or TOML, by its name or else by how it begins."""
    if not data.strip():
        # As TOML it would be no pools at all: whoever wrote it has failed.
        raise InvalidConfig(Problem(f"{place}: it is empty", "structure"))
    kind = suffix or (".json" if data.lstrip().startswith(b"{") else ".toml")
    return parse(data, kind if kind in {".json", ".toml"} else ".json", place)


def _checked(given: object) -> Pools:
    """The pools, after everything that is wrong with them would have been said."""
    upstream = Upstream(MemoryStore(), pools=given)  # type: ignore[arg-type]  # it says what is wrong with it
    return upstream.replica.declared or ()


def _would_change(seen: Look, after: Pools, given: Any) -> list[str]:
    changes = [_sentence(each) for each in differences(seen.pools, after)]
    changes += [*_new_order(seen.pools, after), *_taken_down(seen, after, given)]
    return [shown(change) for change in changes] or ["nothing would change"]


def _sentence(difference: Difference) -> str:
    path, before, after = difference
    if before is None:
        return f"{path} would be added"
    if after is None:
        return f"{path} would be removed"
    return f"{path} would be {after}, is {before}"


def _new_order(before: Pools, after: Pools) -> Iterator[str]:
    """Pools of one priority are tried in their order."""
    old, new = [pool.id for pool in before], [pool.id for pool in after]
    if [pool_id for pool_id in old if pool_id in new] != [pool_id for pool_id in new if pool_id in old]:
        yield f"pools would be in the order {', '.join(new)}"


def _taken_down(seen: Look, after: Pools, given: Any) -> Iterator[str]:
    """Hosts that are to be down by hand, and are not."""
    states, health = seen.states(), pools_from_dicts(given).health
    for pool in after:
        for host in pool.hosts:
            key = record_key(pool.id, host.id)
            down = key in health and not health[key].up and not health[key].lastfail
            if down and states.get(key, HostState()).status is not Status.MANUAL:
                yield f"pools.{pool.id}.hosts.{host.id} would be taken down"


VERBS: Final = (
    Verb(
        "export",
        export,
        "print the pools as JSON, or write them to a file",
        "Print the pools of the upstream as JSON, as import and the setting POOLS take them: all options, and "
        "up: false for hosts that were taken down by hand; nothing of failures.\n\n"
        "A file is replaced as a whole, or not at all.",
        (
            option(
                "file",
                nargs="?",
                metavar="FILE",
                type=arguments.file,
                help="the file to write (default: standard output)",
            ),
        ),
        ("", "pools.json"),
    ),
    Verb(
        "import",
        import_pools,
        "replace all pools by those of a file",
        "Replace all pools of the upstream by those of a file of JSON or TOML, as export writes it. All of it is "
        "checked first: either all is stored, or nothing.\n\n"
        "Hosts that stay keep their state; up: false takes one down by hand.",
        (
            option("file", metavar="FILE", type=arguments.file, help="the file to read; - for standard input"),
            option("--dry-run", action="store_true", help="print what would change, and change nothing"),
        ),
        ("pools.json", "--dry-run pools.toml"),
        begins=True,
    ),
)
