"""Truncated back-propagation that never forgets: lanes carry a user's state from chunk to chunk, as the live service does.

Each of B lanes works through whole users, chunk by chunk; the detached state goes on to the user's next chunk, and a lane
that has finished a user starts the next one from the initial state. Every batch has a random length, so that the cuts fall
elsewhere in every epoch, and a row is padded only where its user ends: no state behind padding is ever carried on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data.sequences import Queries


@dataclass(frozen=True)
class LaneBatch:
    """One chunk per lane.

    Attributes:
        rows: (B, T) event rows, any row where not valid. valid: (B, T), padding at the end.
        user: (B,) user of each lane. fresh: (B,) whether the lane begins a user here.
        positions: (B, P) moments within the chunk, -1 is padding. query: (B, P) index of the query, -1 is padding.
    """

    rows: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    user: npt.NDArray[np.int64]
    fresh: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]
    query: npt.NDArray[np.int64]

    @property
    def asked(self) -> int:
        """How many queries it has."""
        return int((self.query >= 0).sum())

    def part(self, rank: int, size: int) -> LaneBatch:
        """What one of `size` processes takes of it: whole users, the same ones in every batch."""
        own = self.user % size == rank
        rows, valid, user, fresh = self.rows[own], self.valid[own], self.user[own], self.fresh[own]
        return LaneBatch(rows, valid, user, fresh, self.positions[own], self.query[own])


def lane_batches(
    begin: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    queries: Queries,
    lanes: int,
    length: int,
    rng: np.random.Generator | None,
) -> Iterator[LaneBatch]:
    """Chunks of all users that have a query, up to their last query or `end`, whichever comes first.

    A query belongs to the chunk that holds the event before it; one before any event to the first chunk (position 0).

    Args:
        begin (U,), end (U,): each user's rows are `begin[u]:end[u]`.
        queries: any order.
        length: most events of a chunk.
        rng: shuffles users and cuts; None takes long users first and full chunks, for evaluation.
    """
    by_user = np.lexsort((queries.position, queries.user))
    users, first = np.unique(queries.user[by_user], return_index=True)
    bounds = np.append(first, len(by_user))
    last = queries.position[by_user[bounds[1:] - 1]]
    stop = np.minimum(end[users], last)
    chunks = (stop - begin[users]) / length
    if rng is None:
        order = np.argsort(-chunks, kind="stable")
    else:
        # A user of n chunks starts within the first 1 - n / steps of the epoch: random, and no lane is left alone at the end.
        share = np.minimum(1.0, chunks * lanes / max(1.0, chunks.sum()))
        order = np.argsort(rng.random(len(users)) * (1 - share), kind="stable")
    queue = iter(order)
    work = [_Lane() for _ in range(min(lanes, len(users)))]
    while True:
        batch = []
        for lane in work:
            if lane.done:
                index = next(queue, None)
                if index is None:
                    continue
                user = int(users[index])
                chosen = by_user[bounds[index] : bounds[index + 1]]
                lane.begin(user, int(begin[user]), int(stop[index]), queries.position[chosen], chosen)
            batch.append(lane)
        work = batch
        if not work:
            return
        yield _batch(work, length if rng is None else int(rng.integers(length // 2, length + 1)))


class _Lane:
    """Where one lane stands: the rest of its user's rows and queries."""

    def __init__(self) -> None:
        self.done = True

    def begin(
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
    return LaneBatch(rows[:, :width], valid[:, :width], user, fresh, positions_out, query_out)
