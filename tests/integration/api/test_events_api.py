"""POST /v1/events: good events are stored, bad ones are named, and nothing partial remains."""

import asyncio
import json

import pytest
from conftest import event


async def test_a_client_that_hangs_up_midway_is_no_fault_of_the_service(client, capsys):
    messages = iter([{"type": "http.request", "body": b'{"user_id"', "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/events", "query_string": b"", "headers": []}
    await client._transport.app(scope, receive, send)
    assert sent[0]["status"] == 499
    assert 'route="/v1/events",status="499"' in (await client.get("/metrics")).text
    captured = capsys.readouterr()
    assert "request failed" not in captured.out + captured.err


async def stored(client, user_id="u"):
    response = await client.get(f"/v1/users/{user_id}")
    return json.loads(response.content)["events"] if response.status_code == 200 else 0


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: [e], lambda e: {"events": [e]}])
async def test_an_event_may_come_bare_in_a_list_or_wrapped(client, wrap):
    response = await client.post("/v1/events", json=wrap(event("u", 1)))
    assert json.loads(response.content)["stored"] == 1
    assert await stored(client) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": 7}, "user_id"),
        ({"user_id": "u" * 257}, "user_id"),
        ({"user_id": "u/recommendations"}, "user_id"),
        ({"item_id": ["a"]}, "item_id"),
        ({"item_id": "a\u0000b"}, "item_id"),
        ({"item_id": None}, "item_id"),
        ({"type": "stare"}, "type"),
        ({"type": None}, "type"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2011-13-01T00:00:00Z"}, "timestamp"),
        ({"timestamp": "2011-12-01T00:00:00"}, "timestamp"),
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": 253402300799999}, "timestamp"),
        ({"timestamp": 10**30}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"quantity": "2"}, "quantity"),
        ({"price": 1e300}, "price"),
        ({"text": "x" * 5000}, "text"),
        ({"context": {"deep": {"er": 1}}}, "context"),
        ({"colour": "blue"}, "colour"),
    ],
)
async def test_a_bad_event_is_refused_naming_its_field_and_changes_nothing(client, change, field):
    response = await client.post("/v1/events", json={**event("u", 1), **change})
    problem = json.loads(response.content)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert field in [error["field"] for error in problem["errors"]]
    assert await stored(client) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"3",
        b'"event"',
        b"[]",
        b'{"events": []}',
        b'{"events": {}}',
        b'{"events": [{}], "more": 1}',
        b"[[]]",
        b"\xff\xfe",
        b'{"user_id": "u", "item_id": "item-001", "type": "purchase", "quantity": NaN}',
        b'{"user_id": "u", "item_id": "item-001", "type": "purchase", "price": Infinity}',
        b'{"user_id": "u", "item_id": "item-001", "type": "purchase", "price": 1e999}',
        b'{"user_id": "\\ud800", "item_id": "item-001", "type": "purchase"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
)
async def test_a_body_that_is_no_events_is_a_problem_document(client, body):
    response = await client.post("/v1/events", content=body)
    problem = json.loads(response.content)
    assert (response.status_code, problem["status"]) == (422, 422)
    assert problem["detail"]
    assert await stored(client) == 0


async def test_malformed_json_says_where(client):
    response = await client.post("/v1/events", content=b'{"user_id": "u",, "type": "purchase"}')
    assert "byte 16" in json.loads(response.content)["detail"]


async def test_in_a_mixed_batch_the_good_are_stored_and_the_bad_reported_by_index(client):
    answer = await client.tell(event("u", 1), event("u", 2, type="stare"), event("u", 3), {"user_id": "u"})
    assert (answer["stored"], answer["rejected"]) == (2, 2)
    assert [result["status"] for result in answer["results"]] == ["stored", "rejected", "stored", "rejected"]
    assert answer["results"][1]["errors"][0]["field"] == "type"
    assert answer["totals"] == {"u": 2}
    assert [e["item_id"] for e in (await client.profile("u"))["recent_events"]] == ["item-003", "item-001"]


HUGE = ["1e400", "-1e400", "9" * 400, "-" + "9" * 5_000]


