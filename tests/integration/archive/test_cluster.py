"""The archive on a Redis Cluster: one node with all slots refuses what crosses slots just as several do."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from log_world import LogWorld, add

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.expiry import Expiry
from app.archive.histories import histories
from app.archive.log import RedisLog
from app.archive.persisted import rewrite_persisted
from app.archive.restore import restore
from app.errors import ArchiveError
from app.state import keys
from app.state.embedded import find_redis_server
from app.state.events import StoredEvent


def free_port() -> int:
    """A port that is free, and 10,000 above it one for the cluster's own talk."""
    for port in range(21_000, 30_000):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[redis.RedisCluster]:
    port = free_port()
    options = {"port": port, "cluster-enabled": "yes", "save": "", "dir": tmp_path, "bind": "127.0.0.1"}
    command = [str(find_redis_server()), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as node:
            while True:
                try:
                    node.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
                    break
                except redis.ConnectionError:
                    assert server.poll() is None
                    time.sleep(0.01)
            while b"cluster_state:ok" not in node.execute_command("CLUSTER", "INFO"):
                time.sleep(0.01)
        with redis.RedisCluster(host="127.0.0.1", port=port) as client:
            yield client
    finally:
        server.kill()
        server.wait()


def test_a_cluster_is_archived_and_restored(cluster: redis.RedisCluster, archive: Archive):
    world = LogWorld(1)
    for _ in range(200):
        for script in world.step():
            add(cluster, script)
    Archiver(archive, RedisLog(cluster)).once(erase_now=True)
    expected = {key: (*key, user.epoch, user.n, [e for e, _ in user.events]) for key, user in world.live().items()}
    assert {history[:2]: history for history in histories(archive)} == expected
    with pytest.raises(ArchiveError, match="is not empty"):
        restore(archive, cluster, max_sequence=100, dedupe_window=100, tombstone_ttl_s=10**9)
    cluster.flushall()
    done = restore(archive, cluster, max_sequence=100, dedupe_window=100, tombstone_ttl_s=10**9)
    assert (done.users, done.tombstones) == (len(expected), len(world.gone))
    add(cluster, world.event("somebody else", StoredEvent("view", 1, "item")))
    assert Archiver(archive, RedisLog(cluster)).once() == 1
    cluster.flushall()
    add(cluster, world.event("somebody else", StoredEvent("view", 2, "item")))
    with pytest.raises(ArchiveError, match="its identity is gone"):
        Archiver(archive, RedisLog(cluster)).once()


def test_the_append_only_files_of_a_cluster_are_written_anew(cluster: redis.RedisCluster, tmp_path: Path):
    cluster.config_set("appendonly", "yes", target_nodes=cluster.get_primaries())
    cluster.set("name", "what nobody is to know")
    cluster.delete("name")
    rewrite_persisted(cluster)
    deadline = time.monotonic() + 30
    while any(b"nobody" in file.read_bytes() for file in tmp_path.rglob("*.aof")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_on_a_cluster_idle_users_go_with_all_their_keys(cluster: redis.RedisCluster, archive: Archive):
    names = [f"user {n}" for n in range(40)]
    world = LogWorld()
    for name in names:
        add(cluster, world.event(name, StoredEvent("view", 1, "item")))
        key = keys.user_keys("default", name)
        cluster.rpush(key.seq, "event")
        cluster.set(key.ids, "ring")
        cluster.set(keys.state_key("default", "m", name), "state")
        cluster.hset(key.meta, mapping={"n": 1, "e": "epoch", "d": 1})
    cluster.hset(keys.MODELS_KEY, "m", "{}")
    assert Expiry(cluster, archive, 30).all(threading.Event()) == 0
    Archiver(archive, RedisLog(cluster)).once()
    assert Expiry(cluster, archive, 30).all(threading.Event()) == len(names)
    assert {name for name in cluster.scan_iter() if not name.endswith((b":log", b":log-identity"))} == {keys.MODELS_KEY.encode()}
    assert Archiver(archive, RedisLog(cluster)).once() == len(names)
    assert list(histories(archive)) == []
