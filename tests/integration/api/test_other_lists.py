"""POST /v1/rankings and /v1/recommendations, GET /v1/items/{id}/similar, and lists without some items."""

import asyncio
import json
import random
import shutil

import numpy as np
import pytest
import redis
from bundle_edit import edit_manifest
from conftest import START_MS, event, history, same_list

from app.runtime.bundle import read_bundle

MOMENT = START_MS + 10**9


async def rank(client, user_id, items, **fields):
    response = await client.post("/v1/rankings", json={"user_id": user_id, "items": items, "as_of": MOMENT} | fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def some_items(n, seed=0):
    return random.Random(seed).sample([f"item-{number:03d}" for number in range(60)], n)


async def test_the_callers_items_come_in_the_order_of_the_users_list_with_its_scores(client):
    await client.tell(*history("u", 20))
    whole = {item["item_id"]: item["score"] for item in (await client.ask("u", k=60))["items"]}
    for seed in range(5):
        chosen = some_items(12, seed)
        answer = await rank(client, "u", chosen)
        assert ids(answer) == [item for item in whole if item in chosen]
        assert [item["score"] for item in answer["items"]] == pytest.approx([whole[item] for item in ids(answer)], abs=1e-3)
    assert (answer["source"], answer["applied_events"], answer["unknown_items"]) == ("model", 20, [])


async def test_what_is_unknown_is_named_and_what_is_given_twice_ranked_once(client):
    await client.tell(*history("u", 5))
    answer = await rank(client, "u", ["nowhere", "item-007", "item-003", "item-007", "nowhere"])
    assert sorted(ids(answer)) == ["item-003", "item-007"]
    assert answer["unknown_items"] == ["nowhere"]
    nothing = await rank(client, "u", ["nowhere"])
    assert (nothing["items"], nothing["unknown_items"], nothing["source"]) == ([], ["nowhere"], "model")


async def test_a_user_without_events_gets_them_by_popularity(client):
    chosen = some_items(9)
    popular = [item for item in ids(await client.ask("nobody", k=60)) if item in chosen]
    answer = await rank(client, "nobody", chosen)
    assert (ids(answer), answer["source"], answer["reason"]) == (popular, "fallback", "unknown_user")
    assert ids(await rank(client, "nobody", ["nowhere"])) == []


async def test_rankings_and_lists_of_one_batch_do_not_disturb_each_other(client):
    await client.tell(*history("u", 10), *history("v", 30, 1))
    chosen = [some_items(size, size) for size in (1, 5, 20, 60)]
    alone = [ids(await rank(client, "u", items)) for items in chosen]
    lists = [ids(await client.ask(user, k=10)) for user in ("u", "v")]
    together = await asyncio.gather(
        *(rank(client, "u", items) for items in chosen), *(client.ask(user, k=10) for user in ("u", "v"))
    )
    assert [ids(answer) for answer in together] == alone + lists
    assert [len(items) for items in alone] == [1, 5, 20, 60]


async def test_a_ranking_is_fresh(client):
    chosen, lists = some_items(30), []
    for second in range(6):
        await client.tell(event("u", 10 * second, second))
        answer = await rank(client, "u", chosen)
        assert answer["applied_events"] == second + 1
        lists.append(tuple(item["score"] for item in answer["items"]))
    assert len(set(lists)) == 6


async def test_where_storage_is_away_rankings_are_degraded(start, tmp_path):
    async with start(redis_url=f"unix://{tmp_path}/nobody.sock") as client:
        chosen = some_items(5)
        answer = await rank(client, "u", chosen)
        assert (answer["degraded"], answer["reason"]) == (True, "storage_unavailable")
        assert sorted(ids(answer)) == sorted(chosen)


async def test_a_model_whose_users_do_not_come_back_still_ranks_what_they_had(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, seen_items="exclude")
    async with start(bundle_dir=folder) as client:
        await client.tell(*(event("u", number, number) for number in range(5)))
        had = [f"item-{number:03d}" for number in range(5)]
        assert not set(had) & set(ids(await client.ask("u", k=60)))
        assert sorted(ids(await rank(client, "u", had))) == had


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": "u"}, "items"),
        ({"items": ["a"]}, "user_id"),
        ({"user_id": "u", "items": []}, "items"),
        ({"user_id": "u", "items": "a"}, "items"),
        ({"user_id": "u", "items": ["a", 3]}, "items.1"),
        ({"user_id": "u", "items": ["a", ""]}, "items.1"),
        ({"user_id": "", "items": ["a"]}, "user_id"),
        ({"user_id": "u", "items": ["a"] * 1001}, "items"),
        ({"user_id": "u", "items": ["a"], "as_of": "soon"}, "as_of"),
        ({"user_id": "u", "items": ["a"], "platform": 1}, "platform"),
        ({"user_id": "u", "items": ["a"], "k": 3}, "k"),
        (["u"], ""),
    ],
)
async def test_a_bad_request_is_told_which_field(client, body, field):
    response = await client.post("/v1/rankings", json=body)
    problem = json.loads(response.content)
    assert (response.status_code, problem["type"]) == (422, "urn:longwave:problem:invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field]


async def similar(client, item_id, **parameters):
    response = await client.get(f"/v1/items/{item_id}/similar", params=parameters)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


async def test_similar_items_are_those_with_the_largest_cosines(client, tiny_bundle):
    bundle = read_bundle(tiny_bundle)
    vectors = np.asarray(bundle.vectors, np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [item.id for item in bundle.items]
    for row in (0, 17, 59):
        cosine = unit @ unit[row]
        answer = await similar(client, names[row], k=8)
        assert (answer["item_id"], len(answer["items"])) == (names[row], 8)
        expected = sorted((other for other in range(len(names)) if other != row), key=lambda other: -cosine[other])[:8]
        assert ids(answer) == [names[other] for other in expected]
        assert [item["similarity"] for item in answer["items"]] == pytest.approx(cosine[expected].tolist(), abs=1e-5)


async def test_k_means_k_of_similar_items_and_never_the_item_itself(client):
    answer = await similar(client, "item-003", k=1000)
    assert len(answer["items"]) == 59
    assert "item-003" not in ids(answer)
    assert len((await similar(client, "item-003"))["items"]) == 20


async def test_an_item_that_nobody_knows_has_no_similar_ones(client):
    response = await client.get("/v1/items/no/where/similar")
    problem = json.loads(response.content)
    assert (response.status_code, problem["type"]) == (404, "urn:longwave:problem:not-found")
    assert "no/where" in problem["detail"]
    assert (await client.get("/v1/items/item-003/similar", params={"k": 0})).status_code == 422


@pytest.mark.parametrize("user_id", ["u", "nobody"])
async def test_what_is_excluded_is_left_out_and_the_next_ones_move_up(client, user_id):
    await client.tell(*history("u", 20))
    whole = ids(await client.ask(user_id, k=60))
    gone = [whole[0], whole[3], "nowhere", whole[3]]
    assert ids(await client.ask(user_id, k=10, exclude=gone)) == [item for item in whole if item not in gone][:10]
    assert ids(await client.ask(user_id, k=10, exclude=whole[0])) == whole[1:11]
    assert ids(await client.ask(user_id, k=60, exclude=whole[5:])) == whole[:5]
    assert ids(await client.ask(user_id, exclude=whole)) == []


async def test_what_is_excluded_adds_to_what_the_user_had(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, seen_items="exclude")
    async with start(bundle_dir=folder) as client:
        await client.tell(*(event("u", number, number) for number in range(5)))
        whole = ids(await client.ask("u", k=60))
        assert ids(await client.ask("u", k=60, exclude=whole[:2])) == whole[2:]


async def test_a_bad_exclusion_is_told_which(client):
    response = await client.get("/v1/users/u/recommendations", params={"exclude": ["a", ""]})
    assert (response.status_code, [error["field"] for error in response.json()["errors"]]) == (422, ["query.exclude.1"])
    response = await client.get("/v1/users/u/recommendations", params={"exclude": ["a"] * 1001})
    assert (response.status_code, [error["field"] for error in response.json()["errors"]]) == (422, ["query.exclude"])


async def post(client, **body):
    response = await client.post("/v1/recommendations", json={"as_of": MOMENT} | body)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def nobodys(events):
    return [{name: value for name, value in one.items() if name != "user_id"} for one in events]


@pytest.mark.parametrize("number", [1, 2, 30, 200])
async def test_the_list_from_events_is_that_of_a_user_who_did_them(client, number):
    events = history("u", number)
    await client.tell(*events)
    answer = await post(client, events=nobodys(events), k=60)
    stored = await client.ask("u", k=60)
    same_list(answer, stored)
    assert {name: answer[name] for name in ("user_id", "source", "applied_events", "last_event_time")} == {
        "user_id": None,
        "source": "model",
        "applied_events": number,
        "last_event_time": stored["last_event_time"],
    }


async def test_nothing_is_stored_of_nobody(client, redis_url):
    before = await client.ask("nobody", k=60)
    with redis.Redis.from_url(redis_url) as raw:
        keys = sorted(raw.scan_iter())
        for _ in range(3):
            await post(client, events=nobodys(history("u", 20)))
        await asyncio.sleep(0.2)
        # Workers and the model say now and then that they are there; nothing else is new.
        assert sorted(raw.scan_iter()) == keys
    assert (await client.ask("nobody", k=60))["items"] == before["items"]
    assert (await client.get("/v1/users/-")).status_code == 404


async def test_the_order_of_the_events_matters(client):
    events = nobodys(history("u", 10))
    assert (await post(client, events=events))["items"] != (await post(client, events=events[::-1]))["items"]


async def test_nobody_who_did_nothing_gets_what_is_popular(client):
    answer = await post(client, events=[], k=5, exclude=["item-000"])
    assert (answer["source"], answer["reason"], len(answer["items"])) == ("fallback", "unknown_user", 5)
    assert "item-000" not in ids(answer)


async def test_events_of_an_unknown_item_count(client):
    answer = await post(client, events=[{"type": "purchase", "item_id": "nowhere"}])
    assert (answer["source"], answer["applied_events"]) == ("model", 1)


async def test_what_nobody_had_is_left_out_where_the_model_says_so(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, seen_items="exclude")
    async with start(bundle_dir=folder) as client:
        answer = await post(client, events=nobodys(event("u", number) for number in range(5)), k=60, exclude=["item-010"])
        assert set(ids(answer)) == {f"item-{number:03d}" for number in range(60)} - {
            f"item-{number:03d}" for number in (0, 1, 2, 3, 4, 10)
        }


async def test_a_named_user_gets_the_same_list_as_at_their_address(client):
    await client.tell(*history("u", 12))
    gone = ids(await client.ask("u", k=2))
    same_list(await post(client, user_id="u", k=7, exclude=gone), await client.ask("u", k=7, exclude=gone))
    assert (await post(client, user_id="u"))["user_id"] == "u"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"user_id": "u", "events": []}, ""),
        ({"events": {}}, "events"),
        ({"events": [{"type": "purchase", "item_id": "a"}, {"type": "purchase"}]}, "events.1.item_id"),
        ({"events": [{"type": "nothing", "item_id": "a"}]}, "events.0.type"),
        ({"events": [{"type": "purchase", "item_id": "a", "user_id": "u"}]}, "events.0.user_id"),
        ({"events": ["purchase"]}, "events.0"),
        ({"user_id": "u", "k": 0}, "k"),
        ({"user_id": "u", "k": "3"}, "k"),
        ({"user_id": "u", "exclude": [""]}, "exclude.0"),
        ({"user_id": "u", "filter": ""}, "filter"),
    ],
)
async def test_a_bad_question_is_told_which_field(client, body, field):
    response = await client.post("/v1/recommendations", json=body)
    problem = json.loads(response.content)
    assert (response.status_code, problem["type"]) == (422, "urn:longwave:problem:invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_too_many_events_are_too_large(client):
    response = await client.post("/v1/recommendations", json={"events": [{"type": "purchase", "item_id": "a"}] * 1001})
    assert response.status_code == 413
