"""Erasures and merges of one person that cross one another, step by step, wherever each is held up or cut off: what was erased is
gone under every name, and what was not is there once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import redis

from app.errors import LongwaveError
from app.state import keys
from app.state.events import StoredEvent, decode_event
from app.state.impressions import Impression, ImpressionStore, Seen
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import Confirm, SingleTransport

MOST = 100  # round trips of one call


class Paced(SingleTransport):
    """Makes a round trip when it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_ms=2_000, max_connections=4, confirm=Confirm(0, False, 0))
        self.turns = asyncio.Semaphore(MOST)
        self.waiting = asyncio.Event()

    async def exchange(self, commands: Any, *, durable: bool = False, only: int | None = None) -> list[Any]:
        if self.turns.locked():
            self.waiting.set()
        await self.turns.acquire()
        return await super().exchange(commands, durable=durable, only=only)


class Held:
    """A call that goes on for some round trips at a time. It is cut off in the end if it is not let go on."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore(url)
        self.transport = self.store._transport = Paced(url)
        self.call: asyncio.Task[Any] | None = None

    async def begin(self, call: Coroutine[Any, Any, Any], steps: int) -> bool:
        """The first round trips; whether there are more."""
        while not self.transport.turns.locked():
            await self.transport.turns.acquire()
        self.call = asyncio.create_task(call)
        return await self.go_on(steps)

    async def go_on(self, steps: int) -> bool:
        assert self.call is not None
        for _ in range(steps + 1):
            waiting = asyncio.create_task(self.transport.waiting.wait())
            await asyncio.wait([self.call, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if self.call.done():
                return False
            if _ < steps:
                self.transport.waiting.clear()
                self.transport.turns.release()
        return True

    async def end(self) -> Any:
        """The rest of it, and what it returns; an error is returned, too."""
        assert self.call is not None
        for _ in range(MOST):
            self.transport.turns.release()
        (result,) = await asyncio.gather(self.call, return_exceptions=True)
        return result

    async def cut_off(self) -> None:
        assert self.call is not None
        self.call.cancel()
        with contextlib.suppress(asyncio.CancelledError, LongwaveError):
            await self.call


@pytest.fixture
async def held(redis_url: str) -> AsyncIterator[tuple[Held, Held]]:
    both = Held(redis_url), Held(redis_url)
    for one in both:
        await one.store.open()
    yield both
    for one in both:
        await one.store.close()


def empty(raw: redis.Redis) -> None:
    for name in raw.scan_iter("lw:{*"):
        raw.delete(name)


async def tell(store: RedisStore, user: str, *times: int) -> str:
    events = [StoredEvent(type="purchase", time_ms=n, item_id=str(n)) for n in times]
    (appended,) = await store.append("default", [Append(user, events, [f"id {n}" for n in times])])
    return appended.flags


async def begin_with(store: RedisStore, raw: redis.Redis, **people: int) -> None:
    """These alone, each with one event at that time."""
    empty(raw)
    for user, ms in people.items():
        await tell(store, user, ms)


async def times(store: RedisStore, user: str) -> list[int]:
    (loaded,) = await store.load("default", "m", [user])
    return [event.time_ms for event in loaded.tail]


async def who(store: RedisStore, user: str) -> str:
    return await store._identities.resolve("default", user)


def stored(raw: redis.Redis) -> Counter[int]:
    """The times of all events in all sequences."""
    return Counter(decode_event(event).time_ms for name in raw.scan_iter("lw:*:seq:*") for event in raw.lrange(name, 0, -1))


def naming(raw: redis.Redis, *users: str) -> list[str]:
    """Keys that name one of these users."""
    return sorted(key.decode() for key in raw.scan_iter() if any(key.decode().endswith(f":{user}") for user in users))


@pytest.mark.parametrize("merged_on", [False, True])
async def test_after_an_erasure_that_was_cut_off_another_name_finds_what_is_left(store: RedisStore, held, raw, merged_on: bool):
    erasing, _ = held
    people = {"alice": 1, "cookie": 2, "phone": 3, "bob": 4}
    for steps in range(MOST):
        await begin_with(store, raw, **people)
        await store.merge("default", "alice", "cookie")
        await store.merge("default", "alice", "phone")
        more = await erasing.begin(erasing.store.erase("default", "phone", 1_000), steps)
        await erasing.cut_off()
        begun = 1 not in stored(raw)
        if merged_on:
            await store.merge("default", "bob", "alice")
        await store.erase("default", "cookie", 1_001)
        # Gone with alice if she was bob's by then: not if she had been erased before.
        assert stored(raw) == ({4: 1} if begun or not merged_on else {}), steps
        assert all(0 < raw.pttl(name) <= 60_000 for name in naming(raw, "alice", "cookie", "phone") if not merged_on)
        for user in ("alice", "cookie", "phone"):
            if not merged_on or user == "cookie":
                assert await tell(store, user, people[user]) == "g", (steps, user)
            assert people[user] not in await times(store, user)
        if not more:
            break
    assert steps > 6


async def test_two_erasures_under_two_names_leave_nothing_whoever_is_merged_on_in_between(store: RedisStore, held, raw):
    one, other = held
    for steps in range(MOST):
        for more_steps in range(MOST):
            await begin_with(store, raw, alice=1, cookie=2, phone=3, bob=4)
            await store.merge("default", "alice", "cookie")
            await store.merge("default", "alice", "phone")
            more = await one.begin(one.store.erase("default", "phone", 1_000), steps)
            await store.merge("default", "bob", "alice")
            more_of_other = await other.begin(other.store.erase("default", "cookie", 1_000), more_steps)
            erased = await one.end()
            assert 3 not in stored(raw), (steps, more_steps)
            erased_later = await other.end()
            together = {*erased.identities, *erased_later.identities}
            assert stored(raw) == ({} if "bob" in together else {4: 1}), (steps, more_steps)
            if not more_of_other:
                break
        if not more:
            break
    assert steps > 6


async def test_who_is_read_while_an_erasure_is_held_up_is_there_whole_or_not_at_all(store: RedisStore, held, raw):
    erasing, _ = held
    for steps in range(MOST):
        await begin_with(store, raw, alice=1, cookie=2, phone=3)
        await store.merge("default", "alice", "cookie")
        await store.merge("default", "alice", "phone")
        more = await erasing.begin(erasing.store.erase("default", "phone", 1_000), steps)
        begun, leads = 1 not in stored(raw), raw.exists(keys.user_keys("default", "cookie").meta)
        assert await times(store, "cookie") == ([] if begun else [1, 2, 3])
        if begun and leads:  # whoever reads finishes it
            assert naming(raw, "alice", "cookie", "phone") == []
        erased = await erasing.end()
        assert (erased.refused_to, erased.events, sorted(erased.identities)) == (1_000, 3, ["alice", "cookie", "phone"])
        assert naming(raw, "alice", "cookie", "phone") == []
        if not more:
            break
    assert steps > 6


async def test_a_merge_on_its_way_to_who_has_gone_on_brings_its_events_once_whatever_is_erased_meanwhile(
    store: RedisStore, held, raw
):
    """cookie has gone on to alice, and phone is on the way to cookie, when an erasure parts them."""
    erasing, finishing = held
    for erased in range(MOST):
        for steps in range(MOST):
            for more_steps in (1, 3, 5):
                empty(raw)
                await tell(store, "phone", 3)
                merging = erasing
                await merging.begin(merging.store.merge("default", "cookie", "phone"), 0)
                while raw.hget(keys.user_keys("default", "phone").meta, "ms") != b"p":
                    assert await merging.go_on(1)
                await merging.cut_off()
                await store.merge("default", "alice", "cookie")
                more = await erasing.begin(erasing.store.erase("default", "cookie", 1_000), erased)
                more_of_finishing = await finishing.begin(finishing.store.load("default", "m", ["phone"]), steps)
                forgotten = await erasing.end()
                await finishing.go_on(more_steps)
                with contextlib.suppress(LongwaveError):
                    await store.load("default", "m", ["phone"])
                await finishing.end()
                where = erased, steps, more_steps
                assert stored(raw) == ({} if "phone" in forgotten.identities else {3: 1}), where
                assert await times(store, "phone") == ([] if "phone" in forgotten.identities else [3]), where
                if not more_of_finishing:
                    break
            if not more_of_finishing:
                break
        if not more:
            break
    assert erased > 4


async def test_who_were_merged_beside_an_erasure_are_one(store: RedisStore, held, raw):
    """Whichever came first: a merge that was acknowledged is never that of somebody who was parted from the target by then."""
    erasing, merging = held
    together = 0
    for erased in range(MOST):
        for steps in range(MOST):
            await begin_with(store, raw, alice=1, cookie=2, phone=3)
            await store.merge("default", "alice", "cookie")
            more = await erasing.begin(erasing.store.erase("default", "cookie", 1_000), erased)
            more_of_merging = await merging.begin(merging.store.merge("default", "cookie", "phone"), steps)
            forgotten = await erasing.end()
            merged = await merging.end()
            where = erased, steps, merged
            assert sorted({*forgotten.identities} - {"phone"}) == ["alice", "cookie"], where
            assert stored(raw) == ({} if "phone" in forgotten.identities else {3: 1}), where
            if not isinstance(merged, Exception) and "phone" not in forgotten.identities:
                together += 1
                assert await who(store, "phone") == await who(store, "cookie"), where
                assert "phone" in (await store.erase("default", "cookie", 2_000)).identities, where
                assert stored(raw) == {}
            if not more_of_merging:
                break
        if not more:
            break
    assert together > 10


async def test_a_merge_with_somebody_who_is_parted_from_the_others_meanwhile_is_with_that_name(store: RedisStore, held, raw):
    merging, _ = held
    await begin_with(store, raw, alice=1, cookie=2, phone=3)
    await store.merge("default", "alice", "cookie")
    await merging.begin(merging.store.merge("default", "cookie", "phone"), 0)
    while not raw.hexists(keys.user_keys("default", "phone").meta, "into"):
        assert await merging.go_on(1)
    await store.erase("default", "cookie", 1_000)
    assert await merging.end() == "cookie"
    assert (await times(store, "alice"), await times(store, "cookie")) == ([], [3])


async def test_a_merge_that_came_to_nothing_hides_no_other(store: RedisStore, held, raw):
    """bob knows of two merges of cookie: the one by which she came, and one into alice that was cut off."""
    merging, _ = held
    await begin_with(store, raw, alice=1, cookie=2, bob=3)
    await merging.begin(merging.store.merge("default", "alice", "cookie"), 0)
    while not raw.hexists(keys.user_keys("default", "alice").meta, "m:cookie"):
        assert await merging.go_on(1)
    await merging.cut_off()
    raw.hset(keys.user_keys("default", "cookie").meta, "ia", "1")  # long ago
    await store.merge("default", "bob", "cookie")
    await store.merge("default", "bob", "alice")
    erased = await store.erase("default", "bob", 1_000)
    assert sorted(erased.identities) == ["alice", "bob", "cookie"]
    assert naming(raw, "alice", "bob", "cookie") == []


async def test_who_has_gone_by_another_merge_is_not_erased(store: RedisStore, held, raw):
    merging, _ = held
    await begin_with(store, raw, alice=1, cookie=2, bob=3)
    await merging.begin(merging.store.merge("default", "alice", "cookie"), 0)
    while not raw.hexists(keys.user_keys("default", "alice").meta, "m:cookie"):
        assert await merging.go_on(1)
    await merging.cut_off()
    raw.hset(keys.user_keys("default", "cookie").meta, "ia", "1")  # long ago
    await store.merge("default", "bob", "cookie")
    assert list((await store.erase("default", "alice", 1_000)).identities) == ["alice"]
    assert await times(store, "cookie") == await times(store, "bob") == [2, 3]


async def test_an_intent_to_join_who_was_erased_meanwhile_is_taken_back(store: RedisStore, held, raw):
    merging, _ = held
    await begin_with(store, raw, alice=1, cookie=2)
    await merging.begin(merging.store.merge("default", "alice", "cookie"), 0)
    while not raw.hexists(keys.user_keys("default", "alice").meta, "m:cookie"):
        assert await merging.go_on(1)
    assert list((await store.erase("default", "alice", 1_000)).identities) == ["alice"]
    assert isinstance(await merging.end(), LongwaveError)
    assert (await times(store, "cookie"), await times(store, "alice")) == ([2], [])


async def test_a_merge_of_which_nobody_knows_any_more_is_made_known_again(store: RedisStore, held, raw):
    """Such as after a Redis that took over from another one lacks what that one did last."""
    merging, _ = held
    await begin_with(store, raw, alice=1, cookie=2, phone=3)
    await merging.begin(merging.store.merge("default", "alice", "cookie"), 0)
    while raw.hget(keys.user_keys("default", "cookie").meta, "ms") != b"p":
        assert await merging.go_on(1)
    await merging.cut_off()
    raw.hdel(keys.user_keys("default", "alice").meta, "m:cookie")
    assert await times(store, "cookie") == [1, 2]
    raw.hdel(keys.user_keys("default", "alice").meta, "m:cookie")
    assert await store.merge("default", "cookie", "phone") == "alice"
    assert await times(store, "phone") == [1, 2, 3]
    erased = await store.erase("default", "phone", 1_000)
    assert sorted(erased.identities) == ["alice", "cookie", "phone"]


async def test_who_is_being_erased_with_somebody_who_is_not_is_nobody(store: RedisStore, raw):
    await tell(store, "alice", 1)
    impressions = ImpressionStore(store, "default", 0)
    await impressions.add([Seen("alice", Impression("list", 1, ("film",)), [7])])
    raw.hset(keys.user_keys("default", "cookie").meta, mapping={"to": "alice", "ms": "e", "ik": "merge", "up": "5"})
    assert await impressions.shown("cookie") == []
    assert await tell(store, "cookie", 2) == "1"
    assert (await times(store, "alice"), await times(store, "cookie")) == ([1], [2])


def with_names(raw: redis.Redis, user: str, count: int) -> list[str]:
    """So many were merged into a user; their names."""
    names = [f"name {n}" for n in range(count)]
    for name in names:
        mark, meta = f"m:{name}", keys.user_keys("default", name).meta
        raw.hset(keys.user_keys("default", user).meta, mark, "merge")
        raw.hset(meta, mapping={"to": user, "ms": "d", "ik": "merge"})
    return names


async def test_who_has_many_names_is_merged_in_a_few_round_trips(store: RedisStore, held, raw):
    merging, _ = held
    await tell(store, "alice", 1)
    names = with_names(raw, "alice", 230)
    assert not await merging.begin(merging.store.merge("default", "bob", "alice"), 40)
    assert [raw.hget(keys.user_keys("default", name).meta, "to") for name in names] == [b"bob"] * 230


async def test_an_erasure_takes_more_names_than_one_round_trip_carries(store: RedisStore, raw):
    await tell(store, "alice", 1)
    names = with_names(raw, "alice", 230)
    assert sorted((await store.erase("default", names[7], 1_000)).identities) == sorted(["alice", *names])
    assert list(raw.scan_iter("lw:*:meta:*")) == []
    assert await tell(store, names[200], 1_000) == "g"


async def merged_halfway(store: RedisStore, merging: Held, raw: redis.Redis, phone_ms: int) -> None:
    """phone is one with cookie, and cookie on its way to alice, left by whoever led it there."""
    await begin_with(store, raw, alice=1, cookie=2, phone=phone_ms)
    await store.merge("default", "cookie", "phone")
    await merging.begin(merging.store.merge("default", "alice", "cookie"), 0)
    while raw.hget(keys.user_keys("default", "cookie").meta, "ms") != b"p":
        assert await merging.go_on(1)
    await merging.cut_off()


async def test_who_is_merged_into_somebody_who_is_being_merged_is_erased_too(store: RedisStore, held, raw):
    """phone's mark is still with cookie, and with it what an event of phone says of the time up to which events are refused."""
    merging, erasing = held
    for steps in range(MOST):
        await merged_halfway(store, merging, raw, phone_ms=5_000)
        more = await erasing.begin(erasing.store.erase("default", "alice", 1_000), steps)
        await erasing.cut_off()
        await store.erase("default", "alice", 1_001)
        assert stored(raw) == {}
        assert await tell(store, "phone", 5_000) == "g"
        assert naming(raw, "alice", "cookie", "phone") == []
        if not more:
            break
    assert steps > 6


