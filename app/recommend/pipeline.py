"""The read path, top to bottom: load and fold -> interest and score -> respond. Requests that wait together go together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import structlog

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import DamagedError, InvalidRequestError, StorageError
from app.fold import Asked, Fold, LongTail, Unfolded, Users, UserState
from app.fold.tensors import EventTensors
from app.recommend.answer import Explanation, Query, Ranking, Recommendations
from app.recommend.cold import ColdUsers
from app.recommend.contexts import ContextPopularity
from app.recommend.debug import Out
from app.recommend.explain import Explainer
from app.recommend.fallback import Fallback
from app.recommend.listing import Listed, Lister, Plan
from app.recommend.plan import Planner
from app.recommend.respond import Reflects, Responder, pinned_in
from app.recommend.ruled import RuleBook
from app.recommend.ruleset import HadRule
from app.recommend.score import Scorer
from app.recommend.seen import ALL, NO_MODEL, SeenItems
from app.recommend.several import without_repeats
from app.runtime.batcher import PACE_S, Batcher, Patience
from app.runtime.bundle import Bundle
from app.state.codec import new_epoch
from app.state.damage import OneOfManyError
from app.state.events import StoredEvent
from app.state.shown import Showing
from app.state.store import StateStore
from app.telemetry import Metrics, Stages

log = structlog.get_logger()


_BATCH = 32
_RUNNING = 2  # one batch loads while another is ranked
_MOST_WAITING = 2_048
_INLINE_EVENTS = 128


@dataclass(frozen=True, slots=True)
class _Answer:
    """A user and their list; `load_s` is what loading and folding took, of all users of the batch. `out` are the items that were
    left out, by what for."""

    user: UserState
    listed: Listed
    load_s: float
    out: Out


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
        shown: Callable[[str], Awaitable[Sequence[Showing]]],
        explainer: Explainer,
        contexts: ContextPopularity,
        metrics: Metrics,
        patience: Patience,
    ) -> None:
        """`shown` says what a user was shown of late; `patience` is how long a question waits before it is answered from
        popularity."""
        self._seen = SeenItems(store, catalogue)
        self._had: Sequence[HadRule] = ALL if bundle.manifest.seen_items == "exclude" else ()
        self._catalogue = catalogue
        self._lister = Lister(scorer, catalogue, popularity)
        types = [event_type.name for event_type in bundle.manifest.event_types]
        rules = RuleBook(catalogue, popularity, scorer.spread, types)
        self._planner = Planner(catalogue, rules, tensors, ColdUsers(bundle.manifest.cold, contexts))
        self._respond = Responder(bundle.manifest.model_id, catalogue, explainer, metrics)
        self._fallback = Fallback(self._planner, self._respond, self._lister, popularity, contexts, metrics)
        self._store = store
        self._fold = fold
        self._users = users
        self._shown = shown
        self._explainer = explainer
        self._batcher = Batcher(
            self._answer, most=_BATCH, running=_RUNNING, waiting=_MOST_WAITING, pace_s=PACE_S, patience=patience
        )

    async def recommend(self, query: Query, stages: Stages) -> Recommendations:
        """The k best items for the user, from the model if the user has events and the store answers soon, and is not held out of
        an experiment, else from popularity.

        Raises OverloadedError if too many requests are waiting.
        """
        if query.rules.rotation:
            (query,) = await self._with_shown([query])
        try:
            if query.held_out:
                return await (await self._held_out([query], stages))(query)
            answer = await self._batcher((query, Asked(query.tenant, query.user_id)))
            while isinstance(answer, LongTail):
                answer = await self._batcher((query, await self._users.shorten(answer)))
            if answer is None:
                attributes = await self._attributes([query])
                stages.mark("load")
                return self._fallback(query, "unknown_user", stages, attributes)
            return await self._answered(query, answer, stages)
        except StorageError as error:
            log.warning("no answer from storage, answering from popularity", error=error.detail)
            return self.degraded(query, stages, error)

    async def recommend_several(self, queries: Sequence[Query], stages: Stages) -> list[Recommendations]:
        """A list for each question, all of the same user, who is loaded once; no list has an item of one before it.

        Raises like `recommend`.
        """
        queries = await self._with_shown(queries)
        try:
            if queries[0].held_out:
                return await without_repeats(queries, await self._held_out(queries, stages))
            user = await self._users.current(queries[0].tenant, queries[0].user_id)
            attributes = await self._attributes(queries) if user is None else {}
            stages.mark("load")
            if user is None:
                return await without_repeats(queries, self._popular_for(stages, attributes))

            async def make(query: Query) -> Recommendations:
                # Each in its turn among the requests of others, however many lists somebody wants.
                answer = await self._batcher((query, user))
                assert isinstance(answer, _Answer)
                return await self._answered(query, answer, stages)

            return await without_repeats(queries, make)
        except StorageError as error:
            log.warning("no answer from storage, answering from popularity", error=error.detail)
            return await self.degraded_several(queries, stages, error)

    async def recommend_from(self, events: Sequence[StoredEvent], query: Query, stages: Stages) -> Recommendations:
        """The k best items for somebody who did just these events, in this order; nothing is stored, and nothing is looked up."""
        return await (await self._from(events, stages))(query)

    async def recommend_several_from(
        self, events: Sequence[StoredEvent], queries: Sequence[Query], stages: Stages
    ) -> list[Recommendations]:
        """`recommend_several` for somebody who did just these events."""
        return await without_repeats(queries, await self._from(events, stages))

    async def _from(
        self, events: Sequence[StoredEvent], stages: Stages
    ) -> Callable[[Query], Coroutine[Any, Any, Recommendations]]:
        """What makes lists for somebody who did just these events, which are folded once."""
        if not events:
            return self._popular_for(stages, {})
        told = Unfolded(new_epoch(), {}, None, events, 0)
        # Longer ones would hold up every other request of the event loop.
        folded = await asyncio.to_thread(self._fold, [told]) if len(events) > _INLINE_EVENTS else self._fold([told])
        stages.mark("load")

        async def make(query: Query) -> Recommendations:
            had = self._seen.of_events(events, self._had_rules(query), query.as_of_ms)
            plan, out = self._planner.plan(query, folded[0][1], {}, had, len(events))
            (listed,) = await self._lister.lists([plan])
            reflects = Reflects(len(events), max(event.time_ms for event in events))
            await asyncio.sleep(0)  # where the model is on this core, nobody else had a turn since the list before
            stages.book("queue", interest=listed.interest_s, score=listed.score_s)
            explained = None
            if query.explain is not None:
                explained = await self._explainer.of_events(query, listed, pinned_in(listed.selection), told)
                stages.mark("explain")
            return self._listed(query, listed, out, reflects, explained)

        return make

    def _popular_for(
        self, stages: Stages, attributes: Mapping[str, str]
    ) -> Callable[[Query], Coroutine[Any, Any, Recommendations]]:
        """What makes lists for somebody of whom no events are known."""

        async def make(query: Query) -> Recommendations:
            return self._fallback(query, "unknown_user", stages, attributes)

        return make

    async def _held_out(
        self, queries: Sequence[Query], stages: Stages
    ) -> Callable[[Query], Coroutine[Any, Any, Recommendations]]:
        """What makes lists for one user who is held out of an experiment: of what is popular, without what the user had where
        their other lists would leave that out. Raises StorageError."""
        user = None
        if any(self._had_rules(query) for query in queries):
            user = await self._users.current(queries[0].tenant, queries[0].user_id)
        attributes = user.meta.attributes if user is not None else await self._attributes(queries)
        stages.mark("load")

        async def make(query: Query) -> Recommendations:
            had = await self._seen_by(query, user) if user is not None else ()
            return self._fallback(query, "holdout", stages, attributes, had)

        return make

    async def _attributes(self, queries: Sequence[Query]) -> Mapping[str, str]:
        """The attributes of one user, who has no events, where filters or the fallback read them. Raises StorageError."""
        if not any(map(self._fallback.reads_user, queries)):
            return {}
        (user,) = await self._store.load(queries[0].tenant, NO_MODEL, [queries[0].user_id], None, 1)
        return user.meta.attributes if user.meta is not None else {}

    async def _with_shown(self, queries: Sequence[Query]) -> Sequence[Query]:
        """Questions of one user, with what the user was shown where their rules ask for it."""
        if not any(query.rules.rotation for query in queries):
            return queries
        try:
            shown = await self._shown(queries[0].user_id)
        except StorageError as error:
            log.warning("what a user was shown cannot be read, and does not sink", error=error.detail)
            return queries
        return [replace(query, shown=shown) if query.rules.rotation else query for query in queries]

    async def rank(self, query: Query, item_ids: Sequence[str], stages: Stages) -> Ranking:
        """Some items in the order in which the user would want them, also what they had already. Raises OverloadedError."""
        query, unknown = self._among(query, item_ids)
        return _ranking(await self.recommend(query, stages), unknown)

    def rank_degraded(self, query: Query, item_ids: Sequence[str], stages: Stages) -> Ranking:
        """The same where storage is away, without trying it."""
        query, unknown = self._among(query, item_ids)
        return _ranking(self._fallback(query, "storage_unavailable", stages, {}, away=True), unknown)

    def _among(self, query: Query, item_ids: Sequence[str]) -> tuple[Query, list[str]]:
        """The question for these items, each of them once, and which of them cannot be in a list."""
        can = np.isfinite(self._catalogue.bias_at(query.as_of_ms))
        rows = {item_id: row if (row := self._catalogue.row(item_id)) is not None and can[row] else None for item_id in item_ids}
        known = tuple(row for row in rows.values() if row is not None)
        return replace(query, k=max(1, len(known)), among=known), [item_id for item_id, row in rows.items() if row is None]

    async def _answer(self, asked: Sequence[tuple[Query, Asked | UserState]]) -> list[_Answer | LongTail | Exception | None]:
        """Load, fold and rank for all of them, who are loaded already just rank; None for a user without events, an error where
        the rules cannot be followed."""
        began = perf_counter()
        queries = [query for query, _ in asked]
        loaded = iter(await self._users.batch([user for _, user in asked if isinstance(user, Asked)]))
        users = [next(loaded) if isinstance(user, Asked) else user for _, user in asked]
        answers: list[_Answer | LongTail | Exception | None] = [user if isinstance(user, LongTail) else None for user in users]
        known = [(place, user) for place, user in enumerate(users) if isinstance(user, UserState)]
        had: Sequence[Sequence[int]] = [()] * len(known)
        if self._had or any(query.rules.exclude_had for query in queries):
            try:
                had = await asyncio.gather(*(self._seen_by(queries[place], user) for place, user in known))
            except DamagedError as error:  # of an event that the state has behind it
                if len(asked) == 1:
                    raise
                raise OneOfManyError(error.detail) from error
        load_s = perf_counter() - began
        plans: list[tuple[int, UserState, Plan, Out]] = []
        for (place, user), rows in zip(known, had, strict=True):
            try:
                planned = self._planner.plan(queries[place], user.blob, user.meta.attributes, rows, user.header.applied)
                plans.append((place, user, *planned))
            except InvalidRequestError as error:
                answers[place] = error
        if plans:
            lists = await self._lister.lists([plan for _, _, plan, _ in plans])
            for (place, user, _, out), listed in zip(plans, lists, strict=True):
                answers[place] = _Answer(user, listed, load_s, out)
        return answers

    def _had_rules(self, query: Query) -> Sequence[HadRule]:
        if query.among is not None:
            return ()
        return self._had if query.rules.exclude_had is None else query.rules.exclude_had

    async def _seen_by(self, query: Query, user: UserState) -> Sequence[int]:
        rules = self._had_rules(query)
        return await self._seen.rows(query.tenant, user, rules, query.as_of_ms) if rules else ()

    def degraded(self, query: Query, stages: Stages, error: StorageError) -> Recommendations:
        """The answer where storage is away, which `error` says, without trying it; raises it where a filter reads the user."""
        return self._fallback.degraded(query, stages, error)

    def check(self, query: Query) -> None:
        """Raises InvalidRequestError if the rules of a question cannot be followed, whoever it is asked for."""
        self._planner.check(query)

    async def degraded_several(self, queries: Sequence[Query], stages: Stages, error: StorageError) -> list[Recommendations]:
        """The answers to several questions of one user where storage is away, without trying it. Raises as `degraded`."""

        async def make(query: Query) -> Recommendations:
            return self.degraded(query, stages, error)

        return await without_repeats(queries, make)

    async def _answered(self, query: Query, answer: _Answer, stages: Stages) -> Recommendations:
        """Raises StorageError where an explanation needs the history."""
        reflects = Reflects(answer.user.header.applied, answer.user.meta.last_time_ms)
        explained, listed = None, answer.listed
        stages.book("queue", load=answer.load_s, interest=listed.interest_s, score=listed.score_s)
        if query.explain is not None:
            explained = await self._explainer.of_user(query, listed, pinned_in(listed.selection), answer.user)
            stages.mark("explain")
        return self._listed(query, listed, answer.out, reflects, explained)

    def _listed(
        self, query: Query, listed: Listed, out: Out, reflects: Reflects, explained: Sequence[Explanation] | None
    ) -> Recommendations:
        return self._respond(query, listed.rows, listed.scores, reflects, None, listed.selection, out, listed.drawn, explained)


def _ranking(answer: Recommendations, unknown: list[str]) -> Ranking:
    return Ranking(**msgspec.structs.asdict(answer), unknown_items=unknown)
