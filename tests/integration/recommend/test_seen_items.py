"""Seen items, remembered from one read to the next, against a plain set of the stored sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.catalogue.catalogue import Catalogue
from app.errors import StorageError
from app.fold import UserState
from app.recommend import seen as module
from app.recommend.ruleset import HadRule
from app.recommend.seen import ALL, SeenItems
from app.state.codec import Header
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append, Loaded

OpenStore = Callable[..., Awaitable[RedisStore]]

ITEMS = 6  # in the catalogue; events name some more, and some name none
BOUND = 5
IDS = [f"i{row}" for row in range(ITEMS)]
CATALOGUE = Catalogue(IDS, IDS, [()] * ITEMS, np.zeros((ITEMS, 2), np.float32), np.zeros(ITEMS, np.float32))


class WatchedStore(RedisStore):
    """Counts the events that are read."""

    read = 0
    away = False

    async def load(self, *arguments: Any) -> list[Loaded]:
        if self.away:
            raise StorageError("away")
        loaded = await super().load(*arguments)
        self.read += sum(len(user.tail) for user in loaded)
        return loaded


@pytest.fixture
async def watched(redis_url: str):
    store = WatchedStore(redis_url, max_sequence=BOUND)
    yield store
    await store.close()


def event(item: int | None, time_ms: int = 0) -> StoredEvent:
    return StoredEvent("purchase", time_ms, None if item is None else f"i{item}", text="words")


async def append(store: RedisStore, user_id: str, *items: int | None, time_ms: int = 0) -> None:
    await store.append("default", [Append(user_id, [event(item, time_ms) for item in items], [None] * len(items))])


async def state_of(store: RedisStore, user_id: str) -> UserState:
    """The user as a read loads it, before it asks for what was seen."""
    (loaded,) = await RedisStore.load(store, "default", "m", [user_id])
    assert loaded.meta is not None
    return UserState(loaded.user_id, loaded.meta, Header(loaded.meta.epoch, 0, loaded.meta.appended, 0), b"")


async def plain(store: RedisStore, user_id: str) -> list[int]:
    items = {event.item_id for event in await store.recent("default", user_id, 10**6)}
    return [row for row, item in enumerate(IDS) if item in items]


async def check(seen: SeenItems, store: RedisStore, user_id: str) -> None:
    assert sorted(await seen.rows("default", await state_of(store, user_id), ALL, 0)) == await plain(store, user_id)


ITEM = st.one_of(st.integers(0, ITEMS + 1), st.none())
STEPS = st.one_of(
    st.tuples(st.just("append"), st.sampled_from("ab"), st.lists(ITEM, min_size=1, max_size=BOUND + 3)),
    st.tuples(st.just("ask"), st.sampled_from("ab"), st.just([])),
    st.tuples(st.just("rewrite"), st.sampled_from("ab"), st.lists(ITEM, min_size=1, max_size=3)),
    st.tuples(st.just("erase"), st.sampled_from("ab"), st.just([])),
    st.tuples(st.just("attributes"), st.sampled_from("ab"), st.lists(ITEM, min_size=1, max_size=1)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=1, max_size=15), st.sampled_from([10**6, 7, 0]))
@example([("append", "a", [0, 1, 0]), ("ask", "a", []), ("append", "a", [2, 3, 4])], 10**6)  # one of the two zeros has left
@example([("append", "a", [0, None]), ("ask", "a", []), ("append", "a", [1] * (BOUND + 1))], 10**6)  # all that was known has left
@example([("append", "a", [0] * BOUND), ("ask", "a", []), ("rewrite", "a", [1])], 10**6)
@example([("append", "a", [0, 1]), ("ask", "a", []), ("erase", "a", []), ("append", "a", [2, 3])], 10**6)  # as many as before
async def test_what_was_seen_is_what_the_stored_sequence_has(redis_url: str, monkeypatch, steps, most: int):
    store = RedisStore(redis_url, max_sequence=BOUND)
    try:
        await store.all([("FLUSHALL",)])
        await store.open()
        monkeypatch.setattr(module, "_MOST_EVENTS", most)
        seen = SeenItems(store, CATALOGUE)
        for number, (step, user_id, items) in enumerate([*steps, ("ask", "a", []), ("ask", "b", [])]):
            if step == "append":
                await append(store, user_id, *items, time_ms=2 * number)
            elif step == "rewrite":
                made = [event(item, number) for item in items]
                await store.write_history("default", user_id, made, [None] * len(made), f"{number}")
            elif step == "erase":
                await store.erase("default", user_id, 0)
            elif step == "attributes":
                await store.set_attributes("default", user_id, {"a": str(items[0])})
            elif await store.recent("default", user_id, 1):
                await check(seen, store, user_id)
    finally:
        await store.close()


async def test_a_read_costs_what_is_new_and_not_the_history(watched: WatchedStore):
    seen = SeenItems(watched, CATALOGUE)
    await append(watched, "u", 0, 1, 2)
    await check(seen, watched, "u")
    await check(seen, watched, "u")
    assert watched.read == 3
    await append(watched, "u", 3)
    await check(seen, watched, "u")
    assert watched.read == 4


async def test_an_item_that_arrives_costs_no_history_and_is_what_the_user_had(watched: WatchedStore):
    catalogue = Catalogue(IDS, IDS, [()] * ITEMS, np.zeros((ITEMS, 2), np.float32), np.zeros(ITEMS, np.float32))
    seen = SeenItems(watched, catalogue)
    types = [HadRule(types=["purchase"])]
    await append(watched, "u", 0, ITEMS, ITEMS, ITEMS + 1)
    user = await state_of(watched, "u")
    for rules in (ALL, types):
        assert await seen.rows("default", user, rules, 0) == [0]
    for came, expected in [("other", [0]), (f"i{ITEMS}", [0, ITEMS + 1]), (f"i{ITEMS + 1}", [0, ITEMS + 1, ITEMS + 2])]:
        catalogue.put(came, None, None)
        catalogue.settle(1)
        for rules in (ALL, types):
            assert sorted(await seen.rows("default", user, rules, 0)) == expected
    assert watched.read == 4
    await append(watched, "u", *[1] * (BOUND - 1))  # one of two events of that item is left, the other one's is not
    assert sorted(await seen.rows("default", await state_of(watched, "u"), ALL, 0)) == [1, ITEMS + 2]
    await append(watched, "u", 1)
    assert await seen.rows("default", await state_of(watched, "u"), ALL, 0) == [1]
    assert watched.read == 9


async def test_users_who_asked_longest_ago_are_forgotten_beyond_the_bound(watched: WatchedStore, monkeypatch):
    monkeypatch.setattr(module, "_MOST_EVENTS", 8)
    seen = SeenItems(watched, CATALOGUE)
    for user in "abc":
        await append(watched, user, 0, 1, 2)
    for user in "abac":  # with c there are nine: b goes
        await check(seen, watched, user)
    assert watched.read == 9
    await check(seen, watched, "a")
    assert watched.read == 9
    await check(seen, watched, "b")
    assert watched.read == 12


async def test_reads_of_one_user_at_the_same_time_are_remembered_once(watched: WatchedStore, monkeypatch):
    monkeypatch.setattr(module, "_MOST_EVENTS", 6)
    seen = SeenItems(watched, CATALOGUE)
    for user in "ab":
        await append(watched, user, 0, 1, 2)
    for _ in range(50):
        # New events each time, so that all of them must look; as one batch of the recommender has them.
        await append(watched, "a", 0, 1, 2)
        user = await state_of(watched, "a")
        rows = await asyncio.gather(*(seen.rows("default", user, ALL, 0) for _ in range(4)))
        assert [sorted(one) for one in rows] == [[0, 1, 2]] * 4
    watched.read = 0
    for _ in range(2):
        await check(seen, watched, "a")
    assert watched.read == 0  # it is still there: nothing counts twice


async def test_events_that_came_after_the_read_began_may_be_seen_and_are_not_lost(watched: WatchedStore):
    seen = SeenItems(watched, CATALOGUE)
    await append(watched, "u", 0, 1, 2)
    before = await state_of(watched, "u")
    await append(watched, "u", 3, 4, 5)  # 0 has left
    assert set(await seen.rows("default", before, ALL, 0)) >= {1, 2}
    await check(seen, watched, "u")
    assert set(await seen.rows("default", before, ALL, 0)) >= {1, 2}  # a slower read of before, once more
    await append(watched, "u", 0)
    await check(seen, watched, "u")


async def test_storage_that_was_away_forgets_nothing_wrongly(watched: WatchedStore):
    seen = SeenItems(watched, CATALOGUE)
    await append(watched, "u", 0, 1)
    await check(seen, watched, "u")
    await append(watched, "u", 2)
    user, watched.away = await state_of(watched, "u"), True
    with pytest.raises(StorageError):
        await seen.rows("default", user, ALL, 0)
    watched.away = False
    await check(seen, watched, "u")
