"""The doors of the command, and a place with upstreams for them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from django.core.management import CommandError, call_command
from django.test import override_settings

from resty_upstream import Upstream, UpstreamAPI
from resty_upstream.stores import Store, open_store
from tests.e2e.processes import PATIENCE_S, ROOT, python

POOLS: dict[str, Any] = {
    "primary": {
        "timeout": 500,
        "hosts": {
            "a": {"host": "127.0.0.1", "port": 8001, "weight": 10},
            "b": {"host": "127.0.0.1", "port": 8002, "weight": 10},
        },
    },
    "dr": {"priority": 10, "hosts": {"c": {"host": "127.0.0.1", "port": 8003}}},
}


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


class Place:
    """A directory with a store, and upstreams that are declared there."""

    def __init__(self, directory: Path, pools: Mapping[str, Any] = POOLS) -> None:
        self.directory = directory
        self.url = f"sqlite://{directory}/store/upstreams.db"
        self.upstreams: dict[str, dict[str, Any]] = {"default": {"store": self.url, "pools": pools}}
        self.store: Store = open_store(self.url)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.store.close()

    @property
    def upstream(self) -> Upstream:
        """The upstream as another process would open it, with nothing declared."""
        return Upstream(self.store)

    @property
    def api(self) -> UpstreamAPI:
        return UpstreamAPI(self.upstream)

    def configure(self) -> None:
        """Have the store hold what is declared, as the application does."""
        for name, options in self.upstreams.items():
            Upstream(self.store, id=name).configure(options["pools"])

    @property
    def is_there(self) -> bool:
        """Whether there is a store."""
        return (self.directory / "store").exists()

    def file(self, name: str, content: str | bytes) -> str:
        """A file in the directory; its path."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    @property
    def config(self) -> str:
        """A file with what is declared."""
        return self.file("upstreams.json", json.dumps(self.upstreams))

    @property
    def environment(self) -> dict[str, str]:
        return {"DJANGO_SETTINGS_MODULE": "tests.cli.settings", "CLI_UPSTREAMS": json.dumps(self.upstreams)}


def run(
    command: Sequence[str | bytes], environment: Mapping[str, str], given: str | None = None, **options: Any
) -> Done:
    """A command in a process of its own, on pipes."""
    unwanted = {"COLUMNS", "FORWARDED_ALLOW_IPS", "NO_COLOR", "PYTHONWARNINGS", "RESTY_UPSTREAM_STORE"}
    inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
    done = subprocess.run(
        command,
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        check=False,
        cwd=options.pop("cwd", ROOT),
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        timeout=PATIENCE_S * 2,
        **options,
    )
    return Done(done.returncode, done.stdout, done.stderr)


Door = Callable[..., Done]


def neutral(place: Place, *arguments: str, given: str | None = None) -> Done:
    """``resty-upstream``."""
    return run(python("-m", "resty_upstream", "--config", place.config, *arguments), {}, given)


def manage(place: Place, *arguments: str, given: str | None = None) -> Done:
    """``manage.py upstream``."""
    command = python("example_project/manage.py", "upstream", *arguments)
    return run(command, place.environment, given)


def flask(place: Place, *arguments: str, given: str | None = None) -> Done:
    """``flask upstream``."""
    return run(python("-m", "flask", "--app", "tests.cli.app", "upstream", *arguments), place.environment, given)


def called(place: Place, *arguments: str, given: str | None = None) -> Done:
    """``call_command("upstream", …)``, in this process."""
    out, err = StringIO(), StringIO()
    code = 0
    with override_settings(UPSTREAMS=setting(place)):
        try:
            call_command("upstream", *arguments, stdout=out, stderr=err)
        except CommandError as error:
            code = error.returncode
            err.write(f"{error}\n")
    return Done(code, out.getvalue(), err.getvalue())


def setting(place: Place) -> dict[str, dict[str, Any]]:
    """What is declared, as Django's setting."""
    return {
        name: {option.upper(): value for option, value in options.items()}
        for name, options in place.upstreams.items()
    }


DOORS: dict[str, Door] = {
    "resty-upstream": neutral,
    "manage.py upstream": manage,
    "call_command": called,
    "flask upstream": flask,
}
