"""The background fold: runs ahead of the reads, so that they find current states. Nothing is wrong without it, only slower."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic

import structlog

from app.errors import DamagedError, OverloadedError, StorageError
from app.fold import Fold, StateCache, Unfolded, Users
from app.state.events import StoredEvent
from app.telemetry import Metrics

_BACK_OFF_S = 1.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Dirty:
    """A user with events that are not folded yet.

    Attributes:
        events: those that this worker stored, [start, start + len(events)) of the epoch; None if it does not know all of them,
            because another worker stores events of this user too, or not the attributes: then the store is asked.
        since_s: when the first of them was acknowledged, on time.monotonic().
        generation: of the store that has the events.
        waiting: events that this worker stored since the last fold, known still or not.
    """

    epoch: bytes
    attributes: Mapping[str, str]
    start: int
    events: list[StoredEvent] | None
    since_s: float
    generation: int
    waiting: int


class Advance:
    """Folds users that got events, many in one call of the model.

    What this worker has just stored it need not read again: while no other worker stores events of the same user, a fold takes
    the events as they came and the state from the worker's cache, without a word to the store.
    """

    def __init__(
        self,
        users: Users,
        fold: Fold,
        cache: StateCache,
        metrics: Metrics,
        *,
        delay_s: float,
        batch_users: int,
        batch_events: int,
        most_events: int,
    ) -> None:
        """`delay_s`: how long events are gathered. `batch_*` bound one call, `most_events` what may wait for the fold."""
        self._users = users
        self._fold = fold
        self._cache = cache
        self._metrics = metrics
        self._delay_s = delay_s
        self._batch_users = batch_users
        self._batch_events = batch_events
        self._most_events = most_events
        self._dirty: dict[tuple[str, str], _Dirty] = {}  # ordered: who waits longest goes first
        self._waiting = 0  # events of all in `_dirty`
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self, timeout_s: float) -> None:
        """Return when the fold is not too far behind: acknowledging faster than it can follow would only make the queue longer.

        Raises OverloadedError after `timeout_s`.
        """
        if self._room.is_set():
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._room.wait()
        except TimeoutError:
            raise OverloadedError(f"{self._waiting} events wait to be folded; send more when there are fewer") from None

    def mark(
        self,
        tenant: str,
        user_id: str,
        epoch: bytes,
        attributes: Mapping[str, str] | None,
        total: int,
        events: Sequence[StoredEvent],
        generation: int,
    ) -> None:
        """The last events of this user, of whom there were `total` in that generation of the store, are these; attributes: None
        where they cannot be read, and no state can begin with them."""
        start = total - len(events)
        dirty = self._dirty.get((tenant, user_id))
        if not self._dirty:
            self._metrics.unfolded_users.set(1)  # how many exactly is told with every fold
        if dirty is None:
            known = None if attributes is None else list(events)
            self._dirty[tenant, user_id] = _Dirty(epoch, attributes or {}, start, known, monotonic(), generation, len(events))
        else:
            dirty.waiting += len(events)
            if dirty.events is not None:
                if (dirty.epoch, dirty.generation) == (epoch, generation) and dirty.start + len(dirty.events) == start:
                    dirty.events.extend(events)
                else:
                    dirty.events = None
        self._wait_for(len(events))
        self._wake.set()

    def _wait_for(self, events: int) -> None:
        self._waiting += events
        if self._waiting >= self._most_events:
            self._room.clear()

    async def run(self) -> None:
        """Fold until cancelled. Errors are logged and never end it. It may be begun again, and goes on where it was cancelled."""
        if self._dirty:
            self._wake.set()
        try:
            while True:
                await self._wake.wait()
                if len(self._dirty) < self._batch_users:  # a full batch need not wait for more
                    await asyncio.sleep(self._delay_s)
                self._wake.clear()
                # Who is dirty now; who becomes so meanwhile is gathered anew, so that calls of the model stay few and full.
                due = len(self._dirty)
                while due > 0 and self._dirty:
                    due -= await self._fold_some()
                    self._metrics.unfolded_users.set(len(self._dirty))
                    await asyncio.sleep(0)  # requests go in between
                if self._dirty:
                    self._wake.set()
        finally:
            self._room.set()  # who waits has nobody to wait for: the model that serves from now on folds by itself

    async def _fold_some(self) -> int:
        """Fold those who wait longest; returns how many."""
        tenant = next(iter(self._dirty))[0]
        batch: list[tuple[str, _Dirty]] = []
        events = 0
        for of, user_id in islice(self._dirty, self._batch_users):
            dirty = self._dirty[of, user_id]
            events += len(dirty.events or ())
            if of == tenant and (not batch or events <= self._batch_events):
                batch.append((user_id, dirty))
        for user_id, dirty in batch:
            del self._dirty[tenant, user_id]
            self._waiting -= dirty.waiting
        if self._waiting < self._most_events:
            self._room.set()
        try:
            unknown = self._fold_known(tenant, batch)
            await asyncio.gather(*(self._users.current(tenant, user_id) for user_id in unknown))
        except DamagedError as error:  # one of them; there is nothing to wait for
            log.warning("a user cannot be folded", error=error.detail)
            return len(batch)
        except StorageError as error:
            log.warning("storage is away, the background fold waits", error=error.detail)
            for user_id, dirty in batch:
                dirty.events = None  # the store is asked again, whatever has been folded
                if self._dirty.setdefault((tenant, user_id), dirty) is dirty:
                    self._wait_for(dirty.waiting)
            await asyncio.sleep(_BACK_OFF_S)
            return len(batch)
        except Exception:
            # One bad user must not stop the others: its reads will show the error, and the fold goes on.
            log.exception("background fold failed", users=[user_id for user_id, _ in batch[:10]])
            return len(batch)
        now_s = monotonic()
        for _, dirty in batch:
            self._metrics.fold_lag_seconds.observe(now_s - dirty.since_s)
        return len(batch)

    def _fold_known(self, tenant: str, batch: Sequence[tuple[str, _Dirty]]) -> list[str]:
        """Fold those of whom this worker knows state and events; returns the others."""
        unknown: list[str] = []
        users: list[str] = []
        work: list[Unfolded] = []
        stored: list[int] = []
        for user_id, dirty in batch:
            if dirty.events is None or dirty.generation != self._users.generation:
                unknown.append(user_id)
                continue
            if len(dirty.events) > self._batch_events:
                unknown.append(user_id)  # so many would hold up the event loop: a thread folds a long tail
                continue
            state = self._cache.get(tenant, user_id)
            if state is not None and (state.header.epoch, state.generation) == (dirty.epoch, dirty.generation):
                behind = dirty.start + len(dirty.events) - state.header.applied
                if behind <= 0:
                    continue  # a read was faster
                if behind <= len(dirty.events):
                    users.append(user_id)
                    tail = dirty.events[len(dirty.events) - behind :]
                    work.append(Unfolded(dirty.epoch, dirty.attributes, state.blob, tail, state.header.applied))
                    stored.append(state.stored)
                    continue
            elif dirty.start == 0:
                users.append(user_id)
                work.append(Unfolded(dirty.epoch, dirty.attributes, None, dirty.events, 0))
                stored.append(0)
                continue
            unknown.append(user_id)
        if work:
            for user_id, (header, blob), before in zip(users, self._fold(work), stored, strict=True):
                self._users.keep(tenant, user_id, header, blob, before, self._users.generation)
            self._metrics.folded.labels("background").inc(sum(len(one.tail) for one in work))
        return unknown
