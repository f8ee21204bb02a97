"""Keeps a worker's popularity in step with the store's, where all workers count."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Protocol

from app.catalogue.popularity import LivePopularity
from app.recommend.refreshing import keep_fresh
from app.state.store import StateStore


class OpeningStore(StateStore, Protocol):
    """A store that checks its layout before it is used."""

    async def open(self) -> None: ...


class PopularityFollower:
    """Reads what everyone counted, again and again. Items that nobody counted keep what the bundle says of them."""

    def __init__(
        self,
        store: OpeningStore,
        popularity: LivePopularity,
        tenant: str,
        others_counted: Callable[[], Awaitable[bool]],
    ) -> None:
        """`others_counted` says whether another worker has counted since it was asked last."""
        self._store = store
        self._popularity = popularity
        self._tenant = tenant
        self._others_counted = others_counted
        self._opened = False
        self._stale = False  # others have counted, and the table is not read, or not to its end

    async def refresh(self) -> None:
        """Read the store's counts; the first time, check its layout.

        Raises:
            StorageError: the store does not answer, or is laid out for another version.
        """
        if not self._opened:
            await self._store.open()
            self._opened = True
        # What this worker counts it knows; the table, of every item, is read again only when others have counted.
        self._stale = await self._others_counted() or self._stale
        if not self._stale:
            return
        began_s = monotonic()
        async for some in self._store.popularity_parts(self._tenant, self._popularity.half_lives_s):
            self._popularity.refresh(some, began_s)
        self._stale = False

    async def follow(self, period_s: float) -> None:
        """Refresh until cancelled; a store that is away is asked again."""
        await keep_fresh("popularity", self.refresh, period_s)