async def test_somebody_of_several_names_is_erased_from_a_full_redis(store: RedisStore, raw):
    await begin_with(store, raw, alice=1, cookie=2, phone=3)
    await store.merge("default", "alice", "cookie")
    await store.merge("default", "alice", "phone")
    raw.config_set("maxmemory", "1")
    try:
        erased = await store.erase("default", "phone", 1_000)
    finally:
        raw.config_set("maxmemory", "0")
    assert sorted(erased.identities) == ["alice", "cookie", "phone"]
    assert list(raw.scan_iter("lw:*:receipt:*")) == naming(raw, "alice", "cookie", "phone") == []


async def test_who_comes_anew_beside_an_erasure_and_is_merged_is_known_to_the_next(store: RedisStore, held, raw):
    """What the erasure has left of an earlier life of cookie does not hide that she is bob's now."""
    erasing, _ = held
    anew = 0
    for steps in range(MOST):
        await begin_with(store, raw, alice=1, cookie=2, bob=3)
        await store.merge("default", "alice", "cookie")
        more = await erasing.begin(erasing.store.erase("default", "alice", 1_000), steps)
        if 1 not in stored(raw) or not raw.exists(keys.user_keys("default", "cookie").meta):
            anew += 1
            assert await tell(store, "cookie", 2_000) == "1"
            await store.merge("default", "bob", "cookie")
            with contextlib.suppress(LongwaveError):
                await store.merge("default", "bob", "alice")
            await erasing.end()
            assert await tell(store, "cookie", 3_000) == "1"
            together = {await who(store, "cookie"), "cookie"}
            assert together <= set((await store.erase("default", await who(store, "cookie"), 4_000)).identities), steps
        else:
            await erasing.end()
        if not more:
            break
    assert anew > 4


