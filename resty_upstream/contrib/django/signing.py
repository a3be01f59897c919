"""What signs the cookies of sticky sessions: ``SECRET_KEY``; ``SECRET_KEY_FALLBACKS`` know older ones."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.signing import BadSignature, Signer

from resty_upstream.sticky import salt_of


class DjangoSigner:
    """Django's signing of an upstream's values. The settings are read when it is used."""

    def __init__(self, alias: str) -> None:
        self._salt = salt_of(alias)

    def sign(self, values: Sequence[str | int]) -> str:
        """The values as text that may stand in a cookie."""
        return str(Signer(salt=self._salt).sign_object(list(values)))

    def unsign(self, text: str) -> object:
        """The values that :meth:`sign` was given; None for text that it did not make."""
        try:
            return Signer(salt=self._salt).unsign_object(text)
        except (BadSignature, ValueError):
            return None
