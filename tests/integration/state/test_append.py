from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from hashlib import blake2b

import pytest
import redis

from app.state import keys
from app.state.events import StoredEvent, decode_event
from app.state.redis import RedisStore
from app.state.store import STORED, Append

OpenStore = Callable[..., Awaitable[RedisStore]]


Event = tuple[StoredEvent, str | None]


def event(n: int, event_id: str | None = None) -> Event:
    return StoredEvent(type="purchase", time_ms=1_000 + n, item_id=f"item {n}", quantity=1.5), event_id


def batch(user: str, *events: Event) -> Append:
    return Append(user, [event for event, _ in events], [event_id for _, event_id in events])


async def append(store: RedisStore, *events: Event, user: str = "alice") -> str:
    (appended,) = await store.append("default", [batch(user, *events)])
    return appended.flags


def plain(*events: Event) -> list[StoredEvent]:
    return [event for event, _ in events]


async def stored(store: RedisStore, user: str = "alice") -> list[StoredEvent]:
    return await store.recent("default", user, 1_000_000)


async def test_events_come_back_in_arrival_order_not_in_time_order(store: RedisStore):
    events = [event(5), event(1), event(3)]
    await append(store, *events[:2])
    await append(store, events[2])
    assert await stored(store) == plain(*events)


async def test_every_field_of_an_event_survives_storage(store: RedisStore):
    full = StoredEvent("like", 2**45, "ü\n", -0.0, 1e300, 0.1, "web", "s", "b", "text", "rec", {"a": 1, "b": None, "c": "é"})
    await append(store, (full, "id"))
    assert await stored(store) == [full]


async def test_a_retry_is_stored_once(store: RedisStore):
    assert await append(store, event(1, "a"), event(2, "b")) == "11"
    assert await append(store, event(1, "a"), event(3, "c")) == "01"
    assert await stored(store) == plain(event(1), event(2), event(3))
    assert (await store.append("default", [batch("alice", event(1, "a"))]))[0].total == 3


async def test_the_same_id_twice_in_one_call_is_stored_once(store: RedisStore):
    assert await append(store, event(1, "a"), event(1, "a"), event(2, "a")) == "100"
    assert await stored(store) == plain(event(1))


async def test_events_without_an_id_are_never_duplicates(store: RedisStore):
    assert await append(store, event(1), event(1)) == "11"
    assert await append(store, event(1)) == "1"


async def test_an_id_belongs_to_its_user_and_tenant(store: RedisStore):
    assert await append(store, event(1, "a"), user="alice") == "1"
    assert await append(store, event(1, "a"), user="bob") == "1"
    (other_tenant,) = await store.append("other", [batch("alice", event(1, "a"))])
    assert other_tenant.flags == "1"
    assert other_tenant.total == 1


@pytest.mark.parametrize("one_call", [True, False])
async def test_an_id_is_known_while_it_is_among_the_last_of_the_window(open_store: OpenStore, one_call: bool):
    # The window slides in the same way whether events come alone or together: a batch must not remember more or less.
    store = await open_store(dedupe_window=3)

    async def offer(ids: str) -> str:
        calls = [ids] if one_call else list(ids)
        flags = [flag for call in calls for flag in await append(store, *(event(0, i) for i in call))]
        return "".join("+" if flag == STORED else "-" for flag in flags)

    assert await offer("abc") == "+++"
    assert await offer("a") == "-"  # the third last: just inside
    assert await offer("da") == "++"  # d pushes a out: just outside
    assert await offer("dacb") == "--" + "-+"  # last are c d a, then b is new again and pushes c out
    assert await offer("dabc") == "---+"
    assert await offer("efghe") == "+++++"  # all within one batch: the first e is the fourth last by then
    assert await offer("ghe") == "---"


async def test_the_window_holds_at_its_default_size_however_often_its_ring_goes_round(store: RedisStore, raw: redis.Redis):
    key = keys.user_keys("default", "alice").ids
    longest = 0
    for start in range(0, 4_000, 250):
        await append(store, *(event(n, f"id {n}") for n in range(start, start + 250)))
        longest = max(longest, raw.strlen(key))
    assert await append(store, event(0, "id 3000"), event(0, "id 2999")) == "01"  # 1,000th and 1,001st last
    assert longest == 16 + 8 * 1_000  # a header, and 8 bytes an id


async def test_a_window_of_zero_stores_retries_again(open_store: OpenStore):
    store = await open_store(dedupe_window=0)
    assert await append(store, event(1, "a"), event(1, "a")) == "11"
    assert await append(store, event(1, "a")) == "1"


async def test_ids_whose_hashes_overlap_across_a_boundary_are_not_retries(store: RedisStore, raw: redis.Redis):
    # The known ids are one string: put the hash of "x" at an odd place in it, where two other ids meet.
    odd = b"\x01\x02\x03" + blake2b(b"x", digest_size=8).digest() + b"\x04\x05\x06\x07\x08"
    raw.set(keys.user_keys("default", "alice").ids, struct.pack("<IIQ", 1_000, 0, 2) + odd)
    assert await append(store, event(1, "x")) == "1"
    assert await append(store, event(1, "x")) == "0"


async def test_history_drops_the_oldest_event_beyond_its_bound(open_store: OpenStore):
    store = await open_store(max_sequence=5)
    await append(store, *(event(n) for n in range(5)))
    assert len(await stored(store)) == 5
    # one past the bound: exactly the bound would also pass with an off-by-one trim
    await append(store, event(5))
    assert await stored(store) == plain(*(event(n) for n in range(1, 6)))
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.meta.stored, loaded.tail_start) == (6, 5, 1)


