"""The read path, top to bottom: load -> fold the tail -> interest -> score -> cut -> respond."""

from __future__ import annotations

import asyncio
import secrets
from typing import Literal

import numpy as np
import structlog

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import StorageError
from app.fold import Commits, Users, UserState
from app.fold.tensors import EventTensors
from app.recommend.answer import Query, Recommendations, RecommendedItem, moment
from app.recommend.score import Scorer
from app.runtime.session import Array, Runtime
from app.state.store import StateStore
from app.telemetry import Metrics, Stages

log = structlog.get_logger()


class Recommender:
    """Answers questions for one model.

    Where the model's data says that people do not come back to what they had (`seen_items: exclude`), the items of the user's
    stored sequence are left out; what has fallen out of the sequence may be recommended again.
    """

    def __init__(
        self,
        runtime: Runtime,
        catalogue: Catalogue,
        popularity: LivePopularity,
        scorer: Scorer,
        tensors: EventTensors,
        store: StateStore,
        users: Users,
        commits: Commits,
        metrics: Metrics,
        max_sequence: int,
    ) -> None:
        self._runtime = runtime
        self._model_id = runtime.bundle.manifest.model_id
        self._excludes_seen = runtime.bundle.manifest.seen_items == "exclude"
        self._catalogue = catalogue
        self._popularity = popularity
        self._scorer = scorer
        self._tensors = tensors
        self._store = store
        self._users = users
        self._commits = commits
        self._metrics = metrics
        self._max_sequence = max_sequence

    async def recommend(self, query: Query, stages: Stages) -> Recommendations:
        """The k best items for the user, from the model if the user has events and the store answers, else from popularity."""
        try:
            user, seen = await self._load(query, stages)
        except StorageError as error:
            log.warning("storage is away, answering from popularity", error=error.detail)
            return self._fallback(query, "storage_unavailable", stages)
        if user is None:
            return self._fallback(query, "unknown_user", stages)
        if user.folded:
            self._commits.submit(query.tenant, query.user_id, user)
        interest = self._interest(user, query)
        stages.mark("interest")
        rows, scores = self._scorer.top(interest, query.k, query.as_of_ms, seen)
        stages.mark("score")
        return self._respond(query, rows, scores, user)

    async def _load(self, query: Query, stages: Stages) -> tuple[UserState | None, list[int]]:
        """The user's state now, and the rows that must not come back."""
        current = self._users.current(query.tenant, [query.user_id], by="read", stages=stages)
        if not self._excludes_seen:
            return (await current)[0], []
        (user,), seen = await asyncio.gather(current, self._seen(query))
        return user, seen

    async def _seen(self, query: Query) -> list[int]:
        events = await self._store.recent(query.tenant, query.user_id, self._max_sequence)
        rows = {self._catalogue.row(event.item_id) for event in events if event.item_id is not None}
        return sorted(row for row in rows if row is not None)

    def _interest(self, user: UserState, query: Query) -> dict[str, Array]:
        context = {
            "as_of": np.asarray([query.as_of_ms], np.int64),
            "platform": np.asarray([self._tensors.platform(query.platform)], np.int64),
        }
        return self._runtime.interest(user.tensors | context)

    def _fallback(self, query: Query, reason: Literal["unknown_user", "storage_unavailable"], stages: Stages) -> Recommendations:
        self._metrics.fallbacks.labels(reason).inc()
        rows, counts = self._popularity.top(query.k, query.as_of_ms)
        stages.mark("fallback")
        return self._respond(query, rows, counts, None, reason)

    def _respond(
        self,
        query: Query,
        rows: list[int],
        scores: list[float],
        user: UserState | None,
        reason: Literal["unknown_user", "storage_unavailable"] | None = None,
    ) -> Recommendations:
        ids, titles = self._catalogue.ids, self._catalogue.titles
        return Recommendations(
            recommendation_id=secrets.token_hex(12),
            user_id=query.user_id,
            model_id=self._model_id,
            source="model" if user is not None else "fallback",
            reason=reason,
            degraded=reason == "storage_unavailable",
            applied_events=user.header.applied if user is not None else 0,
            last_event_time=moment(user.meta.last_time_ms) if user is not None else None,
            as_of=moment(query.as_of_ms),
            items=[RecommendedItem(ids[row], score, titles[row]) for row, score in zip(rows, scores, strict=True)],
        )
