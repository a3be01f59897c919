"""A client that streams some bytes from a host, and a quarter of them to it; run as ``CLIENT PORT BYTES``.

It prints how many bytes came, how many the host counted, and by how many this process grew.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from resty_upstream import Upstream
from tests.http.clients import CLIENTS, AsyncClient, Client
from tests.http.server import PART


def peak() -> int:
    """The most memory that this process ever had, in bytes; ``getrusage`` would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def drain(client: Client, path: str) -> int:
    """The size of an answer."""
    if isinstance(client, AsyncClient):
        return int(client.run(_drain(client, path)))
    with client.stream("GET", path) as (_, parts):
        return sum(map(len, parts))


async def _drain(client: AsyncClient, path: str) -> int:
    async with client.astream("GET", path) as (_, parts):
        return sum([len(part) async for part in parts])


def main() -> None:
    name, port, size = sys.argv[1:]
    parts = int(size) // len(PART)
    upstream = Upstream("memory://", pools={"p": {"hosts": {"a": {"host": "127.0.0.1", "port": port}}}})
    with CLIENTS[name](upstream) as client:
        drain(client, "/chunked/1")
        client.request("PUT", "/sink", content=iter([PART]))
        before = peak()
        received = drain(client, f"/chunked/{parts}")
        sent = client.request("PUT", "/sink", content=itertools.repeat(PART, parts // 4)).body
        print(received, int(sent), peak() - before)


if __name__ == "__main__":
    main()
