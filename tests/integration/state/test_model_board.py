"""The board that says which model serves: of two that would change it one does, whatever the other believes."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis

from app.state import keys
from app.state.events import StoredEvent
from app.state.models import Heartbeat, ModelBoard, Outcome
from app.state.redis import RedisStore
from app.state.store import Append

OUTCOME = Outcome("new", 0, "active")


@pytest.fixture
async def board(store: RedisStore) -> ModelBoard:
    board = ModelBoard(store)
    assert await board.first("old")
    return board


async def test_a_candidate_keeps_its_place_until_its_worker_is_known_to_be_dead(board: ModelBoard):
    assert await board.begin("one", "token 1", 0, "")
    assert not await board.begin("other", "token 2", 0, "")
    assert not await board.begin("other", "token 2", 0, "token 0")  # a dead one, but not the one that is there
    assert (await board.serving()).candidate == "one"
    assert await board.begin("other", "token 2", 0, "token 1")
    assert (await board.serving()).candidate == "other"


async def test_who_has_lost_its_place_changes_nothing_any_more(board: ModelBoard):
    await board.begin("one", "token 1", 0, "")
    await board.begin("other", "token 2", 0, "token 1")
    before = await board.serving()
    assert not await board.progress("token 1", "backfill", 7)
    assert not await board.commit("token 1", before.generation, OUTCOME)
    assert not await board.end("token 1", OUTCOME)
    assert await board.serving() == before


async def test_a_commit_is_of_the_generation_that_it_was_made_for(board: ModelBoard):
    await board.begin("new", "token", 0, "")
    generation = (await board.serving()).generation
    assert not await board.commit("token", generation - 1, OUTCOME)
    assert (await board.serving()).active == "old"
    assert await board.commit("token", generation, OUTCOME)
    after = await board.serving()
    assert (after.active, after.previous, after.generation, after.candidate) == ("new", "old", generation + 1, None)


async def test_who_has_attributes_alone_is_not_active_whatever_was_merged(board: ModelBoard, store: RedisStore):
    await store.set_attributes("default", "cookie", {"country": "UK"})
    await store.merge("default", "alice", "cookie")
    await store.append("default", [Append("bob", [StoredEvent("view", 5, "i")], [None])])
    users = [("default", name) for name in ("alice", "cookie", "bob", "nobody")]
    assert await board.active_since(users, 5) == [("default", "bob")]
    assert await board.active_since(users, 6) == []


async def test_who_died_before_the_clock_was_set_back_is_dead_soon(board: ModelBoard, raw: redis.Redis):
    says = Heartbeat(1, ["old"], {})
    await board.beat("dead", says, 100)
    (_, said) = raw.hget(keys.WORKERS_KEY, "dead").split(b" ", 1)
    raw.hset(keys.WORKERS_KEY, "dead", b"%d %s" % (time.time() * 1000 + 3_600_000, said))
    assert await board.beat("here", says, 100) == {"dead": says, "here": says}
    await asyncio.sleep(0.2)
    assert await board.beat("here", says, 100) == {"here": says}
