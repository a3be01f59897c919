"""The public face: a flat module whose ``__all__`` is true."""

from __future__ import annotations

import inspect
import types

import pytest

import resty_upstream

NAMES = resty_upstream.__all__


def test_all_is_sorted_and_names_nothing_twice() -> None:
    assert sorted(set(NAMES)) == NAMES


def test_every_name_of_all_is_there() -> None:
    for name in NAMES:
        assert hasattr(resty_upstream, name), name


def test_every_public_name_that_is_there_is_in_all() -> None:
    public = {
        name
        for name, value in vars(resty_upstream).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(NAMES) - {"__version__"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_every_public_name_and_method_has_a_docstring(name: str) -> None:
    value = getattr(resty_upstream, name)
    assert inspect.getdoc(value), name
    if inspect.isclass(value):
        for method_name, method in vars(value).items():
            if inspect.isfunction(method) and not method_name.startswith("_"):
                assert inspect.getdoc(method), f"{name}.{method_name}"


def test_every_error_has_one_root() -> None:
    errors = [v for v in vars(resty_upstream).values() if inspect.isclass(v) and issubclass(v, Exception)]
    assert all(issubclass(error, resty_upstream.UpstreamError) for error in errors)


def test_every_error_class_is_public() -> None:
    from resty_upstream import errors

    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert defined <= set(NAMES)
