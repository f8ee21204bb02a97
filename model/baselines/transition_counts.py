"""A sparse, growing matrix of how often item b followed item a."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

TAIL = 16  # additions a row collects before they are merged into it


class TransitionCounts:
    """(N, N) weighted counts; adding one basket costs its own pairs, whatever is already counted.

    A row is a list of segments (distinct columns, counts): a merged one, and a short tail of recent additions.
    """

    def __init__(self, items: int) -> None:
        self.items = items
        self.total = np.zeros(items)  # (N,) sum of each row
        self._segments: list[list[tuple[npt.NDArray[np.int32], Float64]]] = [[] for _ in range(items)]

    def add_block(self, before: npt.NDArray[np.int32], after: npt.NDArray[np.int32], weight: float) -> None:
        """Count every pair of an item of `before` with one of `after`, each pair `weight`."""
        column, count = np.unique(after, return_counts=True)
        segment = (column, weight * count)
        for row in before.tolist():
            segments = self._segments[row]
            segments.append(segment)
            self.total[row] += weight * len(after)
            if len(segments) > TAIL:
                self._segments[row] = [self._merged(segments)]

    def add_pairs(self, before: npt.NDArray[np.int32], after: npt.NDArray[np.int32], weight: float) -> None:
        """Count many pairs at once: two arrays of the same length, each pair `weight`."""
        key, count = np.unique(before.astype(np.int64) * self.items + after, return_counts=True)
        row, column = key // self.items, (key % self.items).astype(np.int32)
        self.total += weight * np.bincount(row, count, minlength=self.items)
        edges = np.append(np.flatnonzero(np.diff(row, prepend=-1)), len(row))
        for low, high in itertools.pairwise(edges.tolist()):
            segments = self._segments[int(row[low])]
            segments.append((column[low:high], weight * count[low:high]))
            if len(segments) > TAIL:
                segments[:] = [self._merged(segments)]

    def weighted_sum(self, rows: npt.NDArray[np.int32], weight: Float64) -> Float64:
        """(N,) sum over `rows` of weight times the row; two arrays of the same length."""
        total = np.zeros(self.items)
        for row, factor in zip(rows.tolist(), weight.tolist(), strict=True):
            for column, count in self._segments[row]:
                total[column] += factor * count  # a plain index may not repeat: columns of a segment are distinct
        return total

    def _merged(self, segments: list[tuple[npt.NDArray[np.int32], Float64]]) -> tuple[npt.NDArray[np.int32], Float64]:
        columns = np.concatenate([column for column, _ in segments])
        counts = np.concatenate([count for _, count in segments])
        distinct, place = np.unique(columns, return_inverse=True)
        return distinct.astype(np.int32, copy=False), np.bincount(place, counts, minlength=len(distinct)).astype(
            np.float64, copy=False
        )
