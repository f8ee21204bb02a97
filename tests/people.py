"""Users of a store, what is kept of them, and stores that end in the middle of something."""

from __future__ import annotations

from typing import Any

import redis

from app.state import keys
from app.state.codec import Header, StateCodec
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append
from app.state.transport import SingleTransport

CODEC = StateCodec([])


def event(n: int) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=n, item_id=str(n))


async def append(store: RedisStore, user: str, *times: int, ids: bool = False) -> str:
    event_ids = [f"id {n}" if ids else None for n in times]
    (appended,) = await store.append("default", [Append(user, [event(n) for n in times], event_ids)])
    return appended.flags


async def times(store: RedisStore, user: str) -> list[int]:
    (loaded,) = await store.load("default", "m", [user])
    return [event.time_ms for event in loaded.tail]


async def commit_all(store: RedisStore, user: str, model: str = "m") -> str:
    (loaded,) = await store.load("default", model, [user])
    assert loaded.meta is not None
    header = Header(loaded.meta.epoch, loaded.tail_start, loaded.meta.appended, 0)
    (result,) = await store.commit_many("default", model, [(loaded.user_id, CODEC.pack(header, {}))])
    return result


def left_of(raw: redis.Redis, *users: str) -> list[str]:
    """Keys that name one of these users."""
    return sorted(key.decode() for key in raw.scan_iter() if any(key.decode().endswith(f":{user}") for user in users))


def log_of(raw: redis.Redis, user: str) -> list[tuple[bytes, ...]]:
    entries = raw.xrange(keys.user_keys("default", user).log)
    return [(fields[b"k"], fields[b"u"]) for _, fields in entries if fields[b"u"] == user.encode()]


class Dies(RedisStore):
    """Ends before its n-th round trip that writes; a process that was killed there."""

    left = 10**9

    async def run(self, script: Any, calls: Any, *, durable: bool = False) -> list[Any]:
        if durable:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
        return await super().run(script, calls, durable=durable)


class Stops(SingleTransport):
    """Does something else before its n-th round trip, reads among them; such as to be killed."""

    left = 10**9

    async def exchange(self, commands: Any, *, durable: bool = False, only: int | None = None) -> list[Any]:
        self.left -= 1
        if self.left == -1:
            await self.meanwhile()
        return await super().exchange(commands, durable=durable, only=only)

    async def meanwhile(self) -> None:
        raise KeyboardInterrupt
