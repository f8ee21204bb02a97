"""A merge is told in two partitions of the log, and either may be archived without the other when Redis is lost."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Event
from typing import Any

import pytest
import redis

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.expiry import Expiry
from app.archive.halfway import finisher
from app.archive.histories import histories
from app.archive.log import RedisLog
from app.archive.restore import restore
from app.state import keys
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.store import Append
from model.data.importers.archive import read

OpenStore = Callable[..., Awaitable[RedisStore]]
MakeArchiver = Callable[..., Archiver]
NOW_MS = 1_600_000_000_000
SOURCE, TARGET = "anon", "person"


def event(n: int) -> StoredEvent:
    return StoredEvent("view", NOW_MS + n, f"item {n}")


async def tell(store: RedisStore, user: str, *numbers: int) -> Any:
    (appended,) = await store.append("default", [Append(user, [event(n) for n in numbers], [f"id {n}" for n in numbers])])
    return appended


def archive_partition_of(user: str, archive: Archive, raw: redis.Redis) -> None:
    """As an archiver does that is killed before it comes to the other partitions."""
    log, own = RedisLog(raw), int(keys.partition("default", user), 16)
    others = [number for number in range(keys.PARTITIONS) if number != own and log.length(number)]
    for number in others:
        assert log.take(number, "another", 60_000)
    Archiver(archive, log)._drain()
    for number in others:
        log.release(number, "another")


async def merge_until_killed(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target has the events, and the source is not told yet."""
    run = store.run

    async def killed(lua: Any, calls: Any, **more: Any) -> Any:
        if lua is script("moved"):
            raise KeyError("killed")
        return await run(lua, calls, **more)

    with monkeypatch.context() as patched, suppress(KeyError):
        patched.setattr(store, "run", killed)
        await store.merge("default", TARGET, SOURCE)


async def lose_redis(open_store: OpenStore, archive: Archive, raw: redis.Redis, url: str) -> RedisStore:
    raw.flushall()
    done = restore(archive, raw, max_sequence=1_000, dedupe_window=100, tombstone_ttl_s=10**6)
    finisher(lambda: RedisStore(url, log_max_length=0))(done.halfway)
    return await open_store(log_max_length=0)


def learned_from(archive: Archive) -> list[tuple[str, str]]:
    return sorted(read(archive.folder, now_ms=NOW_MS + 10**6).events.select("user_id", "item_id").iter_rows())


async def sequence(store: RedisStore, user: str) -> list[str | None]:
    return [e.item_id for e in await store.recent("default", await store.resolve("default", user), 100)]


def meta_of(raw: redis.Redis, user: str) -> dict[bytes, bytes]:
    return raw.hgetall(keys.user_keys("default", user).meta)


@pytest.mark.parametrize("between", ["nothing", "attributes"])
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("archived_before", [False, True])
@pytest.mark.parametrize("first", [SOURCE, TARGET])
async def test_of_a_merge_that_is_archived_by_half_nothing_is_lost_and_nothing_twice(
    open_store: OpenStore,
    raw: redis.Redis,
    redis_url: str,
    archive: Archive,
    make_archiver: MakeArchiver,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    archived_before: bool,
    killed: bool,
    between: str,
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10, 30)
    await tell(store, TARGET, 20)
    if archived_before:
        make_archiver().once()
    await tell(store, SOURCE, 50)
    await tell(store, TARGET, 40)
    if killed:
        await merge_until_killed(store, monkeypatch)
    else:
        assert await store.merge("default", TARGET, SOURCE) == TARGET
    archive_partition_of(first, archive, raw)

    of_source = [10, 30, 50]
    of_target = [20, 40] if first == TARGET else [20] if archived_before else []
    unknown = killed and first == SOURCE  # that they were to be one: as if it had never been asked for
    owner = SOURCE if unknown else TARGET
    there = [*((owner, f"item {n}") for n in of_source), *((TARGET, f"item {n}") for n in of_target)]
    assert learned_from(archive) == sorted(there)

    store = await lose_redis(open_store, archive, raw, redis_url)
    if not unknown:
        assert await sequence(store, TARGET) == [f"item {n}" for n in sorted(of_source + of_target)]
        assert meta_of(raw, SOURCE).get(b"ms") == b"d"
    assert await sequence(store, SOURCE) == [f"item {n}" for n in sorted(of_source + (of_target if not unknown else []))]
    if between == "attributes":
        await store.set_attributes("default", SOURCE, {"country": "DE"})
    told = await tell(store, SOURCE, 60, 70)
    assert (told.user_id, told.flags) == (owner, "11")
    assert await store.merge("default", TARGET, SOURCE) == TARGET
    expected = [f"item {n}" for n in [*sorted(of_source + of_target), 60, 70]]
    assert await sequence(store, TARGET) == expected

    make_archiver().once()
    assert [(h.user_id, [e.item_id for e in h.events]) for h in histories(archive)] == [(TARGET, expected)]
    assert learned_from(archive) == sorted((TARGET, str(item)) for item in expected)
    store = await lose_redis(open_store, archive, raw, redis_url)
    assert await sequence(store, SOURCE) == await sequence(store, TARGET) == expected


