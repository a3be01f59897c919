"""Fixtures for the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from resty_upstream import methods


@pytest.fixture(autouse=True, scope="module")
def _methods() -> Iterator[None]:
    """What tests register, no other file of tests knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "_FACTORIES", dict(methods._FACTORIES))
        yield
