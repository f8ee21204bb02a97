"""Erasing users and joining them: nothing of the erased comes back, nothing of the joined is lost, wherever it was cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis

from app.errors import ConflictError, StorageError
from app.state import keys
from app.state.codec import Header, StateCodec
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import Confirm, SingleTransport

OpenStore = Callable[..., Awaitable[RedisStore]]
CODEC = StateCodec([])


def event(n: int) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=n, item_id=str(n))


async def append(store: RedisStore, user: str, *times: int, ids: bool = False) -> str:
    event_ids = [f"id {n}" if ids else None for n in times]
    (appended,) = await store.append("default", [Append(user, [event(n) for n in times], event_ids)])
    return appended.flags


async def times(store: RedisStore, user: str) -> list[int]:
    (loaded,) = await store.load("default", "m", [user])
    return [event.time_ms for event in loaded.tail]


async def commit_all(store: RedisStore, user: str, model: str = "m") -> str:
    (loaded,) = await store.load("default", model, [user])
    assert loaded.meta is not None
    header = Header(loaded.meta.epoch, loaded.tail_start, loaded.meta.appended, 0)
    (result,) = await store.commit_many("default", model, [(loaded.user_id, CODEC.pack(header, {}))])
    return result


def left_of(raw: redis.Redis, *users: str) -> list[str]:
    """Keys that name one of these users."""
    return sorted(key.decode() for key in raw.scan_iter() if any(key.decode().endswith(f":{user}") for user in users))


def log_of(raw: redis.Redis, user: str) -> list[tuple[bytes, ...]]:
    entries = raw.xrange(keys.user_keys("default", user).log)
    return [(fields[b"k"], fields[b"u"]) for _, fields in entries if fields[b"u"] == user.encode()]


# Erasing.


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


class Dies(RedisStore):
    """Ends before its n-th round trip that writes; a process that was killed there."""

    left = 10**9

    async def run(self, script: Any, calls: Any, *, durable: bool = False) -> list[Any]:
        if durable:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        return await super().run(script, calls, durable=durable)


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


class Stops(SingleTransport):
    """Does something else before its n-th round trip, reads among them; such as to be killed."""

    left = 10**9

    async def exchange(self, commands: Any, *, durable: bool = False, only: int | None = None) -> list[Any]:
        self.left -= 1
        if self.left == -1:
            await self.meanwhile()
        return await super().exchange(commands, durable=durable, only=only)

    async def meanwhile(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
async def stopping(redis_url: str) -> AsyncIterator[tuple[RedisStore, Stops]]:
    """A store on a transport that stops."""
    store = RedisStore(redis_url)
    await store.open()
    await store.close()
    stops = store._transport = Stops(redis_url, timeout_ms=2_000, max_connections=4, confirm=Confirm(0, False, 0))
    yield store, stops
    await store.close()


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


@pytest.fixture
def registered_late(store: RedisStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Once a store has read which models there are, a worker registers one more, and its backfill stores the states of some users
    under it; what came of those."""

    def after(reading: RedisStore, *users: str) -> list[str]:
        results: list[str] = []

        async def read() -> dict[str, str]:
            found = await RedisStore.models(reading)
            monkeypatch.undo()
            await store.register_model("late", "{}")
            for user in users:
                epoch = raw.hget(keys.user_keys("default", user).meta, "e")
                assert isinstance(epoch, bytes)
                header = Header(epoch, 0, 1, 0)
                results.extend(await store.commit_many("default", "late", [(user, CODEC.pack(header, {}))]))
            return found

        monkeypatch.setattr(reading, "models", read)
        return results

    return after


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


# Merging.


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


@pytest.mark.parametrize("steps", [1, 2])
async def test_a_merge_that_was_cut_off_before_it_began_has_changed_nothing(store, redis_url, raw, steps: int):
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
    raw.hset(keys.user_keys("default", "cookie").meta, "ia", "1")  # long ago
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
