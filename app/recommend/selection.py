"""A list as the rules made it: what stands in it, what gave way, and for every item why it does or does not stand there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from app.recommend.caps import Tally, walk
from app.recommend.rules import Float32, Rows, Rules


@dataclass(frozen=True, slots=True)
class GaveWay:
    """A rule that could not be kept.

    Attributes:
        rule: `pin`, `k` where the list is shorter than asked for, or `exclude_had`.
        reason: of a pin: `unknown`, what it was `barred` by, `not_eligible`, `beyond_k`, `position_taken`, `already_pinned` or
            `cap`; of k: `caps` or `min_score`; of `exclude_had`: `storage_unavailable`. That too few items are eligible at all
            is none: nothing was promised then.
        caps: names of the caps that it gave way to.
        missing: how many items the list lacks.
    """

    rule: Literal["pin", "k", "exclude_had"]
    reason: str
    item_id: str | None = None
    position: int | None = None
    caps: tuple[str, ...] = ()
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Why:
    """Why a row stands in the list or not.

    Attributes:
        what: in the list: `pinned` or `chosen`. Not in it: `capped` (the groups of `cap` are full), `diversity` (it is too like
            others; by score alone it would stand here), `below_min_score`, `behind` (enough others are better), `not_reached`
            (not among the best that were looked at: behind, or not eligible), `not_eligible` (all that are eligible were looked
            at).
        position: in the list, from 1.
        rank: among all eligible items by adjusted score, from 1, as far as they were looked at.
    """

    what: Literal["pinned", "chosen", "capped", "diversity", "below_min_score", "behind", "not_reached", "not_eligible"]
    position: int | None = None
    rank: int | None = None
    score: float | None = None
    cap: str | None = None


@dataclass(frozen=True)
class Selection:
    """A list under rules, best first but for what the rules moved.

    Attributes:
        rows, scores: the scores are those that were selected by, pins' own among them.
        gave_way: rules that could not be kept, pins by position first.
        candidates, candidate_scores: what was looked at, best first.
        whole: whether that is everything that is eligible.
    """

    rows: list[int]
    scores: list[float]
    gave_way: list[GaveWay]
    rules: Rules = field(repr=False)
    pinned: Sequence[int] = ()
    candidates: Rows = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    candidate_scores: Float32 = field(default_factory=lambda: np.empty(0, np.float32), repr=False)
    whole: bool = False

    def why(self, row: int) -> Why:
        """What happened to a row."""
        places = np.flatnonzero(self.candidates == row)
        place = int(places[0]) if len(places) else None
        rank = None if place is None else place + 1
        if row in self.rows:
            position = self.rows.index(row)
            return Why("pinned" if row in self.pinned else "chosen", position + 1, rank, self.scores[position])
        blocking = int(self._tally.blocking(np.asarray([row]))[0])
        cap = None if blocking < 0 else self.rules.caps[blocking].name
        if place is None:
            # The search may also have ended because no group has room for anything: then rank and score were never asked for.
            closed = cap is not None and len(self.rows) < self.rules.k
            return Why("not_eligible" if self.whole else "capped" if closed else "not_reached", cap=cap if closed else None)
        score = float(self.candidate_scores[place])
        if score < self.rules.min_score:
            return Why("below_min_score", None, rank, score)
        if len(self.rows) == self.rules.k and place > self._plain[1]:
            return Why("behind", None, rank, score)
        if cap is not None:
            return Why("capped", None, rank, score, cap)
        if row in self._plain[0]:
            return Why("diversity", None, rank, score)
        # Of groups that fill up by score alone, but not in this list.
        return Why("behind", None, rank, score)

    @cached_property
    def _tally(self) -> Tally:
        """The groups of the list."""
        tally = Tally(self.rules.caps)
        for row in self.rows:
            tally.add(row)
        return tally

    @cached_property
    def _plain(self) -> tuple[frozenset[int], int]:
        """What would stand beside the pins by score alone, and the place of the last of it among the candidates."""
        tally = Tally(self.rules.caps)
        for row in self.pinned:
            tally.add(row)
        good = np.flatnonzero((self.candidate_scores >= self.rules.min_score) & ~np.isin(self.candidates, self.pinned))
        wanted = self.rules.k - len(self.pinned)
        taken = good[walk(self.candidates[good], tally, wanted)]
        rows = frozenset(self.candidates[taken].tolist())
        if len(taken) < wanted:
            return rows, len(self.candidates)
        return rows, int(taken[-1]) if wanted else -1
