"""Export, erase and join over HTTP."""

import json
import time
from datetime import datetime

import pytest
from conftest import event, history, same_list


async def page(client, user_id, **parameters):
    response = await client.get(f"/v1/users/{user_id}/events", params=parameters)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


async def call(client, method, path, **options):
    response = await client.request(method, path, **options)
    return response.status_code, json.loads(response.content)


async def test_a_history_comes_page_by_page_as_it_was_sent(client):
    full = event("u", 3, 70, value=1.5, price=2, platform="web", session_id="s", basket_id="b", text="t", context={"a": 1})
    await client.tell(*[event("u", n, 60 * n, quantity=n) for n in range(7)], full)
    first = await page(client, "u", limit=3)
    assert [e["index"] for e in first["events"]] == [0, 1, 2]
    assert (first["total"], first["first_index"]) == (8, 0)
    await client.tell(event("u", 9, 999))  # pages do not shift
    rest, cursor = [], first["next"]
    while cursor:
        following = await page(client, "u", limit=3, cursor=cursor)
        rest += following["events"]
        cursor = following["next"]
    assert [e["index"] for e in rest] == [3, 4, 5, 6, 7, 8]
    sent = {name: value for name, value in full.items() if name not in ("user_id", "timestamp")}
    assert {name: value for name, value in rest[4].items() if name not in ("index", "timestamp")} == sent
    assert rest[4]["timestamp"] == "2011-03-13T07:07:50Z"


async def test_a_page_whose_events_have_left_goes_on_with_the_oldest_there_are(start):
    async with start(max_sequence=5) as client:
        await client.tell(*history("u", 5))
        first = await page(client, "u", limit=2)
        await client.tell(*history("u", 4))
        following = await page(client, "u", limit=2, cursor=first["next"])
        assert ([e["index"] for e in following["events"]], following["first_index"]) == ([4, 5], 4)


async def test_a_cursor_of_a_rewritten_history_is_a_conflict_and_a_made_up_one_an_error(client):
    await client.tell(*history("u", 5))
    cursor = (await page(client, "u", limit=2))["next"]
    await client.put("/v1/users/u", json={"attributes": {"country": "France"}})
    status, problem = await call(client, "GET", "/v1/users/u/events", params={"cursor": cursor})
    assert (status, problem["type"]) == (409, "urn:longwave:problem:conflict")
    for bad in ("x", "0" * 16, "0" * 16 + ".-1", "x" * 41):
        status, problem = await call(client, "GET", "/v1/users/u/events", params={"cursor": bad})
        assert (status, problem["errors"][0]["field"]) == (422, "query.cursor")
    assert (await call(client, "GET", "/v1/users/nobody/events"))[0] == 404


async def test_an_erased_user_is_unknown_at_once_and_late_retries_are_rejected(client):
    await client.tell(*history("u", 5))
    assert (await client.ask("u"))["source"] == "model"
    status, receipt = await call(client, "DELETE", "/v1/users/u")
    assert (status, receipt["user_id"], receipt["events"], receipt["identities"]) == (200, "u", 5, 1)
    assert receipt["archive_clean_by"] > receipt["erased_at"]
    assert (await client.get("/v1/users/u")).status_code == 404
    assert (await client.ask("u"))["reason"] == "unknown_user"
    status, problem = await call(client, "POST", "/v1/events", json=event("u", 1))
    assert (status, problem["errors"]) == (
        422,
        [{"field": "timestamp", "message": "the user was erased after this event happened"}],
    )
    assert (await call(client, "DELETE", "/v1/users/u"))[1]["events"] == 0
    assert (await call(client, "DELETE", "/v1/users/never-seen"))[0] == 200


