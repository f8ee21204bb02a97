"""TIFU-KNN: a customer's own decayed frequencies, mixed with those of the most similar customers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.baselines.popularity import Popularity
from model.baselines.purchases import Purchases
from model.data.sequences import Int64, Sequences
from model.data.splits import expand

Float64 = npt.NDArray[np.float64]

DECIMALS = 9
"""Distances are rounded before the nearest are chosen, so that which of two equal users is nearer is no matter of float noise."""


def _smallest(values: Float64, count: int) -> Int64:
    """The places of the `count` smallest, ascending, the first of equals first: as of a stable sort of all."""
    few = np.arange(len(values))
    if count < len(values):
        few = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return few[np.argsort(values[few], kind="stable")][:count]


class TifuKnn:
    """score = own * u + (1 - own) * mean of the vectors of the `neighbours` nearest other users (Euclidean).

    A user's n baskets, each a set of items, stand in groups of `group`, counted from the last one; the first may be smaller.
    A basket counts within_decay^(baskets between it and the last of its group) / size of its group, and a group
    between_decay^(groups between it and the last) / number of groups: u_i sums this over the baskets that have item i.
    A user without a purchase gets `Popularity`.

    Live: every user's vector, the neighbours' too, follows what is observed.

    Source: Hu, He, Gao & Zhang 2020, "Modeling Personalized Item Frequency Information for Next-basket Recommendation"
    (arXiv:2006.00556).
    """

    def __init__(
        self, group: int = 7, within_decay: float = 0.9, between_decay: float = 0.7, neighbours: int = 300, own: float = 0.7
    ) -> None:
        self.name = "tifu-knn"
        self._popularity = Popularity()
        self.group, self.within_decay, self.between_decay = group, within_decay, between_decay
        self.neighbours, self.own = neighbours, own

    def fit(self, seq: Sequences, known: Int64) -> None:
        self._popularity.fit(seq, known)
        self._bought = bought = Purchases(seq)
        self._user = seq.user
        # A basket is a set: an item counts where it stands first in its basket.
        self._counts = np.zeros(len(bought.item), bool)
        self._counts[np.unique(bought.basket.astype(np.int64) * seq.items + bought.item, return_index=True)[1]] = True
        # Vectors are sparse rows with a place for all that the user will ever buy; what is not bought yet has weight 0.
        pairs = np.unique(bought.user.astype(np.int64) * seq.items + bought.item)
        buyers, first, width = np.unique(pairs // seq.items, return_index=True, return_counts=True)
        self._row_of_user = np.full(seq.users, -1)
        self._row_of_user[buyers] = np.arange(len(buyers))
        self._begin, self._end = first, first + width
        self._column = pairs % seq.items
        self._weight = np.zeros(len(pairs))
        # The places of each item, in order of rows.
        self._row = np.repeat(np.arange(len(buyers)), width)
        self._places = np.argsort(self._column, kind="stable")
        counts = np.bincount(self._column, minlength=seq.items)
        self._places_end = np.cumsum(counts)
        self._places_begin = self._places_end - counts
        self._square = np.full(len(buyers), np.inf)  # (users,) |u|^2; infinite: nothing bought yet, and nobody's neighbour
        self._known = known.copy()
        self._stale = set(buyers.tolist())

    def observe(self, start: int, end: int) -> None:
        self._popularity.observe(start, end)
        user = int(self._user[start])
        self._known[user] = end
        self._stale.add(user)

    def score(self, user: int, position: int, as_of_ms: int) -> Float64:
        items, weights = self._vector(user, position)
        if not len(items):
            return self._popularity.score(user, position, as_of_ms)
        self._refresh()
        own = np.zeros(self._bought.items)
        own[items] = weights
        places = self._places[expand(self._places_begin, self._places_end, items)]
        products = np.bincount(self._row[places], self._weight[places] * own[self._column[places]], minlength=len(self._begin))
        distance = self._square - 2 * products  # to the square of the distance only |own|^2 is missing, for all the same
        distance[self._row_of_user[user]] = np.inf
        scores = self.own * own
        nearest = _smallest(np.round(distance, DECIMALS), self.neighbours)
        nearest = nearest[distance[nearest] < np.inf]
        places = expand(self._begin, self._end, nearest)
        share = (1 - self.own) / max(len(nearest), 1)
        np.add.at(scores, self._column[places], share * self._weight[places])
        return scores

    def parameters(self) -> dict[str, float]:
        return {
            "group": self.group,
            "within_decay": self.within_decay,
            "between_decay": self.between_decay,
            "neighbours": self.neighbours,
            "own": self.own,
        }

    def _vector(self, user: int, position: int) -> tuple[npt.NDArray[np.int64], Float64]:
        """Distinct items of the user's purchases before the event row `position`, and their weights."""
        past = self._bought.past(user, position)
        counted = self._counts[past]
        basket = self._bought.basket[past][counted]
        if not len(basket):
            return np.zeros(0, np.int64), np.zeros(0)
        before_last = basket[-1] - basket
        group, within = np.divmod(before_last, self.group)
        groups = int(group[0]) + 1
        size = np.where(group == groups - 1, int(within[0]) + 1, self.group)
        weight = self.within_decay**within * self.between_decay**group / (size * groups)
        items, place = np.unique(self._bought.item[past][counted], return_inverse=True)
        return items.astype(np.int64), np.bincount(place, weight, minlength=len(items)).astype(np.float64)

    def _refresh(self) -> None:
        """Bring the vectors of the users that something was heard of up to date."""
        for user in self._stale:
            row = int(self._row_of_user[user])
            items, weights = self._vector(user, int(self._known[user]))
            if row < 0 or not len(items):
                continue
            first, end = int(self._begin[row]), int(self._end[row])
            self._weight[first + np.searchsorted(self._column[first:end], items)] = weights
            self._square[row] = weights @ weights
        self._stale.clear()
