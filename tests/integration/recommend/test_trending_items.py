"""What rises, as several workers see it: against the formula, whatever becomes of the store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from time import time_ns
from typing import Any

import numpy as np
import pytest
import redis

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import StorageError
from app.ingest.trend import TrendCounter
from app.recommend.trending import PRIOR, TrendingItems
from app.state.redis import RedisStore
from app.state.trends import FINE, RINGS, Ring, Trends

DAY_S = 86_400.0
NOW = 1_700_000_100_000  # a bucket of five minutes and one of an hour begin 100 s and 15 min 100 s before
MINUTE = 60_000
N = 8


class Watched(Trends):
    """Counts what is asked for; may be away."""

    away = False
    asked = 0
    read_buckets = 0

    async def versions(self, tenant: str, ring: Ring, buckets: Sequence[int]) -> list[bytes | None]:
        self.asked += 1
        if self.away:
            raise StorageError("away")
        return await super().versions(tenant, ring, buckets)

    async def read(self, tenant: str, ring: Ring, buckets: Sequence[int]) -> AsyncIterator[Any]:
        self.read_buckets += len(buckets)
        async for some in super().read(tenant, ring, buckets):
            yield some

    async def count(self, tenant: str, weights: Any) -> None:
        if self.away:
            raise StorageError("away")
        await super().count(tenant, weights)


class Worker:
    """One worker's part of it; `known` is what was used in the long run."""

    def __init__(self, store: RedisStore, known: Sequence[float] = (), fresh_s: float = 0.0, items: int = N) -> None:
        ids = [f"i{row}" for row in range(items)]
        categories = [("even",) if row % 2 == 0 else ("odd", "three") for row in range(items)]
        self.catalogue = Catalogue(ids, ids, categories, np.zeros((items, 2), np.float32), np.zeros(items, np.float32))
        counts = np.zeros((items, 2))
        counts[: len(known), 1] = known
        self.popularity = LivePopularity(self.catalogue, (DAY_S, 30 * DAY_S), counts, NOW, in_flight_s=1.0)
        self.trends = Watched(store)
        self.counter = TrendCounter(self.trends, 0.01, lambda item: self.catalogue.row(item) is not None)
        self.trending = TrendingItems(self.trends, "default", self.catalogue, self.popularity, fresh_s)

    async def tell(self, *events: tuple[str, float, float]) -> None:
        """(item, minutes before NOW, weight), counted at once and, as the write path does, in popularity too."""
        increments = [(item, weight, int(NOW - minutes * MINUTE)) for item, minutes, weight in events]
        self.popularity.add(increments, 0.0)
        self.counter.add("default", increments)
        await self.counter.flush()

    async def top(self, window: Any = "1h", k: int = 20, minutes: float = 0.0, **where: Any) -> dict[str, float]:
        rising = await self.trending.top(window, k, int(NOW - minutes * MINUTE), **where)
        return dict(zip([self.catalogue.ids[row] for row in rising.rows], rising.scores, strict=True))


async def test_scores_are_those_of_the_formula(store: RedisStore):
    known = [1000.0, 100.0, 10.0, 0.0, 500.0, 0.0, 0.0, 0.0]
    worker = Worker(store, known)
    used = {"i0": 65.0, "i1": 40.0, "i2": 5.0, "i3": 3.0}
    await worker.tell(*((item, 5.0, weight) for item, weight in used.items()))
    total = sum(used.values())
    decays = 3600 / (30 * DAY_S)
    left = (1 - 2**-decays) / (math.log(2) * decays)
    table = np.asarray(known)
    for item, weight in used.items():
        table[int(item[1:])] += weight * (1 - left)  # the window's own part but for what it has decayed
    expected = {}
    for item, weight in used.items():
        usual = total * table[int(item[1:])] / table.sum()
        expected[item] = (weight + PRIOR) / (usual + PRIOR)
    found = await worker.top()
    assert list(found) == ["i1", "i2", "i3"]  # i0, the most used by far, is as popular as ever
    assert found == pytest.approx({item: expected[item] for item in found}, rel=1e-3)
    assert expected["i0"] < 1
    rising = await worker.trending.top("1h", 2, NOW)
    assert (rising.rows, rising.weights, rising.degraded) == ([1, 2], [40.0, 5.0], False)


