"""Popularity that all workers share: begun with the bundle's, read again when others counted, whatever becomes of the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any

import numpy as np
import pytest
import redis
import structlog

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import LayoutError, StorageError
from app.ingest.count import PopularityCounter
from app.recommend.follow import PopularityFollower
from app.state import keys
from app.state.redis import RedisStore

HALF_LIVES_S = (86_400.0, 864_000.0)
NOW = 1_700_000_000_000
IDS = ["a", "b", "c"]
COUNTS = np.asarray([[3.0, 4.0], [2.0, 3.0], [0.0, 0.0]])


class WatchedStore(RedisStore):
    """Counts how often the table was read; may be away."""

    reads = 0
    away = False

    async def popularity_events(self, tenant: str, half_lives_s: Sequence[float]) -> int:
        if self.away:
            raise StorageError("away")
        return await super().popularity_events(tenant, half_lives_s)

    async def popularity_parts(self, tenant: str, half_lives_s: Sequence[float]) -> AsyncIterator[Any]:
        self.reads += 1
        async for some in super().popularity_parts(tenant, half_lives_s):
            yield some
            if self.away:
                raise StorageError("away")


class Worker:
    """What one worker has of popularity."""

    def __init__(self, redis_url: str, counts: Any = COUNTS) -> None:
        self.store = WatchedStore(redis_url)
        catalogue = Catalogue(IDS, IDS, [()] * 3, np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
        self.live = LivePopularity(catalogue, HALF_LIVES_S, counts, NOW, in_flight_s=0.0)
        bundled = dict(zip(IDS, counts.tolist(), strict=True))
        self.counter = PopularityCounter(self.store, HALF_LIVES_S, 0.0, begins=lambda item_id: (NOW, bundled[item_id]))
        self.follower = PopularityFollower(self.store, self.live, "default", lambda: self.counter.others_counted("default"))

    async def count(self, item: str, weight: float = 1.0) -> None:
        """As the write path does: in memory at once, in the store behind."""
        self.live.add([(item, weight, NOW)], monotonic())
        self.counter.add("default", [(item, weight, NOW)])
        await self.counter.flush()

    def counts(self) -> list[list[float]]:
        return self.live.at(NOW).tolist()


@pytest.fixture
async def worker(redis_url: str):
    workers: list[Worker] = []

    def start(counts: Any = COUNTS) -> Worker:
        workers.append(Worker(redis_url, counts))
        return workers[-1]

    yield start
    for one in workers:
        await one.counter.close()
        await one.store.close()


async def test_what_was_counted_goes_on_from_the_bundles_counts_and_a_newer_bundle_does_not_change_it(worker):
    one = worker()
    await one.follower.refresh()
    await one.count("a", 5.0)
    same, newer = worker(), worker(COUNTS + 100)  # started later
    for each in (same, newer):
        await each.follower.refresh()
    assert one.counts() == same.counts() == [[8, 9], [2, 3], [0, 0]]
    assert newer.counts() == [[8, 9], [102, 103], [100, 100]]  # of what nobody counted, it knows more
    assert await one.store.popularity("default", HALF_LIVES_S) == {"a": (NOW, (8.0, 9.0))}  # and nothing else is stored


async def test_a_store_that_was_emptied_goes_on_from_the_bundles_counts(worker, raw: redis.Redis):
    one = worker()
    await one.follower.refresh()
    await one.count("a", 5.0)
    raw.flushall()
    await one.count("a")
    other = worker()
    await other.follower.refresh()
    assert other.counts()[0] == [4, 5]


async def test_what_another_worker_counted_is_read_and_what_it_counted_itself_is_not(worker):
    one, other = worker(), worker()
    for each in (one, other):
        await each.follower.refresh()
    began = one.store.reads
    for _ in range(3):
        await one.count("b")
        await one.follower.refresh()
    assert one.store.reads == began  # nothing that it does not know
    await other.count("c", 2.0)
    await one.follower.refresh()
    assert one.store.reads == began + 1
    assert one.counts() == [[3, 4], [5, 6], [2, 2]]
    await one.follower.refresh()
    assert one.store.reads == began + 1
    await other.follower.refresh()
    assert other.counts() == one.counts()


async def test_a_reading_that_broke_off_is_begun_again(worker):
    one, other = worker(), worker()
    for each in (one, other):
        await each.follower.refresh()
    await other.count("c")
    read = one.store.popularity_events

    async def goes_away_now(*arguments: Any) -> int:
        events = await read(*arguments)
        one.store.away = True
        return events

    one.store.popularity_events = goes_away_now
    with pytest.raises(StorageError):
        await one.follower.refresh()
    one.store.popularity_events, one.store.away = read, False
    reads = one.store.reads
    await one.follower.refresh()
    assert one.store.reads == reads + 1
    assert one.counts()[2] == [1, 1]


async def test_following_outlives_storage_that_is_away_and_faults_of_its_own(worker):
    one, other = worker(), worker()
    for each in (one, other):
        await each.follower.refresh()
    one.store.away = True
    read, faults = one.store.popularity_events, [ValueError("odd")]

    async def faulty(*arguments: Any) -> int:
        if faults:
            raise faults.pop()
        return await read(*arguments)

    one.store.popularity_events = faulty
    with structlog.testing.capture_logs() as logs:
        following = asyncio.create_task(one.follower.follow(0.001))
        await asyncio.sleep(0.05)
        await other.count("c")
        one.store.away = False
        async with asyncio.timeout(5):
            while one.counts()[2] != [1, 1]:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.002)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert {(entry["event"], entry["log_level"]) for entry in logs} == {
        ("popularity not refreshed", "error"),
        ("popularity not refreshed", "warning"),
    }


async def test_a_store_that_is_away_at_the_start_is_read_when_it_is_back(worker, tmp_path):
    one, other = worker(), worker()
    await other.count("c")
    real, one.follower._store = one.follower._store, RedisStore(f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(StorageError):
        await one.follower.refresh()
    await one.follower._store.close()
    one.follower._store = real
    await one.follower.refresh()
    assert one.counts() == [[3, 4], [2, 3], [1, 1]]


async def test_a_store_of_another_version_gets_nothing(worker, raw: redis.Redis):
    raw.set(keys.LAYOUT_KEY, "1/256")
    with pytest.raises(LayoutError):
        await worker().follower.refresh()
    assert raw.keys() == [keys.LAYOUT_KEY.encode()]
