"""What Redis may do to a call: forget the scripts, go away, hang, refuse. Nothing is half-done, doubled or acked wrongly."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from line import Line

from app.errors import DamagedError, LayoutError, StorageAddressError, StorageError
from app.state import keys
from app.state.embedded import EmbeddedRedis
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import Confirm


def event(n: int) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=n, item_id=str(n))


def batch(user: str, n: int, event_id: str | None = None) -> Append:
    return Append(user, [event(n)], [event_id])


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A server of the test's own, to be stopped and started."""
    server = EmbeddedRedis(Path(tmp_path_factory.mktemp("own")))
    server.start()
    yield server
    server.stop()


async def test_scripts_flushed_between_calls_are_loaded_again(store: RedisStore, raw: redis.Redis):
    await store.append("default", [batch("alice", 1)])
    raw.script_flush()
    await store.append("default", [batch("alice", 2)])
    raw.script_flush()
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.tail == [event(1), event(2)]


class FlushedMidway(RedisStore):
    """Another client's SCRIPT FLUSH lands in the middle of the first long pipeline."""

    flushed = 0

    async def _send(self, commands: Any, **options: Any) -> list[Any]:
        if self.flushed or len(commands) < 10:
            return await super()._send(commands, **options)
        self.flushed += 1
        half = len(commands) // 2
        replies = await super()._send([*commands[:half], ("SCRIPT", "FLUSH"), *commands[half:]], **options)
        return [*replies[:half], *replies[half + 1 :]]


async def test_only_commands_that_met_unknown_scripts_run_again(redis_url: str, store: RedisStore):
    # Without event ids a second run of the first half would show as doubled events.
    await store.append("default", [batch("someone", 0)])  # the script is known at first
    flushed = FlushedMidway(redis_url)
    users = [f"user {n}" for n in range(30)]
    appended = await flushed.append("default", [batch(user, n) for n, user in enumerate(users)])
    assert flushed.flushed == 1
    assert [a.total for a in appended] == [1] * 30
    assert [loaded.tail for loaded in await flushed.load("default", "m", users)] == [[event(n)] for n in range(30)]
    await flushed.close()


async def test_a_redis_that_is_away_is_a_storage_error_and_comes_back_by_itself(own_server: EmbeddedRedis):
    store = RedisStore(own_server.url)
    await store.open()
    await store.append("default", [batch("alice", 1)])
    own_server.stop()
    calls = [
        lambda: store.ping(),
        lambda: store.append("default", [batch("alice", 2)]),
        lambda: store.append("default", [batch("alice", 2), batch("bob", 2)]),
        lambda: store.load("default", "m", ["alice"]),
        lambda: store.recent("default", "alice", 5),
        lambda: store.count_popularity("default", [1.0], [("a", 1.0, 1)]),
    ]
    for call in calls:
        with pytest.raises(StorageError):
            await call()
    own_server.start()
    await store.ping()
    assert [loaded.tail for loaded in await store.load("default", "m", ["alice", "bob"])] == [[event(1)], []]
    assert await store.popularity("default", [1.0]) == {}
    await store.close()


async def test_a_hanging_redis_times_out_and_the_retry_stores_the_event_once(own_server: EmbeddedRedis):
    # The lost reply: Redis runs the first call after the client has given up.
    store = RedisStore(own_server.url, timeout_ms=200)
    await store.open()
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StorageError):
            await store.append("default", [batch("alice", 1, "a")])
        assert time.monotonic() - started < 2
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    (retried,) = await store.append("default", [batch("alice", 1, "a")])
    assert retried.total == 1
    assert await store.recent("default", "alice", 10) == [event(1)]
    await store.close()


async def test_what_may_have_been_stored_is_never_sent_again_unasked(redis_url: str, store: RedisStore, tmp_path: Path):
    # Without event ids nothing tells the second time from the first: only the client knows whether it may send again.
    line = Line(redis_url.removeprefix("unix://").partition("?")[0])
    async with await asyncio.start_unix_server(line.connect, tmp_path / "line"):
        behind = RedisStore(f"unix://{tmp_path}/line")
        await behind.append("default", [batch("alice", 1)])
        line.loses_the_next_reply = True
        with pytest.raises(StorageError):
            await behind.append("default", [batch("alice", 2)])
        assert not line.loses_the_next_reply
        assert await store.recent("default", "alice", 10) == [event(1), event(2)]
        await behind.append("default", [batch("alice", 3)])  # on a connection of its own, with no reply from before on it
        assert await store.recent("default", "alice", 10) == [event(1), event(2), event(3)]
        await behind.close()


