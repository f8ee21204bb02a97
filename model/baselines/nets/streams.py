"""What the neural baselines read: every user's purchases as one stream of tokens, cut into windows, batched by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data.sequences import Int64, Queries, Sequences
from model.data.splits import expand

BEGIN = 0
"""The token before a user's first purchase; item row i is token i + 1."""


@dataclass(frozen=True)
class Window:
    """W windows, each the tokens `start:stop` of one user's stream; numbers of tokens over all streams. (W,) each."""

    start: Int64
    stop: Int64


@dataclass(frozen=True)
class TokenBatch:
    """B windows and the n queries within.

    Attributes:
        tokens: (B, T), padded at the end with `BEGIN`.
        lane, column: (n,) the token after which each query is asked. query: (n,) which one it is.
    """

    tokens: Int64
    lane: Int64
    column: Int64
    query: Int64

    @property
    def asked(self) -> int:
        """How many queries it has."""
        return len(self.query)

    def part(self, rank: int, size: int) -> TokenBatch:
        """What one of `size` processes takes of it."""
        own = self.lane % size == rank
        return TokenBatch(self.tokens[rank::size], self.lane[own] // size, self.column[own], self.query[own])


class Streams:
    """The streams of all users, one after another, each a `BEGIN` and then the user's positive events of the vocabulary.

    Attributes:
        token: (P + U,). begin: (U + 1,) where each user's stream begins.
    """

    def __init__(self, seq: Sequences) -> None:
        positive = seq.positive
        self._before = np.concatenate([[0], np.cumsum(positive)]).astype(np.int64)  # (E + 1,) purchases before each event row
        self.begin: Int64 = self._before[seq.offsets] + np.arange(seq.users + 1)
        rows = np.flatnonzero(positive)
        self.token = np.full(len(rows) + seq.users, BEGIN, np.int64)
        self.token[np.arange(len(rows)) + seq.user[rows] + 1] = seq.item[rows] + 1

    def places(self, queries: Queries) -> Int64:
        """(Q,) number of the last token before each query: the user's last purchase, or the `BEGIN`."""
        places: Int64 = self._before[queries.position] + queries.user
        return places

    def training_windows(self, queries: Queries, length: int, rng: np.random.Generator) -> Window:
        """Cuts every user's stream, up to the last query, into windows of `length` tokens; the first cut falls anywhere."""
        users = np.unique(queries.user)
        last = np.zeros(len(self.begin) - 1, np.int64)
        np.maximum.at(last, queries.user, self.places(queries) + 1)
        begin, end = self.begin[users], last[users]
        first = np.where(end - begin > length, rng.integers(1, length + 1, len(users)), end - begin)
        count = 1 + -(-(end - begin - first) // length)
        nth = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        cut = np.repeat(begin + first, count)
        start = np.where(nth == 0, np.repeat(begin, count), cut + (nth - 1) * length)
        return Window(start, np.minimum(cut + nth * length, np.repeat(end, count)))

    def asking_windows(self, queries: Queries, length: int) -> Window:
        """For each query the last `length` tokens before it; those of a user's first `length` tokens share one window."""
        place, begin = self.places(queries), self.begin[queries.user]
        early = place - begin < length
        users, which = np.unique(queries.user[early], return_inverse=True)
        stop = np.zeros(len(users), np.int64)
        np.maximum.at(stop, which, place[early] + 1)
        late = np.unique(place[~early])
        return Window(np.concatenate([self.begin[users], late - length + 1]), np.concatenate([stop, late + 1]))

    def batches(
        self, windows: Window, queries: Queries, most_tokens: int, rng: np.random.Generator | None, ends_alone: bool = False
    ) -> Iterator[TokenBatch]:
        """Windows of like length together, at most `most_tokens` with padding (or one window alone).

        Args:
            rng: mixes neighbouring lengths and the order of the batches; None: longest first.
            ends_alone: a window answers only the queries at its last token, unless it begins a stream.
        """
        place = self.places(queries)
        by_place = np.argsort(place, kind="stable")
        place = place[by_place]
        length = windows.stop - windows.start
        low = np.searchsorted(place, windows.start)
        if ends_alone:
            low = np.where(self.token[windows.start] == BEGIN, low, np.searchsorted(place, windows.stop - 1))
        high = np.searchsorted(place, windows.stop)
        noise = rng.uniform(0.9, 1.1, len(length)) if rng else np.ones(len(length))
        order = np.argsort(-length * noise, kind="stable")
        order = order[high[order] > low[order]]
        groups = list(_groups(length[order], most_tokens))
        for group in rng.permutation(len(groups)).tolist() if rng else range(len(groups)):
            chosen = order[groups[group]]
            yield self._batch(windows.start[chosen], length[chosen], place, by_place, low[chosen], high[chosen])

    def _batch(
        self,
        start: Int64,
        length: Int64,
        place: Int64,
        by_place: npt.NDArray[np.int64],
        low: npt.NDArray[np.int64],
        high: npt.NDArray[np.int64],
    ) -> TokenBatch:
        column = np.arange(int(length.max()))
        inside = column < length[:, None]
        tokens = np.where(inside, self.token[np.where(inside, start[:, None] + column, 0)], BEGIN)
        lanes = np.arange(len(start))
        asked = expand(low, high, lanes)
        lane = np.repeat(lanes, high - low)
        return TokenBatch(tokens, lane, place[asked] - start[lane], by_place[asked])


def _groups(length: Int64, most_tokens: int) -> Iterator[slice]:
    """Consecutive windows whose longest, times their number, is at most `most_tokens`."""
    begin, longest = 0, 0
    for index, each in enumerate(length.tolist()):
        longest = max(longest, each)
        if index > begin and longest * (index + 1 - begin) > most_tokens:
            yield slice(begin, index)
            begin, longest = index, each
    if len(length):
        yield slice(begin, len(length))
