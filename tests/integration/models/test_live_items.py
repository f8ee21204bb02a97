"""Items that are added, changed and taken out while the service runs, on two workers and one Redis."""

from __future__ import annotations

import asyncio
import json
import time
import warnings

import numpy as np
import pytest
from conftest import AS_OF_MS, event

from app.recommend import live
from app.state import keys

ROUND = {"feature_round": 2.0, "feature_warm": -1.0}


@pytest.fixture(scope="session")
def content_models(tmp_path_factory):
    """Two bundles that understand features, in one folder, and their ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tiny_bundle import write_tiny_bundle

        folder = tmp_path_factory.mktemp("content")
        ids = []
        for seed in (0, 1):
            bundle = write_tiny_bundle(folder / "new", seed=seed, content=True)
            ids.append(json.loads((bundle / "manifest.json").read_bytes())["model_id"])
            bundle.rename(folder / ids[-1])
    return folder, *ids


@pytest.fixture
async def two(start, content_models):
    folder, old, _ = content_models
    async with start(folder, old, catalogue_poll_ms=20) as one, start(folder, old, catalogue_poll_ms=20) as other:
        yield one, other


async def put(worker, item_id, **fields):
    response = await worker.put(f"/v1/items/{item_id}", json=fields)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


async def item(worker, item_id):
    return json.loads((await worker.get(f"/v1/items/{item_id}")).content)


async def until(holds, seconds=8.0):
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def is_known(worker, item_id):
    async def holds():
        return (await item(worker, item_id)).get("known", False)

    return holds


def in_list(worker, item_id, user="u", there=True):
    async def holds():
        return (item_id in [one["item_id"] for one in (await worker.ask(user, k=100))["items"]]) == there

    return holds


async def test_a_new_item_is_in_the_lists_of_every_worker_within_a_second(two):
    one, other = two
    await one.tell(event("u", 1) | {"type": "view"})  # does not count towards popularity, of which the other one hears later
    began = time.monotonic()
    answer = await put(
        one, "new", title="A new thing", features=ROUND, attributes={"price": 3.5, "tags": ["a", "b"], "new": True}
    )
    assert answer == {"item_id": "new", "version": 1}
    for worker in two:
        await until(in_list(worker, "new"), 1.0)
    assert time.monotonic() - began < 1
    lists = [[(each["item_id"], each["title"]) for each in (await worker.ask("u", k=100))["items"]] for worker in two]
    assert lists[0] == lists[1]
    assert len(lists[0]) == 61
    assert ("new", "A new thing") in lists[0]
    shown = await item(other, "new")
    assert shown["attributes"] == {"price": 3.5, "tags": ["a", "b"], "new": True}
    assert (shown["trained"], shown["known"], shown["available"], shown["version"]) == (False, True, True, 1)


async def test_its_vector_is_made_once_and_is_what_the_model_says(two, raw, content_models):
    one, _ = two
    await put(one, "new", title="New", features=ROUND)
    for worker in two:
        await until(is_known(worker, "new"))
    vectors = []
    for worker in two:
        service = await worker.hall.current()
        row = service.catalogue.row("new")
        vectors.append(service.catalogue.vectors[row])
        made = service.runtime.item({"features": np.asarray([[2.0, -1.0]], np.float32)})
        assert np.allclose(made["vector"][0], vectors[-1], atol=1e-6)
        assert service.catalogue.bias[row] == pytest.approx(float(made["bias"][0]))
    assert np.array_equal(*vectors)
    assert raw.hlen(keys.item_vectors_key("default", content_models[1])) == 1


async def test_what_is_hidden_deleted_or_out_of_its_time_is_in_no_list(two):
    one, other = two
    await one.tell(event("u", 1))
    await put(one, "item-003", hidden=True)
    await put(one, "item-004", available_to=AS_OF_MS)
    await put(one, "item-005", available_from=AS_OF_MS + 1)
    await put(one, "item-006", available_from=AS_OF_MS, available_to=AS_OF_MS + 1)
    assert (await one.delete("/v1/items/item-007")).status_code == 200
    gone = {"item-003", "item-004", "item-005", "item-007"}
    for worker in two:
        await until(in_list(worker, "item-007", there=False))
        listed = {each["item_id"] for each in (await worker.ask("u", k=100))["items"]}
        popular = {each["item_id"] for each in (await worker.ask("nobody", k=100))["items"]}
        assert len(listed) == len(popular) == 56
        assert not gone & (listed | popular)
        ranked = await worker.post("/v1/rankings", json={"user_id": "u", "items": ["item-003", "item-006"], "as_of": AS_OF_MS})
        assert [each["item_id"] for each in ranked.json()["items"]] == ["item-006"]
        assert ranked.json()["unknown_items"] == ["item-003"]
        alike = (await worker.get("/v1/items/item-001/similar", params={"k": 100})).json()["items"]
        assert "item-007" not in {each["item_id"] for each in alike}
    assert (await one.get("/v1/items/item-007")).status_code == 404
    await put(other, "item-007")
    await until(in_list(one, "item-007"))
    await put(other, "item-003", hidden=False)
    await until(in_list(one, "item-003"))


async def test_what_was_done_with_an_item_before_it_came_counts_from_then_on(two):
    one, _ = two
    early = [event("early", 1), event("early", 2) | {"item_id": "new"}, event("early", 3)]
    await one.tell(*early)
    before = await one.ask("early", k=60)
    for worker in two:
        await worker.ask("early")  # so that both hold the state
    await put(one, "new", title="New", features=ROUND)
    for worker in two:
        await until(is_known(worker, "new"))
    late = [event("late", 1), event("late", 2) | {"item_id": "new"}, event("late", 3)]
    await one.tell(*late)
    for worker in two:
        answers = [(await worker.ask(user, k=61))["items"] for user in ("early", "late")]
        assert [each["item_id"] for each in answers[0]] == [each["item_id"] for each in answers[1]]
        assert [each["score"] for each in answers[0]] == pytest.approx([each["score"] for each in answers[1]], abs=1e-3)
    assert {each["score"] for each in before["items"]} != {each["score"] for each in answers[0]}


async def test_a_state_is_folded_anew_once_and_only_if_it_met_the_item(two):
    one, _ = two
    await one.tell(event("met", 1) | {"item_id": "new"}, event("other", 1))
    for user in ("met", "other"):
        await one.ask(user)
    await put(one, "new", title="New", features=ROUND)
    await until(is_known(one, "new"))

    async def rebuilt():
        text = (await one.get("/metrics")).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if 'reason="item_arrived"' in line and "_total{" in line)

    assert await rebuilt() == 0
    for _ in range(3):
        for user in ("met", "other"):
            await one.ask(user)
    assert await rebuilt() == 1


async def test_a_patch_changes_what_it_names_and_null_takes_back(two):
    one, other = two
    await put(one, "new", title="New", description="d", attributes={"price": 1.0, "colour": "red"}, categories=["a"])
    answer = await one.patch(
        "/v1/items/new", json={"title": "Newer", "attributes": {"price": None, "size": 3}, "description": None}
    )
    assert answer.json() == {"item_id": "new", "version": 2}
    shown = await item(one, "new")
    assert (shown["title"], shown["description"], shown["categories"]) == ("Newer", None, ["a"])
    assert shown["attributes"] == {"colour": "red", "size": 3}
    assert (await one.patch("/v1/items/item-001", json={"hidden": True})).status_code == 200
    assert (await item(one, "item-001"))["title"] == "Thing 1"
    for wrong in ("nowhere", "gone"):
        assert (await one.patch(f"/v1/items/{wrong}", json={"title": "x"})).status_code == 404
    both = [one.patch("/v1/items/new", json={"attributes": {f"a{number}": number}}) for number in range(4)]
    both += [other.patch("/v1/items/new", json={"attributes": {f"b{number}": number}}) for number in range(4)]
    assert {answer.status_code for answer in await asyncio.gather(*both)} == {200}
    assert len((await item(one, "new"))["attributes"]) == 10


async def test_many_items_at_once_are_all_taken_or_none(two):
    one, other = two
    many = [{"item_id": f"n{number}", "title": f"N {number}", "features": ROUND} for number in range(300)]
    answer = await one.post("/v1/items", json={"items": many})
    assert answer.json() == {"items": 300, "version": 300}
    await until(is_known(other, "n299"))
    await until(is_known(other, "n0"))
    bad = await one.post("/v1/items", json=[{"item_id": "good"}, {"item_id": "bad", "title": 3}])
    assert bad.status_code == 422
    assert bad.json()["errors"][0]["field"] == "items.1.title"
    assert (await one.get("/v1/items/good")).status_code == 404
    typed = await one.post("/v1/items", json=[{"item_id": "good"}, {"item_id": "n1", "attributes": {"size": 3}}])
    assert typed.status_code == 200
    wrong = await one.post("/v1/items", json=[{"item_id": "fine"}, {"item_id": "bad", "attributes": {"size": "big"}}])
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "items.1.attributes.size")
    assert (await one.get("/v1/items/fine")).status_code == 404
    assert (await one.post("/v1/items", json=[{"item_id": f"n{n}"} for n in range(1001)])).status_code == 413


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"titel": "x"}, "titel"),
        ({"attributes": {"a": None}}, "attributes.a"),
        ({"attributes": {"a": {"b": 1}}}, "attributes.a"),
        ({"available_from": "2011-01-02T00:00:00Z", "available_to": "2011-01-01T00:00:00Z"}, ""),
        ({"available_from": "yesterday"}, "available_from"),
        ({"features": {"feature_round": "big"}}, "features.feature_round"),
        ({"hidden": "no"}, "hidden"),
        ([], ""),
    ],
)
async def test_a_bad_item_is_refused_and_the_field_named(two, body, field):
    one, _ = two
    answer = await one.put("/v1/items/new", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].startswith(field)
    assert (await one.get("/v1/items/new")).status_code == 404


async def test_items_outlive_a_restart_and_a_change_of_the_model(start, content_models, monkeypatch):
    folder, old, new = content_models
    async with start(folder, old) as worker:
        await worker.tell(event("u", 1))
        await put(worker, "new", title="New", features=ROUND)
        await worker.delete("/v1/items/item-007")
        await until(is_known(worker, "new"))
    made = live.LiveItems._make
    calls = []
    monkeypatch.setattr(live.LiveItems, "_make", lambda self, wanted: calls.append(len(wanted)) or made(self, wanted))
    async with start(folder, old) as worker:
        await until(in_list(worker, "new"))
        assert sum(calls) == 0  # the vector was kept
        await until(in_list(worker, "item-007", there=False))
        assert (await worker.activate(new)).status_code == 200
        assert sum(calls) == 1
        answer = await worker.ask("u", k=100)
        listed = {each["item_id"] for each in answer["items"]}
        assert (answer["model_id"], "new" in listed, "item-007" in listed) == (new, True, False)


async def test_what_was_done_with_an_item_that_is_gone_is_understood_by_every_worker(start, content_models):
    folder, old, _ = content_models
    async with start(folder, old) as before:
        await put(before, "new", title="New", features=ROUND)
        await until(is_known(before, "new"))
        assert (await before.delete("/v1/items/new")).status_code == 200
        assert (await before.delete("/v1/items/new")).json()["version"] == 2
        async with start(folder, old) as after:
            await before.tell(event("u", 1) | {"type": "view"}, event("u", 2) | {"type": "view", "item_id": "new"})
            await until(lambda: knows(after, "new"))
            lists = [(await worker.ask("u", k=100))["items"] for worker in (before, after)]
            assert lists[0] == lists[1]
            assert "new" not in {each["item_id"] for each in lists[0]}
            assert (await after.get("/v1/items/new")).status_code == 404
            assert (await put(after, "new", title="New", features=ROUND))["version"] == 3
            await until(in_list(before, "new"))


async def knows(worker, item_id):
    return (await worker.hall.current()).catalogue.knows(item_id)


async def test_a_store_that_was_emptied_has_the_bundles_items_again(two, raw):
    one, other = two
    await one.tell(event("u", 1))
    await put(one, "new", title="New", features=ROUND)
    await put(one, "item-003", title="Renamed", hidden=True)
    await until(in_list(other, "new"))
    raw.flushall()
    for number in range(5):
        await put(one, f"later-{number}", title="Later", features=ROUND)
    for worker in two:
        await until(in_list(worker, "later-4", user="v"))
        listed = {each["item_id"]: each["title"] for each in (await worker.ask("v", k=100))["items"]}
        assert "new" not in listed
        assert listed["item-003"] == "Thing 3"


async def test_who_has_fallen_behind_the_stream_reads_everything(two, raw):
    one, other = two
    await one.tell(event("u", 1))
    service = await other.hall.current()
    async with service.live._reading:  # the other one looks no more
        for number in range(30):
            await put(one, f"n{number}", title="N", features=ROUND)
        await one.delete("/v1/items/n3")
        raw.xtrim(keys.item_changes_key("default"), maxlen=4, approximate=False)
    await until(in_list(other, "n29"))
    await until(in_list(other, "n0"))
    await until(in_list(other, "n3", there=False))
    assert service.catalogue.version == 31


async def test_a_model_of_ids_alone_has_new_items_in_the_catalogue_and_in_no_list(start, two_models):
    folder, old, _ = two_models
    async with start(folder, old) as worker:
        await worker.tell(event("u", 1), event("u", 2) | {"item_id": "new"})
        await put(worker, "new", title="New", features=ROUND)
        shown = await item(worker, "new")
        assert (shown["known"], shown["available"], shown["title"]) == (False, True, "New")
        answer = await worker.ask("u", k=100)
        assert (len(answer["items"]), answer["source"]) == (60, "model")
        assert (await worker.get("/v1/items/new/similar")).json()["items"] == []


async def test_an_item_waits_for_a_store_that_is_away(two, raw):
    one, _ = two
    raw.config_set("maxmemory", "1")
    try:
        refused = await one.put("/v1/items/new", json={"title": "New", "features": ROUND})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    finally:
        raw.config_set("maxmemory", "0")
    assert (await one.get("/v1/items/new")).status_code == 404