async def test_a_cancelled_call_leaves_no_reply_for_the_next_one(redis_url: str):
    # One connection: a reply left unread on it would answer the next request, of another user.
    store = RedisStore(redis_url, max_connections=1)
    await store.open()
    users = [f"user {n}" for n in range(200)]
    await store.append("default", [batch(user, n) for n, user in enumerate(users)])
    for delay_ms in (0, 0.2, 0.5, 1, 2, 4):
        call = asyncio.create_task(store.load("default", "m", users))
        await asyncio.sleep(delay_ms / 1000)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        (loaded,) = await store.load("default", "m", ["user 7"])
        assert loaded.tail == [event(7)]
    await store.close()


async def test_a_connection_that_redis_has_closed_meanwhile_is_not_asked(redis_url: str, raw: redis.Redis):
    # Not asked and then asked again: nothing is sent twice that may have run.
    store = RedisStore(redis_url, max_connections=1)
    await store.append("default", [batch("alice", 1)])
    others = [each["id"] for each in raw.client_list() if each["cmd"].startswith("eval")]
    assert others
    for connection in others:
        raw.client_kill_filter(_id=connection)
    await asyncio.sleep(0.05)
    await store.append("default", [batch("alice", 2)])
    assert await store.recent("default", "alice", 10) == [event(1), event(2)]
    await store.close()


async def test_what_comes_unasked_is_no_reply_to_who_asks_next(redis_url: str, tmp_path: Path):
    line = Line(redis_url.removeprefix("unix://").partition("?")[0])
    async with await asyncio.start_unix_server(line.connect, tmp_path / "line"):
        store = RedisStore(f"unix://{tmp_path}/line", max_connections=1)
        await store.append("default", [batch("alice", 1)])
        line.says(b":7\r\n")
        await asyncio.sleep(0.05)
        assert await store.recent("default", "alice", 10) == [event(1)]
        await store.close()
        await asyncio.sleep(0.05)  # the line ends after its ends


async def test_replies_come_in_pieces_and_in_heaps(redis_url: str, tmp_path: Path):
    line = Line(redis_url.removeprefix("unix://").partition("?")[0], piece=7)
    async with await asyncio.start_unix_server(line.connect, tmp_path / "line"):
        store = RedisStore(f"unix://{tmp_path}/line")
        users = [f"user {n}" for n in range(20)]
        await store.append("default", [batch(user, n) for n, user in enumerate(users)])
        assert [loaded.tail for loaded in await store.load("default", "m", users)] == [[event(n)] for n in range(20)]
        await store.close()
        await asyncio.sleep(0.05)  # the line ends after its ends


async def test_a_redis_that_gives_up_keys_where_it_is_full_is_known(store: RedisStore, raw: redis.Redis):
    try:
        found = {}
        for policy in ("noeviction", "volatile-lru", "allkeys-lru"):
            for memory in ("0", "1gb"):
                raw.config_set("maxmemory-policy", policy)
                raw.config_set("maxmemory", memory)
                found[policy, memory] = await store.evicts()
        assert {key: said for key, said in found.items() if said is not None} == {
            ("volatile-lru", "1gb"): "volatile-lru",
            ("allkeys-lru", "1gb"): "allkeys-lru",
        }
    finally:
        raw.config_set("maxmemory", 0)
        raw.config_set("maxmemory-policy", "noeviction")


async def test_a_redis_without_an_append_only_file_is_known(store: RedisStore, raw: redis.Redis):
    try:
        raw.config_set("appendonly", "no")
        assert not await store.appends()
    finally:
        raw.config_set("appendonly", "yes")
    assert await store.appends()


async def test_a_full_redis_refuses_the_whole_append(store: RedisStore, raw: redis.Redis):
    raw.config_set("maxmemory", 1)
    try:
        with pytest.raises(StorageError):
            await store.append("default", [batch("alice", 1)])
        with pytest.raises(StorageError):
            await store.append("default", [batch("alice", 1), batch("bob", 2)])
        assert raw.keys() == [keys.LAYOUT_KEY.encode()]
    finally:
        raw.config_set("maxmemory", 0)


