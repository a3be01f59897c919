"""How the health of a Redis server is checked."""

from __future__ import annotations

import socket


def ping(host: str, port: int, timeout_s: float) -> bool:
    """Whether it answers: one that is stopped, or still loads its data, accepts connections all the same."""
    with socket.create_connection((host, port), timeout=timeout_s) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"PING\r\n")
        return lines.readline(64) == b"+PONG\r\n"
