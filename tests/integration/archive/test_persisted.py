"""Who was erased is not in the append-only file of Redis any more when the archive's files are rid of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from log_world import LogWorld, add

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.log import RedisLog
from app.archive.persisted import rewrite_persisted
from app.state.embedded import EmbeddedRedis
from app.state.events import StoredEvent

SECRET = "what nobody is to know"


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[redis.Redis, Path]]:
    """A Redis of its own, and its folder."""
    with EmbeddedRedis(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        yield client, tmp_path / "redis"


def is_on_disk(folder: Path) -> bool:
    return any(SECRET.encode() in file.read_bytes() for file in folder.rglob("*.aof"))


def rewrites(client: redis.Redis) -> int:
    """How often the file was written anew, once that is over."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = client.info("persistence")
        if not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]:
            return int(client.info("stats")["total_forks"])
        time.sleep(0.02)
    raise AssertionError("the append-only file is still being written")


def test_the_file_is_written_anew_after_erasures_alone(archive: Archive, kept: tuple[redis.Redis, Path]):
    client, folder = kept
    world, calls = LogWorld(), []

    def ask() -> None:
        calls.append(1)
        rewrite_persisted(client)

    archiver = Archiver(archive, RedisLog(client), on_erased=ask)
    add(client, world.event("a", StoredEvent("view", 1, "i", text=SECRET)))
    archiver.once(erase_now=True)
    add(client, world.erase("a"))
    archiver.once()
    assert (calls, rewrites(client), is_on_disk(folder)) == ([], 0, True)
    archiver.once(erase_now=True)
    assert (calls, rewrites(client), is_on_disk(folder)) == ([1], 1, False)
    archiver.once(erase_now=True)
    assert calls == [1]


def test_a_redis_that_keeps_no_file_is_left_alone(kept: tuple[redis.Redis, Path]):
    client, _ = kept
    client.config_set("appendonly", "no")
    forks = client.info("stats")["total_forks"]
    rewrite_persisted(client)
    assert rewrites(client) == forks


def test_a_redis_that_refuses_is_no_error(kept: tuple[redis.Redis, Path]):
    client, _ = kept
    client.acl_setuser("archiver", enabled=True, nopass=True, keys="*", commands=["+@all", "-bgrewriteaof"])
    with redis.Redis(
        unix_socket_path=client.connection_pool.connection_kwargs["path"], username="archiver", password=""
    ) as other:
        rewrite_persisted(other)
    assert rewrites(client) == 0
