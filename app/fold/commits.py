"""State commits: a state is a cache, and writing its kilobytes for every small event would cost more than it saves.

A state goes to Redis once it is `every` events ahead of what is there. Until then whoever does not hold it folds a tail of fewer
events than that, in one call of the model; nothing is lost with it but that little work.

What is stored lasts for a while only, which begins anew with each commit and, where little of it is left, with a load. A state
that this worker holds is not loaded any more: now and then it is committed once more, so that it is there for others, and after
this worker. Of a user with a long history no more than the end could be folded again.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from time import monotonic

import structlog

from app.errors import StorageError
from app.fold.cache import CachedState, StateCache
from app.state.codec import deflate
from app.state.redis import DEFAULT_STATE_TTL_S
from app.state.store import StateStore
from app.telemetry import Metrics

_MOST_PENDING = 2_000  # beyond it new submissions are dropped: they come again with the user's next events
_BATCH = 32
_DEFLATED = 4  # in one go: half a millisecond
_RENEWED = 1 / 4  # of the time that a stored state is kept: a load leaves it at least half of that
_TRY_AGAIN_S = 60.0  # until the next renewals after a commit that failed: there is time

log = structlog.get_logger()


class Commits:
    """Gathers states for a moment, keeps the newest of each user, and stores them behind the requests' backs."""

    def __init__(
        self,
        store: StateStore,
        cache: StateCache,
        model_id: str,
        metrics: Metrics,
        *,
        every: int,
        delay_s: float,
        ttl_s: float = DEFAULT_STATE_TTL_S,
    ) -> None:
        """`ttl_s` is how long the store keeps a state."""
        self._store = store
        self._cache = cache
        self._model_id = model_id
        self._metrics = metrics
        self._every = every
        self._delay_s = delay_s
        self._renew_s = ttl_s * _RENEWED
        self._no_renewal_until_s = 0.0  # on time.monotonic()
        self._pending: dict[tuple[str, str], CachedState] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._one_flush = asyncio.Lock()

    def submit(self, tenant: str, user_id: str, state: CachedState) -> None:
        """Have a state stored soon if that is worth it; never blocks, never raises."""
        if state.header.applied - state.stored >= self._every:
            self._add(tenant, user_id, state)
        else:
            self.renew(tenant, user_id, state)

    def renew(self, tenant: str, user_id: str, state: CachedState) -> None:
        """Have what is stored kept for longer, if it was long ago that it was stored; never blocks, never raises."""
        if state.stored and monotonic() > max(state.renewed_s + self._renew_s, self._no_renewal_until_s):
            self._add(tenant, user_id, state)

    def _add(self, tenant: str, user_id: str, state: CachedState) -> None:
        key = (tenant, user_id)
        if key not in self._pending and len(self._pending) >= _MOST_PENDING:
            self._metrics.commits.labels("dropped").inc()
            return
        self._pending[key] = state
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())

    async def close(self) -> None:
        """Store what is still waiting, then return; a store that is away is logged and left alone."""
        flushing, self._flushing = self._flushing, None  # it knows where it is cancelled, which is here: a cycle
        if flushing is not None:
            flushing.cancel()
            await asyncio.gather(flushing, return_exceptions=True)
        await self.flush()

    async def _flush_later(self) -> None:
        while self._pending:
            await asyncio.sleep(self._delay_s)
            await asyncio.shield(self.flush())  # what has been taken out is stored, also if the service stops

    async def flush(self) -> None:
        """Store what waits now."""
        async with self._one_flush:
            await self._flush()

    async def _flush(self) -> None:
        while self._pending:
            tenant = next(iter(self._pending))[0]
            users = list(islice((user for of, user in self._pending if of == tenant), _BATCH))
            generation = self._store.generation
            states = [self._pending.pop((tenant, user)) for user in users]
            # A state of events that another server had is of no use to this one.
            fresh = [(user, state) for user, state in zip(users, states, strict=True) if state.generation == generation]
            blobs = []
            for user, state in fresh:
                blobs.append((user, deflate(state.blob)))
                if len(blobs) % _DEFLATED == 0:
                    await asyncio.sleep(0)  # requests go in between
            try:
                results = await self._store.commit_many(tenant, self._model_id, blobs, generation)
            except StorageError as error:
                # Nothing is lost: the events are stored, and the next read or fold tries again.
                self._no_renewal_until_s = monotonic() + _TRY_AGAIN_S
                self._metrics.commits.labels("failed").inc(len(blobs))
                log.warning("states not committed", users=len(blobs), error=error.detail)
                return
            except Exception:
                self._no_renewal_until_s = monotonic() + _TRY_AGAIN_S
                self._metrics.commits.labels("failed").inc(len(blobs))
                log.exception("states not committed", users=users[:10])
                return
            for (user, state), result in zip(fresh, results, strict=True):
                self._metrics.commits.labels(result).inc()
                if result == "refused":
                    self._cache.drop(tenant, user)
                else:
                    self._note(tenant, user, state)

    def _note(self, tenant: str, user_id: str, stored: CachedState) -> None:
        """Remember with the cached state, which may have gone on, that this one is stored now."""
        held = self._cache.get(tenant, user_id)
        if held is not None and held.header.epoch == stored.header.epoch:
            there = max(held.stored, stored.header.applied)
            self._cache.put(tenant, user_id, CachedState(held.header, held.blob, there, held.generation))
