"""Users as they are now: one round trip to the store, then the fold of whatever is not folded yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from app.fold.fold import Fold, UserState
from app.state.store import Loaded, StateStore
from app.telemetry import Metrics, Stages

# Under this model id nobody ever stores a state, so that loading with it gives the whole sequence.
_NO_MODEL = "-"

# A fold of more events than this would hold up every other request of the event loop; it goes to a thread.
_INLINE_EVENTS = 64

log = structlog.get_logger()


class Users:
    """Loads users and folds their tails; what comes back reflects every event acknowledged before the call."""

    def __init__(self, store: StateStore, fold: Fold, model_id: str, metrics: Metrics) -> None:
        self._store = store
        self._fold = fold
        self._model_id = model_id
        self._metrics = metrics

    async def current(
        self, tenant: str, user_ids: Sequence[str], *, by: str, stages: Stages | None = None
    ) -> list[UserState | None]:
        """The states of these users with every stored event applied; None for a user without events.

        A stored state that cannot be continued (damaged, another format) is ignored and the user folded from the sequence.

        Args:
            by: who asks, for the metrics: "read" or "background".
            stages: books `load` and `fold`.

        Raises:
            StorageError: the store did not answer.
        """
        loaded = await self._store.load(tenant, self._model_id, user_ids)
        unusable = [row for row, user in enumerate(loaded) if not self._fold.continues(user)]
        if unusable:
            log.warning("stored state cannot be continued, folding the sequence again", users=len(unusable))
            self._metrics.rebuilt.labels("damaged").inc(len(unusable))
            whole = await self._store.load(tenant, _NO_MODEL, [user_ids[row] for row in unusable])
            for row, user in zip(unusable, whole, strict=True):
                loaded[row] = replace(user, state=None)
        if stages is not None:
            stages.mark("load")
        states = await self._folded(loaded, by)
        if stages is not None:
            stages.mark("fold")
        return states

    async def _folded(self, loaded: Sequence[Loaded], by: str) -> list[UserState | None]:
        with_events = [user for user in loaded if user.meta is not None and user.meta.appended > 0]
        if not with_events:
            return [None] * len(loaded)
        events = sum(len(user.tail) for user in with_events)
        if events <= _INLINE_EVENTS:
            states = self._fold(with_events)
        else:
            states = await asyncio.to_thread(self._fold, with_events)
        if events:
            self._metrics.folded.labels(by).inc(events)
        found = iter(states)
        return [next(found) if user.meta is not None and user.meta.appended > 0 else None for user in loaded]
