"""Lists that do not come from the model: what is popular now, where something is known of the context there, under the same
rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from app.catalogue.popularity import LivePopularity
from app.errors import LateError, StorageError
from app.recommend.answer import Query, Reason, Recommendations
from app.recommend.contexts import ContextPopularity, lifted
from app.recommend.listing import Lister
from app.recommend.plan import Planner
from app.recommend.respond import Responder
from app.recommend.ruleset import NO_RULES, reads_user
from app.recommend.selection import GaveWay
from app.telemetry import Metrics, Stages


class Fallback:
    """Answers for those of whom no events are known or may be used, and for all while storage is away."""

    def __init__(
        self,
        planner: Planner,
        respond: Responder,
        lister: Lister,
        popularity: LivePopularity,
        contexts: ContextPopularity,
        metrics: Metrics,
    ) -> None:
        self._planner = planner
        self._respond = respond
        self._lister = lister
        self._popularity = popularity
        self._contexts = contexts
        self._metrics = metrics

    def reads_user(self, query: Query) -> bool:
        """Whether the attributes of the question's user could change the list."""
        return query.rules.read_user or bool(query.user_id and self._contexts.reads_user(query))

    def __call__(
        self,
        query: Query,
        reason: Reason,
        stages: Stages,
        attributes: Mapping[str, str],
        had: Sequence[int] = (),
        away: bool = False,
    ) -> Recommendations:
        """What is popular, without what the user `had`; `away`: storage is, so that nobody can tell what that is."""
        self._metrics.fallbacks.labels(reason).inc()
        excluded = self._planner.excluded(query)
        without = [*excluded, *self._planner.rows(query.listed), *had]
        # Who is held out is compared with others for a long time: theirs is the same for everyone.
        lift = None if reason == "holdout" else self._contexts.lift(query, attributes)
        plain = query.rules is NO_RULES and not query.debug
        if plain and lift is None:
            rows, counts = self._popularity.top(query.k, query.as_of_ms, query.among, without)
            stages.mark("fallback")
            return self._respond(query, rows, counts, None, reason, degraded=away)
        ruled = self._planner.resolve(query, attributes)
        if lift is not None:
            ruled = lifted(ruled, lift, query.among)
        selection = self._lister.popular(ruled, query.k, query.as_of_ms, without)
        if away and query.rules.exclude_had:
            selection = replace(selection, gave_way=[*selection.gave_way, GaveWay("exclude_had", "storage_unavailable")])
        stages.mark("fallback")
        out = self._planner.out(query, excluded, had, ruled)
        shown = None if plain else selection
        answer = self._respond(query, selection.rows, selection.scores, None, reason, shown, out, degraded=away)
        return answer if lift is None else msgspec.structs.replace(answer, fallback_context=dict(lift.used))

    def degraded(self, query: Query, stages: Stages, error: StorageError) -> Recommendations:
        """The answer where storage is away, or answers too slowly for all who ask, which `error` says, without trying it.

        Raises `error` where a filter reads the user's attributes, which nobody can tell now: a list without them could show what
        must not be shown. (Where a boost reads them, they are missing.)
        """
        if any(map(reads_user, query.rules.filters)):
            raise error
        reason: Reason = "overloaded" if isinstance(error, LateError) else "storage_unavailable"
        return self(query, "holdout" if query.held_out else reason, stages, {}, away=True)
