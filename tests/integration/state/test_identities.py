"""Joining users: nothing of the joined is lost and nothing is there twice, wherever it was cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis
from people import Dies, append, commit_all, event, left_of, log_of, times

from app.errors import ConflictError, StorageError
from app.state import keys
from app.state.redis import RedisStore

OpenStore = Callable[..., Awaitable[RedisStore]]


async def test_a_merge_sorts_the_events_in_by_time_and_leads_the_source_to_the_target(store: RedisStore, raw: redis.Redis):
    await store.register_model("m", "{}")
    await append(store, "alice", 10, 30, ids=True)
    await append(store, "cookie", 20, 40, 5, ids=True)
    assert await commit_all(store, "cookie") == "stored"
    assert await store.merge("default", "alice", "cookie") == "alice"
    assert await times(store, "alice") == await times(store, "cookie") == [5, 10, 20, 30, 40]
    (loaded,) = await store.load("default", "m", ["cookie"])
    assert (loaded.user_id, loaded.meta is not None and loaded.meta.appended) == ("alice", 5)
    assert left_of(raw, "cookie") == [keys.user_keys("default", "cookie").meta]
    name = raw.hget(keys.user_keys("default", "alice").meta, "m:cookie")
    assert raw.hgetall(keys.user_keys("default", "cookie").meta) == {b"to": b"alice", b"ms": b"d", b"ik": name}
    # What is told of either is of one user now, and the ids of both are known.
    assert await append(store, "cookie", 20, 50, ids=True) == "01"
    assert await append(store, "alice", 40, 60, ids=True) == "01"
    assert await times(store, "alice") == [5, 10, 20, 30, 40, 50, 60]
    assert log_of(raw, "alice").count((b"h", b"alice")) == 3
    assert log_of(raw, "cookie")[-1] == (b"m", b"cookie")


async def test_the_same_merge_again_changes_nothing(store: RedisStore):
    await append(store, "alice", 1)
    await append(store, "cookie", 2)
    await store.merge("default", "alice", "cookie")
    (before,) = await store.load("default", "m", ["alice"])
    assert await store.merge("default", "alice", "cookie") == "alice"
    assert await store.load("default", "m", ["alice"]) == [before]


async def test_an_unknown_identity_leads_to_the_target_from_then_on(store: RedisStore):
    await append(store, "alice", 1)
    await store.merge("default", "alice", "cookie")
    await append(store, "cookie", 2)
    assert await times(store, "alice") == [1, 2]


async def test_a_merge_into_a_merged_user_goes_where_that_one_went(store: RedisStore):
    for n, user in enumerate(("alice", "phone", "cookie")):
        await append(store, user, n)
    await store.merge("default", "alice", "phone")
    assert await store.merge("default", "phone", "cookie") == "alice"
    assert await times(store, "alice") == [0, 1, 2]


async def test_what_cannot_be_merged_is_a_conflict_and_changes_nothing(store: RedisStore):
    for n, user in enumerate(("alice", "bob", "cookie")):
        await append(store, user, n)
    await store.merge("default", "alice", "cookie")
    for target, source in [("alice", "alice"), ("cookie", "alice"), ("bob", "cookie")]:
        with pytest.raises(ConflictError):
            await store.merge("default", target, source)
    assert (await times(store, "alice"), await times(store, "bob")) == ([0, 2], [1])


@pytest.mark.parametrize("then", ["load", "append", "merge", "merge on", "erase"])
@pytest.mark.parametrize("steps", range(3, 5))
async def test_a_merge_that_was_cut_off_is_finished_by_whoever_comes_next(store, redis_url, raw, steps: int, then: str):
    await append(store, "alice", 10)
    await append(store, "cookie", 5, 20)
    dying = Dies(redis_url)
    await dying.open()
    dying.left = steps
    with pytest.raises(KeyboardInterrupt):
        await dying.merge("default", "alice", "cookie")
    await dying.close()
    if then == "load":
        assert await times(store, "cookie") == [5, 10, 20]
    elif then == "append":
        await append(store, "cookie", 30)
        assert await times(store, "alice") == [5, 10, 20, 30]
    elif then == "merge":
        await store.merge("default", "alice", "cookie")
        assert await times(store, "alice") == [5, 10, 20]
    elif then == "merge on":  # the target goes on before the source has arrived
        await append(store, "carol", 1)
        await store.merge("default", "carol", "alice")
        assert await times(store, "cookie") == [1, 5, 10, 20]
    else:
        await store.erase("default", "cookie", 1_000)
        assert left_of(raw, "alice", "cookie") == []


@pytest.mark.parametrize("said_at", ["1", str(2**42)])  # long ago; or the clock was set back since
@pytest.mark.parametrize("steps", [1, 2])
async def test_a_merge_that_was_cut_off_before_it_began_has_changed_nothing(store, redis_url, raw, steps: int, said_at: str):
    await append(store, "alice", 10)
    await append(store, "cookie", 5)
    dying = Dies(redis_url)
    await dying.open()
    dying.left = steps
    with pytest.raises(KeyboardInterrupt):
        await dying.merge("default", "alice", "cookie")
    await dying.close()
    assert (await times(store, "alice"), await times(store, "cookie")) == ([10], [5])
    with pytest.raises(ConflictError, match="at this moment"):  # it may still be on its way
        await store.merge("default", "cookie", "alice")
    raw.hset(keys.user_keys("default", "cookie").meta, "ia", said_at)
    await store.merge("default", "cookie", "alice")
    assert await times(store, "alice") == await times(store, "cookie") == [5, 10]


async def test_opposite_merges_with_readers_beside_them_double_nothing(store: RedisStore):
    async def read(user: str) -> None:
        for _ in range(8):
            await store.load("default", "m", [user])

    for n in range(60):
        one, other = f"one {n}", f"other {n}"
        await append(store, one, 1, 3, 5)
        await append(store, other, 2, 4, 6)
        both = (store.merge("default", one, other), store.merge("default", other, one))
        await asyncio.gather(*both, read(one), read(other), return_exceptions=True)
        there = [await times(store, one), await times(store, other)]
        assert there in ([[1, 2, 3, 4, 5, 6]] * 2, [[1, 3, 5], [2, 4, 6]]), n


@pytest.mark.parametrize("named", ["alice", "cookie"])
async def test_an_erasure_follows_who_is_merged_on_meanwhile(store, stopping, raw, named: str):
    erasing, stops = stopping

    async def merged_on() -> None:
        await store.merge("default", "carol", "alice")

    stops.meanwhile = merged_on
    for steps in range(100):
        for name in raw.scan_iter("lw:{*"):
            raw.delete(name)
        for n, user in enumerate(("cookie", "alice", "carol")):
            await append(store, user, n)
        await store.merge("default", "alice", "cookie")
        stops.left = steps
        await erasing.erase("default", named, 1_000)
        for user in ("cookie", "alice", "carol"):
            assert await times(store, user) in ([], [2]), (steps, user)  # carol goes if she was one of them by then
        if stops.left >= 0:
            break
    assert steps > 4


async def test_an_erasure_takes_who_is_merged_meanwhile(store: RedisStore):
    for n in range(40):
        one, other = f"one {n}", f"other {n}"
        await append(store, one, 1)
        await append(store, other, 2)
        merged, erased = await asyncio.gather(
            store.merge("default", one, other), store.erase("default", one, 1_000), return_exceptions=True
        )
        assert not isinstance(erased, BaseException), erased
        if other in erased.identities:
            assert await times(store, other) == []
        elif not isinstance(merged, BaseException):  # the erasure was first
            assert await times(store, one) == await times(store, other) == [2]


async def test_events_that_arrive_during_merges_are_all_kept_once(store: RedisStore):
    users = ["alice", *(f"cookie {n}" for n in range(8))]

    async def tell(user: str, start: int) -> None:
        for n in range(start, start + 20):
            assert await append(store, user, n, ids=True) == "1"

    telling = [tell(user, 1_000 * n) for n, user in enumerate(users)]
    await asyncio.gather(*telling, *(store.merge("default", "alice", user) for user in users[1:]))
    assert sorted(await times(store, "alice")) == sorted(1_000 * n + i for n in range(len(users)) for i in range(20))


async def test_merges_of_two_users_into_each_other_end_in_one_of_them_or_in_none(store: RedisStore):
    for round_ in range(20):
        one, other = f"a{round_}", f"b{round_}"
        await append(store, one, 1)
        await append(store, other, 2)
        results = await asyncio.gather(
            store.merge("default", one, other), store.merge("default", other, one), return_exceptions=True
        )
        assert all(isinstance(result, str | ConflictError | StorageError) for result in results), results
        # However it ended, asking once more settles it, and no event is missing.
        try:
            await store.merge("default", one, other)
        except ConflictError:
            await store.merge("default", other, one)
        assert await times(store, one) == await times(store, other) == [1, 2]


async def test_a_merge_into_an_erased_user_keeps_the_events_of_the_other_one(store: RedisStore):
    await append(store, "alice", 10)
    await store.erase("default", "alice", 100)
    await append(store, "cookie", 50, 150)
    await store.merge("default", "alice", "cookie")
    assert await times(store, "alice") == [50, 150]
    assert await append(store, "alice", 10) == "g"


async def test_an_erased_identity_refuses_what_happened_before_also_after_its_merge(store: RedisStore):
    await append(store, "cookie", 50)
    await store.erase("default", "cookie", 100)
    await append(store, "alice", 10)
    await store.merge("default", "alice", "cookie")
    assert await append(store, "cookie", 50, 101) == "g1"
    assert await append(store, "alice", 50) == "1"
    assert await times(store, "alice") == [10, 101, 50]


async def test_a_chain_of_merges_stays_short(store: RedisStore):
    for n in range(20):
        await append(store, f"user {n}", n)
        if n:
            await store.merge("default", f"user {n}", f"user {n - 1}")
    for n in (0, 7, 19):
        assert await append(store, f"user {n}", 100 + n) == "1"
        assert (await times(store, f"user {n}"))[:20] == list(range(20))
    erased = await store.erase("default", "user 3", 1_000)
    assert set(erased.identities) == {f"user {n}" for n in range(20)}
    assert await times(store, "user 0") == []


async def test_another_life_of_an_identity_is_merged_anew(store: RedisStore, monkeypatch: pytest.MonkeyPatch):
    """An erasure is cut off after the events have gone; the other identity comes back and is merged again."""
    await append(store, "alice", 1)
    await append(store, "cookie", 2)
    await store.merge("default", "alice", "cookie")
    ran = 0

    async def run(*arguments: Any, **more: Any) -> Any:
        nonlocal ran
        ran += 1
        if ran == 2:
            raise StorageError("cut")
        return await RedisStore.run(store, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(store, "run", run)
        with pytest.raises(StorageError):
            await store.erase("default", "alice", 10)
    await append(store, "cookie", 20, 21)
    await store.merge("default", "alice", "cookie")
    assert await times(store, "alice") == [20, 21]


async def test_merging_two_who_are_not_known_makes_nobody(store: RedisStore):
    assert await store.merge("default", "alice", "cookie") == "alice"
    (loaded,) = await store.load("default", "m", ["cookie"])
    assert loaded.meta is None
    await append(store, "cookie", 5)
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert (loaded.meta.first_time_ms, loaded.meta.appended) == (5, 1)


async def test_an_import_of_two_names_of_one_user_takes_both(store: RedisStore):
    await append(store, "alice", 1)
    await append(store, "cookie", 2)
    await store.merge("default", "alice", "cookie")
    for user, at in (("alice", 10), ("cookie", 20)):
        assert await store.write_history("default", user, [event(at)], [None], "import") == 1
        assert await store.write_history("default", user, [event(at)], [None], "import") is None
    assert await times(store, "alice") == [1, 2, 10, 20]


async def test_an_import_is_known_again_after_a_merge(store: RedisStore):
    assert await store.write_history("default", "cookie", [event(1)], [None], "import") == 1
    await store.merge("default", "alice", "cookie")
    assert await store.write_history("default", "cookie", [event(1)], [None], "import") is None
    assert await times(store, "alice") == [1]


async def test_an_import_of_what_was_erased_makes_nobody(store: RedisStore):
    await append(store, "alice", 1)
    await store.erase("default", "alice", 10)
    assert await store.write_history("default", "alice", [event(5)], [None], "import") == 0
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is None


async def test_an_import_of_what_was_erased_does_not_come_back_by_a_merge(store: RedisStore):
    await append(store, "cookie", 50)
    await store.erase("default", "cookie", 100)
    await append(store, "alice", 10)
    await store.merge("default", "alice", "cookie")
    assert await store.write_history("default", "cookie", [event(50), event(150)], [None, None], "import") == 1
    assert await store.write_history("default", "alice", [event(60)], [None], "import") == 1
    assert await times(store, "alice") == [10, 60, 150]


async def test_attributes_of_both_are_joined_and_the_targets_win(store: RedisStore):
    await append(store, "alice", 1)
    await store.set_attributes("default", "alice", {"country": "UK"})
    await append(store, "cookie", 2)
    await store.set_attributes("default", "cookie", {"country": "France", "age": "25-34"})
    await store.merge("default", "alice", "cookie")
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert loaded.meta.attributes == {"country": "UK", "age": "25-34"}


async def test_attributes_that_come_for_a_merged_identity_are_the_targets(store: RedisStore, raw: redis.Redis):
    await append(store, "alice", 1)
    await append(store, "cookie", 2)
    await store.merge("default", "alice", "cookie")
    await store.set_attributes("default", "cookie", {"country": "UK"})
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert loaded.meta.attributes == {"country": "UK"}
    name = raw.hget(keys.user_keys("default", "alice").meta, "m:cookie")
    assert raw.hgetall(keys.user_keys("default", "cookie").meta) == {b"to": b"alice", b"ms": b"d", b"ik": name}


async def test_the_joined_sequence_keeps_its_bound(open_store: OpenStore):
    store = await open_store(max_sequence=5)
    await append(store, "alice", *range(0, 10, 2))
    await append(store, "cookie", *range(1, 10, 2))
    await store.merge("default", "alice", "cookie")
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert ([e.time_ms for e in loaded.tail], loaded.meta.appended, loaded.tail_start) == ([5, 6, 7, 8, 9], 10, 5)


async def test_an_intent_is_taken_back_by_the_request_that_had_it_alone(store: RedisStore):
    alias = store._identities._alias
    await alias("default", "cookie", "intend", "alice", "one")
    await alias("default", "cookie", "intend", "alice", "other")
    assert (await alias("default", "cookie", "stay", "alice", "one")).leads == "alice"
    assert (await alias("default", "cookie", "go", "alice", "one")).to == ""
    assert (await alias("default", "cookie", "go", "alice", "other")).to == "alice"


async def test_nobody_comes_back_who_was_merged_on_and_erased_while_another_finished_the_merge(store, stopping, raw):
    merging, stops = stopping
    went: Any = ()

    async def erased() -> None:
        nonlocal went
        went = (await store.erase("default", "carol", 1_000)).identities

    async def merged_on() -> None:
        with contextlib.suppress(ConflictError):
            await store.merge("default", "alice", "cookie")
        await store.merge("default", "carol", "alice")
        stops.left, stops.meanwhile = pause, erased

    together = 0
    for steps in range(100):
        for pause in range(100):
            for name in raw.scan_iter("lw:{*"):
                raw.delete(name)
            for n, user in enumerate(("cookie", "alice", "carol")):
                await append(store, user, n)
            went, stops.left, stops.meanwhile = (), steps, merged_on
            with contextlib.suppress(ConflictError, StorageError):
                await merging.merge("default", "alice", "cookie")
            if stops.left >= 0:  # the erasure, or what goes before it, had no turn
                break
            together += "cookie" in went
            assert await times(store, "cookie") == ([] if "cookie" in went else [0]), (steps, pause)
            assert await times(store, "alice") == await times(store, "carol") == ([] if "alice" in went else [0]), (steps, pause)
        if stops.left >= 0 and stops.meanwhile is merged_on:
            break
    assert together > 30


async def test_a_merge_takes_states_under_a_model_that_is_registered_meanwhile(store: RedisStore, raw, registered_late):
    await append(store, "alice", 1)
    await append(store, "cookie", 2)
    results = registered_late(store, "cookie")
    await store.merge("default", "alice", "cookie")
    assert results == ["refused"]  # none can come in the moment when the source goes
    assert left_of(raw, "cookie") == [keys.user_keys("default", "cookie").meta]


@pytest.mark.parametrize("ahead", [False, True])
async def test_what_was_read_for_a_merge_is_not_written_after_the_target_was_erased(store: RedisStore, monkeypatch, ahead: bool):
    if ahead:  # the tombstone reaches further than the one that follows would by itself
        await append(store, "alice", 5_000)
        await store.erase("default", "alice", 50)
    else:
        await append(store, "alice", 1)
    await append(store, "cookie", 2)
    rewrite = store.rewrite

    async def late(*arguments: Any, **more: Any) -> int | None:
        monkeypatch.undo()
        await store.erase("default", "cookie", 100)
        return await rewrite(*arguments, **more)

    monkeypatch.setattr(store, "rewrite", late)
    with pytest.raises(StorageError, match="was erased"):
        await store.merge("default", "alice", "cookie")
    assert await times(store, "alice") == await times(store, "cookie") == []
