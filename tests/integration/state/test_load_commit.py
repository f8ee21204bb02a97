from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import redis

from app.errors import StateFormatError
from app.runtime.manifest import StateTensor
from app.state import keys
from app.state.codec import Header, StateCodec, peek
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append, Held, Loaded

OpenStore = Callable[..., Awaitable[RedisStore]]
CODEC = StateCodec([StateTensor(name="h", dtype="float32", shape=[2, 4]), StateTensor(name="clock", dtype="int64", shape=[1])])


def event(n: int) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=n, item_id=str(n))


def blob(epoch: bytes, applied: int, base: int = 0, mark: int = 0) -> bytes:
    state = {"h": np.zeros((2, 4), np.float32), "clock": np.array([mark], np.int64)}
    return CODEC.pack(Header(epoch=epoch, base=base, applied=applied, catalogue_version=3), state)


async def append(store: RedisStore, *numbers: int) -> None:
    await store.append("default", [Append("alice", [event(n) for n in numbers], [None] * len(numbers))])


async def load(store: RedisStore, model: str = "m") -> Loaded:
    (loaded,) = await store.load("default", model, ["alice"])
    return loaded


async def epoch_of(store: RedisStore) -> bytes:
    meta = (await load(store)).meta
    assert meta is not None
    return meta.epoch


async def commit(store: RedisStore, state: bytes, model: str = "m") -> bool:
    (result,) = await store.commit_many("default", model, [("alice", state)])
    return result == "stored"


async def test_an_unknown_user_is_nothing_at_all(store: RedisStore):
    assert await load(store) == Loaded(user_id="alice", meta=None, state=None, held=False, tail=[], tail_start=0)


async def test_without_a_state_the_tail_is_everything(store: RedisStore):
    await append(store, 0, 1, 2)
    loaded = await load(store)
    assert (loaded.state, loaded.tail, loaded.tail_start) == (None, [event(0), event(1), event(2)], 0)


async def test_load_returns_exactly_the_uncovered_tail(store: RedisStore):
    await append(store, 0, 1, 2, 3)
    state = blob(await epoch_of(store), applied=3)
    assert await commit(store, state)
    loaded = await load(store)
    assert (loaded.state, loaded.tail, loaded.tail_start) == (state, [event(3)], 3)
    await append(store, 4)
    assert (await load(store)).tail == [event(3), event(4)]
    # everything covered: LRANGE 0 -1 instead of nothing would fold it all twice
    assert await commit(store, state := blob(await epoch_of(store), applied=5))
    loaded = await load(store)
    assert (loaded.state, loaded.tail, loaded.tail_start) == (state, [], 5)


async def test_a_state_remembers_beyond_the_trimmed_sequence(open_store: OpenStore):
    store = await open_store(max_sequence=4)
    await append(store, 0, 1, 2)
    assert await commit(store, blob(await epoch_of(store), applied=3))
    await append(store, 3, 4, 5)  # 0 and 1 leave; the state covers them
    loaded = await load(store)
    assert loaded.state is not None
    assert (loaded.tail, loaded.tail_start) == ([event(3), event(4), event(5)], 3)


async def test_the_tail_of_a_lost_state_starts_where_the_trimmed_sequence_does(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(max_sequence=4)
    await append(store, *range(10))
    assert await commit(store, blob(await epoch_of(store), applied=10))
    raw.delete(keys.state_key("default", "m", "alice"))
    loaded = await load(store)
    assert (loaded.state, loaded.tail, loaded.tail_start) == (None, [event(n) for n in range(6, 10)], 6)


async def test_a_state_is_dropped_once_events_after_it_have_left_the_sequence(open_store: OpenStore):
    # To fold the rest onto it would skip events silently: not the fold of anything.
    store = await open_store(max_sequence=4)
    await append(store, 0, 1, 2, 3)
    assert await commit(store, state := blob(await epoch_of(store), applied=2))
    await append(store, 4, 5)
    assert (await load(store)).state == state  # 2 is the oldest one left: just enough
    await append(store, 6)
    loaded = await load(store)
    assert (loaded.state, loaded.tail, loaded.tail_start) == (None, [event(n) for n in range(3, 7)], 3)


async def test_commit_never_goes_back(store: RedisStore):
    await append(store, 0, 1, 2)
    epoch = await epoch_of(store)
    assert await commit(store, two := blob(epoch, applied=2, mark=1))
    assert not await commit(store, blob(epoch, applied=1))
    assert not await commit(store, blob(epoch, applied=2, mark=2))  # no further: the first one stays
    assert (await load(store)).state == two
    assert await commit(store, three := blob(epoch, applied=3))
    assert (await load(store)).state == three


async def test_commit_refuses_events_that_were_never_appended(store: RedisStore):
    await append(store, 0, 1)
    epoch = await epoch_of(store)
    assert not await commit(store, blob(epoch, applied=3))
    assert await commit(store, blob(epoch, applied=2))


async def test_commit_refuses_another_epoch_and_an_unknown_user(store: RedisStore):
    assert not await commit(store, blob(b"whatever", applied=0))
    await append(store, 0)
    assert not await commit(store, blob(b"whatever", applied=1))
    assert (await load(store)).state is None


async def test_counts_beyond_32_bits_are_compared_exactly(store: RedisStore, raw: redis.Redis):
    # Lua has doubles: a header read in two halves, or through %d, would go wrong here.
    await append(store, 0)
    epoch = await epoch_of(store)
    raw.hset(keys.user_keys("default", "alice").meta, "n", 2**53 - 1)
    assert await commit(store, blob(epoch, applied=2**53 - 2))
    assert not await commit(store, blob(epoch, applied=2**53 - 3))
    loaded = await load(store)
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.tail_start, loaded.tail) == (2**53 - 1, 2**53 - 2, [event(0)])
    assert loaded.state is not None