async def test_a_redis_that_is_lost_again_before_the_merge_is_archived_again(
    open_store: OpenStore, raw: redis.Redis, redis_url: str, archive: Archive, make_archiver: MakeArchiver
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10, 30)
    await tell(store, TARGET, 20)
    make_archiver().once()
    await store.merge("default", TARGET, SOURCE)
    for _ in range(3):
        archive_partition_of(SOURCE, archive, raw)
        store = await lose_redis(open_store, archive, raw, redis_url)
        assert await sequence(store, TARGET) == ["item 10", "item 20", "item 30"]
        assert learned_from(archive) == [(TARGET, f"item {n}") for n in (10, 20, 30)]
    make_archiver().once()
    assert learned_from(archive) == [(TARGET, f"item {n}") for n in (10, 20, 30)]
    store = await lose_redis(open_store, archive, raw, redis_url)
    assert await sequence(store, TARGET) == ["item 10", "item 20", "item 30"]


async def test_what_came_to_a_source_after_redis_had_lost_that_it_was_merged_is_its_own_until_it_is_merged_again(
    open_store: OpenStore,
    raw: redis.Redis,
    redis_url: str,
    archive: Archive,
    make_archiver: MakeArchiver,
    monkeypatch: pytest.MonkeyPatch,
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10, 30)
    merged = meta_of(raw, SOURCE)[b"e"]
    await merge_until_killed(store, monkeypatch)
    make_archiver().once()
    raw.hdel(keys.user_keys("default", SOURCE).meta, "to", "ms", "ik")
    assert (await tell(store, SOURCE, 60)).user_id == SOURCE
    make_archiver().once()
    assert learned_from(archive) == [(SOURCE, "item 60"), (TARGET, "item 10"), (TARGET, "item 30")]
    store = await lose_redis(open_store, archive, raw, redis_url)
    assert await sequence(store, SOURCE) == ["item 60"]
    assert meta_of(raw, SOURCE)[b"e"] != merged  # else nobody could tell what of it the target has
    assert await sequence(store, TARGET) == ["item 10", "item 30"]
    await tell(store, SOURCE, 70)
    await store.merge("default", TARGET, SOURCE)
    assert await sequence(store, TARGET) == [f"item {n}" for n in (10, 30, 60, 70)]
    make_archiver().once()
    assert learned_from(archive) == [(TARGET, f"item {n}") for n in (10, 30, 60, 70)]
    store = await lose_redis(open_store, archive, raw, redis_url)
    assert await sequence(store, SOURCE) == [f"item {n}" for n in (10, 30, 60, 70)]


