"""Popularity counts on their way to the store, behind the requests' backs: soft state, which no request waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from app.errors import StorageError
from app.ingest.append import Increment
from app.state.store import StateStore

_MOST_WAITING = 200_000  # while the store is away; beyond it the oldest are given up

log = structlog.get_logger()


class PopularityCounter:
    """Gathers increments for a moment and adds them to the store's counts, where all workers count.

    Args:
        knows: whether an item is in the catalogue. Others are not counted: their ids are any text that a client sent, and what
            the store has of an item stays. None: every item is counted.
    """

    def __init__(
        self, store: StateStore, half_lives_s: Sequence[float], delay_s: float, knows: Callable[[str], bool] | None = None
    ) -> None:
        self._store = store
        self._half_lives_s = tuple(half_lives_s)
        self._delay_s = delay_s
        self._knows = knows
        self._waiting: dict[str, list[Increment]] = {}
        self._total: dict[str, int] = {}  # events that were ever counted, as this worker last heard
        self._others: set[str] = set()  # tenants for whom somebody else has counted since then
        self._flushing: asyncio.Task[None] | None = None
        self._one_flush = asyncio.Lock()

    def add(self, tenant: str, increments: Sequence[Increment]) -> None:
        """Have increments counted soon; never blocks, never raises."""
        if self._knows is not None:
            increments = [increment for increment in increments if self._knows(increment[0])]
        if not increments:
            return
        waiting = self._waiting.setdefault(tenant, [])
        waiting.extend(increments)
        del waiting[: max(0, len(waiting) - _MOST_WAITING)]
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())

    async def close(self) -> None:
        """Count what is still waiting, then return."""
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        await self.flush()

    async def others_counted(self, tenant: str) -> bool:
        """Whether somebody else has counted since this was asked last. Raises StorageError."""
        before = self._total.get(tenant)
        total = await self._store.popularity_events(tenant, self._half_lives_s)
        if self._total.get(tenant) == before != total:  # otherwise a flush came in between, and has looked itself
            self._others.add(tenant)
            self._total[tenant] = total
        if tenant in self._others:
            self._others.discard(tenant)
            return True
        return False

    async def flush(self) -> None:
        """Count what is waiting now."""
        async with self._one_flush:
            await self._flush()

    async def _flush(self) -> None:
        while self._waiting:
            tenant, increments = self._waiting.popitem()
            try:
                total = await self._store.count_popularity(tenant, self._half_lives_s, increments)
                if total - len(increments) != self._total.get(tenant):
                    self._others.add(tenant)
                self._total[tenant] = total
            except StorageError:
                # The events are stored; a count is not worth refusing them, nor counting some twice.
                log.warning("popularity not counted", tenant=tenant, events=len(increments))
            except Exception:
                log.exception("popularity not counted", tenant=tenant, events=len(increments))

    async def _flush_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._delay_s)
            await asyncio.shield(self.flush())  # what has been taken out is counted, also if the service stops
