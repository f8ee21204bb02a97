"""A Redis that has lost events that the service had seen: what it serves afterwards is the fold of what is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from crashing_redis import CrashingRedis
from redis_process import until

START_MS = 1_300_000_000_000

Start = Callable[..., AbstractAsyncContextManager[Any]]


def events(first_item: int) -> list[dict[str, Any]]:
    return [
        {
            "user_id": "u",
            "item_id": f"item-{item:03d}",
            "type": "purchase",
            "timestamp": START_MS + item * 1000,
        }
        for item in range(first_item, first_item + 5)
    ]


async def tell_until_stored(client: httpx.AsyncClient, some: list[dict[str, Any]]) -> None:
    while (await client.post("/v1/events", json=some)).status_code == 503:
        pass


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="held states are known by epoch and number alone")
async def test_a_worker_does_not_go_on_from_events_that_redis_has_lost(start: Start, tmp_path: Path):
    with CrashingRedis(tmp_path, fsync="everysec") as server:
        async with start(redis_url=server.url) as client:
            until(lambda: 0.2 < time.time() % 1 < 0.4, 2, "a second begins")
            await client.tell(*events(0))
            until(lambda: server.unsynced() == 0, 2, "the first events are synced")
            await client.tell(*events(10))
            assert (await client.ask("u"))["applied_events"] == 10
            assert server.crash() > 0
            server.start()
            # As many as were lost: the numbers of the events say nothing.
            await tell_until_stored(client, events(20))
            served = await client.ask("u")
        with server.client() as raw:
            for key in raw.keys("lw:*:state:*"):
                raw.delete(key)
        async with start(redis_url=server.url) as client:
            rebuilt = await client.ask("u")
    assert served["applied_events"] == rebuilt["applied_events"] == 10
    assert [item["item_id"] for item in served["items"]] == [item["item_id"] for item in rebuilt["items"]]
    assert [item["score"] for item in served["items"]] == pytest.approx([item["score"] for item in rebuilt["items"]], abs=1e-3)
