"""A list as the answer on the wire: its id, its items with what explains them, and what became of its rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from app.catalogue.catalogue import Catalogue
from app.recommend.answer import Explanation, ItemDebug, Query, Reason, Recommendations, RecommendedItem, moment
from app.recommend.debug import Out, debugged, explored, gave_way
from app.recommend.explain import Explainer
from app.recommend.explore import Drawn
from app.recommend.selection import Selection
from app.state.lists import new_list_id, short_name
from app.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Reflects:
    """What a list of the model reflects: so many events, the latest of them at `last_time_ms`."""

    events: int
    last_time_ms: int


class Responder:
    """Makes the answers of one model, and counts them."""

    def __init__(self, model_id: str, catalogue: Catalogue, explainer: Explainer, metrics: Metrics) -> None:
        self._model_id = model_id
        self._catalogue = catalogue
        self._explainer = explainer
        self._metrics = metrics

    def __call__(
        self,
        query: Query,
        rows: list[int],
        scores: list[float],
        reflects: Reflects | None,
        reason: Reason | None = None,
        selection: Selection | None = None,
        out: Out | None = None,
        drawn: Sequence[Drawn] = (),
        explained: Sequence[Explanation] | None = None,
        degraded: bool = False,
    ) -> Recommendations:
        """A list of rows of the catalogue with their scores, best first.

        Args:
            reflects: None for one that is not the model's; `reason` says why.
            selection: what became of the rules, if there were any; `out` is what they left out before.
            drawn: what stands in it by chance.
            explained: what brought each item, if the model knows.
        """
        ids, titles = self._catalogue.ids.of(rows), self._catalogue.titles.of(rows)
        scenario, version = (query.scenario.name, query.scenario.version) if query.scenario is not None else (None, 0)
        list_id = self._list_id(query, scenario, version, reflects is None)
        if query.explain is None:
            items = [RecommendedItem(*one) for one in zip(ids, scores, titles, strict=True)]
        else:
            whys = self._explainer.of_nobody(rows, pinned_in(selection)) if explained is None else explained
            items = [RecommendedItem(*one) for one in zip(ids, scores, titles, whys, strict=True)]
        return Recommendations(
            recommendation_id=list_id,
            user_id=query.user_id or None,
            model_id=self._model_id,
            source="model" if reflects is not None else "fallback",
            reason=reason,
            degraded=degraded,
            applied_events=reflects.events if reflects is not None else 0,
            last_event_time=moment(reflects.last_time_ms) if reflects is not None else None,
            as_of=moment(query.as_of_ms),
            items=items,
            scenario=UNSET if query.scenario is None else query.scenario,
            experiment=UNSET if query.experiment is None else query.experiment,
            gave_way=UNSET if selection is None or not selection.gave_way else [gave_way(one) for one in selection.gave_way],
            explored=UNSET if query.rules.explore is None else explored(query.seed, drawn, self._catalogue.ids),
            debug=UNSET if selection is None or out is None or not query.debug else self._why(query, selection, out),
        )

    def _list_id(self, query: Query, scenario: str | None, version: int, fallback: bool) -> str:
        """An id for a list that is made now, which is counted."""
        named = short_name(scenario) if scenario is not None else ""  # as it is counted where the list was shown
        if query.experiment is None:
            self._metrics.made(self._model_id, named, fallback)
            if query.unserved is not None:
                self._metrics.unserved(*query.unserved)
            return new_list_id(self._model_id, fallback, scenario, version)
        of = query.experiment
        self._metrics.made(self._model_id, named, fallback, short_name(of.name), of.arm)
        return new_list_id(self._model_id, fallback, scenario, version, of.name, of.version, of.arm)

    def _why(self, query: Query, selection: Selection, out: Out) -> list[ItemDebug]:
        catalogue, opened = self._catalogue, self._catalogue.open_at(query.as_of_ms)
        found = []
        for item_id in query.debug:
            row = catalogue.row(item_id)
            what = "unknown" if row is None else out.what(row)
            if row is not None and row not in selection.rows:
                what = "unavailable" if not opened[row] else "without_vector" if not catalogue.known[row] else what
            found.append(debugged(item_id, what, None if row is None or what is not None else selection.why(row)))
        return found


def pinned_in(selection: Selection | None) -> Sequence[int]:
    """The rows that a rule put where they are."""
    return () if selection is None else selection.pinned
