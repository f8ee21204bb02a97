"""From a user's state to a list under rules: candidates from the scorer, as many as the rules need, many users at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.catalogue.catalogue import Catalogue, Float32
from app.catalogue.popularity import LivePopularity
from app.recommend.explore import MOST_DRAWN_FROM, Drawn, draw
from app.recommend.ruled import Ruled
from app.recommend.rules import Pin, Rows
from app.recommend.score import Question, Ranked, Read, Scorer
from app.recommend.select import Found, select, selecting, standing
from app.recommend.selection import Selection

# Choosing more than this would hold up every other request of the event loop, so it is done in a thread: in milliseconds, about.
_INLINE_MS = 2.0
_DIVERSE_MS = 0.02  # an item of a diverse list
_CAPPED_MS = 0.003  # an item under one cap
_CANDIDATE_MS = 0.0005  # a candidate under one cap
MANY = 4_000
"""Candidates that are looked for and chosen from in a thread."""

_RARE = 1e-9  # of a count, so that what nobody used has a logarithm
_LARGEST_LOG = 700.0  # of which there is an exponential


@dataclass(frozen=True, slots=True)
class Plan:
    """A question, and the rules that its list must follow, if there are any."""

    question: Question
    ruled: Ruled | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A list, how the rules made it, what was drawn for it by chance, and what the question keeps; `interest_s` and `score_s` are
    of all calls that it took."""

    rows: list[int]
    scores: list[float]
    interest_s: float
    score_s: float
    selection: Selection | None = None
    drawn: Sequence[Drawn] = ()
    read: Read | None = None


class Lister:
    """Makes lists of one model's items."""

    def __init__(self, scorer: Scorer, catalogue: Catalogue, popularity: LivePopularity) -> None:
        self._scorer = scorer
        self._catalogue = catalogue
        self._popularity = popularity

    async def lists(self, plans: Sequence[Plan]) -> list[Listed]:
        """The lists of some plans, in their order; each depends on its own plan alone (to float noise)."""
        if all(plan.ruled is None for plan in plans):
            return [_plain(ranked) for ranked in await self._scorer.rank([plan.question for plan in plans])]
        rounds = [_Round(plan) for plan in plans]
        # What is pinned or drawn must be known first: only what can be shown takes a place.
        before = [(each, question) for each in rounds for question in each.before()]
        answers = await self._scorer.rank([question for _, question in before]) if before else []
        for (each, question), ranked in zip(before, answers, strict=True):
            each.take_before(question, ranked)
        for each in rounds:
            each.begin(self._vectors)
        while waiting := [each for each in rounds if each.wanted is not None]:
            # One that needs a good part of all items must not make the scorer find as many for the others.
            few = [each for each in waiting if (each.wanted or 0) <= MANY]
            await self._round(few)
            for each in waiting:
                if each not in few:
                    await self._round([each])
        return [each.listed() for each in rounds]

    async def _round(self, rounds: Sequence[_Round]) -> None:
        """Look for candidates and choose from them."""
        if not rounds:
            return
        asked = [replace(each.plan.question, k=each.wanted or 1) for each in rounds]
        answers = list(zip(rounds, await self._scorer.rank(asked, beside=asked[0].k > MANY), strict=True))
        spent_ms, long = 0.0, []
        for each, ranked in answers:
            spent_ms += (cost_ms := each.cost_ms(len(ranked.rows)))
            if spent_ms > _INLINE_MS and cost_ms:
                long.append((each, ranked))
            else:
                each.take(ranked)
        if long:
            await asyncio.to_thread(_take_all, long)

    def popular(self, ruled: Ruled, k: int, as_of_ms: int, without: Sequence[int]) -> Selection:
        """The most popular items under rules, in the order and with the scores of `LivePopularity.top` where these add nothing;
        there is no minimum."""
        (logs,) = self._popularity.logs(as_of_ms, half_lives=1).T
        used = logs > -np.inf
        scores = np.where(used, logs, min(math.log(_RARE), float(logs[used].min(initial=0.0))))
        if ruled.bias is not None:
            scores += ruled.bias
        if ruled.eligible is not None:
            scores[~ruled.eligible] = -np.inf
        scores[~self._catalogue.open_at(as_of_ms)] = -np.inf
        scores[list(without)] = -np.inf
        eligible = np.flatnonzero(scores > -np.inf)

        def more(m: int) -> Found:
            if m < len(eligible):
                of_all = scores[eligible]
                some = eligible[of_all >= np.partition(of_all, len(of_all) - m)[len(of_all) - m]]
            else:
                some = eligible
            longer = self._popularity.logs(as_of_ms, some)[:, 1:]
            rows = some[np.lexsort([*(-longer.T[::-1]), -scores[some]])][:m]
            return rows, scores[rows]

        found = select(replace(ruled.rules, min_score=-np.inf, k=k), more, lambda rows: scores[rows], self._vectors)
        counts = np.exp(np.where(used, np.minimum(scores, _LARGEST_LOG), -np.inf))
        return replace(found, scores=counts[found.rows].tolist(), candidate_scores=counts[found.candidates])

    def _vectors(self, rows: Rows) -> Float32:
        vectors: Float32 = self._catalogue.vectors[rows]
        return vectors


