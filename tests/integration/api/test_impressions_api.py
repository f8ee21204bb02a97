"""POST /v1/impressions: which lists were shown, and what they led to, by model and scenario."""

import json
import re

import pytest
from conftest import START_MS, event, history

from app.state import keys
from app.state.lists import new_list_id, read_list_id

MODEL = "c937343fc7a56a66"


async def tell(client, body, status=200):
    response = await client.post("/v1/impressions", json=body)
    assert response.status_code == status, response.text
    return json.loads(response.content)


async def counted(client, name):
    """Model, scenario, experiment and arm, and any other label -> value, of one metric."""
    text = (await client.get("/metrics")).text
    counts = {}
    for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="(.*?)"', labels))
        origin = [named.pop(label) for label in ("model_id", "scenario", "experiment", "arm")]
        counts[*origin, *named.values()] = float(value)
    return counts


def shown(answer, user_id="u", **fields):
    item_ids = [item["item_id"] for item in answer["items"]]
    return {"recommendation_id": answer["recommendation_id"], "user_id": user_id, "item_ids": item_ids} | fields


async def test_lists_what_was_shown_of_them_and_what_they_led_to_are_counted_by_model_and_scenario(client):
    await client.tell(*history("u", 10))
    await client.put("/v1/scenarios/cart page", json={"exclude": ["item-000"]})
    plain, cart, popular = [
        await client.ask("u", k=5),
        await client.ask("u", k=5, scenario="cart page"),
        await client.ask("nobody", k=5),
    ]
    model = plain["model_id"]
    assert await counted(client, "longwave_lists_total") == {
        (model, "", "", "", "model"): 1,
        (model, "cart page", "", "", "model"): 1,
        (model, "", "", "", "fallback"): 1,
    }
    found = await tell(client, [shown(plain), shown(cart, item_ids=["item-001", "item-002"]), shown(popular, None)])
    assert (found["stored"], found["duplicate"], found["rejected"]) == (3, 0, 0)
    assert (await tell(client, shown(plain)))["results"] == [{"index": 0, "status": "duplicate"}]
    assert await counted(client, "longwave_lists_shown_total") == {(model, "", "", ""): 2, (model, "cart page", "", ""): 1}
    assert await counted(client, "longwave_items_shown_total") == {(model, "", "", ""): 10, (model, "cart page", "", ""): 2}
    clicks = [
        event("u", 1, 1, "view", recommendation_id=cart["recommendation_id"], event_id="1"),
        event("u", 1, 2, "purchase", recommendation_id=cart["recommendation_id"], event_id="2"),
        event("v", 1, 2, "view", recommendation_id=popular["recommendation_id"], event_id="3"),
        event("v", 1, 2, "view", recommendation_id="of another service", event_id="4"),
        event("v", 1, 2, "view", event_id="5"),
    ]
    await client.tell(*clicks)
    await client.tell(*clicks)  # again: duplicates lead to nothing
    assert await counted(client, "longwave_list_events_total") == {
        (model, "cart page", "", "", "view"): 1,
        (model, "cart page", "", "", "purchase"): 1,
        (model, "", "", "", "view"): 1,
    }


async def test_the_id_of_a_list_says_where_it_comes_from_of_every_kind_of_list(client):
    await client.tell(*history("u", 10))
    version = (await client.put("/v1/scenarios/mail", json={"exclude": ["item-000"]})).json()["version"]
    single = await client.ask("u", scenario="mail")
    several = await client.post(
        "/v1/recommendations/lists", json={"user_id": "u", "lists": [{"name": "a"}, {"name": "b", "scenario": "mail"}]}
    )
    batch = await client.post("/v1/recommendations/batch", json={"user_ids": ["u", "nobody"], "scenario": "mail"})
    ranking = await client.post("/v1/rankings", json={"user_id": "u", "items": ["item-001"]})
    lines = [json.loads(line) for line in batch.content.splitlines()]
    answers = [single, *several.json()["lists"], *lines, ranking.json()]
    origins = [read_list_id(answer["recommendation_id"]) for answer in answers]
    assert [origin.scenario for origin in origins] == ["mail", "", "mail", "mail", "mail", ""]
    assert {origin.version for origin in origins if origin.scenario} == {version}
    assert [origin.fallback for origin in origins] == [False, False, False, False, True, False]
    assert {origin.model_id for origin in origins} == {single["model_id"]}


