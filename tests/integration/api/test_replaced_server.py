"""A server that is replaced between its answer to a write and the moment when the service takes note of that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import redis
from conftest import Start, event, same_list

from app.state import keys
from app.state.redis import RedisStore
from app.state.store import Append, Appended


async def test_an_event_that_a_successor_lacks_is_in_no_state(start: Start, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch):
    append = RedisStore.append

    async def stored_where_nobody_looks_any_more(
        store: RedisStore, tenant: str, batches: Sequence[Append]
    ) -> list[Appended | Exception]:
        answers = await append(store, tenant, batches)
        of_user = keys.user_keys(tenant, batches[0].user_id)
        raw.rpop(of_user.seq)  # the successor never had it
        raw.hincrby(of_user.meta, "n", -1)
        store._transport.generation += 1  # another connection has just met it
        return answers

    async with start(background_fold=True, fold_delay_ms=200, state_cache_mb=32, commit_events=32) as client:
        for user in ("u", "twin"):
            await client.tell(event(user, 1), event(user, 2))
        await client.ask("u")
        await asyncio.sleep(0.6)  # nobody waits for the fold
        with monkeypatch.context() as patched:
            patched.setattr(RedisStore, "append", stored_where_nobody_looks_any_more)
            await client.tell(event("u", 40, 10))
        assert (await client.ask("u"))["applied_events"] == 2  # and is held as the successor has it
        await asyncio.sleep(0.6)  # the fold comes to it
        for user in ("u", "twin"):
            await client.tell(event(user, 3, 20))
        ours, twins = await client.ask("u"), await client.ask("twin")
        assert ours["applied_events"] == twins["applied_events"] == 3
        same_list(ours, twins)
