"""A Redis that has lost events that the service had seen: what it serves afterwards is the fold of what is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from crashing_redis import CrashingRedis

START_MS = 1_300_000_000_000
NOBODY_POPULAR_MS = START_MS + 20 * 365 * 86_400_000
"""When nothing is left of any popularity: a crash may lose some of it, which is not what is asked here."""

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


@pytest.mark.parametrize("background_fold", [True, False])
async def test_a_worker_does_not_go_on_from_events_that_redis_has_lost(start: Start, tmp_path: Path, background_fold: bool):
    with CrashingRedis(tmp_path, fsync="everysec") as server:
        async with start(redis_url=server.url, state_cache_mb=16, background_fold=background_fold) as client:
            await client.tell(*events(0))
            server.sync()
            server.stop_syncing()
            await client.tell(*events(10))
            assert (await client.ask("u"))["applied_events"] == 10
            assert server.crash() > 0
            server.start()
            # As many as were lost: the numbers of the events say nothing.
            await tell_until_stored(client, events(20))
            served = await client.ask("u", as_of=NOBODY_POPULAR_MS)
        with server.client() as raw:
            for key in raw.keys("lw:*:state:*"):
                raw.delete(key)
        async with start(redis_url=server.url) as client:
            rebuilt = await client.ask("u", as_of=NOBODY_POPULAR_MS)
    assert (served["applied_events"], rebuilt["applied_events"]) == (10, 10)
    assert [item["item_id"] for item in served["items"]] == [item["item_id"] for item in rebuilt["items"]]
    assert [item["score"] for item in served["items"]] == pytest.approx([item["score"] for item in rebuilt["items"]], abs=1e-3)
