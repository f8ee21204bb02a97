"""A Redis that has been started and reads its data in: it answers, but to nothing that is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import BusyLoadingError
from redis_cluster import free_port
from redis_process import client, spawn, until, valkey_server

from app.errors import StorageError
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import ClusterTransport, Command, Confirm, SingleTransport, Transport

EVENT = StoredEvent(type="purchase", time_ms=1, item_id="item")


async def test_a_redis_that_loads_is_away_and_then_has_everything(tmp_path: Path):
    port = free_port()
    configuration = {"bind": "127.0.0.1", "port": port, "dir": tmp_path, "save": '""', "rdbcompression": "no"}
    server = spawn(configuration, binary=valkey_server())
    raw = client(host="127.0.0.1", port=port)
    store = RedisStore(f"redis://127.0.0.1:{port}")
    try:
        until(lambda: bool(raw.ping()), 10, "the server answers")
        await store.append("default", [Append("alice", [EVENT], ["1"])])
        raw.mset({f"{n}": "x" * 100 for n in range(300)})
        raw.save()
        generation = store.generation
        server.kill()
        server.wait()
        # In microseconds for each key; it answers after so many bytes.
        server = spawn(
            configuration | {"key-load-delay": 5_000, "loading-process-events-interval-bytes": 1_024}, binary=valkey_server()
        )
        met: list[BaseException | None] = []
        async with asyncio.timeout(20):
            while True:
                try:
                    (loaded,) = await store.load("default", "m", ["alice"])
                    break
                except StorageError as error:
                    met.append(error.__cause__)
                await asyncio.sleep(0.02)
        assert any(isinstance(one, BusyLoadingError) for one in met)
        assert loaded.tail == [EVENT]
        assert store.generation > generation
        (again,) = await store.append("default", [Append("alice", [EVENT], ["1"])])
        assert not isinstance(again, Exception)
        assert again.flags == "0"
    finally:
        await store.close()
        raw.close()
        server.kill()
        server.wait()


class Loading:
    """A server that says so often that it is loading where it is asked for one of these commands, and then answers."""

    def __init__(self, **times: int) -> None:
        self.times = times
        self.port = 0

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2].decode())
            writer.write(self._reply(words[0].lower(), [word.lower() for word in words[1:]]))
        writer.close()

    def _reply(self, command: str, arguments: list[str]) -> bytes:
        if self.times.get(command, 0) > 0:
            self.times[command] -= 1
            return b"-LOADING Redis is loading the dataset in memory\r\n"
        if command == "info":
            said = b"run_id:1\r\nmaster_replid:2\r\ncluster_enabled:1\r\n"
            return b"$%d\r\n%s\r\n" % (len(said), said)
        if command == "cluster" and arguments == ["slots"]:
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$1\r\na\r\n" % self.port
        if command == "get":
            return b"$5\r\nvalue\r\n"
        return b"*0\r\n" if command == "command" else b"+OK\r\n"


@pytest.fixture
async def loading() -> AsyncIterator[Loading]:
    server = Loading()
    async with await asyncio.start_server(server.connect, "127.0.0.1", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server
        await asyncio.sleep(0.05)  # its connections end after their clients


@pytest.mark.parametrize("kind", [SingleTransport, ClusterTransport])
@pytest.mark.parametrize("times", [{"get": 2}, {"cluster": 2}, {"info": 1}, {"get": 1, "cluster": 1, "info": 1}])
async def test_a_server_that_is_loading_is_away_for_as_long(
    loading: Loading, kind: type[SingleTransport | ClusterTransport], times: dict[str, int]
):
    transport: Transport = kind(
        f"redis://127.0.0.1:{loading.port}", timeout_ms=2_000, max_connections=4, confirm=Confirm(0, False, 0)
    )
    question: Command = ("GET", "key")
    assert await transport.exchange([question]) == [b"value"]
    for round_ in range(2):  # with a connection, and where there is none any more
        loading.times |= times
        refused = 0
        async with asyncio.timeout(5):
            while True:
                try:
                    replies = await transport.exchange([question])
                    break
                except StorageError:
                    refused += 1
        assert replies == [b"value"]
        assert refused >= times.get("get", 0), round_
    await transport.close()
    if isinstance(transport, ClusterTransport):  # of which redis-py closes nothing that was not initialized as a whole
        await transport._cluster.nodes_manager.aclose()
        await transport._cluster.nodes_manager.aclose("startup_nodes")
