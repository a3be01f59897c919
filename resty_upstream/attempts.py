"""The failover loop, and what an exception says about a host.

There is one loop in this project, :class:`Attempts`; ``connect`` and ``aconnect`` are a few lines over it::

    for attempt in upstream.attempts():
        with attempt as host:
            return call(host.host, host.port, timeout=attempt.timeout_s)

Sync and async code use the same object: nothing in here waits.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from random import random
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn, Self

from resty_upstream.counts import (
    BEGUN,
    BOUNDS_S,
    BUCKETS,
    FAILED,
    IGNORED,
    LAST_RESORTS,
    RETRIES,
    SECONDS,
    Kind,
    Row,
)
from resty_upstream.errors import NoHostAvailable, UpstreamError
from resty_upstream.events import fields
from resty_upstream.load import Flight, Load
from resty_upstream.model import Host, OutlierDetection, Pool
from resty_upstream.selection import Choice, Snapshot, Target, choices
from resty_upstream.state import Eject, Failure, Release, Success

if TYPE_CHECKING:
    from types import TracebackType

    from resty_upstream.context import RequestContext
    from resty_upstream.methods import Key

Outcome = Literal["", "ok", "failed", "ignored"]

_log = logging.getLogger("resty_upstream.failover")


_new_tuple = tuple.__new__
_NONE_TRIED: Final[frozenset[Target]] = frozenset()


class Info(NamedTuple):
    """Where a connection went."""

    host: Host
    pool: Pool
    attempts: tuple[Attempt, ...]
    """All attempts of this call, the one that succeeded last."""
    last_resort: bool
    """Whether the host was thought to be down, and tried because nothing else was left."""


class BadAnswer(Exception):
    """Raised inside an attempt where a client knows better: the host failed, for the reason in its text.

    :param answered: whether the host was reached, and answered badly; else it did not answer in time.
    :param kind: of failure, where the cause does not say; what ``answered`` suggests if not given.
    """

    def __init__(self, reason: str, *, answered: bool = True, kind: Kind | None = None) -> None:
        super().__init__(reason)
        self.answered = answered
        self.kind: Kind = kind or ("bad_answer" if answered else "timeout")


class Excused(Exception):
    """Raised inside an attempt where a client knows better: what went wrong is not the host's fault.

    :param error: what went wrong.
    :param next_host: whether another host is tried; else this is raised as it is.
    """

    def __init__(self, error: Exception, *, next_host: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.next_host = next_host


class Attempt:
    """One try at one host; a context manager around the work.

    An exception that counts as the host's failure is swallowed, and the loop goes on with the next host.
    So is one that stands in the way to this host but is not its fault. Any other is raised as it is.
    """

    __slots__ = (
        "_attempts",
        "_earlier",
        "_flight",
        "_handled",
        "_left_s",
        "_prober",
        "_row",
        "began",
        "bounded",
        "duration_s",
        "error",
        "last_resort",
        "outcome",
        "target",
    )

    target: Target
    began: float
    """When it began, on the store's clock."""
    last_resort: bool
    outcome: Outcome
    """"" until it ended; then "ok", "failed" (counts against the host) or "ignored"."""
    error: BaseException | None
    duration_s: float
    bounded: bool
    """Whether what runs inside cannot take longer than about ``timeout_s`` unless the process is paused."""
    _flight: Flight
    """In pools that ask for the load."""
    _row: Row
    """Where it is counted; the one that it was begun in, to the end."""

    def __init__(self, attempts: Attempts, target: Target, began: float, left_s: float) -> None:
        self._attempts = attempts
        self._left_s = left_s
        self._prober = ""
        self._earlier: tuple[Attempt, ...] = ()
        self.target = target
        self.began = began
        self.last_resort = False
        self.outcome = ""
        self.error = None
        self.duration_s = 0.0
        self.bounded = False
        if target.load is not None:
            self._flight = Flight(target.load)

    @property
    def pool(self) -> Pool:
        """In which the host is."""
        return self.target.pool

    @property
    def host(self) -> Host:
        """Which is tried."""
        return self.target.host

    @property
    def timeout_s(self) -> float:
        """Seconds that this attempt may take: the pool's timeout, or what is left of the deadline."""
        timeout_s, left_s = self.target.timeout_s, self._left_s
        return timeout_s if timeout_s < left_s else left_s

    def __repr__(self) -> str:
        return f"<Attempt {self.pool.id}/{self.host.id} {self.outcome or 'running'}>"

    def __getstate__(self) -> dict[str, Any]:
        """For pickles and copies, as of an error that leaves a process: what happened, and no machinery."""
        state = {name: getattr(self, name) for name in _RECORDED}
        state["target"] = _Past(self.pool, self.host, self.timeout_s)
        error = self.error
        if error is not None and (
            type(error).__module__ not in _PICKLABLE or isinstance(error, BaseExceptionGroup) or error.__dict__
        ):
            state["error"] = UpstreamError(_brief(self.error))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    @property
    def info(self) -> Info:
        """Where the connection goes, with all attempts of the call up to now."""
        # As Info(…), in half the time.
        target = self.target
        return _new_tuple(Info, (target.host, target.pool, (*self._earlier, self), self.last_resort))

    def __enter__(self) -> Host:
        # What the caller was handling when it called is not this attempt's doing.
        self._handled = sys.exception()
        row = self.target.row
        if row is None or not row.ours[0]:
            row = self._attempts.context.upstream.replica.count_at(self.target)
        self._row = row
        # No other thread gets in between reading and adding, as nothing is called there. Without the GIL, of two
        # that meet one is lost: sums are a little low then, never high; what is under way may be off by a few.
        row.cells[BEGUN] += 1.0
        return self.target.host

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        attempts = self._attempts
        del self._attempts  # which keeps a log of attempts: a cycle would wait for the garbage collector
        upstream = attempts.context.upstream
        now = upstream.now()
        self.duration_s = duration_s = now - self.began
        if error is None:
            row = self._row
            if row.ours[0]:
                cells = row.cells
                cells[bisect_left(BOUNDS_S, duration_s) + BUCKETS] += 1.0
                cells[SECONDS] += duration_s
            self.outcome = "ok"
            attempts.done = True
            if not self.target.quiet:
                self._succeeded(attempts, now)
            goes_on = False
        else:
            goes_on = self._failed(attempts, error, now)
        listeners = upstream.listeners
        if listeners.hear_attempts:
            listeners.tell("attempt", self)
        return goes_on

    def _succeeded(self, attempts: Attempts, now: float) -> None:
        if self.target.load is not None:
            self._note_load(attempts, self.target.load, now)
        if not self.target.spotless:
            attempts.settle(self, now)
        if self.pool.sticky is not None:
            attempts.context.stay(self.target)

    def _failed(self, attempts: Attempts, error: BaseException, now: float) -> bool:
        verdict = self._judge(error)
        self.error = error
        self.outcome = "failed" if verdict.counts else "ignored"
        if self._row.ours[0]:
            self._row.cells[FAILED[verdict.kind] if verdict.counts else IGNORED] += 1.0
        if self.target.load is not None:
            self._note_load(attempts, self.target.load, now)
        prober = self._prober
        if verdict.counts:
            attempts.answered_badly |= verdict.answered
            self.observe_failure(attempts.context, verdict.reason, now, prober)
        elif prober:
            attempts.context.observe(self.target, Release(now, prober), probe=True)
        self._log_failure(attempts.context.upstream.id, verdict.reason)
        attempts.done = not verdict.next_host
        return verdict.next_host

    def _log_failure(self, upstream_id: str, reason: str) -> None:
        pool, host = self.pool.id, self.host.id
        _log.debug(
            "upstream.attempt: pool %s, host %s %s (%s)",
            pool,
            host,
            self.outcome,
            reason,
            extra=fields("attempt", id=upstream_id, pool=pool, host=host, outcome=self.outcome, reason=reason),
        )

    @property
    def is_probe(self) -> bool:
        """Whether it tests a host that was down, for all workers."""
        return bool(self._prober)

    def observe_success(self, context: RequestContext, now: float) -> None:
        """The host did well."""
        context.observe(self.target, Success(now, self.began), probe=self.is_probe)

    def observe_failure(self, context: RequestContext, reason: str, now: float, prober: str = "") -> None:
        """The host failed, for that reason."""
        fact = Failure(now, self.began, time.time(), 2 * random() - 1, reason, prober)
        context.observe(self.target, fact, probe=bool(prober))

    def _note_load(self, attempts: Attempts, load: Load, now: float) -> None:
        """It is over: for methods that look at the load, and for the rule of outliers."""
        flight, ok = self._flight, self.outcome == "ok"
        del self._flight
        if ok:
            attempts.succeeded(self.target, flight)
        else:
            flight.land()
        if self.outcome == "ignored":
            return
        load.note(now, self.duration_s, ok=ok)
        rule = self.pool.outlier_detection
        if rule is not None:
            load.count(now, rule.window, ok=ok, back_at=self.target.back_at)
            if not ok and (reason := _outlier(load, rule, now)):
                fact = Eject(now, self.began, time.time(), 2 * random() - 1, reason)
                attempts.context.observe(self.target, fact, probe=False)

    def _judge(self, error: BaseException) -> Verdict:
        verdict = classify(error, unix=self.host.host.startswith("unix:"), handled=self._handled)
        if not verdict.timed_out:
            return verdict
        if not self.bounded and self.duration_s < 0.9 * self.timeout_s:
            return _CALLERS_TIMEOUT
        if self.timeout_s < 0.99 * self.target.timeout_s:
            return _CUT_SHORT
        if self.bounded and self.duration_s > 2 * self.timeout_s + 1.0:
            return _PAUSED
        return verdict


