"""What all workers share about models: which one serves, which one is to be next, and who is alive to serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from app.state import keys
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.transport import Command

ALIVE_MS: Final = 4_000
"""A worker that was not heard for so long is dead: its lease on the model has run out long before."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Which model serves. `generation` grows with each change, 0 before the first; `candidate` is to be the next one."""

    active: str | None
    previous: str | None
    generation: int
    candidate: str | None
    token: str | None
    phase: str | None
    done: int


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker says of itself: the generation it serves, the models that it could serve at once, those it could not open,
    and why, and the token of the candidate that it has seen."""

    generation: int
    ready: list[str]
    failed: dict[str, str]
    token: str | None = None


class ModelBoard:
    """The board where workers read and write these things. Methods raise StorageError."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def serving(self) -> Serving:
        """What the board says now."""
        (pairs,) = await self._store.all([("HGETALL", keys.MODEL_KEY)])
        found = {name.decode(): value.decode() for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
        return Serving(
            active=found.get("active"),
            previous=found.get("previous"),
            generation=int(found.get("generation", 0)),
            candidate=found.get("candidate"),
            token=found.get("token"),
            phase=found.get("phase"),
            done=int(found.get("done", 0)),
        )

    async def first(self, model_id: str) -> bool:
        """Make a model the active one if there is none yet."""
        return await self._change("first", model_id)

    async def begin(self, model_id: str, token: str, now_ms: int, stale: str) -> bool:
        """Make a model the candidate, unless there is one of another token than `stale`, whose worker is dead."""
        return await self._change("begin", model_id, token, now_ms, stale)

    async def progress(self, token: str, phase: Literal["prepare", "backfill"], done: int) -> bool:
        """Say how far the candidate of this token is; False if it is the candidate no more."""
        return await self._change("progress", token, phase, done)

    async def commit(self, token: str, generation: int) -> bool:
        """Make the candidate of this token active, if `generation` is still the one that serves."""
        return await self._change("commit", token, generation)

    async def end(self, token: str) -> bool:
        """Take the candidate of this token away."""
        return await self._change("end", token)

    async def beat(self, worker: str, says: Heartbeat | None, alive_ms: int) -> Mapping[str, Heartbeat]:
        """Say what this worker does (None: it signs off), and hear what those say that were heard in the last `alive_ms`."""
        said = msgspec.json.encode(says) if says is not None else b""
        (flat,) = await self._store.run(script("heartbeat"), [((keys.WORKERS_KEY,), (worker, said, alive_ms))])
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {name.decode(): msgspec.json.decode(what, type=Heartbeat) for name, what in pairs}

    async def beat_of_all(self) -> Mapping[str, Heartbeat]:
        """What the living workers say."""
        return await self.beat("", None, ALIVE_MS)

    async def active_since(self, users: Sequence[tuple[str, str]], since_ms: int) -> list[tuple[str, str]]:
        """Those users who have events, the latest of them at or after a moment (unix ms)."""
        commands: list[Command] = [("HMGET", keys.user_keys(*user).meta, "n", "l") for user in users]
        metas = await self._store.all(commands)
        return [user for user, (n, last) in zip(users, metas, strict=True) if n is not None and int(last) >= since_ms]

    async def users(self) -> AsyncIterator[list[tuple[str, str]]]:
        """Every (tenant, user id) that has a meta of its own, some at a time; one may come twice."""
        async for names in self._store.scan("lw:{*:meta:*"):
            found = (keys.user_of_meta(name) for name in names)
            yield [user for user in found if user is not None]

    async def _change(self, what: str, *arguments: str | int) -> bool:
        (done,) = await self._store.run(script("model"), [((keys.MODEL_KEY,), (what, *arguments))], durable=True)
        return bool(done)
