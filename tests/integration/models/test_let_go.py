"""A model that is let go leaves memory, whatever it was doing: of the first one the garbage collector looks at no part again."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace

import pytest
from conftest import event


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
        gc.collect()  # what errors leave, such as those of a cancellation
        assert {name for name, part in parts.items() if part() is not None} == set()
