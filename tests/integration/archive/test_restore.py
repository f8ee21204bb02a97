from __future__ import annotations

import random
import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec
import pytest
import redis
from log_world import LogWorld, add

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.histories import histories
from app.archive.keys import gone_key, user_hash
from app.archive.restore import RESTORING, Restored, restore
from app.errors import ArchiveError
from app.state import keys
from app.state.events import StoredEvent, decode_event
from app.state.ring import EMPTY_RING, remember_ids

MakeArchiver = Callable[..., Archiver]


def event(n: int) -> StoredEvent:
    return StoredEvent("view", 1_000 + n, f"item {n}", quantity=float(n))


def restored(archive: Archive, raw: redis.Redis, **settings: Any) -> Restored:
    defaults: dict[str, Any] = {"max_sequence": 1_000_000, "dedupe_window": 1_000_000, "tombstone_ttl_s": 10**9}
    return restore(archive, raw, **(defaults | settings))


def aliases_of(world: LogWorld, holder: str) -> list[tuple[str, str]]:
    """Who leads to a user, directly or through others."""
    direct = [(user_id, user.to) for (_, user_id), user in world.users.items() if user.to == holder]
    return direct + [further for name, _ in direct for further in aliases_of(world, name)]


@pytest.mark.parametrize("rows_at_once", [1_000_000, 40])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("erase_now", [False, True])
def test_what_is_restored_is_what_was_archived(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, seed: int, erase_now: bool, rows_at_once: int
):
    world, pick = LogWorld(seed), random.Random(seed)
    for _ in range(400):
        for script in world.step():
            add(raw, script)
        if pick.random() < 0.03:
            make_archiver(batch_rows=pick.randrange(1, 100)).once(erase_now and pick.random() < 0.5)
    make_archiver().once(erase_now)
    raw.flushall()
    counted: list[tuple[str, StoredEvent]] = []
    done = restored(
        archive, raw, max_sequence=15, dedupe_window=10, on_event=lambda *e: counted.append(e), rows_at_once=rows_at_once
    )

    expected: set[str] = {keys.LAYOUT_KEY}
    for (tenant, user_id), user in world.users.items():
        key = keys.user_keys(tenant, user_id)
        if user.to is not None:
            end = user.to
            while (further := world.users[tenant, end].to) is not None:
                end = further
            assert raw.hgetall(key.meta) == {b"to": end.encode(), b"ms": b"d"}
            expected.add(key.meta)
        elif user.epoch:
            stored = [decode_event(packed) for packed in raw.lrange(key.seq, 0, -1)]
            assert stored == [e for e, _ in user.events[-15:]]
            times = [e.time_ms for e, _ in user.events]
            meta = {b"e": user.epoch} | ({b"n": b"%d" % user.n} if user.n else {})
            if times:
                meta |= {b"f": b"%d" % min(times), b"l": b"%d" % max(times)}
            if user.attributes:
                meta[b"a"] = msgspec.msgpack.encode(user.attributes)
            sources = [name for name, _ in aliases_of(world, user_id)]
            done_before = [mark for name in sources for mark in world.users[tenant, name].marks]
            marks = {mark.encode() for mark in [*user.marks, *done_before, *(f"m:{name}" for name in sources)]}
            assert raw.hgetall(key.meta) == meta | dict.fromkeys(marks, b"1")
            latest = list(dict.fromkeys(reversed(user.ids)))[:10][::-1]
            ring = remember_ids(EMPTY_RING, [blake2b(i.encode(), digest_size=8).digest() for i in latest], 10)
            assert raw.get(key.ids) == (ring if latest else None)
            expected |= {key.meta} | ({key.seq} if times else set()) | ({key.ids} if latest else set())
        elif sources := aliases_of(world, user_id):  # idle, and gone: only who is whose stays
            assert raw.hgetall(key.meta) == {f"m:{name}".encode(): b"1" for name, _ in sources}
            expected.add(key.meta)
    for (tenant, user_id), at_ms in world.gone.items():
        key = gone_key(int(keys.partition(tenant, user_id), 16), tenant, user_hash(user_id))
        assert raw.get(key) == b"%d" % at_ms
        assert 0 < raw.pttl(key) <= 10**12
        expected.add(key)
    assert {name.decode() for name in raw.scan_iter() if not name.endswith((b":log", b":log-identity"))} == expected
    assert done.users == len(world.live())
    assert done.tombstones == len(world.gone)
    assert sorted(map(repr, counted)) == sorted(repr((t, e)) for (t, _), user in world.live().items() for e, _ in user.events)
    assert {h[:2]: h for h in histories(archive)} == {
        key: (*key, user.epoch, user.n, [e for e, _ in user.events]) for key, user in world.live().items()
    }


