"""Writers who send again, merges of users whose windows of ids are full, and erasures, all at once and cut off anywhere: nothing
is lost, nothing is there twice, and nothing that was erased comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from app.errors import ConflictError, StorageError
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import ERASED, Append

USERS = [f"user {n}" for n in range(16)]
WINDOW = 600  # ids; a retry comes soon, but a few merges may come in between, and each leaves half of the window to each side
BATCHES = 150  # of each writer


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Sent:
    """An event: whose, when it was sent first, when it was acknowledged first."""

    user: str
    began_s: float
    acked_s: float = 0.0
    refused: bool = False


@dataclass
class World:
    """What was done, as its clients saw it."""

    random: Random
    stores: list[RedisStore]
    sent: dict[str, Sent] = field(default_factory=dict)
    erased: list[tuple[float, float, frozenset[str]]] = field(default_factory=list)  # began, ended, identities
    given_up: list[tuple[float, float]] = field(default_factory=list)  # erasures of somebody: may have been done, or not
    writing: int = 0

    async def tell(self, user: str, names: list[str], time_ms: int) -> None:
        """Until it is acknowledged, as a client does."""
        events = [StoredEvent("view", time_ms, name) for name in names]
        for name in names:
            self.sent.setdefault(name, Sent(user, time.monotonic()))
        while True:
            with contextlib.suppress(StorageError, ConflictError):
                (answer,) = await self.random.choice(self.stores).append("default", [Append(user, events, [*names])])
                if not isinstance(answer, Exception):
                    break
            await asyncio.sleep(0.005)
        for name, flag in zip(names, answer.flags, strict=True):
            if flag == ERASED and not self.sent[name].acked_s:
                self.sent[name].refused = True  # such as one that came after its user was merged with one who had been erased
            self.sent[name].acked_s = self.sent[name].acked_s or time.monotonic()

    async def write(self, writer: int) -> None:
        self.writing += 1
        told: list[tuple[str, list[str], int]] = []
        for n in range(BATCHES):
            if told and self.random.random() < 0.4:
                await self.tell(*self.random.choice(told[-4:]))  # the answer was lost
            names = [f"{writer} {n} {i}" for i in range(self.random.randrange(1, 4))]
            told.append((self.random.choice(USERS), names, time.time_ns() // 1_000_000 - self.random.randrange(3)))
            await self.tell(*told[-1])
            await asyncio.sleep(self.random.random() * 0.004)
        self.writing -= 1

    async def merge(self) -> None:
        while self.writing:
            target, source = self.random.sample(USERS, 2)
            store = self.random.choice(self.stores)
            with contextlib.suppress(ConflictError, StorageError):
                await store.merge("default", target, source)
            await asyncio.sleep(self.random.random() * 0.05)

    async def merge_and_die(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        exchange = store._transport.exchange
        left = 0

        async def dies(*arguments: Any, **more: Any) -> list[Any]:
            nonlocal left
            left -= 1
            if left == 0 and self.random.random() < 0.5:
                raise Killed
            replies = await exchange(*arguments, **more)
            if left <= 0:
                raise Killed
            return replies

        monkeypatch.setattr(store._transport, "exchange", dies)
        while self.writing:
            left = self.random.randrange(1, 20)
            with contextlib.suppress(ConflictError, StorageError, Killed):
                await store.merge("default", *self.random.sample(USERS, 2))
            await asyncio.sleep(self.random.random() * 0.05)

    async def erase(self) -> None:
        while self.writing:
            await asyncio.sleep(self.random.random() * 0.3)
            began_s = time.monotonic()
            store, user = self.random.choice(self.stores), self.random.choice(USERS)
            try:
                erased = await store.erase("default", user, time.time_ns() // 1_000_000)
                self.erased.append((began_s, time.monotonic(), frozenset(erased.identities)))
            except (ConflictError, StorageError):
                self.given_up.append((began_s, time.monotonic()))

    async def held(self) -> Counter[str]:
        found: dict[str, list[str]] = {}
        for user in USERS:
            (loaded,) = await self.stores[0].load("default", "m", [user])
            found[loaded.user_id] = [str(event.item_id) for event in loaded.tail]
            assert loaded.meta is None or loaded.meta.appended == len(loaded.tail)
        return Counter(name for names in found.values() for name in names)


@pytest.mark.parametrize("erasing", [False, True], ids=["merging", "erasing"])
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_at_once_everybody_has_what_is_theirs_once(open_store, monkeypatch, seed: int, erasing: bool):
    stores = [await open_store(dedupe_window=WINDOW) for _ in range(2)]
    world = World(Random(seed), stores)
    for user in USERS:  # every window is full
        await world.tell(user, [f"{user} before {n}" for n in range(WINDOW)], time.time_ns() // 1_000_000)
    dying = await open_store(dedupe_window=WINDOW)
    doing = [*(world.write(n) for n in range(4)), world.merge(), world.merge_and_die(dying, monkeypatch)]
    await asyncio.gather(*doing, *([world.erase()] if erasing else []))
    held = await world.held()
    assert held.keys() <= world.sent.keys()
    for name, sent in world.sent.items():
        assert held[name] <= 1, f"{name} is there {held[name]} times"
        erasures = [(began, ended) for began, ended, identities in world.erased if sent.user in identities]
        # Refused: may be taken when it is sent again, when others are who its user is. Told while its user was being erased: may
        # count as told before it or after it.
        if sent.refused or any(began < sent.acked_s and ended > sent.began_s for began, ended in erasures):
            continue
        if any(began >= sent.acked_s for began, _ in erasures):
            assert name not in held, f"{name} has come back"
        elif all(ended <= sent.began_s for _, ended in world.given_up):
            assert name in held, f"{name} is lost"
    assert not erasing or len(world.erased) > 1
    assert len(world.given_up) < 3
