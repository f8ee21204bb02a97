"""Compaction in a process of its own: the same work, the same errors, and nothing lost wherever it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import redis
from archived import places
from log_world import LogWorld, add, place

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.rewriting import Rewriting
from app.errors import ArchiveError, StorageError
from app.state.events import StoredEvent

MakeArchiver = Callable[..., Archiver]
FORKS = multiprocessing.get_context("forkserver")
LONG_AGO_MS = 1_700_000_000_000
MANY_LOOKS_MS = 15  # as a lease: the process is looked at every 5 ms


def fill(make_archiver: MakeArchiver, raw: redis.Redis, files: int = 3, rows: int = 10) -> None:
    """Small files of a closed day."""
    world = LogWorld()
    for n in range(files):
        for row in range(rows):
            for record in world.event(f"user {row % 10}", StoredEvent("view", n, f"item {n}")):
                raw.xadd(place(record)[1], record, id=f"{LONG_AGO_MS + n}-{row}")
        assert make_archiver()._drain().refused is None


def rewriting(archive: Archive, erase_within_s: float = 86_400.0, lease_ms: int = 60_000) -> Rewriting:
    return Rewriting(archive.folder, erase_within_s, lease_ms, "warning", "json")


def children() -> list[int]:
    """Processes that rewrite an archive and that this thread has started."""
    return [int(pid) for pid in Path("/proc/thread-self/children").read_text(encoding="ascii").split() if _rewrites(pid)]


def _rewrites(pid: str) -> bool:
    try:
        return b"app.archive.rewriting" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def erase(raw: redis.Redis, user: str) -> None:
    """At the end of what `fill` has put there."""
    for record in LogWorld().erase(user):
        raw.xadd(place(record)[1], record, id=f"{LONG_AGO_MS + 1_000}-0")


def test_it_merges_and_erases_as_the_archiver_would(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    fill(make_archiver, raw)
    before = places(archive)
    make_archiver(rewriter=rewriting(archive)).once()
    assert [file.rows for file in archive.latest().files] == [30]
    assert places(archive) == before
    erase(raw, "user 1")
    make_archiver(erase_within_s=0.001, rewriter=rewriting(archive, erase_within_s=0.001)).once()
    assert (archive.latest().removals, len(archive.latest().removed)) == ((), 1)
    assert len(places(archive)) == 27


def test_it_is_ours_where_the_current_folder_has_another_app(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for package in ("app", "app/archive"):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    fill(make_archiver, raw)
    rewriting(archive)(lambda: None)
    assert len(archive.latest().files) == 1


def test_no_process_is_made_where_nothing_is_due(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    calls: list[object] = []
    fill(make_archiver, raw, files=1)
    make_archiver(rewriter=calls.append).once()
    add(raw, LogWorld().erase("user 1"))  # due in half a day
    make_archiver(rewriter=calls.append).once()
    assert calls == []
    make_archiver(rewriter=calls.append, erase_within_s=0.001).once()
    assert len(calls) == 1


def test_what_is_wrong_with_a_file_is_said_as_the_archiver_would(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    fill(make_archiver, raw)
    (archive.folder / archive.latest().files[1].path).unlink()
    with pytest.raises(ArchiveError, match=f"{archive.latest().files[1].path}: is not there"):
        rewriting(archive)(lambda: None)


def test_that_no_process_can_be_had_is_said(archive: Archive):
    without = rewriting(archive)
    without._command[0] = "/nowhere/python"
    with pytest.raises(ArchiveError, match="no process can be started that compacts the archive: No such file"):
        without(lambda: None)


def test_the_lease_is_kept_meanwhile_and_without_redis_the_process_ends(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    fill(make_archiver, raw)
    looks: list[int] = []

    def away() -> None:
        looks[:] = children() or looks
        if looks:
            raise StorageError("away")

    with pytest.raises(StorageError):
        rewriting(archive, lease_ms=MANY_LOOKS_MS)(away)
    assert looks
    assert children() == []
    assert len(archive.latest().files) == 3


def test_killed_at_any_time_it_loses_and_doubles_nothing(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    fill(make_archiver, raw, files=4, rows=2_000)
    before = places(archive)
    began_s = time.monotonic()
    rewriting(Archive(archive.folder / "none"))(lambda: None)
    starting_s = time.monotonic() - began_s
    killed = 0
    for share in (
        0.0,
        0.05,
        0.7,
        0.85,
        1.0,
        1.15,
        1.3,
    ):  # two before its end, however fast it is
        at_s = time.monotonic() + starting_s * share

        def kill(at_s: float = at_s) -> None:
            if time.monotonic() >= at_s:
                for pid in children():
                    os.kill(pid, signal.SIGKILL)

        try:
            rewriting(archive, lease_ms=MANY_LOOKS_MS)(kill)
        except ArchiveError as error:
            killed += "exit code -9" in error.detail
        assert places(archive) == before
    assert killed >= 2
    rewriting(archive)(lambda: None)
    assert [file.rows for file in archive.latest().files] == [8_000]
    assert places(archive) == before


def _stop_and_say(archive: Archive, said: Connection) -> None:
    """Start a process that rewrites, stop it as soon as it is there, and wait."""

    def stop() -> None:
        for pid in children():
            os.kill(pid, signal.SIGSTOP)
            said.send(pid)
            time.sleep(60)

    rewriting(archive, lease_ms=MANY_LOOKS_MS)(stop)


def test_it_ends_with_an_archiver_that_is_killed(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    fill(make_archiver, raw)
    hear, say = FORKS.Pipe(duplex=False)
    archiver = FORKS.Process(target=_stop_and_say, args=(archive, say))
    archiver.start()
    pid = hear.recv()
    archiver.kill()
    archiver.join()
    os.kill(pid, signal.SIGCONT)
    while _rewrites(str(pid)):  # the command line of one that has ended is empty
        time.sleep(0.01)
    assert len(archive.latest().files) == 3
