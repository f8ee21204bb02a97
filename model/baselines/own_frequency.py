"""Own frequency: what this customer keeps buying, filled up with what everyone buys at the moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.baselines.decayed_counts import DAY_MS
from model.baselines.purchases import Purchases
from model.baselines.recent_popularity import RecentPopularity
from model.data.sequences import Int64, Sequences


class OwnFrequency:
    """score_i = own_weight * own_i / sum(own) + (1 - own_weight) * recent_i / sum(recent).

    own_i sums, over the user's purchases of i, weight * 2^-(age in days / half_life_days + age in baskets / half_life_baskets);
    the last basket has age 0 baskets. An infinite half-life is no decay. recent_i is `RecentPopularity`.

    Source: the personal top-frequency baseline of next-basket recommendation (Li et al. 2021, "A Next Basket Recommendation
    Reality Check", arXiv:2109.14233), decayed like TIFU-KNN (Hu et al. 2020, arXiv:2006.00556).
    """

    def __init__(
        self,
        half_life_days: float = 240,
        half_life_baskets: float = 10,
        own_weight: float = 0.2,
        popularity_half_life_days: float = 7,
    ) -> None:
        self.name = "own frequency"
        self.half_life_days = half_life_days
        self.half_life_baskets = half_life_baskets
        self.own_weight = own_weight
        self._recent = RecentPopularity(popularity_half_life_days)

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._bought = Purchases(seq)
        self._recent.fit(seq, known)

    def observe(self, start: int, end: int) -> None:
        self._recent.observe(start, end)

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        scores = self._recent.score(user, position, as_of_ms)
        scores *= (1 - self.own_weight) / max(scores.sum(), 1e-300)
        past = self._bought.past(user, position)
        if past.start < past.stop:
            days = np.maximum(as_of_ms - self._bought.time[past], 0) / DAY_MS
            basket = self._bought.basket[past]
            age = days / self.half_life_days + (basket[-1] - basket) / self.half_life_baskets
            # From the youngest on: a shift of all ages cancels in the share, and 2^-age cannot underflow for every purchase.
            own = self._bought.weight[past] * np.exp2(age.min() - age)
            scores += np.bincount(self._bought.item[past], own * (self.own_weight / own.sum()), minlength=len(scores))
        return scores

    def parameters(self) -> dict[str, float]:
        return {
            "half_life_days": self.half_life_days,
            "half_life_baskets": self.half_life_baskets,
            "own_weight": self.own_weight,
            "popularity_half_life_days": self._recent.half_life_days,
        }
