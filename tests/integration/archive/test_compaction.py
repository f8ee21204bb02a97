from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from archived import archive_until_killed, files_on_disk, is_written_anywhere, places, rows
from log_world import LogWorld, add, place

from app.archive import compaction
from app.archive.archive import MANIFESTS, Archive
from app.archive.archiver import Archiver
from app.archive.compaction import Compaction
from app.archive.files import sweep
from app.archive.histories import histories, users
from app.archive.keys import user_hash
from app.errors import ArchiveError
from app.state.events import StoredEvent
from model.data.importers.archive import read

MakeArchiver = Callable[..., Archiver]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["app.archive.archiver", "redis"])  # a child then starts in milliseconds
YESTERDAY_MS = 1_700_000_000_000


def event(n: int, text: str | None = None) -> StoredEvent:
    return StoredEvent("view", 1_000 + n, f"item {n}", text=text)


def add_at(raw: redis.Redis, script: list, ms: int) -> None:
    for seq, record in enumerate(script):
        raw.xadd(place(record)[1], record, id=f"{ms}-{seq}")


def test_small_files_of_a_closed_day_become_one_with_the_same_rows(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    for n in range(5):
        for user in range(10):
            add_at(raw, world.event(f"user {user}", event(n)), YESTERDAY_MS + n)
        Archiver._drain(make_archiver())
    before, small = rows(archive), archive.latest().files
    assert len(small) == 5
    Compaction(archive).run()
    (large,) = archive.latest().files
    assert large.rows == 50
    assert sorted(rows(archive), key=str) == sorted(before, key=str)
    in_order = [(row["partition"], row["ms"], row["seq"]) for row in rows(archive)]
    assert in_order == sorted(in_order)
    # Who has opened the old files may read them to the end; a later sweep takes them.
    assert files_on_disk(archive) == {file.path for file in (large, *small)}
    assert sweep(archive, age_s=0) == 5
    assert files_on_disk(archive) == {large.path}


def test_files_that_are_large_and_those_of_today_stay(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    for n in range(3):
        add_at(raw, [*world.event("a", event(n)), *world.event("a", event(n))], YESTERDAY_MS + n)
        make_archiver()._drain()
    now_ms = int(time.time() * 1000)
    for n in range(2):
        add_at(raw, world.event("a", event(n)), now_ms + n)
        make_archiver()._drain()
    files = archive.latest().files
    Compaction(archive, target_rows=4).run()
    assert archive.latest().files == files


def test_an_open_day_is_compacted_when_it_has_many_files(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compaction, "_MOST_SMALL", 3)
    for n in range(3):
        add(raw, LogWorld().event("a", event(n)))
        make_archiver()._drain()
        if n < 2:
            Compaction(archive).run()
            assert len(archive.latest().files) == n + 1
    Compaction(archive).run()
    assert len(archive.latest().files) == 1


def test_an_erased_user_is_in_no_byte_of_the_archive(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    archiver = make_archiver()
    for n in range(3):
        add(raw, world.event("unforgettable", event(n, text=f"secret {n}"), f"id {n}"))
        add(raw, world.event("stays", event(n)))
        archiver.once()
    add(raw, world.attributes("unforgettable", {"name": "secret"}))
    # Two identities that went into the erased one, and one that it was thought to be part of.
    for script in (*world.merge("alias", "unforgettable"), *world.merge("unforgettable", "stays")):
        add(raw, script)
    raw_after = world.event("unforgettable", event(7), "new life")
    for identity in ("alias", "unforgettable"):
        add(raw, world.erase(identity))
    archiver.once()
    assert is_written_anywhere(archive, "unforgettable")
    assert "unforgettable" not in {history.user_id for history in histories(archive)}
    before = {history.user_id: history for history in histories(archive)}
    archiver.once(erase_now=True)
    assert not is_written_anywhere(archive, "unforgettable")
    assert not is_written_anywhere(archive, "alias")
    assert {history.user_id: history for history in histories(archive)} == before
    manifest = archive.latest()
    assert manifest.removals == ()
    assert {r.user_hash for r in manifest.removed} == {user_hash("unforgettable"), user_hash("alias")}
    assert files_on_disk(archive) == {file.path for file in manifest.files}
    # Whoever comes back is somebody new, and stays.
    add(raw, raw_after)
    archiver.once(erase_now=True)
    assert [h.events for h in histories(archive) if h.user_id == "unforgettable"] == [[event(7)]]


def test_who_was_merged_into_the_erased_does_not_come_back_if_the_erasure_was_cut_off(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    for n in (0, 1):
        add(raw, world.event("alias", event(YESTERDAY_MS + n)))
    del world.users["default", "alias"].events[0]  # as if the sequence had room for one
    add(raw, world.event("unforgettable", event(YESTERDAY_MS)))
    add(raw, world.event("stays", event(YESTERDAY_MS)))
    for script in world.merge("alias", "unforgettable"):
        add(raw, script)
    add(raw, world.erase("unforgettable"))
    for erase_now in (False, True):
        make_archiver().once(erase_now=erase_now)
        assert [user.user_id for user in users(archive, archive.latest())] == ["stays"]
    assert not is_written_anywhere(archive, "unforgettable")
    assert read(archive.folder).events.get_column("user_id").to_list() == ["stays"]
    add(raw, world.erase("alias"))
    make_archiver().once(erase_now=True)
    assert [row["user_id"] for row in rows(archive)] == ["stays"]


def test_what_a_merge_left_for_its_readers_is_erased_too(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    for n in range(3):
        add_at(raw, world.event("unforgettable", event(n)), YESTERDAY_MS + n)
        make_archiver()._drain()
    Compaction(archive).run()
    assert len(files_on_disk(archive)) == 4
    add(raw, world.erase("unforgettable"))
    make_archiver().once(erase_now=True)
    assert not is_written_anywhere(archive, "unforgettable")
    assert archive.latest().files == ()


def test_a_moved_user_leaves_alias_and_what_had_left_the_sequence(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    add(raw, world.event("source", event(0, text="long ago")))
    add(raw, world.event("source", event(2, text="theirs")))
    add(raw, world.event("target", event(1)))
    del world.users["default", "source"].events[0]  # as if the sequence had room for one
    for script in world.merge("source", "target"):
        add(raw, script)
    make_archiver().once()
    before = list(histories(archive))
    make_archiver().once(erase_now=True)
    assert list(histories(archive)) == before
    assert [(h.user_id, [e.time_ms for e in h.events]) for h in before] == [("target", [1_001, 1_002])]
    (alias,) = [user for user in users(archive, archive.latest()) if user.user_id == "source"]
    assert ([e.text for e in alias.events], alias.moved_to) == (["long ago"], "target")
    assert [(row["kind"], row["other"]) for row in rows(archive) if row["kind"] == "s"] == [("s", "source")]


def test_a_removal_waits_until_half_its_deadline(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    add(raw, world.erase("a"))
    make_archiver(erase_within_s=3_600).once()
    assert len(archive.latest().removals) == 1
    time.sleep(0.06)
    make_archiver(erase_within_s=0.1).once()
    assert archive.latest().removals == ()


def test_what_a_killed_writer_was_about_to_say_is_erased_too(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    world = LogWorld()
    add(raw, world.event("unforgettable", event(1)))
    make_archiver().once()
    add(raw, world.erase("unforgettable"))
    make_archiver()._drain()
    left = archive.folder / MANIFESTS / "of a killed writer.draft"
    left.write_text('{"removals": ["unforgettable"]}')
    make_archiver().once(erase_now=True)
    assert not is_written_anywhere(archive, "unforgettable")


def test_a_manifest_whose_draft_was_swept_is_written_again(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    swept: list[Path] = []
    true_link = os.link

    def link(draft: Path, path: Path) -> None:
        if not swept:
            swept.append(draft)
            draft.unlink()
        true_link(draft, path)

    monkeypatch.setattr(os, "link", link)
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    assert len(swept) == 1
    assert [h.user_id for h in histories(archive)] == ["a"]


@pytest.mark.parametrize("written_first", [True, False])
def test_a_compaction_that_was_overtaken_changes_nothing(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, written_first: bool
):
    world = LogWorld()
    for n in range(3):
        add_at(raw, [*world.event("unforgettable", event(n)), *world.event("unforgettable", event(n))], YESTERDAY_MS + n)
        add_at(raw, world.event("stays", event(n)), YESTERDAY_MS + n)
        make_archiver()._drain()
    add(raw, world.erase("unforgettable"))
    make_archiver()._drain()
    true_write = compaction.write_file

    def write_late(*arguments):
        monkeypatch.setattr(compaction, "write_file", true_write)
        # The others erase while this one stands still, with the rows in memory and its file written or not.
        written = true_write(*arguments) if written_first else None
        make_archiver().once(erase_now=True)
        return written or true_write(*arguments)

    monkeypatch.setattr(compaction, "write_file", write_late)
    Compaction(archive).run()
    assert not is_written_anywhere(archive, "unforgettable")
    assert [(h.user_id, len(h.events)) for h in histories(archive)] == [("stays", 3)]


def test_a_compaction_killed_anywhere_loses_and_doubles_nothing(archive: Archive, redis_url: str, raw: redis.Redis):
    world = LogWorld(5)
    died: list[tuple[bool, bool]] = []  # whether the erasure was committed, and whether the user was gone from the disk
    for kill_at in [30, 50, *range(56, 90, 2), 10**9]:
        for n in range(4):
            add(raw, world.event(f"user {n}", event(n)))
        if kill_at % 10 == 0:
            add(raw, world.event("unforgettable", event(1)))
            add(raw, world.erase("unforgettable"))
        process = FORKS.Process(target=archive_until_killed, args=(archive.folder, redis_url, kill_at, True))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        assert len(set(places(archive))) == len(places(archive))
        if process.exitcode:
            died.append((archive.latest().removals == (), not is_written_anywhere(archive, "unforgettable")))
            time.sleep(0.05)  # its leases run out
    assert process.exitcode == 0
    assert {(False, False), (True, False)} <= set(died)
    assert not is_written_anywhere(archive, "unforgettable")
    expected = {user_id: [e for e, _ in user.events] for (_, user_id), user in world.live().items()}
    assert {h.user_id: h.events for h in histories(archive)} == expected


def test_a_damaged_file_is_named(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    (file,) = archive.latest().files
    path = archive.folder / file.path
    whole = path.read_bytes()
    os.truncate(path, len(whole) // 2)
    with pytest.raises(ArchiveError, match=f"{file.path}: damaged"):
        list(histories(archive))
    path.unlink()
    with pytest.raises(ArchiveError, match=f"{file.path}: is not there"):
        list(histories(archive))


@pytest.mark.parametrize("erased", [False, True])
def test_a_damaged_file_keeps_no_other_day_from_being_merged_or_erased(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, erased: bool
):
    for n in range(6):
        add_at(raw, LogWorld().event("a", event(n)), YESTERDAY_MS + 86_400_000 * (n // 2) + n)
        make_archiver()._drain()
    damaged = archive.latest().files[0]
    os.truncate(archive.folder / damaged.path, 100)
    if erased:
        add(raw, LogWorld().erase("a"))
        make_archiver()._drain()
    with pytest.raises(ArchiveError, match=f"{damaged.path}: damaged"):
        Compaction(archive).run(erase_now=erased)
    if not erased:
        assert sorted(file.rows for file in archive.latest().files) == [1, 1, 2, 2]
        return
    # Carried out everywhere else, and due until it is everywhere.
    assert archive.latest().files == (damaged,)
    assert len(archive.latest().removals) == 1
    assert {file.name for file in archive.folder.rglob("*.parquet")} == {Path(damaged.path).name}


def test_a_compaction_that_fails_again_and_again_leaves_no_manifests_and_no_files(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    for n in range(4):
        add_at(raw, LogWorld().event("a", event(n)), YESTERDAY_MS + n)
        make_archiver()._drain()
    first = archive.latest().files[0]
    left = (archive.folder / first.path).with_name("of-a-killed-one.parquet")
    left.write_bytes(b"?")
    os.utime(left, (0, 0))
    os.truncate(archive.folder / first.path, 100)
    with pytest.raises(ArchiveError, match=f"{first.path}: damaged"):
        Compaction(archive).run()
    assert len(list((archive.folder / MANIFESTS).iterdir())) <= 2  # the sweep's own, and the one before it
    assert not left.exists()


def test_an_erasure_that_fails_in_one_file_goes_on_when_that_is_whole_again(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    for n in range(3):
        add(raw, [*world.event("a", event(n)), *world.event("b", event(n))])
        make_archiver()._drain()
    add(raw, world.erase("a"))
    make_archiver()._drain()
    files = archive.latest().files
    last = archive.folder / files[2].path
    whole = last.read_bytes()
    os.truncate(last, 100)
    with pytest.raises(ArchiveError, match=f"{files[2].path}: damaged"):
        make_archiver().once(erase_now=True)
    assert files_on_disk(archive) == {file.path for file in archive.latest().files}
    assert archive.latest().removals
    last.write_bytes(whole)
    assert {row["user_id"] for row in rows(archive) if row["user_id"] != "b"} == {"a"}
    make_archiver().once(erase_now=True)
    assert {row["user_id"] for row in rows(archive)} == {"b"}
    assert not archive.latest().removals
