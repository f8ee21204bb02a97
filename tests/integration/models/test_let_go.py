"""A model that is let go leaves memory, whatever it was doing: of the first one the garbage collector looks at no part again."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from dataclasses import replace

import pytest
from conftest import event

from app.errors import StorageError
from app.models.activate import Activation


def parts_of(model):
    """What a model has that is large, by name."""
    service = model.service
    return {
        "model": model,
        "bundle": service.runtime.bundle,
        "graphs": service.runtime.step,
        "catalogue": service.catalogue,
        "scorer": service.scorer,
        "popularity": model._popularity,
        "states": model._commits._cache,
    }


async def left_of(parts):
    """What stays of them. What runs in a thread ends, and the collector takes what errors have left."""
    until_s = time.monotonic() + 10
    while (left := {name for name, part in parts.items() if part() is not None}) and time.monotonic() < until_s:
        await asyncio.sleep(0.05)
        gc.collect()
    return left


@pytest.mark.parametrize("retrieval", ["exact", "index"])
async def test_nothing_of_a_model_that_was_left_under_load_stays(start, two_models, tmp_path, retrieval):
    folder, old, new = two_models
    async with start(folder, old, retrieval=retrieval, storage_dir=tmp_path, commit_delay_ms=1_000) as one:
        await one.tell(*(event("u", n, n) for n in range(40)))
        await one.ask("u")
        parts = {name: weakref.ref(part) for name, part in parts_of(one.hall._served).items()}
        activating = asyncio.create_task(one.activate(new))
        while one.hall.model_id != new:
            await one.tell(event("v", 1))  # counts and states are on their way when it is left
        assert (await activating).status_code == 200
        await one.ask("u")
        one.hall._let_go(replace(await one.hall.board.serving(), previous=None), ())
        assert await left_of(parts) == set()


async def test_nothing_of_a_model_whose_activation_failed_stays(start, two_models, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as one:
        parts = {}

        async def fail(self, model, token):
            parts.update({name: weakref.ref(part) for name, part in parts_of(model).items()})
            raise StorageError("away")

        monkeypatch.setattr(Activation, "_backfill", fail)
        assert (await one.activate(new, wait="false")).status_code == 202
        while not parts or new in one.hall._open:
            await one.hall.follow_once()
        assert await left_of(parts) == set()
