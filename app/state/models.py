"""What all workers share about models: which one serves, which one is to be next, and who is alive to serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from app.errors import DamagedError
from app.state import keys
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.transport import Command

ALIVE_MS: Final = 4_000
"""A worker that was not heard for so long is dead: its lease on the model has run out long before."""


class Outcome(msgspec.Struct, frozen=True):
    """How an activation ended.

    `active`: the model serves, and `reason` is None or says what is not right yet. `refused`: it could not be verified. `failed`:
    something else came in between. Unless it is active, what served before goes on serving.
    """

    model_id: str
    at_ms: int
    result: Literal["active", "refused", "failed"]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """Which model serves. `generation` grows with each change, 0 before the first; `candidate` is to be the next one.

    `last` is how the last activation ended, `past` the models that are not new (active before, or there when the service was
    started), `refused` the signatures of the files of those that could not be verified, by model id or folder.
    """

    active: str | None
    previous: str | None
    generation: int
    candidate: str | None
    token: str | None
    phase: str | None
    done: int
    last: Outcome | None = None
    past: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)


class Heartbeat(msgspec.Struct, frozen=True):
    """What a worker says of itself: the generation it serves, the models that it could serve at once, those it could not open,
    and why, the token of the candidate that it has seen, and, if it looks for new bundles, the signatures of the complete ones.
    """

    generation: int
    ready: list[str]
    failed: dict[str, str]
    token: str | None = None
    sees: dict[str, str] | None = None


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
            last=msgspec.json.decode(found["last"], type=Outcome) if found.get("last") else None,
            past=frozenset([*found.get("past", "").split(), *(found[f] for f in ("active", "previous") if found.get(f))]),
            refused={unquote(name): sign for name, _, sign in (one.partition(":") for one in found.get("refused", "").split())},
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

    async def commit(self, token: str, generation: int, outcome: Outcome) -> bool:
        """Make the candidate of this token active, if `generation` is still the one that serves."""
        return await self._change("commit", token, generation, msgspec.json.encode(outcome))

    async def end(self, token: str, outcome: Outcome) -> bool:
        """Take the candidate of this token away, which did not become active."""
        return await self._change("end", token, msgspec.json.encode(outcome))

    async def said(self, outcome: Outcome) -> bool:
        """Say more of the activation of the model that is active."""
        return await self._change("said", outcome.model_id, msgspec.json.encode(outcome))

    async def know(self, model_ids: Iterable[str]) -> bool:
        """Say that these models are not new."""
        return await self._change("know", *model_ids)

    async def refuse(self, name: str, signature: str) -> bool:
        """Remember that the bundle of this model id, or in this folder, cannot be verified as its files are."""
        return await self._change("refuse", keys.encode_id(name), signature)

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
        commands: list[Command] = [("HGET", keys.user_keys(*user).meta, "l") for user in users]
        try:
            times = await self._store.all(commands)
        except DamagedError:  # and nothing is known of that one
            if len(users) == 1:
                return []
            return [active for user in users for active in await self.active_since([user], since_ms)]
        return [user for user, last in zip(users, times, strict=True) if self._is_since(user, last, since_ms)]

    def _is_since(self, user: tuple[str, str], last: bytes | None, since_ms: int) -> bool:
        try:
            return last is not None and self._store.damage.number(keys.user_keys(*user).meta, last) >= since_ms
        except DamagedError:
            return False

    async def users(self) -> AsyncIterator[list[tuple[str, str]]]:
        """Every (tenant, user id) that has a meta of its own, some at a time; one may come twice."""
        async for names in self._store.scan("lw:{*:meta:*"):
            found = (keys.user_of_meta(name) for name in names)
            yield [user for user in found if user is not None]

    async def _change(self, what: str, *arguments: str | int | bytes) -> bool:
        (done,) = await self._store.run(script("model"), [((keys.MODEL_KEY,), (what, *arguments))], durable=True)
        return bool(done)
