"""A back end to balance and to kill: one port that speaks HTTP/1.1 and a raw line protocol.

    python -m example_project.backend --port 8001 --name a

`hello\\n` is answered with `hello from a\\n`, `GET /anything` with JSON, `GET /stats` with the counters.
"""

from __future__ import annotations

import argparse
import json
import os
import socketserver
import sys
import threading

MAX_LINE = 8192
IDLE_TIMEOUT_S = 60.0


class Backend(socketserver.ThreadingTCPServer):
    """Answers on `127.0.0.1:port` under `name`; port 0 takes a free one."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, name: str) -> None:
        super().__init__(("127.0.0.1", port), Conversation)
        self.name = name
        self._lock = threading.Lock()
        self._connections = 0
        self._requests = 0

    def count_connection(self, change: int = 1) -> None:
        with self._lock:
            self._connections += change

    def count_request(self) -> int:
        """Count one request; its number, from 1."""
        with self._lock:
            self._requests += 1
            return self._requests

    def stats(self) -> dict[str, object]:
        with self._lock:
            counts = {"connections": self._connections, "requests": self._requests}
        return {"name": self.name, **counts, "pid": os.getpid()}


class Conversation(socketserver.StreamRequestHandler):
    """One connection: each request is told apart by its first line, HTTP or raw."""

    server: Backend
    timeout = IDLE_TIMEOUT_S
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.server.count_connection()
        try:
            while self._answer_one():
                pass
        except OSError:
            pass  # the client went away, or said nothing for too long: its own business

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            pass

    def _answer_one(self) -> bool:
        """Answer one request; whether the connection stays open for another."""
        line = self.rfile.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            return False
        words = line.split()
        if len(words) == 3 and words[2].startswith(b"HTTP/1."):
            return self._answer_http(words[0], words[1], words[2])
        self.server.count_request()
        self.wfile.write(b"%s from %s\n" % (line.strip(), self.server.name.encode()))
        return True

    def _answer_http(self, verb: bytes, target: bytes, version: bytes) -> bool:
        keep = self._read_headers(version)
        if target == b"/stats":
            # Whoever looks at the counters must not move them.
            self.server.count_connection(-1)
            self._send_json(b"200 OK", self.server.stats(), keep=False)
            return False
        count = self.server.count_request()
        if verb != b"GET":
            self._send_json(b"405 Method Not Allowed", {"error": "only GET"}, keep=False)
            return False
        name = self.server.name
        answer = {"answer": f"hello from {name}", "name": name, "count": count, "pid": os.getpid()}
        self._send_json(b"200 OK", answer, keep=keep)
        return keep

    def _read_headers(self, version: bytes) -> bool:
        """Read up to the empty line; whether the client lets the connection stay open."""
        keep = version != b"HTTP/1.0"
        while (line := self.rfile.readline(MAX_LINE)).strip():
            field, _, value = line.partition(b":")
            if field.lower() == b"connection" and value.strip().lower() == b"close":
                keep = False
        return keep

    def _send_json(self, status: bytes, value: dict[str, object], *, keep: bool) -> None:
        body = json.dumps(value).encode() + b"\n"
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n"
        connection = b"keep-alive" if keep else b"close"
        self.wfile.write(head % (status, len(body), connection) + body)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m example_project.backend", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--name", required=True, help="the name it answers with")
    options = parser.parse_args(argv)
    try:
        backend = Backend(options.port, options.name)
    except (OSError, OverflowError) as exc:
        print(f"back end {options.name}: cannot listen on port {options.port}: {exc}", file=sys.stderr)
        return 1
    with backend:
        try:
            backend.serve_forever()
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
