"""What happens, told to the test: events in the order in which they happened, and gates that hold them up."""

from __future__ import annotations

import asyncio
import json
import os
import socket

GATE_TIMEOUT_S = 20.0


def write(event: str, name: str) -> None:
    """Tell that ``event`` happened to the request ``name``."""
    message = json.dumps({"event": event, "name": name, "pid": os.getpid()}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, os.environ["JOURNAL"])


def pass_gate(port: int) -> None:
    """Wait until the test opens the gate."""
    with socket.create_connection(("127.0.0.1", port), timeout=GATE_TIMEOUT_S) as sock:
        sock.recv(1)


async def apass_gate(port: int) -> None:
    """As :func:`pass_gate`, for a coroutine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await reader.read(1)
    finally:
        writer.close()