async def test_what_is_told_beside_an_erasure_is_with_the_name_that_it_was_told_under(store: RedisStore, held, raw):
    """cookie was alice's when she told it, and is parted from her before it is stored: sent again it would be there twice."""
    telling, _ = held
    for steps in range(MOST):
        await begin_with(store, raw, alice=1, cookie=2)
        await store.merge("default", "alice", "cookie")
        more = await telling.begin(tell(telling.store, "cookie", 2_000), steps)
        await store.erase("default", "alice", 1_000)
        assert await telling.end() == "1"
        if more:
            assert await who(store, "cookie") == "cookie"
            assert await tell(store, "cookie", 2_000) == "0", steps
            assert stored(raw) == {2_000: 1}
        else:
            break
    assert steps > 1


async def test_what_is_said_beside_an_erasure_is_with_the_name_that_it_was_said_under(store: RedisStore, held, raw):
    """Attributes, what was shown, a history: cookie was alice's when they were on their way."""
    telling, _ = held
    seen = Seen("cookie", Impression("list", 2_000_000, ("film",)), [7])
    history = [StoredEvent(type="purchase", time_ms=n, item_id=str(n)) for n in (2, 2_000_000)]
    calls = {
        "attributes": lambda: telling.store.set_attributes("default", "cookie", {"age": "20"}),
        "shown": lambda: ImpressionStore(telling.store, "default", 0).add([seen]),
        "history": lambda: telling.store.write_history("default", "cookie", history, [None, None], "import"),
    }
    for what, call in calls.items():
        parted = 0
        for steps in range(MOST):
            await begin_with(store, raw, alice=1, cookie=2)
            await store.merge("default", "alice", "cookie")
            if not await telling.begin(call(), steps):
                break
            await store.erase("default", "alice", 1_000_000)
            assert not isinstance(await telling.end(), Exception)
            assert naming(raw, "alice") == [], (what, steps)
            assert naming(raw, "cookie"), (what, steps)
            assert stored(raw) == ({2_000_000: 1} if what == "history" else {})
            parted += 1
        assert parted > 1, what


