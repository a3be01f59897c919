"""The README's "Write your own in ten lines", word for word, against servers that behave and misbehave."""

# ruff: noqa: E501 - the lines of the README are longer

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable
from typing import Any, Final

import pytest

from resty_upstream import NoHostAvailable, Upstream
from tests.contrib.cancelling import sockets_to
from tests.contrib.tls import fails, in_order, never_answer
from tests.e2e.processes import ROOT
from tests.helpers import Peer, answer_http, read_head, refusing

StartPeer = Callable[..., Peer]

SECTION: Final = """\
### Write your own in ten lines

Any client that can be told where to connect can be given an upstream. A function for `connect`, which calls it once
per attempt (`aconnect` does the same with a coroutine function, on asyncio or trio):

```python
import ftplib


def open_ftp(host: str, port: int, timeout_s: float) -> ftplib.FTP:
    ftp = ftplib.FTP(timeout=timeout_s)
    try:
        ftp.connect(host, port)
    except ftplib.Error as error:  # "421 too many users": say so in words that every client shares
        raise ConnectionRefusedError(str(error)) from error
    finally:
        if ftp.welcome is None:
            ftp.close()
    return ftp


ftp, info = upstream.connect(open_ftp)
```

Or the loop itself, around a whole exchange. Only for what may be done twice: a host that breaks off may have done it.

```python
import http.client


def get(path: str) -> bytes:
    for attempt in upstream.attempts():
        with attempt as host:
            connection = http.client.HTTPConnection(host.host, host.port, timeout=attempt.timeout_s)
            try:
                connection.request("GET", path, headers={"Host": "app.example"})
                response = connection.getresponse()
                if response.status == 503:
                    raise ConnectionRefusedError("503: the host takes no requests")
                return response.read()
            finally:
                connection.close()
```

Or a type of client that `connect` is to know everywhere, subclasses included; what it returns is what `connect` gives:

```python
from resty_upstream import Attempt, register_connector


def connect_ftp(ftp: ftplib.FTP, attempt: Attempt) -> ftplib.FTP:
    ftp.close()  # a socket that failed is never used again
    try:
        ftp.connect(attempt.host.host, attempt.host.port, timeout=attempt.timeout_s)
    except ftplib.Error as error:
        raise ConnectionRefusedError(str(error)) from error
    return ftp


register_connector(ftplib.FTP, connect_ftp)
tls, info = upstream.connect(ftplib.FTP_TLS())
```

What is raised inside decides: `OSError`s of the network, timeouts and errors of TLS count against the host, and the
next one is tried; anything else, as a wrong password, is raised as it is and counts for nobody. Close what you opened
before you let it out. And beware of clients that connect again by themselves: they do so past the upstream. Turn that
off (`http.client`: `connection.auto_open = 0`, which `upstream.connect(connection)` does for you).
"""

BLOCKS: Final = re.findall(r"^```python\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def run(upstream: Upstream, *numbers: int) -> dict[str, Any]:
    """What the blocks of these numbers define, run one after the other."""
    names: dict[str, Any] = {"upstream": upstream}
    for number in numbers:
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), names)
    return names


def ftp(greeting: bytes) -> Callable[[socket.socket], None]:
    """Serve a connection as an FTP server that greets."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(greeting)
        while connection.recv(1000):
            connection.sendall(b"200 ok\r\n")

    return serve


BUSY, READY = ftp(b"421 too many users\r\n"), ftp(b"220 ready\r\n")


def test_the_readme_says_the_same() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert SECTION in readme


def test_there_are_three_ways() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("bad", [BUSY, never_answer, lambda connection: None], ids=["busy", "silent", "closed"])
def test_a_callable(start_peer: StartPeer, bad: Any) -> None:
    peer, good = start_peer(bad), start_peer(READY)
    with refusing() as dead:
        upstream = in_order(dead, peer.options, good.options, timeout="300ms")
        names = run(upstream, 0)
    assert names["info"].pool.id == "p2"
    assert names["ftp"].sendcmd("NOOP") == "200 ok"
    names["ftp"].close()
    assert [fails(upstream, n) for n in (0, 1, 2)] == [1, 1, 0]
    assert not sockets_to(peer.port, good.port)


def test_the_loop(start_peer: StartPeer) -> None:
    def busy(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")

    cut, closing, good = start_peer(busy), start_peer(lambda connection: None), start_peer(answer_http(b"hello"))
    with refusing() as dead:
        upstream = in_order(dead, cut.options, closing.options, good.options)
        assert run(upstream, 1)["get"]("/") == b"hello"
    assert [fails(upstream, n) for n in range(4)] == [1, 1, 1, 0]
    assert not sockets_to(cut.port, closing.port, good.port)


def test_the_loop_raises_when_no_host_is_left() -> None:
    with refusing() as dead, pytest.raises(NoHostAvailable):
        run(in_order(dead), 1)["get"]("/")


@pytest.mark.parametrize("bad", [BUSY, never_answer, lambda connection: None], ids=["busy", "silent", "closed"])
def test_a_type_that_connect_knows(start_peer: StartPeer, bad: Any) -> None:
    peer, good = start_peer(bad), start_peer(READY)
    names = run(in_order(good.options), 0, 2)
    names["ftp"].close()
    names["tls"].close()
    upstream = in_order(peer.options, good.options, timeout="300ms")
    mine, info = upstream.connect(names["ftplib"].FTP())
    assert info.pool.id == "p1"
    assert mine.sendcmd("NOOP") == "200 ok"
    mine.close()
    assert fails(upstream) == 1
    assert not sockets_to(peer.port, good.port)


def test_the_trap_of_http_client(start_peer: StartPeer) -> None:
    """Left alone it opens a lost connection again by itself; connected by an upstream it does not."""
    peer = start_peer(answer_http(b"hello"))
    alone = http.client.HTTPConnection("127.0.0.1", peer.port)
    for _ in range(2):
        alone.request("GET", "/")
        assert alone.getresponse().read() == b"hello"
    alone.close()
    assert peer.hits == 2

    connection, _ = in_order(peer.options).connect(http.client.HTTPConnection("127.0.0.1", peer.port))
    assert connection.auto_open == 0
    connection.request("GET", "/")
    connection.getresponse().read()
    with pytest.raises(http.client.NotConnected):
        connection.request("GET", "/")
    assert peer.hits == 3
