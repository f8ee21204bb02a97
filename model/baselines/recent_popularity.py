"""Recent popularity: what everyone buys at the moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.baselines.decayed_counts import DecayedCounts
from model.baselines.purchases import Purchases
from model.data.sequences import Int64, Sequences


class RecentPopularity:
    """score_i = decayed count of the purchases of i known so far, see `DecayedCounts`."""

    def __init__(self, half_life_days: float = 7) -> None:
        self.name = "recent popularity"
        self.half_life_days = half_life_days

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._bought = bought = Purchases(seq)
        past = bought.known(known)
        self._counts = DecayedCounts(seq.items, self.half_life_days)
        self._counts.add(bought.item[past], bought.time[past], bought.weight[past])

    def observe(self, start: int, end: int) -> None:
        new = self._bought.between(start, end)
        self._counts.add(self._bought.item[new], self._bought.time[new], self._bought.weight[new])

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        return self._counts.at(as_of_ms)

    def parameters(self) -> dict[str, float]:
        return {"half_life_days": self.half_life_days}
