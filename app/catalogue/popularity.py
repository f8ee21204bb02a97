"""Live popularity: exponentially decayed counts per item, in memory, carried on from the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from app.catalogue.catalogue import Catalogue

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

Increment = tuple[str, float, int]  # item id, weight, unix ms
Snapshot = Mapping[str, tuple[int, tuple[float, ...]]]  # item id -> unix ms the counts refer to, count per half-life


class LivePopularity:
    """Decayed counts of N items at P half-lives.

    All counts refer to one moment, the latest event seen, so that bringing them to a request's time costs one factor per
    half-life. Meant for one event loop: no method awaits.
    """

    def __init__(
        self, catalogue: Catalogue, half_lives_s: Sequence[float], counts: Float64, as_of_ms: int, in_flight_s: float
    ) -> None:
        """Start from (N, P) decayed counts at `as_of_ms`.

        `in_flight_s` is how long after `add` the same increments may still be on their way into the store.
        """
        self.half_lives_s = tuple(half_lives_s)
        self._catalogue = catalogue
        self._half_lives_ms = np.asarray(half_lives_s, np.float64) * 1e3
        self._counts: Float64 = np.array(counts, np.float64)  # (N, P), a copy: the bundle's is read-only
        self._at_ms = as_of_ms
        self._in_flight_s = in_flight_s
        self._touched_s = np.full(len(catalogue), -np.inf)  # (N,) when each row was last added to, on time.monotonic()
        self._shortest = int(np.argmin(self._half_lives_ms))

    def add(self, increments: Sequence[Increment], now_s: float) -> None:
        """Count events that were just stored; `now_s` is time.monotonic(). Unknown items count nothing."""
        known = [(row, weight, ms) for item_id, weight, ms in increments if (row := self._catalogue.row(item_id)) is not None]
        if not known:
            return
        rows, weights, times = (np.asarray(column) for column in zip(*known, strict=True))
        self._bring_to(int(times.max()))
        np.add.at(self._counts, rows, weights[:, np.newaxis] * self._factor((self._at_ms - times)[:, np.newaxis]))
        self._touched_s[rows] = now_s

    def refresh(self, snapshot: Snapshot, began_s: float) -> None:
        """Take over the store's counts, which other workers changed too.

        Args:
            began_s: time.monotonic() when reading the snapshot began. Whether it holds what was added here shortly before or
                since, nobody can know; such a row takes the larger of both counts, so that nothing of ours is ever missing.
        """
        known = [
            (row, ms, counts) for item_id, (ms, counts) in snapshot.items() if (row := self._catalogue.row(item_id)) is not None
        ]
        if not known:
            return
        rows = np.asarray([row for row, _, _ in known])
        times = np.asarray([ms for _, ms, _ in known], np.int64)
        self._bring_to(int(times.max()))
        counts = np.asarray([counts for _, _, counts in known], np.float64)
        counts *= self._factor((self._at_ms - times)[:, np.newaxis])
        ours = self._touched_s[rows] >= began_s - self._in_flight_s
        self._counts[rows] = np.where(ours[:, np.newaxis], np.maximum(counts, self._counts[rows]), counts)

    def at(self, as_of_ms: int) -> Float32:
        """(N, P) decayed counts at a moment; a moment before the latest event counts as that event's (nothing grows back)."""
        return (self._counts * self._factor(as_of_ms - self._at_ms)).astype(np.float32)

    def top(self, k: int, as_of_ms: int) -> tuple[list[int], list[float]]:
        """Rows of the k most popular items by the shortest half-life, best first, ties by lower row; and their counts then."""
        counts = self._counts[:, self._shortest]
        k = min(k, len(counts))
        threshold = np.partition(counts, len(counts) - k)[len(counts) - k]
        candidates = np.flatnonzero(counts >= threshold)
        rows = candidates[np.argsort(-counts[candidates], kind="stable")][:k]
        factor = self._factor(as_of_ms - self._at_ms)[self._shortest]
        return rows.tolist(), (counts[rows] * factor).tolist()

    def _factor(self, elapsed_ms: float | npt.NDArray[np.int64]) -> Float64:
        factor: Float64 = np.exp2(np.minimum(-elapsed_ms, 0.0) / self._half_lives_ms)
        return factor

    def _bring_to(self, time_ms: int) -> None:
        if time_ms > self._at_ms:
            self._counts *= self._factor(time_ms - self._at_ms)
            self._at_ms = time_ms
