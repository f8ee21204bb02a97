"""Experiments over HTTP: what is stored, who is in which arm, and what each arm gets."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from bundle_edit import edit_manifest
from conftest import START_MS, event, history, same_list
from structlog.testing import capture_logs
from test_impressions_api import counted, shown

from app.errors import StorageError
from app.models.hall import Hall
from app.recommend.experiment import HOLDOUT, Experiment, ExperimentSettings
from app.state import keys
from app.state.lists import read_list_id
from app.state.redis import RedisStore
from app.state.versioned import VersionedStore

MOMENT = START_MS + 10**9
EVEN = {"filters": ["even = true"]}
ARMS = [{"name": "as it was", "share": 1}, {"name": "even", "share": 1, "scenario": "even only"}]
BODY = {"arms": ARMS, "holdout": 0.3}
SETTLED = Experiment("rows", 1, ExperimentSettings.model_validate(BODY))


def arm(user_id):
    found = SETTLED.arm_of(user_id)
    return HOLDOUT if found is None else found.name


# A user with a history of each arm.
OF_ARM = {arm(f"u{n}"): f"u{n}" for n in range(40)}


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def even(item_id):
    return int(item_id.removeprefix("item-")) % 2 == 0


async def put(client, name="rows", status=200, **body):
    response = await client.put(f"/v1/experiments/{name}", json=BODY | body)
    assert response.status_code == status, response.text
    return json.loads(response.content)


async def ask(client, user_id, status=200, **fields):
    response = await client.post("/v1/recommendations", json={"user_id": user_id, "k": 10, "as_of": MOMENT} | fields)
    assert response.status_code == status, response.text
    return json.loads(response.content)


async def furnish(client):
    items = [{"item_id": f"item-{row:03d}", "attributes": {"even": row % 2 == 0}} for row in range(60)]
    assert (await client.post("/v1/items", json=items)).status_code == 200
    assert (await client.put("/v1/scenarios/even only", json=EVEN)).status_code == 200
    await client.tell(*(one for user_id in OF_ARM.values() for one in history(user_id, 20)))
    await put(client)


@pytest.fixture
async def shop(client):
    await furnish(client)
    return client


async def test_what_is_stored_is_said_with_its_versions(client):
    await client.put("/v1/scenarios/even only", json=EVEN)
    whole = BODY | {"description": "Rows of even items", "salt": "spring"}
    assert await put(client, **whole) == whole | {"name": "rows", "version": 1, "stopped": False}
    assert (await put(client, **whole))["version"] == 1
    assert (await put(client, **whole | {"stopped": True}))["version"] == 2
    assert await put(client, "other") == BODY | {"name": "other", "version": 1, "stopped": False, "salt": "other"}
    first = await client.get("/v1/experiments/rows", params={"version": 1})
    assert first.json() == whole | {"name": "rows", "version": 1, "stopped": False}
    assert (await client.get("/v1/experiments/rows")).json()["version"] == 2
    assert (await client.get("/v1/experiments/rows", params={"version": 3})).status_code == 404
    assert len((await client.get("/v1/experiments")).json()["experiments"]) == 2
    assert (await client.delete("/v1/experiments/rows")).json() == {"name": "rows"}
    for method in ("GET", "DELETE"):
        assert (await client.request(method, "/v1/experiments/rows")).status_code == 404
    assert (await put(client, **whole))["version"] > 2


@pytest.mark.parametrize("name", ["with space", "ü", "%", "?", "#", "a:b", "users", "..", "x" * 256, "%2525", "{}", "'\""])
async def test_any_name_without_a_slash_is_a_name(client, name):
    await client.put("/v1/scenarios/even only", json={"exclude": ["item-001"]})
    address = f"/v1/experiments/{''.join(f'%{byte:02X}' for byte in name.encode())}"
    assert (await client.put(address, json=BODY)).json()["name"] == name
    assert (await client.get(address)).json()["salt"] == name
    where = (await client.get(f"{address}/users/a/users/b c")).json()
    settled = Experiment(name, 1, ExperimentSettings.model_validate(BODY))
    assert (where["name"], where["user_id"], where["place"]) == (name, "a/users/b c", settled.place_of("a/users/b c"))
    answer = await client.ask("nobody", experiment=name, k=3)
    assert answer["experiment"]["name"] == name
    origin = read_list_id(answer["recommendation_id"])
    assert origin is not None
    assert (origin.experiment == name) == (len(name.encode()) <= 64)
    assert (await client.delete(address)).status_code == 200


@pytest.mark.parametrize("name", ["a%2Fb", "a/b", "a/users/u", "%00", "x" * 257])
async def test_other_names_are_refused(client, name):
    for method in ("PUT", "DELETE"):
        response = await client.request(method, f"/v1/experiments/{name}", json=BODY)
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "path.name")


@pytest.mark.parametrize(
    ("wrong", "fields"),
    [
        ({"arms": [ARMS[0], {"name": "b", "share": 1, "scenario": "nowhere"}]}, ["arms.1.scenario"]),
        (
            {
                "arms": [
                    {"name": "a", "share": 1, "scenario": "nowhere", "model_id": "0" * 16},
                    {"name": "b", "share": 1, "model_id": "no/model"},
                ]
            },
            ["arms.0.scenario", "arms.0.model_id", "arms.1.model_id"],
        ),
        ({"arms": [{"name": "holdout", "share": 1}]}, ["arms.0.name"]),
        ({"arms": [ARMS[0], ARMS[0]]}, ["arms"]),
        ({"holdout": 1}, ["holdout"]),
        ({"stopped": True, "arms": [{"name": "a", "share": 1, "scenario": "nowhere"}]}, ["arms.0.scenario"]),
    ],
)
async def test_what_arms_need_and_is_not_there_is_named(client, wrong, fields):
    await client.put("/v1/scenarios/even only", json=EVEN)
    problem = await put(client, status=422, **wrong)
    assert [error["field"] for error in problem["errors"]] == fields
    assert (await client.get("/v1/experiments")).json() == {"experiments": []}


async def test_each_arm_gets_its_own_and_says_which_it_is(shop):
    for name, user_id in OF_ARM.items():
        answer = await ask(shop, user_id, experiment="rows")
        assert answer["experiment"] == {"name": "rows", "version": 1, "arm": name}
        origin = read_list_id(answer["recommendation_id"])
        assert (origin.experiment, origin.experiment_version, origin.arm) == ("rows", 1, name)
        assert (origin.scenario, "scenario" in answer) == (("even only", True) if name == "even" else ("", False))
        where = (await shop.get(f"/v1/experiments/rows/users/{user_id}")).json()
        assert (where["arm"], where["version"], where["stopped"]) == (name, 1, False)
        same = await shop.ask(user_id, k=10, experiment="rows")
        same_list(same, answer)
        assert same["experiment"] == answer["experiment"]
    plain, evens, held = [await ask(shop, OF_ARM[name], experiment="rows") for name in ("as it was", "even", HOLDOUT)]
    same_list(plain, await ask(shop, OF_ARM["as it was"]))
    same_list(evens, await ask(shop, OF_ARM["even"], scenario="even only"))
    assert all(map(even, ids(evens)))
    assert (held["source"], held["reason"], held["degraded"], held["applied_events"]) == ("fallback", "holdout", False, 0)
    same_list(held, await ask(shop, "nobody"))
    assert (plain["source"], plain["reason"]) == ("model", None)


async def test_lists_are_counted_by_experiment_and_arm_and_so_is_what_they_led_to(shop):
    answers = {name: await ask(shop, user_id, experiment="rows") for name, user_id in OF_ARM.items()}
    await ask(shop, OF_ARM["even"])
    model = answers["even"]["model_id"]
    made = await counted(shop, "longwave_lists_total")
    assert made == {
        (model, "", "rows", "as it was", "model"): 1,
        (model, "even only", "rows", "even", "model"): 1,
        (model, "", "rows", "holdout", "fallback"): 1,
        (model, "", "", "", "model"): 1,
    }
    for answer in answers.values():
        assert (await shop.post("/v1/impressions", json=shown(answer, answer["user_id"]))).status_code == 200
    await shop.tell(event(OF_ARM["even"], 2, type="view", recommendation_id=answers["even"]["recommendation_id"]))
    assert {labels[2:] for labels in await counted(shop, "longwave_lists_shown_total")} == {("rows", name) for name in OF_ARM}
    assert await counted(shop, "longwave_list_events_total") == {(model, "even only", "rows", "even", "view"): 1}


async def test_who_is_held_out_gets_what_is_popular_under_the_rules_of_the_request(shop):
    held = OF_ARM[HOLDOUT]
    had = {one["item_id"] for one in history(held, 20)}
    answer = await ask(shop, held, k=60, experiment="rows", rules=EVEN | {"exclude_had": [{}], "exclude": ["item-002"]})
    assert set(ids(answer)) == {f"item-{row:03d}" for row in range(0, 60, 2)} - had - {"item-002"}
    assert (answer["reason"], "scenario" in answer) == ("holdout", False)
    purchases = {one["item_id"] for one in history(held, 20) if one["type"] == "purchase"}
    answer = await ask(shop, held, k=60, experiment="rows", rules={"exclude_had": [{"types": ["purchase"]}]}, debug=sorted(had))
    assert not purchases & set(ids(answer))
    assert {one["item_id"] for one in answer["debug"] if one["what"] == "had"} == purchases
    await shop.put(f"/v1/users/{held}", json={"attributes": {"country": "Norway"}})
    await shop.patch("/v1/items/item-011", json={"attributes": {"land": "Norway"}})
    answer = await ask(shop, held, experiment="rows", rules={"filters": ["land = user.country"]})
    assert ids(answer) == ["item-011"]
    answer = await ask(shop, held, experiment="rows", explain=True)
    assert {item["explanation"]["why"] for item in answer["items"]} == {"popular"}


async def test_where_people_do_not_come_back_to_what_they_had_the_holdout_does_not_either(start, tiny_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    edit_manifest(folder, seen_items="exclude")
    held = OF_ARM[HOLDOUT]
    had = {one["item_id"] for one in history(held, 20)}
    async with start(bundle_dir=folder) as client:
        await furnish(client)
        whole = ids(await ask(client, "nobody", k=60))
        assert ids(await ask(client, held, k=60, experiment="rows")) == [item for item in whole if item not in had]
        lists = {"user_id": held, "as_of": MOMENT, "experiment": "rows", "lists": [{"name": "a", "k": 5}, {"name": "b", "k": 60}]}
        rows = (await client.post("/v1/recommendations/lists", json=lists)).json()
        assert [item for one in rows["lists"] for item in ids(one)] == [item for item in whole if item not in had]
        # a rule of the request says otherwise
        assert ids(await ask(client, held, k=60, experiment="rows", rules={"exclude_had": []})) == whole


async def test_several_lists_are_all_of_one_arm(shop):
    for name, user_id in OF_ARM.items():
        lists = [{"name": "a", "k": 5}, {"name": "b", "k": 5, "rules": {"exclude": ["item-004"]}}]
        body = {"user_id": user_id, "as_of": MOMENT, "experiment": "rows", "lists": lists}
        response = await shop.post("/v1/recommendations/lists", json=body)
        answer = response.json()
        assert answer["experiment"] == {"name": "rows", "version": 1, "arm": name}
        assert {read_list_id(one["recommendation_id"]).arm for one in answer["lists"]} == {name}
        assert answer["reason"] == ("holdout" if name == HOLDOUT else None)
        every = [item for one in answer["lists"] for item in ids(one)]
        assert len(set(every)) == 10
        assert name != "even" or all(map(even, every))
        assert "item-004" not in ids(answer["lists"][1])


async def test_a_batch_has_each_user_in_their_own_arm(shop):
    users = [*OF_ARM.values(), *(f"new {n}" for n in range(30))]
    response = await shop.post(
        "/v1/recommendations/batch", json={"user_ids": users, "k": 5, "as_of": MOMENT, "experiment": "rows"}
    )
    lines = [json.loads(line) for line in response.content.splitlines()]
    assert [line["user_id"] for line in lines] == users
    assert [line["experiment"]["arm"] for line in lines] == [arm(user_id) for user_id in users]
    for line in lines[:3]:
        same_list(line, await ask(shop, line["user_id"], k=5, experiment="rows"))
    reasons = {line["experiment"]["arm"]: line["reason"] for line in lines[3:]}
    assert reasons == {"as it was": "unknown_user", "even": "unknown_user", HOLDOUT: "holdout"}


async def test_a_request_names_one_of_scenario_and_experiment_and_a_user(shop):
    response = await shop.get("/v1/users/u/recommendations", params={"scenario": "even only", "experiment": "rows"})
    assert (response.status_code, [error["field"] for error in response.json()["errors"]]) == (
        422,
        ["query.scenario", "query.experiment"],
    )
    problem = await ask(shop, "u", 422, scenario="even only", experiment="rows")
    assert [error["field"] for error in problem["errors"]] == ["scenario", "experiment"]
    assert "scenario" in problem["detail"]
    assert "experiment" in problem["detail"]
    for events in ([], [{"type": "view", "item_id": "item-001"}]):
        problem = await ask(shop, None, 422, events=events, experiment="rows")
        assert [error["field"] for error in problem["errors"]] == ["experiment"]
        body = {"events": events, "experiment": "rows", "lists": [{"name": "a"}]}
        assert (await shop.post("/v1/recommendations/lists", json=body)).status_code == 422
    lists = [{"name": "a"}, {"name": "b", "scenario": "even only"}]
    response = await shop.post("/v1/recommendations/lists", json={"user_id": "u", "experiment": "rows", "lists": lists})
    assert [error["field"] for error in response.json()["errors"]] == ["lists.1.scenario", "experiment"]
    body = {"user_ids": ["u"], "experiment": "rows", "scenario": "even only"}
    assert (await shop.post("/v1/recommendations/batch", json=body)).status_code == 422


async def test_one_that_is_not_there_or_not_any_more_is_a_404_everywhere(shop):
    assert (await shop.delete("/v1/experiments/rows")).status_code == 200
    await ask(shop, "u", 404, experiment="rows")
    assert (await shop.get("/v1/users/u/recommendations", params={"experiment": "rows"})).status_code == 404
    assert (await shop.get("/v1/experiments/rows/users/u")).status_code == 404
    for path, body in [
        ("lists", {"user_id": "u", "lists": [{"name": "a"}]}),
        ("batch", {"user_ids": ["u"]}),
    ]:
        response = await shop.post(f"/v1/recommendations/{path}", json=body | {"experiment": "rows"})
        assert (response.status_code, "rows" in response.json()["detail"]) == (404, True)


async def test_of_a_stopped_one_everybody_gets_the_first_arm_and_no_list_is_its_own(shop):
    await put(shop, arms=[*reversed(ARMS)], stopped=True)
    for user_id in OF_ARM.values():
        answer = await ask(shop, user_id, experiment="rows")
        assert ("experiment" in answer, answer["scenario"]["name"], answer["source"]) == (False, "even only", "model")
        assert read_list_id(answer["recommendation_id"]).experiment == ""
        where = (await shop.get(f"/v1/experiments/rows/users/{user_id}")).json()
        assert (where["arm"], where["stopped"], where["version"]) == ("even", True, 2)
    response = await shop.post("/v1/recommendations/batch", json={"user_ids": list(OF_ARM.values()), "experiment": "rows"})
    assert not any("experiment" in json.loads(line) for line in response.content.splitlines())
    again = await put(shop)
    assert again["version"] == 3
    assert (await ask(shop, OF_ARM[HOLDOUT], experiment="rows"))["experiment"]["arm"] == HOLDOUT


async def test_one_whose_scenario_has_gone_says_so_and_can_be_stopped(shop):
    await shop.delete("/v1/scenarios/even only")
    problem = await ask(shop, OF_ARM["even"], 404, experiment="rows")
    assert [word in problem["detail"] for word in ("'rows'", "'even'", "'even only'")] == [True] * 3
    assert (await ask(shop, OF_ARM["as it was"], experiment="rows"))["experiment"]["arm"] == "as it was"
    response = await shop.post("/v1/recommendations/batch", json={"user_ids": ["u"], "experiment": "rows"})
    assert (response.status_code, "'even only'" in response.json()["detail"]) == (404, True)
    await put(shop, status=422)
    await put(shop, stopped=True)
    assert ids(await ask(shop, OF_ARM["even"], experiment="rows"))
    response = await shop.post("/v1/recommendations/batch", json={"user_ids": ["u"], "experiment": "rows"})
    assert response.status_code == 200


async def test_a_batch_under_rules_that_an_arm_makes_too_many_is_refused_before_its_first_line(shop):
    await shop.put("/v1/scenarios/even only", json={"filters": [" and ".join(["even = true"] * 200)]})
    body = {"user_ids": ["u"], "experiment": "rows", "rules": EVEN}
    response = await shop.post("/v1/recommendations/batch", json=body)
    assert (response.status_code, "arm 'even'" in response.json()["detail"]) == (422, True)
    await ask(shop, OF_ARM["even"], 422, experiment="rows", rules=EVEN)
    response = await shop.post("/v1/recommendations/batch", json=body | {"rules": {"filters": ["odd = true"]}})
    assert (response.status_code, "arm" in response.json()["detail"]) == (422, False)


async def test_every_worker_says_the_same_also_after_a_restart(start):
    users = [f"user {n}" for n in range(40)]

    async def arms(client):
        return [(await client.ask(user_id, k=1, experiment="rows"))["experiment"]["arm"] for user_id in users]

    async with start(catalogue_poll_ms=50) as one, start(catalogue_poll_ms=50) as other:
        await furnish(one)
        assert await arms(one) == await arms(other) == [arm(user_id) for user_id in users]
        # The one that took the change knows it at once.
        await put(one, holdout=0.0)
        assert HOLDOUT not in await arms(one)
        await put(one)
    async with start() as anew:
        assert await arms(anew) == [arm(user_id) for user_id in users]


async def test_a_change_reaches_other_workers_within_the_poll_and_until_then_they_know_the_version_before(start, monkeypatch):
    import app.recommend.remembered as remembered

    now = [1_000.0]
    monkeypatch.setattr(remembered, "monotonic", lambda: now[0])
    async with start(catalogue_poll_ms=500) as one, start(catalogue_poll_ms=500) as other:
        await furnish(one)
        user_id = OF_ARM["as it was"]
        assert (await ask(other, user_id, experiment="rows"))["experiment"]["version"] == 1
        await put(one, holdout=0.31)
        assert (await ask(one, user_id, experiment="rows"))["experiment"]["version"] == 2
        assert (await ask(other, user_id, experiment="rows"))["experiment"]["version"] == 1
        now[0] += 0.6
        assert (await ask(other, user_id, experiment="rows"))["experiment"]["version"] == 2
        await one.delete("/v1/experiments/rows")
        await ask(one, user_id, 404, experiment="rows")
        await ask(other, user_id, 200, experiment="rows")
        now[0] += 0.6
        await ask(other, user_id, 404, experiment="rows")


async def test_while_storage_is_away_experiments_hold_that_were_read_before(shop, monkeypatch):
    await put(shop, "unread")
    for user_id in OF_ARM.values():
        await ask(shop, user_id, experiment="rows")

    async def away(*_, **__):
        raise StorageError("away")

    for name in ("all", "load", "run"):
        monkeypatch.setattr(RedisStore, name, away)
    for name, user_id in OF_ARM.items():
        answer = await ask(shop, user_id, experiment="rows")
        assert answer["experiment"]["arm"] == name
        assert (answer["degraded"], answer["source"]) == (name != HOLDOUT, "fallback")  # which needs nothing of storage
        assert answer["reason"] == ("holdout" if name == HOLDOUT else "storage_unavailable")
        assert name != "even" or all(map(even, ids(answer)))
    held = OF_ARM[HOLDOUT]
    answer = await ask(shop, held, experiment="rows", rules={"exclude_had": [{}]})
    assert answer["gave_way"] == [{"rule": "exclude_had", "reason": "storage_unavailable"}]
    await ask(shop, held, 503, experiment="rows", rules={"filters": ["even = user.even"]})
    await ask(shop, held, 503, experiment="unread")
    for method, path in [("PUT", "/v1/experiments/rows"), ("GET", "/v1/experiments"), ("DELETE", "/v1/experiments/rows")]:
        assert (await shop.request(method, path, json=BODY)).status_code == 503


async def test_storage_that_has_just_been_found_away_is_not_waited_for_again_where_experiment_and_scenario_were_read_before(
    shop, monkeypatch
):
    for user_id in OF_ARM.values():
        await ask(shop, user_id, experiment="rows")
    await ask(shop, "u", scenario="even only")
    await asyncio.sleep(0.15)  # past the poll
    asked: list[str] = []

    async def current(_: object) -> None:
        raise StorageError("away")

    async def get(self: VersionedStore, name: str, *_: object) -> None:
        asked.append(name)
        raise StorageError("away")

    monkeypatch.setattr(Hall, "current", current)
    monkeypatch.setattr(VersionedStore, "get", get)
    for name, user_id in OF_ARM.items():
        answer = await ask(shop, user_id, experiment="rows")
        assert (answer["experiment"]["arm"], answer["degraded"]) == (name, True)
        lists = {"user_id": user_id, "experiment": "rows", "lists": [{"name": "a"}]}
        assert (await shop.post("/v1/recommendations/lists", json=lists)).json()["experiment"]["arm"] == name
    assert all(map(even, ids(await ask(shop, "u", scenario="even only"))))
    assert not asked
    await ask(shop, "u", 503, experiment="unread")
    assert asked == ["unread"]


async def test_the_models_of_running_experiments_are_known_also_while_storage_is_away(client, monkeypatch, raw):
    experiments = client._transport.app.state.hook.models.experiments  # type: ignore[attr-defined]
    assert await experiments.models() == []
    model = (await client.ask("u", k=1))["model_id"]
    arms = [{"name": "a", "share": 1}, {"name": "b", "share": 1, "model_id": model}]
    await put(client, "one", arms=arms)
    await put(client, "two", arms=arms[:1])
    assert await experiments.models() == [model]
    # One that only a later version understands hides no other.
    raw.hset(keys.named_key("default", "experiment"), "later", '3 {"bandit":{}}')
    assert await experiments.models() == [model]
    problem = await ask(client, "u", 503, experiment="later")
    assert "another version" in problem["detail"]
    await client.delete("/v1/experiments/later")
    assert len((await client.get("/v1/experiments")).json()["experiments"]) == 2

    async def away(*_, **__):
        raise StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(RedisStore, "all", away)
        assert await experiments.models() == [model]
    await put(client, "one", arms=arms, stopped=True)
    assert await experiments.models() == []


async def test_what_is_damaged_is_named_beside_the_others_and_can_be_taken_away(shop, raw):
    whole = {kind: (await shop.get(f"/v1/{kind}s")).json() for kind in ("experiment", "scenario")}
    for kind, every in whole.items():
        damage = (
            {"bad": "nonsense", "later": '3 {"bandit":{}}', "no json": "3 {"}
            if kind == "experiment"
            else {"bad": "", "deep": '3 {"a":' + "[" * 20_000, "list": "3 []", "no text": b'3 {"filters":["\xff"]}'}
        )
        raw.hset(keys.named_key("default", kind), mapping={keys.encode_id(name): value for name, value in damage.items()})
        with capture_logs() as logs:
            response = await shop.get(f"/v1/{kind}s")
        assert response.status_code == 200, response.text
        answer = response.json()
        assert [one["name"] for one in logs if one["event"] == f"a stored {kind} is damaged"] == sorted(damage)
        assert answer[f"{kind}s"] == every[f"{kind}s"]
        assert [one["name"] for one in answer["damaged"]] == sorted(damage)
        assert all("store it again" in one["reason"] for one in answer["damaged"])
        for name in damage:
            problem = (await shop.get(f"/v1/{kind}s/{name}")).json()
            assert (problem["status"], name in problem["detail"]) == (503, True)
            assert (await shop.delete(f"/v1/{kind}s/{name}")).status_code == 200
        assert (await shop.get(f"/v1/{kind}s")).json() == every


async def test_an_arm_of_the_active_model_is_served_and_one_that_is_not_open_is_counted(client, tiny_bundle, monkeypatch):
    active = (await client.ask("u", k=1))["model_id"]
    await put(client, "models", arms=[{"name": "a", "share": 1, "model_id": active}], holdout=0)
    assert (await client.ask("u", k=1, experiment="models"))["experiment"]["arm"] == "a"
    assert await client.tell(event("u", 1))
    hall = client._transport.app.state.hook.models.hall  # type: ignore[attr-defined]
    monkeypatch.setattr(type(hall), "beside", lambda self, model_id: None)
    for _ in range(2):
        answer = await client.ask("u", k=1, experiment="models")
        assert ("experiment" in answer, answer["source"]) == (False, "model")
        assert read_list_id(answer["recommendation_id"]).experiment == ""
    response = await client.post("/v1/recommendations/batch", json={"user_ids": ["u", "v", "w"], "experiment": "models"})
    assert len(response.content.splitlines()) == 3
    text = (await client.get("/metrics")).text
    assert 'longwave_experiment_unserved_total{arm="a",experiment="models"} 5.0' in text
