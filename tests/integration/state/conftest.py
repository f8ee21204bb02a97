from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import redis
from people import CODEC, Stops

from app.state import keys
from app.state.codec import Header
from app.state.redis import RedisStore
from app.state.transport import Confirm


@pytest.fixture
async def stopping(redis_url: str) -> AsyncIterator[tuple[RedisStore, Stops]]:
    """A store on a transport that stops."""
    store = RedisStore(redis_url)
    await store.open()
    await store.close()
    stops = store._transport = Stops(redis_url, timeout_ms=2_000, max_connections=4, confirm=Confirm(0, False, 0))
    yield store, stops
    await store.close()


@pytest.fixture
def registered_late(store: RedisStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Once a store has read which models there are, a worker registers one more, and its backfill stores the states of some users
    under it; what came of those."""

    def after(reading: RedisStore, *users: str) -> list[str]:
        results: list[str] = []

        async def read() -> dict[str, str]:
            found = await RedisStore.models(reading)
            monkeypatch.undo()
            await store.register_model("late", "{}")
            for user in users:
                epoch = raw.hget(keys.user_keys("default", user).meta, "e")
                assert isinstance(epoch, bytes)
                header = Header(epoch, 0, 1, 0)
                results.extend(await store.commit_many("default", "late", [(user, CODEC.pack(header, {}))]))
            return found

        monkeypatch.setattr(reading, "models", read)
        return results

    return after
