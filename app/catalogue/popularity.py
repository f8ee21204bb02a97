"""Live popularity: exponentially decayed counts per item, in memory, carried on from the bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from app.catalogue.catalogue import Catalogue

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_MOST_ADDED = 10_000

Increment = tuple[str, float, int]  # item id, weight, unix ms
Snapshot = Mapping[str, tuple[int, Sequence[float]]]  # item id -> unix ms the counts refer to, count per half-life


class LivePopularity:
    """Decayed counts of N items at P half-lives.

    Each row's counts refer to its own latest event. Referred to one moment for all, an event years after the others would
    leave nothing of them but zeros, and no ranking. Meant for one event loop: no method awaits.
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
        self._times_ms: Int64 = np.full(len(catalogue), as_of_ms, np.int64)  # (N,) what each row refers to
        self._faded = self._counts.copy()  # (N, P) the same at the latest event of all, ready for `at`
        self._latest_ms = as_of_ms
        self._in_flight_s = in_flight_s
        # (N,) when each row was last added to, on time.monotonic(); 0 is never, and takes no memory.
        self._touched_s = np.zeros(len(catalogue))
        self._shortest_first = np.argsort(self._half_lives_ms, kind="stable").tolist()
        self._added: list[Increment] = []  # not counted yet
        self._added_s = -math.inf
        self._at: tuple[int, Float32] | None = None  # what `at` gave last

    def add(self, increments: Sequence[Increment], now_s: float) -> None:
        """Count events that were just stored; `now_s` is time.monotonic(). Unknown items count nothing."""
        # Gathered until somebody asks: counting one event costs as much as counting a hundred together.
        self._added.extend(increments)
        self._added_s = now_s
        if len(self._added) >= _MOST_ADDED:
            self._count()

    def _count(self) -> None:
        """Count what was gathered."""
        self._grow()
        if not self._added:
            return
        increments, self._added = self._added, []
        items, *columns = zip(*increments, strict=True)
        rows = np.asarray(self._catalogue.rows(items), np.int64)
        weights, times = (np.asarray(column)[rows >= 0] for column in columns)
        rows = rows[rows >= 0]
        if not len(rows):
            return
        before = self._times_ms[rows]
        np.maximum.at(self._times_ms, rows, times)
        after = self._times_ms[rows]
        # Assigned, not multiplied in place: a row that stands here twice must age once.
        self._counts[rows] = self._counts[rows] * self._factor(after - before)
        np.add.at(self._counts, rows, weights[:, np.newaxis] * self._factor(after - times))
        self._fade(rows, int(times.max()))
        self._touched_s[rows] = self._added_s

    def refresh(self, snapshot: Snapshot, began_s: float) -> None:
        """Take over the store's counts, which other workers changed too; what is no count (NaN, infinite, negative) is left out.

        Args:
            began_s: time.monotonic() when reading the snapshot began. Whether it holds what was added here shortly before or
                since, nobody can know; such a row takes the larger of both counts, so that nothing of ours is ever missing.
        """
        self._count()
        known = [
            (row, ms, counts)
            for item_id, (ms, counts) in snapshot.items()
            if (row := self._catalogue.row(item_id)) is not None and all(0 <= count < math.inf for count in counts)
        ]
        if not known:
            return
        rows = np.asarray([row for row, _, _ in known])
        times = np.asarray([ms for _, ms, _ in known], np.int64)
        counts = np.asarray([counts for _, _, counts in known], np.float64)
        touched_s = self._touched_s[rows]
        ours = (touched_s > 0) & (touched_s >= began_s - self._in_flight_s)
        mixed = rows[ours]
        after = np.maximum(times[ours], self._times_ms[mixed])
        kept = self._counts[mixed] * self._factor(after - self._times_ms[mixed])
        counts[ours] = np.maximum(counts[ours] * self._factor(after - times[ours]), kept)
        latest_ms = int(times.max())
        times[ours] = after
        self._counts[rows], self._times_ms[rows] = counts, times
        self._fade(rows, latest_ms)

    def at(self, as_of_ms: int) -> Float32:
        """(N, P) decayed counts at a moment; a moment before the latest event counts as that event's (nothing grows back).

        The moment is taken to its second: the requests of one second share one table. Do not write into it.
        """
        self._count()
        second_ms = as_of_ms - as_of_ms % 1000
        if self._at is None or self._at[0] != second_ms:
            elapsed_ms = np.asarray([max(second_ms - self._latest_ms, 0)])
            table = np.empty(self._faded.shape, np.float32)  # what comes between is not stored: it would be twice as large
            np.multiply(self._faded, self._factor(elapsed_ms), out=table, casting="same_kind")
            self._at = (second_ms, table)
        return self._at[1]

    @property
    def latest_ms(self) -> int:
        """The time of the latest event of all, which no moment that is asked for lies before."""
        self._count()
        return self._latest_ms

    def _grow(self) -> None:
        """Make room for items that were added."""
        new = len(self._catalogue) - len(self._times_ms)
        if new:
            nothing = np.zeros((new, len(self.half_lives_s)))
            self._counts, self._faded = np.concatenate([self._counts, nothing]), np.concatenate([self._faded, nothing])
            self._times_ms = np.concatenate([self._times_ms, np.full(new, self._latest_ms, np.int64)])
            self._touched_s = np.concatenate([self._touched_s, np.zeros(new)])
            self._at = None

    def top(
        self, k: int, as_of_ms: int, among: Sequence[int] | None = None, without: Sequence[int] = ()
    ) -> tuple[list[int], list[float]]:
        """Rows of the k most popular items that are available then, of all or of those in `among` and never those in `without`,
        best first, and their counts then.

        Ranked by the shortest half-life, ties by the longer ones in turn, then by lower row. The order is that of the exact
        counts, also where they are too small for a float and come out as 0.
        """
        self._count()
        ages = self._ages(as_of_ms)
        shortest = self._shortest_first[0]
        asked = np.arange(len(ages)) if among is None else np.unique(np.asarray(among, np.int64))
        opened = self._catalogue.open_at(as_of_ms)
        if not opened.all():
            asked = asked[opened[asked]]
        if without:
            asked = asked[np.isin(asked, without, invert=True)]
        if not len(asked):
            return [], []
        logs = self._logs(asked, ages, shortest)
        k = min(k, len(logs))
        candidates = asked[logs >= np.partition(logs, len(logs) - k)[len(logs) - k]]
        keys = [-self._logs(candidates, ages, column) for column in self._shortest_first]
        rows = candidates[np.lexsort(keys[::-1])][:k]
        return rows.tolist(), (self._counts[rows] * self._factor(ages[rows]))[:, shortest].tolist()

    def logs(self, as_of_ms: int, rows: Int64 | None = None, half_lives: int | None = None) -> Float64:
        """(n, P) logarithms of the exact counts of some rows (or all) at a moment, the shortest of so many half-lives (or all)
        first; -inf where there is nothing. `top` ranks by these, from left to right."""
        self._count()
        ages = self._ages(as_of_ms)
        chosen = np.arange(len(ages)) if rows is None else rows
        return np.stack([self._logs(chosen, ages, column) for column in self._shortest_first[:half_lives]], 1) * math.log(2.0)

    def _fade(self, rows: Int64, time_ms: int) -> None:
        """Go on to a moment, if it is later than the latest event, and take the changed rows over."""
        if time_ms > self._latest_ms:
            self._faded *= self._factor(np.asarray([time_ms - self._latest_ms]))
            self._latest_ms = time_ms
        self._faded[rows] = self._counts[rows] * self._factor(self._latest_ms - self._times_ms[rows])
        self._at = None

    def _ages(self, as_of_ms: int) -> Int64:
        """(N,) ms from what each row refers to until a moment."""
        ages: Int64 = max(as_of_ms, self._latest_ms) - self._times_ms
        return ages

    def _logs(self, rows: Int64, ages: Int64, column: int) -> Float64:
        """log2 of the decayed counts of some rows at one half-life; -inf where there is nothing."""
        with np.errstate(divide="ignore"):
            logs: Float64 = np.log2(self._counts[rows, column]) - ages[rows] / self._half_lives_ms[column]
        return logs

    def _factor(self, elapsed_ms: Int64) -> Float64:
        """(n,) elapsed times -> (n, P) factors."""
        factor: Float64 = np.exp2(-elapsed_ms[:, np.newaxis] / self._half_lives_ms)
        return factor
