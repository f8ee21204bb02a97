"""The way from the name that something is told under to the user that has the person's events."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

from app.state.identities import Identities, OvertakenError
from app.state.text import decode_text, encode_text

MOST_HOPS: Final = 8


class Way:
    """Goes on whenever a script answers that its user leads on, or is one with that name no longer.

    Attributes:
        user_id: where it has come to.
        refused_to: time (unix ms) up to which what is told is refused: up to there a user on the way was erased; -1 for none.
    """

    def __init__(self, identities: Identities, tenant: str, name: str) -> None:
        self._identities = identities
        self._tenant = tenant
        self._name = name
        self._begin()

    def _begin(self) -> None:
        self.user_id, self.refused_to = self._name, -1
        self._merge = b""  # by which the name leads to `user_id`

    @property
    def guard(self) -> tuple[bytes, bytes]:
        """What a script is told of the way, so that it writes with somebody else only who is still one with the name: that name,
        and the merge by which it must be known there; empty for its own user."""
        return (encode_text(self._name), self._merge) if self._merge else (b"", b"")

    async def go_on(self, reply: Sequence[Any]) -> None:
        """Raises LongwaveError; nothing is written then.

        Args:
            reply: [-1, user id that this one was merged into, state of the merge, time up to which this one was erased (-1: it
                was not), name of the merge], or [-2]: the merge in `guard` is not known there.
        """
        if reply[0] == -2:
            with contextlib.suppress(OvertakenError):  # an erasure has parted them
                await self._identities.make_known(self._tenant, self._name, self._merge, self.user_id)
            self._begin()
            return
        _, target, state, erased_at, merge = reply
        self.refused_to = max(self.refused_to, int(erased_at))
        before = self.user_id
        self.user_id = await self._identities.follow(self._tenant, before, decode_text(target), state)
        if self.user_id != before == self._name:
            self._merge = merge
