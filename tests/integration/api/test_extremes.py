"""Inputs at the edge of what is allowed give an answer with finite scores, never an error of the server's."""

import itertools
import json
import math

import pytest
from conftest import event, history

import app.api.events
from app.settings import TEN_YEARS_S

TIMES_MS = [0, 1, 1_300_000_000_000, 2**31 * 1000 - 1]  # the last one is where 32-bit seconds end
AS_OF_MS = [0, 1_300_000_000_000, 2**31 * 1000, 253_402_300_799_999]


@pytest.mark.parametrize("as_of", AS_OF_MS)
async def test_any_order_of_extreme_times_gives_a_whole_list(start, as_of, monkeypatch):
    # From 2030 the longest `max_future_s` reaches the last of the times, whatever today is.
    monkeypatch.setattr(app.api.events, "now_ms", lambda: 1_893_456_000_000)
    async with start(max_future_s=TEN_YEARS_S) as client:
        for n, times in enumerate(itertools.permutations(TIMES_MS, 3)):
            events = [event(f"u{n}", i) | {"timestamp": time_ms} for i, time_ms in enumerate(times)]
            await client.tell(*events)
            answer = await client.ask(f"u{n}", as_of=as_of, k=60)
            assert len(answer["items"]) == 60, times
            assert all(math.isfinite(item["score"]) for item in answer["items"]), times


async def test_extreme_numbers_give_a_whole_list(client):
    for n, number in enumerate([0.0, -0.0, 1e15, -1e15, 5e-324, 1]):
        await client.tell(event(f"u{n}", 1, value=number, quantity=number, price=number))
        answer = await client.ask(f"u{n}", k=60)
        assert all(math.isfinite(item["score"]) for item in answer["items"]), number
        assert len(answer["items"]) == 60


async def test_three_thousand_events_do_not_hold_up_other_users(client):
    import asyncio

    for start in range(0, 3000, 1000):
        await client.tell(*history("long", 3000)[start : start + 1000])
    await client.tell(event("short", 1))
    rebuild = asyncio.create_task(client.ask("long"))
    others = 0
    while not rebuild.done():
        await client.ask("short")
        others += 1
    assert others > 3
    assert (await rebuild)["applied_events"] == 3000


async def test_every_byte_in_a_path_or_query_gives_an_answer(client):
    for byte in range(256):
        for path in (
            f"/v1/users/a%{byte:02x}b",
            f"/v1/users/%{byte:02x}/recommendations",
            f"/v1/users/u/recommendations?k=%{byte:02x}",
        ):
            response = await client.get(path)
            assert response.status_code < 500, path
            json.loads(response.content)


@pytest.mark.parametrize("slash", ["/", "%2F"])
async def test_a_user_whose_address_would_be_that_of_a_list_is_refused(client, slash):
    for method, path in [
        ("PUT", f"/v1/users/u{slash}recommendations"),
        ("GET", f"/v1/users/u{slash}recommendations{slash}recommendations"),
    ]:
        response = await client.request(method, path, json={"attributes": {}})
        assert response.status_code == 422, path
        assert "must not end in /recommendations" in json.loads(response.content)["detail"]
    assert (await client.put("/v1/users/recommendations", json={"attributes": {}})).status_code == 200
    await client.tell(event("a/recommendations/b", 1))
    assert (await client.profile("a/recommendations/b"))["events"] == 1
