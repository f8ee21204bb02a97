"""The background fold: runs ahead of the reads, so that they find current states. Nothing is wrong without it, only slower."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice

import structlog

from app.errors import StorageError
from app.fold import Commits, Users

_MOST_DIRTY = 100_000  # beyond it users are left to their next read
_BACK_OFF_S = 1.0

log = structlog.get_logger()


class Advance:
    """Folds users that got events, many in one call of the model, and has their states committed."""

    def __init__(self, users: Users, commits: Commits, delay_s: float, batch_users: int) -> None:
        """`delay_s` is how long events are gathered; `batch_users` bounds one call."""
        self._users = users
        self._commits = commits
        self._delay_s = delay_s
        self._batch_users = batch_users
        self._dirty: dict[tuple[str, str], None] = {}  # ordered: who waits longest goes first
        self._wake = asyncio.Event()

    def mark(self, tenant: str, user_ids: Sequence[str]) -> None:
        """These users have events that are not folded yet."""
        for user_id in user_ids:
            if len(self._dirty) < _MOST_DIRTY:
                self._dirty[tenant, user_id] = None
        self._wake.set()

    async def run(self) -> None:
        """Fold until cancelled. Errors are logged and never end it."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(self._delay_s)
            self._wake.clear()
            while self._dirty:
                await self._fold_some()

    async def _fold_some(self) -> None:
        tenant = next(iter(self._dirty))[0]
        batch = list(islice((user_id for of, user_id in self._dirty if of == tenant), self._batch_users))
        for user_id in batch:
            del self._dirty[tenant, user_id]
        try:
            states = await self._users.current(tenant, batch, by="background")
        except StorageError as error:
            log.warning("storage is away, the background fold waits", error=error.detail)
            self.mark(tenant, batch)
            await asyncio.sleep(_BACK_OFF_S)
            return
        except Exception:
            # One bad user must not stop the others: its reads will show the error, and the fold goes on.
            log.exception("background fold failed", users=batch[:10])
            return
        for user_id, state in zip(batch, states, strict=True):
            if state is not None and state.folded:
                self._commits.submit(tenant, user_id, state)
