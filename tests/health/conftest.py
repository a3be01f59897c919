"""Upstreams whose hosts are checked, and certificates for hosts that speak TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resty_upstream import Upstream
from resty_upstream.stores.memory import MemoryStore

Start = Callable[..., Upstream]
OFTEN = {"interval": 0.1, "interval_down": 0.1}


@pytest.fixture
def start() -> Iterator[Start]:
    """Makes an upstream and has its hosts checked until the test is over."""
    with ExitStack() as stack:

        def begin(pools: dict[str, Any], *, store: Any = None, checking: bool = True, **options: Any) -> Upstream:
            upstream = Upstream(store or MemoryStore(), pools=pools, **options)
            upstream.open()
            stack.callback(upstream.close)
            if checking:
                upstream.start_checker()
            return upstream

        yield begin


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A certificate that signed itself, with its key, for a name; one file."""
    directory = tmp_path_factory.mktemp("certificates")

    def make(name: str, *, days: int = 1) -> Path:
        path = directory / f"{name}-{days}.pem"
        if not path.exists():
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "-", "-out", "-"]
            subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-days", str(days)]
            path.write_bytes(subprocess.run([*command, *subject], check=True, capture_output=True).stdout)
        return path

    return make
