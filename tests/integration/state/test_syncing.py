"""What the embedded Redis acknowledges outlives its death, and is on disk within seconds, or it acknowledges nothing."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import redis
from crashing_redis import synced_library
from redis_process import until, valkey_server

from app.errors import StorageRefusedError
from app.settings import load_settings
from app.state import embedded, syncing
from app.state.embedded import EmbeddedRedis, find_redis_server
from app.state.events import StoredEvent
from app.state.opening import embedded_redis, open_store
from app.state.redis import RedisStore
from app.state.store import Append


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(params=["redis", "valkey"])
def server_binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server at hand keeps one append-only file, one of today several in a folder."""
    binary = find_redis_server() if request.param == "redis" else valkey_server()
    monkeypatch.setattr(embedded, "find_redis_server", lambda: binary)
    return request.param


def test_a_server_killed_on_a_slow_disk_loses_nothing_it_has_acknowledged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LD_PRELOAD", str(synced_library(tmp_path)))
    monkeypatch.setenv("SYNCED_PAUSE_MS", "1500")
    with EmbeddedRedis(folder) as server:
        with redis.Redis.from_url(server.url) as client:
            for n in range(25):  # for longer than a second: Redis' own everysec has begun to sync then
                client.rpush("list", n)
                time.sleep(0.1)
        os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.1)
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        assert client.llen("list") == 25


@pytest.mark.usefixtures("server_binary")
def test_what_is_written_is_synced_within_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch):
    synced: dict[int, int] = {}  # the size of each file at its last sync

    def sync(file: int) -> None:
        synced[os.fstat(file).st_ino] = os.fstat(file).st_size

    monkeypatch.setattr(syncing.os, "fsync", sync)
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        for n in range(2):
            client.set("key", n)
            files = [folder / "appendonly.aof", *(folder / "appendonlydir").glob("*.incr.aof")]
            written = next(file.stat() for file in files if file.exists() and file.stat().st_size)
            until(lambda size=written.st_size, inode=written.st_ino: synced.get(inode, 0) >= size, 5, "it is synced")
            client.bgrewriteaof()  # the next one goes to a new file
            until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 5, "the file is written anew")


def test_what_is_synced_is_not_synced_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(syncing, "_EVERY_S", 0.02)
    monkeypatch.setattr(syncing.os, "fsync", synced.append)
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", 1)
        until(lambda: bool(synced), 5, "it is synced")
        time.sleep(0.2)
        before = len(synced)
        time.sleep(0.3)
        assert len(synced) == before
        client.set("key", 2)
        until(lambda: len(synced) > before, 5, "it is synced again")


@pytest.mark.usefixtures("server_binary")
async def test_while_the_disk_does_not_take_them_no_write_is_acknowledged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sound = threading.Event()
    fsync = os.fsync

    def sync(file: int) -> None:
        if not sound.is_set():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(file)

    monkeypatch.setattr(syncing.os, "fsync", sync)
    monkeypatch.setattr(syncing, "_EVERY_S", 0.05)
    batch = [Append("alice", [StoredEvent(type="purchase", time_ms=1, item_id="a")], [""])]
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        store = RedisStore(server.url)
        client.set("key", 1)
        until(lambda: client.config_get("maxmemory")["maxmemory"] == "1", 5, "it refuses writes")
        with pytest.raises(StorageRefusedError):
            await store.append("default", batch)
        assert client.get("key") == b"1"
        pid = server.pid
        os.kill(pid, signal.SIGKILL)  # another one does not take them either
        until(lambda: server.pid != pid and client.config_get("maxmemory")["maxmemory"] == "1", 10, "the next one does")
        sound.set()
        until(lambda: client.config_get("maxmemory")["maxmemory"] == "0", 5, "it takes writes again")
        await store.close()
        store = RedisStore(server.url)  # the connections of the first were to the server that was killed
        assert (await store.append("default", batch))[0].flags == "1"
        assert await store.evicts() is None
        await store.close()
    assert "cannot be synced" in capsys.readouterr().out


def test_where_the_log_cannot_be_written_it_syncs_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    failures, synced = iter(range(2)), threading.Event()

    def sync(file: int) -> None:
        if next(failures, None) is None:
            synced.set()
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(*args: object, **fields: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(syncing.os, "fsync", sync)
    monkeypatch.setattr(syncing.log, "error", full, raising=False)
    monkeypatch.setattr(syncing, "_EVERY_S", 0.05)
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", 1)
        assert synced.wait(10)
        until(lambda: client.config_get("maxmemory")["maxmemory"] == "0", 5, "it takes writes again")


async def test_acknowledgements_that_wait_for_the_disk_come(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Under `appendfsync no` they would wait for ever."""
    monkeypatch.setattr(embedded, "find_redis_server", valkey_server)
    settings = load_settings(storage_dir=folder, redis_wait_fsync=True)
    with embedded_redis(settings) as server:
        store = open_store(settings, server.url)
        stored = await store.append("default", [Append("alice", [StoredEvent(type="purchase", time_ms=1, item_id="a")], [""])])
        assert stored[0].flags == "1"
        await store.close()
