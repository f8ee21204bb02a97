"""Models beside the active one, where the store is full, the catalogues differ, or experiments come and go quickly."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from typing import Any
from urllib.parse import quote

import pytest
import redis
from bundle_edit import replace_file
from conftest import event
from test_beside import arms, ask, put, until

from app.models import hall
from app.models.beside import Beside
from app.state import keys
from app.state.lists import short_name

ITEMS = "items/items.jsonl"


async def test_a_full_store_has_no_model_opened_again_and_again(start, two_models, raw: redis.Redis, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        await put(worker, *arms(new))
    opened: list[str] = []
    load = hall.load_model

    def counted(*args: Any) -> Any:
        opened.append(args[0].name)
        return load(*args)

    monkeypatch.setattr(hall, "load_model", counted)
    raw.config_set("maxmemory", 1)
    try:
        async with start(folder, old) as worker:
            await asyncio.sleep(3)  # with a look every 20 ms
            assert len(opened) <= 1
            raw.config_set("maxmemory", 0)
            await until(worker, new, "beside")
            assert len(opened) <= 2
    finally:
        raw.config_set("maxmemory", 0)


async def test_requests_are_answered_while_a_large_model_is_made_ready_to_stand_beside(start, two_models, monkeypatch):
    folder, old, new = two_models
    made = hall.ServedModel
    ends_s: list[float] = []

    def slowly(*args: Any) -> Any:
        time.sleep(2.5)  # longer than a lease
        ends_s.append(time.monotonic())
        return made(*args)

    async with start(folder, old) as worker:
        await worker.tell(event("u", 1))
        monkeypatch.setattr(hall, "ServedModel", slowly)
        await put(worker, *arms(new))
        longest_s, last_s = 0.0, time.monotonic()
        while not ends_s:
            assert (await worker.ask("u"))["model_id"] == old
            await asyncio.sleep(0.02)
            longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
        assert longest_s < 2
        await until(worker, new, "beside")


async def test_a_model_that_has_just_started_and_is_not_wanted_any_more_does_not_run_on(start, two_models):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        await put(worker, *arms(new))
        await until(worker, new, "beside")
        served, model = worker.hall.opened(old), worker.hall.opened(new)
        await worker.stop_following()
        await model.stop()
        beside = Beside(4)
        await beside.follow(served, {new: model}, [new])
        await asyncio.gather(*beside._starting.values())
        assert model._tasks
        await beside.follow(served, {new: model}, [])
        assert not model._tasks


async def test_an_item_that_only_a_model_beside_has_is_counted_for_the_other_workers_too(start, two_models, tmp_path, raw):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    manifest = json.loads((copy / new / "manifest.json").read_bytes())
    items = (copy / new / ITEMS).read_bytes()
    replace_file(copy / new, ITEMS, items.replace(b'"item-059"', b'"item-new"'))
    other = json.loads((copy / new / "manifest.json").read_bytes())["model_id"]
    key = keys.popularity_key("default", manifest["popularity"]["half_lives_s"])
    async with start(copy, old) as worker:
        await put(worker, *arms(other))
        await until(worker, other, "beside")
        await worker.tell(event("u", 1), event("u", 59), event("u", 59) | {"item_id": "item-new"})
        deadline = time.monotonic() + 5
        while raw.hlen(key) < 4:
            assert time.monotonic() < deadline, raw.hgetall(key)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert int(raw.hget(key, "")) == 3


async def test_lists_that_an_arms_model_should_have_made_are_counted_under_the_name_that_all_counts_have(
    start, two_models, tmp_path
):
    folder, old, new = two_models
    copy = shutil.copytree(folder, tmp_path / "bundles")
    (copy / new / "score.onnx").write_bytes(b"nothing")
    name = "an experiment whose name is longer than what the id of a list can hold of it"
    async with start(copy, old) as worker:
        await put(worker, {"name": "b", "share": 1, "model_id": new}, name=name)
        assert "experiment" not in await ask(worker, "u", experiment=name)
        counts = f'longwave_experiment_unserved_total{{arm="b",experiment="{short_name(name)}"}} 1.0'
        assert counts in (await worker.get("/metrics")).text


@pytest.mark.parametrize(("name", "stored"), [(b"\xff\xfe", b"1 {}"), (b"d", b"9" * 5_000 + b" {}"), (b"d", b"nothing of ours")])
async def test_one_damaged_experiment_takes_neither_the_service_nor_the_other_experiments_with_it(
    start, two_models, raw: redis.Redis, name: bytes, stored: bytes
):
    folder, old, new = two_models
    raw.hset(keys.named_key("default", "experiment"), name, stored)
    async with start(folder, old) as worker:
        await put(worker, {"name": "b", "share": 1, "model_id": new})
        await until(worker, new, "beside")
        await asyncio.sleep(hall.LEASE_S)
        assert (await worker.get("/readyz")).status_code == 200
        assert (await worker.ask("u"))["model_id"] == old
        assert (await ask(worker, "u"))["model_id"] == new
        every = (await worker.get("/v1/experiments")).json()
        assert [one["name"] for one in every["experiments"]] == ["x"]
        (damaged,) = every["damaged"]
        assert (await worker.delete(f"/v1/experiments/{quote(damaged['name'])}")).status_code == 200
        assert "damaged" not in (await worker.get("/v1/experiments")).json()


async def test_whatever_cannot_be_told_of_experiments_the_model_that_serves_is_followed(start, two_models, monkeypatch):
    folder, old, _ = two_models
    async with start(folder, old) as worker:

        async def broken() -> None:
            raise ValueError("a fault of ours")

        monkeypatch.setattr(worker.hall, "_wanted_beside", broken)
        await asyncio.sleep(hall.LEASE_S + 0.5)
        assert (await worker.ask("u"))["model_id"] == old
