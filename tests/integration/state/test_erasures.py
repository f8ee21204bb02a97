"""Erasing users: nothing of the erased comes back, wherever it was cut off."""

from __future__ import annotations

import contextlib

import pytest
import redis
from people import CODEC, Dies, append, commit_all, left_of, log_of, times

from app.errors import ConflictError, StorageError
from app.state import keys
from app.state.codec import Header
from app.state.redis import RedisStore


async def test_an_erased_user_leaves_a_tombstone_and_a_log_entry_and_nothing_else(store: RedisStore, raw: redis.Redis):
    await store.register_model("m", "{}")
    await append(store, "alice", 1, 2, ids=True)
    await store.set_attributes("default", "alice", {"country": "UK"})
    assert await commit_all(store, "alice") == "stored"
    erased = await store.erase("default", "alice", 1_000)
    assert (erased.events, list(erased.identities)) == (2, ["alice"])
    assert left_of(raw, "alice") == []
    assert log_of(raw, "alice")[-1] == (b"x", b"alice")
    tombstone = keys.user_keys("default", "alice").gone
    assert "alice" not in tombstone
    assert raw.get(tombstone) == b"1000"
    assert raw.pttl(tombstone) > 0


async def test_what_happened_before_the_erasure_is_refused_and_what_comes_after_begins_anew(store: RedisStore):
    await append(store, "alice", 1, 2, ids=True)
    await store.erase("default", "alice", 1_000)
    assert await append(store, "alice", 1, 1_000, 1_001, ids=True) == "gg1"
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert (loaded.meta.appended, await times(store, "alice")) == (1, [1_001])


async def test_events_dated_after_their_erasure_do_not_come_back_by_a_retry(store: RedisStore):
    await append(store, "alice", 5_000, ids=True)  # a clock that is ahead
    await store.erase("default", "alice", 1_000)
    assert await append(store, "alice", 5_000, ids=True) == "g"


@pytest.mark.parametrize("now_ms", [999, 1_000, 1_001, 5_000])  # of a host whose clock is behind, too
async def test_an_erasure_that_is_repeated_refuses_no_less(store: RedisStore, now_ms: int):
    await append(store, "alice", 5_000, ids=True)
    assert (await store.erase("default", "alice", 1_000)).refused_to == 5_000
    assert (await store.erase("default", "alice", now_ms)).refused_to == 5_000
    assert await append(store, "alice", 5_000, 5_001, ids=True) == "g1"


@pytest.mark.parametrize("named", ["alice", "cookie"])
@pytest.mark.parametrize("steps", range(4))
async def test_events_dated_after_their_erasure_do_not_come_back_under_any_of_their_names(
    store, redis_url, named: str, steps: int
):
    await append(store, "cookie", 5_000)
    await append(store, "alice", 1)
    await store.merge("default", "alice", "cookie")
    dying = Dies(redis_url)
    await dying.open()
    dying.left = steps
    with contextlib.suppress(KeyboardInterrupt):
        await dying.erase("default", named, 1_000)
    await dying.close()
    assert (await store.erase("default", named, 1_001)).refused_to >= 5_000
    assert await append(store, "cookie", 5_000) == "g"
    assert await append(store, "alice", 5_000) == "g"


async def test_a_tombstone_of_another_type_is_as_good_as_none(store: RedisStore, raw: redis.Redis):
    await append(store, "alice", 1)
    await append(store, "cookie", 2)
    await store.merge("default", "alice", "cookie")
    raw.rpush(keys.user_keys("default", "alice").gone, "what is this")
    erased = await store.erase("default", "alice", 1_000)
    assert (sorted(erased.identities), erased.refused_to) == (["alice", "cookie"], 1_000)
    assert await append(store, "alice", 1_000, 1_001) == "g1"


async def test_a_fold_in_flight_does_not_bring_an_erased_user_back(store: RedisStore, raw: redis.Redis):
    await append(store, "alice", 1, 2)
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    state = CODEC.pack(Header(loaded.meta.epoch, 0, 2, 0), {})
    await store.erase("default", "alice", 1_000)
    assert await store.commit_many("default", "m", [("alice", state)]) == ["refused"]
    await append(store, "alice", 2_000, 2_001, 2_002)
    assert await store.commit_many("default", "m", [("alice", state)]) == ["refused"]
    assert left_of(raw, "alice") == [keys.user_keys("default", "alice").meta, keys.user_keys("default", "alice").seq]


async def test_an_unknown_user_can_be_erased_and_an_erased_one_again(store: RedisStore):
    assert (await store.erase("default", "nobody", 10)).events == 0
    assert await append(store, "nobody", 5, 11) == "g1"
    assert (await store.erase("default", "nobody", 20)).events == 1
    assert (await store.erase("default", "nobody", 20)).events == 0