def test_archiving_goes_on_where_it_ended_even_if_the_clock_is_behind(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    (record,) = world.event("a", event(1))
    key = keys.user_keys("default", "a")
    ahead_ms = 4_000_000_000_000  # the lost server's clock was far ahead
    raw.xadd(key.log, record, id=f"{ahead_ms}-5")
    make_archiver().once()
    raw.flushall()
    restored(archive, raw)
    assert raw.xlen(key.log) == 0
    ((_, entry_id),) = add(raw, world.event("a", event(2)))
    assert entry_id == f"{ahead_ms}-6"
    assert make_archiver().once() == 1
    assert [h.events for h in histories(archive)] == [[event(1), event(2)]]


def test_a_redis_that_is_not_empty_is_refused_and_left_alone(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    raw.flushall()
    raw.set("somebody's", "own")
    with pytest.raises(ArchiveError, match="is not empty, it has 1 keys"):
        restored(archive, raw)
    assert raw.keys() == [b"somebody's"]
    raw.flushall()
    raw.set(keys.LAYOUT_KEY, "laid out by a service that found it empty")
    assert restored(archive, raw).users == 1


def test_a_restore_that_was_broken_off_is_known_and_said(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    raw.flushall()

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        restored(archive, raw, on_user=kill)
    assert raw.get(keys.LAYOUT_KEY) == RESTORING.encode()
    with pytest.raises(ArchiveError, match="broken off: empty it"):
        restored(archive, raw)


def test_a_changed_file_is_noticed_before_anything_is_written(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    raw.flushall()
    path = archive.folder / archive.latest().files[0].path
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="is not the file that was committed"):
        restored(archive, raw)
    assert raw.dbsize() == 0


def test_the_mark_of_an_import_is_restored(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    add(raw, LogWorld().rewrite("a", [(event(1), None)], mark="import:1"))
    make_archiver().once()
    raw.flushall()
    restored(archive, raw)
    assert raw.hget(keys.user_keys("default", "a").meta, "import:1") == b"1"


@pytest.mark.parametrize("erase_now", [False, True])
def test_the_name_of_an_erased_source_is_not_restored(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, erase_now: bool
):
    world = LogWorld()
    for user in ("source", "target"):
        add(raw, world.event(user, event(1)))
    for script in (*world.merge("source", "target"), world.erase("source")):
        add(raw, script)
    make_archiver().once(erase_now)
    raw.flushall()
    restored(archive, raw)
    assert b"m:source" not in raw.hkeys(keys.user_keys("default", "target").meta)


def test_a_tombstone_lives_as_long_as_it_would_have(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    (record,) = world.erase("a", at_ms=1_700_000_000_500)
    raw.xadd(keys.user_keys("default", "a").log, record, id="1700000000000-0")
    make_archiver().once()
    raw.flushall()
    assert restored(archive, raw, tombstone_ttl_s=60, now_ms=1_700_000_060_000).tombstones == 0
    raw.flushall()
    assert restored(archive, raw, tombstone_ttl_s=60, now_ms=1_700_000_020_000).tombstones == 1
    key = gone_key(int(keys.partition("default", "a"), 16), "default", user_hash("a"))
    assert 39_000 < raw.pttl(key) <= 40_000


@pytest.mark.parametrize("carried_out", [0, 1, 2])  # of two erasures, how many the archive's files have seen
def test_the_tombstone_of_an_earlier_erasure_that_reaches_further_is_restored(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, carried_out: int
):
    world = LogWorld()
    for number, at_ms in enumerate(
        [1_700_000_009_000, 1_700_000_000_500]
    ):  # of an event that was dated in the future; by a retry
        add(raw, world.erase("a", at_ms=at_ms))
        make_archiver().once(erase_now=number < carried_out)
    assert (len(archive.latest().removed), len(archive.latest().removals)) == (carried_out, 2 - carried_out)
    raw.flushall()
    assert restored(archive, raw).tombstones == 1
    key = gone_key(int(keys.partition("default", "a"), 16), "default", user_hash("a"))
    assert raw.get(key) == b"1700000009000"


def test_a_reader_is_not_disturbed_by_commits_meanwhile(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    for n in range(300):
        add(raw, world.event(f"user {n}", event(n)))
    make_archiver().once()
    found = histories(archive, rows_at_once=10)
    first = next(found)
    done = threading.Event()
    for n in range(300):
        add(raw, world.event(f"user {n}", event(n)))
    make_archiver().once()
    done.set()
    assert [len(h.events) for h in (first, *found)] == [1] * 300
