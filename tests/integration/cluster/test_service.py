"""The whole service on a cluster: what its clients see of a failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from on_cluster import users_of
from redis_cluster import RedisCluster, slot_of

import app.main
from app.main import create_app, load_first
from app.runtime.session import Runtime
from app.settings import load_settings

AS_OF = 1_400_000_000_000
SLOT = slot_of("{00}")
USERS = [*users_of("00", 2), *users_of("55", 2), *users_of("aa", 2)]

Start = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Runtime:
    return load_first(load_settings(bundle_dir=tiny_bundle))


@pytest.fixture
def start(opened: Runtime, tiny_bundle: Path, cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a service that acknowledges what one replica has."""
    monkeypatch.setattr(app.main, "load_first", lambda settings: opened)

    @asynccontextmanager
    async def running(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        chosen = {
            "bundle_dir": tiny_bundle,
            "redis_url": cluster.url,
            "redis_cluster": True,
            "redis_wait_replicas": 1,
            "redis_wait_ms": 200,
            "redis_timeout_ms": 500,
        }
        service = create_app(load_settings(**chosen | settings))
        transport = httpx.ASGITransport(service, raise_app_exceptions=False)
        async with (
            service.router.lifespan_context(service),
            httpx.AsyncClient(transport=transport, base_url="http://s") as client,
        ):
            yield client

    return running


def event(user: str, n: int) -> dict[str, Any]:
    return {
        "user_id": user,
        "event_id": f"{n}",
        "item_id": f"item-{n % 60:03d}",
        "type": "purchase",
        "timestamp": 1_300_000_000_000 + n,
    }


async def ask(client: httpx.AsyncClient, user: str) -> dict[str, Any]:
    response = await client.get(f"/v1/users/{user}/recommendations?as_of={AS_OF}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def tell(client: httpx.AsyncClient, some: dict[str, Any]) -> int:
    """Until it is acknowledged; how often it was refused before."""
    refused = 0
    while True:
        response = await client.post("/v1/events", json=some)
        if response.status_code == 200:
            return refused
        refused += 1
        assert response.status_code == 503, response.text
        assert "retry-after" in response.headers
        await asyncio.sleep(0.02)


async def test_clients_that_retry_lose_nothing_in_a_failover_and_read_what_they_wrote(cluster: RedisCluster, start: Start):
    acknowledged = dict.fromkeys(USERS, 0)
    degraded = refused = 0
    stopping = asyncio.Event()

    async def visit(user: str) -> None:
        nonlocal degraded, refused
        while not stopping.is_set():
            refused += await tell(client, event(user, acknowledged[user]))
            acknowledged[user] += 1
            answer = await ask(client, user)
            if answer["degraded"]:
                degraded += 1
            else:
                assert answer["applied_events"] == acknowledged[user]

    async with start() as client:
        visitors = [asyncio.create_task(visit(user)) for user in USERS]
        await asyncio.sleep(0.3)
        cluster.kill_master(SLOT)
        await asyncio.to_thread(cluster.wait_failover, SLOT)
        cluster.revive()
        await asyncio.sleep(0.5)
        stopping.set()
        await asyncio.gather(*visitors)
        assert degraded + refused > 0  # they met the outage
        for user in USERS:
            assert (await ask(client, user))["applied_events"] == acknowledged[user]


async def test_an_event_that_was_seen_before_it_was_confirmed_and_then_lost_leaves_no_trace(cluster: RedisCluster, start: Start):
    user = USERS[0]
    async with start() as client:
        await tell(client, event(user, 0))
        replica = await asyncio.to_thread(cluster.cut_off_replica, SLOT)
        assert (await client.post("/v1/events", json=event(user, 1))).status_code == 503
        assert (await ask(client, user))["applied_events"] == 2  # stored on the master alone, and seen
        cluster.kill_master(SLOT)
        cluster.take_over(replica)
        cluster.revive()
        await tell(client, event(user, 2))
        served = await ask(client, user)
    for master in cluster.masters:
        for key in master.client.keys("lw:*:state:*"):
            master.client.delete(key)
    async with start() as client:
        rebuilt = await ask(client, user)
    assert served["applied_events"] == rebuilt["applied_events"] == 2
    assert [item["item_id"] for item in served["items"]] == [item["item_id"] for item in rebuilt["items"]]
