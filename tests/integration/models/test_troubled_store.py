"""The service on a store that comes back empty, is away when it starts, is full, or was left in the middle of something."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
import redis
from conftest import event

from app.errors import StorageError
from app.models import hall
from app.state import keys
from app.state.models import ModelBoard


async def until(holds, seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def active(raw: redis.Redis, model_id: str):
    async def holds() -> bool:
        return raw.hget(keys.MODEL_KEY, "active") == model_id.encode()

    return holds


async def test_a_store_that_was_emptied_is_laid_out_again(start, two_models, raw):
    folder, old, new = two_models
    async with start(folder, old, popularity_refresh_ms=20) as one, start(folder, old) as other:
        assert (await one.activate(new)).status_code == 200
        raw.flushall()
        await until(active(raw, new))
        assert raw.get(keys.LAYOUT_KEY) == keys.LAYOUT.encode()
        assert raw.hexists(keys.MODELS_KEY, new)
        for worker in (one, other):
            await worker.tell(event("u", 1))
            answer = await worker.ask("u")
            assert (answer["model_id"], answer["source"]) == (new, "model")
        assert (await other.ask("u"))["applied_events"] == 2

        async def popular() -> bool:
            return any(raw.hlen(name) > 1 for name in raw.scan_iter("lw:default:popularity*"))

        await until(popular)
        assert (await one.activate(old)).status_code == 200


async def test_a_server_that_lost_which_models_there_are_hears_it_again_or_an_erasure_would_leave_their_states(
    start, two_models, raw
):
    folder, old, _ = two_models
    async with start(folder, old, commit_events=1) as worker:
        raw.hdel(keys.MODELS_KEY, old)  # another server has taken over, which had not got it
        worker.hall.service.store._transport.generation += 1

        async def registered() -> bool:
            return bool(raw.hexists(keys.MODELS_KEY, old))

        await until(registered)
        await worker.tell(event("u", 1))

        async def stored() -> bool:
            return bool(raw.exists(keys.state_key("default", old, "u")))

        await until(stored)
        assert (await worker.delete("/v1/users/u")).status_code == 200
        assert not await stored()


@pytest.fixture
def one_bundle_each(two_models, tmp_path) -> tuple[Path, Path, str, str]:
    """Two folders with one of the two models each, and the ids of these."""
    folder, old, new = two_models
    for model_id in (old, new):
        (tmp_path / f"has {model_id}").mkdir()
        (tmp_path / f"has {model_id}" / model_id).symlink_to(folder / model_id)
    return tmp_path / f"has {old}", tmp_path / f"has {new}", old, new


async def test_a_store_that_was_emptied_is_left_to_the_worker_that_served(start, one_bundle_each, raw):
    has_old, has_new, old, new = one_bundle_each
    async with start(has_old, old) as serving, start(has_new, new) as never:
        assert (await never.get("/v1/users/u/recommendations")).status_code == 503
        await serving.stop_following()
        raw.flushall()
        await asyncio.sleep(0.5)  # some twenty looks of the other one
        assert raw.hget(keys.MODEL_KEY, "active") is None
        await serving.hall.follow_once()
        assert raw.hget(keys.MODEL_KEY, "active") == old.encode()
        await serving.tell(event("u", 1))
        assert (await serving.ask("u"))["model_id"] == old


async def test_who_lays_an_emptied_store_out_has_said_before_that_it_has_the_model(start, one_bundle_each, raw, monkeypatch):
    has_old, has_new, old, new = one_bundle_each
    first = ModelBoard.first
    async with start(has_old, old) as serving, start(has_new, new) as never:

        async def and_the_other_one_looks(board: ModelBoard, model_id: str) -> None:
            await first(board, model_id)
            for _ in range(3):
                await never.hall.follow_once()
                await asyncio.sleep(0.05)  # until it knows that it cannot open this model

        await serving.stop_following()
        raw.flushall()
        monkeypatch.setattr(ModelBoard, "first", and_the_other_one_looks)
        await serving.hall.follow_once()
        assert raw.hget(keys.MODEL_KEY, "active") == old.encode()


async def test_a_store_that_was_emptied_is_taken_in_the_end_by_who_is_left(start, one_bundle_each, raw, monkeypatch):
    has_old, has_new, old, new = one_bundle_each
    monkeypatch.setattr(hall, "_LEAVE_TO_THE_SERVING_S", 0.3)
    async with start(has_old, old) as serving, start(has_new, new) as left:
        await serving.stop_following()
        raw.flushall()
        await until(active(raw, new))
        await left.tell(event("u", 1))
        assert (await left.ask("u"))["model_id"] == new


async def test_a_worker_that_starts_without_a_store_registers_its_model_when_there_is_one(start, two_models, raw, monkeypatch):
    folder, old, _ = two_models
    serving = ModelBoard.serving

    async def away(self):
        raise StorageError("away")

    monkeypatch.setattr(ModelBoard, "serving", away)
    async with start(folder, old) as worker:
        assert raw.hgetall(keys.MODELS_KEY) == {}
        monkeypatch.setattr(ModelBoard, "serving", serving)
        await until(active(raw, old))
        assert raw.hexists(keys.MODELS_KEY, old)
        assert (await worker.models())["models"][0]["status"] in ("active", "available")


async def test_a_full_store_is_read_from_and_users_are_erased(start, two_models, raw, monkeypatch):
    folder, old, _ = two_models
    monkeypatch.setattr(hall, "LEASE_S", 0.4)
    async with start(folder, old) as worker:
        await worker.tell(event("u", 1), event("v", 2))
        raw.config_set("maxmemory", "1")
        try:
            await asyncio.sleep(0.9)  # longer than a lease that was not renewed
            assert (await worker.ask("u"))["source"] == "model"
            refused = await worker.post("/v1/events", json=[event("u", 3)])
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            answer = await worker.delete("/v1/users/u")
            assert answer.status_code == 200, answer.text
        finally:
            raw.config_set("maxmemory", "0")
        await worker.tell(event("v", 4))
        assert (await worker.ask("v"))["applied_events"] == 2


async def test_an_activation_whose_end_the_store_did_not_hear_does_not_block_the_next(start, two_models, raw, monkeypatch):
    folder, old, new = two_models
    end = ModelBoard.end

    async def away(self, *arguments):
        raise StorageError("away")

    async with start(folder, old) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(ModelBoard, "commit", away)
            patch.setattr(ModelBoard, "end", away)
            assert (await worker.activate(new)).status_code == 503
            assert raw.hexists(keys.MODEL_KEY, "token")
        assert ModelBoard.end is end

        async def cleared() -> bool:
            return not raw.hexists(keys.MODEL_KEY, "token")

        await until(cleared)
        assert (await worker.models())["last_activation"]["result"] == "failed"
        assert (await worker.activate(new)).status_code == 200


async def test_a_start_with_another_bundle_right_after_a_kill_serves_it(start, two_models, raw, tmp_path):
    folder, old, new = two_models
    (tmp_path / new).symlink_to(folder / new)
    raw.hset(keys.MODEL_KEY, mapping={"active": old, "generation": 3})
    raw.hset(
        keys.WORKERS_KEY, "killed", f"{time.time_ns() // 10**6} " + json.dumps({"generation": 3, "ready": [old], "failed": {}})
    )
    async with start(tmp_path, new) as worker:  # has no bundle of the old one
        await until(active(raw, new), 10)
        await worker.tell(event("u", 1))
        assert (await worker.ask("u"))["model_id"] == new


async def test_nobody_takes_over_from_whom_an_activation_is_running(start, two_models, raw, tmp_path):
    folder, old, new = two_models
    (tmp_path / new).symlink_to(folder / new)
    raw.hset(keys.MODEL_KEY, mapping={"active": old, "generation": 3, "candidate": old, "token": "leader:1", "phase": "backfill"})
    says = json.dumps({"generation": 3, "ready": [], "failed": {}})
    far = time.time_ns() // 10**6 + 60_000  # alive to the end of this test
    raw.hset(keys.WORKERS_KEY, "leader", f"{far} {says}")
    async with start(tmp_path, new):
        await asyncio.sleep(1.0)
        assert raw.hmget(keys.MODEL_KEY, "active", "token") == [old.encode(), b"leader:1"]


@pytest.mark.parametrize("living", [True, False])
async def test_a_worker_without_the_active_model_takes_over_only_if_nobody_has_it(start, two_models, raw, tmp_path, living: bool):
    folder, old, new = two_models
    (tmp_path / new).symlink_to(folder / new)
    async with start(folder, old) as having:
        if not living:
            await having.stop_following()
        async with start(tmp_path, new) as worker:
            await asyncio.sleep(1.0)
            assert raw.hget(keys.MODEL_KEY, "active") == old.encode()
            assert (await worker.get("/v1/users/u/recommendations")).status_code == 503
            if not living:
                await until(active(raw, new), 10)


async def test_an_activation_ends_when_the_store_was_emptied_before_every_worker_was_ready(start, two_models, raw, monkeypatch):
    folder, old, new = two_models
    async with start(folder, old) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(hall.Hall, "_prepare", lambda self, model_id: None)
            activating = asyncio.create_task(worker.activate(new))

            async def begun() -> bool:
                return raw.hexists(keys.MODEL_KEY, "token")

            await until(begun)
            raw.flushall()
            assert (await asyncio.wait_for(activating, 8)).status_code == 409
        assert (await worker.activate(new)).status_code == 200


@pytest.mark.parametrize("when", ["at any moment", "before the others were heard"])
async def test_an_activation_ends_when_the_store_was_emptied_before_every_worker_has_followed(
    start, two_models, raw, monkeypatch, when
):
    folder, old, new = two_models
    async with start(folder, old) as worker, start(folder, old) as slow:
        await slow.stop_following()  # from here on it looks when it is told to
        await slow.hall.follow_once()
        activating = asyncio.create_task(worker.activate(new))
        async with asyncio.timeout(10):
            await slow.says_that_it_has(new)
        if when == "at any moment":
            await until(active(raw, new))
            raw.flushall()
        else:
            hear = ModelBoard.beat_of_all
            emptied = asyncio.Event()

            async def of_an_emptied_store(board: ModelBoard):
                if raw.hget(keys.MODEL_KEY, "active") == new.encode() and not emptied.is_set():
                    raw.flushall()
                    emptied.set()
                return await hear(board)

            monkeypatch.setattr(ModelBoard, "beat_of_all", of_an_emptied_store)
            await asyncio.wait_for(emptied.wait(), 8)
        assert (await asyncio.wait_for(activating, 8)).status_code == 409
        await worker.tell(event("u", 1))
        assert (await worker.ask("u"))["model_id"] == new


async def test_a_store_that_hangs_holds_no_request_up_for_longer_than_one_time_out(start, two_models, raw, monkeypatch):
    folder, old, _ = two_models
    monkeypatch.setattr(hall, "LEASE_S", 0.1)
    async with start(folder, old) as worker:
        await worker.tell(event("u", 1))
        looks = 0

        async def hangs(self):
            nonlocal looks
            looks += 1
            await asyncio.sleep(0.3)
            raise StorageError("did not answer")

        monkeypatch.setattr(ModelBoard, "serving", hangs)
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        answers = await asyncio.gather(*(worker.ask("u") for _ in range(20)))
        assert [answer["degraded"] for answer in answers] == [True] * 20
        assert time.monotonic() - began_s < 2
        assert looks < 5
