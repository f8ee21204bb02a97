"""Items that are used unusually much of late: rising ones, not those that always are popular.

An item's score is how many times what is usual it was used within the window, drawn towards 1 where little is known:

    score = (n + PRIOR) / (usual + PRIOR),    usual = W * b / max(B, W)

n is the weight of its events within the window (event types weigh as for popularity) and W that of all items; b is its decayed
count at the model's longest half-life without what the window added to it, and B that of all items. So `usual` is the share
that the item has in the long run: that everything is used more in the evening lifts nothing. Where less was known before than
the window has (a shop on its first days), no more than what was known is expected. Items at or below 1 are not listed.

The score is the mean of the rate's posterior when n is Poisson and the rate has a Gamma prior of mean 1: DuMouchel, Bayesian data
mining in large frequency tables, The American Statistician 53 (1999).

The window slides over buckets (app/state/trends.py): of the bucket where it begins the part that lies within it counts, the one
where it ends counts whole. A worker that is asked reads the buckets that have changed, at most once a second; so all of them
count the same within two seconds. What is usual follows with the popularity table, `LONGWAVE_POPULARITY_REFRESH_MS`.

Cost: two writes per event in Redis, gathered for a fifth of a second; per worker and second in which it is asked, the bucket of
now, read again if it has changed, and a ranking of the items that were used. A worker that has just started reads all buckets of
the window. Nothing of it runs while nobody asks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import structlog
from msgspec import Meta

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import Float32, LivePopularity
from app.errors import StorageError
from app.state.trends import COARSE, FINE, Ring, Trends

PRIOR: Final = 10.0
_LEAST: Final = 1e-300  # nothing was used
_INLINE_ITEMS: Final = 50_000
"""With more items than this the ranking would hold up every other request of the event loop: it goes to a thread."""

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
WindowName = Literal["30m", "1h", "1d"]

log = structlog.get_logger()


class TrendingItem(msgspec.Struct, frozen=True):
    """An item that is rising."""

    item_id: str
    score: Annotated[float, Meta(description="How many times what is usual, drawn towards 1 where little is known.")]
    weight: Annotated[float, Meta(description="Of its events within the window, as their types weigh for popularity.")]
    title: str | None


@dataclass(frozen=True, slots=True)
class Rising:
    """Rows, scores and weights within the window, best first, ties by lower row.

    `degraded` says that storage is away: what was read last is all there is.
    """

    rows: list[int]
    scores: list[float]
    weights: list[float]
    degraded: bool


@dataclass(frozen=True, slots=True)
class _Window:
    length_s: int
    ring: Ring


_WINDOWS: Final[dict[WindowName, _Window]] = {
    "30m": _Window(1_800, FINE),
    "1h": _Window(3_600, FINE),
    "1d": _Window(86_400, COARSE),
}


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A bucket as it was read, at `seen_s` on time.monotonic(); of one with `version` None nothing is there.

    `lacking` is the size of the catalogue if it did not have all of the items, else None.
    """

    number: int
    version: bytes | None
    rows: Int64
    weights: Float64
    lacking: int | None
    seen_s: float


@dataclass(frozen=True, slots=True)
class _Ranked:
    """All items that rise, best first; `basis` is what that was worked out from."""

    basis: object
    rows: Int64
    scores: Float64
    weights: Float64


