"""How many models stand beside the active one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundle_edit import edit_manifest
from test_beside import ask, put, until


@pytest.fixture
def four_models(two_models: tuple[Path, str, str], tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with four bundles, the first of which is to be the active one, and their ids."""
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    ids = [old, new]
    for factor in (2, 3):
        other = shutil.copytree(folder / new, copy / f"x{factor}")
        popularity = json.loads((other / "manifest.json").read_bytes())["popularity"]
        half_lives_s = [factor * half_life for half_life in popularity["half_lives_s"]]
        edit_manifest(other, popularity=popularity | {"half_lives_s": half_lives_s})
        ids.append(json.loads((other / "manifest.json").read_bytes())["model_id"])
        other.rename(copy / ids[-1])
    return copy, ids


def naming(*models: str) -> list[dict[str, Any]]:
    return [{"name": f"arm {number}", "share": 1, "model_id": model_id} for number, model_id in enumerate(models)]


async def test_an_experiment_that_wants_more_than_may_stand_there_is_refused_and_told_which(start, four_models):
    folder, (active, one, two, three) = four_models
    async with start(folder, active, models_beside=2) as worker:
        await put(worker, *naming(active, one, two), name="first")
        refused = await worker.put("/v1/experiments/second", json={"arms": naming(three)})
        assert refused.status_code == 409
        assert all(said in refused.json()["detail"] for said in (one, two, three, "LONGWAVE_MODELS_BESIDE", "allows 2"))
        assert (await worker.get("/v1/experiments/second")).status_code == 404
        await put(worker, *naming(one, two), name="second")  # which are there
        await put(worker, *naming(one, three), name="second", stopped=True)
        await put(worker, *naming(one), name="first")
        await put(worker, *naming(one, three), name="second")


async def test_where_a_store_has_more_the_arms_that_are_left_are_answered_by_the_active_model(start, four_models, capsys):
    folder, (active, one, two, three) = four_models
    async with start(folder, active) as worker:
        await put(worker, *naming(two), name="x")
        await put(worker, *naming(three), name="b")
        await put(worker, *naming(one, active), name="a")
    async with start(folder, active, models_beside=2) as worker:
        await until(worker, one, "beside")
        await until(worker, three, "beside")
        answer = await ask(worker, "u")
        assert (answer["model_id"], "experiment" in answer) == (active, False)
        assert worker.hall.opened(two) is None
        said = [line for line in capsys.readouterr().err.splitlines() if "more models than may stand" in line]
        assert len(said) == 1
        assert two in said[0]
        # What is there already may be changed, and be ended; nothing may be added.
        await put(worker, *naming(two, one), name="x")
        await put(worker, *naming(three), name="b", stopped=True)
        await until(worker, two, "beside")


async def test_the_model_that_was_active_takes_no_place_from_those_that_come_before_it(start, four_models):
    folder, (active, one, two, _) = four_models
    async with start(folder, active, models_beside=1) as worker:
        await put(worker, *naming(one), name="a")
        await put(worker, *naming(active), name="x")
        await until(worker, one, "beside")
        assert (await ask(worker, "u"))["experiment"]["arm"] == "arm 0"
        assert (await worker.activate(two)).status_code == 200
        assert worker.hall.beside(one) is not None
        assert worker.hall.beside(active) is None
        assert (await ask(worker, "u"))["model_id"] == two
