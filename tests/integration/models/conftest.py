"""Two services on one Redis, as two workers, and a folder with two models."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import load_settings

START_MS = 1_300_000_000_000
AS_OF_MS = START_MS + 10**9


class Worker(httpx.AsyncClient):
    """An HTTP client of one service, and the service behind it."""

    app: Any

    @property
    def hall(self) -> Any:
        return self.app.state.hook.models.hall

    async def tell(self, *events: dict[str, Any]) -> None:
        response = await self.post("/v1/events", json=list(events))
        assert response.status_code == 200, response.text

    async def ask(self, user_id: str, k: int = 10) -> dict[str, Any]:
        response = await self.get(f"/v1/users/{user_id}/recommendations", params={"as_of": AS_OF_MS, "k": k})
        assert response.status_code == 200, response.text
        return json.loads(response.content)

    async def activate(self, model_id: str, **parameters: Any) -> httpx.Response:
        return await self.post(f"/v1/models/{model_id}/activate", params=parameters)

    async def stop_following(self) -> None:
        """Neither look which model is active nor say that this worker lives, as if it stood still."""
        for task in (self.hall._following, self.hall._looking):
            while task is not None and not task.done():  # a client of Redis may swallow a cancellation
                task.cancel()
                await asyncio.wait([task], timeout=0.05)

    async def says_that_it_has(self, model_id: str) -> None:
        """Follow by hand (after `stop_following`) until this model is opened and the others know, and no further."""
        said: Sequence[str] = ()
        while model_id not in said:
            await self.hall.follow_once()
            said = (await self.hall.board.beat_of_all())[self.hall.worker].ready
            await asyncio.sleep(0.01)

    async def models(self) -> dict[str, Any]:
        return json.loads((await self.get("/v1/models")).content)


@pytest.fixture(scope="session")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A folder with two bundles, each named by its model id, and these ids. Do not write into it; copy it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the exporter that we use on purpose
        from tiny_bundle import write_tiny_bundle

        folder = tmp_path_factory.mktemp("bundles")
        ids = []
        for seed in (0, 1):
            bundle = write_tiny_bundle(folder / "new", seed=seed)
            ids.append(json.loads((bundle / "manifest.json").read_bytes())["model_id"])
            bundle.rename(folder / ids[-1])
    return folder, ids[0], ids[1]


@pytest.fixture
def start(redis_url: str):
    """Start a worker: `async with start(folder, first_model_id) as worker`."""

    @asynccontextmanager
    async def running(folder: Path, first: str, **settings: Any) -> AsyncIterator[Worker]:
        chosen = {"redis_url": redis_url, "model_poll_ms": 20, "activation_timeout_s": 30, "backfill_days": 36_500} | settings
        app = create_app(load_settings(bundle_dir=folder / first, bundles_dir=folder, **chosen))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), Worker(transport=transport, base_url="http://w", timeout=30) as worker:
            worker.app = app
            yield worker

    return running


def event(user_id: str, item: int, n: int = 0) -> dict[str, Any]:
    return {"user_id": user_id, "item_id": f"item-{item % 60:03d}", "type": "purchase", "timestamp": START_MS + 60_000 * n}
