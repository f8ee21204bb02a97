"""Exploration: some places of a list go to items of which little is known, drawn by chance in proportion to how well they fit.

Which items are drawn depends on a seed and on nothing else by chance, so that a list can be made again; and of each it is said
how likely it was, so that what came of it can be weighed (inverse propensities).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from app.recommend.rules import Bool

MOST_DRAWN_FROM: Final = 200
"""The best so many of the little known items take part; the others have no chance."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """What is to be explored for one question.

    Attributes:
        known_little: (N,) the little known items, of which the eligible ones take part. Shared, not to be written into.
        places: how many places of the list they get.
        k: places of the list.
    """

    known_little: Bool
    places: int
    k: int
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """An item that was drawn, for a position (from 1).

    `propensity` is the chance of this item to be drawn next, given those that were drawn before it.
    """

    row: int
    position: int
    propensity: float


def places_of(share: float, k: int) -> int:
    """How many of k places a share is: rounded to the nearest, at least one if there is a share at all."""
    return 0 if share <= 0 else min(k, max(1, round(share * k)))


def draw(exploration: Exploration, rows: Sequence[int], scores: Sequence[float], taken: Collection[int] = ()) -> list[Drawn]:
    """Draw from candidates with their scores (logits), best first: one after the other, each in proportion to exp(score) among
    those that are left; then places for them, all equally likely, of those that are not `taken`.

    Source: the Plackett-Luce model, drawn by the Gumbel-max trick (Kool et al., Stochastic Beams, ICML 2019).
    """
    rng = np.random.default_rng(exploration.seed)
    free = np.asarray([place for place in range(1, exploration.k + 1) if place not in taken], np.int64)
    count = min(exploration.places, len(rows), len(free))
    if not count:
        return []
    logits = np.asarray(scores, np.float64)
    order = np.argsort(-(logits + rng.gumbel(size=len(logits))), kind="stable")[:count]
    places = rng.permutation(free)[:count]
    chances = np.exp(logits - logits.max())
    drawn = []
    for place, chosen in zip(np.sort(places).tolist(), order.tolist(), strict=True):
        drawn.append(Drawn(int(rows[chosen]), place, float(chances[chosen] / chances.sum())))
        chances[chosen] = 0.0
    return drawn
