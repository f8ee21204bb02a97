"""The read path, top to bottom: load and fold -> interest and score -> respond."""

from __future__ import annotations

import random
import secrets
from typing import Literal

import structlog

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import StorageError
from app.fold import Users, UserState
from app.fold.tensors import EventTensors
from app.recommend.answer import Query, Recommendations, RecommendedItem, moment
from app.recommend.score import Question, Scorer
from app.recommend.seen import SeenItems
from app.runtime.bundle import Bundle
from app.state.store import StateStore
from app.telemetry import Metrics, Stages

# Ids of lists must differ, not be secret.
_random = random.Random(secrets.token_bytes(32))

log = structlog.get_logger()


class Recommender:
    """Answers questions for one model.

    Where the model's data says that people do not come back to what they had (`seen_items: exclude`), the items of the user's
    stored sequence are left out.
    """

    def __init__(
        self,
        bundle: Bundle,
        catalogue: Catalogue,
        popularity: LivePopularity,
        scorer: Scorer,
        tensors: EventTensors,
        store: StateStore,
        users: Users,
        metrics: Metrics,
    ) -> None:
        self._model_id = bundle.manifest.model_id
        self._seen = SeenItems(store, catalogue) if bundle.manifest.seen_items == "exclude" else None
        self._catalogue = catalogue
        self._popularity = popularity
        self._scorer = scorer
        self._tensors = tensors
        self._users = users
        self._metrics = metrics

    async def recommend(self, query: Query, stages: Stages) -> Recommendations:
        """The k best items for the user, from the model if the user has events and the store answers, else from popularity.

        Raises OverloadedError if too many requests are waiting.
        """
        try:
            user = await self._users.current(query.tenant, query.user_id)
            seen = await self._seen.rows(query.tenant, user) if self._seen is not None and user is not None else []
        except StorageError as error:
            log.warning("storage is away, answering from popularity", error=error.detail)
            return self._fallback(query, "storage_unavailable", stages)
        stages.mark("load")
        if user is None:
            return self._fallback(query, "unknown_user", stages)
        question = Question(user.blob, query.k, query.as_of_ms, self._tensors.platform(query.platform), seen)
        ranked = await self._scorer.top(question)
        stages.book(interest=ranked.interest_s, score=ranked.score_s, rest="queue")
        return self._respond(query, ranked.rows, ranked.scores, user)

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
            recommendation_id=f"{_random.getrandbits(96):024x}",
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
