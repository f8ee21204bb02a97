"""Redis loses its last writes, and a user who was merged lives again: the next merge brings what came since, nothing twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis
from people import Dies, append, event, times

from app.errors import ConflictError
from app.state import keys
from app.state.redis import RedisStore
from app.state.scripts import script

OpenStore = Callable[..., Awaitable[RedisStore]]
ALICE, COOKIE = (keys.user_keys("default", user) for user in ("alice", "cookie"))
Kept = dict[str, Any]


def kept(raw: redis.Redis) -> Kept:
    """What a replica of the source's node has."""
    return {name: raw.dump(name) for name in (COOKIE.meta, COOKIE.seq, COOKIE.ids)}


def fail_over(raw: redis.Redis, to: Kept) -> None:
    for name, value in to.items():
        raw.delete(name)
        if value is not None:
            raw.restore(name, 0, value)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize(
    ("since", "come"),
    [([60], [60]), ([60, 30], [60]), ([30, 60], [60]), ([50, 60, 20, 30], [50, 60]), ([5], [5]), ([], [])],
)
async def test_what_a_source_was_told_since_its_merge_was_lost_comes_with_the_next(
    store: RedisStore, raw: redis.Redis, lost: int, since: list[int], come: list[int]
):
    await append(store, "alice", 10, 40, ids=True)
    there = [15, 20, 30]
    await append(store, "cookie", *there[: 3 - lost], ids=True)
    replica = kept(raw)
    await append(store, "cookie", *there[3 - lost :], ids=True)
    await store.merge("default", "alice", "cookie")
    fail_over(raw, replica)
    await append(store, "cookie", *since, ids=True)  # of those before, the ones that Redis has lost are taken again
    expected = sorted([10, 40, *there, *come])
    for _ in range(2):
        assert await store.merge("default", "alice", "cookie") == "alice"
        assert await times(store, "alice") == await times(store, "cookie") == expected
    assert await append(store, "alice", *there, *come, ids=True) == "0" * (3 + len(come))


async def test_a_merge_that_is_lost_twice_is_made_a_third_time(store: RedisStore, raw: redis.Redis):
    await append(store, "cookie", 10, 20)
    for n in range(3):
        replica = kept(raw)
        await store.merge("default", "alice", "cookie")
        fail_over(raw, replica)
        await append(store, "cookie", 30 + n)
    await store.merge("default", "alice", "cookie")
    assert await times(store, "alice") == [10, 20, 30, 31, 32]


async def other_attributes(store: RedisStore) -> None:
    await store.set_attributes("default", "cookie", {"country": "DE"})


async def an_import(store: RedisStore) -> None:
    await store.write_history("default", "cookie", [event(5)], [None], "some")


async def another_one(store: RedisStore) -> None:
    await append(store, "tablet", 5)
    await store.merge("default", "cookie", "tablet")


@pytest.mark.parametrize("change", [other_attributes, an_import, another_one])
@pytest.mark.parametrize("lost", [True, False])
async def test_a_new_epoch_that_is_lost_or_came_since_hides_no_merge(
    store: RedisStore, raw: redis.Redis, change: Callable[[RedisStore], Awaitable[None]], lost: bool
):
    await append(store, "cookie", 20)
    replica = kept(raw)
    if lost:
        await change(store)
    await store.merge("default", "alice", "cookie")
    fail_over(raw, replica)
    if not lost:
        await change(store)
    await append(store, "cookie", 30)
    expected = [20, 30] if change is other_attributes else [5, 20, 30]
    for _ in range(2):
        assert await store.merge("default", "alice", "cookie") == "alice"
        assert await times(store, "alice") == expected


async def test_an_event_that_is_the_same_as_another_is_one_more(store: RedisStore, raw: redis.Redis):
    await append(store, "cookie", 10)
    replica = kept(raw)
    await store.merge("default", "alice", "cookie")
    fail_over(raw, replica)
    await append(store, "cookie", 10)
    await store.merge("default", "alice", "cookie")
    assert await times(store, "alice") == [10, 10]