async def test_more_use_of_everything_lifts_nothing(store: RedisStore):
    known = [4000.0, 3000.0, 2000.0, 1000.0]
    worker = Worker(store, known)
    await worker.tell(*((f"i{row}", 5.0, known[row] / 10) for row in range(4)))
    assert max((await worker.top()).values(), default=1.0) < 1.01


async def test_on_the_first_day_of_a_shop_what_is_used_most_rises_most(store: RedisStore):
    worker = Worker(store)
    await worker.tell(("i2", 3, 9.0), ("i1", 2, 20.0), ("i5", 2, 1.0), ("i4", 2, 1.0))
    assert list(await worker.top()) == ["i1", "i2", "i4", "i5"]  # ties by row


async def test_a_large_catalogue_is_ranked_as_a_small_one(store: RedisStore, monkeypatch: pytest.MonkeyPatch):
    worker = Worker(store, [50.0, 10.0, 0.0, 10.0])
    await worker.tell(*((f"i{row}", 5, 5.0 + row) for row in range(6)))
    inline = await worker.top()
    monkeypatch.setattr("app.recommend.trending._INLINE_ITEMS", 0)
    large = Worker(store, [50.0, 10.0, 0.0, 10.0])
    large.popularity.add([(f"i{row}", 5.0 + row, NOW - 5 * MINUTE) for row in range(6)], 0.0)
    assert await large.top() == inline


async def test_windows_hold_what_lies_within_them(store: RedisStore):
    worker = Worker(store)
    events = {"i0": 5, "i1": 40, "i2": 90, "i3": 20 * 60, "i4": 26 * 60}
    await worker.tell(*((item, minutes, 5.0) for item, minutes in events.items()))
    assert set(await worker.top("30m")) == {"i0"}
    assert set(await worker.top("1h")) == {"i0", "i1"}
    assert set(await worker.top("1d")) == {"i0", "i1", "i2", "i3"}
    assert set(await worker.top("30m", minutes=15)) == {"i1"}
    assert set(await worker.top("1h", minutes=-120)) == set()
    assert set(await worker.top("1d", minutes=-120)) == {"i0", "i1", "i2", "i3"}


async def test_of_the_bucket_where_the_window_begins_counts_what_lies_within(store: RedisStore):
    worker = Worker(store)
    start = FINE.bucket(NOW) * 300_000
    worker.counter.add("default", [("i0", 100.0, start)])
    await worker.counter.flush()
    # In half an hour the bucket is at the edge of the window, and leaves it evenly.
    for seconds, inside in [(1790, 1.0), (1800, 1.0), (1875, 0.75), (1950, 0.5), (2099, 1 / 300)]:
        rising = await worker.trending.top("30m", 1, start + seconds * 1000)
        assert rising.weights == pytest.approx([100.0 * inside])
    assert (await worker.trending.top("30m", 1, start + 2_100_000)).rows == []


async def test_all_workers_agree_and_one_that_starts_anew_knows_it(store: RedisStore):
    one, other = Worker(store), Worker(store)
    await one.tell(("i1", 5, 3.0))
    await other.tell(("i1", 5, 4.0), ("i2", 5, 1.0))
    for worker in (one, other, Worker(store)):
        rising = await worker.trending.top("1h", 5, NOW)
        assert (rising.rows, rising.weights) == ([1, 2], [7.0, 1.0])


async def test_what_is_gathered_is_counted_soon_without_being_asked(store: RedisStore):
    worker = Worker(store)
    worker.counter.add("default", [("i1", 1.0, NOW)])
    async with asyncio.timeout(5):
        while True:
            if await worker.top():
                break
            await asyncio.sleep(0.01)
    worker.counter.add("default", [("i2", 1.0, NOW)])
    await worker.counter.close()
    assert set(await worker.top()) == {"i1", "i2"}


async def test_a_category_has_the_scores_of_the_whole(store: RedisStore):
    worker = Worker(store, [50.0, 10.0, 0.0, 10.0])
    await worker.tell(*((f"i{row}", 5, 5.0 + row) for row in range(6)))
    whole = await worker.top()
    assert await worker.top(category="odd") == {item: whole[item] for item in whole if int(item[1]) % 2}
    assert list(await worker.top(category="three", k=1)) == [next(item for item in whole if int(item[1]) % 2)]
    assert await worker.top(category="nothing") == {}


