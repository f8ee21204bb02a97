"""Why an item is in a list or not, in the words of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.catalogue.catalogue import Bool
from app.catalogue.names import Ids
from app.recommend.answer import Explored, ExploredItem, ItemDebug, RuleGaveWay
from app.recommend.explore import Drawn
from app.recommend.selection import GaveWay, Why


@dataclass(frozen=True, slots=True)
class Out:
    """Rows that were left out before anything was scored, by what for; `eligible` (N,) is what filters let through."""

    excluded: Sequence[int]
    had: Sequence[int]
    eligible: Bool | None
    listed: Sequence[int] = ()

    def what(self, row: int) -> str | None:
        """What a row was left out for; None if it was not."""
        if row in self.excluded:
            return "excluded"
        if row in self.listed:
            return "listed"
        if row in self.had:
            return "had"
        if self.eligible is None or row >= len(self.eligible):  # one that came since
            return None
        return None if self.eligible[row] else "filtered"


def gave_way(rule: GaveWay) -> RuleGaveWay:
    """For the answer."""
    return RuleGaveWay(rule.rule, rule.reason, rule.item_id, rule.position, rule.caps, rule.missing)


def explored(seed: int, drawn: Sequence[Drawn], ids: Ids) -> Explored:
    """For the answer: what was drawn by chance, in the order of the list."""
    in_order = sorted(drawn, key=lambda one: one.position)
    return Explored(seed, [ExploredItem(ids[one.row], one.position, one.propensity) for one in in_order])


def debugged(item_id: str, what: str | None, why: Why | None) -> ItemDebug:
    """For the answer: what an item was left out for, or else why the selection did what it did."""
    if why is None:
        return ItemDebug(item_id, what or "not_eligible")
    return ItemDebug(item_id, why.what, why.position, why.rank, why.score, why.cap)
