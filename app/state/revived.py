"""A user who was merged into another one, and lives again in the epoch that was merged: Redis has lost its last writes, and with
them that the user had gone. What the other one has of it must not come there again, and what it was told since must.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from app.errors import ConflictError
from app.state import keys
from app.state.calls import Call
from app.state.damage import Damage
from app.state.scripts import Script, script
from app.state.whole import Whole, reading


class Commands(Protocol):
    """What is needed of the store."""

    @property
    def damage(self) -> Damage: ...

    async def run(self, script: Script, calls: Sequence[Call], *, durable: bool = False) -> list[Any]: ...

    async def keep(self, tenant: str, user_id: str, found: Whole, kept: Sequence[bytes]) -> bool: ...


async def set_apart(store: Commands, tenant: str, user_id: str, other: str) -> bool:
    """Leave the user what `other`, who has taken its epoch over, has not got, in a new epoch: it can be merged as anybody then.
    False if either has changed meanwhile, and nothing was done.

    Raises:
        ConflictError: that cannot be told; nothing was done.
    """
    user, beside = keys.user_keys(tenant, user_id), keys.user_keys(tenant, other)
    own, others = map(Whole.of, await store.run(script("whole"), [reading(user), reading(beside)]))
    if others.to is not None:
        return False
    times = [event.time_ms for event in store.damage.events(user.seq, own.sequence)]
    complete = store.damage.number(beside.meta, others.appended) == len(others.sequence)
    kept = not_taken(list(zip(own.sequence, times, strict=True)), others.sequence, complete)
    if kept is None:
        raise ConflictError(
            f"{user_id!r} was merged with {other!r} before, which Redis has lost since, and which of its events {other!r} has "
            "cannot be told any more; nothing was changed"
        )
    return await store.keep(tenant, user_id, own, kept)


def not_taken(events: Sequence[tuple[bytes, int]], there: Sequence[bytes], complete: bool) -> list[bytes] | None:
    """Those of a sequence (packed, unix ms) that another user has not taken over; None if that cannot be told.

    Compared as they are, since ids are in no sequence. What was taken over was sorted by time.

    Args:
        there: what the other user has. complete: it has all that it ever had.
    """
    left, had = Counter(there), []
    for event, _ in events:
        had.append(left[event] > 0)
        left[event] -= had[-1]
    last = max((place for place, one in enumerate(had) if one), default=-1)
    kept, earliest = [], math.inf
    for place, (event, time) in enumerate(events):
        if had[place]:
            earliest = min(earliest, time)
        elif time >= earliest or (complete and last >= 0):  # were it taken, it would be there with that one
            kept.append(event)
        elif place > last:
            return None
        # Else it is older than all that is there, and has left the other's bounded sequence since.
    return kept