def _outlier(load: Load, rule: OutlierDetection, now: float) -> str:
    """Why the host is to go down by the rule; "" where it is not."""
    requests, rate = load.success_rate(now, rule.window)
    if requests < rule.requests or rate >= rule.success_rate:
        return ""
    load.forget_counts()  # once for so many requests, also where too many hosts are down already
    return f"success rate {rate:.0f}% of {requests} requests"


_RECORDED: Final = ("_left_s", "last_resort", "outcome", "error", "duration_s")
# Modules whose exceptions come back from a pickle; those of others may not.
_PICKLABLE: Final = frozenset({"builtins", "socket", "ssl"})


class _Past(NamedTuple):
    """What is recorded of a target."""

    pool: Pool
    host: Host
    timeout_s: float


class Attempts(Iterator[Attempt]):
    """The hosts of one request, each as an :class:`Attempt`, until one succeeds.

    :raises NoHostAvailable: out of the iteration, when no host is left or the deadline is over; the last
        failure is its cause.
    """

    __slots__ = (
        "_choices",
        "_deadline",
        "_key",
        "_snapshot",
        "answered_badly",
        "context",
        "done",
        "log",
    )

    _deadline: float
    _snapshot: Snapshot

    def __init__(self, context: RequestContext, key: Key | None = None) -> None:
        self.context = context
        self.log: list[Attempt] = []
        self.done = False
        self.answered_badly = False
        self._key = key
        self._choices: Iterator[Choice] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Attempt:
        attempt = self._another() if self.log or self.done else self._first()
        self.log.append(attempt)
        return attempt

    def now(self) -> float:
        """By the store's clock, as all times of attempts."""
        return self.context.upstream.now()

    def succeeded(self, _target: Target, flight: Flight) -> None:
        """An attempt at a host whose load is of interest is over."""
        flight.land()

    def settle(self, attempt: Attempt, now: float) -> None:
        """An attempt at a host that has failed before went well."""
        attempt.observe_success(self.context, now)

    def _first(self) -> Attempt:
        context = self.context
        upstream = context.upstream
        self._snapshot = snapshot = upstream.replica.snapshot()
        now = upstream.now()  # after the snapshot: the first one of all may bring hosts into being
        total_s = upstream.total_timeout_s
        self._deadline = now + total_s
        if context.began is None:
            context.began = now
        plan = snapshot.untroubled
        if plan is not None and not context.failed:
            # Nothing to consider: what `choices` would offer first, without making it.
            method = plan.method
            key = self._work_out_key(plan.pool) if method.uses_key else None
            target: Any = method.pick(key, _NONE_TRIED)  # a method is built with targets and picks one of them
            if target is not None:
                return Attempt(self, target, now, total_s)
        return self._another()

    def _another(self) -> Attempt:
        if self.done:
            raise StopIteration
        if self.log and not self.log[-1].outcome:
            raise RuntimeError("each attempt must be used as a context manager: `with attempt as host:`")
        now = self.now()
        left_s = self._deadline - now
        if self._choices is None:
            self._choices = self._remaining({attempt.target for attempt in self.log})
        choice = next(self._choices, None) if left_s > 0 else None
        if choice is None:
            self._give_up(deadline_over=left_s <= 0)
        attempt = Attempt(self, choice.target, now, left_s)
        attempt._prober, attempt.last_resort = choice.prober, choice.last_resort
        attempt._earlier = tuple(self.log)
        row = self.context.upstream.replica.count_at(choice.target)
        if self.log:
            row.cells[RETRIES] += 1.0
        if choice.last_resort:
            row.cells[LAST_RESORTS] += 1.0
        return attempt

    def _remaining(self, tried: set[Target]) -> Iterator[Choice]:
        upstream, key = self.context.upstream, self._key
        return choices(
            self._snapshot,
            # Not a method of this object, which keeps the choices: a cycle would wait for the garbage collector.
            key=self.context.key if key is None else lambda _pool: key,
            tried=tried | self.context.excluded(self._snapshot),
            now=upstream.now,
            claim=upstream.replica.claim,
            last_resort=upstream.last_resort,
            session=self.context.host_of_session,
        )

    def _work_out_key(self, pool: Pool) -> Key | None:
        return self._key if self._key is not None else self.context.key(pool)

    def _give_up(self, *, deadline_over: bool) -> NoReturn:
        self.done = True
        self.context.upstream.replica.count_exhausted()
        verdict = self._verdict(deadline_over)
        self.context.upstream.listeners.tell("exhausted", verdict)
        raise verdict from self._cause()

    def _cause(self) -> BaseException | None:
        failures = [attempt.error for attempt in self.log if attempt.error is not None]
        return failures[-1] if failures else self.context.upstream.replica.trouble

    def _verdict(self, deadline_over: bool) -> NoHostAvailable:
        upstream = self.context.upstream
        why = "the deadline is over" if deadline_over else "no host is available"
        tried = ", ".join(f"{a.pool.id}/{a.host.id}: {_brief(a.error)}" for a in self.log[-5:])
        more = f" (the last 5 of {len(self.log)})" if len(self.log) > 5 else ""
        message = f"upstream {upstream.id}: {why}" + (f" after {tried}{more}" if tried else "")
        return NoHostAvailable(message, self.log, 502 if self.answered_badly else 504)