async def test_an_erasure_does_not_take_who_has_parted_from_the_name_and_begun_anew(store: RedisStore, held, raw):
    """cookie was alice's when hers was asked for; alice was erased, and is bob's friend, before it goes on."""
    erasing, _ = held
    anew = 0
    for steps in range(MOST):
        await begin_with(store, raw, alice=1, cookie=2, bob=3)
        await store.merge("default", "alice", "cookie")
        more = await erasing.begin(erasing.store.erase("default", "cookie", 1_000), steps)
        await store.erase("default", "alice", 1_000)
        await store.merge("default", "alice", "bob")
        assert await tell(store, "alice", 2_000) == "1"
        erased = await erasing.end()
        assert not isinstance(erased, Exception)
        assert await times(store, "bob") == [3, 2_000], (steps, erased)
        anew += 1
        if not more:
            break
    assert anew > 4


async def test_the_names_of_who_is_erased_go_however_far_the_erasure_came(store: RedisStore, held, raw, monkeypatch):
    """Also those of which the name alone is left, and which go by themselves, some before others."""
    monkeypatch.setattr("app.state.erasing.MOST_AT_ONCE", 1)
    erasing, merging = held
    for steps in range(MOST):
        await merged_halfway(store, merging, raw, phone_ms=3)
        more = await erasing.begin(erasing.store.erase("default", "alice", 1_000), steps)
        await erasing.cut_off()
        for name in raw.scan_iter():
            if raw.pttl(name) > 0 and raw.type(name) == b"hash":
                raw.delete(name)  # a minute later
        await store.erase("default", "alice", 1_001)
        assert naming(raw, "alice", "cookie", "phone") == [], steps
        if not more:
            break
    assert steps > 6
