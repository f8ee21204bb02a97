"""Content kNN: what reads most like the things this user bought. It needs no other user, and knows an item from its text on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from model.baselines.popularity import Popularity
from model.baselines.purchases import Purchases
from model.data.sequences import Int64, Sequences

LAST = 2.0  # the width of the range of a cosine


class ContentKnn:
    """score_i = cosine of text_i and the mean text of the user's purchases.

    Each purchase weighs weight * 2^-(age in baskets / half-life): the last basket has age 0, and an infinite half-life is the
    plain mean. A user without a purchase, or without any that has a text, gets `Popularity`. Every item counts alike, sold often
    or never; with `novel`, what the user bought comes last.

    Source: the content-based profile of Pazzani & Billsus 2007, on sentence embeddings (arXiv:1908.10084).
    """

    def __init__(self, text: npt.NDArray[np.floating], half_life_baskets: float = math.inf, novel: bool = False) -> None:
        """`text`: (N, W) an embedding of each item; zeros for one without a text, which is like nothing."""
        self.name = "content kNN"
        self.half_life_baskets, self.novel = half_life_baskets, novel
        self._popularity = Popularity()
        length = np.linalg.norm(text, axis=1, keepdims=True)
        self._text = (text / np.where(length > 0, length, 1)).astype(np.float64)

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._popularity.fit(seq, known)
        self._bought = Purchases(seq)

    def observe(self, start: int, end: int) -> None:
        self._popularity.observe(start, end)

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        past = self._bought.past(user, position)
        profile = np.zeros(self._text.shape[1])
        if past.start < past.stop:
            basket = self._bought.basket[past]
            weight = self._bought.weight[past] * np.exp2((basket - basket[-1]) / self.half_life_baskets)
            profile = weight @ self._text[self._bought.item[past]]
        length = float(np.linalg.norm(profile))
        if not length:
            return self._popularity.score(user, position, as_of_ms)
        scores: npt.NDArray[np.float64] = self._text @ (profile / length)
        if self.novel:
            scores[self._bought.item[past]] -= LAST
        return scores

    def parameters(self) -> dict[str, float]:
        return {"half_life_baskets": self.half_life_baskets, "novel": float(self.novel)}