class _Round:
    """One plan on its way to a list."""

    def __init__(self, plan: Plan) -> None:
        rules = plan.ruled.rules if plan.ruled is not None else None
        self.plan = plan
        self.pins = tuple(sorted({pin.row for pin in rules.pins if pin.row is not None})) if rules is not None else ()
        self.wanted: int | None = None  # candidates
        self.drawn: list[Drawn] = []
        self._pin_scores: dict[int, float] = {}
        self._steps: Generator[int, Found, Selection] | None = None
        self._ranked: Ranked | None = None
        self._selection: Selection | None = None
        self._read: Read | None = None
        self._interest_s = self._score_s = 0.0

    def cost_ms(self, candidates: int) -> float:
        """What choosing from so many will take, about; 0 where there is next to nothing to choose."""
        rules = self.plan.ruled.rules if self.plan.ruled is not None else None
        if rules is None:
            return 0.0
        of_caps = len(rules.caps) * (_CAPPED_MS * min(rules.k, candidates) + _CANDIDATE_MS * candidates)
        return of_caps + (_DIVERSE_MS * rules.k if rules.diversity else 0.0)

    def before(self) -> list[Question]:
        """What must be asked before candidates are: the scores of the pins, and what can be drawn from."""
        asked = [replace(self.plan.question, k=len(self.pins), among=self.pins)] if self.pins else []
        explored = self.plan.ruled.exploration if self.plan.ruled is not None else None
        if explored is not None and explored.known_little.any():
            eligible = self.plan.question.mask
            mask = explored.known_little if eligible is None else explored.known_little & eligible
            asked.append(replace(self.plan.question, k=MOST_DRAWN_FROM, mask=mask))
        return asked

    def take_before(self, question: Question, ranked: Ranked) -> None:
        """The answer to one of those."""
        self._took(ranked)
        rows, scores = ranked.rows.tolist(), ranked.scores.tolist()
        self._pin_scores |= dict(zip(rows, scores, strict=True))
        if question.among is not self.pins and self.plan.ruled is not None and self.plan.ruled.exploration is not None:
            stand, _ = standing(self.plan.ruled.rules, self._scores_of)  # the scores of all pins are known by now
            pinned = {pin.row for pin, _ in stand.values()}
            free = [(row, score) for row, score in zip(rows, scores, strict=True) if row not in pinned]
            self.drawn = draw(self.plan.ruled.exploration, [row for row, _ in free], [score for _, score in free], stand)

    def begin(self, vectors: Callable[[Rows], Float32]) -> None:
        if self.plan.ruled is None:
            self.wanted = self.plan.question.k
            return
        rules = self.plan.ruled.rules
        drawn = [Pin("", one.row, one.position) for one in self.drawn]
        self._steps = selecting(rules, self._scores_of, vectors, drawn)
        self._go_on(None)

    def take(self, ranked: Ranked) -> None:
        self._took(ranked)
        if self._steps is None:
            self._ranked, self.wanted = ranked, None
        else:
            self._go_on((ranked.rows, ranked.scores))

    def listed(self) -> Listed:
        if self._selection is None:
            assert self._ranked is not None
            return _plain(self._ranked)
        found = self._selection
        drawn = [replace(one, position=found.rows.index(one.row) + 1) for one in self.drawn if one.row in found.pinned]
        return Listed(found.rows, found.scores, self._interest_s, self._score_s, found, drawn, self._read)

    def _took(self, ranked: Ranked) -> None:
        self._read = ranked.read
        self._interest_s += ranked.interest_s
        self._score_s += ranked.score_s

    def _go_on(self, found: Found | None) -> None:
        assert self._steps is not None
        try:
            self.wanted = next(self._steps) if found is None else self._steps.send(found)
        except StopIteration as end:
            self._selection, self.wanted = end.value, None

    def _scores_of(self, rows: Rows) -> Float32:
        return np.asarray([self._pin_scores.get(row, -np.inf) for row in rows.tolist()], np.float32)


def _plain(ranked: Ranked) -> Listed:
    return Listed(ranked.rows.tolist(), ranked.scores.tolist(), ranked.interest_s, ranked.score_s, read=ranked.read)


def _take_all(answers: Sequence[tuple[_Round, Ranked]]) -> None:
    for each, ranked in answers:
        each.take(ranked)
