"""The service with an index over some ten thousand items, beside the same service that searches exactly."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from conftest import START_MS, event

from app.recommend import view
from loadtests.large_bundle import item_id, write_large_bundle

ITEMS = 12_000
MOMENT = START_MS + 10**9


@pytest.fixture(scope="module")
def large_bundle(tiny_bundle, tmp_path_factory):
    return write_large_bundle(tiny_bundle, ITEMS, tmp_path_factory.mktemp("large") / "bundle")


@pytest.fixture
async def both(start, large_bundle, tmp_path, monkeypatch):
    """A service that searches through an index, and one that searches exactly, on one Redis."""
    monkeypatch.setattr(view, "FEW", 500)
    monkeypatch.setattr("app.recommend.retrieve.FEW", 500)
    settings = {"bundle_dir": large_bundle, "storage_dir": tmp_path, "catalogue_poll_ms": 20}
    async with start(**settings, retrieval="index") as through, start(**settings, retrieval="exact") as exact:
        deadline = time.monotonic() + 60
        while (await through.get("/readyz")).json()["retrieval"] != "index":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await exact.get("/readyz")).json()["retrieval"] == "exact"
        yield through, exact


def views(user_id, seed):
    """Events that do not count towards popularity, of which the other service would hear later."""
    chosen = random.Random(seed).sample(range(ITEMS), 15)
    return [event(user_id, 0, 60 * n, "view") | {"item_id": item_id(item)} for n, item in enumerate(chosen)]


async def ask(client, user_id, **fields):
    response = await client.post("/v1/recommendations", json={"user_id": user_id, "k": 50, "as_of": MOMENT} | fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


async def test_an_index_finds_what_an_exact_search_does_under_every_rule(both):
    through, _ = both
    for start in range(0, ITEMS, 1_000):
        items = [
            {"item_id": item_id(n), "attributes": {"price": n % 100, "brand": f"b{n % 7}"}} for n in range(start, start + 1_000)
        ]
        assert (await through.post("/v1/items", json=items)).status_code == 200
    users = [f"u{n}" for n in range(6)]
    for n, user in enumerate(users):
        await through.tell(*views(user, n))
    for rules in [
        {},
        {"filters": ["price < 50"]},
        {"filters": ["price < 5 and brand = 'b1'"]},
        {"boosts": [{"filter": "price < 10", "factor": 3.0}], "caps": [{"attribute": "brand", "most": 9}]},
        {"exclude_had": [{}], "diversity": 0.2},
    ]:
        found = wanted = 0
        for user in users:
            answers = [await ask(client, user, rules=rules) for client in both]
            assert len(answers[0]["items"]) == len(answers[1]["items"])
            found += len(set(ids(answers[0])) & set(ids(answers[1])))
            wanted += len(answers[1]["items"])
            scores = [{item["item_id"]: item["score"] for item in answer["items"]} for answer in answers]
            for item in scores[0].keys() & scores[1].keys():
                assert scores[0][item] == pytest.approx(scores[1][item], abs=1e-3)
        assert found / wanted > 0.95, rules


async def test_items_that_come_and_go_do_so_through_an_index_too(both):
    through, _ = both
    await through.tell(*views("u", 1))
    first = ids(await ask(through, "u"))
    assert (await through.delete(f"/v1/items/{first[0]}")).status_code == 200
    assert (await through.put(f"/v1/items/{first[1]}", json={"hidden": True})).status_code == 200
    after = ids(await ask(through, "u"))
    assert not {first[0], first[1]} & set(after)
    assert len(after) == 50
    assert (await through.put(f"/v1/items/{first[1]}", json={"hidden": False})).status_code == 200
    assert first[1] in ids(await ask(through, "u"))
    early = await ask(through, "u", as_of=START_MS - 10**9)
    assert len(early["items"]) == 50
