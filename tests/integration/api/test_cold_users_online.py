"""Users with few events: the bundle's blend of model and context, as far as it reaches."""

import asyncio
import json
import shutil

import numpy as np
import pytest
from bundle_edit import edit_manifest
from conftest import START_MS, event

import app.models.served

LATER = START_MS + 10**9
FRENCH = {"context": {"country": "France"}}
COLD = {"facets": ["country"], "events": [1, 3, 5], "weights": [1.0, 0.5, 0.0]}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(app.models.served, "_TREND_DELAY_S", 0.001)


@pytest.fixture
async def client(start, tiny_bundle, tmp_path):
    """A service whose bundle has a blend, and which has heard what is liked in France and on a platform."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, cold=COLD)
    async with start(popularity_refresh_ms=10, bundle_dir=folder) as client:
        told = [event(f"f{n}", 7, context={"country": "France"}, platform="app") for n in range(400)]
        await client.tell(*told, *(event(f"n{n}", 11) for n in range(400)))
        async with asyncio.timeout(10):
            while True:
                known = (await client.ask("nobody", country="France", platform="app")).get("fallback_context", {})
                if len(known) == 2:
                    break
                await asyncio.sleep(0.01)
        yield client


async def scores(client, path="/v1/recommendations", **body):
    response = await client.post(path, json={"as_of": LATER} | ({} if "items" in body else {"k": 60}) | body)
    assert response.status_code == 200, response.text
    answer = json.loads(response.content)
    assert answer["source"] == "model"
    assert "fallback_context" not in answer
    return {item["item_id"]: item["score"] for item in answer["items"]}


async def gained(client, **body):
    """(60,) what each item's score has more where France is named."""
    french, plain = await scores(client, **FRENCH, **body), await scores(client, **body)
    return np.asarray([french[item] - plain[item] for item in sorted(plain)])


async def test_what_is_added_is_the_lift_by_the_weight_for_so_many_events(client):
    lift = None
    for number, weight in enumerate([1.0, 0.75, 0.5, 0.25, 0.0, 0.0], 1):
        await client.tell(event("u", 3 + number, number))
        found = await gained(client, user_id="u")
        if lift is None:
            lift = found
            assert np.log(1.2) < lift[7] < np.log(400)
            assert (np.delete(lift, 7) < 0).all()
        np.testing.assert_allclose(found, weight * lift, atol=2e-2)
        # Where nothing is known of the place, and of a facet that was not measured, nothing is added.
        plain = await scores(client, user_id="u")
        for where in ({"platform": "fridge"}, {"context": {"country": "Peru"}}, {"context": {"country": 7}}):
            assert await scores(client, user_id="u", **where) == pytest.approx(plain, abs=1e-5)


async def test_a_facet_that_was_not_measured_adds_nothing(client):
    await client.tell(event("u", 3))
    # The platform of the tiny bundle's model is an input of its own; one that only the counts know changes nothing.
    french = await scores(client, user_id="u", **FRENCH, platform="fridge")
    assert french == pytest.approx(await scores(client, user_id="u", **FRENCH), abs=1e-5)


@pytest.mark.parametrize("rules", [{}, {"popularity": 0.3}, {"filters": ["id != 'item-020'"], "caps": []}])
async def test_events_of_the_request_and_rules_are_blended_too(client, rules):
    told = [{"item_id": "item-003", "type": "purchase", "timestamp": START_MS}]
    found = await gained(client, events=told, rules=rules)
    assert len(found) == 60 - ("filters" in rules)
    assert found[7] > np.log(1.2)
    assert (np.delete(found, 7) < 0).all()


async def test_the_attribute_of_the_user_tells_the_country(client):
    await client.put("/v1/users/registered", json={"attributes": {"country": "France"}})
    await client.tell(event("registered", 3))
    alone = await scores(client, user_id="registered")
    assert alone == pytest.approx(await scores(client, user_id="registered", **FRENCH), abs=1e-5)
    unknown = await scores(client, user_id="registered", context={"country": None})
    assert alone["item-007"] - unknown["item-007"] > np.log(1.2)


async def test_a_service_without_contexts_adds_nothing_and_falls_back_on_what_all_use(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, cold=COLD)
    async with start(popularity_refresh_ms=10, bundle_dir=folder, context_fallback=False) as client:
        await client.tell(*(event(f"f{n}", 7, context={"country": "France"}) for n in range(50)))
        await asyncio.sleep(0.1)
        answer = await client.ask("nobody", country="France")
        assert "fallback_context" not in answer
        await client.tell(event("u", 3))
        assert await scores(client, user_id="u") == await scores(client, user_id="u", **FRENCH)