@pytest.mark.parametrize("told_since", [(60,), (60, 5), ()])
@pytest.mark.parametrize("archived_between", [False, True])
@pytest.mark.parametrize("archived_before", ["nothing", "the source", "the merge"])
@pytest.mark.parametrize("first", [SOURCE, TARGET])
async def test_a_merge_that_redis_has_lost_and_that_is_made_again_is_read_as_one(
    open_store: OpenStore,
    raw: redis.Redis,
    redis_url: str,
    archive: Archive,
    make_archiver: MakeArchiver,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    archived_before: str,
    archived_between: bool,
    told_since: tuple[int, ...],
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10, 30)
    await tell(store, TARGET, 20)
    source = keys.user_keys("default", SOURCE)
    kept = {name: raw.dump(name) for name in (source.meta, source.seq, source.ids)}
    if archived_before == "the source":
        archive_partition_of(SOURCE, archive, raw)
    if archived_before == "the merge":
        await store.merge("default", TARGET, SOURCE)
        make_archiver().once()
    else:
        await merge_until_killed(store, monkeypatch)
    for name, value in kept.items():
        raw.restore(name, 0, value, replace=True)
    if told_since:
        assert (await tell(store, SOURCE, *told_since)).user_id == SOURCE
    if archived_between:
        make_archiver().once()
        if told_since:
            assert learned_from(archive) == sorted(
                [*((TARGET, f"item {n}") for n in (10, 20, 30)), *((SOURCE, f"item {n}") for n in told_since)]
            )
            assert {h.user_id: [e.item_id for e in h.events] for h in histories(archive)} == {
                SOURCE: [f"item {n}" for n in told_since],
                TARGET: [f"item {n}" for n in (10, 20, 30)],
            }
    assert await store.merge("default", TARGET, SOURCE) == TARGET
    expected = [f"item {n}" for n in sorted([10, 20, 30, *told_since])]
    assert await sequence(store, TARGET) == expected

    archive_partition_of(first, archive, raw)
    if first == TARGET or archived_between:
        assert learned_from(archive) == sorted((TARGET, item) for item in expected)
    if first == TARGET:
        assert [(h.user_id, [e.item_id for e in h.events]) for h in histories(archive)] == [(TARGET, expected)]
    make_archiver().once()
    assert learned_from(archive) == sorted((TARGET, item) for item in expected)
    assert [(h.user_id, [e.item_id for e in h.events]) for h in histories(archive)] == [(TARGET, expected)]
    store = await lose_redis(open_store, archive, raw, redis_url)
    assert await sequence(store, SOURCE) == await sequence(store, TARGET) == expected


async def test_who_was_merged_into_somebody_who_was_erased_stays_away_without_their_own_records_of_it(
    open_store: OpenStore, raw: redis.Redis, redis_url: str, archive: Archive, make_archiver: MakeArchiver
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10)
    make_archiver().once()
    await store.merge("default", TARGET, SOURCE)
    await store.erase("default", TARGET, NOW_MS + 1_000)
    archive_partition_of(TARGET, archive, raw)
    store = await lose_redis(open_store, archive, raw, redis_url)
    assert await sequence(store, SOURCE) == await sequence(store, TARGET) == []
    assert list(histories(archive)) == []


async def test_a_merge_that_nobody_asks_for_again_is_finished_by_the_walk_through_all_users(
    open_store: OpenStore,
    raw: redis.Redis,
    redis_url: str,
    archive: Archive,
    make_archiver: MakeArchiver,
    monkeypatch: pytest.MonkeyPatch,
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10, 30)
    await merge_until_killed(store, monkeypatch)
    assert meta_of(raw, SOURCE).get(b"ms") == b"p"
    make_archiver().once()
    assert learned_from(archive) == [(TARGET, "item 10"), (TARGET, "item 30")]
    walk = Expiry(raw, archive, 0, finisher(lambda: RedisStore(redis_url, log_max_length=0)))
    assert make_archiver(expiry=walk).once() == 1  # what the source's log says of it
    assert meta_of(raw, SOURCE).get(b"ms") == b"d"
    assert walk.all(Event()) == 0
    assert await sequence(store, TARGET) == ["item 10", "item 30"]
    assert learned_from(archive) == [(TARGET, "item 10"), (TARGET, "item 30")]


async def test_a_merge_that_is_finished_when_its_target_has_left_brings_nothing_again(
    open_store: OpenStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, monkeypatch: pytest.MonkeyPatch
):
    store = await open_store(log_max_length=0)
    await tell(store, SOURCE, 10, 30)
    await merge_until_killed(store, monkeypatch)
    make_archiver().once()
    raw.hset(keys.user_keys("default", TARGET).meta, "d", int(time.time() // 86_400) - 40)
    make_archiver(expiry=Expiry(raw, archive, 30)).once()
    assert [(h.user_id, h.events) for h in histories(archive)] == []
    assert (await tell(store, SOURCE, 60)).user_id == TARGET
    assert await sequence(store, TARGET) == ["item 60"]
    make_archiver().once()
    assert learned_from(archive) == [(TARGET, f"item {n}") for n in (10, 30, 60)]
