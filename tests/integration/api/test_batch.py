"""POST /v1/recommendations/batch: a line for each user, in order, without being in anybody's way."""

import asyncio
import json

import pytest
from conftest import START_MS, history, same_list

from app.api import batch
from app.errors import OverloadedError, StorageError
from app.recommend.batch import AT_ONCE, MOST
from app.recommend.pipeline import Recommender
from app.state import keys
from app.state.redis import RedisStore

MOMENT = START_MS + 10**9
PATH = "/v1/recommendations/batch"


def lines(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.splitlines()]


async def ask(client, user_ids, **fields):
    return lines(await client.post(PATH, json={"user_ids": user_ids, "as_of": MOMENT} | fields))


def service_of(client):
    return client._transport.app


async def test_each_line_is_the_list_that_the_user_alone_would_get_in_the_order_asked(client):
    users = [f"u{number}" for number in range(40)]
    await client.tell(*(one for number, user in enumerate(users[:30]) for one in history(user, 1 + number, number)))
    asked = [*users[::-1], "u3"]
    rules = {"exclude": ["item-001"], "boosts": [{"filter": "id = 'item-002'", "factor": 3}]}
    await client.put("/v1/scenarios/mail", json={"exclude": ["item-003"]})
    answers = await ask(client, asked, k=7, rules=rules, scenario="mail", exclude=["item-004"])
    assert [answer["user_id"] for answer in answers] == asked
    for user, answer in zip(asked, answers, strict=True):
        alone = {"user_id": user, "k": 7, "as_of": MOMENT, "rules": rules, "scenario": "mail", "exclude": ["item-004"]}
        expected = (await client.post("/v1/recommendations", json=alone)).json()
        same_list(answer, expected)
        assert answer | {"recommendation_id": "", "items": []} == expected | {"recommendation_id": "", "items": []}
    assert len({answer["recommendation_id"] for answer in answers}) == len(asked)


async def test_what_is_wrong_with_one_user_is_said_in_their_line_and_hurts_no_other(client, raw):
    await client.tell(*history("u", 5), *history("v", 5), *history("bad", 5))
    await client.put("/v1/users/v", json={"attributes": {"country": "Norway"}})
    raw.set(keys.user_keys("default", "bad").seq, "what is this")
    await client.put("/v1/items/item-001", json={"attributes": {"price": 3}})
    # Of u no country is known, so nothing is cheap enough; v's is no price; and what bad's is nobody can tell.
    first, second, third = await ask(client, ["u", "v", "bad"], rules={"filters": ["price < user.country"]})
    assert first["items"] == []
    assert (second["user_id"], second["problem"]["status"]) == ("v", 422)
    assert "user.country" in second["problem"]["detail"]
    assert (third["user_id"], third["problem"]["status"]) == ("bad", 503)
    assert "user 'bad' is damaged" in third["problem"]["detail"]
    assert [one["source"] for one in await ask(client, ["u", "bad", "v"])] == ["model", "fallback", "model"]


async def test_rules_that_cannot_be_followed_for_anybody_are_refused_before_anything_is_made(client):
    for rules in ({"filters": ["prise < 3"]}, {"filters": ["id = $id"]}, {"caps": [{"attribute": "x", "most": 1}]}):
        response = await client.post(PATH, json={"user_ids": ["u"], "rules": rules})
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")


async def test_an_error_of_ours_is_a_line_too(client, monkeypatch):
    recommend = Recommender.recommend

    async def failing(self, query, stages):
        if query.user_id == "v":
            raise RuntimeError("secret")
        return await recommend(self, query, stages)

    monkeypatch.setattr(Recommender, "recommend", failing)
    answers = await ask(client, ["u", "v", "w"])
    assert [answer["user_id"] for answer in answers] == ["u", "v", "w"]
    assert (answers[1]["problem"]["status"], "secret" in json.dumps(answers)) == (500, False)


class Slow:
    """Stands in for the recommender: as many at a time as are let through."""

    def __init__(self, monkeypatch):
        self.now = self.most = self.asked = 0
        self.go = asyncio.Event()
        recommend = Recommender.recommend

        async def slow(recommender, query, stages):
            self.now += 1
            self.asked += 1
            self.most = max(self.most, self.now)
            try:
                await self.go.wait()
                await asyncio.sleep(0)
                return await recommend(recommender, query, stages)
            finally:
                self.now -= 1

        monkeypatch.setattr(Recommender, "recommend", slow)


async def test_a_few_users_are_asked_for_at_a_time_by_all_batches_together(client, monkeypatch):
    slow = Slow(monkeypatch)
    batches = [asyncio.create_task(ask(client, [f"{b}-{n}" for n in range(20)])) for b in range(3)]
    await asyncio.sleep(0.1)
    assert slow.asked == AT_ONCE
    slow.go.set()
    assert [len(answers) for answers in await asyncio.gather(*batches)] == [20] * 3
    assert slow.most == AT_ONCE