@pytest.mark.parametrize("named", ["alice", "cookie", "phone"])
async def test_an_erasure_takes_every_identity_whichever_was_named(store: RedisStore, raw: redis.Redis, named: str):
    for user in ("alice", "cookie", "phone"):
        await append(store, user, 1, 2)
    await store.merge("default", "cookie", "phone")
    await store.merge("default", "alice", "cookie")
    erased = await store.erase("default", named, 1_000)
    assert sorted(erased.identities) == ["alice", "cookie", "phone"]
    assert erased.events == 6
    assert left_of(raw, "alice", "cookie", "phone") == []
    for user in ("alice", "cookie", "phone"):
        assert await append(store, user, 2) == "g"
        await append(store, user, 2_000)
    assert await times(store, "cookie") == [2_000]  # strangers to one another from now on


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("named", ["alice", "cookie"])
async def test_an_erasure_that_was_cut_off_can_be_asked_for_again(store: RedisStore, redis_url, raw, steps: int, named: str):
    for user in ("alice", "cookie", "phone"):
        await append(store, user, 1)
    await store.merge("default", "alice", "phone")
    await store.merge("default", "alice", "cookie")
    dying = Dies(redis_url)
    await dying.open()
    dying.left = steps
    with contextlib.suppress(KeyboardInterrupt):
        await dying.erase("default", named, 1_000)
    await dying.close()
    await store.erase("default", named, 1_001)
    assert left_of(raw, "alice", "cookie", "phone") == []


@pytest.mark.parametrize("named", ["alice", "cookie"])
async def test_who_comes_back_after_an_erasure_that_was_cut_off_is_not_erased_again(store, stopping, raw, named: str):
    # Wherever it was cut off: alice may still have the mark of her merge with cookie when that is somebody else's name.
    came_back = 0
    for steps in range(100):
        for name in raw.scan_iter("lw:{*"):
            raw.delete(name)
        await append(store, "alice", 10)
        await append(store, "cookie", 5)
        await store.merge("default", "alice", "cookie")
        dying, stopping[1].left = stopping[0], steps
        with contextlib.suppress(KeyboardInterrupt):
            await dying.erase("default", named, 1_000)
        if raw.exists(keys.user_keys("default", "cookie").meta):  # still alice's
            await store.erase("default", named, 3_000)
            assert left_of(raw, "alice", "cookie") == []
        else:
            came_back += 1
            await append(store, "cookie", 2_000)
            if came_back % 2:
                await store.merge("default", "carol", "cookie")
            assert list((await store.erase("default", "alice", 3_000)).identities) == ["alice"]
            assert await times(store, "cookie") == [2_000]
        if stopping[1].left >= 0:
            break
    assert 0 < came_back < steps


@pytest.mark.parametrize("named", ["alice", "cookie"])
@pytest.mark.parametrize("known", [True, False])
async def test_a_merge_that_an_erasure_overtakes_marks_nobody_who_comes_later(store, stopping, raw, named: str, known: bool):
    merging, stops = stopping

    async def erased() -> None:
        await store.erase("default", named, 1_000)

    stops.meanwhile = erased
    came_back = 0
    for steps in range(100):
        for name in raw.scan_iter("lw:{*"):
            raw.delete(name)
        await append(store, "alice", 10)
        if known:
            await append(store, "cookie", 5)
        stops.left = steps
        with contextlib.suppress(ConflictError, StorageError):
            await merging.merge("default", "alice", "cookie")
        if raw.hget(keys.user_keys("default", "cookie").meta, "to") is None:
            came_back += 1
            await append(store, "cookie", 2_000)
            before = await times(store, "cookie")
            await store.erase("default", "alice", 3_000)
            assert await times(store, "cookie") == before
        if stops.left >= 0:
            break
    assert came_back > 0
    assert steps > 8


@pytest.mark.parametrize("named", ["alice", "cookie"])
async def test_an_erasure_takes_states_under_a_model_that_is_registered_meanwhile(
    store, stopping, raw, registered_late, named: str
):
    # Wherever it was cut off: who asks again takes what it has left.
    for steps in range(100):
        for name in (keys.MODELS_KEY, *raw.scan_iter("lw:{*")):
            raw.delete(name)
        await append(store, "alice", 10)
        await append(store, "cookie", 5)
        await store.merge("default", "alice", "cookie")
        dying, stops = stopping
        stored = registered_late(dying, "alice")
        stops.left = steps
        with contextlib.suppress(KeyboardInterrupt):
            await dying.erase("default", named, 1_000)
        if stops.left < 0:
            await store.erase("default", named, 1_001)
        assert left_of(raw, "alice", "cookie") == []
        if stops.left >= 0:
            break
    assert stored == ["stored"]
    assert steps > 5