async def test_models_never_see_each_others_states(store: RedisStore):
    await append(store, 0)
    assert await commit(store, blob(await epoch_of(store), applied=1), model="m1")
    assert (await load(store, "m2")).state is None
    assert (await load(store, "m1")).state is not None


@pytest.mark.parametrize("damaged", [b"", b"LWST", b"X" * 60, b"LWST\x03\x00" + bytes(60)])
async def test_a_damaged_state_is_rebuilt_and_replaced(store: RedisStore, raw: redis.Redis, damaged: bytes):
    await append(store, 0)
    raw.set(keys.state_key("default", "m", "alice"), damaged)
    loaded = await load(store)
    assert (loaded.state, loaded.tail) == (None, [event(0)])
    assert await commit(store, good := blob(await epoch_of(store), applied=1))
    assert (await load(store)).state == good


async def test_a_state_that_was_cut_short_is_replaced_by_one_that_is_no_further(store: RedisStore, raw: redis.Redis):
    await append(store, 0, 1)
    key, good = keys.state_key("default", "m", "alice"), blob(await epoch_of(store), applied=2)
    for size in (len(good) - 1, 48, 47, 33, 31):
        raw.set(key, good[:size])
        assert await commit(store, good), size
        assert raw.get(key) == good
    assert not await commit(store, good)


async def test_a_state_ahead_of_all_events_is_replaced(store: RedisStore, raw: redis.Redis):
    await append(store, 0, 1)
    epoch = await epoch_of(store)
    raw.set(keys.state_key("default", "m", "alice"), blob(epoch, applied=10**6))
    assert (await load(store)).state is None
    assert await commit(store, good := blob(epoch, applied=1))
    assert (await load(store)).state == good


async def test_a_state_of_another_format_is_rebuilt_and_replaced(store: RedisStore, raw: redis.Redis):
    await append(store, 0)
    epoch = await epoch_of(store)
    ours = blob(epoch, applied=1)
    raw.set(keys.state_key("default", "m", "alice"), ours[:4] + b"\x07" + ours[5:])  # right but for its format number
    loaded = await load(store)
    assert (loaded.state, loaded.tail) == (None, [event(0)])
    assert await commit(store, ours)
    assert (await load(store)).state == ours


async def test_what_is_not_a_state_is_never_committed(store: RedisStore):
    with pytest.raises(StateFormatError):
        await commit(store, b"no header")


async def test_many_commits_at_once_are_each_decided_alone(store: RedisStore):
    users = [f"user {n}" for n in range(20)]
    await store.append("default", [Append(user, [event(0), event(1)], [None, None]) for user in users])
    epochs = [loaded.meta.epoch for loaded in await store.load("default", "m", users) if loaded.meta]
    blobs = [(user, blob(epoch, applied=1 + n % 3)) for n, (user, epoch) in enumerate(zip(users, epochs, strict=True))]
    assert await store.commit_many("default", "m", blobs) == ["stored" if n % 3 < 2 else "refused" for n in range(20)]