async def test_an_erasure_that_is_repeated_says_up_to_when_events_are_refused(client):
    ahead = {**event("u", 1), "timestamp": (ms := time.time_ns() // 1_000_000 + 1_800_000)}  # a clock that is ahead
    assert (await client.post("/v1/events", json=ahead)).status_code == 200
    _, first = await call(client, "DELETE", "/v1/users/u")
    _, again = await call(client, "DELETE", "/v1/users/u")
    upto = [datetime.fromisoformat(receipt["erased_at"]).timestamp() * 1000 for receipt in (first, again)]
    assert [round(at - ms) for at in upto] == [0, 0]
    assert (await client.post("/v1/events", json=ahead)).status_code == 422
    assert (await client.get("/v1/users/u")).status_code == 404
    assert (again["events"], again["archive_clean_by"] >= first["archive_clean_by"]) == (0, True)


async def test_a_worker_that_held_an_erased_users_state_does_not_answer_from_it(start):
    async with start(state_cache_mb=16) as one, start(state_cache_mb=16) as other:
        await one.tell(*history("u", 5))
        assert (await other.ask("u"))["applied_events"] == 5
        await call(one, "DELETE", "/v1/users/u")
        for client in (one, other):
            assert (await client.ask("u"))["source"] == "fallback"


async def test_joined_identities_are_one_user_whichever_is_asked(start):
    async with start(state_cache_mb=16) as one, start(state_cache_mb=16) as other:
        together = history("whole", 12)
        await one.tell(*together)
        mine, cookies = together[::2], together[1::2]
        await one.tell(*[{**e, "user_id": "u"} for e in mine])
        await other.tell(*[{**e, "user_id": "cookie"} for e in cookies])
        await other.ask("cookie")
        status, merged = await call(one, "POST", "/v1/users/u/merge", json={"from": "cookie"})
        assert (status, merged) == (200, {"user_id": "u", "merged": "cookie", "events": 12})
        expected = await one.ask("whole")
        for client in (one, other):
            for user_id in ("u", "cookie"):
                answer = await client.ask(user_id)
                assert answer["applied_events"] == 12
                if client is one:  # the other worker learns what this one counted some seconds later
                    same_list(answer, expected)
        await other.tell(event("cookie", 7, 10_000))
        assert (await one.ask("u"))["applied_events"] == 13


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{}", 422),
        (b'{"from": 3}', 422),
        (b'{"from": ""}', 422),
        (b'{"from": "a", "x": 1}', 422),
        (b'{"from": "u"}', 409),
    ],
)
async def test_a_merge_that_makes_no_sense_is_refused_by_name(client, body, status):
    await client.tell(event("u", 1))
    assert (await call(client, "POST", "/v1/users/u/merge", content=body))[0] == status
    assert (await client.ask("u"))["applied_events"] == 1


async def test_a_request_with_an_idempotency_key_can_be_repeated(client):
    batch = [event("u", 1), event("u", 1), event("v", 2)]
    headers = {"Idempotency-Key": "batch 17"}
    first = await client.post("/v1/events", json=batch, headers=headers)
    again = await client.post("/v1/events", json=batch, headers=headers)
    assert json.loads(first.content)["stored"] == json.loads(again.content)["duplicate"] == 3
    response = await client.post("/v1/events", json=batch, headers={"Idempotency-Key": "x" * 257})
    assert (response.status_code, json.loads(response.content)["errors"][0]["field"]) == (422, "header.Idempotency-Key")


async def test_an_idempotency_key_is_refused_where_no_event_ids_are_remembered(start):
    async with start(dedupe_window=0) as client:
        response = await client.post("/v1/events", json=[event("u", 1)], headers={"Idempotency-Key": "k"})
        problem = json.loads(response.content)
        assert (response.status_code, problem["errors"][0]["field"]) == (422, "header.Idempotency-Key")
        assert "LONGWAVE_DEDUPE_WINDOW is 0" in problem["errors"][0]["message"]
        assert (await client.get("/v1/users/u")).status_code == 404  # nothing was stored
        await client.tell(event("u", 1))