async def test_good_ones_are_stored_where_others_are_bad(client):
    good = {"recommendation_id": new_list_id(MODEL, False), "item_ids": ["a"]}
    bad = [
        ({}, "item_ids"),
        ({"item_ids": []}, "item_ids"),
        ({"item_ids": ["a", 1]}, "item_ids.1"),
        ({"item_ids": ["a"] * 1_001}, "item_ids"),
        ({"recommendation_id": "mine"}, "recommendation_id"),
        ({"positions": [1, 2]}, "positions"),
        ({"positions": [0]}, "positions.0"),
        ({"propensities": [0.5, 0.5]}, "propensities"),
        ({"propensities": []}, "propensities"),
        ({"propensities": [0]}, "propensities.0"),
        ({"propensities": [1.01]}, "propensities.0"),
        ({"propensities": ["0.5"]}, "propensities.0"),
        ({"timestamp": "soon"}, "timestamp"),
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": 10**15}, "timestamp"),
        ({"user_id": ""}, "user_id"),
        ({"user": "u"}, "user"),
    ]
    several = [good | wrong if wrong else {"recommendation_id": good["recommendation_id"]} for wrong, _ in bad]
    found = await tell(client, {"impressions": [*several, good, "x"]})
    assert (found["stored"], found["rejected"]) == (1, len(bad) + 1)
    assert [[error["field"] for error in one["errors"]] for one in found["results"][: len(bad)]] == [[field] for _, field in bad]
    problem = await tell(client, several[4], 422)
    assert [error["field"] for error in problem["errors"]] == ["recommendation_id"]
    problem = await tell(client, several[:2], 422)
    assert {error["field"] for error in problem["errors"]} == {"impressions[0].item_ids", "impressions[1].item_ids"}
    assert (await counted(client, "longwave_lists_shown_total")) == {(MODEL, "", "", ""): 1}


@pytest.mark.parametrize("body", [[], {"impressions": []}, {"impressions": {}}, 3, "x", {"impressions": [], "more": 1}, None])
async def test_what_is_no_impression_is_a_422(client, body):
    assert (await tell(client, body, 422))["type"] == "urn:longwave:problem:invalid-request"


async def test_a_thousand_are_taken_and_one_more_is_too_large(client):
    many = [{"recommendation_id": new_list_id(MODEL, False), "user_id": f"u{n % 20}", "item_ids": ["a"]} for n in range(1_001)]
    await tell(client, many, 413)
    assert (await tell(client, many[:1_000]))["stored"] == 1_000
    assert (await tell(client, many[:1_000]))["duplicate"] == 1_000
    problem = await tell(client, [one | {"user_id": "u"} for one in many[:65]], 413)
    assert "'u'" in problem["detail"]
    assert (await tell(client, [one | {"user_id": None} for one in many[:1_000]]))["stored"] == 1_000


async def test_invented_names_do_not_become_endless_labels(client):
    names = [(f"{n:016x}", False, f"s{n}", 1, f"e{n}", 1, f"a{n}") for n in range(300)]
    # every model under every scenario in every arm, of those that are labels of their own
    names += [(f"{n % 50:016x}", False, f"s{n // 50 % 100}", 1, f"e{n % 97}", 1, f"a{n % 97}") for n in range(4_000)]
    many = [{"recommendation_id": new_list_id(*name), "item_ids": ["a"]} for name in names]
    assert (await tell(client, many[:300]))["stored"] == 300
    found = await counted(client, "longwave_lists_shown_total")
    assert sum(found.values()) == 300
    assert len(found) <= 102
    assert found["other", "other", "other", "other"] >= 190
    for begin in range(300, len(many), 1_000):
        await tell(client, many[begin : begin + 1_000])
    found = await counted(client, "longwave_lists_shown_total")
    assert sum(found.values()) == 4_300
    assert 1_900 <= len(found) <= 2_001


async def test_of_an_erased_user_nothing_late_is_taken(client):
    await client.tell(event("u", 1))
    before = {"recommendation_id": new_list_id(MODEL, False), "user_id": "u", "item_ids": ["a"], "timestamp": START_MS}
    assert (await tell(client, before))["stored"] == 1
    await client.delete("/v1/users/u")
    problem = await tell(client, before | {"recommendation_id": new_list_id(MODEL, False)}, 422)
    assert "erased" in problem["detail"]


async def test_a_damaged_user_is_said_and_the_others_are_stored(client, raw):
    raw.rpush(keys.user_keys("default", "bad").shown, "x")
    many = [{"recommendation_id": new_list_id(MODEL, False), "user_id": user, "item_ids": ["a"]} for user in ("u", "bad", "v")]
    problem = await tell(client, many, 503)
    assert "'bad'" in problem["detail"]
    assert sum((await counted(client, "longwave_lists_shown_total")).values()) == 2
    await client.delete("/v1/users/bad")
    found = await tell(client, [one | {"timestamp": None} for one in many])
    assert [one["status"] for one in found["results"]] == ["duplicate", "stored", "duplicate"]
