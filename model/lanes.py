"""Truncated back-propagation that never forgets: a user's state is carried from chunk to chunk, as the live service does.

Users are worked through whole, chunk by chunk: the detached state goes on to the user's next chunk, and a user begins from the
initial state. Every batch has a random length, so that the cuts fall elsewhere in every epoch, and a row is padded only where
its user ends: no state behind padding is ever carried on. In training, more users than a batch has lanes are under way, and the
one that has waited longest goes on together with those whose next chunk is about as long: hardly anything is padding. But where
the longest history takes about as many steps as an epoch has, it must be in every batch, or the epoch would end with it alone,
step after step: then each lane goes on with its user until they are through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, islice

import numpy as np
import numpy.typing as npt

from model.data.sequences import Queries

UNDER_WAY = 4
"""Users in training that are under way at a time, as a multiple of the lanes."""
MOST_OF_EPOCH = 0.7
"""Of an epoch's steps, if the longest history needs so many, each lane goes on with its user."""


@dataclass(frozen=True)
class LaneBatch:
    """One chunk per lane.

    Attributes:
        rows: (B, T) event rows, any row where not valid. valid: (B, T), padding at the end.
        user: (B,) user of each lane. fresh, last: (B,) whether the lane begins its user here, and whether it ends it.
        positions: (B, P) moments within the chunk, -1 is padding. query: (B, P) index of the query, -1 is padding.
    """

    rows: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    user: npt.NDArray[np.int64]
    fresh: npt.NDArray[np.bool_]
    last: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    query: npt.NDArray[np.int64]

    @property
    def asked(self) -> int:
        """How many queries it has."""
        return int((self.query >= 0).sum())

    def part(self, rank: int, size: int) -> LaneBatch:
        """What one of `size` processes takes of it: whole users, the same ones in every batch."""
        own = self.user % size == rank
        rows, valid, user = self.rows[own], self.valid[own], self.user[own]
        return LaneBatch(rows, valid, user, self.fresh[own], self.last[own], self.positions[own], self.query[own])


def lane_batches(
    begin: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    queries: Queries,
    lanes: int,
    length: int,
    rng: np.random.Generator | None,
    offsets: float = 0.0,
) -> Iterator[LaneBatch]:
    """Chunks of all users that have a query, up to their last query or `end`, whichever comes first.

    A query belongs to the chunk that holds the event before it; one before any event to the first chunk (position 0).

    Args:
        begin (U,), end (U,): each user's rows are `begin[u]:end[u]`.
        queries: any order.
        length: most events of a chunk.
        rng: shuffles users and cuts; None takes long users first and full chunks, for evaluation.
        offsets: share of the users who begin anywhere in their history, as if they had come there.
    """
    by_user = np.lexsort((queries.position, queries.user))
    users, first = np.unique(queries.user[by_user], return_index=True)
    bounds = np.append(first, len(by_user))
    last = queries.position[by_user[bounds[1:] - 1]]
    stop = np.minimum(end[users], last)
    chunks = (stop - begin[users]) / length
    share = chunks * lanes / max(1.0, chunks.sum())  # of an epoch's steps, for each user
    times = 1
    if rng is None:
        order = np.argsort(-chunks, kind="stable")
    else:
        if share.max(initial=0.0) * UNDER_WAY < MOST_OF_EPOCH:
            times = UNDER_WAY
        # A user of n chunks is in every `times`-th batch, and so starts within the first 1 - n * times / steps of the epoch:
        # random, and none is left alone at the end.
        order = np.argsort(rng.random(len(users)) * (1 - np.minimum(1.0, share * times)), kind="stable")
    queue = iter(order.tolist())
    most = lanes * times
    under_way: list[_Lane] = []  # who has waited longest comes first
    while True:
        for index in islice(queue, most - len(under_way)):
            user, chosen = int(users[index]), by_user[bounds[index] : bounds[index + 1]]
            lane = _Lane(user, int(begin[user]), int(stop[index]), queries.position[chosen], chosen)
            if rng is not None and offsets and rng.random() < offsets and lane.stop > lane.at:
                lane.at = int(rng.integers(lane.at, lane.stop))
                lane.asked = int(np.searchsorted(lane.positions, lane.at))
            under_way.append(lane)
        if not under_way:
            return
        longest = length if rng is None else int(rng.integers(length // 2, length + 1))
        together = np.ones(len(under_way), bool)
        if times > 1:  # as many as fill the batch: each has about as many queries, and so each query the same weight
            takes = np.array([min(lane.stop - lane.at, longest) for lane in under_way])
            alike = np.argsort(np.abs(takes - takes[0]), kind="stable")
            cells = np.maximum.accumulate(takes[alike]) * np.arange(1, len(alike) + 1)
            together[alike[max(1, int(np.searchsorted(cells, lanes * length * 3 // 4, side="right"))) :]] = False
        work = list(compress(under_way, together))
        yield _batch(work, longest)
        under_way = [*compress(under_way, ~together), *(lane for lane in work if not lane.done)]


class _Lane:
    """Where one user stands: the rest of their rows and queries."""

    def __init__(
        self,
        user: int,
        start: int,
        stop: int,
        positions: npt.NDArray[np.int64],
        query: npt.NDArray[np.int64],
    ) -> None:
        self.user, self.at, self.stop = user, start, stop
        self.positions, self.query, self.asked = positions, query, 0
        self.fresh, self.done = True, False

    def take(self, length: int) -> tuple[int, int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        start = self.at
        end = min(self.stop, start + length)
        until = int(np.searchsorted(self.positions, end, side="right"))
        chosen = slice(self.asked, until)
        self.asked, self.at = until, end
        self.done = end >= self.stop
        return start, end, self.positions[chosen] - start, self.query[chosen]


def _batch(work: list[_Lane], length: int) -> LaneBatch:
    lanes = len(work)
    rows = np.zeros((lanes, length), np.int64)
    valid = np.zeros((lanes, length), bool)
    fresh = np.array([lane.fresh for lane in work])
    user = np.array([lane.user for lane in work])
    asked = []
    for index, lane in enumerate(work):
        start, end, positions, query = lane.take(length)
        rows[index, : end - start] = np.arange(start, end)
        valid[index, : end - start] = True
        asked.append((positions, query))
        lane.fresh = False
    width = max(1, int(valid.sum(1).max()))
    most = max(1, max(len(query) for _, query in asked))
    positions_out = np.full((lanes, most), -1, np.int64)
    query_out = np.full((lanes, most), -1, np.int64)
    for index, (positions, query) in enumerate(asked):
        positions_out[index, : len(query)] = positions
        query_out[index, : len(query)] = query
    last = np.array([lane.done for lane in work])
    return LaneBatch(rows[:, :width], valid[:, :width], user, fresh, last, positions_out, query_out)
