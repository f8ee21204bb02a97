"""Keys of another Redis type than ours, and bytes in them that are not ours, such as after a hand that slipped: one user's
trouble, and nobody else's."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import structlog
from redis.exceptions import ResponseError

from app.errors import DamagedError
from app.state import keys
from app.state.codec import EPOCH_BYTES
from app.state.events import UNREADABLE, StoredEvent, decode_attributes, decode_event
from app.state.ring import ring_ids
from app.state.transport import Command, Transport

_MOST_TOLD: Final = 1_000  # keys that are not named again in the log

log = structlog.get_logger()


class OneOfManyError(Exception):
    """One of the users that were asked for together is damaged: ask for each alone."""


class Damage:
    """Says what is wrong where Redis says WRONGTYPE, or where what it holds cannot be read; once in the log for each key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._told: set[str] = set()

    async def explained(self, reply: Exception, names: Sequence[str]) -> Exception:
        """The error that a command on these keys got; a DamagedError if it met a key of another type. Raises StorageError."""
        # A script passes the server's words on inside its own error message.
        if not isinstance(reply, ResponseError) or "WRONGTYPE" not in str(reply):
            return reply
        asked: list[Command] = [("TYPE", name) for name in names]
        for name, found in zip(names, await self._transport.exchange(asked), strict=True):
            expected = keys.type_of(name)
            if isinstance(found, bytes) and expected is not None and found.decode() not in (expected, "none"):
                return self._damaged(name, f"is {found.decode()} where a {expected} should be")
        return self._damaged(names[0], "is of another type")

    def events(self, name: str, packed: Sequence[bytes]) -> list[StoredEvent]:
        """The events of the sequence that has this key. Raises DamagedError if one is none."""
        try:
            return [decode_event(event) for event in packed]
        except UNREADABLE as error:
            raise self._damaged(name, f"has an element that is no event ({error})") from None

    def attributes(self, name: str, packed: bytes | None) -> dict[str, str]:
        """The attributes in the meta that has this key. Raises DamagedError if they are none."""
        try:
            return decode_attributes(packed) if packed else {}
        except UNREADABLE as error:
            raise self._damaged(name, f"has attributes that are none ({error})") from None

    def epoch(self, name: str, found: bytes) -> bytes:
        """The epoch in the meta that has this key. Raises DamagedError if it is none."""
        if len(found) != EPOCH_BYTES:
            raise self._damaged(name, f"has {found!r} where an epoch should be")
        return found

    def ids(self, name: str, ring: bytes) -> list[bytes]:
        """`ring_ids` of the ring that has this key. Raises DamagedError if it is none."""
        try:
            return ring_ids(ring)
        except struct.error:
            raise self._damaged(name, f"has {len(ring)} bytes, which are no ring of event ids") from None

    def number(self, name: str, found: bytes | None) -> int:
        """A number in the meta that has this key; 0 if it is not there. Raises DamagedError if it is none."""
        try:
            return int(found or 0)
        except ValueError:
            raise self._damaged(name, f"has {found!r} where a number should be") from None

    def _damaged(self, name: str, what: str) -> DamagedError:
        user = keys.user_of(name)
        whose = f"of user {user[1]!r} " if user is not None else ""
        if name not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(name)
            log.error("a key in Redis is damaged; an erasure removes those of a user", key=name, what=what)
        return DamagedError(f"what is stored {whose}is damaged: Redis key {name} {what}")


def names_of(command: Command) -> Sequence[str]:
    """The keys of a command."""
    return command[3 : 3 + command[2]] if command[0] in ("EVALSHA", "EVAL") else command[1:2]
