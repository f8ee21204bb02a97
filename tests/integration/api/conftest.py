"""The whole service in this process, on the tiny bundle and a real Redis."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import app.main
from app.main import create_app, load_first
from app.runtime.session import Runtime
from app.settings import Settings, load_settings

START_MS = 1_300_000_000_000

ROOT = str(Path(__file__).parents[3])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)  # for loadtests, which are part of the checkout, not of the package

Start = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


_opened: dict[Path, Runtime] = {}


def _load_first(settings: Settings) -> Runtime:
    if settings.bundle_dir not in _opened:
        _opened[settings.bundle_dir] = load_first(settings)
    return _opened[settings.bundle_dir]


class Client(httpx.AsyncClient):
    """An HTTP client with the three calls that every test makes."""

    async def tell(self, *events: dict[str, Any]) -> dict[str, Any]:
        response = await self.post("/v1/events", json=list(events))
        assert response.status_code == 200, response.text
        return json.loads(response.content)

    async def ask(self, user_id: str, **parameters: Any) -> dict[str, Any]:
        response = await self.get(f"/v1/users/{user_id}/recommendations", params={"as_of": START_MS + 10**9} | parameters)
        assert response.status_code == 200, response.text
        return json.loads(response.content)

    async def profile(self, user_id: str) -> dict[str, Any]:
        response = await self.get(f"/v1/users/{user_id}")
        assert response.status_code == 200, response.text
        return json.loads(response.content)


@pytest.fixture
def start(tiny_bundle: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a service on an empty Redis: `async with start(max_sequence=10) as client`.

    The background fold is off unless asked for, every state is committed at once, and none is
    held in memory: what is asked comes from the store. A bundle that was opened once is opened: that takes most of a start.
    """
    monkeypatch.setattr(app.main, "load_first", _load_first)

    @asynccontextmanager
    async def running(**settings: Any) -> AsyncIterator[Client]:
        chosen = {
            "bundle_dir": tiny_bundle,
            "redis_url": redis_url,
            "background_fold": False,
            "fold_delay_ms": 0,
            "commit_events": 1,
            "commit_delay_ms": 0,
            "state_cache_mb": 0,
        } | settings
        service = create_app(load_settings(**chosen))
        transport = httpx.ASGITransport(service, raise_app_exceptions=False)
        async with service.router.lifespan_context(service), Client(transport=transport, base_url="http://service") as client:
            yield client

    return running


@pytest.fixture
async def client(start: Start) -> AsyncIterator[Client]:
    async with start() as client:
        yield client


def event(user_id: str, item: int, seconds: int = 0, type: str = "purchase", **fields: Any) -> dict[str, Any]:
    """An event on item row `item`, `seconds` after START_MS."""
    return {"user_id": user_id, "item_id": f"item-{item:03d}", "type": type, "timestamp": START_MS + seconds * 1000} | fields


def history(user_id: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """n events of mixed types, items and gaps; the same for every user."""
    import random

    rng = random.Random(seed)
    return [
        event(
            user_id,
            rng.randrange(60),
            60 * i,
            rng.choice(["purchase", "purchase", "view", "cancellation"]),
            quantity=rng.randrange(9),
        )
        for i in range(n)
    ]


def same_list(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Assert that two answers hold the same items with the same scores, to float noise."""
    assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]
    assert [item["score"] for item in one["items"]] == pytest.approx([item["score"] for item in other["items"]], abs=1e-3)
