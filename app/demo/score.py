"""Recall and NDCG of ranked lists, as the trainer's evaluation defines them; a test compares the two.

Recall@k = |top k that are targets| / |targets|. NDCG@k = DCG@k / ideal DCG@k, with DCG@k the sum over ranks r = 1..k of
[item at r is a target] / log2(r + 1), and min(|targets|, k) targets first in the ideal list.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Score:
    """Means over questions, both in 0..1."""

    recall: float
    ndcg: float

    def as_json(self, k: int) -> dict[str, float]:
        """By the names that reports use: recall@k and ndcg@k."""
        return {f"recall@{k}": round(self.recall, 6), f"ndcg@{k}": round(self.ndcg, 6)}

    def agrees_with(self, other: Score) -> bool:
        """Whether the two are the same to 3 digits."""
        return abs(self.recall - other.recall) < 5e-4 and abs(self.ndcg - other.ndcg) < 5e-4


def recall(ranked: Sequence[str], targets: Collection[str], k: int) -> float:
    """Of one list, best first, without an item twice. `targets` must not be empty."""
    wanted = set(targets)
    return sum(item in wanted for item in ranked[:k]) / len(wanted)


def ndcg(ranked: Sequence[str], targets: Collection[str], k: int) -> float:
    """Of one list, best first, without an item twice. `targets` must not be empty."""
    wanted = set(targets)
    gained = sum(_discount(rank) for rank, item in enumerate(ranked[:k]) if item in wanted)
    return gained / sum(_discount(rank) for rank in range(min(len(wanted), k)))


def score(lists: Iterable[tuple[Sequence[str], Collection[str]]], k: int) -> Score:
    """Means over (ranked list, targets); a question without targets has no answer to be measured by and is left out."""
    pairs = [(ranked, targets) for ranked, targets in lists if targets]
    if not pairs:
        return Score(math.nan, math.nan)
    return Score(fmean(recall(*pair, k) for pair in pairs), fmean(ndcg(*pair, k) for pair in pairs))


def _discount(rank: int) -> float:
    """`rank` counts from 0."""
    return 1 / math.log2(rank + 2)
