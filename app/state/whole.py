"""A user as one moment has it, all of it: what whole.lua reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from app.state.calls import Call
from app.state.keys import UserKeys


class Whole(NamedTuple):
    """None for what is not there; what stands for what in the meta is in `keys`."""

    appended: bytes | None
    epoch: bytes | None
    first: bytes | None
    last: bytes | None
    attributes: bytes | None
    to: bytes | None
    merged: bytes | None
    merge: bytes | None
    sequence: Sequence[bytes]
    ids: bytes | None
    gone: bytes | None

    @classmethod
    def of(cls, reply: Sequence[Any]) -> Whole:
        meta, *others = reply
        return cls(*meta, *others)


def reading(user: UserKeys) -> Call:
    """The call of whole.lua for a user."""
    return (user.meta, user.seq, user.ids, user.gone), ()
