"""One request of HTTP and its answer, at as many hosts as it takes; transports send and receive.

A transport is this loop::

    exchange = Exchange(context, request)  # the transport's own, which knows what may be repeated
    for attempt in exchange:
        with attempt:
            answer = send(...)  # raises what `exchange.judged` makes of an error
            if not exchange.is_bad(attempt, answer.status, answer.headers):
                return answer
            kept = answer
            raise BadAnswer(f"status {answer.status}")
        if not exchange.may_go_on():
            ...  # what was kept, or the attempt's error
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from random import random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from resty_upstream.attempts import Attempt, Attempts, BadAnswer, Excused, classify
from resty_upstream.http.retries import budget, is_repeatable, retry_after_s
from resty_upstream.load import Flight
from resty_upstream.model import is_one_of
from resty_upstream.selection import Target
from resty_upstream.state import Eject

if TYPE_CHECKING:
    from resty_upstream.context import RequestContext

_MOST_STALE: Final = 3


class Progress:
    """How far a request got on a connection; whoever has the connection in hand writes it down."""

    is_fresh = False
    """Whether a connection was to be made for it; else it had one that was kept alive."""
    sent = False
    """Whether any of it may have been sent."""
    answered = False
    """Whether anything came back."""
    is_late = False
    """Whether the deadline was over before an answer was waited for: sending took too long."""
    attempt: Attempt
    connection: Any = None
    """That on which it is sent, for transports that look at it afterwards."""
    content: Any = None
    """The body of its answer, once there is one, for transports whose connections keep watch over it."""
    limit: Literal["host", "deadline", "caller"] = "host"
    """Whose limit a read is under."""
    until = math.inf
    """When the head of the answer must be there, by ``time.monotonic``."""

    def bounded(self, timeout_s: float | None) -> float | None:
        """The timeout of one read: a host that sends a byte now and then is not to take for ever."""
        if self.until == math.inf:
            return timeout_s
        left_s = self.until - monotonic()
        if left_s <= 0:
            self.is_late, left_s = True, 0.001
        return left_s if timeout_s is None or left_s < timeout_s else timeout_s


NOBODYS: Final = Progress()
"""What connections note that nobody uses."""


class Exchange(Attempts):
    """The hosts of one request, each as an attempt, until one answers well.

    A transport says what :meth:`is_replayable`: asked only after a failure.

    :param request: the transport's own, with ``method`` and ``headers``.
    """

    progress: Progress
    """Of the last time that it was sent."""

    # What is as here at first is not stored in each: most requests are over without a change of it.
    _flight: Flight | None = None
    _settled: Attempt | None = None
    is_pending = False
    """Whether there is something to say when the answer is read: :meth:`land` does."""
    stale = 0
    """How many connections that were kept alive turned out to be closed."""
    _until: float | None = None

    def __init__(self, context: RequestContext, request: Any) -> None:
        Attempts.__init__(self, context)  # in half the time of super()
        self.request = request

    def is_replayable(self) -> bool:
        """Whether the body of the request is there a second time."""
        raise NotImplementedError

    def _is_repeatable(self) -> bool:
        return is_repeatable(self.request.method, self.request.headers, replayable=self.is_replayable())

    # ── sending ───────────────────────────────────────────────────────────────────────────────

    def begin(self, attempt: Attempt, asked_s: float | None = None) -> float:
        """The request is about to be sent: how many seconds each read may take.

        :param asked_s: what the caller gives it.
        """
        now = monotonic()
        until = self._until
        if until is None:
            self._until = until = now + self._deadline - attempt.began
            budget.note_request(now)
        self.progress = progress = Progress()
        progress.until, progress.attempt = until, attempt
        read_s, left_s = attempt.target.read_timeout_s, until - now
        if left_s < 0.99 * read_s:
            progress.limit, read_s = "deadline", max(left_s, 0.001)
        if asked_s is not None and asked_s < 0.99 * read_s:
            progress.limit, read_s = "caller", asked_s
        return read_s

    def has_begun(self, attempt: Attempt) -> bool:
        """Whether the attempt got as far as :meth:`begin`."""
        return self._until is not None and self.progress.attempt is attempt

    def is_stale(self) -> bool:
        """Whether the request is to be sent to the same host once more, after it failed there without a timeout.

        The connection was kept alive and closed by the host in the meantime, which is no failure of the host
        (as ``peer.cached`` of nginx).

        See :meth:`judged` for a request that may not be repeated.
        """
        if not self._was_stale() or (self.progress.sent and not self._is_repeatable()):
            return False
        self.stale += 1
        return self.stale <= _MOST_STALE

    def _was_stale(self) -> bool:
        progress = self.progress
        return not progress.is_fresh and not progress.answered

    def judged(self, attempt: Attempt, error: Exception, *, timed_out: bool = False) -> Exception:
        """What :func:`raise_judged` is to raise for an error of the client that came from the network.

        :param timed_out: whether it is a timeout of the client's.
        """
        if not self.progress.sent and _is_known(error, attempt):
            return error  # while connecting: it says itself what it means
        if timed_out:
            return self._judged_timeout(attempt, error)
        if self._was_stale() and self.stale <= _MOST_STALE:
            return Excused(error)
        # Who closes a connection without a word is said to do so by some clients, and to answer badly by others.
        return BadAnswer(_brief(error, attempt), kind=None if self.progress.answered else "reset")

    def _judged_timeout(self, attempt: Attempt, error: Exception) -> Exception:
        if self.progress.limit == "caller":
            return Excused(error)
        read_s = attempt.target.read_timeout_s
        took_s = self.now() - attempt.began
        # One that sends a byte now and then takes as long as it likes.
        is_ours = self.progress.is_late or took_s > 2 * (attempt.timeout_s + read_s) + 1.0
        if self.progress.limit == "deadline" or (is_ours and not self.progress.answered):
            return Excused(error, next_host=True)
        return BadAnswer(f"no answer within {read_s:g} s", answered=False)

    # ── what was answered ─────────────────────────────────────────────────────────────────────

    def is_bad(self, attempt: Attempt, status: int, headers: Mapping[str, str]) -> bool:
        """Whether an answer of that status is a failure of the host.

        :param headers: of the answer. A host that says in ``Retry-After`` how long it is to be left alone goes
            down for that time (up to ``failed_timeout_max``), unless half of the pool is down.
        """
        masks = attempt.target.status_codes
        if not masks or not is_one_of(status, masks):
            return False
        least_s = retry_after_s(headers.get("retry-after"))
        if least_s:
            now, reason = self.now(), f"status {status}, Retry-After {least_s:g} s"
            fact = Eject(now, attempt.began, time.time(), 2 * random() - 1, reason, least_s)
            self.context.observe(attempt.target, fact, probe=False)
        return True

    def may_go_on(self) -> bool:
        """Whether another host may be asked: nothing was sent yet, or the request may be repeated."""
        return not self.progress.sent or (self._is_repeatable() and budget.take(monotonic()))

    def broke(self, attempt: Attempt, error: Exception, *, timed_out: bool = False) -> None:
        """The body of the answer broke off: a failure of the host, though it is too late for another."""
        self._settled = None
        if timed_out and self.progress.limit != "host":
            return
        attempt.observe_failure(self.context, f"in the middle of an answer: {_brief(error, attempt)}", self.now())

    # ── the load ──────────────────────────────────────────────────────────────────────────────

    def succeeded(self, _target: Target, flight: Flight) -> None:
        """The request is under way until the answer is read."""
        self._flight, self.is_pending = flight, True

    def settle(self, attempt: Attempt, now: float) -> None:
        """The host did well, unless the answer breaks off yet."""
        if attempt.is_probe:
            super().settle(attempt, now)  # others wait for it
        else:
            self._settled, self.is_pending = attempt, True

    def land(self) -> None:
        """The answer is read, or given up. May be called again."""
        settled, self._settled = self._settled, None
        if settled is not None and sys.exception() is None:  # else it may have broken off just now
            settled.observe_success(self.context, self.now())
        if self._flight is not None:
            self._flight.land()


def raise_judged(judged: Exception, error: Exception) -> NoReturn:
    """Raise, inside the attempt, what an error of the client was judged to be; none is its own cause."""
    if judged is error:
        raise error
    raise judged from error


def culprit(attempt: Attempt) -> Exception | None:
    """The client's own error of an attempt after which no other host may be asked."""
    error = attempt.error
    if isinstance(error, Excused):
        error = error.error
    elif isinstance(error, BadAnswer):
        error = error.__cause__
    return error if isinstance(error, Exception) else None


def _is_known(error: Exception, attempt: Attempt) -> bool:
    return not _reason(error, attempt).startswith("unclassified")


def _reason(error: Exception, attempt: Attempt) -> str:
    return classify(error, unix=attempt.host.unix_path is not None).reason


def _brief(error: Exception, attempt: Attempt) -> str:
    reason = _reason(error, attempt)
    return f"{type(error).__name__}: {error}"[:120] if reason.startswith("unclassified") else reason
