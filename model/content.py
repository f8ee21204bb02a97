"""The content loss: what a user takes for the first time, foretold by what items say of themselves.

Beside the main loss, the same interests are matched with the vectors that content alone gives, of all items at once, as if every
item were new. The targets are those items of a basket that the user never had: what is had again is no matter of content, and a
cold item is new to everyone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.data.sequences import Int64, Queries, Sequences
from model.losses import basket_softmax


class FirstTimes:
    """The row at which each user had each item for the first time, whatever the event."""

    def __init__(self, seq: Sequences) -> None:
        self.items = seq.items
        rows = np.flatnonzero(seq.item >= 0)
        self._pair, first = np.unique(seq.user[rows].astype(np.int64) * seq.items + seq.item[rows], return_index=True)
        self._row = rows[first]

    def new(self, queries: Queries) -> tuple[Int64, Int64]:
        """The targets that the asking user has not had before: (t) query of each, ascending, and (t) its item row."""
        query = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
        pair = queries.user[query].astype(np.int64) * self.items + queries.target
        new = self._row[np.searchsorted(self._pair, pair)] >= queries.position[query]
        return query[new], queries.target[new].astype(np.int64)


def content_loss(
    interest: Tensor, matrix: Tensor, queries: Queries, first: FirstTimes, smoothing: float, factor: torch.dtype | None
) -> Tensor:
    """`basket_softmax` of interests (n, D) and content vectors (N, D) over the new targets of n queries; 0 without any."""
    query, target = first.new(queries)
    asked, owner = np.unique(query, return_inverse=True)
    if not len(asked):
        return interest.new_zeros(())
    bias = matrix.new_zeros(len(matrix))
    place = [torch.as_tensor(each, device=matrix.device) for each in (asked, owner, target)]
    return basket_softmax(interest[place[0]], matrix, bias, place[1], place[2], smoothing, factor=factor)
