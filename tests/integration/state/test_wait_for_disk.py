"""`redis_wait_fsync`: a write counts when the server says that it is on disk.

WAITAOF is Redis 7.2's and Valkey's, so a Valkey is asked. Whether it says the truth is not tested: under `everysec`
Valkey 9.1.2 answers too early (docs/guide.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from crashing_redis import CrashingRedis
from redis_process import valkey_server

from app.errors import StorageError
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import DUPLICATE, STORED, Append
from app.state.transport import Confirm

NOTHING = Confirm(replicas=0, fsync=False, timeout_ms=0)
ON_DISK = Confirm(replicas=0, fsync=True, timeout_ms=5_000)


def batches(round_: int) -> list[Append]:
    """One event of each of 20 users, that may be told again."""
    event = StoredEvent(type="purchase", time_ms=round_, item_id="1")
    return [Append(f"user {user}", [event], [f"{round_}"]) for user in range(20)]


@asynccontextmanager
async def opened(url: str, confirm: Confirm = NOTHING) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, confirm=confirm, timeout_ms=5_000)
    try:
        yield store
    finally:
        await store.close()


async def test_what_is_on_disk_is_acknowledged_also_when_the_server_has_forgotten_the_script(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="always", binary=valkey_server()) as server:
        async with opened(server.url, ON_DISK) as store:
            for round_ in range(2):
                assert {appended.flags for appended in await store.append("default", batches(round_))} == {STORED}
                with server.client() as client:
                    client.script_flush()
        assert server.crash() == 0


async def test_what_is_not_on_disk_in_time_is_not_acknowledged_and_may_be_told_again(tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="everysec", binary=valkey_server()) as server:
        server.stop_syncing()
        async with opened(server.url, Confirm(0, True, 100)) as impatient:
            for _ in range(2):  # also while the script is known
                with pytest.raises(StorageError, match=r"stored, but confirmed by .* not on disk"):
                    await impatient.append("default", batches(0))
        with server.client() as client:
            client.config_set("appendfsync", "everysec")
        async with opened(server.url, ON_DISK) as patient:
            assert {appended.flags for appended in await patient.append("default", batches(0))} == {DUPLICATE}


@pytest.mark.parametrize("server", ["too old", "without a file"])
async def test_a_server_that_cannot_confirm_it_says_so(redis_url: str, tmp_path: Path, server: str):
    with ExitStack() as stack:
        url = redis_url
        if server == "without a file":
            valkey = stack.enter_context(CrashingRedis(tmp_path, binary=valkey_server()))
            with valkey.client() as client:
                client.config_set("appendonly", "no")
            url = valkey.url
        async with opened(url, ON_DISK) as store:
            with pytest.raises(StorageError, match=r"cannot confirm writes as the settings demand: .*WAITAOF"):
                await store.append("default", batches(0))
