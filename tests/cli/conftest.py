"""A place with a store, and the command in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import django
import pytest

from resty_upstream.cli import main
from tests.cli.doors import Done, Place

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("DJANGO_SETTINGS_MODULE", "tests.contrib.django.admin_project.settings")
    django.setup()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell may hold, and would change what the command does."""
    for name in ("COLUMNS", "FORWARDED_ALLOW_IPS", "LINES", "NO_COLOR", "RESTY_UPSTREAM_STORE", "_ARGCOMPLETE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def empty_place(tmp_path: Path) -> Iterator[Place]:
    """A place whose store nobody has used yet."""
    with Place(tmp_path) as place:
        yield place


@pytest.fixture
def place(empty_place: Place) -> Place:
    """A place whose store holds what is declared."""
    empty_place.configure()
    return empty_place


@pytest.fixture
def command(place: Place, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``resty-upstream --store … `` in this process."""

    def run(*arguments: str) -> Done:
        code = main(["--store", place.url, *arguments])
        return Done(code, *capsys.readouterr())

    return run
