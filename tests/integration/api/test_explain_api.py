"""explain=true and explain=exact over HTTP: what brought an item is an event of the user, or said to be something else."""

import asyncio
import json

import pytest
from conftest import START_MS, event, history, same_list

from app.recommend.quick import Quick
from app.recommend.refold import LAST, Refold
from app.state.redis import RedisStore

MOMENT = START_MS + 10**9
ACCOUNTS = ["true", "exact"]


async def post(client, **fields):
    response = await client.post("/v1/recommendations", json={"as_of": MOMENT} | fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def without_explanations(answer):
    items = [{name: value for name, value in item.items() if name != "explanation"} for item in answer["items"]]
    return [item["item_id"] for item in items], answer["source"], answer["applied_events"]


def whys(answer):
    return [item["explanation"]["why"] for item in answer["items"]]


@pytest.mark.parametrize("explain", ACCOUNTS)
async def test_a_list_is_the_same_with_explanations_and_each_names_events_of_the_user(client, explain):
    told = history("u", 30)
    await client.tell(*told)
    plain, explained = await client.ask("u"), await client.ask("u", explain=explain)
    same_list(plain, explained)
    assert without_explanations(plain) == without_explanations(explained)
    assert all("explanation" not in item for item in plain["items"])
    done = {(one["type"], one["item_id"]) for one in told}
    named = 0
    for item in explained["items"]:
        why = item["explanation"]
        assert why["why"] in ("events", "earlier", "together")
        weights = [one["weight"] for one in why["events"]]
        assert weights == sorted(weights, reverse=True)
        assert all(weight > 0 for weight in weights)
        for one in why["events"]:
            named += 1
            assert (one["type"], one["item_id"]) in done or (one["type"] is None and one["item_id"] == item["item_id"])
            assert one["title"] == f"Thing {int(one['item_id'][5:])}"
            assert one["time"].startswith("2011-03-13T")
        assert [interest["label"] for interest in why["interests"]] in (["books"], ["cups"], ["lamps"])
        if why["why"] == "events":
            assert why["text"].startswith("Because ")
    assert named > 10


async def test_quick_weights_are_shares(client):
    await client.tell(*history("u", 30))
    for item in (await client.ask("u", explain="true"))["items"]:
        assert sum(one["weight"] for one in item["explanation"]["events"]) <= 1.001


async def test_an_exact_weight_is_what_the_score_falls_by_without_the_event(client):
    told = [event("u", row, 60 * row) for row in range(12)]
    await client.tell(*told)
    explained = await client.ask("u", explain="exact", k=60)
    scores = {item["item_id"]: item["score"] for item in explained["items"]}
    checked = 0
    for left_out in (0, 5, 11):
        kept = [{name: value for name, value in one.items() if name != "user_id"} for one in told if one is not told[left_out]]
        fewer = {item["item_id"]: item["score"] for item in (await post(client, events=kept, k=60))["items"]}
        for item in explained["items"]:
            for one in item["explanation"]["events"]:
                if one["item_id"] == told[left_out]["item_id"]:
                    assert one["weight"] == pytest.approx(scores[item["item_id"]] - fewer[item["item_id"]], abs=2e-3)
                    checked += 1
    assert checked > 5


@pytest.mark.parametrize("explain", [True, "exact"])
async def test_events_of_a_request_are_explained_as_those_of_a_user(client, explain):
    told = history("u", 30)
    await client.tell(*told)
    events = [{name: value for name, value in one.items() if name != "user_id"} for one in told]
    of_user = await post(client, user_id="u", explain=explain)
    of_nobody = await post(client, events=events, explain=explain)
    same_list(of_user, of_nobody)
    for one, other in zip(of_user["items"], of_nobody["items"], strict=True):
        assert one["explanation"]["text"] == other["explanation"]["text"]
        assert [e["item_id"] for e in one["explanation"]["events"]] == [e["item_id"] for e in other["explanation"]["events"]]


@pytest.mark.parametrize("explain", ACCOUNTS)
async def test_the_fallback_says_that_it_is_what_is_popular(client, explain):
    answer = await client.ask("nobody", explain=explain)
    assert answer["source"] == "fallback"
    assert {(item["explanation"]["why"], item["explanation"]["text"]) for item in answer["items"]} == {("popular", "Popular now")}
    assert all(item["explanation"]["events"] == [] for item in answer["items"])


@pytest.mark.parametrize("user", ["u", "nobody"])
async def test_what_is_pinned_says_so(client, user):
    await client.tell(*history("u", 30))
    rules = {"pins": [{"item_id": "item-042", "position": 2}]}
    answer = await post(client, user_id=user, rules=rules, explain=True, k=5)
    assert answer["items"][1]["item_id"] == "item-042"
    assert [why == "pinned" for why in whys(answer)] == [False, True, False, False, False]
    assert answer["items"][1]["explanation"]["text"] == "Pinned"


@pytest.mark.parametrize("explain", ACCOUNTS)
async def test_each_new_event_can_be_named_at_once(start, explain):
    async with start(state_cache_mb=4) as client:
        await client.tell(*history("u", 25))
        await client.ask("u", explain=explain)
        for row in (50, 51):
            await client.tell(*[event("u", row, 5_000 + row + n) for n in range(4)])
            answer = await client.ask("u", explain=explain, k=60)
            named = {one["item_id"] for item in answer["items"] for one in item["explanation"]["events"]}
            assert f"item-{row:03d}" in named


@pytest.mark.parametrize("explain", ACCOUNTS)
async def test_a_history_that_is_trimmed_or_rewritten_is_explained_as_it_is_stored(start, explain):
    async with start(max_sequence=10) as client:
        await client.tell(*[event("u", row, row) for row in range(30)])
        answer = await client.ask("u", explain=explain)
        named = {one["item_id"] for item in answer["items"] for one in item["explanation"]["events"] if one["type"]}
        assert named
        assert named <= {f"item-{row:03d}" for row in range(20, 30)}
        await client.tell(event("v", 55, 40))
        assert (await client.post("/v1/users/u/merge", json={"from": "v"})).status_code == 200
        answer = await client.ask("u", explain=explain)
        assert "item-055" in {one["item_id"] for item in answer["items"] for one in item["explanation"]["events"]}


async def test_what_an_item_owes_to_events_that_are_not_looked_at_is_said_to_be_earlier(client, monkeypatch):
    await client.tell(*history("u", LAST + 10))
    monkeypatch.setattr("app.recommend.explain._LEAST_DROP", 1e6)
    assert set(whys(await client.ask("u", explain="exact"))) == {"earlier"}
    await client.tell(*history("v", LAST))
    assert set(whys(await client.ask("v", explain="exact"))) == {"popular"}


async def test_what_the_last_events_brought_together_is_not_said_to_be_popular(client, monkeypatch):
    told = history("u", LAST + 10)
    await client.tell(*told)
    kept = [{name: value for name, value in one.items() if name != "user_id"} for one in told[:10]]
    before = {item["item_id"]: item["score"] for item in (await post(client, events=kept, k=60))["items"]}
    monkeypatch.setattr("app.recommend.explain._LEAST_DROP", 0.1)
    for item in (await client.ask("u", explain="exact", k=60))["items"]:
        brought = item["score"] - before[item["item_id"]]
        if not item["explanation"]["events"] and abs(brought - 0.1) > 0.002:
            assert item["explanation"]["why"] == ("together" if brought > 0.1 else "earlier")
            assert item["explanation"]["text"] == f"Because of what you did {'lately' if brought > 0.1 else 'before'}"
    assert {"together", "earlier", "events"} == set(whys(await client.ask("u", explain="exact", k=60)))


@pytest.mark.parametrize("explain", ACCOUNTS)
async def test_an_erasure_between_the_list_and_its_explanation_leaves_nothing_to_name(client, monkeypatch, explain):
    await client.tell(*history("u", 30))
    load = RedisStore.load
    erased = False

    async def erase_first(self, tenant, model_id, users, *rest):
        nonlocal erased
        if model_id == "-" and not erased:
            erased = True
            await self.erase(tenant, users[0], START_MS + 10**10)
        return await load(self, tenant, model_id, users, *rest)

    monkeypatch.setattr(RedisStore, "load", erase_first)
    answer = await client.ask("u", explain=explain)
    assert erased
    assert set(whys(answer)) == {"popular"}


async def test_nothing_of_it_is_done_for_a_list_without(client, monkeypatch):
    def broken(*_):
        raise AssertionError

    monkeypatch.setattr(Quick, "__call__", broken)
    monkeypatch.setattr(Refold, "__call__", broken)
    await client.tell(*history("u", 30))
    await client.ask("u")
    await client.ask("u", explain="false")
    assert (await client.get("/v1/users/u/recommendations", params={"explain": "true"})).status_code == 500


async def test_exact_accounts_wait_in_a_thread_of_their_own_and_too_many_are_refused(client):
    await client.tell(*history("u", 40))
    responses = await asyncio.gather(
        *(client.get("/v1/users/u/recommendations", params={"explain": "exact", "as_of": MOMENT}) for _ in range(40))
    )
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503}
    refused = json.loads(responses[statuses.index(503)].content)
    assert refused["type"].endswith("overloaded")
    assert (await client.ask("u", explain="exact"))["source"] == "model"


