"""Ports, and the example project in gunicorn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.processes import Ports
from tests.e2e.site import Site


@pytest.fixture
def start_site(ports: Ports, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts a :class:`Site` that is ended when the test is over."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Site(ports, tmp_path, **options))