async def test_new_attributes_start_a_new_epoch_and_refold_everything(store: RedisStore):
    await append(store, 0, 1)
    old = await epoch_of(store)
    assert await commit(store, blob(old, applied=2))
    await store.set_attributes("default", "alice", {"country": "UK", "age": "25-34"})
    loaded = await load(store)
    assert loaded.meta is not None
    assert loaded.meta.epoch != old
    assert loaded.meta.attributes == {"country": "UK", "age": "25-34"}
    assert (loaded.state, loaded.tail) == (None, [event(0), event(1)])
    assert not await commit(store, blob(old, applied=2))  # a fold that began before
    assert await commit(store, blob(loaded.meta.epoch, applied=1))  # behind the old one, but of the new epoch


async def test_the_same_attributes_again_change_nothing(store: RedisStore):
    await append(store, 0)
    await store.set_attributes("default", "alice", {"a": "1", "b": "2"})
    epoch = await epoch_of(store)
    await store.set_attributes("default", "alice", {"b": "2", "a": "1"})
    assert await epoch_of(store) == epoch
    await store.set_attributes("default", "alice", {"a": "1"})
    assert await epoch_of(store) != epoch


async def test_a_user_may_have_attributes_before_any_event(store: RedisStore):
    await store.set_attributes("default", "alice", {"country": "UK"})
    loaded = await load(store)
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.meta.stored, loaded.meta.first_time_ms, loaded.tail) == (0, 0, 0, [])
    epoch = loaded.meta.epoch
    await append(store, 7)
    loaded = await load(store)
    assert loaded.meta is not None
    assert (loaded.meta.epoch, loaded.meta.attributes, loaded.meta.first_time_ms) == (epoch, {"country": "UK"}, 7)


async def test_a_history_is_sorted_in_by_time_under_a_new_epoch_and_logged(store: RedisStore, raw: redis.Redis):
    await append(store, 5, 7)
    old = await epoch_of(store)
    assert await commit(store, blob(old, applied=2))
    await store.set_attributes("default", "alice", {"country": "UK"})
    history = [event(n) for n in (9, 4, 6, 5)]
    assert await store.write_history("default", "alice", history, ["nine", None, "six", None], "import 1")
    loaded = await load(store)
    assert loaded.meta is not None
    assert loaded.meta.epoch != old
    assert (loaded.meta.appended, loaded.meta.first_time_ms, loaded.meta.last_time_ms) == (6, 4, 9)
    assert loaded.meta.attributes == {"country": "UK"}
    # of equal times what was there stays in front
    assert (loaded.state, loaded.tail, loaded.tail_start) == (None, [event(n) for n in (4, 5, 5, 6, 7, 9)], 0)
    (again,) = await store.append("default", [Append("alice", [event(9), event(6), event(10)], ["nine", "six", "ten"])])
    assert again.flags == "001"
    kinds = [fields[b"k"] for _, fields in raw.xrange(keys.user_keys("default", "alice").log)]
    assert kinds == [b"e", b"e", b"a", b"s", b"h", b"h", b"h", b"h", b"e"]


async def test_the_same_import_is_done_once(store: RedisStore):
    assert await store.write_history("default", "alice", [event(1)], [None], "import 1")
    assert not await store.write_history("default", "alice", [event(1)], [None], "import 1")
    assert await store.write_history("default", "alice", [event(2)], [None], "import 2")
    assert (await load(store)).tail == [event(1), event(2)]


async def test_a_history_longer_than_the_bound_keeps_its_end_and_is_counted_whole(open_store: OpenStore):
    store = await open_store(max_sequence=2_500)
    await store.write_history("default", "alice", [event(n) for n in range(4_000)], [None] * 4_000, "import 1")
    loaded = await load(store)
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.meta.stored, loaded.tail_start) == (4_000, 2_500, 1_500)
    assert loaded.tail == [event(n) for n in range(1_500, 4_000)]


async def test_a_state_that_the_caller_holds_is_not_sent_again(store: RedisStore):
    await append(store, *range(6))
    epoch = await epoch_of(store)
    assert await commit(store, blob(epoch, applied=2))
    (loaded,) = await store.load("default", "m", ["alice"], [Held(epoch, 4)])
    assert (loaded.held, loaded.state, loaded.tail_start, loaded.tail) == (True, None, 4, [event(4), event(5)])
    for of_no_use in (Held(b"whatever", 4), Held(epoch, 7)):  # another epoch; ahead of all events
        (loaded,) = await store.load("default", "m", ["alice"], [of_no_use])
        assert (loaded.held, loaded.state is None, loaded.tail_start) == (False, False, 2)


async def test_a_state_in_hand_is_of_no_use_once_events_after_it_have_left_the_sequence(open_store: OpenStore):
    store = await open_store(max_sequence=4)
    await append(store, *range(8))
    epoch = await epoch_of(store)
    for applied, held in ((3, False), (4, True)):  # the oldest one left is 4: just enough
        (loaded,) = await store.load("default", "m", ["alice"], [Held(epoch, applied)])
        assert (loaded.held, loaded.tail_start, loaded.tail) == (held, 4, [event(n) for n in range(4, 8)])