async def test_a_batch_waits_where_others_have_filled_the_queue(client, monkeypatch):
    recommend, refused = Recommender.recommend, []

    async def full(self, query, stages):
        if len(refused) < 3:
            refused.append(query.user_id)
            raise OverloadedError("full")
        return await recommend(self, query, stages)

    monkeypatch.setattr(Recommender, "recommend", full)
    assert [answer.get("source") for answer in await ask(client, ["u", "v"])] == ["fallback"] * 2
    assert len(refused) == 3


async def test_too_many_batches_are_refused_and_each_that_ends_makes_room(client, monkeypatch):
    slow = Slow(monkeypatch)
    batches = [asyncio.create_task(ask(client, ["u"])) for _ in range(MOST)]
    await asyncio.sleep(0.1)
    response = await client.post(PATH, json={"user_ids": ["u"]})
    assert (response.status_code, response.json()["type"]) == (503, "urn:longwave:problem:overloaded")
    slow.go.set()
    await asyncio.gather(*batches)
    assert len(await ask(client, ["u"])) == 1


class Hangs:
    """An ASGI client that reads so many lines, and then hangs up or reads no more."""

    def __init__(self, body, lines, hangs_up):
        self.body, self.left, self.hangs_up = json.dumps(body).encode(), lines, hangs_up
        self.got, self.ended, self.gone, self.told = [], False, asyncio.Event(), False

    async def receive(self):
        if not self.told:
            self.told = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] != "http.response.body":
            return
        if message["body"]:
            self.got.append(message["body"])
        self.ended = self.ended or not message.get("more_body")
        if len(self.got) == self.left:
            if self.hangs_up:
                self.gone.set()
            await asyncio.Event().wait()  # as uvicorn's does where the client reads no more

    async def ask(self, service):
        scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": []}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("s", 80), "client": ("c", 1), "root_path": ""}
        await asyncio.wait_for(service(scope, self.receive, self.send), 10)


@pytest.mark.parametrize("hangs_up", [True, False])
async def test_a_client_that_hangs_up_or_reads_no_more_ends_the_work(client, monkeypatch, hangs_up):
    monkeypatch.setattr("app.api.stream._SLOWEST_S", 0.2)
    slow = Slow(monkeypatch)
    slow.go.set()
    for _ in range(MOST + 1):  # each gives its place back
        before = slow.asked
        reader = Hangs({"user_ids": ["u"] * 10_000}, 5, hangs_up)
        await reader.ask(service_of(client))
        assert len(reader.got) == 5
        assert not reader.ended
        asked = slow.asked - before
        assert asked < 30
        await asyncio.sleep(0.05)
        assert (slow.asked - before, slow.now) == (asked, 0)


async def test_a_service_that_stops_says_in_the_last_line_that_others_are_missing(client, monkeypatch):
    hook, recommend = service_of(client).state.hook, Recommender.recommend

    async def stopping(self, query, stages):
        if query.user_id == "5":
            hook.bounds.stopping.set()
        return await recommend(self, query, stages)

    monkeypatch.setattr(Recommender, "recommend", stopping)
    answers = await ask(client, [str(number) for number in range(1_000)])
    assert len(answers) < 20
    assert [answer["user_id"] for answer in answers[:-1]] == [str(number) for number in range(len(answers) - 1)]
    assert (answers[-1]["user_id"], answers[-1]["problem"]["status"]) == (None, 503)


async def test_all_lists_are_of_one_moment(client, monkeypatch):
    ticks = iter(range(START_MS, START_MS + 10**6, 1000))
    monkeypatch.setattr(batch, "now_ms", lambda: next(ticks))
    answers = lines(await client.post(PATH, json={"user_ids": ["u", "v", "w"]}))
    assert len({answer["as_of"] for answer in answers}) == 1


async def test_without_storage_nothing_is_begun_and_where_it_goes_away_lists_say_so(client, monkeypatch):
    await client.put("/v1/scenarios/new", json={})

    async def away(*_, **__):
        raise StorageError("away")

    with monkeypatch.context() as patched:
        patched.setattr(RedisStore, "all", away)
        response = await client.post(PATH, json={"user_ids": ["u"], "scenario": "new"})
        assert response.status_code == 503
    monkeypatch.setattr(RedisStore, "load", away)
    assert [answer["degraded"] for answer in await ask(client, ["u", "v"])] == [True, True]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "user_ids"),
        ({"user_ids": []}, "user_ids"),
        ({"user_ids": ["u"] * 10_001}, "user_ids"),
        ({"user_ids": ["u", ""]}, "user_ids.1"),
        ({"user_ids": ["u"], "k": 0}, "k"),
        ({"user_ids": ["u"], "rules": {"filters": ["a ="]}}, "rules.filters.0"),
        ({"user_ids": ["u"], "user_id": "u"}, "user_id"),
        (["u"], ""),
    ],
)
async def test_a_bad_request_is_told_which_field_before_anything_is_made(client, body, field):
    response = await client.post(PATH, json=body)
    kind = "filter" if "filters" in field else "request"
    assert (response.status_code, response.json()["type"]) == (422, f"urn:longwave:problem:invalid-{kind}")
    assert [error["field"] for error in response.json()["errors"]] == [field]
    assert (await client.post(PATH, json={"user_ids": ["u"], "scenario": "none"})).status_code == 404
