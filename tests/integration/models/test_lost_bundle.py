"""Experiments that run on while the bundle of an arm's model is not there any more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_beside import ask, put, until


def three_arms(old: str, new: str) -> list[dict[str, Any]]:
    return [{"name": "a", "share": 1}, {"name": "b", "share": 1, "model_id": new}, {"name": "c", "share": 1, "model_id": old}]


@pytest.fixture
async def worker(start, two_models: tuple[Path, str, str], tmp_path: Path):
    """A worker with a running experiment, the bundle of whose arm b is not there any more."""
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    async with start(copy, old) as worker:
        await put(worker, *three_arms(old, new))
        await until(worker, new, "beside")
        shutil.rmtree(copy / new)
        yield worker


async def test_it_can_be_ended(worker, two_models):
    _, old, new = two_models
    await put(worker, *three_arms(old, new), stopped=True)
    assert (await worker.get("/v1/experiments/x")).json()["stopped"]


async def test_the_arm_can_be_taken_out_and_not_brought_back(worker, two_models):
    _, old, new = two_models
    a, b, c = three_arms(old, new)
    await put(worker, a, c)
    again = await worker.put("/v1/experiments/x", json={"arms": [a, b, c]})
    assert (again.status_code, again.json()["errors"][0]["field"]) == (422, "arms.1.model_id")


async def test_another_arm_can_be_taken_out_and_the_shares_be_changed_while_its_model_still_answers(worker, two_models):
    _, old, new = two_models
    a, b, _ = three_arms(old, new)
    await put(worker, a, b | {"share": 1e6})
    users = [f"u{number}" for number in range(4)]
    assert {(await ask(worker, user))["model_id"] for user in users} == {new}


async def test_it_cannot_be_run_again_once_it_was_ended_nor_can_another_one_name_the_model(worker, two_models):
    _, old, new = two_models
    body = json.dumps({"arms": three_arms(old, new)})
    assert (await worker.put("/v1/experiments/other", content=body)).status_code == 422
    await put(worker, *three_arms(old, new), stopped=True)
    assert (await worker.put("/v1/experiments/x", content=body)).status_code == 422
