"""What fresh events add to trends, on its way to the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import time_ns

from app.ingest.append import Increment
from app.ingest.gathering import Gathering
from app.state.trends import RINGS, Ring, Trends


class TrendCounter(Gathering[Increment]):
    """Adds up what each item has in each bucket of time, where all workers count.

    An event counts at its own time, one from the future now. Imports do not come here, and what is older than the buckets that
    are kept, seen from the latest event, counts nothing: history that arrives today is no trend of today.
    """

    def __init__(self, trends: Trends, delay_s: float, knows: Callable[[str], bool]) -> None:
        super().__init__("trends", delay_s, knows)
        self._trends = trends
        self._latest_ms: dict[str, int] = {}

    async def _count(self, tenant: str, increments: Sequence[Increment]) -> None:
        await self._trends.count(tenant, self._buckets(tenant, increments))

    def _buckets(self, tenant: str, increments: Sequence[Increment]) -> dict[tuple[Ring, int], Mapping[str, float]]:
        now_ms = time_ns() // 1_000_000
        known = [(item, weight, min(ms, now_ms)) for item, weight, ms in increments if weight > 0]
        latest_ms = max([self._latest_ms.get(tenant, 0), *(ms for _, _, ms in known)])
        self._latest_ms[tenant] = latest_ms
        buckets: dict[tuple[Ring, int], Mapping[str, float]] = {}
        for ring in RINGS:
            width_ms, oldest = ring.width_ms, ring.bucket(latest_ms) - ring.slots + 1
            of_ring: defaultdict[int, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
            for item, weight, ms in known:
                if (bucket := ms // width_ms) >= oldest:
                    of_ring[bucket][item] += weight
            buckets |= {(ring, bucket): weights for bucket, weights in of_ring.items()}
        return buckets