async def test_only_buckets_that_have_changed_are_read_and_not_more_often_than_asked(store: RedisStore):
    worker = Worker(store)
    await worker.tell(("i1", 5, 1.0), ("i2", 40, 1.0))
    await worker.top()
    assert worker.trends.read_buckets == 2
    await worker.top()
    assert worker.trends.read_buckets == 2
    await worker.tell(("i3", 5, 1.0))
    assert set(await worker.top()) == {"i1", "i2", "i3"}
    assert worker.trends.read_buckets == 3
    calm = Worker(store, fresh_s=60.0)
    for _ in range(5):
        assert len(await calm.top()) == 3
    await calm.tell(("i4", 5, 1.0))
    assert len(await calm.top()) == 3
    assert calm.trends.asked == 1


async def test_questions_about_long_gone_moments_do_not_have_everything_read_again(store: RedisStore):
    worker = Worker(store, fresh_s=60.0)
    await worker.tell(("i1", 5, 1.0), ("i2", 40, 1.0))
    for turn in range(FINE.slots + 1):
        assert await worker.top(minutes=5 * (FINE.slots * 100 + turn)) == {}
        assert len(await worker.top()) == 2
    assert worker.trends.read_buckets == 2


async def test_an_item_that_comes_into_the_catalogue_later_is_found_in_what_was_counted(store: RedisStore):
    await Worker(store, items=N + 1).tell(("i8", 5, 3.0))
    worker = Worker(store)
    assert await worker.top() == {}
    grown = Worker(store, items=N + 1)
    worker.trending._catalogue, worker.trending._popularity = grown.catalogue, grown.popularity
    rising = await worker.trending.top("1h", 5, NOW)
    assert rising.rows == [8]


async def test_while_storage_is_away_the_list_is_what_was_read_last(store: RedisStore):
    worker = Worker(store)
    worker.trends.away = True
    rising = await worker.trending.top("1h", 5, NOW)
    assert (rising.rows, rising.degraded) == ([], True)
    worker.trends.away = False
    await worker.tell(("i1", 5, 1.0))
    assert list(await worker.top()) == ["i1"]
    worker.trends.away = True
    await worker.tell(("i2", 5, 1.0))  # nobody hears of it: a count is not worth a failure
    rising = await worker.trending.top("1h", 5, NOW)
    assert (rising.rows, rising.degraded) == ([1], True)
    worker.trends.away = False
    assert list(await worker.top()) == ["i1"]


async def test_a_store_that_is_away_is_not_asked_by_every_request(store: RedisStore):
    worker = Worker(store, fresh_s=60.0)
    worker.trends.away = True
    for _ in range(5):
        assert (await worker.trending.top("1h", 5, NOW)).degraded
    assert worker.trends.asked == 1


async def test_an_emptied_store_is_noticed(store: RedisStore, raw: redis.Redis):
    worker = Worker(store)
    await worker.tell(("i1", 5, 1.0))
    assert list(await worker.top()) == ["i1"]
    raw.flushall()
    assert await worker.top() == {}


async def test_history_that_arrives_late_and_clocks_that_are_ahead_do_no_harm(store: RedisStore, raw: redis.Redis):
    worker = Worker(store)
    now_ms = time_ns() // MINUTE * MINUTE // 1_000_000
    await worker.tell(("i1", 5, 1.0))
    old = [("i2", 1.0, NOW - day * 86_400_000) for day in range(2, 3_000)]
    worker.counter.add("default", old)
    await worker.counter.flush()
    assert len(raw.keys("lw:{trend-*")) == 2  # of history nothing is kept
    worker.counter.add("default", [("i3", 1.0, now_ms + 50 * MINUTE), ("nowhere", 9.0, now_ms), ("i4", 0.0, now_ms)])
    await worker.counter.flush()
    rising = await worker.trending.top("30m", 5, time_ns() // 1_000_000)
    assert rising.rows == [3]  # counted now, not in 50 minutes
    assert len(RINGS) == 2
