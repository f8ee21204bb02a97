"""Models that answer beside the active one, since an experiment names them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from bundle_edit import edit_manifest
from conftest import AS_OF_MS, event

from app.state import keys

USERS = [f"u{number}" for number in range(12)]


async def put(worker: Any, *arms: dict[str, Any], name: str = "x", **fields: Any) -> None:
    response = await worker.put(f"/v1/experiments/{name}", json={"arms": list(arms), **fields})
    assert response.status_code == 200, response.text


async def until(worker: Any, model_id: str, status: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        said = {model["model_id"]: model["status"] for model in (await worker.models())["models"]}
        if said[model_id] == status:
            return
        assert time.monotonic() < deadline, said
        await asyncio.sleep(0.02)


async def ask(worker: Any, user_id: str, **parameters: Any) -> dict[str, Any]:
    response = await worker.get(
        f"/v1/users/{user_id}/recommendations", params={"as_of": AS_OF_MS, "k": 10, "experiment": "x"} | parameters
    )
    assert response.status_code == 200, response.text
    return json.loads(response.content)


async def gauges(worker: Any) -> dict[str, set[str]]:
    """The models that the metrics say answer (`info`), and serve (`active`)."""
    found = re.findall(r'^longwave_model_(info|active){.*model_id="(\w+)".*} 1.0$', (await worker.get("/metrics")).text, re.M)
    return {which: {model_id for what, model_id in found if what == which} for which in ("info", "active")}


def ids_and_scores(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(item["item_id"], item["score"]) for item in answer["items"]]


def arms(model_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"name": "a", "share": 1}, {"name": "b", "share": 1, "model_id": model_id}


async def test_each_arm_gets_the_lists_of_its_model_and_they_are_those_of_a_service_with_that_model_alone(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as other:
        await put(one, *arms(new))
        for worker in (one, other):
            await until(worker, new, "beside")
        for user in USERS:
            await one.tell(*(event(user, n, n) for n in range(6)))
        found = {user: await ask(one, user) for user in USERS}  # popularity of others' events comes a little later
        by_arm = {arm: [user for user in USERS if found[user]["experiment"]["arm"] == arm] for arm in "ab"}
        assert by_arm["a"]
        assert by_arm["b"]
        for arm, model_id in (("a", old), ("b", new)):
            assert {found[user]["model_id"] for user in by_arm[arm]} == {model_id}
        assert (await one.activate(new)).status_code == 200
        for user in by_arm["b"]:
            alone = await one.ask(user)
            assert [item for item, _ in ids_and_scores(alone)] == [item for item, _ in ids_and_scores(found[user])]
            assert [s for _, s in ids_and_scores(alone)] == pytest.approx([s for _, s in ids_and_scores(found[user])], abs=1e-4)


async def test_what_was_acknowledged_is_in_the_next_list_of_a_model_beside_whichever_worker_answers(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as one, start(folder, old) as other:
        await put(one, {"name": "b", "share": 1, "model_id": new})
        for worker in (one, other):
            await until(worker, new, "beside")
        for number in range(12):
            teller, asked = (one, other) if number % 2 else (other, one)
            await teller.tell(event("u", number, number))
            answer = await ask(asked, "u")
            assert (answer["model_id"], answer["source"], answer["applied_events"]) == (new, "model", number + 1)
            assert (await asked.ask("u"))["model_id"] == old  # whoever asks for no experiment


async def test_a_model_that_was_active_stays_beside_while_an_arm_names_it_and_goes_when_none_does(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        await put(worker, {"name": "a", "share": 1, "model_id": old}, {"name": "b", "share": 1, "model_id": new})
        await until(worker, new, "beside")
        await worker.tell(*(event(user, n, n) for n in range(3) for user in USERS))
        before = {user: await ask(worker, user) for user in USERS}
        assert await gauges(worker) == {"info": {old, new}, "active": {old}}
        assert (await worker.activate(new)).status_code == 200
        await until(worker, old, "beside")
        assert await gauges(worker) == {"info": {old, new}, "active": {new}}
        for user in USERS:
            after = await ask(worker, user)
            assert (after["model_id"], after["experiment"]) == (before[user]["model_id"], before[user]["experiment"])
            assert [item for item, _ in ids_and_scores(after)] == [item for item, _ in ids_and_scores(before[user])]
        await worker.tell(event("u0", 9, 9))
        assert (await ask(worker, "u0"))["applied_events"] == 4
        assert (await worker.delete("/v1/experiments/x")).status_code in (200, 204)
        await until(worker, old, "previous")
        deadline = time.monotonic() + 20
        while await gauges(worker) != {"info": {new}, "active": {new}}:  # its work ends a moment later
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_a_model_that_an_arm_names_answers_at_every_moment_of_an_activation(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        await put(worker, {"name": "a", "share": 1, "model_id": old}, {"name": "b", "share": 1, "model_id": new})
        await until(worker, new, "beside")
        missed: list[str] = []

        async def watch() -> None:
            while True:  # each time that anything else had a turn: a request may be the next that has one
                missed.extend(model_id for model_id in (old, new) if worker.hall.beside(model_id) is None)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        for model_id in (new, old):
            assert (await worker.activate(model_id)).status_code == 200
            await asyncio.sleep(0.1)  # some looks more
        watching.cancel()
        assert not missed


async def test_a_model_beside_hears_of_the_events_from_the_moment_in_which_it_is_no_longer_active(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        await put(worker, {"name": "a", "share": 1, "model_id": old}, {"name": "b", "share": 1, "model_id": new})
        await until(worker, new, "beside")
        deaf: list[str] = []

        async def watch() -> None:
            while True:
                served = worker.hall.service.runtime.bundle.manifest.model_id
                other = worker.hall.opened(new if served == old else old)
                if other not in worker.hall.opened(served)._beside:
                    deaf.append(served)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        assert (await worker.activate(new)).status_code == 200
        watching.cancel()
        assert not deaf


async def test_a_model_that_was_active_and_that_no_arm_names_ends_its_work(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        assert (await worker.activate(new)).status_code == 200
        assert worker.hall.beside(old) is None
        assert not worker.hall.opened(old)._tasks


async def test_an_arm_whose_model_is_not_open_is_answered_by_the_active_one_and_counts_for_nobody(start, two_models, tmp_path):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    async with start(copy, old) as worker:
        await put(worker, {"name": "b", "share": 1, "model_id": new}, stopped=True)
        (copy / new / "score.onnx").write_bytes(b"nothing")
        await put(worker, {"name": "b", "share": 1, "model_id": new})
        await until(worker, new, "unusable")
        await worker.tell(event("u", 1))
        answer = await ask(worker, "u")
        assert answer["model_id"] == old
        assert "experiment" not in answer
        assert 'longwave_experiment_unserved_total{arm="b",experiment="x"} 1.0' in (await worker.get("/metrics")).text
        assert (await worker.get("/readyz")).status_code == 200


async def test_a_damaged_experiment_leaves_the_active_model_alone(start, two_models, raw):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        await put(worker, *arms(new))
        await until(worker, new, "beside")
        (name,) = raw.hkeys(keys.named_key("default", "experiment"))
        raw.hset(keys.named_key("default", "experiment"), name, b"nothing of ours")
        await asyncio.sleep(3)  # longer than any lease
        await worker.tell(event("u", 1))
        assert (await worker.ask("u"))["model_id"] == old
        assert (await worker.get("/readyz")).status_code == 200


async def test_an_event_is_counted_once_for_models_that_count_alike_and_once_for_each_other_way(
    start, two_models, tmp_path: Path, raw
):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    manifest = json.loads((copy / new / "manifest.json").read_bytes())
    shorter = [half_life / 2 for half_life in manifest["popularity"]["half_lives_s"]]
    edit_manifest(copy / new, popularity=manifest["popularity"] | {"half_lives_s": shorter})
    other = json.loads((copy / new / "manifest.json").read_bytes())["model_id"]
    shutil.copytree(folder / new, copy / "alike")
    async with start(copy, old) as worker:
        await put(worker, *arms(new), {"name": "c", "share": 1, "model_id": other})
        for model_id in (new, other):
            await until(worker, model_id, "beside")
        await worker.tell(*(event("u", 1, n) for n in range(5)))

        def counted(half_lives_s: list[float]) -> int:
            return int(raw.hget(keys.popularity_key("default", half_lives_s), "") or 0)

        deadline = time.monotonic() + 5
        while min(map(counted, (manifest["popularity"]["half_lives_s"], shorter))) < 5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert counted(manifest["popularity"]["half_lives_s"]) == 5
        assert counted(shorter) == 5
