"""Items that a user was shown of late sink, as far as the rules say, and come up again."""

from __future__ import annotations

import json

import pytest
from conftest import START_MS, event, history

from app.recommend.rules import FULL
from app.state import keys

MOMENT = START_MS + 10**9
DAY_MS = 86_400_000


async def ask(client, user_id="u", rotation=None, **fields):
    rules = {"rules": {"rotation": rotation} | fields.pop("rules", {})} if rotation is not None else {}
    response = await client.post("/v1/recommendations", json={"user_id": user_id, "k": 60, "as_of": MOMENT} | rules | fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def scores(answer):
    return {item["item_id"]: item["score"] for item in answer["items"]}


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


async def show(client, answer, item_ids, user_id="u", timestamp=MOMENT, **fields):
    told = {"recommendation_id": answer["recommendation_id"], "user_id": user_id, "item_ids": item_ids, "timestamp": timestamp}
    response = await client.post("/v1/impressions", json=told | fields)
    assert response.status_code == 200, response.text
    return response.json()["stored"]


async def test_each_showing_sinks_an_item_further_and_only_where_the_rules_say_so(client):
    await client.tell(*history("u", 20))
    spread = client._transport.app.state.hook.models.hall.service.recommender._planner._rules._spread
    before = await ask(client)
    top = ids(before)[0]
    for times in range(1, 4):
        assert await show(client, await ask(client), [top, "item-of-another-shop"]) == 1
        after = scores(await ask(client, rotation=0.5))
        for item_id, score in scores(before).items():
            sunk = 0.5 * FULL * spread * (1 - 0.5**times) if item_id == top else 0.0
            assert after[item_id] == pytest.approx(score - sunk, abs=1e-3)
    assert ids(await ask(client)) == ids(before)
    assert ids(await ask(client, rotation=0.0)) == ids(before)
    assert ids(await ask(client, "v", rotation=1.0)) == ids(await ask(client, "v"))


async def test_a_list_that_is_shown_again_and_again_is_not_the_same_one(client):
    await client.tell(*history("u", 20))
    lists = []
    for _ in range(4):
        answer = await ask(client, rotation=1.0, k=10)
        lists.append(frozenset(ids(answer)))
        await show(client, answer, ids(answer))
    assert len(set(lists)) == 4
    assert len(frozenset.union(*lists)) >= 25


async def test_a_showing_fades_and_what_is_shown_later_does_not_count_before(client):
    await client.tell(*history("u", 20))
    before = await ask(client)
    top = ids(before)[0]
    await show(client, before, [top], timestamp=MOMENT)

    async def sunk(as_of, **rules):
        plain = scores(await ask(client, as_of=as_of))[top]
        return plain - scores(await ask(client, rotation=1.0, as_of=as_of, rules=rules))[top]

    now = await sunk(MOMENT)
    assert await sunk(MOMENT - 10_000) == pytest.approx(0, abs=1e-3)
    assert await sunk(MOMENT + DAY_MS) == pytest.approx(now * (1 - 2**-0.5) / 0.5, rel=1e-2)
    assert await sunk(MOMENT + DAY_MS, rotation_half_life_s=86_400 * 1_000) == pytest.approx(now, rel=1e-2)
    assert await sunk(MOMENT + 40 * DAY_MS) == pytest.approx(0, abs=1e-3)


async def test_rotation_holds_for_users_without_events_in_scenarios_in_several_lists_and_in_batches(client):
    await client.put("/v1/scenarios/home", json={"rotation": 1.0})
    for user in ("u", "stranger"):
        if user == "u":
            await client.tell(*history("u", 20))
        before = await client.ask(user, k=60)
        top = ids(before)[:3]
        await show(client, before, top, user)
        body = {"user_id": user, "as_of": MOMENT, "lists": [{"name": "a", "k": 60, "scenario": "home"}]}
        several = (await client.post("/v1/recommendations/lists", json=body)).json()["lists"][0]
        body = {"user_ids": [user], "as_of": MOMENT, "k": 60, "scenario": "home"}
        (line,) = (await client.post("/v1/recommendations/batch", json=body)).content.splitlines()
        for answer in (await client.ask(user, k=60, scenario="home"), several, json.loads(line)):
            assert ids(answer)[0] not in top
            assert sorted(ids(answer)) == sorted(ids(before))
            assert [item for item in ids(answer) if item not in top] == [item for item in ids(before) if item not in top]


async def test_what_was_shown_goes_with_a_merge_and_with_an_erasure(client):
    await client.tell(*history("u", 20), event("cookie", 1))
    top = ids(await ask(client))[0]
    await show(client, await ask(client, "cookie"), [top], "cookie")
    assert (await client.post("/v1/users/u/merge", json={"from": "cookie"})).status_code == 200
    for user in ("u", "cookie"):
        assert scores(await ask(client, user, rotation=1.0))[top] < scores(await ask(client, user))[top] - 0.1
    await client.delete("/v1/users/u")
    await client.tell(*({name: value for name, value in one.items() if name != "timestamp"} for one in history("u", 20)))
    assert (answer := await ask(client))["source"] == "model"
    assert ids(await ask(client, rotation=1.0)) == ids(answer)


async def test_what_cannot_be_read_does_not_sink_and_the_list_is_made(client, raw):
    await client.tell(*history("u", 20))
    raw.rpush(keys.user_keys("default", "u").shown, "x")
    answer = await ask(client, rotation=1.0)
    assert (answer["source"], ids(answer)) == ("model", ids(await ask(client)))


@pytest.mark.parametrize("rules", [{"rotation": 1.1}, {"rotation": -1}, {"rotation_half_life_s": 1}])
async def test_a_rotation_that_is_none_is_a_422(client, rules):
    response = await client.post("/v1/recommendations", json={"user_id": "u", "rules": rules})
    assert [error["field"] for error in response.json()["errors"]] == [f"rules.{next(iter(rules))}"]
