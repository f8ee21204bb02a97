from __future__ import annotations

import errno
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from archived import archive_until_killed, files_on_disk, places
from log_world import LogWorld, add, place

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.columns import to_records
from app.archive.files import sweep, write_file
from app.archive.histories import histories
from app.archive.keys import lease_key
from app.archive.log import RedisLog
from app.archive.manifest import Manifest
from app.errors import ArchiveError
from app.state.events import StoredEvent

MakeArchiver = Callable[..., Archiver]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["app.archive.archiver", "redis"])  # a child then starts in milliseconds


def event(n: int) -> StoredEvent:
    return StoredEvent("view", 1_000 + n, f"item {n}")


def fill(raw: redis.Redis, steps: int, seed: int = 0) -> list[tuple[int, str]]:
    world = LogWorld(seed)
    return sorted(p for _ in range(steps) for script in world.step() for p in add(raw, script))


def log_is_empty(raw: redis.Redis) -> bool:
    return not any(raw.xlen(f"lw:{{{p:02x}}}:log") for p in range(256))


def test_every_record_is_archived_once_and_then_trimmed(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    written = fill(raw, 500)
    assert make_archiver().once() == len(written)
    assert places(archive) == written
    assert log_is_empty(raw)
    assert make_archiver().once() == 0
    assert places(archive) == written


def test_an_archiver_that_may_not_delete_says_so_and_goes_on(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix != ".draft":
            refused.append(path)
            raise PermissionError(errno.EPERM, "no", str(path))
        os.unlink(path)

    refused: list[Path] = []
    written = fill(raw, 20)
    make_archiver().once()
    monkeypatch.setattr(Path, "unlink", refuse)
    written += fill(raw, 20, seed=1)
    with pytest.raises(ArchiveError, match=r"_manifests/0+1\.json: cannot be tidied up: no"):
        make_archiver().once()
    stop = threading.Event()
    following = threading.Thread(target=make_archiver(interval_s=0.05).follow, args=(stop,))
    following.start()
    before = len(refused)
    while len(refused) == before:
        time.sleep(0.01)
    time.sleep(0.1)
    assert following.is_alive()
    stop.set()
    following.join()
    assert places(archive) == sorted(written)


def test_what_cannot_be_committed_stays_in_the_log(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    class Full(Archive):
        """Takes the files, and has no room for the manifest."""

        def publish(self, added, change):
            raise ArchiveError("No space left on device")

    written = fill(raw, 100)
    with pytest.raises(ArchiveError, match="No space"):
        Archiver(Full(archive.folder), RedisLog(raw)).once()
    assert make_archiver().once() == len(written)
    assert places(archive) == written


def test_partitions_share_files_by_tenant_and_day_of_arrival(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    for n in range(50):
        for tenant in ("default", "../a b"):
            (record,) = world.event(f"user {n}", event(n), tenant=tenant)
            raw.xadd(place(record)[1], record, id=f"{1_700_000_000_000 + n // 25 * 86_400_000}-{2 * n + (tenant == 'default')}")
    make_archiver().once()
    files = archive.latest().files
    assert {file.path.rpartition("/")[0] for file in files} == {
        f"tenant={tenant}/day={day}" for tenant in ("default", "..%2Fa%20b") for day in ("2023-11-14", "2023-11-15")
    }
    assert len(files) == 4
    assert sum(file.rows for file in files) == 100


def test_a_tenant_whose_name_is_longer_than_a_folders_may_be_is_archived(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    tenant = "ü" * 256
    add(raw, LogWorld().event("a", event(1), tenant=tenant))
    make_archiver().once()
    ((found, *_),) = histories(archive)
    assert found == tenant


def test_an_empty_log_makes_no_commit(archive: Archive, make_archiver: MakeArchiver):
    assert make_archiver().once() == 0
    assert archive.latest().number == 0
    with pytest.raises(ArchiveError, match="no archive is there"):
        list(histories(archive))


def test_small_commits_never_end_within_a_rewritten_sequence(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    for n in range(5):
        add(raw, world.event("a", event(n)))
        add(raw, world.rewrite("a", [(event(i), None) for i in range(30)]))
    archiver = make_archiver(batch_rows=7)
    done = 0
    while (found := archiver._commit_some()).rows:
        done += found.rows
        (history,) = histories(archive)  # would refuse half a sequence
    assert done == 5 * 32
    assert history.events == [e for e, _ in world.users["default", "a"].events]


def test_half_a_rewritten_sequence_is_not_archived(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    before = add(raw, world.event("a", event(1)))
    script = world.rewrite("a", [(event(2), None), (event(3), None)])
    add(raw, script[:2])
    with pytest.raises(ArchiveError, match="1 events are missing at its end"):
        make_archiver().once()
    assert places(archive) == before
    add(raw, world.event("a", event(4)))
    with pytest.raises(ArchiveError, match="1 events are missing at"):
        make_archiver().once()
    assert places(archive) == before
    assert raw.xlen(place(script[0])[1]) == 3


def test_an_unknown_kind_stops_its_partition_before_it_and_no_other(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    known = add(raw, world.event("a", event(1)))
    strange = world.event("a", event(2))[0] | {"k": "q"}
    (unknown,) = add(raw, [strange])
    later = add(raw, world.event("a", event(3)))
    others = [p for n in range(20) for p in add(raw, world.event(f"user {n}", event(n)))]
    others = [p for p in others if p[0] != unknown[0]]
    for _ in range(2):
        with pytest.raises(ArchiveError, match=f"record {unknown[1]} .* unknown kind 'q'"):
            make_archiver(batch_rows=3).once()
        assert set(places(archive)) >= {*known, *others}
        assert not {unknown, *later} & set(places(archive))
    assert raw.xrange(place(strange)[1])[0][0].decode() == unknown[1]


@pytest.mark.parametrize("follows", [False, True])
def test_what_is_no_log_stops_its_partition_and_no_other(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, capsys: pytest.CaptureFixture[str], follows: bool
):
    world = LogWorld()
    pp, _ = add(raw, world.event("a", event(0)))[0]
    others = [p for n in range(20) for p in add(raw, world.event(f"user {n}", event(n))) if p[0] != pp]
    raw.set(f"lw:{{{pp:02x}}}:log", "a hand that slipped")
    if follows:
        stop = threading.Event()
        following = threading.Thread(target=make_archiver(interval_s=0.05).follow, args=(stop,))
        following.start()
        deadline = time.monotonic() + 10
        while len(places(archive)) < len(others) and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        following.join()
        assert "cannot archive" in capsys.readouterr().out
    else:
        with pytest.raises(ArchiveError, match=re.escape(f"lw:{{{pp:02x}}}:log")):
            make_archiver(batch_rows=3).once()
    assert places(archive) == sorted(others)


def test_a_log_that_was_archived_but_not_trimmed_is_trimmed(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    class NeverTrims(RedisLog):
        def trim(self, partition: int, identity: str, first: str, last: str) -> bool:
            return False

    written = fill(raw, 100)
    Archiver(archive, NeverTrims(raw)).once()
    assert not log_is_empty(raw)
    assert make_archiver().once() == 0
    assert log_is_empty(raw)
    assert places(archive) == written


def test_a_partition_that_another_archiver_holds_is_waited_for(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    written = fill(raw, 50)
    for p in range(256):
        raw.set(lease_key(p), "a dead archiver", px=300)
    make_archiver().once()
    assert places(archive) == written
    add(raw, LogWorld().event("a", event(1)))
    for p in range(256):
        raw.set(lease_key(p), "one that lives on")
    with pytest.raises(ArchiveError, match="1 partitions are being archived"):
        make_archiver(lease_ms=20).once()


@pytest.mark.parametrize("overtaken_by", [1, 3])
def test_an_archiver_that_slept_through_its_lease_doubles_nothing(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, overtaken_by: int
):
    written = fill(raw, 100)

    class Sleeper(RedisLog):
        """Between reading and writing, another archiver commits the same records and prunes every number on the way."""

        slept = False

        def read(self, partition, identity, after, count, upto="+"):
            entries = super().read(partition, identity, after, count, upto)
            if entries and not self.slept:
                self.slept = True
                for p in range(256):
                    raw.delete(lease_key(p))
                for _ in range(overtaken_by):
                    make_archiver().once()
                    written.extend(add(raw, world.event("late", event(1))))
                make_archiver().once()
                archive.prune()
            return entries

    world = LogWorld(99)
    sleeper = Archiver(archive, Sleeper(raw))
    sleeper.once()
    assert places(archive) == sorted(written)
    assert files_on_disk(archive) == {file.path for file in archive.latest().files}


def test_a_number_that_was_pruned_cannot_be_committed_again(archive: Archive):
    def same(manifest: Manifest) -> Manifest:
        return manifest

    first = archive.publish([], same)
    assert first is not None

    def late(manifest: Manifest) -> Manifest | None:
        if manifest.number == 1:  # while this one stands still, others go on
            for _ in range(3):
                archive.publish([], same)
            archive.prune()
            assert archive._create(Manifest(number=2, token="late"), first) is False
        return None

    archive.publish([], late)
    assert archive.latest().number == 4
    # Nor on top of what it left: number 2 is there again, but not the one that number 3 was built on.
    assert archive._create(Manifest(number=3, token="later"), Manifest(number=2, token="true")) is False
    archive.prune()
    assert [path.name for path in archive._manifests.iterdir()] == [f"{4:020d}.json"]


def test_a_file_that_was_swept_is_not_committed(archive: Archive):
    from app.archive.columns import SCHEMA

    file = write_file(archive, "default", "2024-01-01", [SCHEMA.empty_table()])
    assert sweep(archive, age_s=3_600) == 0  # young: somebody may be about to name it
    assert sweep(archive, age_s=-1) == 1
    assert archive.publish([file], lambda manifest: manifest) is None
    assert archive.latest().files == ()
    assert list(to_records(SCHEMA.empty_table())) == []


def test_two_archivers_at_once_share_the_work(archive: Archive, redis_url: str, raw: redis.Redis):
    written: list[tuple[int, str]] = []
    world = LogWorld(1)

    def work() -> None:
        with redis.Redis.from_url(redis_url) as client:
            archiver = Archiver(Archive(archive.folder), RedisLog(client), batch_rows=40, lease_ms=1)
            while not done.is_set():
                archiver._drain()

    done = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(600):
        written += [p for script in world.step() for p in add(raw, script)]
    done.set()
    for thread in threads:
        thread.join()
    Archiver(archive, RedisLog(raw)).once()
    assert places(archive) == sorted(written)


def test_killed_anywhere_by_time_every_record_is_archived_once(archive: Archive, redis_url: str, raw: redis.Redis):
    world, pick = LogWorld(2), random.Random(2)
    written: list[tuple[int, str]] = []
    kills = commits = 0
    life_s = 0.2
    end_s = time.monotonic() + 60
    while (kills < 15 or commits < 10) and time.monotonic() < end_s:
        process = FORKS.Process(target=archive_until_killed, args=(archive.folder, redis_url))
        process.start()
        die_s = time.monotonic() + pick.uniform(0.03, life_s)
        while time.monotonic() < die_s:
            written += [p for script in world.step() for p in add(raw, script)]
            time.sleep(0.0005)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if archive.latest().number == commits:
            life_s *= 1.2  # a slow machine: let the next one come further
        commits = archive.latest().number
    Archiver(archive, RedisLog(raw)).once()
    assert places(archive) == sorted(written)
    assert log_is_empty(raw)


def test_killed_at_any_file_operation_every_record_is_archived_once(archive: Archive, redis_url: str, raw: redis.Redis):
    world = LogWorld(3)
    written: list[tuple[int, str]] = []
    kill_at = 1
    while True:
        written += [p for n in range(60) for p in add(raw, world.event(f"user {n}", event(n)))]
        process = FORKS.Process(target=archive_until_killed, args=(archive.folder, redis_url, kill_at))
        process.start()
        process.join()
        if process.exitcode == 0:
            break  # it had fewer operations than that
        assert process.exitcode == -signal.SIGKILL
        assert len(set(places(archive))) == len(places(archive))
        kill_at += 1 if kill_at < 30 else 7
    assert kill_at > 20
    Archiver(archive, RedisLog(raw)).once()
    assert places(archive) == sorted(written)
    assert sweep(archive, age_s=0) > 0  # what the killed ones left
    assert files_on_disk(archive) == {file.path for file in archive.latest().files}
    assert places(archive) == sorted(written)


def test_following_archives_at_the_interval_and_at_once_when_a_batch_is_full(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.archive.archiver._POLL_S", 0.02)
    stop = threading.Event()
    archiver = make_archiver(interval_s=3_600, batch_rows=50)
    archiver.once()
    thread = threading.Thread(target=archiver.follow, args=(stop,))
    thread.start()
    try:
        time.sleep(0.3)  # the first round is due at once
        few = fill(raw, 5)
        time.sleep(0.2)
        assert len(places(archive)) < len(few)
        many = fill(raw, 80)
        deadline_s = time.monotonic() + 5
        while len(places(archive)) < len(few) + len(many) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert places(archive) == sorted([*few, *many])
    finally:
        stop.set()
        thread.join()
