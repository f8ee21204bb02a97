"""The Redis that loses at a crash what it had not synced: proven here, before other tests rely on it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import redis
from crashing_redis import CrashingRedis
from redis_process import until

PUSH = "redis.call('RPUSH', KEYS[1], ARGV[1]) redis.call('INCR', KEYS[2])"


def write_just_after_a_sync(server: CrashingRedis, client: redis.Redis) -> None:
    """Write `kept`, wait until it is synced, and write `lost` in the same second: it is synced in the next one."""
    until(lambda: 0.2 < time.time() % 1 < 0.4, 2, "a second begins")
    client.set("kept", 1)
    server.sync()
    client.set("lost", 1)


def test_everysec_loses_what_was_written_right_before_the_crash(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="everysec") as server, server.client() as client:
        for _ in range(5):  # on a machine that is busy the second may be over before the crash
            write_just_after_a_sync(server, client)
            if server.crash() > 0:
                break
            server.start()
            client.delete("lost")
        else:
            raise AssertionError("nothing was lost in five crashes")
        server.start()
        assert client.keys() == [b"kept"]


def test_everysec_keeps_what_is_older_than_a_sync(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="everysec") as server, server.client() as client:
        client.set("kept", 1)
        server.sync()
        assert server.crash() == 0
        server.start()
        assert client.keys() == [b"kept"]


def test_always_loses_nothing_that_was_acknowledged(tmp_path: Path):
    # Writers go on while the server is killed under them: whatever was answered is there, in every round.
    acknowledged: list[str] = []

    def write(name: str) -> None:
        with server.client() as client:
            for n in range(100_000):
                try:
                    client.eval(
                        "redis.call('RPUSH', KEYS[1], ARGV[1]) redis.call('INCR', KEYS[2])", 2, "list", "count", f"{name} {n}"
                    )
                except redis.ConnectionError:
                    return
                acknowledged.append(f"{name} {n}")

    with CrashingRedis(tmp_path, fsync="always") as server:
        for round_ in range(5):
            writers = [threading.Thread(target=write, args=(f"{round_} {w}",)) for w in range(4)]
            for writer in writers:
                writer.start()
            time.sleep(0.1)
            server.crash()
            for writer in writers:
                writer.join()
            server.start()
            with server.client() as client:
                kept = [value.decode() for value in client.lrange("list", 0, -1)]
                assert int(client.get("count") or 0) == len(kept) == len(set(kept))
            assert set(acknowledged) <= set(kept)
        assert len(acknowledged) > 100


def test_a_write_that_was_never_acknowledged_may_be_lost_under_always_too(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="always") as server, server.client() as client:
        client.set("kept", 1)
        # As it is between the write to the file and the return of the sync: the reply has not gone out.
        command = b"*3\r\n$3\r\nSET\r\n$4\r\nlost\r\n$1\r\n1\r\n"
        (file,) = tmp_path.rglob("*.aof")
        with file.open("ab") as stream:
            stream.write(command)
        assert server.crash() == len(command)
        server.start()
        assert client.keys() == [b"kept"]


def test_half_a_command_at_the_end_of_what_was_synced_is_dropped_for_good(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="everysec") as server, server.client() as client:
        client.set("kept", 1)
        server.sync()
        (file,) = tmp_path.rglob("*.aof")
        server.crash()
        whole = file.stat().st_size
        with file.open("ab") as stream:
            stream.write(b"*3\r\n$3\r\nSET\r\n$4\r\nha")
        (tmp_path / "synced" / str(file.stat().st_ino)).write_bytes((whole + 20).to_bytes(8, "little"))
        server.start()  # Redis cuts the half command off ...
        assert client.keys() == [b"kept"]
        assert server.synced(file) == file.stat().st_size == whole  # ... and what takes its place is not taken for synced


def test_the_address_stays_and_so_does_everything_through_many_crashes(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="always") as server:
        url = server.url
        for n in range(4):
            with redis.Redis.from_url(url) as client:
                client.set(f"key {n}", n)
            server.crash()
            server.start()
        with redis.Redis.from_url(url) as client:
            assert sorted(client.keys()) == [b"key 0", b"key 1", b"key 2", b"key 3"]
