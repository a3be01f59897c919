"""What a type checker says of users' code."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.e2e.processes import ROOT, python

TYPED = Path(__file__).with_name("typed_views.py")


def test_a_checker_knows_what_connect_returns_and_what_a_request_has() -> None:
    """mypy, strict and with the plugin of django-stubs, infers each type that the file asserts."""
    done = subprocess.run(
        python("-m", "mypy", "--strict", TYPED), cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