@pytest.mark.parametrize("number", HUGE)
@pytest.mark.parametrize("field", ["quantity", "timestamp", "user_id", "context", "colour"])
async def test_a_number_that_no_float_holds_is_an_error_of_its_event_alone(client, number, field):
    bad = event("u", 2) | {field: {"x": "HUGE"} if field == "context" else "HUGE"}
    body = json.dumps([event("u", 1), bad, event("u", 3)]).replace('"HUGE"', number)
    response = await client.post("/v1/events", content=body)
    answer = json.loads(response.content)
    assert (response.status_code, answer["stored"], answer["rejected"]) == (200, 2, 1)
    assert [result["status"] for result in answer["results"]] == ["stored", "rejected", "stored"]
    assert [error["field"] for error in answer["results"][1]["errors"]] == [field]


@pytest.mark.parametrize("number", HUGE)
async def test_a_lone_event_with_such_a_number_names_its_field(client, number):
    body = json.dumps(event("u", 1, price="HUGE")).replace('"HUGE"', number)
    response = await client.post("/v1/events", content=body)
    assert response.status_code == 422
    assert [error["field"] for error in json.loads(response.content)["errors"]] == ["price"]
    assert await stored(client) == 0


async def test_half_a_surrogate_pair_is_an_error_of_its_event_alone(client):
    good = json.dumps(event("u", 1))
    bad = [
        '{"user_id": "u", "type": "purchase", "item_id": "\\ud800"}',
        '{"user_id": "u", "type": "purchase", "item_id": "a", "\\ud800": 1}',
        '{"user_id": "u", "type": "purchase", "item_id": "a", "context": {"\\ud800": 1}}',
    ]
    response = await client.post("/v1/events", content=f"[{good}, {', '.join(bad)}]")
    assert response.status_code == 200
    assert [result["status"] for result in json.loads(response.content)["results"]] == ["stored"] + ["rejected"] * 3


async def test_a_batch_without_one_good_event_is_refused_with_the_index_of_each(client):
    response = await client.post("/v1/events", json=[event("u", 1, type="stare"), 7])
    assert response.status_code == 422
    assert [error["field"] for error in json.loads(response.content)["errors"]] == ["events[0].type", "events[1]"]


async def test_a_repeated_event_id_is_stored_once(client):
    first = await client.tell(event("u", 1, event_id="e1"))
    again = await client.tell(event("u", 1, event_id="e1"), event("u", 2, event_id="e2"))
    assert (first["stored"], again["duplicate"], again["stored"]) == (1, 1, 1)
    assert await stored(client) == 2


async def test_a_thousand_events_are_taken_and_one_more_is_not(client):
    events = [event("u", i % 60, i) for i in range(1001)]
    response = await client.post("/v1/events", json=events)
    assert response.status_code == 413
    assert "1001" in json.loads(response.content)["detail"]
    assert await stored(client) == 0
    assert (await client.tell(*events[:1000]))["stored"] == 1000


async def test_a_body_over_the_bound_is_refused_by_its_header(start):
    async with start(max_body_bytes=2000) as client:
        response = await client.post("/v1/events", json=event("u", 1, text="x" * 2000))
        assert response.status_code == 413
        assert await stored(client) == 0


async def test_a_chunked_body_over_the_bound_is_not_read_to_its_end(start):
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 10_000:
            sent += 1
            yield b" " * 1000

    async with start(max_body_bytes=5000) as client:
        response = await client.post("/v1/events", content=endless())
        assert response.status_code == 413
        # The test's transport reads a body only as the service asks for it.
        assert sent < 20


async def test_events_of_many_users_in_one_request_keep_to_their_users(client):
    await client.tell(*[event(f"u{i % 3}", i) for i in range(30)])
    assert [await stored(client, f"u{i}") for i in range(3)] == [10, 10, 10]


async def test_concurrent_requests_for_one_user_lose_nothing(client):
    await asyncio.gather(*(client.tell(event("u", i, i)) for i in range(50)))
    assert await stored(client) == 50
    assert (await client.ask("u"))["applied_events"] == 50
