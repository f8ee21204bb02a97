"""Counts per item that halve with time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DAY_MS = 86_400_000


class DecayedCounts:
    """c_i(t) = sum over events e of item i of weight_e * 2^-((t - t_e) / half_life).

    Kept as counts at one reference time, so that an event costs O(1) whatever the number of items; a late event counts with its
    own time.
    """

    REBASE = 256.0  # half-lives past the reference after which 2^x is brought back, far below the 1023 of float64
    FARTHEST = 700.0  # half-lives before the reference, where counts may be 2^REBASE times as large as at their time

    def __init__(self, items: int, half_life_days: float) -> None:
        self.half_life_ms = half_life_days * DAY_MS
        self._counts = np.zeros(items)
        self._reference: int | None = None

    def add(self, item: npt.NDArray[np.integer], time: npt.NDArray[np.int64], weight: npt.NDArray[np.float64]) -> None:
        """Count events: three arrays of the same length; rows >= 0, unix milliseconds, weights."""
        if not len(item):
            return
        newest = int(time.max())
        if self._reference is None:
            self._reference = newest
        if (newest - self._reference) / self.half_life_ms > self.REBASE:
            self._counts *= 2.0 ** ((self._reference - newest) / self.half_life_ms)
            self._reference = newest
        np.add.at(self._counts, item, weight * np.exp2((time - self._reference) / self.half_life_ms))

    def at(self, as_of_ms: int) -> npt.NDArray[np.float64]:
        """(N,) the counts at a moment; one long before the newest event gets those of `FARTHEST` half-lives before it."""
        if self._reference is None:
            return np.zeros_like(self._counts)
        # Leaving one out asks years before the newest event, where 2^x has no number. All fade alike: the order is the same.
        elapsed = max(-self.FARTHEST, (as_of_ms - self._reference) / self.half_life_ms)
        counts: npt.NDArray[np.float64] = self._counts * 2.0**-elapsed
        return counts
