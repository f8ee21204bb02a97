"""Popularity: how often an item was bought, by everyone, ever."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.baselines.purchases import Purchases
from model.data.sequences import Int64, Sequences


class Popularity:
    """score_i = sum of the weights of the purchases of i known so far; live: it goes on counting what it observes."""

    def __init__(self) -> None:
        self.name = "popularity"

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._bought = bought = Purchases(seq)
        past = bought.known(known)
        self._counts = np.zeros(seq.items)
        np.add.at(self._counts, bought.item[past], bought.weight[past])

    def observe(self, start: int, end: int) -> None:
        new = self._bought.between(start, end)
        np.add.at(self._counts, self._bought.item[new], self._bought.weight[new])

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        return self._counts.copy()

    def parameters(self) -> dict[str, float]:
        return {}
