"""Buckets of what was used when, on a real Redis: rings that turn, and hashes that do not grow."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis

from app.errors import StorageError
from app.state.redis import RedisStore
from app.state.trends import COARSE, FINE, Ring, Trends

NOW = FINE.bucket(1_700_000_000_000)


async def read(trends: Trends, ring: Ring = FINE, bucket: int = NOW) -> dict[str, float]:
    """What a reader takes for this bucket."""
    found: dict[str, float] = {}
    if await trends.versions("default", ring, [bucket]) == [None]:
        return found
    async for _, items in trends.read("default", ring, [bucket]):
        found.update(items)
    return found


async def test_weights_add_up_and_buckets_rings_and_tenants_are_apart(store: RedisStore):
    trends = Trends(store)
    await trends.count("default", {(FINE, NOW): {"a": 1.0, "é:{}": 0.1}, (FINE, NOW + 1): {"a": 7.0}, (COARSE, 9): {"a": 9.0}})
    await trends.count("default", {(FINE, NOW): {"a": 0.5, "é:{}": 0.2}})
    await trends.count("other", {(FINE, NOW): {"a": 100.0}})
    assert await read(trends) == {"a": 1.5, "é:{}": 0.1 + 0.2}
    assert await read(trends, bucket=NOW + 1) == {"a": 7.0}
    assert await read(trends, COARSE, 9) == {"a": 9.0}
    assert await read(trends, bucket=NOW + 2) == {}


async def test_a_later_bucket_takes_the_slot_and_an_earlier_one_is_too_late(store: RedisStore, raw: redis.Redis):
    trends = Trends(store)
    await trends.count("default", {(FINE, NOW): {"old": 1.0}})
    await trends.count("default", {(FINE, NOW + FINE.slots): {"new": 2.0}})
    await trends.count("default", {(FINE, NOW): {"late": 4.0}})
    assert (await read(trends), await read(trends, bucket=NOW + FINE.slots)) == ({}, {"new": 2.0})
    # Also in one call, whatever the order.
    both = {(FINE, NOW + 2 * FINE.slots): {"newer": 1.0}, (FINE, NOW + FINE.slots): {"new": 2.0}}
    await trends.count("default", both)
    assert await read(trends, bucket=NOW + 2 * FINE.slots) == {"newer": 1.0}
    assert len(raw.keys("lw:{trend-*")) == 1


async def test_a_version_changes_with_its_bucket_alone(store: RedisStore):
    trends = Trends(store)
    before = await trends.versions("default", FINE, [NOW, NOW + 1])
    await trends.count("default", {(FINE, NOW): {"a": 1.0}, (FINE, NOW + 1): {"a": 1.0}})
    first = await trends.versions("default", FINE, [NOW, NOW + 1])
    await trends.count("default", {(FINE, NOW): {"a": 1.0}})
    second = await trends.versions("default", FINE, [NOW, NOW + 1])
    assert before == [None, None]
    assert None not in first
    assert second[0] != first[0]
    assert second[1] == first[1]


async def test_what_is_kept_is_bounded_in_keys_in_items_and_in_time(store: RedisStore, raw: redis.Redis):
    trends = Trends(store, most_items=100)
    rng = random.Random(0)
    weights: dict[tuple[Ring, int], dict[str, float]] = {}
    for n in range(2_000):
        for ring in (FINE, COARSE):
            weights.setdefault((ring, rng.randrange(50_000)), {})[f"item {n}"] = 1.0
    await trends.count("default", weights)
    await trends.count("default", {(FINE, 60_000): {f"item {n}": 1.0 for n in range(2_000)}})
    names = raw.keys("lw:{trend-*")
    assert len(names) == FINE.slots + COARSE.slots
    assert len(await read(trends, bucket=60_000)) == 100
    assert max(raw.hlen(name) for name in names) == 101
    for name in names:
        ring = FINE if b":300:" in name else COARSE
        assert 0 < raw.pttl(name) <= 1000 * ring.width_s * ring.slots


async def test_a_full_bucket_keeps_what_is_used_much_and_lets_in_what_rises(store: RedisStore):
    trends = Trends(store, most_items=50)
    rng = random.Random(1)
    true: Counter[str] = Counter()
    for round_ in range(60):
        weights: Counter[str] = Counter(f"rare {rng.randrange(100_000)}" for _ in range(40))
        weights.update({f"hit {n}": 5 for n in range(10)})
        if round_ >= 20:
            weights.update({"late": 5})  # first seen when the bucket had long been full
        true.update(weights)
        shuffled = list(weights.items())
        rng.shuffle(shuffled)
        await trends.count("default", {(FINE, NOW): {item: float(weight) for item, weight in shuffled}})
    found = await read(trends)
    assert len(found) == 50
    for name in [*(f"hit {n}" for n in range(10)), "late"]:
        assert found[name] == pytest.approx(true[name], abs=10)


async def test_one_event_is_enough_to_come_into_a_bucket_that_is_full_of_single_ones(store: RedisStore):
    trends = Trends(store, most_items=50)
    await trends.count("default", {(FINE, NOW): {f"item {n}": 1.0 for n in range(50)}})
    await trends.count("default", {(FINE, NOW): {"late": 1.0}})
    assert (await read(trends))["late"] == 1.0


async def test_a_large_bucket_is_read_whole_and_several_at_once(store: RedisStore):
    trends = Trends(store)
    weights = {(FINE, NOW + n): {f"item {i}": float(i + n) for i in range(500 * n + 1)} for n in range(5)}
    await trends.count("default", weights)
    found: dict[int, dict[str, float]] = {}
    async for bucket, items in trends.read("default", FINE, range(NOW, NOW + 5)):
        found.setdefault(bucket, {}).update(items)
    assert found == {bucket: items for (_, bucket), items in weights.items()}


async def test_a_redis_that_is_away_is_an_error(tmp_path):
    store = RedisStore(f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(StorageError):
        await Trends(store).versions("default", FINE, [NOW])
    await store.close()
