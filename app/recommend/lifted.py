"""What popularity has done since an index was made: how much of the old picture still holds, and which rows rose above it."""

from __future__ import annotations

from typing import Final

import numpy as np

from app.recommend.index import RARE, Float32, Int64

_SAMPLE: Final = 4_096
_STEEPEST: Final = 1.5
_STEP: Final = 61  # every so manieth row makes a sample


class Drift:
    """Popularity now beside popularity in the index.

    Counts only decay where nothing happens, and log(count + RARE) comes nearer to log RARE for all rows alike. So the new
    logarithms are about `slope` times the old ones, and asking the index with the popularity weights times `slope` gives
    nearly the order of now. What that leaves is due to events; the rows where it leaves most are looked at beside.

    Attributes:
        rows: those that rose most, in ascending order.
        unexplained: how far the others still are off, as a share of how far rows are apart now: 0 for a fresh index.
    """

    def __init__(self, then: Float32, now: Float32, weights: Float32, most: int) -> None:
        """Compare (N, P) logarithms in the index with (N, P) decayed counts of the same rows now.

        Args:
            weights: (P,) what users typically weigh popularity with.
            most: so many rows, at most, are said to have risen.
        """
        self._told: tuple[Float32, Float32] | None = None
        count = len(then)
        logs = np.log(now + np.float32(RARE), dtype=np.float32)
        level = logs @ weights
        spaced = np.arange(0, count, max(1, count // _SAMPLE))
        # Learned from the popular rows as much as from the rest: these decide who is among the best.
        self._sample = np.unique(np.concatenate([_best(level, _SAMPLE), spaced]))
        centred = then[self._sample] - then[self._sample].mean(0)
        self._centred = centred / np.maximum(np.square(centred).sum(0), 1e-12)  # (n, P), for the regression
        off = level - then @ (self.slope(now) * weights)
        risen = _best(off, most)
        self.rows: Int64 = np.sort(risen[off[risen] > np.median(off[spaced]) + 1e-4])
        rest = np.delete(off, self.rows)
        self.unexplained = float(rest.std() / max(float(level.std()), 1e-6)) if len(rest) else 0.0

    def slope(self, now: Float32) -> Float32:
        """(P,) for popularity at this or another moment, of which a sample of rows is looked at; 0: nothing is left of then."""
        if self._told is not None and self._told[0] is now:
            return self._told[1]
        logs = np.log(now[self._sample] + np.float32(RARE), dtype=np.float32)
        slope: Float32 = np.clip((self._centred * logs).sum(0), 0.0, _STEEPEST)
        self._told = (now, slope)
        return slope


def _best(values: Float32, number: int) -> Int64:
    """The places of the largest values, in any order."""
    if number >= len(values):
        return np.arange(len(values))
    # What is above the level that a sample says holds twice as many: to sort out a million takes ten times as long.
    sample = values[::_STEP]
    above = min(len(sample), 2 * number // _STEP + _STEP)
    some = np.flatnonzero(values >= np.partition(sample, len(sample) - above)[len(sample) - above])
    if len(some) < number:
        some = np.arange(len(values))
    best: Int64 = some[np.argpartition(values[some], len(some) - number)[len(some) - number :]]
    return best