class TrendingItems:
    """What rises, for one tenant and the items of one catalogue."""

    def __init__(self, trends: Trends, tenant: str, catalogue: Catalogue, popularity: LivePopularity, fresh_s: float) -> None:
        """`fresh_s` is how long what was read counts as new."""
        self._trends = trends
        self._tenant = tenant
        self._catalogue = catalogue
        self._popularity = popularity
        self._fresh_s = fresh_s
        self._buckets: dict[tuple[Ring, int], _Bucket] = {}  # by slot
        self._ranked: dict[WindowName, _Ranked] = {}
        self._one = asyncio.Lock()
        self._away_s = -math.inf  # when storage last did not answer, on time.monotonic()

    async def top(self, window: WindowName, k: int, as_of_ms: int, category: str | None = None) -> Rising:
        """The k items that rise most at a moment, which is taken to its second; of a category, if one is given."""
        degraded = False
        second_ms = as_of_ms - as_of_ms % 1000
        first, last = self._span(window, second_ms)
        async with self._one:  # who asks meanwhile finds it done
            try:
                await self._refresh(_WINDOWS[window].ring, range(first, last + 1))
            except StorageError as error:
                log.warning("storage is away, trends are as they were read last", error=error.detail)
                degraded = True
            ranked = await self._rank(window, second_ms)
        best = np.fromiter(islice(self._within(ranked.rows, category, second_ms), k), np.int64)
        return Rising(ranked.rows[best].tolist(), ranked.scores[best].tolist(), ranked.weights[best].tolist(), degraded)

    def _within(self, rows: Int64, category: str | None, second_ms: int) -> Iterator[int]:
        """Places of the rows that are available, those of a category if one is given."""
        asked = self._catalogue.open_at(second_ms)
        if category is not None:
            asked = asked & self._catalogue.categories.any_of([category])[: len(asked)]
        return iter(np.flatnonzero(asked[rows]).tolist())

    def _span(self, window: WindowName, second_ms: int) -> tuple[int, int]:
        """The first and the last bucket of a window."""
        ring, length_s = _WINDOWS[window].ring, _WINDOWS[window].length_s
        return ring.bucket(max(second_ms - 1000 * length_s, 0)), ring.bucket(second_ms)

    async def _refresh(self, ring: Ring, numbers: range) -> None:
        """Read the buckets that have changed, unless that was looked at a moment ago."""
        now_s = monotonic()
        old = [number for number in numbers if not self._is_fresh(self._bucket(ring, number), now_s)]
        if not old:
            return
        if now_s < self._away_s + self._fresh_s:
            raise StorageError("Redis did not answer a moment ago")
        try:
            versions = dict(zip(old, await self._trends.versions(self._tenant, ring, old), strict=True))
            changed = [number for number in old if self._has_changed(self._bucket(ring, number), versions[number])]
            read = await self._read(ring, [number for number in changed if versions[number] is not None])
        except StorageError:
            self._away_s = monotonic()
            raise
        for number, version in versions.items():
            slot = (ring, number % ring.slots)
            if version is None and slot in self._buckets and self._buckets[slot].number != number:
                continue  # a question about a moment of which nothing is left must not cost what is there
            before = self._bucket(ring, number)
            if before is not None and number not in changed:
                bucket = replace(before, seen_s=now_s)
            else:
                weights, lacking = read.get(number, ({}, None))
                rows = np.fromiter(weights, np.int64, len(weights))
                values = np.fromiter(weights.values(), np.float64, len(weights))
                bucket = _Bucket(number, version, rows, values, lacking, now_s)
            self._buckets[slot] = bucket

    async def _read(self, ring: Ring, numbers: Sequence[int]) -> dict[int, tuple[dict[int, float], int | None]]:
        """Bucket -> weights by row, and the size of the catalogue if that lacks some of the items."""
        found: dict[int, tuple[dict[int, float], int | None]] = {number: ({}, None) for number in numbers}
        async for number, items in self._trends.read(self._tenant, ring, numbers):
            weights, lacking = found[number]
            for item, weight in items:
                row = self._catalogue.row(item)
                if row is None:
                    lacking = len(self._catalogue)
                else:
                    weights[row] = weight
            found[number] = weights, lacking
        return found

    def _bucket(self, ring: Ring, number: int) -> _Bucket | None:
        """What was read of a bucket, if anything was."""
        bucket = self._buckets.get((ring, number % ring.slots))
        return bucket if bucket is not None and bucket.number == number else None

    def _is_fresh(self, bucket: _Bucket | None, now_s: float) -> bool:
        return bucket is not None and now_s < bucket.seen_s + self._fresh_s

    def _has_changed(self, bucket: _Bucket | None, version: bytes | None) -> bool:
        """Whether it must be read, also for the sake of items that the catalogue has by now."""
        return bucket is None or bucket.version != version or bucket.lacking not in (None, len(self._catalogue))

    async def _rank(self, window: WindowName, second_ms: int) -> _Ranked:
        ring, length_s = _WINDOWS[window].ring, _WINDOWS[window].length_s
        first, last = self._span(window, second_ms)
        buckets = [bucket for number in range(first, last + 1) if (bucket := self._bucket(ring, number)) is not None]
        basis = (second_ms, len(self._catalogue), [(bucket.number, bucket.version, bucket.lacking) for bucket in buckets])
        ranked = self._ranked.get(window)
        if ranked is not None and ranked.basis == basis:
            return ranked
        shares = []
        for bucket in buckets:
            start_ms, end_ms = (1000 * ring.width_s * number for number in (bucket.number, bucket.number + 1))
            shares.append((end_ms - max(start_ms, second_ms - 1000 * length_s)) / (end_ms - start_ms))
        half_life_s = max(self._popularity.half_lives_s)
        # Popularity is the event loop's; taken here, not in the thread.
        table = self._popularity.at(second_ms)[:, self._popularity.half_lives_s.index(half_life_s)]
        decays = length_s / half_life_s
        if len(table) <= _INLINE_ITEMS:
            ranked = _scored(basis, buckets, shares, table, decays)
        else:
            ranked = await asyncio.to_thread(_scored, basis, buckets, shares, table, decays)
        self._ranked[window] = ranked
        return ranked


def _scored(basis: object, buckets: Sequence[_Bucket], shares: Sequence[float], table: Float32, decays: float) -> _Ranked:
    """Args:
    shares: how much of each bucket lies within the window.
    table: (N,) decayed counts, among them what happened within the window.
    decays: length of the window in half-lives of these.
    """
    counts = np.zeros(len(table))
    for bucket, share in zip(buckets, shares, strict=True):
        counts[bucket.rows] += share * bucket.weights
    # What is left on average of events that were spread evenly over the window.
    left = (1 - 2.0**-decays) / (math.log(2) * decays)
    known = np.maximum(table - left * counts, 0.0)
    used = np.flatnonzero(counts)
    total, of_all = float(counts.sum()), float(known.sum())
    usual = known[used] * (total / max(of_all, total, _LEAST))
    scores = (counts[used] + PRIOR) / (usual + PRIOR)
    rising = np.flatnonzero(scores > 1.0)
    order = rising[np.argsort(-scores[rising], kind="stable")]
    return _Ranked(basis, used[order], scores[order], counts[used[order]])
