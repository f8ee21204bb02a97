"""What a user without events gets where something is known of where they are."""

import asyncio
import json

import pytest
from conftest import START_MS, event

import app.models.served
from app.state.embedded import EmbeddedRedis

LATER = START_MS + 10**9
HOT = {"k": 5, "as_of": LATER}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(app.models.served, "_TREND_DELAY_S", 0.001)


async def until_known(client, **where):
    """As soon as the worker has heard of a context."""
    async with asyncio.timeout(5):
        while True:
            if (await client.ask("new", **where)).get("fallback_context") == where:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def busy(start):
    """A service that has been told what is liked in two countries and on two platforms, and has heard of it."""
    async with start(popularity_refresh_ms=10) as client:
        await client.tell(*(event(f"f{n}", 7, context={"country": "France"}) for n in range(300)))
        await client.tell(*(event(f"s{n}", 9, context={"country": "Spain"}, platform="app") for n in range(300)))
        await client.tell(*(event(f"n{n}", 11) for n in range(500)))
        await until_known(client, platform="app", country="France")
        yield client


async def post(client, path="/v1/recommendations", **body):
    response = await client.post(path, json={"as_of": LATER} | body)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


async def test_the_list_of_a_new_user_is_that_of_their_country(busy):
    plain = await busy.ask("new", k=5)
    assert ids(plain)[0] == "item-011"
    assert "fallback_context" not in plain
    french = await busy.ask("new", k=5, country="France")
    assert (ids(french)[0], french["source"], french["fallback_context"]) == ("item-007", "fallback", {"country": "France"})
    assert ids(await busy.ask("new", k=5, country="Spain"))[0] == "item-009"
    assert ids(await busy.ask("new", k=5, platform="app"))[0] == "item-009"
    for unknown in ({"country": "Peru"}, {"platform": "fridge"}):
        assert {**await busy.ask("new", k=5, **unknown), "recommendation_id": ""} == {**plain, "recommendation_id": ""}


async def test_get_and_both_kinds_of_post_agree_and_repeat_themselves(busy):
    french = await busy.ask("new", k=5, country="France")
    for _ in range(2):
        for whose in ({"user_id": "new"}, {"events": []}):
            answer = await post(busy, **whose, k=5, context={"country": "France"})
            assert answer["items"] == french["items"]
            assert answer["fallback_context"] == {"country": "France"}


async def test_several_lists_and_rankings_follow_the_context_too(busy):
    body = {"user_id": "new", "context": {"country": "France"}, "lists": [{"name": "a", "k": 2}, {"name": "b", "k": 2}]}
    answer = await post(busy, "/v1/recommendations/lists", **body)
    assert answer["fallback_context"] == {"country": "France"}
    assert answer["lists"][0]["items"][0]["item_id"] == "item-007"
    listed = [item["item_id"] for one in answer["lists"] for item in one["items"]]
    assert len(set(listed)) == 4
    own = ["item-011", "item-009", "item-003"]
    ranking = await post(busy, "/v1/rankings", user_id="new", platform="app", items=own)
    assert ids(ranking)[0] == "item-009"
    assert set(ids(ranking)) == set(own)


async def test_the_attribute_tells_the_country_of_a_user_without_events(busy):
    response = await busy.put("/v1/users/registered", json={"attributes": {"country": "France"}})
    assert response.status_code == 200, response.text
    answer = await busy.ask("registered", k=5)
    assert (ids(answer)[0], answer["fallback_context"]) == ("item-007", {"country": "France"})
    assert (await busy.ask("registered", k=5, country="Spain"))["fallback_context"] == {"country": "Spain"}


async def test_events_count_for_the_country_of_their_user_where_they_say_none(start):
    async with start(popularity_refresh_ms=10) as client:
        for user in ("a", "b"):
            await client.put(f"/v1/users/{user}", json={"attributes": {"country": "Norway"}})
        await client.tell(event("a", 5), event("b", 6, context={"country": "Spain"}), event("a", 8, type="view"))
        found = {}
        async with asyncio.timeout(5):
            while len(found) < 2:
                for country in ("Norway", "Spain"):
                    answer = await client.ask("new", country=country, k=60)
                    if "fallback_context" in answer:
                        found[country] = {item["item_id"]: item["score"] for item in answer["items"]}
        assert found["Norway"]["item-005"] > found["Spain"]["item-005"]
        assert found["Norway"]["item-006"] < found["Spain"]["item-006"]