async def test_the_other_way_round_nothing_comes_twice_either(store: RedisStore, raw: redis.Redis):
    await append(store, "alice", 10)
    await append(store, "cookie", 20)
    replica = kept(raw)
    await store.merge("default", "alice", "cookie")
    fail_over(raw, replica)
    await append(store, "cookie", 30)
    assert await store.merge("default", "cookie", "alice") == "cookie"
    assert await times(store, "alice") == [10, 20, 30]


async def test_who_has_gone_on_with_the_events_has_them_all_the_same(store: RedisStore, raw: redis.Redis):
    await append(store, "cookie", 20)
    replica = kept(raw)
    await store.merge("default", "alice", "cookie")
    await append(store, "carol", 10)
    await store.merge("default", "carol", "alice")
    fail_over(raw, replica)
    await append(store, "cookie", 30)
    assert await store.merge("default", "alice", "cookie") == "carol"
    assert await times(store, "cookie") == [10, 20, 30]


async def test_what_has_left_the_targets_sequence_does_not_come_again(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(max_sequence=5)
    await append(store, "alice", 10, 20)
    await append(store, "cookie", 11, 12, 21)
    replica = kept(raw)
    await store.merge("default", "alice", "cookie")
    await append(store, "alice", 30, 31)
    assert await times(store, "alice") == [12, 20, 21, 30, 31]
    fail_over(raw, replica)
    await append(store, "cookie", 40)
    await store.merge("default", "alice", "cookie")
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert ([e.time_ms for e in loaded.tail], loaded.meta.appended) == ([20, 21, 30, 31, 40], 8)


@pytest.mark.parametrize("gone", ["left", "expired"])
async def test_where_it_cannot_be_told_what_is_new_nothing_is_done(open_store: OpenStore, raw: redis.Redis, gone: str):
    store = await open_store(max_sequence=3)
    await append(store, "cookie", 20)
    replica = kept(raw)
    await store.merge("default", "alice", "cookie")
    if gone == "expired":
        raw.delete(ALICE.seq, ALICE.ids)
        raw.hdel(ALICE.meta, "n", "e", "f", "l")
    await append(store, "alice", 30, 31, 32)
    fail_over(raw, replica)
    await append(store, "cookie", 40)
    before = kept(raw)
    with pytest.raises(ConflictError, match="'cookie' was merged with 'alice' before"):
        await store.merge("default", "alice", "cookie")
    assert kept(raw) == before
    assert (await times(store, "alice"), await times(store, "cookie")) == ([30, 31, 32], [20, 40])


async def test_what_comes_while_it_is_sorted_out_comes_too(store: RedisStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    await append(store, "alice", 10, ids=True)
    await append(store, "cookie", 20, ids=True)
    replica = kept(raw)
    await store.merge("default", "alice", "cookie")
    fail_over(raw, replica)
    await append(store, "cookie", 30, ids=True)
    run = store.run

    async def beside(lua: Any, calls: Any, **more: Any) -> Any:
        if lua is script("rewrite"):
            monkeypatch.undo()
            await append(store, "cookie", 40, 5, ids=True)
        return await run(lua, calls, **more)

    monkeypatch.setattr(store, "run", beside)
    await store.merge("default", "alice", "cookie")
    assert await times(store, "alice") == [5, 10, 20, 30, 40]
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert (loaded.meta.first_time_ms, loaded.meta.last_time_ms) == (5, 40)
    assert await append(store, "alice", 20, 30, 40, 5, ids=True) == "0000"


async def test_wherever_the_second_merge_is_cut_off_nothing_is_lost_and_nothing_twice(
    store: RedisStore, raw: redis.Redis, redis_url: str
):
    for steps in range(1, 100):
        for name in raw.scan_iter("lw:{*"):
            raw.delete(name)
        await append(store, "alice", 10)
        await append(store, "cookie", 20, 30)
        replica = kept(raw)
        await store.merge("default", "alice", "cookie")
        fail_over(raw, replica)
        await append(store, "cookie", 40)
        dying = Dies(redis_url)
        await dying.open()
        dying.left = steps
        try:
            await dying.merge("default", "alice", "cookie")
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            await dying.close()
        assert event(40) in await store.recent("default", await store.resolve("default", "cookie"), 10)
        await store.merge("default", "alice", "cookie")
        assert await times(store, "alice") == [10, 20, 30, 40], steps
    assert steps > 5
