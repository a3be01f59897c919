"""The transport for requests: what it does not share with the one for urllib3."""

from __future__ import annotations

import copy
import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import urllib3
from requests.adapters import HTTPAdapter

from resty_upstream import NoHostAvailable, Upstream
from resty_upstream.contrib.requests import UpstreamAdapter
from tests.helpers import hanging, refusing
from tests.http.server import Server

URL = "http://users.internal"


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Starts a server that is stopped when the test is over."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Server(*args, **options))


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start("a")


def open_upstream(*servers: Server, **pool: Any) -> Upstream:
    upstream = Upstream("memory://")
    hosts = {server.name: {"host": "127.0.0.1", "port": server.port} for server in servers}
    upstream.configure({"p": {"status_codes": ["5xx"], **pool, "hosts": hosts}})
    return upstream


@pytest.fixture
def session(server: Server) -> Iterator[requests.Session]:
    """One whose requests to ``users.internal`` go to the server."""
    with requests.Session() as session:
        session.mount(f"{URL}/", UpstreamAdapter(open_upstream(server)))
        yield session


def test_the_name_in_the_url_stays_what_it_was(session: requests.Session, server: Server) -> None:
    response: Any = session.get(f"{URL}/users/1?x=%C3%A4&y=a b", auth=("user", "word"))
    assert (response.status_code, response.text, response.ok) == (200, "ok", True)
    assert response.url == f"{URL}/users/1?x=%C3%A4&y=a%20b"
    assert (response.upstream.host.id, response.upstream.pool.id) == ("a", "p")
    (received,) = server.received
    assert (received.method, received.path) == ("GET", "/users/1?x=%C3%A4&y=a%20b")
    assert received.headers["host"] == "users.internal"
    assert received.headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("netloc", "host"),
    [
        ("users.internal:80", "users.internal"),
        ("users.internal:81", "users.internal:81"),
        ("me:word@users.internal", "users.internal"),
    ],
)
def test_the_host_header_is_as_without_an_upstream(netloc: str, host: str, server: Server) -> None:
    with requests.Session() as session:
        session.mount("http://", UpstreamAdapter(open_upstream(server)))
        session.get(f"http://{netloc}/x")
    assert server.received[0].headers["host"] == host


def test_cookies_are_the_names(session: requests.Session, server: Server) -> None:
    session.get(f"{URL}/cookie")
    session.get(f"{URL}/x")
    assert session.cookies.get_dict(domain="users.internal") == {"seen": "1"} or session.cookies["seen"] == "1"
    assert server.received[1].headers["cookie"] == "seen=1"


def test_redirects_inside_go_to_the_upstream_and_others_do_not(
    session: requests.Session, server: Server, start: Callable[..., Server]
) -> None:
    other = start("other")
    response: Any = session.get(f"{URL}/redirect/x")
    assert (response.url, response.upstream.host.id, response.history[0].upstream.host.id) == (
        f"{URL}/x",
        "a",
        "a",
    )
    response = session.get(f"{URL}/redirect/to/127.0.0.1:{other.port}/x")
    assert response.headers["X-Host"] == "other"
    assert not hasattr(response, "upstream")
    assert [request.path for request in server.received][2:] == [f"/redirect/to/127.0.0.1:{other.port}/x"]


