"""Other people's tools, which say whether a file is as they want it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

CONTRIB = Path(__file__).resolve().parent.parent.parent / "contrib"


def find(name: str) -> str:
    """The path of a command; those of administrators are not on everybody's path."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, f"the tests need {name}: see `make test`"
    return found


def run_tool(
    name: str, *arguments: str | Path, given: str = "", environment: Mapping[str, str] | None = None
) -> str:
    """What a command prints; a failed test when it fails."""
    done = subprocess.run(
        [find(name), *map(str, arguments)],
        input=given,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
