from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from log_world import LogWorld, add, place
from typer.testing import CliRunner

from app.archive.archive import Archive
from app.archive.histories import histories
from app.archive.keys import log_key
from app.cli import cli
from app.state import keys
from app.state.embedded import EmbeddedRedis
from app.state.events import StoredEvent


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, redis_url: str, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGWAVE_REDIS_URL", redis_url)
    monkeypatch.setenv("LONGWAVE_ARCHIVE_DIR", str(tmp_path / "archive"))
    monkeypatch.setenv("LONGWAVE_LOG_LEVEL", "error")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, words)
    return result.exit_code, result.output


def event(n: int) -> StoredEvent:
    return StoredEvent("view", 1_000 + n, f"item {n}")


def test_archive_and_restore_say_what_they_did(raw: redis.Redis, tmp_path: Path):
    world = LogWorld()
    for n in range(3):
        add(raw, world.event("a", event(n)))
    assert run("archive") == (0, f"3 records -> {tmp_path / 'archive'}\n")
    code, said = run("restore")
    assert code == 2
    assert "error: this Redis is not empty, it has 257 keys" in said
    raw.flushall()
    code, said = run("restore")
    assert code == 0
    assert "1 users with 3 events, 0 aliases, 0 tombstones" in said


def test_erase_now_erases(raw: redis.Redis, tmp_path: Path):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    add(raw, world.erase("a"))
    before = raw.info("stats")["total_forks"]
    assert run("archive", "--once", "--erase-now")[0] == 0
    assert Archive(tmp_path / "archive").latest().files == ()
    # Of its append-only file.
    assert raw.info("stats")["total_forks"] + raw.info("persistence")["aof_rewrite_scheduled"] == before + 1
    assert run("archive", "--follow", "--erase-now")[0] == 2


def test_a_check_fails_when_events_have_waited_for_longer_than_a_healthy_archiver_takes(raw: redis.Redis):
    assert run("archive", "--check") == (0, "nothing waits\n")
    now_ms = time.time_ns() // 1_000_000
    for waited_s, code in ((30, 0), (239, 0), (242, 1)):  # three intervals of 60 s and a minute
        raw.flushall()
        raw.xadd(log_key(7), {b"k": b"e"}, id=f"{now_ms}-0")  # younger, in another partition
        raw.xadd(log_key(9), {b"k": b"e"}, id=f"{now_ms - waited_s * 1_000}-0")
        exit_code, said = run("archive", "--check")
        assert exit_code == code
        assert said.endswith(f"{'more' if code else 'no more'} than 240 s\n")
        assert raw.xlen(log_key(9)) == 1
    assert run("archive", "--check", "--once")[0] == 2


def test_what_is_wrong_is_one_line_and_exit_code_2(raw: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code, said = run("restore")
    assert (code, said.splitlines()[-1]) == (2, f"error: {tmp_path / 'archive'}: no archive is there (no _manifests/*.json)")
    monkeypatch.setenv("LONGWAVE_REDIS_URL", f"unix://{tmp_path}/nothing.sock")
    code, said = run("archive")
    assert code == 2
    assert said.startswith("error: Redis does not answer")
    monkeypatch.setenv("LONGWAVE_ARCHIVE_INTERVAL_S", "0")
    code, said = run("archive")
    assert code == 2
    assert said.startswith("error: LONGWAVE_ARCHIVE_INTERVAL_S: ")


def test_the_embedded_redis_is_archived_beside_its_service_and_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LONGWAVE_REDIS_URL")
    world = LogWorld()
    folder = ["--storage-dir", str(tmp_path / "storage")]
    with EmbeddedRedis(tmp_path / "storage") as server, redis.Redis.from_url(server.url) as client:
        add(client, world.event("a", event(1)))
        assert run("archive", *folder)[1].startswith("1 records")
        add(client, world.event("a", event(2)))
    assert run("archive", *folder)[1].startswith("1 records")
    assert [len(h.events) for h in histories(Archive(tmp_path / "archive"))] == [2]


def test_following_ends_on_sigterm_with_everything_committed(raw: redis.Redis, tmp_path: Path):
    world = LogWorld()
    command = [sys.executable, "-c", "from app.cli import main; main()", "archive", "--follow"]
    environment = os.environ | {"LONGWAVE_ARCHIVE_INTERVAL_S": "0.1", "LONGWAVE_LOG_FORMAT": "json", "LONGWAVE_LOG_LEVEL": "info"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        archive = Archive(tmp_path / "archive")
        for n in range(3):
            add(raw, world.event("a", event(n)))
            deadline_s = time.monotonic() + 20
            while archive.latest().rows <= n and time.monotonic() < deadline_s:
                time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert archive.latest().rows == 3
    assert said.count('"archived"') == 3
    assert '"lag_s"' in said


def test_following_compacts_in_a_process_of_its_own(raw: redis.Redis, tmp_path: Path):
    world = LogWorld()
    archive = Archive(tmp_path / "archive")
    command = [sys.executable, "-c", "from app.cli import main; main()", "archive", "--follow"]
    seen: set[bytes] = set()
    with subprocess.Popen(command, env=os.environ | {"LONGWAVE_ARCHIVE_INTERVAL_S": "0.1"}) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for n in range(2):  # two files of a day long ago
                (record,) = world.event("a", event(n))
                raw.xadd(place(record)[1], record, id=f"{1_700_000_000_000 + n}-0")
                deadline_s = time.monotonic() + 30
                while archive.latest().rows <= n and time.monotonic() < deadline_s:
                    time.sleep(0.02)
            while len(archive.latest().files) > 1 and time.monotonic() < deadline_s:
                for pid in children.read_text(encoding="ascii").split():
                    with contextlib.suppress(OSError):
                        seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                time.sleep(0.002)
        finally:
            process.terminate()
    assert [file.rows for file in archive.latest().files] == [2]
    assert any(b"app.archive.rewriting" in line for line in seen)


def test_an_import_names_a_bundle_that_is_missing(tmp_path: Path):
    (tmp_path / "a.csv").write_text("user_id,item_id,type,timestamp\n")
    code, said = run("import", str(tmp_path / "a.csv"), "--bundle", str(tmp_path / "none"))
    assert code == 2
    assert "none" in said


@pytest.mark.parametrize("who", ["off", "auto", "elsewhere"])
def test_idle_users_go_only_where_the_service_has_an_archive(raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, who: str):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    raw.hset(keys.user_keys("default", "a").meta, mapping={"n": 1, "e": "epoch", "d": 1})
    monkeypatch.setenv("LONGWAVE_LOG_LEVEL", "warning")
    monkeypatch.setenv("LONGWAVE_USER_RETENTION_DAYS", "30")
    monkeypatch.setenv("LONGWAVE_ARCHIVE", who)
    code, said = run("archive")
    assert code == 0
    assert raw.exists(keys.user_keys("default", "a").meta) == (who != "elsewhere")
    assert ("no idle user leaves Redis" in said) == (who != "elsewhere")
    assert ("2 records" in said) == (who == "elsewhere")  # the event, and that the user has gone


def test_a_check_says_that_a_log_is_not_the_archives(raw: redis.Redis, tmp_path: Path):
    add(raw, LogWorld().event("a", event(1)))
    assert run("archive")[0] == 0
    assert run("archive", "--check") == (0, "nothing waits\n")
    raw.flushall()
    code, said = run("archive", "--check")
    assert code == 2
    assert said.startswith("error: the log of partition 00 (and 255 more) is not the one that the archive")
    assert "`longwave restore`" in said
    assert run("restore")[0] == 0
    assert run("archive", "--check") == (0, "nothing waits\n")