def test_a_mount_without_a_slash_is_told_so(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with requests.Session() as session:
        session.mount(URL, UpstreamAdapter(open_upstream(server)))
        session.get(f"{URL}/x")
        session.get(f"{URL}:81/x")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                session.get(f"{URL}.evil.test/x")
    (record,) = caplog.records
    assert (
        "users.internal.evil.test goes to the upstream that is mounted for users.internal" in record.getMessage()
    )
    assert "http://users.internal/" in record.getMessage()


def test_proxies_are_never_used(
    session: requests.Session, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing() as dead:
        proxy = f"http://me:word@127.0.0.1:{dead['port']}"
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert session.get(f"{URL}/redirect/x").status_code == 200
        assert session.get(f"{URL}/redirect/x", proxies={"http": proxy}).status_code == 200
    assert len(server.received) == 4
    assert not [request for request in server.received if "proxy-authorization" in request.headers]


def test_forms_and_files_are_sent(session: requests.Session, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    session.post(f"{URL}/echo", data={"a": "b"})
    session.post(f"{URL}/echo", json={"a": "b"})
    with (tmp_path / "file").open("rb") as file:
        assert session.put(f"{URL}/echo", data=file).content == b"x" * 100_000
    with (tmp_path / "file").open("rb") as file:
        session.post(f"{URL}/echo", files={"file": file})
    assert [request.body for request in server.received[:2]] == [b"a=b", b'{"a": "b"}']
    assert server.received[2].headers["content-length"] == "100000"
    assert len(server.received[3].body) > 100_000


def test_a_file_goes_to_the_next_host_where_nothing_was_sent(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    with refusing() as dead, requests.Session() as session:
        upstream = Upstream("memory://")
        live = {"host": "127.0.0.1", "port": server.port}
        upstream.configure({"p": {"hosts": {"dead": {**dead, "weight": 1}, "a": live}}})
        session.mount(f"{URL}/", UpstreamAdapter(upstream))
        with (tmp_path / "file").open("rb") as file:
            session.put(f"{URL}/echo", data=file)
    assert len(server.received[0].body) == 100_000


def test_answers_are_decoded_and_streamed(session: requests.Session) -> None:
    assert session.get(f"{URL}/gzip").text == "packed"
    with session.get(f"{URL}/gzip", stream=True) as response:
        assert b"".join(response.iter_content(2)) == b"packed"
    with session.get(f"{URL}/chunked/2", stream=True) as response:
        assert len(response.raw.read()) == 2 * 65_536


@pytest.mark.parametrize(
    ("path", "timeout", "kind"),
    [
        ("/hang", 0.1, requests.exceptions.ReadTimeout),
        ("/hang", (None, 0.1), requests.exceptions.ReadTimeout),
        ("/hang", urllib3.Timeout(connect=1, read=0.1), requests.exceptions.ReadTimeout),
        ("/half/hang", (1, 0.1), requests.exceptions.ConnectionError),
        ("/half", None, requests.exceptions.ChunkedEncodingError),
    ],
)
def test_errors_are_those_of_requests(session: requests.Session, path: str, timeout: Any, kind: Any) -> None:
    with pytest.raises(kind) as caught:
        session.post(f"{URL}{path}", timeout=timeout)
    assert not isinstance(caught.value, NoHostAvailable)


def test_a_timeout_of_the_callers_own_to_connect_is_one_of_requests() -> None:
    with hanging() as stuck, requests.Session() as session:
        upstream = Upstream("memory://")
        upstream.configure({"p": {"timeout": 60_000, "hosts": {"a": stuck}}})
        session.mount(f"{URL}/", UpstreamAdapter(upstream))
        with pytest.raises(requests.exceptions.ConnectTimeout):
            session.get(f"{URL}/x", timeout=(0.1, 1))
    assert upstream.get_pools()["p"]["hosts"]["a"]["failcount"] == 0


def test_where_no_host_is_left_the_error_has_the_request() -> None:
    with refusing() as dead, requests.Session() as session:
        upstream = Upstream("memory://")
        upstream.configure({"p": {"hosts": {"a": dead}}})
        session.mount(f"{URL}/", UpstreamAdapter(upstream))
        with pytest.raises(requests.ConnectionError) as caught:
            session.get(f"{URL}/x")
    assert isinstance(caught.value, NoHostAvailable)
    assert caught.value.request is not None
    assert caught.value.request.url == f"{URL}/x"


@pytest.mark.parametrize("timeout", [0, -1, "soon", (1, 2, 3)])
def test_what_is_no_timeout_is_refused(session: requests.Session, timeout: Any) -> None:
    with pytest.raises(ValueError, match="imeout"):
        session.get(f"{URL}/x", timeout=timeout)


def test_an_adapter_cannot_be_copied(session: requests.Session) -> None:
    adapter = session.get_adapter(f"{URL}/")
    assert isinstance(adapter, HTTPAdapter)
    with pytest.raises(TypeError, match="mount a new one"):
        copy.copy(adapter)


def test_an_adapter_can_be_used_after_it_was_closed(session: requests.Session, server: Server) -> None:
    session.get(f"{URL}/x")
    session.close()
    assert session.get(f"{URL}/x").status_code == 200
    assert server.accepted == 2


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA, start: Callable[..., Server]) -> Server:
    """A server that wants to know who comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("users.internal").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    return start("a", tls=context)


@pytest.fixture
def secure_session(secure: Server) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.mount("https://", UpstreamAdapter(open_upstream(secure, timeout=5000)))
        yield session


def test_certificates_are_as_the_session_says(
    secure_session: requests.Session, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    url = "https://users.internal/x"
    with pytest.raises(NoHostAvailable, match="certificate"):
        secure_session.get(url)
    assert secure_session.get(url, verify=str(tmp_path / "ca.pem")).status_code == 200
    assert secure_session.get(url, verify=False).status_code == 200
    with pytest.raises(OSError, match="no file of certificates or keys at /missing"):
        secure_session.get(url, verify="/missing")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    assert secure_session.get(url).status_code == 200


def test_a_connection_that_was_not_verified_is_not_used_for_a_request_that_is_to_be(
    secure_session: requests.Session, secure: Server
) -> None:
    assert secure_session.get("https://users.internal/x", verify=False).status_code == 200
    with pytest.raises(NoHostAvailable, match="certificate"):
        secure_session.get("https://users.internal/x")
    assert len(secure.received) == 1


def test_a_certificate_of_the_client_is_shown(
    secure_session: requests.Session, secure: Server, authority: trustme.CA, tmp_path: Path
) -> None:
    mine = authority.issue_cert("me.internal")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "mine.pem")
    url = "https://users.internal/x"
    assert secure_session.get(url, verify=False).status_code == 200
    assert secure_session.get(url, verify=False, cert=str(tmp_path / "mine.pem")).status_code == 200
    assert [request.connection for request in secure.received] == [1, 2]
    stranger = trustme.CA().issue_cert("stranger.internal")
    stranger.private_key_and_cert_chain_pem.write_to_path(tmp_path / "stranger.pem")
    with pytest.raises(requests.ConnectionError):
        secure_session.post(url, verify=False, cert=str(tmp_path / "stranger.pem"))


def test_the_adapters_own_context_is_for_what_is_to_be_verified(secure: Server, authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with requests.Session() as session:
        session.mount("https://", UpstreamAdapter(open_upstream(secure), verify=context))
        assert session.get("https://users.internal/x").status_code == 200
        with pytest.raises(NoHostAvailable, match="certificate"):
            session.get("https://other.internal/x")
        assert session.get("https://other.internal/x", verify=False).status_code == 200
        with pytest.raises(ValueError, match="load_cert_chain"):
            session.get("https://users.internal/x", cert="mine.pem")
