"""Popularity that knows where somebody is: the decayed counts of all, each item lifted by what its context makes of it.

For a value v of a facet (a country, a platform, a category), with c_v the decayed count of an item among the events with v, n_v
the sum of these, and p the item's share of all decayed counts:

    lift_v = ((c_v + m * p) / (n_v + m)) / p

It is 1 where v is unknown, and what v alone says where n_v is far beyond m: shrinkage towards everybody, m events strong (a
Dirichlet prior with its mean at p). Facets multiply, as if they were independent given the item (naive Bayes):

    score = decayed count of the item * product of lift_v over the facets whose value is known

As the service keeps them: of a value the `kept` items with most, and what else there was of it spread over all other items as
everybody's is.

Source: Zhai & Lafferty 2004, Dirichlet smoothing of language models; Manning, Raghavan & Schuetze 2008, ch. 13, naive Bayes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.baselines.decayed_counts import DecayedCounts
from model.baselines.purchases import Purchases
from model.data.sequences import Int32, Sequences

Float64 = npt.NDArray[np.float64]

TINY = 1e-12


class ContextCounts:
    """Decayed counts at several half-lives, of all events and of those with each value of each facet; every row is told once."""

    def __init__(self, seq: Sequences, facets: Sequence[Int32], half_lives_days: Sequence[float]) -> None:
        """`facets`: for each facet (E,) the value of every event, 0 where it is missing."""
        self._bought = Purchases(seq)
        self._row = np.flatnonzero(seq.positive)
        self._facets = [facet[self._row] for facet in facets]
        self._items = seq.items
        self._of_all = {days: DecayedCounts(seq.items, days) for days in half_lives_days}
        self._of_value: dict[tuple[int, int, float], DecayedCounts] = {}

    def observe(self, start: int, end: int) -> None:
        """The events in rows `start:end` have just become known."""
        new = self._bought.between(start, end)
        item, time, weight = self._bought.item[new], self._bought.time[new], self._bought.weight[new]
        for days, counts in self._of_all.items():
            counts.add(item, time, weight)
            for place, facet in enumerate(self._facets):
                values = facet[new]
                for value in np.unique(values[values > 0]).tolist():
                    key = (place, value, days)
                    if key not in self._of_value:
                        self._of_value[key] = DecayedCounts(self._items, days)
                    mine = values == value
                    self._of_value[key].add(item[mine], time[mine], weight[mine])

    def of_all(self, days: float, as_of_ms: int) -> Float64:
        """(N,) decayed counts at a moment."""
        return self._of_all[days].at(as_of_ms)

    def log_lift(self, values: Sequence[int], days: float, m: Sequence[float], as_of_ms: int, kept: int = 1_000) -> Float64:
        """(N,) log of the product of lifts for one value of each facet, 0 where a value is missing or was never seen.

        Args:
            m: for each facet.
        """
        counts = self.of_all(days, as_of_ms)
        share = counts / max(counts.sum(), TINY)
        lift = np.zeros(self._items)
        for place, value in enumerate(values):
            mine = self._of_value.get((place, value, days))
            if mine is None:
                continue
            count = mine.at(as_of_ms)
            total, held = count.sum(), np.flatnonzero(count)
            if len(held) > kept:
                held = np.argpartition(-count, kept)[:kept]
            others = 1 - share[held].sum()
            rest = (total - count[held].sum()) / others if others > TINY else 0.0
            of_value = np.full(self._items, rest)
            of_value[held] = count[held] / np.maximum(share[held], TINY)
            lift += np.log((of_value + m[place]) / (total + m[place]))
        return lift
