"""A key of a user that somebody has overwritten, or what is in it: a clear answer for that user, as ever for the others, and an
erasure helps."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest
from conftest import Client, event, history
from structlog.testing import capture_logs

from app.state import keys
from app.state.events import StoredEvent, encode_event

BAD = keys.user_keys("default", "bad")
KINDS = ["seq", "meta", "ids"]
INSIDE = ["no event", "half an event", "no text", "no time", "attributes", "last time", "epoch"]
NO_EVENT = b"\xff\xfe"


def damage(raw, kind: str) -> str:
    """Put something of another type there, or something unreadable into it; the name of the key."""
    if kind in INSIDE:
        return damage_inside(raw, kind)
    key: str = getattr(BAD, kind)
    raw.delete(key)
    if kind == "ids":
        raw.rpush(key, "what is this")
    else:
        raw.set(key, "what is this")
    return key


def damage_inside(raw, kind: str) -> str:
    if kind in ("attributes", "last time", "epoch"):
        raw.hset(BAD.meta, {"attributes": "a", "last time": "l", "epoch": "e"}[kind], NO_EVENT)
        return BAD.meta
    whole = encode_event(StoredEvent("view", 1_300_000_000_000, "item-001"))
    no_time = msgspec.msgpack.encode(["view", 2**64 - 1])
    bad = {"no event": NO_EVENT, "half an event": whole[:-3], "no text": whole.replace(b"item", NO_EVENT * 2), "no time": no_time}
    raw.rpush(BAD.seq, bad[kind])
    raw.hincrby(BAD.meta, "n", 1)
    return BAD.seq


def refused(response, key: str) -> None:
    problem = json.loads(response.content)
    assert (response.status_code, problem["type"]) == (503, "urn:longwave:problem:storage-unavailable"), problem
    assert "'bad'" in problem["detail"]
    assert key in problem["detail"]


@pytest.mark.parametrize("kind", ["seq", "meta", *INSIDE])
async def test_questions_for_a_damaged_user_say_what_is_wrong_and_lists_fall_back(client: Client, raw, kind: str):
    await client.tell(*history("bad", 5), *history("good", 5))
    key = damage(raw, kind)
    with capture_logs() as logs:
        for _ in range(2):
            refused(await client.get("/v1/users/bad"), key)
            refused(await client.get("/v1/users/bad/events"), key)
    assert [line["key"] for line in logs] == [key]
    answers = await asyncio.gather(*(client.ask(user) for user in ("good", "bad", "good", "bad", "good")))
    assert [answer["source"] for answer in answers] == ["model", "fallback", "model", "fallback", "model"]
    assert [answer["reason"] for answer in answers if answer["source"] == "fallback"] == ["storage_unavailable"] * 2


async def test_a_sequence_of_another_type_without_a_user_is_no_fault_of_the_service(client: Client, raw):
    key = damage(raw, "seq")
    refused(await client.get("/v1/users/bad"), key)
    assert (await client.get("/v1/users/bad/events")).status_code == 404


@pytest.mark.parametrize("kind", KINDS)
async def test_events_for_a_damaged_user_are_refused_and_those_of_others_are_stored_once(client: Client, raw, kind: str):
    await client.tell(event("bad", 1, event_id="1"))
    key = damage(raw, kind)

    def one(user: str, n: int):
        return client.post("/v1/events", json=[event(user, n, n, event_id=f"{user} {n}")])

    answers = await asyncio.gather(*(one(f"user {n}" if n % 3 else "bad", n) for n in range(12)))
    for n, answer in enumerate(answers):
        if n % 3:
            assert answer.status_code == 200
            assert (await client.profile(f"user {n}"))["events"] == 1
        else:
            refused(answer, key)
    together = await client.post("/v1/events", json=[event("bad", 1, event_id="b"), event("good", 2, event_id="g")])
    refused(together, key)
    assert (await client.profile("good"))["events"] == 1


@pytest.mark.parametrize("known", [False, True])  # whether the user had events before
@pytest.mark.parametrize("background_fold", [False, True])
async def test_events_that_are_stored_are_acknowledged_although_the_attributes_cannot_be_read(
    start, raw, known: bool, background_fold: bool
):
    async with start(background_fold=background_fold) as client:
        if known:
            await client.tell(event("bad", 1))
        key = damage(raw, "attributes")
        sent = [event("bad", 2, 2, event_id="b"), event("good", 2, 2, event_id="g")]
        for status in ("stored", "duplicate"):
            answer = await client.post("/v1/events", json=sent)
            assert answer.status_code == 200, answer.text
            assert [one["status"] for one in answer.json()["results"]] == [status] * 2
        assert raw.llen(BAD.seq) == 1 + known
        refused(await client.get("/v1/users/bad"), key)
        answers = [await client.ask(user) for user in ("good", "bad")]
        assert [answer["source"] for answer in answers] == ["model", "fallback"]
        raw.hdel(BAD.meta, "a")
        assert (await client.ask("bad"))["applied_events"] == 1 + known


@pytest.mark.parametrize("kind", [*KINDS, *INSIDE])
async def test_a_damaged_user_can_be_erased_and_begins_anew(client: Client, raw, kind: str):
    await client.tell(*history("bad", 5))
    key = damage(raw, kind)
    assert (await client.delete("/v1/users/bad")).status_code == 200
    assert not raw.exists(key)
    stored = await client.post("/v1/events", json={"user_id": "bad", "item_id": "item-001", "type": "purchase"})
    assert stored.status_code == 200
    assert (await client.profile("bad"))["events"] == 1


@pytest.mark.parametrize("kind", [*KINDS, *INSIDE])
@pytest.mark.parametrize("target", ["bad", "good"])
async def test_who_is_merged_with_a_damaged_user_stays_who_they_were(client: Client, raw, kind: str, target: str):
    await client.tell(*history("bad", 5), *history("good", 5))
    key = damage(raw, kind)
    source = "good" if target == "bad" else "bad"
    refused(await client.post(f"/v1/users/{target}/merge", json={"from": source}), key)
    assert (await client.profile("good"))["events"] == 5
    assert (await client.ask("good"))["source"] == "model"


@pytest.mark.parametrize("kind", [*KINDS, *INSIDE])
@pytest.mark.parametrize("named", ["bad", "good"])
async def test_a_merged_user_who_is_damaged_can_be_erased_by_either_name(client: Client, raw, kind: str, named: str):
    await client.tell(*history("bad", 5), *history("good", 5))
    await client.post("/v1/users/bad/merge", json={"from": "good"})
    damage(raw, kind)
    assert (await client.delete(f"/v1/users/{named}")).status_code == 200
    assert not [key for key in raw.scan_iter() if key.endswith(b":bad")]


@pytest.mark.parametrize("target", ["bad", "good"])
async def test_half_a_ring_of_event_ids_is_told_of_by_a_merge(client: Client, raw, target: str):
    await client.tell(*history("bad", 5), *history("good", 5))
    raw.set(BAD.ids, b"short")
    source = "good" if target == "bad" else "bad"
    refused(await client.post(f"/v1/users/{target}/merge", json={"from": source}), BAD.ids)
    assert (await client.profile("good"))["events"] == 5
    assert (await client.post("/v1/events", json=event("bad", 6, event_id="6"))).status_code == 200  # begins another one
    assert (await client.post(f"/v1/users/{target}/merge", json={"from": source})).status_code == 200
    assert (await client.profile("good"))["events"] == 11


async def test_a_state_of_another_type_is_folded_anew(client: Client, raw):
    await client.tell(*history("bad", 5))
    before = await client.ask("bad")
    key = keys.state_key("default", before["model_id"], "bad")
    raw.delete(key)
    raw.rpush(key, "what is this")
    answer = await client.ask("bad")
    assert (answer["source"], answer["applied_events"]) == ("model", 5)
    for _ in range(200):
        if raw.type(key) == b"string":
            break
        await asyncio.sleep(0.01)
    assert raw.type(key) == b"string"


async def test_a_merge_that_meets_damage_on_its_way_is_refused_and_an_erasure_ends_it(client: Client, raw):
    await client.tell(*history("bad", 5), *history("good", 5))
    key = damage(raw, "no event")
    # As an older version led to, or a hand that slipped in the middle of a merge.
    raw.hset(BAD.meta, mapping={"to": "good", "ms": "p", "ik": "token"})
    raw.hset(keys.user_keys("default", "good").meta, "m:bad", "token")
    refused(await client.get("/v1/users/bad"), key)
    assert (await client.profile("good"))["events"] == 5
    assert (await client.delete("/v1/users/bad")).status_code == 200
    assert (await client.get("/v1/users/bad")).status_code == 404


async def test_a_damaged_event_that_the_state_has_behind_it_harms_no_neighbour(start, raw):
    async with start(background_fold=False) as client:
        await client.tell(*history("bad", 5), *history("good", 5))
        assert (await client.ask("bad"))["source"] == "model"
        raw.lset(BAD.seq, 0, NO_EVENT)
        who = ["good", "bad", "good", "bad"]
        lists = [{"name": "home", "rules": {"exclude_had": [{}]}}]  # reads the sequence itself
        asked = [client.post("/v1/recommendations/lists", json={"user_id": user, "lists": lists}) for user in who]
        answers = [json.loads(answer.content) for answer in await asyncio.gather(*asked)]
        assert [answer["source"] for answer in answers] == ["model", "fallback"] * 2


async def test_the_background_fold_goes_on_past_a_damaged_user(start, raw):
    async with start(background_fold=True) as client:
        await client.tell(*history("good", 2), *history("bad", 2))
        damage(raw, "seq")
        advance = client._transport.app.state.hook.models.hall._served._advance
        for user in ("bad", "good"):
            advance.mark("default", user, b"elsewise", {}, 9, [], 0)  # as if another worker had stored what was before
        for _ in range(300):
            if not advance._dirty:
                break
            await asyncio.sleep(0.01)
        assert not advance._dirty
