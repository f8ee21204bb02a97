"""A master that became a replica, behind an address that leads to its successor now, without an end of any connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from line import Line
from redis_cluster import free_port
from redis_process import client, spawn, until, valkey_server

from app.errors import StorageError
from app.state.embedded import find_redis_server
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append

HOST = "127.0.0.1"


def event(n: int) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=n, item_id=str(n))


async def append(store: RedisStore, *numbers: int) -> None:
    (answer,) = await store.append("default", [Append("alice", [event(n) for n in numbers], [str(n) for n in numbers])])
    if isinstance(answer, Exception):
        raise answer


async def items(store: RedisStore) -> list[str]:
    return [str(one.item_id) for one in await store.recent("default", "alice", 100)]


@dataclass
class Pair:
    ports: tuple[int, int]
    first: redis.Redis
    second: redis.Redis

    def follow(self) -> None:
        """The second server is the first one's replica, and has what that has."""
        self.second.execute_command("REPLICAOF", HOST, self.ports[0])
        until(lambda: self.second.info("replication")["master_link_status"] == "up", 10, "the replica follows")
        self.first.execute_command("WAIT", 1, 5_000)

    def fail_over(self, cut_off: bool = True) -> None:
        """The second server is the master, and the first one takes no writes any more, and hears of none if it is cut off."""
        self.second.execute_command("REPLICAOF", "NO", "ONE")
        self.first.execute_command("REPLICAOF", HOST, 1 if cut_off else self.ports[1])  # nobody is at port 1


@pytest.fixture(params=["redis", "valkey"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    binary = valkey_server() if request.param == "valkey" else find_redis_server()
    ports, servers = (free_port(), free_port()), []
    try:
        for n, port in enumerate(ports):
            (tmp_path / str(n)).mkdir()
            own = {"bind": HOST, "port": port, "dir": tmp_path / str(n), "save": '""', "repl-diskless-sync-delay": 0}
            servers.append(spawn(own, binary=binary))
        first, second = (client(host=HOST, port=port) for port in ports)
        for one in (first, second):
            until(lambda one=one: bool(one.ping()), 10, "a server answers")  # type: ignore[misc]
        yield Pair(ports, first, second)
        first.close()
        second.close()
    finally:
        for server in servers:
            server.kill()
            server.wait()


@asynccontextmanager
async def behind(line: Line) -> AsyncIterator[RedisStore]:
    """A store at the end of a line."""
    async with await asyncio.start_server(line.connect, HOST, 0) as listening:
        store = RedisStore(f"redis://{HOST}:{listening.sockets[0].getsockname()[1]}")
        try:
            yield store
        finally:
            await store.close()
            await asyncio.sleep(0.05)  # the line ends after its ends


async def test_after_one_refused_write_everybody_is_asked_at_the_successor(pair: Pair):
    line = Line(pair.ports[0])
    async with behind(line) as store:
        await asyncio.gather(*(append(store, n) for n in range(5)))  # five connections
        pair.follow()
        pair.fail_over()
        line.to = pair.ports[1]
        generation = store.generation
        with pytest.raises(StorageError):
            await append(store, 5)
        assert store.generation > generation
        async with asyncio.timeout(5):
            await append(store, 6)
            pair.second.set("said", "by the second")
            raw = [store.all([("GET", "said")]) for _ in range(10)]
            assert await asyncio.gather(*raw) == [[b"by the second"]] * 10
            assert sorted(await items(store)) == ["0", "1", "2", "3", "4", "6"]
            while len(pair.first.client_list()) > 1:  # noqa: ASYNC110 - ours; what is of no use any more is closed
                await asyncio.sleep(0.01)


async def test_who_meets_the_successor_first_takes_all_others_along(pair: Pair):
    line = Line(pair.ports[0])
    async with behind(line) as store:
        await asyncio.gather(*(append(store, n) for n in range(5)))
        pair.follow()
        pair.fail_over()
        line.to = pair.ports[1]
        generation = store.generation
        pair.second.set("said", "by the second")
        # One connection ends; nobody has tried to write.
        busiest = max(pair.first.client_list(), key=lambda one: int(one["id"]) if one["cmd"].startswith("eval") else -1)
        pair.first.client_kill_filter(_id=busiest["id"])
        await asyncio.sleep(0.05)
        await asyncio.gather(*(store.all([("GET", "said")]) for _ in range(5)))
        assert store.generation > generation
        raw = [store.all([("GET", "said")]) for _ in range(10)]
        assert await asyncio.gather(*raw) == [[b"by the second"]] * 10


async def test_a_master_that_becomes_a_replica_and_stays_is_read_on_and_not_taken_for_another_all_the_time(pair: Pair):
    line = Line(pair.ports[0])
    pair.follow()
    async with behind(line) as store:
        await append(store, 1)
        pair.fail_over()
        generation = store.generation
        for _ in range(10):
            with pytest.raises(StorageError):
                await append(store, 2)
            assert await items(store) == ["1"]
        assert store.generation == generation + 1
        # It may be that it gets what its new master has in the place of what it had.
        await asyncio.sleep(0.15)
        pair.second.set("said", "by the second")
        pair.fail_over(cut_off=False)
        until(lambda: pair.first.get("said") is not None, 10, "it follows its new master")
        with pytest.raises(StorageError):
            await append(store, 2)
        await store.ping()  # comes anew
        assert store.generation > generation + 1
