"""An application that is installed as operators install it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Ports
from tests.operators.installed import Installed


@pytest.fixture(scope="session")
def ports() -> Iterator[Ports]:
    """Loopback ports that stay ours."""
    ports = Ports()
    yield ports
    ports.release()


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    """The application, in a directory of this test."""
    return Installed(tmp_path)
