"""Arms with models of their own: each list is of one model, says so, and is its arm's or no arm's."""

from __future__ import annotations

import asyncio
import json
import time

from conftest import AS_OF_MS, event

from app.recommend.experiment import Experiment, ExperimentSettings
from app.state.lists import read_list_id


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


async def ask(worker, user_id, **parameters):
    asked = {"as_of": AS_OF_MS, "k": 10} | parameters
    response = await worker.get(f"/v1/users/{user_id}/recommendations", params=asked)
    assert response.status_code == 200, response.text
    return json.loads(response.content)


async def test_each_arm_is_answered_by_its_model_and_every_list_says_so(start, two_models):
    folder, old, new = two_models
    body = {"arms": [{"name": "active", "share": 1}, {"name": "before", "share": 1, "model_id": old}]}
    settled = Experiment("models", 1, ExperimentSettings.model_validate(body))
    user_of = {settled.arm_of(f"u{n}").name: f"u{n}" for n in range(20)}
    async with start(folder, old) as worker:
        await worker.tell(*(event(user_id, 7 * n, n) for user_id in user_of.values() for n in range(40)))
        assert (await worker.activate(new)).status_code == 200
        assert (await worker.put("/v1/experiments/models", json=body)).status_code == 200
        deadline = time.monotonic() + 20
        while "experiment" not in await ask(worker, user_of["before"], experiment="models"):  # until it answers beside the other
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        answers = {name: await ask(worker, user_id, experiment="models") for name, user_id in user_of.items()}
        assert {name: answer["model_id"] for name, answer in answers.items()} == {"active": new, "before": old}
        for name, answer in answers.items():
            origin = read_list_id(answer["recommendation_id"])
            assert (origin.model_id, origin.experiment, origin.arm) == (answer["model_id"], "models", name)
            assert answer["experiment"] == {"name": "models", "version": 1, "arm": name}
            assert answer["applied_events"] == 40
        assert ids(answers["before"]) != ids(await ask(worker, user_of["before"]))
        lists = {"user_id": user_of["before"], "experiment": "models", "as_of": AS_OF_MS, "lists": [{"name": "a"}, {"name": "b"}]}
        rows = (await worker.post("/v1/recommendations/lists", json=lists)).json()
        assert (rows["model_id"], rows["experiment"]["arm"]) == (old, "before")
        batch = {"user_ids": list(user_of.values()), "experiment": "models", "as_of": AS_OF_MS, "k": 10}
        lines = [json.loads(line) for line in (await worker.post("/v1/recommendations/batch", json=batch)).content.splitlines()]
        assert {line["experiment"]["arm"]: (line["model_id"], ids(line)) for line in lines} == {
            name: (answer["model_id"], ids(answer)) for name, answer in answers.items()
        }
        # Stopped, the active model answers everybody.
        await worker.put("/v1/experiments/models", json=body | {"stopped": True})
        assert (await ask(worker, user_of["before"], experiment="models"))["model_id"] == new


async def test_a_model_that_no_bundle_has_is_refused_and_named(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        arms = [{"name": "a", "share": 1, "model_id": new}, {"name": "b", "share": 1, "model_id": "0" * 16}]
        response = await worker.put("/v1/experiments/models", json={"arms": arms})
        assert (response.status_code, response.json()["errors"]) == (
            422,
            [{"field": "arms.1.model_id", "message": f"no bundle here has the model {'0' * 16!r}"}],
        )
        assert (await worker.put("/v1/experiments/models", json={"arms": arms[:1]})).status_code == 200
