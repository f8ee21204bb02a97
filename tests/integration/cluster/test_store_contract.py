"""What a store does is the same on one server and on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import redis
from on_cluster import close
from redis_cluster import RedisCluster

from app.state import keys
from app.state.codec import EPOCH_BYTES, Header, StateCodec, peek
from app.state.events import StoredEvent, decode_event
from app.state.impressions import Impression, ImpressionStore, Seen
from app.state.redis import RedisStore
from app.state.store import Append, Appended, Held

CODEC = StateCodec([])
USERS = [f"user {n}" for n in range(60)]


At = Callable[[str], redis.Redis]


@pytest.fixture(params=["server", "cluster"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("redis_url") if kind == "server" else request.getfixturevalue("cluster").url


@pytest.fixture
def at(kind: str, url: str, request: pytest.FixtureRequest) -> At:
    """A client of the server that has a key, to look behind the store."""
    if kind == "server":
        raw = request.getfixturevalue("raw")
        return lambda key: raw
    cluster: RedisCluster = request.getfixturevalue("cluster")
    return cluster.client_of


@pytest.fixture
async def both(kind: str, url: str) -> AsyncIterator[RedisStore]:
    """A store that keeps five events a user and knows three ids."""
    store = RedisStore(url, cluster=kind == "cluster", max_sequence=5, dedupe_window=3, log_max_length=0)
    yield store
    await close(store)


def event(n: int) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=1_000 + n, item_id=f"item {n}")


def batch(user: str, numbers: Sequence[int], ids: Sequence[str | None] | None = None) -> Append:
    return Append(user, [event(n) for n in numbers], ids or [None] * len(numbers))


def blob(epoch: bytes, applied: int, base: int = 0) -> bytes:
    return CODEC.pack(Header(epoch, base, applied, 0), {})


async def append(store: RedisStore, user: str, numbers: Sequence[int], ids: Sequence[str | None] | None = None) -> Appended:
    (appended,) = await store.append("default", [batch(user, numbers, ids)])
    return appended


async def test_many_users_in_one_call_are_each_answered_in_their_place(both: RedisStore):
    appended = await both.append("default", [batch(user, range(n % 4 + 1)) for n, user in enumerate(USERS)])
    assert [(one.user_id, one.total, one.flags) for one in appended] == [
        (user, n % 4 + 1, "1" * (n % 4 + 1)) for n, user in enumerate(USERS)
    ]
    loaded = await both.load("default", "m", USERS)
    assert [len(one.tail) for one in loaded] == [n % 4 + 1 for n in range(60)]
    assert all(list(one.tail) == [event(n) for n in range(len(one.tail))] for one in loaded)


async def test_several_batches_of_one_user_in_one_call_are_appended_in_order(both: RedisStore):
    others = [batch(user, [7]) for user in USERS]
    calls = [batch("alice", [0]), *others, batch("alice", [1, 2]), *others, batch("alice", [3])]
    appended = await both.append("default", calls)
    assert [one.total for one in appended if one.user_id == "alice"] == [1, 3, 4]
    assert await both.recent("default", "alice", 9) == [event(n) for n in range(4)]


async def test_a_retry_is_a_duplicate_while_its_id_is_among_the_last(both: RedisStore):
    assert (await append(both, "alice", [0, 1, 2], ["a", "b", "c"])).flags == "111"
    assert (await append(both, "alice", [0], ["a"])).flags == "0"
    assert (await append(both, "alice", [3, 0], ["d", "a"])).flags == "11"
    assert (await append(both, "alice", [1, 2, 3, 0], ["c", "d", "a", "d"])).flags == "0000"


async def test_the_sequence_is_bounded_and_counted_on(both: RedisStore):
    await append(both, "alice", range(4))
    assert (await append(both, "alice", [4, 5])).total == 6
    (loaded,) = await both.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.meta.stored, loaded.tail_start) == (6, 5, 1)
    assert list(loaded.tail) == [event(n) for n in range(1, 6)]


async def test_each_fresh_event_is_in_its_partitions_log_with_its_number_epoch_and_id(both: RedisStore, at: At):
    appended = await both.append("default", [batch(user, [0, 1], [f"{user} a", None]) for user in USERS])
    await both.append("default", [batch(user, [0, 2], [f"{user} a", "b"]) for user in USERS])
    for user, one in zip(USERS, appended, strict=True):
        log = keys.user_keys("default", user).log
        entries = [fields for _, fields in at(log).xrange(log) if fields[b"u"] == user.encode()]
        assert [(f[b"k"], f[b"t"], f[b"i"], f[b"n"], f[b"p"]) for f in entries] == [
            (b"e", b"default", f"{user} a".encode(), b"1", one.epoch),
            (b"e", b"default", b"", b"2", one.epoch),
            (b"e", b"default", b"b", b"3", one.epoch),
        ]
        assert [decode_event(f[b"e"]) for f in entries] == [event(0), event(1), event(2)]


async def test_racing_retries_are_stored_once(both: RedisStore):
    flags = await asyncio.gather(*(append(both, "alice", [0], ["a"]) for _ in range(20)))
    assert sorted(one.flags for one in flags) == ["0"] * 19 + ["1"]


async def test_a_state_is_continued_and_one_in_hand_is_not_sent_again(both: RedisStore):
    for user in USERS:
        epoch = (await append(both, user, range(4))).epoch
        assert await both.commit_many("default", "m", [(user, blob(epoch, 3))]) == ["stored"]
    for loaded in await both.load("default", "m", USERS):
        assert loaded.state is not None
        assert (peek(loaded.state).applied, loaded.held, list(loaded.tail)) == (3, False, [event(3)])
    for loaded in await both.load("default", "other", USERS):
        assert (loaded.state, len(loaded.tail)) == (None, 4)
    held = [Held(loaded.meta.epoch, 2) if loaded.meta else None for loaded in await both.load("default", "m", USERS)]
    for loaded in await both.load("default", "m", USERS, held):
        assert (loaded.state, loaded.held, list(loaded.tail)) == (None, True, [event(2), event(3)])


async def test_commits_are_each_decided_alone_and_never_go_back(both: RedisStore):
    epochs = [one.epoch for one in await both.append("default", [batch(user, range(4)) for user in USERS])]
    first = await both.commit_many(
        "default", "m", [(user, blob(epoch, 1 + n % 4)) for n, (user, epoch) in enumerate(zip(USERS, epochs, strict=True))]
    )
    assert first == ["stored"] * 60
    second = await both.commit_many("default", "m", [(user, blob(epoch, 3)) for user, epoch in zip(USERS, epochs, strict=True)])
    assert second == ["stored", "stored", "overtaken", "overtaken"] * 15
    wrong = [(user, blob(bytes(EPOCH_BYTES), 4)) for user in USERS]
    assert await both.commit_many("default", "m", wrong) == ["refused"] * 60
    ahead = [(user, blob(epoch, 5)) for user, epoch in zip(USERS, epochs, strict=True)]
    assert await both.commit_many("default", "m", ahead) == ["refused"] * 60


async def test_new_attributes_start_a_new_epoch(both: RedisStore):
    before = (await append(both, "alice", range(2))).epoch
    await both.commit_many("default", "m", [("alice", blob(before, 2))])
    await both.set_attributes("default", "alice", {"country": "Norway"})
    (loaded,) = await both.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert loaded.meta.epoch != before
    assert (loaded.state, len(loaded.tail), loaded.meta.attributes) == (None, 2, {"country": "Norway"})
    assert (await append(both, "alice", [2])).attributes == {"country": "Norway"}


async def test_a_history_is_sorted_in_once_under_a_new_epoch(both: RedisStore):
    before = (await append(both, "alice", [3, 1], ["c", "a"])).epoch
    assert await both.write_history("default", "alice", [event(0), event(2)], ["z", None], "import 1")
    assert not await both.write_history("default", "alice", [event(0), event(2)], ["z", None], "import 1")
    (loaded,) = await both.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert loaded.meta.epoch != before
    assert list(loaded.tail) == [event(n) for n in range(4)]
    assert (await append(both, "alice", [0, 3], ["z", "c"])).flags == "00"


async def test_a_merged_user_is_followed(both: RedisStore, at: At):
    await append(both, "alice", [0])
    phone = keys.user_keys("default", "phone")
    at(phone.meta).hset(phone.meta, "to", "alice")
    appended = await append(both, "phone", [1])
    assert (appended.user_id, appended.total) == ("alice", 2)
    (loaded,) = await both.load("default", "m", ["phone"])
    assert (loaded.user_id, len(loaded.tail)) == ("alice", 2)
    assert at(phone.seq).exists(phone.seq) == 0


async def test_an_erased_user_takes_nothing_of_before(both: RedisStore, at: At):
    gone = keys.user_keys("default", "alice").gone
    at(gone).set(gone, 1_001)
    appended = await append(both, "alice", [0, 1, 2])
    assert (appended.flags, appended.total) == ("gg1", 1)
    assert await both.recent("default", "alice", 9) == [event(2)]


async def test_popularity_is_counted_and_read_whole(both: RedisStore):
    begun = {"item 0": (1_000, (2.0,))}
    await both.count_popularity("default", [1.0], [(f"item {n}", 1.0, 1_000) for n in range(300)], begun)
    counts = await both.popularity("default", [1.0])
    assert counts == {"item 0": (1_000, (3.0,))} | {f"item {n}": (1_000, (1.0,)) for n in range(1, 300)}
    assert await both.popularity_events("default", [1.0]) == 300


async def test_impressions_of_users_and_of_nobody_are_stored_once_on_whichever_nodes(both: RedisStore, at: At):
    impressions = ImpressionStore(both, "default", 0)
    seen = [Seen(user, Impression(f"list {user}", 1_000, ("a",)), [7]) for user in USERS]
    seen += [Seen("", Impression(f"nobody's {user}", 1_000, ("a",)), [7]) for user in USERS]
    assert await impressions.add(seen) == ["1"] * len(seen)
    assert await impressions.add(seen) == ["0"] * len(seen)
    assert [[one.key for one in await impressions.shown(user)] for user in USERS] == [[7]] * len(USERS)
    await append(both, USERS[0], [1])
    await both.merge("default", USERS[0], USERS[1])
    assert await impressions.add([seen[1]]) == ["0"]
    await both.erase("default", USERS[1], 2_000)
    for user in USERS[:2]:
        assert await impressions.shown(user) == []
        key = keys.user_keys("default", user).shown
        assert not at(key).exists(key)
