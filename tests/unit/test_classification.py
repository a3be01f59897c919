"""What an exception raised inside an attempt says about the host."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import http.client
import socket
import ssl
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resty_upstream.attempts import BadAnswer, Verdict, classify
from resty_upstream.counts import KINDS
from tests.helpers import no_descriptors_left


def os_error(number: int) -> OSError:
    return OSError(number, errno.errorcode.get(number, "?"))


def raised(error: BaseException) -> BaseException:
    """The exception as it is after it was raised and caught."""
    try:
        raise error
    except BaseException as caught:
        return caught


def fate(error: BaseException, *, unix: bool = False) -> tuple[bool, bool]:
    """Whether it counts against the host, and whether another host may do better."""
    verdict = classify(raised(error), unix=unix)
    return verdict.counts, verdict.next_host


COUNTS = (True, True)
ELSEWHERE = (False, True)
OURS = (False, False)


# ── by kind ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        ConnectionAbortedError(errno.ECONNABORTED, "aborted"),
        BrokenPipeError(errno.EPIPE, "pipe"),
        TimeoutError("timed out"),
        TimeoutError(),
        os_error(errno.ETIMEDOUT),
        os_error(errno.EHOSTUNREACH),
        os_error(errno.EHOSTDOWN),
        ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"),
        ssl.SSLCertVerificationError(1, "certificate verify failed"),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
        ssl.SSLZeroReturnError(6, "closed"),
        http.client.BadStatusLine("garbage"),
        http.client.IncompleteRead(b""),
        http.client.RemoteDisconnected("closed without an answer"),
        http.client.LineTooLong("header"),
        EOFError("closed"),
        asyncio.IncompleteReadError(b"", 4),
    ],
    ids=lambda error: f"{type(error).__name__} {getattr(error, 'errno', None)}",
)
def test_what_a_dead_or_broken_host_does_counts_and_the_next_host_is_tried(error: Exception) -> None:
    assert fate(error) == COUNTS


@pytest.mark.parametrize(
    "kind", [ConnectionRefusedError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError]
)
def test_a_connection_error_without_an_errno_is_known_by_its_type(kind: type[Exception]) -> None:
    """asyncio says ``ConnectionResetError("Connection lost")``, for example."""
    assert fate(kind("Connection lost")) == COUNTS


@pytest.mark.parametrize(
    "number",
    [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EADDRINUSE],
    ids=errno.errorcode.get,
)
def test_what_this_machine_lacks_never_counts_and_no_other_host_is_tried(number: int) -> None:
    assert fate(os_error(number)) == OURS


class PoolTimeout(Exception):
    """As httpx, httpcore and others name it."""


class EmptyPoolError(Exception):
    """As urllib3 names it."""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't start new thread"), PoolTimeout("no slot"), EmptyPoolError("no slot")],
    ids=lambda error: type(error).__name__,
)
def test_memory_threads_and_a_clients_own_pool_are_ours_too(error: Exception) -> None:
    assert fate(error) == OURS


def test_a_pool_timeout_is_no_timeout_of_the_host_whatever_it_derives_from() -> None:
    kind = type("PoolTimeout", (TimeoutError,), {})
    assert fate(kind("no connection became free")) == OURS


@pytest.mark.parametrize(
    "number",
    [errno.ENETUNREACH, errno.ENETDOWN, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EAFNOSUPPORT],
    ids=errno.errorcode.get,
)
def test_our_route_firewall_or_configuration_never_counts_but_the_next_host_is_tried(number: int) -> None:
    assert fate(os_error(number)) == ELSEWHERE


@pytest.mark.parametrize("name", ["EAI_AGAIN", "EAI_FAIL", "EAI_SYSTEM"])
def test_a_resolver_that_fails_does_not_count_but_the_next_host_is_tried(name: str) -> None:
    assert fate(socket.gaierror(getattr(socket, name), name)) == ELSEWHERE


@pytest.mark.parametrize("name", ["EAI_NONAME", "EAI_NODATA"])
def test_a_name_that_does_not_exist_counts(name: str) -> None:
    assert fate(socket.gaierror(getattr(socket, name), name)) == COUNTS


def test_no_such_name_while_no_descriptor_can_be_opened_is_ours() -> None:
    """The resolver that cannot open its socket says EAI_NONAME."""
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with no_descriptors_left():
        verdict = classify(error)
    assert (verdict.counts, verdict.next_host, verdict.reason) == (False, False, "EMFILE")


def test_a_resolver_without_memory_is_ours() -> None:
    assert fate(socket.gaierror(socket.EAI_MEMORY, "memory")) == OURS


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        KeyError("x"),
        PermissionError("bad credentials"),
        RuntimeError("can't do that"),
        OSError("something"),
        FileNotFoundError(errno.ENOENT, "a file of the caller's"),
        http.client.InvalidURL("x"),
        http.client.CannotSendRequest(),
        concurrent.futures.CancelledError(),
        StopIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_other_exception_is_the_callers_and_raised(error: Exception) -> None:
    assert fate(error) == OURS


class GreenletExit(BaseException):
    """As gevent and eventlet interrupt what runs."""


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit(), GreenletExit("10 seconds")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_exception_never_counts_even_where_a_dead_host_is_behind_it(error: BaseException) -> None:
    assert fate(error) == OURS
    error.__cause__ = os_error(errno.ECONNREFUSED)
    assert fate(error) == OURS


@pytest.mark.parametrize(
    "number", [errno.ENOENT, errno.ENOTSOCK, errno.EAGAIN, errno.ECONNREFUSED], ids=errno.errorcode.get
)
def test_a_unix_socket_that_is_missing_stale_or_full_counts(number: int) -> None:
    assert fate(os_error(number), unix=True) == COUNTS


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EAGAIN], ids=errno.errorcode.get)
def test_those_errors_say_nothing_of_a_host_on_the_network(number: int) -> None:
    assert fate(os_error(number)) == OURS


def test_a_tls_error_is_not_eperm_for_its_errno_of_1() -> None:
    assert classify(ssl.SSLCertVerificationError(1, "self-signed")).reason == "TLS: SSLCertVerificationError"


def test_whether_the_host_answered_decides_between_502_and_504() -> None:
    assert not classify(os_error(errno.ECONNREFUSED)).answered
    assert not classify(TimeoutError()).answered
    assert classify(os_error(errno.ECONNRESET)).answered
    assert classify(http.client.BadStatusLine("x")).answered
    assert classify(ssl.SSLError(1, "x")).answered


# ── wrapped ───────────────────────────────────────────────────────────────────────────────────


class ClientError(Exception):
    """What a client wraps its causes in."""


def by_cause(inner: Exception) -> Exception:
    error = ClientError("failed")
    error.__cause__ = inner
    return error


def by_context(inner: Exception) -> Exception:
    error = ClientError("failed")
    error.__context__ = inner
    return error


def by_suppressed_context(inner: Exception) -> Exception:
    error = by_context(inner)
    error.__suppress_context__ = True
    return error


def by_args(inner: Exception) -> Exception:
    return ClientError("failed", inner)


def by_reason(inner: Exception) -> Exception:
    error = ClientError("failed")
    error.reason = inner
    return error


def by_os_error(inner: Exception) -> Exception:
    error = ClientError("failed")
    error.os_error = inner
    return error


def by_group(inner: Exception) -> Exception:
    return ExceptionGroup("several", [inner])


WRAPPINGS: list[Callable[[Exception], Exception]] = [
    by_cause,
    by_context,
    by_suppressed_context,
    by_args,
    by_reason,
    by_os_error,
    by_group,
]


@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_the_reason_is_found_however_a_client_wraps_it(wrap: Callable[[Exception], Exception]) -> None:
    verdict = classify(wrap(os_error(errno.ECONNREFUSED)))
    assert verdict == Verdict(counts=True, next_host=True, reason="ECONNREFUSED", kind="refused")


@given(st.lists(st.sampled_from(WRAPPINGS), min_size=2, max_size=6))
def test_the_reason_is_found_at_any_depth_and_in_any_mixture(
    wrappings: list[Callable[[Exception], Exception]],
) -> None:
    for inner, expected in ((os_error(errno.ECONNREFUSED), COUNTS), (os_error(errno.ENETUNREACH), ELSEWHERE)):
        error: Exception = inner
        for wrap in wrappings:
            error = wrap(error)
        assert fate(error) == expected


@given(st.lists(st.sampled_from(WRAPPINGS), min_size=1, max_size=4), st.booleans())
def test_this_machines_fault_wins_wherever_it_stands(
    wrappings: list[Callable[[Exception], Exception]], innermost: bool
) -> None:
    local, remote = os_error(errno.EMFILE), os_error(errno.ECONNREFUSED)
    error: Exception = local if innermost else remote
    error.__context__ = remote if innermost else local
    for wrap in wrappings:
        error = wrap(error)
    assert fate(error) == OURS


def test_otherwise_the_innermost_cause_wins() -> None:
    error = TimeoutError("timed out")
    error.__cause__ = by_cause(os_error(errno.ENETUNREACH))
    assert classify(error).reason == "ENETUNREACH"


def test_our_route_does_not_win_over_a_host_that_refuses_further_in() -> None:
    error = os_error(errno.ENETUNREACH)
    error.__cause__ = os_error(errno.ECONNREFUSED)
    assert classify(error).reason == "ECONNREFUSED"


def test_a_group_in_which_every_address_refused_counts() -> None:
    group = ExceptionGroup("all", [os_error(errno.ECONNREFUSED), os_error(errno.EHOSTUNREACH)])
    assert fate(group) == COUNTS


def test_what_asyncio_puts_into_one_text_is_read() -> None:
    text = "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call failed"
    assert classify(OSError(text)).reason == "ECONNREFUSED"
    assert fate(OSError(text.replace("111", "24"))) == OURS


def test_exceptions_that_are_linked_in_a_circle_or_without_end_do_no_harm() -> None:
    first, second = ClientError("a"), ClientError("b")
    first.__cause__, second.__cause__ = second, first
    assert fate(first) == OURS
    chain: Exception = os_error(errno.ECONNREFUSED)
    for _ in range(10_000):
        chain = by_args(chain)
    assert classify(chain).reason.startswith("unclassified")
    assert fate(ExceptionGroup("wide", [ValueError(str(n)) for n in range(10_000)])) == OURS


def test_an_attribute_that_raises_does_no_harm() -> None:
    class Hostile(Exception):
        @property
        def reason(self) -> str:
            raise RuntimeError("no")

    error = Hostile("failed", os_error(errno.ECONNREFUSED))
    assert fate(error) == COUNTS


def test_what_the_caller_was_handling_before_the_attempt_is_not_blamed() -> None:
    earlier, error = os_error(errno.EMFILE), os_error(errno.ECONNREFUSED)
    error.__context__ = earlier
    assert not classify(error).counts
    assert classify(error, handled=earlier).counts


# ── kinds of failures ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (os_error(errno.ECONNREFUSED), "refused"),
        (os_error(errno.EHOSTUNREACH), "unreachable"),
        (os_error(errno.EHOSTDOWN), "unreachable"),
        (os_error(errno.ETIMEDOUT), "timeout"),
        (TimeoutError(), "timeout"),
        (os_error(errno.ECONNRESET), "reset"),
        (os_error(errno.EPIPE), "reset"),
        (os_error(errno.ECONNABORTED), "reset"),
        (EOFError(), "reset"),
        (http.client.RemoteDisconnected("closed"), "reset"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "tls"),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), "name"),
        (http.client.BadStatusLine("x"), "bad_answer"),
        (BadAnswer("status 503"), "bad_answer"),
        (BadAnswer("no answer within 2 s", answered=False), "timeout"),
    ],
    ids=repr,
)
def test_a_failure_is_of_a_kind(error: Exception, kind: str) -> None:
    assert classify(raised(error)).kind == kind


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOENT, "refused"), (errno.EAGAIN, "timeout")])
def test_a_unix_socket_that_is_missing_or_full_is_of_the_kind_that_a_port_would_be(number: int, kind: str) -> None:
    assert classify(os_error(number), unix=True).kind == kind


@pytest.mark.parametrize("answered", [True, False])
def test_what_a_client_made_of_an_error_is_of_the_kind_of_the_error(answered: bool) -> None:
    answer = BadAnswer("ECONNRESET", answered=answered)
    answer.__cause__ = by_cause(os_error(errno.ECONNRESET))
    assert classify(answer).kind == "reset"


def test_an_error_that_says_nothing_does_not_hide_the_kind_of_an_answer() -> None:
    answer = BadAnswer("a strange one")
    answer.__cause__ = ValueError("?")
    assert classify(answer).kind == "bad_answer"


def test_answers_in_a_circle_have_a_kind() -> None:
    one, two = BadAnswer("one"), BadAnswer("two")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).kind == "bad_answer"


links = st.deferred(
    lambda: st.builds(
        lambda wrap, inner: wrap(inner),
        st.sampled_from(WRAPPINGS),
        st.one_of(
            st.sampled_from([*range(1, 134)]).map(os_error),
            st.integers(-12, 0).map(lambda number: socket.gaierror(number, "?")),
            st.sampled_from([ValueError, TimeoutError, EOFError, MemoryError, PoolTimeout]).map(
                lambda kind: kind("?")
            ),
            links,
        ),
    )
)


@given(links, st.booleans())
def test_no_exception_breaks_the_judgement_and_what_counts_leads_on(error: Exception, unix: bool) -> None:
    verdict = classify(error, unix=unix)
    assert verdict.reason
    assert verdict.next_host or not verdict.counts
    assert verdict.kind in KINDS


@pytest.mark.parametrize("kind", [ssl.SSLWantReadError, ssl.SSLWantWriteError])
def test_a_timeout_while_tls_waited_for_the_other_side_is_a_timeout(kind: type[ssl.SSLError]) -> None:
    """anyio and trio wait while they handle such an error, which is behind the timeout then."""
    try:
        try:
            raise kind(2, "The operation did not complete")
        except kind:
            raise TimeoutError  # noqa: B904 - as it happens to them
    except TimeoutError as error:
        verdict = classify(error)
    assert (verdict.timed_out, verdict.answered) == (True, False)
    assert fate(kind(2, "The operation did not complete")) == OURS
    assert fate(kind(2, "The operation did not complete"), unix=True) == OURS
