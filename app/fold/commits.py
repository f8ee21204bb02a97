"""State commits, debounced: a state is a cache, and writing kilobytes for every small event would cost more than it saves."""

from __future__ import annotations

import asyncio
from itertools import islice

import structlog

from app.errors import StorageError
from app.fold.fold import Fold, UserState
from app.state.store import StateStore
from app.telemetry import Metrics

_MOST_PENDING = 10_000  # beyond it new submissions are dropped: the next read folds the tail again
_BATCH = 64

log = structlog.get_logger()


class Commits:
    """Gathers states for a moment, keeps the newest of each user, and stores them behind the requests' backs."""

    def __init__(self, store: StateStore, fold: Fold, model_id: str, metrics: Metrics, delay_s: float) -> None:
        self._store = store
        self._fold = fold
        self._model_id = model_id
        self._metrics = metrics
        self._delay_s = delay_s
        self._pending: dict[tuple[str, str], UserState] = {}
        self._flushing: asyncio.Task[None] | None = None

    def submit(self, tenant: str, user_id: str, state: UserState) -> None:
        """Have a state stored soon; never blocks, never raises."""
        key = (tenant, user_id)
        waiting = self._pending.get(key)
        if waiting is None and len(self._pending) >= _MOST_PENDING:
            self._metrics.commits.labels("dropped").inc()
            return
        if waiting is None or waiting.header.epoch != state.header.epoch or waiting.header.applied < state.header.applied:
            self._pending[key] = state
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())

    async def close(self) -> None:
        """Store what is still waiting, then return; a store that is away is logged and left alone."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self._flush()

    async def _flush_later(self) -> None:
        while self._pending:
            await asyncio.sleep(self._delay_s)
            await self._flush()

    async def _flush(self) -> None:
        while self._pending:
            tenant = next(iter(self._pending))[0]
            users = list(islice((user for of, user in self._pending if of == tenant), _BATCH))
            blobs = [(user, self._fold.pack(self._pending.pop((tenant, user)))) for user in users]
            try:
                stored = await self._store.commit_many(tenant, self._model_id, blobs)
            except StorageError as error:
                # Nothing is lost: the events are stored, and the next read or fold tries again.
                self._metrics.commits.labels("failed").inc(len(blobs))
                log.warning("states not committed", users=len(blobs), error=error.detail)
                return
            except Exception:
                self._metrics.commits.labels("failed").inc(len(blobs))
                log.exception("states not committed", users=users[:10])
                return
            self._metrics.commits.labels("stored").inc(sum(stored))
            self._metrics.commits.labels("overtaken").inc(len(stored) - sum(stored))
