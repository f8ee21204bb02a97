"""The positive events alone: what was wanted, never what was cancelled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.data.sequences import Int64, Sequences
from model.data.splits import basket_starts


class Purchases:
    """P positive events of the vocabulary, in the order of their rows.

    Attributes:
        item, time, weight: (P,) item row, unix milliseconds, weight of the event's type.
        basket: (P,) number of the basket over all users, from 0, ascending without gaps.
        user: (P,) row of the user.
        basket_begin: (baskets + 1,) where each basket begins among the purchases.
    """

    def __init__(self, seq: Sequences) -> None:
        rows = np.flatnonzero(seq.positive)
        self.items = seq.items
        self.item = seq.item[rows]
        self.time = seq.time[rows]
        self.weight = seq.weight[seq.type[rows]].astype(np.float64)
        self.user = seq.user[rows]
        # Baskets of cancellations alone do not count: "the basket before" is the last one that bought something.
        new_basket = np.diff(np.searchsorted(basket_starts(seq), rows, side="right"), prepend=-1) != 0
        self.basket = np.cumsum(new_basket) - 1
        self.basket_begin = np.append(np.flatnonzero(new_basket), len(rows))
        self._before = np.concatenate([[0], np.cumsum(seq.positive)])  # (E + 1,) purchases before each row
        self._user_begin = self._before[seq.offsets]

    def known(self, known: Int64) -> npt.NDArray[np.bool_]:
        """(P,) whether the purchase lies before its user's row `known`."""
        return np.arange(len(self.item)) < self._before[known][self.user]

    def between(self, start: int, end: int) -> slice:
        """The purchases among the event rows `start:end`."""
        return slice(int(self._before[start]), int(self._before[end]))

    def past(self, user: int, position: int) -> slice:
        """The user's purchases before the event row `position`."""
        return slice(int(self._user_begin[user]), int(self._before[position]))

    def last_baskets(self, user: int, position: int, count: int) -> slice:
        """The user's purchases in the last `count` baskets before the event row `position`."""
        past = self.past(user, position)
        if past.start == past.stop:
            return past
        first = max(int(self.basket[past.stop - 1]) - count + 1, 0)
        return slice(max(past.start, int(self.basket_begin[first])), past.stop)
