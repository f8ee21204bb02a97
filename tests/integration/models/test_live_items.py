"""Items that are added, changed and taken out while the service runs, on two workers and one Redis."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from conftest import AS_OF_MS, event

from app.api import items
from app.recommend import live
from app.recommend.live import LiveItems
from app.runtime.text import TextEncoder
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


def is_known_of(worker, item_id):
    async def holds():
        return worker.hall.service.catalogue.row(item_id) is not None

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


async def test_a_new_title_is_read_by_the_models_text_encoder(start, trained_bundle):
    async with start(trained_bundle.parent, trained_bundle.name, catalogue_poll_ms=20) as worker:
        service = await worker.hall.current()
        words = service.catalogue.titles[3]
        kind = service.runtime.bundle.manifest.event_types[0].name
        await worker.tell({"user_id": "u", "item_id": service.catalogue.ids[0], "type": kind, "timestamp": AS_OF_MS - 1})
        await put(worker, "new", title=words)
        await until(in_list(worker, "new"))
        made = service.runtime.item({"text": TextEncoder(service.runtime.bundle, service.runtime.device, 1).embed([words])})
        assert np.abs(made["vector"][0]).max() > 0
        assert np.allclose(service.catalogue.vectors[service.catalogue.row("new")], made["vector"][0], atol=1e-5)


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


async def test_of_many_items_each_bad_one_is_named_wherever_it_stands(two):
    one, _ = two
    many = [{"item_id": f"n{number}"} for number in range(250)]
    for place, bad in [(3, {"item_id": "a", "title": 3}), (120, "no item"), (249, {"item_id": "b", "features": {"a": "big"}})]:
        many[place] = bad
    answer = await one.post("/v1/items", json={"items": many, "itmes": []})
    fields = [error["field"] for error in answer.json()["errors"]]
    assert (answer.status_code, sorted(fields)) == (422, ["items.120", "items.249.features.a", "items.3.title", "itmes"])
    assert answer.json()["detail"].startswith(f"{fields[0]}: ")
    answer = await one.post("/v1/items", json=[{"item_id": "n", "title": 3}] * 1_000)
    assert [error["field"] for error in answer.json()["errors"]] == [f"items.{number}.title" for number in range(100)]
    for body in ({"items": []}, {"items": {}}, {}, [], 3, None):
        assert (await one.post("/v1/items", json=body)).status_code == 422
    assert (await one.get("/v1/items/n0")).status_code == 404


async def test_a_thousand_items_leave_other_requests_their_turns(two, monkeypatch):
    one, other = two
    await put(one, "first")
    await until(is_known_of(other, "first"))  # of a store that is new to it, a worker reads everything
    done: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def watched(owner, name):
        original = getattr(owner, name)

        def counted(*args):
            done[name] += 1
            return original(*args)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in [(items.NamedItemBody, "item"), (items, "kinds_of"), (LiveItems, "_put")]:
        watched(owner, name)
    total: Counter[str] = Counter()

    async def watch() -> None:
        while True:
            for name, count in done.items():
                most[name] = max(most[name], count)
            total.update(done)
            done.clear()
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    answer = await one.post("/v1/items", json=[{"item_id": f"n{n}", "attributes": {"size": n}} for n in range(1_000)])
    assert answer.status_code == 200

    async def all_there():
        return total["_put"] + done["_put"] == 2_000

    await until(all_there)
    await asyncio.sleep(0.01)
    watching.cancel()
    assert (total["item"], total["kinds_of"], total["_put"]) == (1_000, 1_000, 2_000)
    assert max(most.values()) <= 100  # of both workers, which are in one process here


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"titel": "x"}, "titel"),
        ({"attributes": {"a": None}}, "attributes.a"),
        ({"attributes": {"a": {"b": 1}}}, "attributes.a"),
        ({"attributes": {"a": ["x", 1]}}, "attributes.a"),
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
    assert [error["field"] for error in answer.json()["errors"]] == [field]
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


@pytest.mark.parametrize("time", [2**63, -(2**63) - 1, 2**62, -1, "0001-01-01T00:00:00Z"])
async def test_an_impossible_time_is_refused(two, time):
    for field in ("available_from", "available_to"):
        answer = await two[0].put("/v1/items/new", json={field: time})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


async def test_what_cannot_be_taken_over_of_one_item_holds_nobody_up(two, raw, start, content_models):
    one, _ = two
    await put(one, "poison", title="Poison")
    await put(one, "torn", title="Torn")
    raw.hset(keys.items_key("default"), "poison", b'1 1 {"available_from":' + str(2**70).encode() + b"}")
    raw.hset(keys.items_key("default"), "torn", b"what?")
    await put(one, "item-003", hidden=True)
    await one.tell(event("u", 1))
    for worker in two:
        await until(in_list(worker, "item-003", there=False))
    assert (await one.get("/v1/items/torn")).status_code == 503
    async with start(content_models[0], content_models[1]) as third:
        await until(in_list(third, "item-003", there=False))
        assert (await third.get("/v1/items/item-004")).status_code == 200


async def test_a_quiet_catalogue_is_left_alone(two):
    one, _ = two
    await put(one, "new", title="New", features=ROUND)
    await until(is_known(one, "new"))
    catalogue = (await one.hall.current()).catalogue
    changes, bias = catalogue.changes, catalogue.bias_at(AS_OF_MS)
    await asyncio.sleep(0.2)  # some ten looks
    assert catalogue.changes == changes
    assert catalogue.bias_at(AS_OF_MS + 1) is bias


async def test_an_attribute_has_one_type_for_all_items_on_all_workers_for_ever(two, start, content_models):
    one, other = two
    answer = await one.post(
        "/v1/items", json=[{"item_id": "a", "attributes": {"c": "red"}}, {"item_id": "b", "attributes": {"c": 5}}]
    )
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "items.1.attributes.c")
    await put(one, "a", attributes={"c": 5})
    await put(one, "a")
    async with start(content_models[0], content_models[1]) as late:
        for worker in (one, other, late):
            refused = await worker.put("/v1/items/d", json={"attributes": {"c": "red", "price": 3}})
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "attributes.c")
        await put(late, "d", attributes={"c": 6, "price": 3})
        await one.tell(event("u", 1))
        for worker in (one, other, late):
            await until(is_known_of(worker, "d"))  # before, it does not know of a price at all
            found = await worker.post(
                "/v1/recommendations", json={"user_id": "nobody", "rules": {"filters": ["c = 6 and price = 3"]}}
            )
            assert [each["item_id"] for each in found.json()["items"]] == ["d"]


async def test_a_reader_of_a_long_history_comes_to_an_end_while_items_arrive(two):
    one, _ = two
    for start in range(0, 3_000, 1_000):
        some = [event("u", 1, n) | {"item_id": f"gone-{n % 60}", "type": "view"} for n in range(start, start + 1_000)]
        await one.tell(*some)
    arriving = True

    async def arrive():
        number = 0
        while arriving:
            await put(one, f"new-{number}", title="New", features=ROUND)
            number += 1
            await asyncio.sleep(0.01)

    task = asyncio.create_task(arrive())
    try:
        for _ in range(5):
            answer = await asyncio.wait_for(one.ask("u"), 20)
            assert answer["applied_events"] == 3_000
    finally:
        arriving = False
        await task


async def test_a_long_history_that_met_an_item_before_it_came_is_folded_anew(two):
    one, _ = two
    told = [{"item_id": f"item-{n % 60:03d}", "type": "view"} for n in range(1_000)]
    told[500]["item_id"] = "new"
    for user in ("early", "late"):
        if user == "late":
            await put(one, "new", title="New", features=ROUND)
            await until(is_known(one, "new"))
        await one.tell(*(event(user, 1, n) | each for n, each in enumerate(told)))
        await one.ask(user)
    lists = [(await one.ask(user, k=61))["items"] for user in ("early", "late")]
    assert [each["item_id"] for each in lists[0]] == [each["item_id"] for each in lists[1]]
    assert [each["score"] for each in lists[0]] == pytest.approx([each["score"] for each in lists[1]], abs=1e-3)


async def test_one_item_that_cannot_be_encoded_takes_no_other_along(two, monkeypatch):
    one, _ = two
    made = live.LiveItems._make

    def breaks(self, wanted):
        if any(each.item_id == "n7" for each in wanted):
            raise RuntimeError("no")
        return made(self, wanted)

    monkeypatch.setattr(live.LiveItems, "_make", breaks)
    items = [{"item_id": f"n{n}", "title": "N", "features": ROUND} for n in range(40)]
    assert (await one.post("/v1/items", json=items)).status_code == 200
    for number in (0, 6, 8, 39):
        await until(is_known(one, f"n{number}"))
    assert not (await item(one, "n7"))["known"]


async def test_a_model_that_is_active_again_makes_the_vectors_that_it_had_begun(start, content_models, monkeypatch):
    folder, old, new = content_models
    async with start(folder, old, catalogue_poll_ms=20) as worker:
        made, begun, goes_on = LiveItems._make, threading.Event(), threading.Event()

        def stands_still(self, wanted):
            if self is live_items and not goes_on.is_set():
                begun.set()
                goes_on.wait(20)
            return made(self, wanted)

        live_items = worker.hall.service.live
        monkeypatch.setattr(LiveItems, "_make", stands_still)
        await put(worker, "new", title="New", features=ROUND)
        assert await asyncio.to_thread(begun.wait, 20)
        assert (await worker.activate(new)).status_code == 200
        goes_on.set()
        assert (await worker.activate(old)).status_code == 200
        await until(is_known(worker, "new"))


async def test_a_vector_goes_with_the_content_that_it_was_made_of(two):
    one, _ = two
    await put(one, "new", title="New", features=ROUND)
    await until(is_known(one, "new"))
    await put(one, "new", title="New")
    assert not (await item(one, "new"))["known"]
    await put(one, "strange", title="Strange", features={"nothing_of_ours": 1.0})
    await asyncio.sleep(0.1)
    assert not (await item(one, "strange"))["known"]


async def test_a_scenario_that_was_deleted_and_stored_again_has_its_new_rules_everywhere(two):
    one, _ = two
    await one.tell(event("u", 1))
    asked = {"user_id": "u", "scenario": "s", "k": 100, "as_of": AS_OF_MS}
    await one.put("/v1/scenarios/s", json={"exclude": ["item-001"]})
    for worker in two:
        assert "item-001" not in (await worker.post("/v1/recommendations", json=asked)).text
    await one.delete("/v1/scenarios/s")
    await one.put("/v1/scenarios/s", json={"exclude": ["item-002"]})

    def holds(worker):
        async def new_rules():
            text = (await worker.post("/v1/recommendations", json=asked)).text
            return "item-001" in text and "item-002" not in text

        return new_rules

    for worker in two:
        await until(holds(worker))


async def test_a_server_that_lost_its_last_change_and_gave_its_version_out_again_is_read_anew(two, raw, monkeypatch):
    one, other = two
    await put(one, "item-002", hidden=True)
    kept = raw.hgetall(keys.items_key("default"))
    await put(one, "item-003", hidden=True)
    await one.tell(event("u", 1) | {"type": "view"})
    await until(in_list(other, "item-003", there=False))
    services = [await worker.hall.current() for worker in two]
    for service in services:
        await service.live._reading.acquire()
    raw.delete(keys.items_key("default"))
    raw.hset(keys.items_key("default"), mapping=kept)
    raw.xtrim(keys.item_changes_key("default"), maxlen=0)
    raw.hset(keys.items_key("default"), "item-004", b'2 1 {"hidden":true}')
    raw.hset(keys.items_key("default"), "", kept[b""].replace(b"1 ", b"2 ", 1))
    for service in services:
        service.store._transport.generation += 1  # as it does when another server answers
        service.live._reading.release()
    for worker in two:
        await until(in_list(worker, "item-004", there=False))
        await until(in_list(worker, "item-003"))
