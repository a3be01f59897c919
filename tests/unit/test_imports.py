"""Which module may import which: the rules that keep the project in its shape."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import resty_upstream

ROOT = Path(resty_upstream.__file__).parent
MODULES = {
    ".".join(["resty_upstream", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
PURE = ["model", "moments", "state", "load", "counts", "methods", "selection"]
PUBLIC = {
    f"resty_upstream.{name}"
    for name in (
        "asgi",
        "cli",
        "clients.mysql",
        "clients.psycopg",
        "clients.pymemcache",
        "clients.redis",
        "clients.smtplib",
        "config",
        "counts",
        "errors",
        "http.aiohttp",
        "http.httpx",
        "http.requests",
        "http.urllib3",
        "lint",
        "metrics",
        "status",
        "sticky",
        "stores",
        "testing",
        "visitors",
        "wsgi",
    )
}
IMPURE = {"time", "random", "socket", "threading", "os", "logging"}
WHERE_USED = {"resty_upstream.cli.completion": {"argcomplete"}, "resty_upstream.sticky": {"itsdangerous"}}
"""What a module of the core may import inside a function."""


class Import(NamedTuple):
    """An import statement, of one module or name."""

    module: str
    name: str
    line: int
    only_for_types: bool
    at_start: bool
    """Whether it runs when the module is imported."""

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def is_stdlib(self) -> bool:
        return self.top in sys.stdlib_module_names

    @property
    def is_ours(self) -> bool:
        return self.top == "resty_upstream"

    @property
    def our_module(self) -> str:
        """The module of ours that is meant: ``from resty_upstream import connectors`` is one, too."""
        longer = f"{self.module}.{self.name}"
        return longer if longer in MODULES else self.module


def imports_of(module: str) -> list[Import]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_imports(ast.parse(path.read_text("utf-8")), package, only_for_types=False, at_start=True))


def _imports(node: ast.AST, package: str, *, only_for_types: bool, at_start: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, "", child.lineno, only_for_types, at_start)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if child.level:
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                module = ".".join([*parents, *([module] if module else [])])
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, only_for_types, at_start)
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                for statement in child.body:
                    wrapper = ast.Module(body=[statement], type_ignores=[])
                    yield from _imports(wrapper, package, only_for_types=True, at_start=at_start)
                for statement in child.orelse:
                    wrapper = ast.Module(body=[statement], type_ignores=[])
                    yield from _imports(wrapper, package, only_for_types=only_for_types, at_start=at_start)
            else:
                yield from _imports(
                    child, package, only_for_types=only_for_types, at_start=at_start and not in_function
                )


FOR_CLIENTS = [name for name in MODULES if name.startswith(("resty_upstream.http.", "resty_upstream.clients."))]
"""Modules named for a client, which import it, and what they share."""
BUILT_ON = {"resty_upstream.http.requests": {"urllib3"}}
"""What the client of a module is built on, and which the module imports, too."""
CORE = [name for name in MODULES if not name.startswith(("resty_upstream.contrib", "resty_upstream.stores"))]
STORES = [name for name in MODULES if name.startswith("resty_upstream.stores")]
CONTRIB = [name for name in MODULES if name.startswith("resty_upstream.contrib.")]


def test_the_modules_are_found() -> None:
    """A guard: rules about nothing are always obeyed."""
    assert {f"resty_upstream.{name}" for name in PURE} <= set(CORE)
    assert len(STORES) >= 3
    assert CONTRIB
    found = {entry.module for entry in imports_of("resty_upstream.upstream")}
    assert {"msgspec.structs", "resty_upstream.replica", "asyncio"} <= found


@pytest.mark.parametrize("module", [f"resty_upstream.{name}" for name in PURE])
def test_what_is_pure_imports_no_time_randomness_network_threads_or_log(module: str) -> None:
    wrong = [entry for entry in imports_of(module) if entry.top in IMPURE and not entry.only_for_types]
    assert not wrong


@pytest.mark.parametrize("module", [f"resty_upstream.{name}" for name in PURE])
def test_what_is_pure_imports_only_what_is_pure(module: str) -> None:
    allowed = {"resty_upstream.errors", *(f"resty_upstream.{name}" for name in PURE)}
    ours = {entry.our_module for entry in imports_of(module) if entry.is_ours}
    assert ours <= allowed


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_nothing_but_the_standard_library_and_msgspec(module: str) -> None:
    late = WHERE_USED.get(module, set())
    its_own = {module.rpartition(".")[2]} if module in FOR_CLIENTS else set()
    its_own |= BUILT_ON.get(module, set())
    others = [entry for entry in imports_of(module) if not entry.is_stdlib and not entry.only_for_types]
    tops = {entry.top for entry in others if entry.at_start or entry.top not in late}
    assert tops <= {"msgspec", "resty_upstream", *its_own}


@pytest.mark.parametrize("module", FOR_CLIENTS)
def test_what_is_for_a_client_is_imported_where_it_is_used(module: str) -> None:
    if module.rpartition(".")[2] not in sys.stdlib_module_names | {"exchange", "retries"}:
        users = [other for other in [*CORE, *STORES] if other not in FOR_CLIENTS]
        entries = [entry for other in users for entry in imports_of(other) if entry.our_module == module]
        assert not [entry for entry in entries if entry.at_start and not entry.only_for_types]


@pytest.mark.parametrize("module", STORES)
def test_stores_know_nothing_of_balancing(module: str) -> None:
    allowed = {"resty_upstream.errors", *STORES}
    assert {entry.our_module for entry in imports_of(module) if entry.is_ours} <= allowed


@pytest.mark.parametrize("module", STORES)
def test_stores_import_their_client_library_where_they_use_it(module: str) -> None:
    at_start = [entry for entry in imports_of(module) if entry.at_start and not entry.only_for_types]
    assert {entry.top for entry in at_start if not entry.is_stdlib} <= {"msgspec", "resty_upstream"}


@pytest.mark.parametrize("module", CONTRIB)
def test_plugins_use_the_public_api_only_and_never_another_plugin(module: str) -> None:
    own = ".".join(module.split(".")[:3])
    for entry in imports_of(module):
        if not entry.is_ours or entry.our_module == own or entry.our_module.startswith(f"{own}."):
            continue
        if entry.module == "resty_upstream":
            assert entry.name in resty_upstream.__all__, entry
        else:
            assert entry.module in PUBLIC, entry
            assert not entry.name.startswith("_"), entry


@pytest.mark.parametrize("module", [*CORE, *STORES])
def test_nothing_imports_a_plugin(module: str) -> None:
    assert not [entry for entry in imports_of(module) if entry.our_module.startswith("resty_upstream.contrib")]


def test_no_module_of_the_core_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {
            entry.our_module
            for entry in imports_of(module)
            if entry.is_ours and entry.at_start and not entry.only_for_types
        }
        for module in [*CORE, *STORES]
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter loads for a statement."""
    show = "print(json.dumps([*set(sys.modules) - before]))"
    code = f"import json, sys; before = set(sys.modules); {statement}; {show}"
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_library_loads_msgspec_and_nothing_else_of_others_and_no_asyncio() -> None:
    by_msgspec = loaded_by("import msgspec")  # which takes along what it finds
    by_us = loaded_by("import resty_upstream")
    more = {name.partition(".")[0] for name in by_us - by_msgspec}
    assert {top for top in more if top not in sys.stdlib_module_names} <= {"resty_upstream", "msgspec"}
    assert "asyncio" not in by_us


def test_a_synchronous_application_never_loads_asyncio() -> None:
    use = "; ".join(
        [
            "from resty_upstream import Upstream",
            "u = Upstream('memory://')",
            "u.configure({'p': {'hosts': {'a': {'host': 'a.test'}}}})",
            "u.connect(lambda host, port, timeout_s: host)",
        ]
    )
    assert "asyncio" not in loaded_by(use)
