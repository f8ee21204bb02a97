from __future__ import annotations

import random

import pytest

from app.errors import StorageError
from app.state.redis import RedisStore

DAY_S = 86_400.0
HALF_LIVES = (DAY_S, 30 * DAY_S, 0.25)
NOW = 1_323_435_000_123
Events = list[tuple[str, float, int]]


def reference(events: Events, item: str) -> tuple[int, tuple[float, ...]]:
    """The formula, by a sum over all events of the item, at the time of the newest."""
    mine = [(weight, time_ms) for other, weight, time_ms in events if other == item]
    at_ms = max(time_ms for _, time_ms in mine)
    return at_ms, tuple(sum(w * 2.0 ** -((at_ms - t) / 1000 / half_life) for w, t in mine) for half_life in HALF_LIVES)


def random_events(seed: int, count: int) -> Events:
    rng = random.Random(seed)
    return [
        (f"item é{rng.randrange(7)}", rng.choice([1.0, 0.5, 3.7]), NOW + rng.randrange(-90 * 86_400_000, 1)) for _ in range(count)
    ]


@pytest.mark.parametrize("batch", [1, 17, 400])
async def test_counts_equal_the_sum_over_all_events_in_any_order(store: RedisStore, batch: int):
    events = random_events(1, 400)  # unsorted: most of them are late
    for start in range(0, len(events), batch):
        await store.count_popularity("default", HALF_LIVES, events[start : start + batch])
    counts = await store.popularity("default", HALF_LIVES)
    assert set(counts) == {item for item, _, _ in events}
    for item, (at_ms, values) in counts.items():
        expected_at, expected = reference(events, item)
        assert at_ms == expected_at
        assert values == pytest.approx(expected, rel=1e-12)


async def test_a_late_event_counts_with_its_own_age(store: RedisStore):
    await store.count_popularity("default", [DAY_S], [("a", 1.0, NOW)])
    await store.count_popularity("default", [DAY_S], [("a", 1.0, NOW - 86_400_000)])
    assert await store.popularity("default", [DAY_S]) == {"a": (NOW, (1.5,))}
    await store.count_popularity("default", [DAY_S], [("a", 1.0, NOW + 86_400_000)])
    assert await store.popularity("default", [DAY_S]) == {"a": (NOW + 86_400_000, (1.75,))}


async def test_counts_keep_every_bit_from_one_event_to_the_next(store: RedisStore):
    await store.count_popularity("default", [DAY_S], [("a", 0.1, NOW)])
    await store.count_popularity("default", [DAY_S], [("a", 0.2, NOW)])
    assert await store.popularity("default", [DAY_S]) == {"a": (NOW, (0.1 + 0.2,))}  # 0.30000000000000004


async def test_an_item_begins_with_what_it_had_before_and_only_once(store: RedisStore):
    begun = {"live": (NOW - 86_400_000, (4.0,)), "never counted": (NOW, (9.0,))}
    await store.count_popularity("default", [DAY_S], [("live", 1.0, NOW), ("other", 1.0, NOW)], begun)
    assert await store.popularity("default", [DAY_S]) == {"live": (NOW, (3.0,)), "other": (NOW, (1.0,))}
    await store.count_popularity("default", [DAY_S], [("live", 1.0, NOW)], {"live": (NOW, (100.0,))})  # a newer bundle's
    assert (await store.popularity("default", [DAY_S]))["live"] == (NOW, (4.0,))


async def test_a_beginning_with_a_wrong_number_of_counts_is_refused_and_nothing_counted(store: RedisStore):
    with pytest.raises(ValueError, match="'b' has 1 counts for 2"):
        await store.count_popularity("default", [1.0, 2.0], [("a", 1.0, NOW), ("b", 1.0, NOW)], {"b": (NOW, (1.0,))})
    assert await store.popularity("default", [1.0, 2.0]) == {}


async def test_a_large_catalogue_is_read_whole(store: RedisStore):
    items = [f"item {n}" for n in range(5_000)]
    begun = {item: (NOW, (n + 0.1, n / 3, 0.0)) for n, item in enumerate(items)}
    await store.count_popularity("default", HALF_LIVES, [(item, 0.0, NOW) for item in items], begun)
    assert await store.popularity("default", HALF_LIVES) == begun  # %.17g: not a bit is lost


async def test_half_lives_and_tenants_are_counted_apart(store: RedisStore):
    await store.count_popularity("default", [DAY_S], [("a", 1.0, NOW)])
    assert await store.popularity("default", [DAY_S, 1.0]) == {}
    assert await store.popularity("other", [DAY_S]) == {}


async def test_ages_beyond_floating_point_are_zero_not_an_error(store: RedisStore):
    await store.count_popularity("default", [1e-3], [("a", 1.0, 0)])
    await store.count_popularity("default", [1e-3], [("a", 1.0, 10**15)])
    await store.count_popularity("default", [1e-3], [("a", 1.0, 5)])
    assert await store.popularity("default", [1e-3]) == {"a": (10**15, (1.0,))}


async def test_popularity_of_a_redis_that_is_away_is_an_error_not_an_empty_list(tmp_path):
    store = RedisStore(f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(StorageError):
        await store.popularity("default", [DAY_S])
    await store.close()
