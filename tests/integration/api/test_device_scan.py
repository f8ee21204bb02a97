"""The service with its items in segments on a device, played on the CPU, beside the same service without."""

from __future__ import annotations

import asyncio
import json
import random
import shutil

import onnxruntime as ort
import pytest
from conftest import START_MS, event

from app.runtime import session
from app.runtime.device import CPU, Device
from loadtests.large_bundle import item_id, write_large_bundle

ITEMS = 3_000
MOMENT = START_MS + 10**9


@pytest.fixture
async def both(start, tiny_bundle, tmp_path, monkeypatch):
    """A service with segments of 1,024 items, and one with all in one piece, on one Redis."""
    monkeypatch.setattr("app.recommend.device.FEW", 100)
    plain_folder = write_large_bundle(tiny_bundle, ITEMS, tmp_path / "plain")
    away_folder = shutil.copytree(plain_folder, tmp_path / "away")
    settings = {"storage_dir": tmp_path, "catalogue_poll_ms": 20, "retrieval": "exact"}
    async with start(**settings, bundle_dir=plain_folder) as plain:
        monkeypatch.setattr(session, "choose_device", lambda *_: Device("cuda", "a test says so", (CPU,)))
        async with start(**settings, bundle_dir=away_folder, segment_rows=1_024) as away:
            yield away, plain


async def ask(client, user_id, **fields):
    response = await client.post("/v1/recommendations", json={"user_id": user_id, "k": 50, "as_of": MOMENT} | fields)
    assert response.status_code == 200, response.text
    return [(item["item_id"], item["score"]) for item in json.loads(response.content)["items"]]


async def same(both, user_id, **fields):
    found, right = await asyncio.gather(*(ask(client, user_id, **fields) for client in both))
    assert len(found) == len(right) > 0
    for (item, score), (of_right, right_score) in zip(found, right, strict=True):
        assert score == pytest.approx(right_score, abs=1e-4)
        assert item == of_right or score == pytest.approx(right_score, abs=1e-5)
    return found


async def ready(client):
    return (await client.get("/readyz")).json()


async def test_a_device_gives_the_lists_of_a_cpu_under_every_rule_and_through_every_change(both):
    away, _ = both
    said = await ready(away)
    assert (said["device"], said["retrieval"]) == ("cuda", "exact")
    assert said["segments"] == {"segments": 3, "segment_rows": 1_024, "delta_rows": 0, "compactions": 0}
    items = [{"item_id": item_id(n), "attributes": {"price": n % 100, "brand": f"b{n % 7}"}} for n in range(ITEMS)]
    for first in range(0, ITEMS, 1_000):
        assert (await away.post("/v1/items", json=items[first : first + 1_000])).status_code == 200
    for seed, user_id in enumerate(["u0", "u1"]):
        chosen = random.Random(seed).sample(range(ITEMS), 15)
        await away.tell(*(event(user_id, 0, 60 * n, "view") | {"item_id": item_id(item)} for n, item in enumerate(chosen)))
    best = [item for item, _ in await same(both, "u0")]
    await asyncio.gather(*(same(both, f"u{n % 2}") for n in range(20)))  # in batches
    await same(both, "u1", rules={"filters": ["price < 20"]})
    await same(both, "u1", rules={"filters": ['brand = "b3" and price < 2']})
    await same(both, "u0", rules={"boosts": [{"filter": "price < 50", "factor": 2.0}]})
    await same(both, "u0", exclude=best[:20])
    await same(both, "u0", k=ITEMS // 3)
    for gone in best[:3]:
        assert (await away.delete(f"/v1/items/{gone}")).status_code in (200, 204)
    for _ in range(500):
        if not {item for client in both for item, _ in await ask(client, "u0")} & set(best[:3]):
            break
        await asyncio.sleep(0.02)
    await same(both, "u0")
    assert (await ready(away))["segments"]["delta_rows"] == 0  # nothing but biases has changed


async def test_a_device_that_fails_under_load_fails_no_request_and_the_service_says_so(both, monkeypatch):
    away, _ = both
    await away.tell(event("u0", 1) | {"item_id": item_id(1)})
    await same(both, "u0")

    def fails(*_, **__):
        raise RuntimeError("CUDA failure 719: unspecified launch failure")

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", fails)
    await asyncio.gather(*(same(both, "u0") for _ in range(10)))
    said = await ready(away)
    assert said["ready"] is True
    assert said["device"] == "cpu"
    assert "cuda failed" in said["device_reason"]
    assert "719" in said["device_reason"]
    await asyncio.sleep(1.2)
    text = (await away.get("/metrics")).text
    assert "longwave_device_failed 1.0" in text
    (now,) = [line for line in text.splitlines() if line.startswith("longwave_model_info") and 'device="cpu"' in line]
    assert now.endswith(" 1.0")
    (before,) = [line for line in text.splitlines() if line.startswith("longwave_model_info") and 'device="cuda"' in line]
    assert before.endswith(" 0.0")
    served = away._transport.app.state.hook.models.hall._served
    await served.stop()  # as when another model is activated
    assert "longwave_device_failed 0.0" in (await away.get("/metrics")).text
    await served.start()  # and as on a way back
    await asyncio.sleep(0.1)
    assert "longwave_device_failed 1.0" in (await away.get("/metrics")).text
