"""Scores of some rows, exactly as score.onnx gives them (to float noise), and the best of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.recommend.index import RARE, Float32, Int64

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Found:
    """Rows and scores, best first, ties by lower row; fewer than m only if fewer are eligible."""

    rows: Int64
    scores: Float32


@dataclass(frozen=True, slots=True)
class Lifts:
    """What one user's scores get beside what everybody's do: rows, ascending, each once, and amounts."""

    rows: Int64
    amounts: Float32

    def onto(self, rows: Int64, scores: Float32) -> None:
        """Add them to the scores of ascending rows, in place; rows that are not there get nothing."""
        if not len(self.rows) or not len(rows):
            return
        places = np.minimum(rows.searchsorted(self.rows), len(rows) - 1)
        there = rows[places] == self.rows
        scores[places[there]] += self.amounts[there]


class Users:
    """B users as the outputs of interest.onnx describe them.

    They are interests (B, J, D), popularity_weight (B, P); and where the model has them repeat_rows (B, R) with -1 for none,
    repeat_scores (B, R) and repeat_interest (B, D).
    """

    def __init__(self, interest: Mapping[str, npt.NDArray[Any]]) -> None:
        self._interest = interest
        self.interests: Float32 = interest["interests"]
        self.popularity_weight: Float32 = interest["popularity_weight"]

    def __len__(self) -> int:
        return len(self.interests)

    def some(self, places: Sequence[int]) -> dict[str, npt.NDArray[Any]]:
        """The same of some of them."""
        if len(places) == len(self):
            return dict(self._interest)
        return {name: array[list(places)] for name, array in self._interest.items()}

    def scores(self, places: Sequence[int] | slice, vectors: Float32, bias: Float32, popularity: Float32) -> Float32:
        """(b, n) without lifts, of n rows: vectors (n, D), bias (n,), decayed counts (n, P)."""
        logs = np.log(popularity + np.float32(RARE), dtype=np.float32)
        scores: Float32 = (self.interests[places] @ vectors.T).max(1)
        scores += self.popularity_weight[places] @ logs.T
        scores += bias
        return scores

    def lifts(self, place: int, vectors: Float32, own: tuple[Sequence[int], Sequence[float]]) -> Lifts:
        """Own repeats, and what the rules say of single rows; `vectors` (N, D)."""
        rows, amounts = np.asarray(own[0], np.int64), np.asarray(own[1], np.float32)
        if "repeat_rows" in self._interest:
            slots = self._interest["repeat_rows"][place]
            used = np.flatnonzero(slots >= 0)
            again = slots[used]
            match = vectors[again] @ self._interest["repeat_interest"][place]
            rows = np.concatenate([rows, again])
            amounts = np.concatenate([amounts, self._interest["repeat_scores"][place, used] + match])
        once = ascending(rows)
        return Lifts(once, np.bincount(once.searchsorted(rows), amounts, len(once)).astype(np.float32))


def ascending(*rows: Int64) -> Int64:
    """All rows of some arrays, each once. (numpy.unique takes several times as long for a thousand.)"""
    whole = np.sort(np.concatenate(rows))
    if len(whole) < 2:
        return whole
    return whole[np.concatenate(([True], whole[1:] != whole[:-1]))]


def take_out(rows: Int64, scores: Float32, without: Sequence[int]) -> None:
    """-inf where one of the ascending rows is not wanted, in place."""
    if not len(without) or not len(rows):
        return
    unwanted = np.asarray(without, np.int64)
    places = np.minimum(rows.searchsorted(unwanted), len(rows) - 1)
    scores[places[rows[places] == unwanted]] = -np.inf


def best_of(rows: Int64, scores: Float32, m: int) -> Found:
    """The m best of some rows, each there once, in any order; those with -inf are not eligible."""
    if len(rows) > m:
        worst = np.partition(scores, len(scores) - m)[len(scores) - m]
        near = np.flatnonzero(scores >= worst)  # more than m where there are ties
        rows, scores = rows[near], scores[near]
    order = np.lexsort((rows, -scores))[:m]
    order = order[scores[order] > -np.inf]
    return Found(rows[order], scores[order])