async def test_where_storage_is_away_lists_say_what_they_are(start, tmp_path):
    async with start(redis_url=f"unix://{tmp_path}/nobody.sock") as client:
        answer = await client.ask("u", explain="exact")
        assert answer["degraded"]
        assert set(whys(answer)) == {"popular"}


@pytest.mark.parametrize("explain", ["", "yes", "1", "EXACT"])
async def test_an_account_that_there_is_not_is_an_error(client, explain):
    assert (await client.get("/v1/users/u/recommendations", params={"explain": explain})).status_code == 422
    assert (await client.post("/v1/recommendations", json={"user_id": "u", "explain": explain})).status_code == 422


@pytest.mark.parametrize("explain", ACCOUNTS)
async def test_the_stages_of_an_explained_list_are_parts_of_its_time(client, explain):
    await client.tell(*history("u", 30))
    asked = {"as_of": MOMENT, "explain": explain}
    body = asked | {"explain": explain == "true" or explain}
    events = [{name: value for name, value in one.items() if name != "user_id"} for one in history("u", 30)]
    whose = [
        await client.get("/v1/users/u/recommendations", params=asked),
        await client.post("/v1/recommendations", json=body | {"events": events}),
    ]
    for response in whose:
        parts = {name: float(ms) for name, ms in (part.split(";dur=") for part in response.headers["Server-Timing"].split(", "))}
        whole = parts.pop("service")
        assert {"load", "interest", "score", "explain"} <= parts.keys()
        assert sum(parts.values()) == pytest.approx(whole, abs=0.02)
