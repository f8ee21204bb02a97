"""Recent popularity as the service keeps it: decayed counts per item at several half-lives, at any moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.sequences import Sequences, Split

Float64 = npt.NDArray[np.float64]

LARGEST = 2**27
"""Numbers of a table: half a gibibyte. A million items at three half-lives leave 44 slots."""


class LivePopularity:
    """Decayed counts of N items: sum over positive events of weight * 2^-((t - t_e) / half-life), kept at one reference time.

    Years after an item's last event its count there is too small for a float. For the ranking the counts are therefore kept as
    logarithms too, referred to the time of the first event seen: all fade alike, so their order holds at any moment.
    """

    def __init__(self, items: int, half_lives_s: Sequence[float]) -> None:
        self.rates = np.log(2) / (1000 * np.asarray(half_lives_s, np.float64))
        self.counts = np.zeros((items, len(half_lives_s)))
        self.logs = np.full((items, len(half_lives_s)), -np.inf)
        self.reference_ms: int | None = None
        self.origin_ms: int | None = None

    def observe(self, item: npt.NDArray[np.integer], weight: npt.NDArray[np.floating], time_ms: npt.NDArray[np.int64]) -> None:
        """Count events, in any order of time; a late one counts with its own time."""
        if not len(item):
            return
        latest = int(time_ms.max())
        if self.reference_ms is None or latest > self.reference_ms:
            if self.reference_ms is not None:
                self.counts *= np.exp(-(latest - self.reference_ms) * self.rates)
            self.reference_ms = latest
        faded = weight[:, None] * np.exp((time_ms - self.reference_ms)[:, None] * self.rates)
        np.add.at(self.counts, item, faded)
        if self.origin_ms is None:
            self.origin_ms = latest
        with np.errstate(divide="ignore"):  # a weight of 0 is a logarithm of -inf: nothing
            grown = np.log(weight)[:, None] + (time_ms - self.origin_ms)[:, None] * self.rates
        np.logaddexp.at(self.logs, item, grown)

    def at(self, as_of_ms: int) -> npt.NDArray[np.float32]:
        """(N, P) float32 at a moment; one before the reference gets the counts of the reference."""
        elapsed = 0 if self.reference_ms is None else max(0, as_of_ms - self.reference_ms)
        counts: npt.NDArray[np.float32] = (self.counts * np.exp(-elapsed * self.rates)).astype(np.float32)
        return counts

    def top(self, k: int) -> npt.NDArray[np.int64]:
        """The k most popular rows, best first, by the shortest half-life; ties by the longer ones in turn, then by lower row."""
        shortest_first = np.argsort(-self.rates, kind="stable")
        return np.lexsort([-self.logs[:, column] for column in shortest_first[::-1]])[:k]


def known_popularity(seq: Sequences, half_lives_s: Sequence[float], known: npt.NDArray[np.int64]) -> LivePopularity:
    """Popularity from each user's positive events before row `known[u]`."""
    live = LivePopularity(seq.items, half_lives_s)
    rows = np.flatnonzero(seq.positive & (np.arange(len(seq.item)) < known[seq.user]))
    live.observe(seq.item[rows], seq.weight[seq.type[rows]], seq.time[rows])
    return live


class PopularityTable:
    """The counts at the start of each of S equal slots of time, for training: no query sees its own slot's events."""

    def __init__(self, table: Tensor, start: int, width: int) -> None:
        """`table`: (S, N, P). `start`, `width`: of the first slot and of each, in ms."""
        self.table, self.start, self.width = table, start, width

    def on(self, device: torch.device) -> PopularityTable:
        """The same on a device."""
        return PopularityTable(self.table.to(device), self.start, self.width)

    @classmethod
    def live(cls, seq: Sequences, half_lives_s: Sequence[float], slots: int = 1000) -> PopularityTable:
        """As the service has it: what all users have done up to the moment; fewer and longer slots where there are many items."""
        slots = max(2, min(slots, LARGEST // (max(1, seq.items) * len(half_lives_s))))
        rows = np.flatnonzero(seq.positive)
        rows = rows[np.argsort(seq.time[rows], kind="stable")]
        start = int(seq.time[rows[0]])
        width = max(1, (int(seq.time[rows[-1]]) - start) // slots + 1)
        live = LivePopularity(seq.items, half_lives_s)
        bounds = np.searchsorted(seq.time[rows], start + np.arange(slots + 1) * width)
        table = np.zeros((slots, seq.items, len(half_lives_s)), np.float32)
        weight = seq.weight[seq.type]
        for slot in range(1, slots):
            new = rows[bounds[slot - 1] : bounds[slot]]
            live.observe(seq.item[new], weight[new], seq.time[new])
            table[slot] = live.at(start + slot * width)
        return cls(torch.as_tensor(table), start, width)

    @classmethod
    def frozen(cls, seq: Sequences, half_lives_s: Sequence[float], known: npt.NDArray[np.int64]) -> PopularityTable:
        """As leave-one-out asks: what is known beforehand, at every moment the same. There is no common time to follow."""
        counts = known_popularity(seq, half_lives_s, known).at(0)
        return cls(torch.as_tensor(counts[None]), 0, 1)

    def slot(self, as_of: Tensor) -> Tensor:
        """as_of (n) int64 ms -> (n) int64."""
        return torch.div(as_of - self.start, self.width, rounding_mode="floor").clamp(0, len(self.table) - 1)

    def at(self, as_of: Tensor) -> Tensor:
        """as_of (n) int64 ms -> counts (n, N, P)."""
        return self.table[self.slot(as_of)]


def popularity_of(seq: Sequences, split: Split, half_lives_s: Sequence[float]) -> PopularityTable:
    """What queries of a split may know of popularity: all that was before, or, leaving one out, what is known beforehand."""
    if split.protocol == "loo":
        return PopularityTable.frozen(seq, half_lives_s, split.train_end)
    return PopularityTable.live(seq, half_lives_s)
