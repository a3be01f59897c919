"""An application that is installed as operators install it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.installed import Installed


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """The application, in a directory of this test."""
    return Installed(tmp_path)