class Connecting(Attempts):
    """The attempts of ``connect`` and ``aconnect``."""

    __slots__ = ()

    def succeeded(self, target: Target, flight: Flight) -> None:
        """What was connected is used from now on."""
        self.context.hold(target, flight)


# ── what an exception says about a host ───────────────────────────────────────────────────────


class Verdict(NamedTuple):
    """What a failed attempt means."""

    counts: bool
    """Whether it counts against the host."""
    next_host: bool
    """Whether another host may do better."""
    reason: str
    """A few words: an errno's name, or the kind of failure."""
    answered: bool = False
    """Whether the host was reached, and answered badly."""
    timed_out: bool = False
    """Whether it is a timeout of this process, not one that the kernel reported."""
    kind: Kind = "other"
    """Of failure, where it counts."""


_OURS_ERRNO: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.EADDRINUSE}
)
_ROUTE_ERRNO: Final = frozenset(
    {errno.ENETUNREACH, errno.ENETDOWN, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EAFNOSUPPORT}
)
_UNREACHED_ERRNO: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETRESET,
        errno.ECONNABORTED,
    }
)
_BROKEN_ERRNO: Final = frozenset(
    {errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.ENOTCONN, errno.EPROTO, errno.EBADMSG}
)
# A unix socket: missing, stale, not a socket, or with a full queue (which TCP reports as a timeout).
_UNIX_ERRNO: Final = frozenset({errno.ENOENT, errno.ENOTSOCK, errno.ENOTDIR, errno.EAGAIN, errno.EPROTOTYPE})

