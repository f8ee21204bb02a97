"""Popularity counts on their way to the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.ingest.append import Increment
from app.ingest.gathering import Gathering
from app.state.store import Decayed, StateStore


class PopularityCounter(Gathering[Increment]):
    """Adds increments to the store's counts, where all workers count."""

    def __init__(
        self,
        store: StateStore,
        half_lives_s: Sequence[float],
        delay_s: float,
        knows: Callable[[str], bool] | None = None,
        begins: Callable[[str], Decayed | None] = lambda _: None,
    ) -> None:
        """`begins` says what an item had before anything was counted in the store."""
        super().__init__("popularity", delay_s, knows)
        self._store = store
        self._half_lives_s = tuple(half_lives_s)
        self._begins = begins
        self._total: dict[str, int] = {}  # events that were ever counted, as this worker last heard
        self._others: set[str] = set()  # tenants for whom somebody else has counted since then

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

    async def _count(self, tenant: str, increments: Sequence[Increment]) -> None:
        # Sent along each time: only the store knows whether it has an item, and it may have been emptied a moment ago.
        begun = {item: counts for item in {item for item, _, _ in increments} if (counts := self._begins(item)) is not None}
        total = await self._store.count_popularity(tenant, self._half_lives_s, increments, begun)
        if total - len(increments) != self._total.get(tenant):
            self._others.add(tenant)
        self._total[tenant] = total
