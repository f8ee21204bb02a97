"""The archive takes one log, the one that it was made from: what is of another is neither archived nor trimmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event

import msgspec
import pytest
import redis
from archived import places
from log_world import LogWorld, add, place

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.expiry import Expiry
from app.archive.histories import histories
from app.archive.keys import identity_key, log_key
from app.archive.log import RedisLog
from app.archive.restore import restore
from app.errors import ArchiveError
from app.state import keys
from app.state.events import StoredEvent
from app.state.keys import PARTITIONS

MakeArchiver = Callable[..., Archiver]
AHEAD_MS = 4_000_000_000_000  # what a clock says that is far ahead


@pytest.fixture
def other(redis_url: str) -> Iterator[redis.Redis]:
    """The empty Redis of another service."""
    with redis.Redis.from_url(redis_url, db=1) as client:
        yield client


def event(n: int) -> StoredEvent:
    return StoredEvent("view", 1_000 + n, f"item {n}")


def forget_identities(archive: Archive) -> None:
    """Make it an archive of before there were identities."""
    archive.publish([], lambda manifest: msgspec.structs.replace(manifest, identities={}, whole=()))


def restored(archive: Archive, client: redis.Redis) -> None:
    restore(archive, client, max_sequence=100, dedupe_window=100, tombstone_ttl_s=60)


def add_at(client: redis.Redis, script: list, entry_id: str) -> None:
    (record,) = script
    client.xadd(place(record)[1], record, id=entry_id)


def waiting(client: redis.Redis) -> int:
    return sum(client.xlen(log_key(partition)) for partition in range(PARTITIONS))


def test_of_two_services_with_one_folder_the_second_is_refused_and_keeps_its_log(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    first, second = LogWorld(1), LogWorld(2)
    written = add(raw, first.event("a", event(1)))
    make_archiver().once()
    for n in range(40):  # in partitions that the first has used, and in others
        add(other, second.event(f"user {n}", event(n)))
    add(other, second.event("a", event(1)))
    for _ in range(2):
        with pytest.raises(ArchiveError, match=r"more\) is not the one that the archive .* was made from.*another folder"):
            Archiver(archive, RedisLog(other)).once()
    assert waiting(other) == 41
    assert not other.exists(*(identity_key(partition) for partition in range(PARTITIONS)))
    written += add(raw, first.event("a", event(2))) + add(raw, first.event("b", event(1)))
    assert make_archiver().once() == 2
    assert places(archive) == sorted(written)
    assert Archiver(Archive(archive.folder.with_name("own")), RedisLog(other)).once() == 41


def test_a_partition_that_the_archive_does_not_know_comes_to_it_with_its_redis_or_not_at_all(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    known = f"{int(keys.partition('default', 'a'), 16):02x}"
    archive.publish([], lambda m: msgspec.structs.replace(m, identities={known: m.identities[known]}))
    add(other, LogWorld().event("b", event(1)))
    with pytest.raises(ArchiveError, match="no log of this Redis is in the archive"):
        Archiver(archive, RedisLog(other)).once()
    add(raw, LogWorld().event("b", event(1)))
    assert make_archiver().once() == 1


def test_of_two_services_that_make_the_first_commit_at_once_one_has_the_archive(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    class Late(Archive):
        """Commits after the other one."""

        def publish(self, added, change):
            if archive.latest().number == 0:
                make_archiver().once()
            return super().publish(added, change)

    written = add(raw, LogWorld(1).event("a", event(1)))
    add(other, LogWorld(2).event("b", event(1)))  # in another partition
    with pytest.raises(ArchiveError, match="another identity"):
        Archiver(Late(archive.folder), RedisLog(other)).once()
    assert places(archive) == written
    assert waiting(other) == 1


@pytest.mark.parametrize("of_before", [False, True])
def test_what_a_redis_that_was_emptied_got_before_the_archives_end_is_not_trimmed(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, of_before: bool
):
    world = LogWorld()
    add_at(raw, world.event("a", event(1)), f"{AHEAD_MS}-0")
    make_archiver().once()
    before = places(archive)
    if of_before:
        forget_identities(archive)
    raw.flushall()
    add(raw, world.event("a", event(2)))  # by a clock that is right now: acknowledged, and in no archive
    said = f"ends before {AHEAD_MS}-0.*longwave restore" if of_before else "identity is gone.*longwave restore"
    with pytest.raises(ArchiveError, match=said):
        make_archiver().once()
    add_at(raw, world.event("a", event(3)), f"{AHEAD_MS}-1")
    for _ in range(2):
        with pytest.raises(ArchiveError, match="lacks its record" if of_before else "identity is gone"):
            make_archiver().once()
    assert waiting(raw) == 2
    assert places(archive) == before


def test_a_partition_that_was_emptied_is_refused_and_the_others_go_on(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    names = [f"user {n}" for n in range(20)]
    for name in names:
        add(raw, world.event(name, event(1)))
    make_archiver().once()
    lost = int(keys.partition("default", names[0]), 16)
    raw.delete(log_key(lost), identity_key(lost))  # with its node of a Cluster
    written = [p for name in names for p in add(raw, world.event(name, event(2)))]
    with pytest.raises(ArchiveError, match=f"partition {lost:02x} is not the one"):
        make_archiver().once()
    assert {p for p in written if p[0] != lost} <= set(places(archive))
    assert waiting(raw) == sum(p[0] == lost for p in written) > 0


@pytest.mark.parametrize("of_before", [False, True])
def test_a_restored_redis_goes_on_with_the_archive_and_the_one_before_does_not(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis, of_before: bool
):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    make_archiver().once()
    if of_before:
        forget_identities(archive)
    number = archive.latest().number
    restored(archive, other)
    assert archive.latest().number == number  # a rehearsal takes the archive from nobody
    add(other, world.event("a", event(2)))
    add(other, world.event("b", event(1)))
    assert Archiver(archive, RedisLog(other)).once() == 2
    assert {history.user_id: len(history.events) for history in histories(archive)} == {"a": 2, "b": 1}
    for user in ("a", "b", "c"):  # the server that was given up is back
        add(raw, world.event(user, event(9)))
    with pytest.raises(ArchiveError, match=r"and 2 more\) is not the one"):
        make_archiver().once()
    assert waiting(raw) == 3
    add(other, world.event("c", event(1)))
    assert Archiver(archive, RedisLog(other)).once() == 1


def test_what_was_restored_from_an_archive_that_has_gone_on_since_is_refused(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    make_archiver().once()
    restored(archive, other)
    add(raw, world.event("a", event(2)))
    make_archiver().once()
    before = places(archive)
    add(other, world.event("a", event(3)))
    with pytest.raises(ArchiveError, match="the one before has gone on with it since"):
        Archiver(archive, RedisLog(other)).once()
    assert waiting(other) == 1
    assert places(archive) == before


def test_a_restored_redis_takes_nothing_of_an_archive_that_has_gone_on_in_one_partition(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    first, second = LogWorld(1), LogWorld(2)
    names = [f"user {n}" for n in range(20)]
    written = [place for name in names for place in add(raw, first.event(name, event(1)))]
    make_archiver().once()
    restored(archive, other)
    written += add(raw, first.event(names[0], event(2)))
    make_archiver().once()
    for name in names:
        add(other, second.event(name, event(3)))
        written += add(raw, first.event(name, event(4)))
    for _ in range(2):
        with pytest.raises(ArchiveError, match=r"the one before has gone on with it since.*another folder"):
            Archiver(archive, RedisLog(other)).once()
    assert make_archiver().once() == len(names)  # whose it is goes on
    assert places(archive) == sorted(written)
    assert waiting(other) == len(names)
    own = Archive(archive.folder.with_name("own"))  # as the error says
    assert Archiver(own, RedisLog(other)).once() == len(names)
    other.flushall()
    restored(archive, other)
    add(other, first.event(names[0], event(5)))
    assert Archiver(archive, RedisLog(other)).once() == 1


def test_a_restored_redis_takes_nothing_if_the_archive_goes_on_just_before_it_commits(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    class Late(Archive):
        """Commits after the other one, which has another partition."""

        def publish(self, added, change):
            if not waits:
                waits.extend(add(raw, world.event("b", event(2))))
                make_archiver().once()
            return super().publish(added, change)

    waits: list[tuple[int, str]] = []
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    make_archiver().once()
    restored(archive, other)
    add(other, world.event("a", event(3)))
    with pytest.raises(ArchiveError, match="the one before has gone on with it since"):
        Archiver(Late(archive.folder), RedisLog(other)).once()
    assert waiting(other) == 1
    add(raw, world.event("a", event(4)))
    assert make_archiver().once() == 1


def test_a_restored_redis_that_is_restored_again_goes_on(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    for n in range(3):
        add(raw, world.event("a", event(n)))
        assert make_archiver().once() == 1
        raw.flushall()
        restored(archive, raw)
        raw.flushall()  # before anything was archived
        restored(archive, raw)
    assert [history.events for history in histories(archive)] == [[event(n) for n in range(3)]]


def test_an_archive_of_before_identities_takes_its_log_on(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, other: redis.Redis
):
    world = LogWorld()
    written = [p for n in range(20) for p in add(raw, world.event(f"user {n}", event(n)))]
    make_archiver().once()
    raw.delete(*(identity_key(partition) for partition in range(PARTITIONS)))
    forget_identities(archive)
    written += add(raw, world.event("user 3", event(1)))
    assert make_archiver().once() == 1
    assert places(archive) == sorted(written)
    identities = archive.latest().identities
    assert len(identities) == len(set(identities.values())) == PARTITIONS
    assert {partition: mark.identity for partition, mark in RedisLog(raw).marks().items()} == {
        int(pp, 16): identity for pp, identity in identities.items()
    }
    forget_identities(archive)  # as an older version does that commits
    written += add(raw, world.event("user 4", event(1)))
    assert make_archiver().once() == 1
    assert archive.latest().identities == identities


def test_a_new_folder_takes_the_log_as_it_is_emptied_or_not(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    for empty in (False, True):
        add(raw, LogWorld().event("a", event(1)))
        make_archiver().once()
        archive.folder.rename(archive.folder.with_name(f"moved away {empty}"))
        if empty:
            raw.flushall()
        add(raw, LogWorld().event("a", event(1)))
        assert make_archiver().once() == 1
        assert len(places(archive)) == 1


def test_a_log_that_is_exchanged_just_before_it_is_trimmed_is_not_trimmed(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    class Exchanged(RedisLog):
        """When it is told to trim, this is another Redis, whose clock is behind."""

        def trim(self, partition: int, identity: str, first: str, last: str) -> bool:
            raw.flushall()
            add_at(raw, LogWorld(9).event("a", event(9)), first)
            raw.set(identity_key(partition), "0123456789abcdef")
            return super().trim(partition, identity, first, last)

    add(raw, LogWorld().event("a", event(1)))
    assert Archiver(archive, Exchanged(raw)).once() == 1
    assert waiting(raw) == 1


@pytest.mark.parametrize(
    ("identity", "first", "last", "trimmed"),
    [
        ("0123456789abcdef", "5-0", "7-0", True),
        ("0123456789abcdee", "5-0", "7-0", False),
        ("0123456789abcdef", "6-0", "7-0", False),  # 5-0 was not read
        ("0123456789abcdef", "5-0", "8-0", False),  # 8-0 is lost, and so may others be that were read
    ],
)
def test_a_log_is_trimmed_only_as_it_was_read(raw: redis.Redis, identity: str, first: str, last: str, trimmed: bool):
    raw.set(identity_key(7), "0123456789abcdef fedcba9876543210 1-0")
    for ms in (5, 6, 7, 9):
        raw.xadd(log_key(7), {"k": "e"}, id=f"{ms}-0")
    assert RedisLog(raw).trim(7, identity, first, last) is trimmed
    assert [entry_id for entry_id, _ in raw.xrange(log_key(7))] == ([b"9-0"] if trimmed else [b"5-0", b"6-0", b"7-0", b"9-0"])


def test_a_log_that_is_exchanged_while_it_is_read_is_not_archived(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    class Exchanged(RedisLog):
        def read(self, partition, identity, after, count, upto="+"):
            raw.flushall()
            add(raw, LogWorld(9).event("a", event(9)))
            return super().read(partition, identity, after, count, upto)

    add(raw, LogWorld().event("a", event(1)))
    with pytest.raises(ArchiveError, match="was exchanged for another while it was read"):
        Archiver(archive, Exchanged(raw)).once()
    assert archive.latest().number == 0
    assert waiting(raw) == 1


def test_a_log_that_lost_its_end_goes_on_if_all_of_it_is_archived(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    make_archiver().once()
    add_at(raw, world.event("a", event(1)), "1700000000000-0")
    key = log_key(int(keys.partition("default", "a"), 16))
    saved = raw.dump(key)
    add_at(raw, world.event("a", event(2)), "1700000000500-0")
    make_archiver().once()
    before = places(archive)
    raw.delete(key)
    raw.restore(key, 0, saved)  # the last second was not on disk
    assert make_archiver().once() == 0
    assert waiting(raw) == 0
    written = add(raw, world.event("a", event(3)))
    assert make_archiver().once() == 1
    assert places(archive) == sorted(before + written)


@pytest.mark.parametrize("place_of_new", ["1700000000300-0", "1700000000500-0"])  # one that is free, and one that is archived
def test_what_came_by_a_clock_that_was_behind_after_a_log_lost_its_end_is_not_trimmed(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, place_of_new: str
):
    world = LogWorld()
    add_at(raw, world.event("a", event(1)), "1700000000000-0")
    key = log_key(int(keys.partition("default", "a"), 16))
    saved = raw.dump(key)
    lost = world.event("a", event(2))
    add_at(raw, lost, "1700000000500-0")
    make_archiver().once()
    before = places(archive)
    raw.delete(key)
    raw.restore(key, 0, saved)
    instead = StoredEvent("view", 1_002, "another item")  # of the number that the lost one had
    (record,) = world.event("a", instead)
    raw.xadd(key, record | {"n": lost[0]["n"]}, id=place_of_new)
    add(raw, world.event("a", event(3)))
    for _ in range(2):
        with pytest.raises(ArchiveError, match=f"lacks its record {place_of_new}.*another folder"):
            make_archiver().once()
    assert raw.xlen(key) == 3
    assert places(archive) == before


def test_what_was_erased_from_the_archive_since_is_trimmed(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    class NeverTrims(RedisLog):
        def trim(self, partition: int, identity: str, first: str, last: str) -> bool:
            return False

    world = LogWorld()
    for script in (world.event("a", event(1)), world.event("b", event(1)), *world.merge("b", "a"), world.erase("a")):
        add(raw, script)
    Archiver(archive, NeverTrims(raw)).once(erase_now=True)
    assert waiting(raw) > 0
    make_archiver().once()
    assert waiting(raw) == 0


def test_nobody_goes_whose_log_is_not_the_archives(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    make_archiver().once()
    user, partition = keys.user_keys("default", "a"), int(keys.partition("default", "a"), 16)
    identity, pp = raw.get(identity_key(partition)), f"{partition:02x}"
    raw.hset(user.meta, mapping={"n": 1, "e": "epoch", "d": time.time_ns() // 86_400_000_000_000 - 40})
    expiry = Expiry(raw, archive, 30)
    for strange in (None, b"0123456789abcdef"):
        raw.delete(identity_key(partition)) if strange is None else raw.set(identity_key(partition), strange)
        assert expiry.all(Event()) == 0
        assert raw.exists(user.meta)
    raw.set(identity_key(partition), identity)
    forget_identities(archive)
    assert expiry.all(Event()) == 0
    archive.publish([], lambda manifest: msgspec.structs.replace(manifest, identities={pp: identity[:16].decode()}))
    assert expiry.all(Event()) == 0
    archive.publish([], lambda manifest: msgspec.structs.replace(manifest, whole=(pp,)))
    assert expiry.all(Event()) == 1
