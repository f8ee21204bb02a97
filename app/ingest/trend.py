"""What fresh events add to trends, on its way to the store: soft state, which no request waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import time_ns

import structlog

from app.errors import StorageError
from app.ingest.append import Increment
from app.state.trends import RINGS, Ring, Trends

_MOST_WAITING = 200_000  # while the store is away; beyond it the oldest are given up

log = structlog.get_logger()


class TrendCounter:
    """Gathers increments for a moment and adds up what each item has in each bucket of time, where all workers count.

    An event counts at its own time, one from the future now. Imports do not come here, and what is older than the buckets that
    are kept, seen from the latest event, counts nothing: history that arrives today is no trend of today.

    Args:
        knows: whether an item is in the catalogue. Others are not counted: their ids are any text that a client sent.
    """

    def __init__(self, trends: Trends, delay_s: float, knows: Callable[[str], bool]) -> None:
        self._trends = trends
        self._delay_s = delay_s
        self._knows = knows
        self._waiting: dict[str, list[Increment]] = {}
        self._latest_ms: dict[str, int] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._one_flush = asyncio.Lock()

    def add(self, tenant: str, increments: Sequence[Increment]) -> None:
        """Have increments counted soon; never blocks, never raises."""
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

    async def flush(self) -> None:
        """Count what is waiting now."""
        async with self._one_flush:
            while self._waiting:
                tenant, increments = self._waiting.popitem()
                try:
                    await self._trends.count(tenant, self._buckets(tenant, increments))
                except StorageError:
                    # As of popularity: a count is not worth counting some twice.
                    log.warning("trends not counted", tenant=tenant, events=len(increments))
                except Exception:
                    log.exception("trends not counted", tenant=tenant, events=len(increments))

    def _buckets(self, tenant: str, increments: Sequence[Increment]) -> dict[tuple[Ring, int], dict[str, float]]:
        now_ms = time_ns() // 1_000_000
        known = [(item, weight, min(ms, now_ms)) for item, weight, ms in increments if weight > 0 and self._knows(item)]
        latest_ms = max([self._latest_ms.get(tenant, 0), *(ms for _, _, ms in known)])
        self._latest_ms[tenant] = latest_ms
        buckets: dict[tuple[Ring, int], dict[str, float]] = {}
        for ring in RINGS:
            oldest = ring.bucket(latest_ms) - ring.slots + 1
            for item, weight, ms in known:
                bucket = ring.bucket(ms)
                if bucket >= oldest:
                    of_bucket = buckets.setdefault((ring, bucket), {})
                    of_bucket[item] = of_bucket.get(item, 0.0) + weight
        return buckets

    async def _flush_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._delay_s)
            await asyncio.shield(self.flush())  # what has been taken out is counted, also if the service stops