_KIND_OF_ERRNO: Final[dict[int, Kind]] = {
    **dict.fromkeys(_BROKEN_ERRNO, "reset"),
    **dict.fromkeys(_UNIX_ERRNO, "refused"),
    errno.ECONNREFUSED: "refused",
    errno.EHOSTUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.ETIMEDOUT: "timeout",
    errno.EAGAIN: "timeout",
    errno.ENETRESET: "reset",
    errno.ECONNABORTED: "reset",
    errno.EPROTO: "bad_answer",
    errno.EBADMSG: "bad_answer",
}

_NO_SUCH_NAME: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)
# Exceptions by which a client says that its own pool of connections is exhausted.
_POOL_TIMEOUTS: Final = frozenset(
    {"PoolTimeout", "EmptyPoolError", "ClosedPoolError", "FullPoolError", "TooManyRequests", "MaxConnectionsError"}
)
_MISUSES: Final = ("InvalidURL", "ImproperConnectionState", "NotConnected", "UnimplementedFileMode")

_UNCLASSIFIED: Final = Verdict(counts=False, next_host=False, reason="unclassified")
_TIMED_OUT: Final = Verdict(counts=True, next_host=True, reason="timed out", timed_out=True, kind="timeout")
_CALLERS_TIMEOUT: Final = Verdict(counts=False, next_host=False, reason="the caller's own deadline")
_CUT_SHORT: Final = Verdict(counts=False, next_host=True, reason="cut short by the deadline of all attempts")
_PAUSED: Final = Verdict(counts=False, next_host=True, reason="timed out while this process was paused")

