"""The scenarios that requests name."""

from __future__ import annotations

from app.recommend.answer import ScenarioName
from app.recommend.remembered import Remembered
from app.recommend.ruleset import RuleSet
from app.state.versioned import Stored, VersionedStore

Named = tuple[ScenarioName, RuleSet]
"""A scenario's name and version, and its rules."""


class Scenarios(Remembered[Named]):
    """Reads scenarios."""

    def __init__(self, store: VersionedStore, fresh_s: float) -> None:
        super().__init__(store, fresh_s, _named)


def _named(found: Stored) -> Named:
    return ScenarioName(found.name, found.version), RuleSet.model_validate_json(found.body)
