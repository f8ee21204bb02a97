"""What is asked of the scorer: a question with its rules resolved for one user at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from app.catalogue.catalogue import Catalogue
from app.fold.tensors import EventTensors
from app.recommend.answer import Query
from app.recommend.cold import ColdUsers
from app.recommend.debug import Out
from app.recommend.listing import Plan
from app.recommend.ruled import Given, RuleBook, Ruled
from app.recommend.ruleset import NO_RULES
from app.recommend.score import Question


class Planner:
    """Makes the plans of one model's lists."""

    def __init__(self, catalogue: Catalogue, rules: RuleBook, tensors: EventTensors, cold: ColdUsers) -> None:
        self._catalogue = catalogue
        self._rules = rules
        self._platform = tensors.platform
        self._cold = cold

    def plan(self, query: Query, blob: bytes, attributes: Mapping[str, str], had: Sequence[int], events: int) -> tuple[Plan, Out]:
        """The question for the scorer about somebody with so many events. Raises InvalidRequestError if its rules cannot be
        followed."""
        excluded = self.excluded(query)
        ruled = None
        if query.rules is not NO_RULES or query.debug:
            ruled = self.resolve(query, attributes)
        question = Question(
            blob,
            query.k,
            query.as_of_ms,
            self._platform(query.platform),
            [*excluded, *self.rows(query.listed), *had],
            query.among,
            None if ruled is None else ruled.eligible,
            None if ruled is None else ruled.bias,
            None if ruled is None else ruled.count,
            query.explain is not None,
        )
        if (cold := self._cold.added(query, attributes, events)) is not None:
            added = cold if question.added is None else question.added + cold
            question = replace(question, added=added, count=len(cold))
        return Plan(question, ruled), self.out(query, excluded, had, ruled)

    def check(self, query: Query) -> None:
        """Raises InvalidRequestError if the rules of a question cannot be followed, whoever it is asked for."""
        if query.rules is not NO_RULES:
            self.resolve(query, {})

    def resolve(self, query: Query, attributes: Mapping[str, str]) -> Ruled:
        """The rules of a question for a user with these attributes. Raises InvalidRequestError if they cannot be followed."""
        return self._rules.resolve(
            query.rules,
            Given(query.parameters or {}, attributes, query.context or {}, query.shown),
            query.k,
            query.as_of_ms,
            query.seed,
        )

    def excluded(self, query: Query) -> Sequence[int]:
        """The rows that the question or its rules exclude by their ids."""
        return self.rows((*query.exclude, *query.rules.exclude)) if query.exclude or query.rules.exclude else ()

    def out(self, query: Query, excluded: Sequence[int], had: Sequence[int], ruled: Ruled | None) -> Out:
        """What is left out before anything is ranked, by what for."""
        return Out(excluded, had, None if ruled is None else ruled.eligible, self.rows(query.listed) if query.debug else ())

    def rows(self, item_ids: Sequence[str]) -> list[int]:
        """Of those items that are known."""
        return [row for item_id in item_ids if (row := self._catalogue.row(item_id)) is not None]
