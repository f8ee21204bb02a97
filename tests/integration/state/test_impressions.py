"""What was shown, in Redis: once in the log, a bounded part with the user, and gone with the user."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from app.catalogue.catalogue import item_key
from app.errors import DamagedError, TooLargeError
from app.state import keys
from app.state.events import StoredEvent
from app.state.identities import Identities
from app.state.impressions import Impression, ImpressionStore, Seen, decode_impression
from app.state.redis import RedisStore
from app.state.ring import id_hash
from app.state.shown import MOST_IDS, MOST_SHOWINGS, SHOWN_TTL_MS, Showing
from app.state.store import Append

NOW = time.time_ns() // 1_000_000


@pytest.fixture
def impressions(store: RedisStore) -> ImpressionStore:
    return ImpressionStore(store, "default", 0)


def seen(user: str, list_id: str, *items: str, ms: int = NOW) -> Seen:
    return Seen(user, Impression(list_id, ms, items or ("a",)), [item_key(item) for item in items or ("a",)])


def logged(raw: redis.Redis) -> list[tuple[str, str]]:
    """User and list of every impression in the logs."""
    found = []
    for name in raw.scan_iter("lw:*:log"):
        for _, fields in raw.xrange(name):
            if fields[b"k"] == b"v":
                found.append((fields[b"u"].decode(), decode_impression(fields[b"v"]).recommendation_id))
    return sorted(found)


async def shown(impressions: ImpressionStore, user: str) -> list[int]:
    return [one.key for one in await impressions.shown(user)]


def keys_of(raw: redis.Redis, user: str) -> list[str]:
    return sorted(name.decode() for name in raw.scan_iter() if name.decode().endswith(f":{user}"))


async def test_a_list_is_shown_once_to_each_user_and_once_to_nobody(impressions: ImpressionStore, raw: redis.Redis):
    given = [seen("u", "one"), seen("u", "one"), seen("v", "one"), seen("", "one"), seen("", "one"), seen("u", "two")]
    assert await impressions.add(given) == ["1", "0", "1", "1", "0", "1"]
    assert await impressions.add(given) == ["0"] * 6
    assert logged(raw) == [("", "one"), ("u", "one"), ("u", "two"), ("v", "one")]


async def test_what_a_user_was_shown_is_kept_in_order_and_within_bounds(impressions: ImpressionStore, raw: redis.Redis):
    for number in range(100):
        await impressions.add([seen("u", f"list {number}", f"{number}a", f"{number}b", "c", ms=NOW + 1000 * number)])
    expected = [item_key(item) for number in range(100) for item in (f"{number}a", f"{number}b", "c")]
    found = await impressions.shown("u")
    assert [one.key for one in found] == expected[-MOST_SHOWINGS:]
    assert found[-1].at_s == NOW // 1000 + 99
    key = keys.user_keys("default", "u").shown
    assert raw.strlen(key) == 2 + 8 * MOST_IDS + 12 * MOST_SHOWINGS
    assert 0 < raw.pttl(key) <= SHOWN_TTL_MS
    # The last lists are known again, and no other ones.
    assert await impressions.add([seen("u", f"list {100 - MOST_IDS}")]) == ["0"]
    assert await impressions.add([seen("u", f"list {99 - MOST_IDS}")]) == ["1"]


async def test_of_nobody_no_item_is_kept_and_lists_are_spread_over_the_partitions(impressions: ImpressionStore, raw: redis.Redis):
    assert await impressions.add([seen("", f"list {n}", "a", "b") for n in range(1_000)]) == ["1"] * 1_000
    names = list(raw.scan_iter("lw:*:shown:*"))
    assert len(names) > 200
    assert all(raw.strlen(name) % 8 == 2 for name in names)
    assert len(logged(raw)) == 1_000


async def test_a_long_list_counts_with_its_first_items(impressions: ImpressionStore):
    items = [str(number) for number in range(1_000)]
    await impressions.add([seen("u", "long", *items)])
    assert await shown(impressions, "u") == [item_key(item) for item in items[:MOST_SHOWINGS]]


async def test_an_erasure_forgets_what_was_shown_and_refuses_what_comes_late(
    store: RedisStore, impressions: ImpressionStore, raw: redis.Redis
):
    await store.append("default", [Append("u", [StoredEvent("view", NOW - 10, "a")], [None])])
    for user in ("u", "stranger"):  # one with events, one of whom nothing else is known
        await impressions.add([seen(user, "one", ms=NOW - 10)])
        assert keys.user_keys("default", user).shown in keys_of(raw, user)
        await store.erase("default", user, NOW)
        assert keys_of(raw, user) == []
        assert await impressions.shown(user) == []
        assert await impressions.add([seen(user, "one", ms=NOW - 5), seen(user, "two", ms=NOW + 5)]) == ["g", "1"]


@pytest.mark.parametrize("times", [1, 2])
async def test_a_list_that_was_shown_in_the_future_of_an_erasure_does_not_come_back(
    store: RedisStore, impressions: ImpressionStore, raw: redis.Redis, times: int
):
    ahead = seen("cookie", "one", ms=NOW + 90_500)  # a clock that is ahead
    await impressions.add([ahead])
    await store.merge("default", "u", "cookie")
    for time_ in range(times):
        erased = await store.erase("default", "u", NOW + time_)
        assert NOW + 90_500 <= erased.refused_to < NOW + 92_000
    assert await impressions.add([ahead]) == ["g"]
    assert keys_of(raw, "u") == keys_of(raw, "cookie") == []


async def test_nor_does_one_after_which_many_others_were_shown(store: RedisStore, impressions: ImpressionStore):
    ahead = [seen("u", "one", ms=NOW + 90_500), seen("u", "two", ms=NOW + 80_500)]
    await impressions.add(ahead)
    for number in range(30):
        await impressions.add([seen("u", f"list {number}", *(f"{number} {n}" for n in range(20)))])
        found = await impressions.shown("u")
        assert len(found) == min(MOST_SHOWINGS, 2 + 20 * (number + 1))
        assert found[-20:] == [Showing(item_key(f"{number} {n}"), NOW // 1000) for n in range(20)]
    assert [one.at_s for one in found[:2]] == [(NOW + 90_500) // 1000, NOW // 1000]
    await store.erase("default", "u", NOW + 5)
    assert await impressions.add(ahead) == ["g", "g"]


async def test_a_merge_brings_what_was_shown_along_and_repeats_stay_repeats(
    store: RedisStore, impressions: ImpressionStore, raw: redis.Redis
):
    for user in ("alice", "cookie"):
        await store.append("default", [Append(user, [StoredEvent("view", NOW, "a")], [None])])
    await impressions.add([seen("alice", "one", "a", ms=NOW - 3000), seen("cookie", "two", "b", ms=NOW - 2000)])
    await impressions.add([seen("alice", "three", "c", ms=NOW - 1000)])
    await store.merge("default", "alice", "cookie")
    assert keys_of(raw, "cookie") == [keys.user_keys("default", "cookie").meta]
    for user in ("alice", "cookie"):
        assert await shown(impressions, user) == [item_key(item) for item in "abc"]
        assert await impressions.add([seen(user, name) for name in ("one", "two", "three")]) == ["0"] * 3
    assert await impressions.add([seen("cookie", "four", "d")]) == ["1"]
    assert logged(raw) == [("alice", "four"), ("alice", "one"), ("alice", "three"), ("cookie", "two")]
    await store.erase("default", "cookie", NOW + 10)
    assert keys_of(raw, "alice") == keys_of(raw, "cookie") == []


async def test_a_merge_that_is_done_twice_brings_nothing_twice(
    store: RedisStore, impressions: ImpressionStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    for user in ("alice", "cookie"):
        await impressions.add([seen(user, f"of {user}", f"of {user}", ms=NOW)])
    hand_on, times = Identities._hand_on_shown, []

    async def twice(self: Identities, *arguments: Any) -> None:
        times.append(1)
        await hand_on(self, *arguments)
        await hand_on(self, *arguments)

    monkeypatch.setattr(Identities, "_hand_on_shown", twice)
    await store.merge("default", "alice", "cookie")
    assert times == [1]
    assert sorted(await shown(impressions, "alice")) == sorted(item_key(f"of {user}") for user in ("alice", "cookie"))
    assert raw.strlen(keys.user_keys("default", "alice").shown) == 2 + 2 * 8 + 2 * 12


async def test_no_more_are_taken_of_a_user_of_several_names_than_are_known_when_they_are_sent_again(
    store: RedisStore, impressions: ImpressionStore
):
    for source in ("cookie", "phone"):
        await store.merge("default", "u", source)
    batch = [seen("u", "one"), seen("v", "one")] + [seen("cookie", f"{n}") for n in range(MOST_IDS - 1)]
    assert await impressions.add(batch) == ["1"] * (MOST_IDS + 1)
    assert await impressions.add(batch) == ["0"] * (MOST_IDS + 1)
    for _ in range(2):
        found = await impressions.add([*batch, seen("phone", "two")])
        assert found[:2] == ["0", "0"]
        assert all(isinstance(one, TooLargeError) for one in found[2:])
    assert await impressions.add([seen("phone", "two")]) == ["1"]


async def test_one_damaged_user_hurts_no_other(impressions: ImpressionStore, raw: redis.Redis):
    raw.rpush(keys.user_keys("default", "bad").shown, "x")
    first, second, third = await impressions.add([seen("u", "one"), seen("bad", "one"), seen("v", "one")])
    assert (first, third) == ("1", "1")
    assert isinstance(second, DamagedError)
    assert "'bad'" in second.detail
    raw.delete(keys.user_keys("default", "bad").shown)
    for nonsense in (b"x", b"\xff\xff" + b"x" * 30, b"\x01\x00" + b"x" * 9):
        raw.set(keys.user_keys("default", "bad").shown, nonsense)
        assert await impressions.shown("bad") == []
        assert await impressions.add([seen("bad", repr(nonsense), "a")]) == ["1"]
        assert await shown(impressions, "bad") == [item_key("a")]


async def test_half_of_one_hash_and_half_of_another_are_no_repeat(impressions: ImpressionStore, raw: redis.Redis):
    await impressions.add([seen("u", "one")])
    key, one = keys.user_keys("default", "u").shown, id_hash(b"new")
    raw.set(key, b"\x02\x00" + b"\x00" * 4 + one + b"\x00" * 4)
    assert await impressions.add([seen("u", "new"), seen("u", "new")]) == ["1", "0"]


async def test_a_log_that_nobody_archives_is_cut(store: RedisStore, raw: redis.Redis):
    bounded = ImpressionStore(store, "default", 500)
    for start in range(0, 2_000, 500):
        await bounded.add([seen("u", f"list {n}") for n in range(start, start + 500)])
    assert 500 <= raw.xlen(keys.user_keys("default", "u").log) <= 700  # trimmed by whole nodes of 100
