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
    """score_i = cosine of text_i and the mean text of the user's purchases, or the sum of its cosines with the nearest of them.

    Each purchase weighs weight * 2^-(age in baskets / half-life): the last basket has age 0, and an infinite half-life is the
    plain mean. With `nearest`, each item that the user bought weighs 2^-(age of its last purchase / half-life), and its cosine
    counts by that. A user without a purchase, or without any that has a text, gets `Popularity`. Every item counts alike, sold
    often or never; with `novel`, what the user bought comes last.

    Source: the content-based profile of Pazzani & Billsus 2007, on sentence embeddings (arXiv:1908.10084).
    """

    def __init__(
        self, text: npt.NDArray[np.floating], half_life_baskets: float = math.inf, novel: bool = False, nearest: int = 0
    ) -> None:
        """`text`: (N, W) an embedding of each item, zeros where there is no text; `nearest`: 0 is the mean."""
        self.name = "content kNN"
        self.half_life_baskets, self.novel, self.nearest = half_life_baskets, novel, nearest
        self._popularity = Popularity()
        length = np.linalg.norm(text, axis=1, keepdims=True)
        self._text = (text / np.where(length > 0, length, 1)).astype(np.float32)

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._popularity.fit(seq, known)
        self._bought = Purchases(seq)

    def observe(self, start: int, end: int) -> None:
        self._popularity.observe(start, end)

    def score(self, user: int, position: int, as_of_ms: int) -> npt.NDArray[np.float64]:
        past = self._bought.past(user, position)
        scores = self._alike(past) if past.start < past.stop else None
        if scores is None:
            return self._popularity.score(user, position, as_of_ms)
        if self.novel:
            scores[self._bought.item[past]] -= LAST * max(self.nearest, 1)
        return scores

    def bought(self, user: int, position: int) -> npt.NDArray[np.int32]:
        """Rows of what the user bought before."""
        rows: npt.NDArray[np.int32] = self._bought.item[self._bought.past(user, position)]
        return rows

    def _alike(self, past: slice) -> npt.NDArray[np.float64] | None:
        item, basket = self._bought.item[past], self._bought.basket[past]
        fresh = np.exp2((basket - basket[-1]) / self.half_life_baskets)
        if self.nearest:
            # The last purchase of each item: the first one from behind.
            known, behind = np.unique(item[::-1], return_index=True)
            if not self._text[known].any():
                return None
            cosine = (self._text[known] * fresh[::-1][behind].astype(np.float32)[:, None]) @ self._text.T
            if len(known) > self.nearest:
                cosine = np.partition(cosine, -self.nearest, axis=0)[-self.nearest :]
            total: npt.NDArray[np.float64] = cosine.sum(0).astype(np.float64)
            return total
        profile = (self._bought.weight[past] * fresh).astype(np.float32) @ self._text[item]
        length = float(np.linalg.norm(profile))
        if not length:
            return None
        scores: npt.NDArray[np.float64] = (self._text @ (profile / length)).astype(np.float64)
        return scores

    def parameters(self) -> dict[str, float]:
        return {"half_life_baskets": self.half_life_baskets, "novel": float(self.novel), "nearest": float(self.nearest)}
