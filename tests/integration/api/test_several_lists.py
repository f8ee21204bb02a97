"""POST /v1/recommendations/lists: several lists of one user, none with an item of another."""

import asyncio
import json
import shutil

import pytest
from bundle_edit import edit_manifest
from conftest import START_MS, event, history

from app.errors import StorageError
from app.state.redis import RedisStore

MOMENT = START_MS + 10**9
EVEN = {"filters": ["even = true"]}


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


@pytest.fixture
async def shop(start):
    async with start() as client:
        items = [{"item_id": f"item-{row:03d}", "attributes": {"even": row % 2 == 0, "group": row % 6}} for row in range(60)]
        assert (await client.post("/v1/items", json=items)).status_code == 200
        await client.tell(*history("u", 20))
        yield client


async def ask(client, *lists, status=200, **fields):
    whose = {} if "events" in fields else {"user_id": "u"}
    body = whose | {"as_of": MOMENT, "lists": [{"name": f"list {place}"} | one for place, one in enumerate(lists)]} | fields
    response = await client.post("/v1/recommendations/lists", json=body)
    assert response.status_code == status, response.text
    return json.loads(response.content)


async def alone(client, **fields):
    response = await client.post("/v1/recommendations", json={"user_id": "u", "as_of": MOMENT} | fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


def nobodys(events):
    return [{name: value for name, value in one.items() if name != "user_id"} for one in events]


@pytest.mark.parametrize("whose", [{}, {"user_id": "nobody"}, {"events": nobodys(history("u", 20))}])
@pytest.mark.parametrize("explain", [True, "exact"])
async def test_all_lists_can_be_explained_as_each_alone(shop, whose, explain):
    answer = await ask(shop, {"k": 5}, {"k": 5}, explain=explain, **whose)
    gone = []
    for one in answer["lists"]:
        single = {"user_id": None} | whose if "events" in whose else whose
        expected = await alone(shop, k=5, explain=explain, exclude=gone, **single)
        assert [item["explanation"]["why"] for item in one["items"]] == [item["explanation"]["why"] for item in expected["items"]]
        assert [item["explanation"]["text"] for item in one["items"]] == [
            item["explanation"]["text"] for item in expected["items"]
        ]
        gone += ids(one)
    plain = await ask(shop, {"k": 5}, {"k": 5}, **whose)
    assert all("explanation" not in item for one in plain["lists"] for item in one["items"])


async def test_a_list_draws_the_same_again_with_its_seed(shop):
    explored = {"k": 10, "rules": {"explore": {"share": 0.5, "used_at_most": 1e9}}}
    first = await ask(shop, explored, explored | {"seed": 5})
    seeds = [one["explored"]["seed"] for one in first["lists"]]
    assert seeds[1] == 5
    again = await ask(shop, explored | {"seed": seeds[0]}, explored | {"seed": 5})
    assert [one["explored"] for one in again["lists"]] == [one["explored"] for one in first["lists"]]
    assert all(len(one["explored"]["items"]) == 5 for one in first["lists"])


@pytest.mark.parametrize("whose", [{}, {"user_id": "nobody"}, {"events": nobodys(history("u", 20))}, {"events": []}])
async def test_each_list_is_the_one_alone_without_the_items_of_those_before_it(shop, whose):
    wanted = [{"k": 7}, {"k": 9, "rules": EVEN}, {"k": 5, "rules": {"caps": [{"attribute": "group", "most": 1}]}}, {"k": 60}]
    answer = await ask(shop, *wanted, **whose)
    assert [one["name"] for one in answer["lists"]] == ["list 0", "list 1", "list 2", "list 3"]
    gone = []
    for one, asked in zip(answer["lists"], wanted, strict=True):
        single = {"user_id": None} | whose if "events" in whose else whose
        expected = await alone(shop, **(single | asked), exclude=gone)
        assert ids(one) == ids(expected)
        assert {name: answer[name] for name in ("user_id", "source", "reason", "applied_events", "as_of")} == {
            name: expected[name] for name in ("user_id", "source", "reason", "applied_events", "as_of")
        }
        gone += ids(one)
    assert sorted(gone) == [f"item-{row:03d}" for row in range(60)]
    assert len({one["recommendation_id"] for one in answer["lists"]}) == 4


async def test_a_list_that_earlier_ones_could_empty_is_still_full(shop):
    # 25 of the 30 that are even go into the first list: what was made and filtered afterwards would have too few.
    answer = await ask(shop, {"k": 25, "rules": EVEN}, {"k": 5, "rules": EVEN}, {"k": 5, "rules": EVEN})
    assert [len(ids(one)) for one in answer["lists"]] == [25, 5, 0]


async def test_what_all_lists_share_and_what_is_a_lists_own_hold_together(shop):
    whole = ids(await alone(shop, k=60))
    await shop.put("/v1/scenarios/group", json={"filters": ["group = $group or id = context.also"]})
    answer = await ask(
        shop,
        {"k": 60, "scenario": "group", "exclude": [whole[1]]},
        {"k": 60, "scenario": "group", "parameters": {"group": 3}},
        {"k": 60},
        exclude=[whole[0]],
        parameters={"group": 2},
        context={"also": whole[5]},
    )
    assert answer["lists"][0]["scenario"] == {"name": "group", "version": 1}
    first, second, third = map(ids, answer["lists"])

    def of(group):
        return [item for item in whole[1:] if int(item[5:]) % 6 == group or item == whole[5]]

    assert first == [item for item in of(2) if item != whole[1]]
    assert second == [item for item in of(3) if item not in first]
    assert sorted([*first, *second, *third, whole[0]]) == sorted(whole)


async def test_a_pin_of_an_item_that_stands_already_gives_way_and_debug_says_where_it_is(shop):
    whole = ids(await alone(shop, k=60))
    pin = [{"item_id": whole[0], "position": 2}]
    answer = await ask(shop, {"k": 3}, {"k": 3, "rules": {"pins": pin}, "debug": [whole[0], whole[3]]})
    second = answer["lists"][1]
    assert ids(second) == whole[3:6]
    assert [(one["rule"], one["item_id"]) for one in second["gave_way"]] == [("pin", whole[0])]
    assert [one["what"] for one in second["debug"]] == ["listed", "chosen"]


async def test_what_the_user_had_is_left_out_of_all(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, seen_items="exclude")
    async with start(bundle_dir=folder) as client:
        await client.tell(*(event("u", number, number) for number in range(5)))
        answer = await ask(client, {"k": 30}, {"k": 30}, {"k": 60, "rules": {"exclude_had": []}})
        first, second, third = map(ids, answer["lists"])
        assert sorted(first + second) == [f"item-{row:03d}" for row in range(5, 60)]
        assert sorted(third) == [f"item-{row:03d}" for row in range(5)]


async def test_the_user_is_loaded_once_and_others_are_answered_in_between(shop, monkeypatch):
    loads, load = [], RedisStore.load

    async def counted(store, tenant, model_id, user_ids, *rest):
        loads.extend(user_ids)
        return await load(store, tenant, model_id, user_ids, *rest)

    monkeypatch.setattr(RedisStore, "load", counted)
    ended = []

    async def note(name, work):
        answer = await work
        ended.append(name)
        return answer

    lists = note("lists", ask(shop, *[{"k": 2}] * 20))
    others = [note("other", shop.ask("v")) for _ in range(3)]
    answer, *_ = await asyncio.gather(lists, *others)
    assert loads.count("u") == 1
    assert len({item for one in answer["lists"] for item in ids(one)}) == 40
    assert ended[-1] == "lists"


async def test_where_storage_goes_away_all_lists_are_the_fallback_and_none_repeats(shop, monkeypatch):
    await shop.put("/v1/scenarios/even", json=EVEN)
    await ask(shop, {"scenario": "even"})

    async def away(*_, **__):
        raise StorageError("away")

    monkeypatch.setattr(RedisStore, "all", away)
    monkeypatch.setattr(RedisStore, "load", away)
    answer = await ask(shop, {"k": 10, "scenario": "even"}, {"k": 60})
    assert (answer["degraded"], answer["reason"]) == (True, "storage_unavailable")
    first, second = map(ids, answer["lists"])
    assert [int(item[5:]) % 2 for item in first] == [0] * 10
    assert sorted(first + second) == [f"item-{row:03d}" for row in range(60)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "lists"),
        ({"lists": []}, "lists"),
        ({"lists": [{"name": str(n)} for n in range(21)]}, "lists"),
        ({"lists": [{"k": 3}]}, "lists.0.name"),
        ({"lists": [{"name": "a"}, {"name": "b", "k": 0}]}, "lists.1.k"),
        ({"lists": [{"name": "a"}, {"name": "a"}]}, ""),
        ({"lists": [{"name": "a", "user_id": "u"}]}, "lists.0.user_id"),
        ({"lists": [{"name": "a", "rules": {"filters": ["even ="]}}]}, "lists.0.rules.filters.0"),
        ({"lists": [{"name": "a"}, {"name": "b", "rules": {"caps": [{"attribute": "x", "most": 1}]}}]}, "lists.1.rules.caps"),
        ({"lists": [{"name": "a"}], "events": []}, ""),
        ({"lists": [{"name": "a"}], "k": 3}, "k"),
    ],
)
async def test_a_bad_question_is_told_which_field(shop, body, field):
    response = await shop.post("/v1/recommendations/lists", json={"user_id": "u"} | body)
    problem = json.loads(response.content)
    kind = "filter" if "filters" in field else "request"
    assert (response.status_code, problem["type"]) == (422, f"urn:longwave:problem:invalid-{kind}")
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_rules_that_cannot_be_followed_say_in_which_list(shop):
    problem = await ask(shop, {}, {"rules": {"filters": ["evn = true"]}}, status=422)
    assert problem["detail"].startswith("lists.1: ")
    problem = await ask(shop, {}, {}, {"scenario": "none"}, status=404)
    assert problem["detail"].startswith("lists.2: ")
    # And a single list says it as it always did.
    single = await shop.post(
        "/v1/recommendations", json={"events": [{"type": "view", "text": "x"}], "rules": {"filters": ["evn = 1"]}}
    )
    assert "lists" not in single.json()["detail"]