async def test_a_long_tail_comes_in_parts(store: RedisStore):
    await append(store, *range(10))
    (loaded,) = await store.load("default", "m", ["alice"], None, 4)
    assert (loaded.tail_start, loaded.tail) == (0, [event(n) for n in range(4)])
    (loaded,) = await store.load("default", "m", ["alice"], [Held(await epoch_of(store), 8)], 4)
    assert (loaded.tail_start, loaded.tail) == (8, [event(8), event(9)])


async def test_a_read_takes_from_the_sequence_what_is_new_and_nothing_else(store: RedisStore, raw: redis.Redis):
    # Whatever is taken costs time, also what a script then throws away: what counts is what Redis is asked for.
    key = keys.user_keys("default", "alice").seq
    await append(store, *range(500))
    assert await commit(store, blob(await epoch_of(store), applied=498))

    async def asked() -> list[str]:
        with raw.monitor() as monitor:
            await load(store)
            raw.echo("the end")
            commands = list(iter(lambda: monitor.next_command()["command"], "ECHO the end"))
        return [command for command in commands if not command.startswith("EVALSHA") and key in command.split()]

    assert await asked() == [f"LLEN {key}", f"LRANGE {key} -2 -1"]
    assert await commit(store, blob(await epoch_of(store), applied=500))
    assert await asked() == [f"LLEN {key}"]


async def test_a_state_that_is_loaded_has_half_of_its_time_left_and_those_of_other_models_go(
    open_store: OpenStore, raw: redis.Redis
):
    store = await open_store(state_ttl_s=1_000)
    await append(store, 0)
    state = blob(await epoch_of(store), applied=1)
    key, other = (keys.state_key("default", model, "alice") for model in ("m", "old"))
    assert await commit(store, state, "m")
    assert await commit(store, state, "old")
    for left_ms, renewed in ((700_000, False), (400_000, True)):
        for name in (key, other):
            raw.pexpire(name, left_ms)
        assert (await load(store, "m")).state == state
        assert (raw.pttl(key) > 900_000) == renewed
        assert raw.pttl(other) <= left_ms
    raw.pexpire(key, 400_000)
    (loaded,) = await store.load("default", "m", ["alice"], [Held(peek(state).epoch, 1)])  # not looked at: it costs nothing
    assert loaded.held
    assert raw.pttl(key) <= 400_000


async def test_a_state_that_is_as_good_as_what_is_committed_is_kept_as_long(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(state_ttl_s=1_000)
    await append(store, 0, 1)
    key, epoch = keys.state_key("default", "m", "alice"), await epoch_of(store)
    assert await commit(store, blob(epoch, applied=2))
    for applied in (2, 1):
        raw.pexpire(key, 10_000)
        assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=applied))]) == ["overtaken"]
        assert raw.pttl(key) > 900_000


async def test_a_redis_that_takes_no_writes_gives_a_state_whose_time_is_nearly_over(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(state_ttl_s=1_000)
    await append(store, 0)
    assert await commit(store, state := blob(await epoch_of(store), applied=1))
    raw.pexpire(keys.state_key("default", "m", "alice"), 10_000)
    raw.execute_command("REPLICAOF", "127.0.0.1", "1")  # nobody there
    try:
        assert (await load(store)).state == state
    finally:
        raw.execute_command("REPLICAOF", "NO", "ONE")


async def test_a_state_that_remembers_more_is_not_given_up_for_one_that_began_later(open_store: OpenStore):
    store = await open_store(max_sequence=4)
    await append(store, *range(6))
    epoch = await epoch_of(store)
    assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=4, base=0))]) == ["stored"]
    assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=6, base=2))]) == ["refused"]
    assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=6, base=0))]) == ["stored"]
    # As far, and from further back: the better one.
    assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=6, base=2))]) == ["refused"]
    await append(store, *range(6, 12))  # the stored state is behind the sequence now and can never be continued
    assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=12, base=8))]) == ["stored"]
    assert await store.commit_many("default", "m", [("alice", blob(epoch, applied=12, base=0))]) == ["stored"]


async def test_a_stored_state_ends_some_time_after_its_last_commit(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(state_ttl_s=100)
    await append(store, 0)
    assert await commit(store, blob(await epoch_of(store), applied=1))
    assert 99_000 < raw.pttl(keys.state_key("default", "m", "alice")) <= 100_000
