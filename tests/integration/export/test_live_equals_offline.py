"""The proof of the whole path: the service over HTTP gives the lists that the trainer's `forward()` gives, query by query."""

import dataclasses
import json

import httpx
import pytest
from tiny_run import TinyRun

from app.ingest.validate import validate
from app.main import create_app
from app.settings import load_settings
from app.state.redis import RedisStore
from model.assess import known_before, load_run
from model.live import live_lists
from model.publish import publish
from model.rehearsal import K, write_rehearsal
from model.rounding import with_stored_weights

TENANT = "default"
GAP = 2e-4
MORE = 5  # asked beyond K, to see the scores of items that only just did not make it


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


async def load_histories(redis_url, rehearsal, event_types):
    """What is known before the replay, in the store; the bundle's popularity knows it already."""
    store = RedisStore(redis_url)
    await store.open()
    for history in lines(rehearsal / "histories.jsonl"):
        raw = [{"user_id": history["user_id"]} | event for event in history["events"]]
        valid, errors = validate(raw, event_types, 2**42, 0)
        assert not errors
        if history["attributes"]:
            await store.set_attributes(TENANT, history["user_id"], history["attributes"])
        if valid:
            await store.write_history(TENANT, history["user_id"], [each.event for each in valid], [None] * len(valid), "past")
    await store.close()


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory, tiny_run, trained_bundle):
    """A function from how numbers are stored to the bundle of `tiny_run`."""

    def bundle(stored):
        if stored == "float32":
            return trained_bundle
        return publish(tiny_run.run, tiny_run.data, tmp_path_factory.mktemp("rounded"), False, stored, stored).folder

    return bundle


@pytest.mark.parametrize(("background_fold", "stored"), [(True, "float32"), (False, "float32"), (True, "int8")])
async def test_every_list_of_a_replay_over_http_is_that_of_the_offline_evaluation(
    tiny_run: TinyRun, bundle_of, redis_url, tmp_path, background_fold, stored
):
    meta = write_rehearsal(tiny_run.run, tiny_run.data, tmp_path)
    checkpoint, task = load_run(tiny_run.run, tiny_run.data)
    checkpoint = dataclasses.replace(checkpoint, net=with_stored_weights(checkpoint.net, stored))
    seq, split = task.seq, task.split
    known = known_before(task, split.cut_ms)
    expected = live_lists(checkpoint, seq, task.inputs, split.test, K, known, split.filter_seen, item_vectors=stored)
    steps = lines(tmp_path / "steps.jsonl")
    await load_histories(redis_url, tmp_path, seq.event_types)

    settings = {"bundle_dir": bundle_of(stored), "redis_url": redis_url, "background_fold": background_fold}
    service = create_app(load_settings(**settings, context_fallback=False))  # the offline evaluation knows no contexts
    transport = httpx.ASGITransport(service)
    moments = zip(split.test.user.tolist(), split.test.as_of.tolist(), strict=True)
    query_of = {(seq.user_ids[user], moment): q for q, (user, moment) in enumerate(moments)}
    asked, same, texts = set(), 0, 0
    async with service.router.lifespan_context(service), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        for step in steps:
            if "events" in step:
                response = await client.post("/v1/events", json=step["events"])
                assert response.status_code == 200, response.text
                texts += any("text" in event for event in step["events"])
                continue
            query = step["query"]
            given = {name: query[name] for name in ("as_of", "platform") if query[name] is not None}
            response = await client.get(f"/v1/users/{query['user_id']}/recommendations", params={"k": K + MORE} | given)
            assert response.status_code == 200, response.text
            items = response.json()["items"]
            live = [item["item_id"] for item in items]
            score = {item["item_id"]: item["score"] for item in items}
            q = query_of[query["user_id"], query["as_of"]]
            offline = [seq.item_ids[row] for row in expected[q]]
            assert len(set(live)) == K + MORE
            for place, item in enumerate(offline):
                assert item in score, f"query {q}: {item} at place {place} offline is not among {K + MORE} live"
                apart = abs(score[item] - items[place]["score"])
                assert apart < GAP, f"query {q}, place {place}: {item} offline, {live[place]} live, {apart:.2e} apart"
            assert query["targets"] == [seq.item_ids[row] for row in split.test.targets(q)]
            asked.add(q)
            same += live[:K] == offline
    assert asked == set(range(len(split.test)))
    assert len(asked) == meta["queries"] > 50
    assert same >= 0.95 * len(asked)
    assert texts > 10
