"""GET /v1/trending"""

import asyncio
import json

import pytest
from conftest import START_MS, event

import app.models.served
from app.state.events import StoredEvent
from app.state.redis import RedisStore

NOON = START_MS + 1_800_000


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Counted and read again within milliseconds instead of a second."""
    monkeypatch.setattr(app.models.served, "_TREND_DELAY_S", 0.001)
    monkeypatch.setattr(app.models.served, "_TREND_FRESH_S", 0.0)


async def trending(client, **parameters):
    response = await client.get("/v1/trending", params={"as_of": NOON} | parameters)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


async def until(client, number, **parameters):
    """The answer as soon as it has so many items."""
    async with asyncio.timeout(5):
        while True:
            answer = await trending(client, **parameters)
            if len(answer["items"]) >= number:
                return answer
            await asyncio.sleep(0.01)


async def until_weights(client, weights):
    async with asyncio.timeout(5):
        while True:
            if [item["weight"] for item in (await trending(client))["items"]] == weights:
                return
            await asyncio.sleep(0.01)


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def much(item, number, seconds=0, **fields):
    return [event(f"u{n}", item, seconds, **fields) for n in range(number)]


async def test_what_is_used_unusually_much_comes_first_with_its_weight(client):
    await client.tell(*much(7, 40), *much(9, 20), *much(3, 30, type="view"))
    answer = await until(client, 2)
    assert ids(answer) == ["item-007", "item-009"]  # views are neutral here and count nothing
    assert answer["items"][0] | {"score": 0} == {"item_id": "item-007", "score": 0, "weight": 40, "title": "Thing 7"}
    assert answer["items"][0]["score"] > answer["items"][1]["score"] > 1
    assert {name: answer[name] for name in ("window", "category", "degraded", "as_of")} == {
        "window": "1h",
        "category": None,
        "degraded": False,
        "as_of": "2011-03-13T07:36:40Z",
    }
    assert ids(await trending(client, k=1)) == ["item-007"]


async def test_windows_and_moments(client):
    await client.tell(*much(7, 10), *much(9, 10, 1_750), *much(11, 10, -5 * 3600))
    assert set(ids(await until(client, 3, window="1d"))) == {"item-007", "item-009", "item-011"}
    assert set(ids(await trending(client, window="1h"))) == {"item-007", "item-009"}
    assert ids(await trending(client, window="30m", as_of=NOON + 600_000)) == ["item-009"]
    assert ids(await trending(client, as_of=NOON + 10**9)) == []
    assert ids(await trending(client, as_of=0)) == []


async def test_categories(client):
    await client.tell(*much(7, 10))
    assert ids(await until(client, 1, category="things")) == ["item-007"]
    assert ids(await trending(client, category="no such")) == []


async def test_items_that_are_not_available_are_left_out_and_new_ones_are_found(client):
    await client.put("/v1/items/new%20one", json={"title": "A new one", "categories": ["fresh"]})
    await client.tell(*much(7, 10), *much(9, 5), *(one | {"item_id": "new one"} for one in much(0, 3)))
    answer = await until(client, 3)
    assert (ids(answer), answer["items"][2]["title"]) == (["item-007", "item-009", "new one"], "A new one")
    await client.patch("/v1/items/item-007", json={"hidden": True})
    assert ids(await trending(client, k=2)) == ["item-009", "new one"]
    assert ids(await trending(client, category="fresh")) == ["new one"]
    await client.delete("/v1/items/item-009")
    assert ids(await trending(client)) == ["new one"]


async def test_a_retry_counts_once(client):
    events = [event("u", 7, event_id="once")]
    for _ in range(3):
        await client.tell(*events)
    assert [item["weight"] for item in (await until(client, 1))["items"]] == [1]


async def test_another_worker_sees_it_and_so_does_the_next_start(start):
    async with start() as one, start() as other:
        await one.tell(*much(7, 5))
        await other.tell(*much(7, 6), *much(9, 1))
        for worker in (one, other):
            await until_weights(worker, [11, 1])
    async with start() as anew:
        await until_weights(anew, [11, 1])


async def test_an_import_touches_no_trend(client, redis_url):
    store = RedisStore(redis_url)
    events = [StoredEvent("purchase", START_MS + n, "item-009") for n in range(50)]
    await store.write_history("default", "imported", events, [None] * len(events), "some import")
    await store.close()
    await client.tell(*much(7, 2))
    assert ids(await until(client, 1)) == ["item-007"]


async def test_without_storage_the_list_is_degraded_not_an_error(start, tmp_path):
    async with start(redis_url=f"unix://{tmp_path}/nobody.sock") as client:
        answer = await trending(client)
        assert (answer["degraded"], answer["items"]) == (True, [])


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"window": "2h"}, "query.window"),
        ({"window": ""}, "query.window"),
        ({"k": 0}, "query.k"),
        ({"category": ""}, "query.category"),
        ({"as_of": "soon"}, "query.as_of"),
    ],
)
async def test_a_bad_question_is_told_which_field(client, parameters, field):
    response = await client.get("/v1/trending", params=parameters)
    problem = json.loads(response.content)
    assert (response.status_code, problem["type"]) == (422, "urn:longwave:problem:invalid-request")
    assert [error["field"] for error in problem["errors"]] == [field]