_DEPTH: Final = 64  # exceptions that are looked at, whatever is linked to whatever
_ERRNO_OF_TYPE: Final = {
    ConnectionRefusedError: errno.ECONNREFUSED,
    ConnectionResetError: errno.ECONNRESET,
    ConnectionAbortedError: errno.ECONNABORTED,
    BrokenPipeError: errno.EPIPE,
}
_ERRNO_IN_TEXT: Final = re.compile(r"\[Errno (\d{1,5})\]")


def classify(error: BaseException, *, unix: bool = False, handled: BaseException | None = None) -> Verdict:
    """What ``error``, raised inside an attempt, says about the host.

    Clients wrap the cause two to four levels deep, so everything linked to the error is looked at
    (``__cause__``, ``__context__``, ``reason``, ``os_error``, ``args``, exception groups). What says that
    this machine is to blame wins wherever it is; otherwise the innermost cause that says anything.

    :param unix: the host is a unix socket.
    :param handled: an exception that was there before the attempt; it and what is behind it do not count.
    """
    if not isinstance(error, Exception):
        return Verdict(counts=False, next_host=False, reason=type(error).__name__)
    if isinstance(error, Excused):
        return Verdict(counts=False, next_host=error.next_host, reason=_brief(error.error))
    if isinstance(error, BadAnswer):
        kind = _kind_of(error, unix, handled)
        return Verdict(counts=True, next_host=True, reason=str(error), answered=error.answered, kind=kind)
    verdicts = [_verdict_on(cause, unix=unix) for cause in _causes(error, handled)]
    said = [verdict for verdict in verdicts if verdict is not None]
    ours = [verdict for verdict in said if not verdict.counts and not verdict.next_host]
    if ours:
        return ours[0]
    if not said:
        return _UNCLASSIFIED._replace(reason=f"unclassified: {type(error).__name__}")
    return said[-1]


def _kind_of(error: BadAnswer, unix: bool, handled: BaseException | None) -> Kind:
    """That of what the client itself was told, if that says anything."""
    causes = [] if error.__cause__ is None else _causes(error.__cause__, handled)
    verdicts = [_verdict_on(cause, unix=unix) for cause in causes]
    kinds = [verdict.kind for verdict in verdicts if verdict is not None and verdict.counts]
    return kinds[-1] if kinds else error.kind


def _causes(error: BaseException, handled: BaseException | None) -> list[BaseException]:
    """``error`` and all that is linked to it, the outermost first."""
    found: list[BaseException] = []
    seen = {id(handled)}
    level: list[BaseException] = [error]
    while level and len(found) < _DEPTH:
        fresh = []
        for exception in level:
            if id(exception) not in seen:
                seen.add(id(exception))
                fresh.append(exception)
        found += fresh
        level = [link for exception in fresh for link in _links(exception)]
    return found[:_DEPTH]


