"""Decayed co-transition: what usually follows the last things this user bought."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.baselines.popularity import Popularity
from model.baselines.purchases import Purchases
from model.baselines.transition_counts import TransitionCounts
from model.data.sequences import Int64, Sequences
from model.data.splits import expand

PAIRS = 4_000_000  # generated and sorted at a time when fitting: some 150 MB


class CoTransition:
    """score_b = sum over items a of the user's last `context` baskets of decay^(age of a) * C_ab / (C_a)^damping.

    C_ab sums decay^(distance - 1) over all pairs of a purchase of a with a later one of b, 1 to `window` baskets apart, of one
    user; C_a = sum over b of C_ab. The last basket has age 0. An event that is in no basket is a basket of its own: with 8 and 8
    the last eight items vote. A user without a purchase gets `Popularity`.
    """

    def __init__(self, window: int = 8, context: int = 8, decay: float = 0.8, damping: float = 1.0) -> None:
        self.name = "co-transition"
        self._popularity = Popularity()
        self.window, self.context, self.decay, self.damping = window, context, decay, damping

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._popularity.fit(seq, known)
        self._bought = bought = Purchases(seq)
        self._counts = TransitionCounts(seq.items)
        past, begin = np.flatnonzero(bought.known(known)), bought.basket_begin
        for distance in range(1, self.window + 1):
            # Pair every purchase with each one of the basket `distance` before its own.
            earlier = bought.basket[past] - distance
            after, earlier = past[earlier >= 0], earlier[earlier >= 0]
            same = bought.user[begin[earlier]] == bought.user[after]
            after, earlier = after[same], earlier[same]
            size = begin[earlier + 1] - begin[earlier]
            chunk = np.cumsum(size) // PAIRS
            for part in np.split(np.arange(len(after)), np.flatnonzero(np.diff(chunk)) + 1):
                before = expand(begin[earlier], begin[earlier + 1], part)
                follower = np.repeat(bought.item[after[part]], size[part])
                self._counts.add_pairs(bought.item[before], follower, self.decay ** (distance - 1))

    def observe(self, start: int, end: int) -> None:
        bought = self._bought
        self._popularity.observe(start, end)
        new = bought.between(start, end)
        if new.start == new.stop:
            return
        user = int(bought.user[new.start])
        basket = int(bought.basket[new.start])
        for distance in range(1, self.window + 1):
            if basket < distance:
                break
            first, last = bought.basket_begin[basket - distance : basket - distance + 2]
            if bought.user[first] != user:
                break
            self._counts.add_block(bought.item[first:last], bought.item[new], self.decay ** (distance - 1))

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        bought = self._bought
        recent = bought.last_baskets(user, position, self.context)
        if recent.start == recent.stop:
            return self._popularity.score(user, position, as_of_ms)
        age = bought.basket[recent.stop - 1] - bought.basket[recent]
        item = bought.item[recent]
        weight = self.decay**age / np.maximum(self._counts.total[item], 1e-9) ** self.damping
        return self._counts.weighted_sum(item, weight)

    def parameters(self) -> dict[str, float]:
        return {"window": self.window, "context": self.context, "decay": self.decay, "damping": self.damping}
