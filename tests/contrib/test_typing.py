"""What a type checker says of users' code."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.processes import ROOT, python

HERE = Path(__file__).parent
TYPED = [HERE / "fastapi/typed_endpoints.py", HERE / "flask/typed_views.py", HERE / "starlette/typed_endpoints.py"]


def test_a_checker_knows_what_requests_dependencies_and_proxies_are() -> None:
    """mypy, strict, infers each type that the files assert."""
    done = subprocess.run(
        python("-m", "mypy", "--strict", *TYPED),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
