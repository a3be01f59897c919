"""What is loaded, and when: a command is started often, and most applications never start one."""

from __future__ import annotations

import json
import sys

from tests.cli.doors import Place, run
from tests.e2e.processes import python


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement, and would not have without."""
    show = "print(json.dumps([*set(sys.modules) - before]))"
    done = run(python("-c", f"import json, sys; before = set(sys.modules); {statement}; {show}"), {})
    assert done.err == ""
    return set(json.loads(done.out.splitlines()[-1]))


def test_the_library_loads_neither_the_command_line_nor_what_it_needs() -> None:
    loaded = loaded_by("import resty_upstream, resty_upstream.contrib.flask, resty_upstream.contrib.django")
    assert not {name for name in loaded if name.startswith("resty_upstream.cli")}
    assert "argparse" not in loaded_by("import resty_upstream")


def test_the_command_loads_no_framework_no_asyncio_and_nothing_of_others_but_msgspec(place: Place) -> None:
    loaded = loaded_by(f"from resty_upstream.cli import main; main(['--store', {place.url!r}, 'list'])")
    by_msgspec = loaded_by("import msgspec")  # which takes along what it finds
    assert not {"asyncio", "argcomplete", "django", "flask", "click", "werkzeug"} & loaded
    ours = {name for name in loaded if name.startswith("resty_upstream")}
    others = {name.partition(".")[0] for name in loaded - by_msgspec - ours}
    assert others <= set(sys.stdlib_module_names) | {"msgspec"}


def test_the_package_is_a_command(place: Place) -> None:
    done = run(python("-m", "resty_upstream", "--store", place.url, "show", "dr"), {})
    assert (done.code, done.err) == (0, "")