async def test_while_storage_is_away_what_the_worker_knows_serves(start, tmp_path):
    with EmbeddedRedis(tmp_path / "redis") as server:
        async with start(redis_url=server.url, redis_timeout_ms=500, popularity_refresh_ms=10) as client:
            await client.tell(*(event(f"f{n}", 7, context={"country": "France"}) for n in range(50)))
            await client.tell(*(event(f"n{n}", 11) for n in range(51)))
            await until_known(client, country="France")
            before = await client.ask("new", country="France")
            server.stop()
            answer = await client.ask("new", country="France")
            assert (answer["reason"], answer["fallback_context"]) == ("storage_unavailable", {"country": "France"})
            assert ids(answer)[0] == ids(before)[0] == "item-007"


async def test_who_is_held_out_of_an_experiment_gets_what_is_popular_with_everyone(busy):
    body = {"arms": [{"name": "all", "share": 1}], "holdout": 0.9}
    assert (await busy.put("/v1/experiments/trial", json=body)).status_code == 200
    reasons = set()
    for n in range(20):
        answer = await busy.ask(f"new{n}", k=5, country="France", experiment="trial")
        reasons.add(answer["reason"])
        assert ids(answer)[0] == ("item-011" if answer["reason"] == "holdout" else "item-007")
        assert ("fallback_context" in answer) == (answer["reason"] == "unknown_user")
    assert reasons == {"holdout", "unknown_user"}


async def test_rules_and_exclusions_hold_and_k_means_k(busy):
    answer = await post(
        busy,
        user_id="new",
        k=60,
        context={"country": "France"},
        exclude=["item-007"],
        rules={"pins": [{"item_id": "item-020", "position": 1}], "filters": ["id != 'item-011'"]},
    )
    assert ids(answer)[0] == "item-020"
    assert not {"item-007", "item-011"} & set(ids(answer))
    assert len(ids(answer)) == 58
    everything = await busy.ask("new", k=60, country="France")
    assert len(ids(everything)) == 60
    assert "gave_way" not in everything


async def test_a_category_of_the_context_comes_first(busy):
    response = await busy.post("/v1/items", json=[{"item_id": f"item-{row:03d}", "categories": ["shoes"]} for row in (7, 20, 30)])
    assert response.status_code == 200, response.text
    plain = await busy.ask("new", k=3)
    answer = await post(busy, user_id="new", k=3, context={"category": "shoes"})
    filtered = await post(busy, user_id="new", k=3, rules={"filters": ["categories contains 'shoes'"]})
    assert answer["fallback_context"] == {"category": "shoes"}
    assert set(ids(answer)) == {"item-007", "item-020", "item-030"} != set(ids(plain))
    assert ids(answer) == ids(filtered)
    longer = await post(busy, user_id="new", k=5, context={"category": "shoes"})
    assert ids(longer)[:3] == ids(answer)  # and others fill it up
    assert len(ids(longer)) == 5


@pytest.mark.parametrize("context", [{"country": 7}, {"country": None}, {"country": ["France"]}, {"country": "x" * 5_000}])
async def test_a_context_that_is_none_changes_nothing(busy, context):
    plain = await busy.ask("new", k=5)
    answer = await post(busy, user_id="new", k=5, context=context)
    assert ids(answer) == ids(plain)
    assert "fallback_context" not in answer


@pytest.mark.parametrize("country", ["", "x" * 65, "a\x00b"])
async def test_a_country_that_cannot_be_one_is_refused_by_name(client, country):
    response = await client.get("/v1/users/new/recommendations", params={"country": country})
    assert response.status_code == 422
    assert json.loads(response.content)["errors"][0]["field"] == "query.country"


async def test_a_user_with_one_event_gets_the_model(busy):
    await busy.tell(event("f0", 3))
    answer = await busy.ask("f0", country="France")
    assert answer["source"] == "model"
    assert "fallback_context" not in answer
