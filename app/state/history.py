"""A user's history, imported in parts: while Redis runs a script it serves nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from app.state.identities import NewEvent
from app.state.rewrite import Rewrite

PART: Final = 2_000
"""Events that are written in one piece. An import that was cut off goes on by the ends of its parts: with another number it would
write some events twice."""


class Histories:
    """Writes histories; `dedupe_window` as of `RedisStore`."""

    def __init__(self, rewrite: Rewrite, dedupe_window: int) -> None:
        self._rewrite = rewrite
        self._dedupe_window = dedupe_window
        self._turn = asyncio.Lock()

    async def write(self, tenant: str, user_id: str, new: Sequence[NewEvent], mark: str) -> int | None:
        """Add a history to a user's sequence, the first events first; returns how many, None if all had been done before.

        A part has a mark of its own, the last one that of the whole: what was cut off goes on behind the last part that was
        written. The number has the parts of before it, too.
        """
        if len(new) <= PART:
            return await self._rewrite(tenant, user_id, new, mark=mark)
        # The ids that are left of the whole; were those of each part remembered, they would push out what was told a moment ago
        # before the last part, where it is most likely to be, is compared with it.
        remembered = _last_ids(new, self._dedupe_window)
        told: dict[str, int] = {}
        taken, again = 0, True
        for start in range(0, len(new), PART):
            part = new[start : start + PART]
            end = start + len(part)
            own = mark if end == len(new) else f"{mark}:{end}"
            async with self._turn:  # of parts that wait in Redis together, each would be waited for
                done = await self._rewrite(
                    tenant, user_id, part, mark=own, whole=mark, remembered=remembered, told=told if self._dedupe_window else {}
                )
            again = again and done is None
            taken += len(part) if done is None else done
            for _, time_ms, event_id in part:
                if event_id:
                    told[event_id] = max(time_ms, told.get(event_id, time_ms))
        return None if again else taken


def _last_ids(new: Sequence[NewEvent], most: int) -> frozenset[str]:
    found: set[str] = set()
    for _, _, event_id in reversed(new):
        if len(found) >= most:
            break
        if event_id:
            found.add(event_id)
    return frozenset(found)
