"""A websocket as bytes, so that a test decides when and how it ends."""

from __future__ import annotations

from typing import Final

from tests.contrib.bed.sites import Site, vanish

HANDSHAKE: Final = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
]
TEXT: Final = 0x1
CLOSE: Final = 0x8


class WebSocket:
    """The client's end; a context manager that closes the connection."""

    def __init__(self, site: Site, path: str) -> None:
        self._sock = site.ask(path, *HANDSHAKE)
        self._file = self._sock.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        while self._file.readline().strip():
            pass

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()
        self._sock.close()

    def receive(self) -> tuple[int, bytes]:
        """The opcode and the content of the next frame."""
        first, length = self._file.read(2)
        return first & 0x0F, self._file.read(length)

    def send_close(self) -> None:
        """Begin to close, or answer the server's beginning."""
        self._sock.sendall(bytes([0x80 | CLOSE, 0x80, *bytes(4)]))  # masked with zeros, no content

    def vanish(self) -> None:
        """The client's machine is gone."""
        self._file.close()
        vanish(self._sock)