def _links(error: BaseException) -> list[BaseException]:
    linked: list[object] = [error.__context__, error.__cause__]
    for name in ("reason", "os_error"):
        try:
            linked.append(getattr(error, name, None))
        except Exception:  # noqa: S112 - a property of a foreign class may do anything
            continue
    linked += error.args[:_DEPTH]
    if isinstance(error, BaseExceptionGroup):
        linked += error.exceptions[:_DEPTH]
    return [link for link in linked if isinstance(link, BaseException)]


def _verdict_on(error: BaseException, *, unix: bool) -> Verdict | None:
    """What one exception says by itself; None when it says nothing."""
    if not _POOL_TIMEOUTS.isdisjoint(kind.__name__ for kind in type(error).__mro__):
        return Verdict(counts=False, next_host=False, reason="the client's own pool is exhausted")
    if isinstance(error, socket.gaierror):
        return _verdict_on_lookup(error)
    if _is(error, "ssl", "SSLWantReadError", "SSLWantWriteError"):
        return None  # what somebody waited for, as long as that was
    if _is(error, "ssl", "SSLError"):  # an OSError whose errno is not one
        reason = f"TLS: {type(error).__name__}"
        return Verdict(counts=True, next_host=True, reason=reason, answered=True, kind="tls")
    if isinstance(error, OSError) and not isinstance(error, socket.herror):
        verdict = _verdict_on_errno(error, unix=unix)
        if verdict is not None:
            return verdict
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    ):
        return Verdict(counts=False, next_host=False, reason=type(error).__name__)
    if isinstance(error, EOFError) or (
        _is(error, "http.client", "HTTPException") and not _is(error, "http.client", *_MISUSES)
    ):
        kind: Kind = "reset" if isinstance(error, EOFError) else "bad_answer"
        return Verdict(counts=True, next_host=True, reason=type(error).__name__, answered=True, kind=kind)
    return None


def _verdict_on_errno(error: OSError, *, unix: bool) -> Verdict | None:
    number = error.errno
    if number is None:
        if isinstance(error, TimeoutError):
            return _TIMED_OUT
        number = _errno_in_words(error)
        if number is None:
            return None
    reason = errno.errorcode.get(number, f"errno {number}")
    if number in _OURS_ERRNO:
        return Verdict(counts=False, next_host=False, reason=reason)
    if number in _ROUTE_ERRNO:
        return Verdict(counts=False, next_host=True, reason=reason)
    kind = _KIND_OF_ERRNO.get(number, "other")
    if number in _UNREACHED_ERRNO or (unix and number in _UNIX_ERRNO):
        return Verdict(counts=True, next_host=True, reason=reason, kind=kind)
    if number in _BROKEN_ERRNO:
        return Verdict(counts=True, next_host=True, reason=reason, answered=True, kind=kind)
    return None


def _errno_in_words(error: OSError) -> int | None:
    """The errno that the type or the text of an error without one stands for."""
    for kind, number in _ERRNO_OF_TYPE.items():
        if isinstance(error, kind):
            return number
    # asyncio puts several failures into one text: "Multiple exceptions: [Errno 111] …, [Errno 111] …"
    match = _ERRNO_IN_TEXT.search(str(error))
    return int(match[1]) if match else None


def _verdict_on_lookup(error: socket.gaierror) -> Verdict:
    if error.errno in _NO_SUCH_NAME:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as local:  # the resolver could not open its socket, and said "no such name"
            reason = errno.errorcode.get(local.errno or 0, "no descriptor left")
            return Verdict(counts=False, next_host=False, reason=reason)
        return Verdict(counts=True, next_host=True, reason="no such name", kind="name")
    if error.errno == socket.EAI_MEMORY:
        return Verdict(counts=False, next_host=False, reason="EAI_MEMORY")
    return Verdict(counts=False, next_host=True, reason="the name could not be looked up")


def _is(error: BaseException, module: str, *names: str) -> bool:
    """``isinstance`` for classes of a module that may not be imported, without importing it."""
    loaded = sys.modules.get(module)
    return loaded is not None and any(isinstance(error, getattr(loaded, name, ())) for name in names)


def _brief(error: BaseException | None) -> str:
    if error is None:
        return "nothing"
    if isinstance(error, Excused):
        error = error.error
    text = str(error)
    text = text if len(text) <= 120 else text[:117] + "..."
    if isinstance(error, BadAnswer):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
