"""HTML as text, made in one place that escapes: whatever is no :class:`Markup` is text and nothing else."""

from __future__ import annotations

import html
from functools import cache
from typing import Final

VOID: Final = {"br", "col", "input", "link", "meta"}


class Markup(str):
    """Text that is HTML already; only this module makes it."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | int | bool | None) -> Markup:
    """An element.

    :param children: text, which is escaped, and elements.
    :param attributes: ``class_`` is ``class``, ``data_key`` is ``data-key``; True is one without a value, and
        False and None leave it out.
    """
    written = "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Text, which is escaped, and elements, one after the other."""
    return Markup("".join(child if type(child) is Markup else html.escape(child) for child in children))


@cache
def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
