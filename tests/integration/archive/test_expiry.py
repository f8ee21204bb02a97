"""Idle users leave Redis: not before the archive has everything, and nothing is lost, whatever happens at the same moment."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis
from archived import is_written_anywhere

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.expiry import Expiry
from app.archive.histories import histories
from app.archive.log import RedisLog
from app.archive.restore import restore
from app.errors import ArchiveError
from app.state import keys
from app.state.codec import Header, StateCodec
from app.state.events import StoredEvent, decode_event
from app.state.redis import RedisStore
from app.state.store import Append
from model.data.importers.archive import read

OpenStore = Callable[..., Awaitable[RedisStore]]
MakeArchiver = Callable[..., Archiver]
DAYS = 30
NOW_MS = 1_700_000_000_000
CODEC = StateCodec([])


@pytest.fixture
async def store(open_store: OpenStore) -> RedisStore:
    return await open_store(log_max_length=0)


@pytest.fixture
def expiry(raw: redis.Redis, archive: Archive) -> Expiry:
    return Expiry(raw, archive, DAYS)


def event(n: int) -> StoredEvent:
    return StoredEvent("view", NOW_MS + n, f"item {n}")


async def tell(store: RedisStore, user: str, *numbers: int, event_id: str | None = None) -> Any:
    (appended,) = await store.append("default", [Append(user, [event(n) for n in numbers], [event_id] * len(numbers))])
    return appended


def beside(user: str) -> str:
    """Another user of the same partition."""
    pp = keys.partition("default", user)
    return next(name for n in range(10_000) if keys.partition("default", name := f"other {n}") == pp)


def heard_days_ago(raw: redis.Redis, user: str, days: int) -> None:
    raw.hset(keys.user_keys("default", user).meta, "d", int(time.time() // 86_400) - days)


def left_of(raw: redis.Redis, user: str) -> set[str]:
    """What Redis has of a user, by kind."""
    return {name.decode().split(":")[3] for name in raw.scan_iter(f"lw:*:{keys.encode_id(user)}")}


def items(archive: Archive, user: str) -> list[str | None] | None:
    return next(([e.item_id for e in h.events] for h in histories(archive) if h.user_id == user), None)


async def test_an_idle_user_goes_with_everything_and_the_archive_has_it(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    for user in ("idle", "here"):
        appended = await tell(store, user, 1, 2, event_id=f"id of {user}")
        await store.register_model("m", "{}")
        await store.register_model("n", "{}")
        for model in ("m", "n"):
            await store.commit_many("default", model, [(user, CODEC.pack(Header(appended.epoch, 0, 1, 0), {}))])
    await store.set_attributes("default", "idle", {"country": "DE"})
    make_archiver().once()
    assert left_of(raw, "idle") == {"seq", "meta", "ids", "state"}
    heard_days_ago(raw, "idle", DAYS + 1)
    heard_days_ago(raw, "here", DAYS)  # at its last moment, perhaps: not so many whole days ago
    assert expiry.all(Event()) == 1
    assert expiry._expire("default", "here", archive.latest(), []) == 0  # nor does the script let it go, if it is asked
    assert left_of(raw, "idle") == set()
    assert left_of(raw, "here") == {"seq", "meta", "ids", "state"}
    (loaded,) = await store.load("default", "m", ["idle"])
    assert loaded.meta is None
    make_archiver().once()
    assert items(archive, "idle") is None  # gone, as Redis has it
    assert sorted(read(archive.folder).events.get_column("user_id")) == ["here", "idle"]  # but learned from; one id counts once


async def test_nobody_goes_before_the_archive_has_every_record(
    store: RedisStore, raw: redis.Redis, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "u", 1)
    heard_days_ago(raw, "u", DAYS + 5)
    assert expiry.all(Event()) == 0  # nothing is archived
    make_archiver().once()
    await tell(store, "u", 2)
    heard_days_ago(raw, "u", DAYS + 5)  # as a worker of an older version would leave it, which notes no day
    assert expiry.all(Event()) == 0  # one event waits
    assert [e.item_id for e in await store.recent("default", "u", 9)] == ["item 1", "item 2"]
    make_archiver().once()
    assert expiry.all(Event()) == 1


async def test_others_records_that_wait_keep_nobody_up_to_a_bound(
    store: RedisStore, raw: redis.Redis, make_archiver: MakeArchiver, expiry: Expiry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.archive.expiry._MOST_WAITING", 5)
    await tell(store, "u", 1)
    make_archiver().once()
    heard_days_ago(raw, "u", DAYS + 1)
    other = beside("u")
    await tell(store, other, *range(6))
    assert expiry.all(Event()) == 0  # too many to look through: later
    make_archiver().once()
    await tell(store, other, *range(5))
    assert expiry.all(Event()) == 1


async def test_an_event_that_comes_just_before_keeps_its_user(
    store: RedisStore,
    raw: redis.Redis,
    archive: Archive,
    make_archiver: MakeArchiver,
    expiry: Expiry,
    monkeypatch: pytest.MonkeyPatch,
):
    await tell(store, "u", 1)
    make_archiver().once()
    heard_days_ago(raw, "u", DAYS + 1)
    loop = asyncio.get_running_loop()
    idle = Expiry._look

    def late(self: Expiry, some: tuple[bytes, ...]) -> Any:
        found = idle(self, some)
        assert found == ([("default", "u")], [])  # it has been chosen to go, and now
        asyncio.run_coroutine_threadsafe(tell(store, "u", 2), loop).result()
        return found

    monkeypatch.setattr(Expiry, "_look", late)
    assert await asyncio.to_thread(expiry.all, Event()) == 0
    assert [e.item_id for e in await store.recent("default", "u", 9)] == ["item 1", "item 2"]
    make_archiver().once()
    assert items(archive, "u") == ["item 1", "item 2"]


async def test_appends_that_race_with_the_expiry_are_all_kept(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    users = [f"u{n}" for n in range(300)]
    for user in users:
        await tell(store, user, 0)
    make_archiver().once()
    for user in users:
        heard_days_ago(raw, user, DAYS + 1)
    expiring = asyncio.create_task(asyncio.to_thread(expiry.all, Event()))
    appended = {}
    for user in users:
        appended[user] = (await tell(store, user, 1)).total
    gone = await expiring
    assert gone == sum(total == 1 for total in appended.values())
    for user in users:
        there = [e.item_id for e in await store.recent("default", user, 9)]
        assert there == ["item 0", "item 1"][2 - appended[user] :]
    make_archiver().once()
    assert {h.user_id: [e.item_id for e in h.events] for h in histories(archive)} == {
        user: ["item 0", "item 1"][2 - total :] for user, total in appended.items()
    }
    assert read(archive.folder).events.height == 2 * len(users)  # each event once, before and after


async def test_who_comes_back_begins_anew_and_nothing_is_doubled(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    before = await tell(store, "u", 1, 2)
    make_archiver().once()
    heard_days_ago(raw, "u", DAYS + 1)
    assert expiry.all(Event()) == 1
    after = await tell(store, "u", 3)
    assert (after.total, after.flags) == (1, "1")
    assert after.epoch != before.epoch
    assert expiry.all(Event()) == 0
    make_archiver().once()
    (history,) = histories(archive)
    assert (history.epoch, history.n, [e.item_id for e in history.events]) == (after.epoch, 1, ["item 3"])
    assert sorted(read(archive.folder).events.get_column("item_id")) == ["item 1", "item 2", "item 3"]
    # restored, it is what it was: the later sequence alone
    raw.flushall()
    restore(archive, raw, max_sequence=100, dedupe_window=100, tombstone_ttl_s=10**9)
    (loaded,) = await store.load("default", "m", ["u"])
    assert loaded.meta is not None
    assert (loaded.meta.appended, loaded.meta.epoch, loaded.tail) == (1, after.epoch, [event(3)])
    # what was restored is not idle from the first moment on
    assert expiry.all(Event()) == 0
    assert int(raw.hget(keys.user_keys("default", "u").meta, "d") or 0) == int(time.time() // 86_400)


async def test_a_user_who_has_gone_is_not_restored(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "u", 1)
    make_archiver().once()
    heard_days_ago(raw, "u", DAYS + 1)
    assert expiry.all(Event()) == 1
    make_archiver().once()
    raw.flushall()
    assert restore(archive, raw, max_sequence=100, dedupe_window=100, tombstone_ttl_s=10**9).users == 0
    assert left_of(raw, "u") == set()


async def test_an_erasure_reaches_the_archive_of_a_user_whom_redis_does_not_know_any_more(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "somebody", 1)
    make_archiver().once()
    heard_days_ago(raw, "somebody", DAYS + 1)
    assert expiry.all(Event()) == 1
    make_archiver().once()
    assert is_written_anywhere(archive, "somebody")
    erased = await store.erase("default", "somebody", NOW_MS + 10)
    assert (erased.events, list(erased.identities)) == (0, ["somebody"])
    assert (await tell(store, "somebody", 2)).flags == "g"  # a late retry is refused
    make_archiver().once()
    with pytest.raises(Exception, match="no event"):
        read(archive.folder)
    make_archiver().once(erase_now=True)
    assert not is_written_anywhere(archive, "somebody")


@pytest.mark.parametrize("name", ["cookie", "person"])
async def test_by_any_of_its_names_an_idle_user_is_known_and_erased(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry, name: str
):
    await tell(store, "cookie", 1)
    await tell(store, "person", 2)
    await store.merge("default", "person", "cookie")
    make_archiver().once()
    heard_days_ago(raw, "person", DAYS + 1)
    assert expiry.all(Event()) == 1
    assert left_of(raw, "person") == left_of(raw, "cookie") == {"meta"}  # who is whose
    kept = raw.hkeys(keys.user_keys("default", "person").meta)
    assert sorted(name[:2] for name in kept) == [b"d:", b"m:"]
    assert expiry.all(Event()) == 0
    make_archiver().once()
    assert sorted(read(archive.folder).events.get_column("item_id")) == ["item 1", "item 2"]
    await tell(store, "cookie", 3)
    assert [e.item_id for e in await store.recent("default", "person", 9)] == ["item 3"]
    erased = await store.erase("default", name, NOW_MS + 10)
    assert set(erased.identities) == {"cookie", "person"}
    make_archiver().once(erase_now=True)
    assert not is_written_anywhere(archive, "cookie")
    assert not is_written_anywhere(archive, "person")


@pytest.mark.parametrize("erase_now", [False, True])
async def test_a_merge_takes_along_what_redis_has_and_leaves_the_archive_what_it_had_before(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry, erase_now: bool
):
    await tell(store, "cookie", 1)
    make_archiver().once()
    heard_days_ago(raw, "cookie", DAYS + 1)
    assert expiry.all(Event()) == 1
    await tell(store, "cookie", 2)
    await store.merge("default", "person", "cookie")
    make_archiver().once(erase_now)
    assert items(archive, "person") == ["item 2"]
    events = read(archive.folder).events
    assert sorted(zip(events.get_column("user_id"), events.get_column("item_id"), strict=True)) == [
        ("person", "item 1"),
        ("person", "item 2"),
    ]
    await store.erase("default", "person", NOW_MS + 10)
    make_archiver().once(erase_now=True)
    assert not is_written_anywhere(archive, "cookie")


async def test_nobody_goes_of_whom_the_log_may_have_lost_something(
    open_store: OpenStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    bounded = await open_store(log_max_length=100_000)  # of a service without an archive, which cuts its log
    await tell(bounded, "u", 1)
    await bounded.set_attributes("default", "v", {"country": "DE"})
    await bounded.write_history("default", "w", [event(1)], [None], "import")
    archiving = await open_store(log_max_length=0)
    for user in ("u", "v", "w", "x"):
        await tell(archiving, user, 2)
    make_archiver().once()
    for user in ("u", "v", "w", "x"):
        heard_days_ago(raw, user, DAYS + 1)
    assert expiry.all(Event()) == 1
    assert left_of(raw, "x") == set()
    assert [e.item_id for e in await archiving.recent("default", "u", 9)] == ["item 1", "item 2"]


async def test_nobody_goes_whose_events_another_archive_has(
    store: RedisStore, raw: redis.Redis, tmp_path: Path, make_archiver: MakeArchiver, archive: Archive
):
    await tell(store, "u", 1)
    make_archiver().once()
    await tell(store, "u", 2)
    other = Archive(tmp_path / "other")
    Archiver(other, RedisLog(raw)).once()  # by mistake: its log is cut now, and the first archive lacks the second event
    heard_days_ago(raw, "u", DAYS + 1)
    assert Expiry(raw, archive, DAYS).all(Event()) == 0
    assert await store.recent("default", "u", 9) == [event(1), event(2)]
    await tell(store, beside("u"), 1)
    assert Expiry(raw, archive, DAYS).all(Event()) == 0  # now that something waits
    make_archiver().once()
    assert Expiry(raw, archive, DAYS).all(Event()) == 0  # and that nothing waits again, and the archive ends where the log does
    assert Expiry(raw, other, DAYS).all(Event()) == 0
    assert await store.recent("default", "u", 9) == [event(1), event(2)]


async def test_nobody_goes_whose_events_an_earlier_folder_had(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "u", 1, 2)
    make_archiver().once()
    shutil.rmtree(archive.folder)  # or another one is taken
    heard_days_ago(raw, "u", DAYS + 1)
    await tell(store, beside("u"), 1)
    make_archiver(expiry=expiry).once()
    await tell(store, beside("u"), 2)
    make_archiver(expiry=expiry).once()
    assert items(archive, "u") is None
    assert await store.recent("default", "u", 9) == [event(1), event(2)]


async def test_what_was_restored_from_an_archive_that_lacks_something_may_go(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "u", 1)
    make_archiver().once()
    shutil.rmtree(archive.folder)
    await tell(store, "u", 2)
    make_archiver().once()
    raw.flushall()
    restore(archive, raw, max_sequence=100, dedupe_window=100, tombstone_ttl_s=10**9)
    heard_days_ago(raw, "u", DAYS + 1)
    assert expiry.all(Event()) == 0  # the archive may be another Redis' yet
    await tell(store, "elsewhere", 1)
    make_archiver().once()
    assert expiry.all(Event()) == 1  # all that was restored is in the archive


async def test_a_kill_before_the_first_commit_keeps_nobody(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    await tell(store, "u", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Archive, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            make_archiver().once()
    assert raw.exists(keys.log_identity_key(keys.partition("default", "u")))
    heard_days_ago(raw, "u", DAYS + 1)
    make_archiver(expiry=expiry).once()
    assert left_of(raw, "u") == set()


async def test_nobody_goes_whose_events_another_archiver_took_between_two_pages(
    store: RedisStore, raw: redis.Redis, archive: Archive, tmp_path: Path, expiry: Expiry, monkeypatch: pytest.MonkeyPatch
):
    class Paged(RedisLog):
        """After the first page another archiver takes three more records, into another folder."""

        def read(self, partition: int, identity: str, after: str, count: int, upto: str = "+") -> Any:
            if after != "0-0" and not taken:
                monkeypatch.setattr("app.archive.reading._PAGE", 1)
                taken.append(Archiver(Archive(tmp_path / "other"), RedisLog(raw), lease_ms=1).once())
            return super().read(partition, identity, after, count, upto)

        def take(self, partition: int | None, token: str, ttl_ms: int) -> bool:
            return True

    taken: list[int] = []
    monkeypatch.setattr("app.archive.reading._PAGE", 1)
    await tell(store, beside("u"), 1)
    await tell(store, "u", 1, 2)
    Archiver(archive, Paged(raw)).once()
    assert taken == [3]
    await tell(store, beside("u"), 2)
    Archiver(archive, Paged(raw)).once()
    heard_days_ago(raw, "u", DAYS + 1)
    assert expiry.all(Event()) == 0
    assert await store.recent("default", "u", 9) == [event(1), event(2)]


async def test_an_expiry_that_redis_lost_in_a_crash_is_undone_in_the_archive_too(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    user = keys.user_keys("default", "u")
    await tell(store, "u", 1, 2)
    make_archiver().once()
    saved = {name: raw.dump(name) for name in (user.seq, user.meta)}
    heard_days_ago(raw, "u", DAYS + 1)
    assert expiry.all(Event()) == 1
    make_archiver().once()
    for name, value in saved.items():  # as of before: the end of the append-only file was not on disk
        raw.restore(name, 0, value)
    await tell(store, "u", 3)
    make_archiver().once()
    (history,) = histories(archive)
    assert (history.n, [e.item_id for e in history.events]) == (3, ["item 1", "item 2", "item 3"])
    assert [decode_event(e) for e in raw.lrange(user.seq, 0, -1)] == list(history.events)


async def test_while_a_log_is_refused_nobody_goes(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "u", 1)
    make_archiver().once()
    heard_days_ago(raw, "u", DAYS + 1)
    strange = raw.xadd(keys.user_keys("default", "other").log, {"k": "?", "t": "default", "u": "other"})
    with pytest.raises(ArchiveError, match="unknown kind"):
        make_archiver(expiry=expiry).once()
    assert left_of(raw, "u") == {"seq", "meta"}
    raw.xdel(keys.user_keys("default", "other").log, strange)
    make_archiver(expiry=expiry).once()
    assert left_of(raw, "u") == set()


@pytest.mark.parametrize("damage", ["another type", "no day"])
async def test_one_damaged_user_keeps_nobody_else(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry, damage: str
):
    users = [f"user {n}" for n in range(20)]
    for user in [*users, "damaged"]:
        await tell(store, user, 1)
        heard_days_ago(raw, user, DAYS + 1)
    meta = keys.user_keys("default", "damaged").meta
    if damage == "another type":
        raw.delete(meta)
        raw.set(meta, "a hand that slipped")
    else:
        raw.hset(meta, "d", "a hand that slipped")
    make_archiver(expiry=expiry).once()
    assert [user for user in users if left_of(raw, user)] == []
    assert left_of(raw, "damaged") == {"seq", "meta"}


async def test_an_archiver_that_follows_lets_idle_users_go(
    store: RedisStore, raw: redis.Redis, archive: Archive, make_archiver: MakeArchiver, expiry: Expiry
):
    await tell(store, "idle", 1)
    make_archiver().once()
    heard_days_ago(raw, "idle", DAYS + 1)
    await tell(store, "here", 1)
    stop = Event()
    following = asyncio.create_task(asyncio.to_thread(make_archiver(interval_s=0.1, expiry=expiry).follow, stop))
    try:
        async with asyncio.timeout(10):
            while left_of(raw, "idle") or items(archive, "here") is None:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.05)
    finally:
        stop.set()
        await following
    assert left_of(raw, "here") == {"seq", "meta"}


def test_users_are_looked_at_slowly_and_not_all_the_time(raw: redis.Redis, archive: Archive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.archive.expiry.USERS_A_STEP", 100)
    monkeypatch.setattr("app.archive.expiry._TOGETHER", 50)
    users = [f"user {n}" for n in range(250)]
    for user in users:
        raw.hset(keys.user_keys("default", user).meta, "e", "epoch")
    expiry, looked = Expiry(raw, archive, DAYS), []

    def done() -> int:
        return sum(raw.hexists(keys.user_keys("default", user).meta, "d") for user in users)

    for _ in range(4):
        expiry.step(Event())
        looked.append(done())
    assert looked == [100, 200, 250, 250]
    raw.hset(keys.user_keys("default", "later").meta, "e", "epoch")
    expiry.step(Event())
    assert not raw.hexists(keys.user_keys("default", "later").meta, "d")  # within the hour
