"""The read path, top to bottom: load and fold -> interest and score -> respond. Requests that wait together go together."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import msgspec
import numpy as np
import structlog

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import StorageError
from app.fold import Asked, Fold, LongTail, Unfolded, Users, UserState
from app.fold.tensors import EventTensors
from app.recommend.answer import Query, Ranking, Recommendations, RecommendedItem, moment
from app.recommend.score import Question, Ranked, Scorer
from app.recommend.seen import SeenItems
from app.runtime.batcher import PACE_S, Batcher
from app.runtime.bundle import Bundle
from app.state.codec import new_epoch
from app.state.events import StoredEvent
from app.state.store import StateStore
from app.telemetry import Metrics, Stages

# Ids of lists must differ, not be secret.
_random = random.Random(secrets.token_bytes(32))

log = structlog.get_logger()


_BATCH = 32
_RUNNING = 2  # one batch loads while another is ranked
_MOST_WAITING = 2_048
_INLINE_EVENTS = 128


@dataclass(frozen=True, slots=True)
class _Reflects:
    """What a list of the model reflects: so many events, the latest of them at `last_time_ms`."""

    events: int
    last_time_ms: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """A user and their list; `load_s` is what loading and folding took, of all users of the batch."""

    user: UserState
    ranked: Ranked
    load_s: float


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
        fold: Fold,
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
        self._fold = fold
        self._platform = tensors.platform
        self._users = users
        self._metrics = metrics
        self._batcher = Batcher(self._answer, most=_BATCH, running=_RUNNING, waiting=_MOST_WAITING, pace_s=PACE_S)

    async def recommend(self, query: Query, stages: Stages) -> Recommendations:
        """The k best items for the user, from the model if the user has events and the store answers, else from popularity.

        Raises OverloadedError if too many requests are waiting.
        """
        try:
            answer = await self._batcher((query, Asked(query.tenant, query.user_id)))
            while isinstance(answer, LongTail):
                answer = await self._batcher((query, await self._users.shorten(answer)))
        except StorageError as error:
            log.warning("storage is away, answering from popularity", error=error.detail)
            return self.degraded(query, stages)
        if answer is None:
            stages.mark("load")
            return self._fallback(query, "unknown_user", stages)
        ranked = answer.ranked
        stages.book("queue", load=answer.load_s, interest=ranked.interest_s, score=ranked.score_s)
        reflects = _Reflects(answer.user.header.applied, answer.user.meta.last_time_ms)
        return self._respond(query, ranked.rows, ranked.scores, reflects)

    async def recommend_from(self, events: Sequence[StoredEvent], query: Query, stages: Stages) -> Recommendations:
        """The k best items for somebody who did just these events, in this order; nothing is stored, and nothing is looked up."""
        if not events:
            return self._fallback(query, "unknown_user", stages)
        began = perf_counter()
        told = Unfolded(new_epoch(), {}, None, events, 0)
        # Longer ones would hold up every other request of the event loop.
        folded = await asyncio.to_thread(self._fold, [told]) if len(events) > _INLINE_EVENTS else self._fold([told])
        load_s = perf_counter() - began
        had = [] if self._seen is None else [row for event in events if (row := self._row(event.item_id)) is not None]
        question = Question(
            folded[0][1], query.k, query.as_of_ms, self._platform(query.platform), [*self._excluded(query), *had], query.among
        )
        (ranked,) = await self._scorer.rank([question])
        stages.book("queue", load=load_s, interest=ranked.interest_s, score=ranked.score_s)
        reflects = _Reflects(len(events), max(event.time_ms for event in events))
        return self._respond(query, ranked.rows, ranked.scores, reflects)

    async def rank(self, query: Query, item_ids: Sequence[str], stages: Stages) -> Ranking:
        """Some items in the order in which the user would want them, also what they had already. Raises OverloadedError."""
        query, unknown = self._among(query, item_ids)
        return _ranking(await self.recommend(query, stages), unknown)

    def rank_degraded(self, query: Query, item_ids: Sequence[str], stages: Stages) -> Ranking:
        """The same where storage is away, without trying it."""
        query, unknown = self._among(query, item_ids)
        return _ranking(self.degraded(query, stages), unknown)

    def _among(self, query: Query, item_ids: Sequence[str]) -> tuple[Query, list[str]]:
        """The question for these items, each of them once, and which of them cannot be in a list."""
        can = np.isfinite(self._catalogue.bias_at(query.as_of_ms))
        rows = {item_id: row if (row := self._row(item_id)) is not None and can[row] else None for item_id in item_ids}
        known = tuple(row for row in rows.values() if row is not None)
        return replace(query, k=max(1, len(known)), among=known), [item_id for item_id, row in rows.items() if row is None]

    async def _answer(self, asked: Sequence[tuple[Query, Asked]]) -> list[_Answer | LongTail | None]:
        """Load, fold and rank for all of them; None for a user without events."""
        began = perf_counter()
        queries = [query for query, _ in asked]
        users = await self._users.batch([user for _, user in asked])
        answers: list[_Answer | LongTail | None] = [user if isinstance(user, LongTail) else None for user in users]
        known = [(place, user) for place, user in enumerate(users) if isinstance(user, UserState)]
        if not known:
            return answers
        forbidden: list[Sequence[int]] = [self._excluded(queries[place]) for place, _ in known]
        if self._seen is not None:
            seen = await asyncio.gather(*(self._had(queries[place], user) for place, user in known))
            forbidden = [[*excluded, *rows] for excluded, rows in zip(forbidden, seen, strict=True)]
        load_s = perf_counter() - began
        questions = [
            Question(user.blob, query.k, query.as_of_ms, self._platform(query.platform), rows, query.among)
            for (query, user), rows in zip(((queries[place], user) for place, user in known), forbidden, strict=True)
        ]
        for (place, user), ranked in zip(known, await self._scorer.rank(questions), strict=True):
            answers[place] = _Answer(user, ranked, load_s)
        return answers

    def _excluded(self, query: Query) -> Sequence[int]:
        if not query.exclude:
            return ()
        return [row for item_id in query.exclude if (row := self._row(item_id)) is not None]

    def _row(self, item_id: str | None) -> int | None:
        return None if item_id is None else self._catalogue.row(item_id)

    async def _had(self, query: Query, user: UserState) -> Sequence[int]:
        return () if self._seen is None or query.among is not None else await self._seen.rows(query.tenant, user)

    def degraded(self, query: Query, stages: Stages) -> Recommendations:
        """The answer where storage is away, without trying it."""
        return self._fallback(query, "storage_unavailable", stages)

    def _fallback(self, query: Query, reason: Literal["unknown_user", "storage_unavailable"], stages: Stages) -> Recommendations:
        self._metrics.fallbacks.labels(reason).inc()
        rows, counts = self._popularity.top(query.k, query.as_of_ms, query.among, self._excluded(query))
        stages.mark("fallback")
        return self._respond(query, rows, counts, None, reason)

    def _respond(
        self,
        query: Query,
        rows: list[int],
        scores: list[float],
        reflects: _Reflects | None,
        reason: Literal["unknown_user", "storage_unavailable"] | None = None,
    ) -> Recommendations:
        ids, titles = self._catalogue.ids, self._catalogue.titles
        return Recommendations(
            recommendation_id=f"{_random.getrandbits(96):024x}",
            user_id=query.user_id or None,
            model_id=self._model_id,
            source="model" if reflects is not None else "fallback",
            reason=reason,
            degraded=reason == "storage_unavailable",
            applied_events=reflects.events if reflects is not None else 0,
            last_event_time=moment(reflects.last_time_ms) if reflects is not None else None,
            as_of=moment(query.as_of_ms),
            items=[RecommendedItem(ids[row], score, titles[row]) for row, score in zip(rows, scores, strict=True)],
        )


def _ranking(answer: Recommendations, unknown: list[str]) -> Ranking:
    return Ranking(**msgspec.structs.asdict(answer), unknown_items=unknown)
