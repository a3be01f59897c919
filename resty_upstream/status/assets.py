"""The files that the page consists of beside its HTML."""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Final

TYPES: Final = {
    "status.css": "text/css; charset=utf-8",
    "status.js": "text/javascript; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@cache
def content(name: str) -> bytes:
    """The file of that name."""
    return files(__package__).joinpath(name).read_bytes()


@cache
def digest(name: str) -> str:
    """What changes with the file: browsers keep it as long as that stays."""
    return blake2b(content(name), digest_size=6).hexdigest()
