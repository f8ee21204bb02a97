"""VMIS-kNN: what was bought in the sessions that are most like what this user does at the moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.baselines.popularity import Popularity
from model.baselines.purchases import Purchases
from model.data.sequences import Int64, Sequences
from model.data.splits import clock, expand

Float64 = npt.NDArray[np.float64]

DECIMALS = 9


class VmisKnn:
    """Nearest sessions, found through an index from items to sessions.

    A session is a run of `span` baskets of one user (an event that is in no basket is a basket of its own). The evolving
    session s is the user's last `context` baskets, b = 1 to B, oldest first; it is no neighbour of its own.

    - r_n = sum over distinct items i of s that session n has, of b_i / B, b_i the last basket of s with i.
    - The neighbours are the `neighbours` sessions of highest r_n (the younger of equals) among the `recent` youngest with
      r_n > 0.
    - score_i = log(H / h_i)^idf * sum over neighbours n that have i of r_n * max(0, 1 - 0.1 * (B - b_n)), b_n the last basket
      of s that shares an item with n; H sessions are known, h_i of them have i.

    A user without a purchase, or whose session has no neighbour, gets `Popularity`. Live: sessions grow, and new ones begin, with
    what is observed.

    Source: Kersbergen, Sprangers & Schelter 2022, "Serenade: Low-Latency Session-Based Recommendation in e-Commerce at Scale"
    (SIGMOD); weights of VS-kNN (Ludewig & Jannach 2018, arXiv:1803.09587).
    """

    def __init__(self, span: int = 1, context: int = 4, recent: int = 5000, neighbours: int = 500, idf: int = 1) -> None:
        self.name = "session kNN"
        self._popularity = Popularity()
        self.span, self.context, self.recent, self.neighbours, self.idf = span, context, recent, neighbours, idf

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._popularity.fit(seq, known)
        self._bought = bought = Purchases(seq)
        places = np.arange(len(bought.item))
        first_of_user = np.searchsorted(bought.user, bought.user)
        span = (bought.basket - bought.basket[first_of_user]) // self.span
        self._begin = np.flatnonzero((np.diff(span, prepend=-1) != 0) | (np.diff(bought.user, prepend=-1) != 0))
        # Sessions are numbered by when they begin: a higher number is a younger session.
        order = np.argsort(clock(seq)[np.flatnonzero(seq.positive)][self._begin], kind="stable")
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        self._session = number[np.searchsorted(self._begin, places, side="right") - 1]
        self._begin = self._begin[order]
        self._distinct = np.zeros(len(places), bool)  # whether it is the session's first purchase of the item
        self._distinct[np.unique(self._session * seq.items + bought.item, return_index=True)[1]] = True
        self._size = np.zeros(len(order), np.int64)  # purchases of each session that are known
        # Index: for every item the sessions that have it, with room for all that will come.
        sizes = np.bincount(bought.item[self._distinct], minlength=seq.items)
        self._postings_begin = np.cumsum(sizes) - sizes
        self._postings = np.zeros(int(sizes.sum()), np.int64)
        self._filled = np.zeros(seq.items, np.int64)
        self._similarity = np.zeros(len(order))
        self._latest = np.zeros(len(order), np.int64)
        self._learn(np.flatnonzero(bought.known(known)))

    def observe(self, start: int, end: int) -> None:
        self._popularity.observe(start, end)
        new = self._bought.between(start, end)
        self._learn(np.arange(new.start, new.stop))

    def score(self, user: int, position: int, as_of_ms: int) -> Float64:
        bought = self._bought
        evolving = bought.last_baskets(user, position, self.context)
        if evolving.start == evolving.stop:
            return self._popularity.score(user, position, as_of_ms)
        basket = bought.basket[evolving] - bought.basket[evolving.start]
        baskets = int(basket[-1]) + 1
        for item, place in dict(zip(bought.item[evolving].tolist(), basket.tolist(), strict=True)).items():
            begin = int(self._postings_begin[item])
            sessions = self._postings[begin : begin + int(self._filled[item])]
            self._similarity[sessions] += (place + 1) / baskets
            # The dictionary holds items in order of their first basket, and their last ones need not ascend.
            self._latest[sessions] = np.maximum(self._latest[sessions], place + 1)
        self._similarity[self._session[evolving]] = 0.0
        found = np.flatnonzero(self._similarity)[-self.recent :]
        # Rounded, so that float noise does not decide between equals.
        similarity = np.round(self._similarity[found], DECIMALS)
        best = np.argsort(-similarity[::-1], kind="stable")[: self.neighbours]
        nearest, similarity = found[::-1][best], similarity[::-1][best]
        weight = similarity * np.maximum(0.0, 1 - 0.1 * (baskets - self._latest[nearest]))
        self._similarity[:] = 0.0
        self._latest[:] = 0
        places = expand(self._begin, self._begin + self._size, nearest)
        each = np.repeat(weight, self._size[nearest]) * self._distinct[places]
        scores = np.bincount(bought.item[places], each, minlength=bought.items).astype(np.float64)
        if not scores.any():
            return self._popularity.score(user, position, as_of_ms)
        if self.idf:
            scores *= np.log(np.count_nonzero(self._size) / np.maximum(self._filled, 1))
        return scores

    def parameters(self) -> dict[str, float]:
        return {
            "span": self.span,
            "context": self.context,
            "recent": self.recent,
            "neighbours": self.neighbours,
            "idf": self.idf,
        }

    def _learn(self, purchases: npt.NDArray[np.int64]) -> None:
        """Put purchases into their sessions and into the index."""
        np.add.at(self._size, self._session[purchases], 1)
        new = purchases[self._distinct[purchases]]
        item, session = self._bought.item[new], self._session[new]
        order = np.argsort(item, kind="stable")
        item, session = item[order], session[order]
        nth = np.arange(len(item)) - np.searchsorted(item, item)  # among the new ones of its item
        self._postings[self._postings_begin[item] + self._filled[item] + nth] = session
        np.add.at(self._filled, item, 1)
