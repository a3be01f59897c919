"""Sessions that stay at their host, by a signed cookie.

The cookie names a pool, a host and when it was made. One that is not signed by this application, too old, or of
a pool or host that is no more, is as good as none. Whether its host may serve is decided where all hosts are
chosen, in :mod:`resty_upstream.selection`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from resty_upstream.errors import InvalidConfig, Problem
from resty_upstream.events import fields

if TYPE_CHECKING:
    from resty_upstream.model import Pool, Pools, Sticky
    from resty_upstream.selection import Target
    from resty_upstream.visitors import Visitor

_SALT: Final = "resty_upstream.sticky"
_SECRET_CHARS: Final = 16
_NEEDS: Final = "needs itsdangerous: pip install 'resty-upstream[sticky]'"

_log = logging.getLogger("resty_upstream.sticky")


class Signer(Protocol):
    """Makes text of values that nobody else can make."""

    def sign(self, values: Sequence[str | int]) -> str:
        """The values as text that may stand in a cookie."""
        ...

    def unsign(self, text: str) -> object:
        """The values that :meth:`sign` was given; None for text that it did not make."""
        ...


def salt_of(upstream_id: str) -> str:
    """What keeps signatures of one upstream apart from all others that are made with the same secret."""
    return f"{_SALT}.{upstream_id}"


class ItsDangerousSigner:
    """A :class:`Signer` by itsdangerous.

    :raises InvalidConfig: where that is not installed, naming what to install.
    """

    def __init__(self, secret: str | bytes, salt: str) -> None:
        try:
            from itsdangerous import BadData, URLSafeSerializer
        except ImportError:
            raise InvalidConfig(Problem(f"a sticky pool {_NEEDS}", "missing")) from None
        self._serializer = URLSafeSerializer(secret, salt)
        self._bad = (BadData, ValueError)

    def sign(self, values: Sequence[str | int]) -> str:
        """See :class:`Signer`."""
        return str(self._serializer.dumps(list(values)))

    def unsign(self, text: str) -> object:
        """See :class:`Signer`."""
        try:
            return self._serializer.loads(text)
        except self._bad:
            return None


class Signing:
    """How an upstream signs: with what it is given, or else by itsdangerous with a secret that all workers know.

    :param upstream_id: whose cookies they are.
    :param secret: as configured; "" for one that is derived from the upstream's own, which is in its store.
    :param given: a signer of the framework.
    :raises InvalidConfig: for a secret that is none.
    """

    def __init__(self, upstream_id: str, secret: object, given: Signer | None) -> None:
        if not isinstance(secret, str) or 0 < len(secret) < _SECRET_CHARS:
            raise InvalidConfig(Problem(f"cookie_secret must be text of at least {_SECRET_CHARS} characters"))
        self.given = given
        self._secret = secret
        self._salt = salt_of(upstream_id)
        self._made: tuple[bytes, Signer | None] | None = None

    @property
    def is_possible(self) -> bool:
        """Whether there is something to sign with."""
        return self.given is not None or find_spec("itsdangerous") is not None

    def signer(self, shared: bytes) -> Signer | None:
        """What signs now; None where there is nothing to sign with, which is logged once.

        :param shared: the secret in the upstream's store; empty as long as it was never read.
        """
        if self.given is not None:
            return self.given
        if not self._secret and not shared:
            return None  # a secret that everybody knows is none
        if self._made is None or self._made[0] != shared:
            self._made = shared, self._make(shared)
        return self._made[1]

    def _make(self, shared: bytes) -> Signer | None:
        secret = self._secret or blake2b(shared[:64], person=b"sticky sessions").hexdigest()
        try:
            return ItsDangerousSigner(secret, self._salt)
        except InvalidConfig as error:
            _log.error(
                "%s; sessions do not stay at their hosts", error, extra=fields("not_sticky", reason=str(error))
            )
            return None


def problem_of(pools: Pools) -> Problem | None:
    """What to say of pools for whose cookies there is nothing to sign with; None where none is sticky."""
    sticky = next((pool for pool in pools if pool.sticky is not None), None)
    return Problem(f"pools.{sticky.id}.sticky {_NEEDS}", "missing") if sticky is not None else None


class Cookie(NamedTuple):
    """A cookie to be set, for the whole site, and for no script to read."""

    name: str
    value: str
    max_age: int
    """Seconds."""

    def header(self, *, secure: bool) -> str:
        """The value of ``Set-Cookie``.

        :param secure: whether the request came by TLS.
        """
        line = f"{self.name}={self.value}; Max-Age={self.max_age}; Path=/; HttpOnly; SameSite=Lax"
        return f"{line}; Secure" if secure else line


class Place(NamedTuple):
    """Where a session is."""

    pool_id: str
    host_id: str
    since: float
    """Epoch seconds of the cookie that says so."""


class Session:
    """The hosts that a visitor's cookies name, and those that answered his request.

    :param signer: works out what signs; None where nothing can.
    :param wall: the time of day: cookies outlive reboots, and machines.
    """

    def __init__(self, visitor: Visitor, signer: Callable[[], Signer | None], wall: Callable[[], float]) -> None:
        self._visitor = visitor
        self._signer = signer
        self._wall = wall
        self._read: dict[Sticky, Place | None] = {}
        self._chosen: dict[str, Target] = {}

    def host_of(self, pool: Pool) -> str | None:
        """The host of ``pool`` that the session is at; None where there is none."""
        sticky = pool.sticky
        if sticky is None:
            return None
        chosen = self._chosen.get(sticky.cookie)
        if chosen is not None and chosen.pool.id == pool.id:
            return chosen.id
        place = self._place(sticky)
        return place.host_id if place is not None and place.pool_id == pool.id else None

    def stay(self, target: Target) -> None:
        """A host answered: the session is there now."""
        if target.pool.sticky is not None:
            self._chosen[target.pool.sticky.cookie] = target

    def cookies(self) -> list[Cookie]:
        """Those to be set: the session is somewhere else than its cookie says, or half of its time is over."""
        signer = self._signer() if self._chosen else None
        if signer is None:
            return []
        now = self._wall()
        return [
            Cookie(name, signer.sign([target.pool.id, target.id, int(now)]), max(1, int(sticky.max_age)))
            for name, target in list(self._chosen.items())
            if (sticky := target.pool.sticky) is not None and not self._is_said(target, sticky, now)
        ]

    def _is_said(self, target: Target, sticky: Sticky, now: float) -> bool:
        place = self._place(sticky)
        if place is None or (place.pool_id, place.host_id) != (target.pool.id, target.id):
            return False
        return now - place.since <= sticky.max_age / 2

    def _place(self, sticky: Sticky) -> Place | None:
        """What the cookie of the request says."""
        if sticky not in self._read:
            text = self._visitor.cookie(sticky.cookie)
            signer = self._signer() if text else None
            self._read[sticky] = _place_in(signer.unsign(text)) if text and signer is not None else None
        place = self._read[sticky]
        return place if place is not None and self._wall() - place.since <= sticky.max_age else None


def _place_in(values: Any) -> Place | None:
    match values:
        case [str(pool_id), str(host_id), int(since)]:
            return Place(pool_id, host_id, since)
    return None