@pytest.mark.parametrize("kind", ["seq", "ids", "gone", "log"])
async def test_what_a_key_of_another_type_refuses_is_not_half_done(store: RedisStore, raw: redis.Redis, kind: str):
    await store.append("default", [batch("alice", 1, "1"), batch("cookie", 2, "2")])
    await store.set_attributes("default", "alice", {"country": "UK"})
    key = getattr(keys.user_keys("default", "alice"), kind)
    raw.delete(key)
    raw.hset(key, "what", "is this")

    async def append() -> None:
        (answer,) = await store.append("default", [batch("alice", 3, "3")])
        if isinstance(answer, Exception):
            raise answer

    calls = {
        "append": append,
        "import": lambda: store.write_history("default", "alice", [event(0)], ["0"], "an import"),
        "merge": lambda: store.merge("default", "cookie", "alice"),
        "merged": lambda: store.merge("default", "alice", "cookie"),
    }
    if kind == "log":
        calls["attributes"] = lambda: store.set_attributes("default", "alice", {"country": "FR"})
        calls["erase"] = lambda: store.erase("default", "alice", 10)
    before = {name: raw.dump(name) for name in raw.scan_iter()}
    for what, call in calls.items():
        with pytest.raises(DamagedError):
            await call()
        assert {name: raw.dump(name) for name in raw.scan_iter()} == before, what


async def test_a_read_only_replica_refuses_writes_with_a_storage_error(store: RedisStore, raw: redis.Redis):
    raw.execute_command("REPLICAOF", "127.0.0.1", "1")  # nobody there: a replica that waits for its master
    try:
        with pytest.raises(StorageError):
            await store.append("default", [batch("alice", 1)])
        with pytest.raises(StorageError):
            await store.count_popularity("default", [1.0], [("a", 1.0, 1)])
    finally:
        raw.execute_command("REPLICAOF", "NO", "ONE")


async def test_what_no_replica_has_confirmed_is_not_acknowledged_and_known_to_a_retry(redis_url: str, store: RedisStore):
    demanding = RedisStore(redis_url, confirm=Confirm(1, False, 20))
    with pytest.raises(StorageError, match="confirmed by 0 of 1 replicas"):
        await demanding.append("default", [batch("alice", 1, "a")])
    with pytest.raises(StorageError, match="confirmed by 0 of 1 replicas"):  # a retry that writes nothing is no confirmation
        await demanding.append("default", [batch("alice", 1, "a")])
    await demanding.close()
    (again,) = await store.append("default", [batch("alice", 1, "a")])
    assert (again.flags, again.total) == ("0", 1)


async def test_calls_beyond_the_connections_wait_for_one(redis_url: str):
    store = RedisStore(redis_url, max_connections=2)
    await store.open()
    await asyncio.gather(*(store.append("default", [batch("alice", n)]) for n in range(50)))
    assert len(await store.recent("default", "alice", 100)) == 50
    await store.close()


async def test_a_redis_of_another_layout_is_refused(redis_url: str, raw: redis.Redis):
    raw.set(keys.LAYOUT_KEY, "2/128")
    store = RedisStore(redis_url)
    calls = [
        lambda: store.open(),
        lambda: store.ping(),
        lambda: store.append("default", [batch("alice", 1)]),
        lambda: store.set_attributes("default", "alice", {}),
        lambda: store.load("default", "m", ["alice"]),
    ]
    for call in calls:
        with pytest.raises(LayoutError, match=r"2/128.*2/256"):
            await call()
    assert raw.keys() == [keys.LAYOUT_KEY.encode()]
    assert raw.get(keys.LAYOUT_KEY) == b"2/128"
    await store.close()


async def test_a_store_that_nobody_opened_lays_out_an_empty_redis_before_it_writes(redis_url: str, raw: redis.Redis):
    store = RedisStore(redis_url)
    await store.ping()
    assert raw.keys() == []  # to look changes nothing
    await store.append("default", [batch("alice", 1)])
    assert raw.get(keys.LAYOUT_KEY) == b"2/256"
    await store.close()


@pytest.mark.parametrize(
    "url",
    ["http://localhost", "localhost:6379", "redis://h:99999", "redis://h?socket_timeout=soon", "redis://h?no_such_option=1"],
)
def test_what_is_no_address_of_a_redis_is_refused_at_once(url: str):
    with pytest.raises(StorageAddressError):
        RedisStore(url)


async def test_opening_records_the_layout_once(store: RedisStore, raw: redis.Redis):
    assert raw.get(keys.LAYOUT_KEY) == b"2/256"
    await store.open()
    assert raw.get(keys.LAYOUT_KEY) == b"2/256"