async def test_a_batch_longer_than_the_bound_keeps_its_end(open_store: OpenStore):
    store = await open_store(max_sequence=5)
    await append(store, *(event(n) for n in range(12)))
    assert await stored(store) == plain(*(event(n) for n in range(7, 12)))


async def test_a_batch_longer_than_luas_stack_is_stored_whole(store: RedisStore):
    events = [event(n) for n in range(9_000)]
    await append(store, *events)
    assert await stored(store) == plain(*events)


async def test_meta_counts_fresh_events_and_spans_their_times(store: RedisStore):
    await append(store, event(50, "a"), event(20, "b"))
    await append(store, event(-900, "a"), event(30, "c"))  # a retry with another time changes nothing
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.meta.first_time_ms, loaded.meta.last_time_ms) == (3, 1_020, 1_050)


async def test_a_user_keeps_the_epoch_of_the_first_event(store: RedisStore):
    epochs = []
    for n in range(2):
        await append(store, event(n))
        await append(store, event(n), user="bob")
        epochs.append([loaded.meta.epoch for loaded in await store.load("default", "m", ["alice", "bob"]) if loaded.meta])
    assert epochs[0] == epochs[1]
    assert epochs[0][0] != epochs[0][1]
    assert len(epochs[0][0]) == 8


async def test_every_fresh_event_is_in_the_log_of_its_partition_once(store: RedisStore, raw: redis.Redis):
    users = [f"user {n}" for n in range(50)]
    for _ in range(2):
        await store.append("default", [batch(user, event(1, "a"), event(2, "b")) for user in users])
    logged = []
    for partition in {keys.partition("default", user) for user in users}:
        for _, fields in raw.xrange(f"lw:{{{partition}}}:log"):
            assert keys.partition("default", fields[b"u"].decode()) == partition
            assert (fields[b"k"], fields[b"t"], len(fields[b"p"])) == (b"e", b"default", 8)
            logged.append((fields[b"u"].decode(), int(fields[b"n"]), decode_event(fields[b"e"]), fields[b"i"].decode()))
    assert sorted(logged, key=lambda entry: entry[:2]) == [
        (user, n, *e) for user in sorted(users) for n, e in enumerate((event(1, "a"), event(2, "b")), start=1)
    ]


@pytest.mark.parametrize("log_max_length", [0, 1_000])  # with and without an archiver
async def test_the_log_names_the_epoch_in_which_an_event_came(open_store: OpenStore, raw: redis.Redis, log_max_length: int):
    store = await open_store(log_max_length=log_max_length)
    epochs = [(await store.append("default", [batch("alice", event(n))]))[0].epoch for n in range(2)]
    await store.set_attributes("default", "alice", {"country": "UK"})
    epochs += [(await store.append("default", [batch("alice", event(n))]))[0].epoch for n in (2, 3)]
    logged = [fields for _, fields in raw.xrange(keys.user_keys("default", "alice").log) if fields[b"k"] == b"e"]
    assert [(fields[b"p"], int(fields[b"n"])) for fields in logged] == [(epoch, n) for n, epoch in enumerate(epochs, start=1)]
    assert len(set(epochs)) == 2


async def test_the_log_stays_near_its_bound(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(log_max_length=500)
    await append(store, *(event(n) for n in range(2_000)))
    assert 500 <= raw.xlen(keys.user_keys("default", "alice").log) <= 700  # trimmed by whole nodes of 100


async def test_one_call_for_many_users_answers_each_in_its_place(store: RedisStore):
    batches = [batch(f"user {n}", *(event(i) for i in range(n))) for n in range(40)]
    assert [appended.total for appended in await store.append("default", batches)] == list(range(40))
    assert [len(appended.flags) for appended in await store.append("default", batches)] == list(range(40))
    assert await store.append("default", []) == []


async def test_two_batches_of_one_user_are_stored_in_their_order(store: RedisStore):
    # Two requests that came at the same time share a call.
    first, second = await store.append("default", [batch("alice", event(1, "a")), batch("alice", event(2, "b"), event(1, "a"))])
    assert (first.flags, first.total, second.flags, second.total) == ("1", 1, "10", 2)
    assert await stored(store) == plain(event(1), event(2))


async def test_the_answer_names_the_epoch_and_the_attributes_of_the_moment(store: RedisStore):
    # Whoever folds what was just stored needs both, and asks for neither.
    async def answer(*events: Event) -> tuple[str, dict[str, str], bytes]:
        (appended,) = await store.append("default", [batch("alice", *events)])
        (loaded,) = await store.load("default", "m", ["alice"])
        assert loaded.meta is not None
        assert (appended.epoch, appended.total) == (loaded.meta.epoch, loaded.meta.appended)
        return appended.flags, dict(appended.attributes), appended.epoch

    flags, attributes, first = await answer(event(1, "a"))
    assert (flags, attributes) == ("1", {})
    await store.set_attributes("default", "alice", {"country": "ü", "age": "25-34"})
    for events, expected in (([event(2, "b")], "1"), ([event(1, "a"), event(2, "b")], "00")):  # all retries answer it too
        flags, attributes, second = await answer(*events)
        assert (flags, attributes) == (expected, {"country": "ü", "age": "25-34"})
        assert second != first
    await store.set_attributes("default", "alice", {})
    assert (await answer(event(3)))[:2] == ("1", {})


async def test_racing_retries_of_one_event_store_it_once(store: RedisStore):
    flags = await asyncio.gather(*(append(store, event(1, "a")) for _ in range(30)))
    assert sorted(flags) == ["0"] * 29 + ["1"]


async def test_recent_gives_the_last_events_oldest_first(store: RedisStore):
    await append(store, *(event(n) for n in range(5)))
    assert await store.recent("default", "alice", 2) == plain(event(3), event(4))
    assert await store.recent("default", "alice", 0) == []
    assert await store.recent("default", "nobody", 5) == []
