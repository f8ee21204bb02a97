"""The answer to the commit of an activation is lost: what is said of it must be true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from conftest import event
from line import Line

from app.models import activate
from app.state import keys
from app.state.models import ModelBoard

COMMIT = b"\r\ncommit\r\n"


@pytest.fixture
async def line(redis_url, tmp_path) -> AsyncIterator[Line]:
    """A line to the store, whose socket is `line` in the test's folder."""
    line = Line(redis_url.removeprefix("unix://").partition("?")[0])
    async with await asyncio.start_unix_server(line.connect, tmp_path / "line"):
        yield line
        await asyncio.sleep(0.05)  # the line ends after its ends


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(activate, "_ASKED_FOR_S", 0.3)


async def test_a_commit_whose_answer_is_lost_is_found_to_be_done_and_followed_by_all(start, two_models, line, raw, tmp_path):
    folder, old, new = two_models
    async with start(folder, old, redis_url=f"unix://{tmp_path}/line") as one, start(folder, old) as slow:
        await slow.stop_following()  # from here on it looks when it is told to
        await slow.hall.follow_once()
        line.loses_the_reply_to = COMMIT
        activating = asyncio.create_task(one.activate(new))
        async with asyncio.timeout(10):
            await slow.says_that_it_has(new)
            while raw.hget(keys.MODEL_KEY, "active") != new.encode():  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.01)
        assert line.loses_the_reply_to is None
        await asyncio.sleep(0.3)
        assert not activating.done()  # there is one that may answer from the old model
        await slow.hall.follow_once()
        assert (await activating).status_code == 200
        assert (await one.models())["last_activation"]["result"] == "active"
        for worker in (one, slow):
            await worker.tell(event("u", 1))
            assert (await worker.ask("u"))["model_id"] == new


async def test_where_nothing_is_heard_any_more_nobody_says_that_the_old_model_serves(
    start, two_models, line, raw, tmp_path, soon
):
    folder, old, new = two_models
    async with start(folder, old, redis_url=f"unix://{tmp_path}/line") as worker:
        line.loses_the_reply_to, line.goes_down_with_it = COMMIT, True
        answer = await worker.activate(new)
        assert answer.status_code == 503
        assert answer.json()["detail"].endswith("whether it became active is not known")
        assert raw.hget(keys.MODEL_KEY, "active") == new.encode()
        line.is_down = False
        async with asyncio.timeout(10):
            while (await worker.models())["active"] != new or worker.hall.model_id != new:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.02)
        await worker.tell(event("u", 1))
        assert (await worker.ask("u"))["model_id"] == new


async def test_a_commit_that_never_arrives_leaves_what_serves_and_says_so(start, two_models, line, raw, tmp_path, soon):
    folder, old, new = two_models
    async with start(folder, old, redis_url=f"unix://{tmp_path}/line") as worker:
        line.stops = COMMIT
        answer = await worker.activate(new)
        assert answer.status_code == 503
        assert answer.json()["detail"].endswith("the running model keeps serving")
        assert raw.hmget(keys.MODEL_KEY, "active", "candidate") == [old.encode(), None]
        last = (await worker.models())["last_activation"]
        assert (last["model_id"], last["result"]) == (new, "failed")
        line.stops = None
        assert (await worker.activate(new)).status_code == 200


@pytest.mark.parametrize("done", [True, False])
async def test_an_activation_that_is_broken_off_at_the_commit_says_what_became_of_it(
    start, two_models, raw, monkeypatch, done: bool
):
    folder, old, new = two_models
    commit, asked = ModelBoard.commit, asyncio.Event()

    async def takes_long(board, *arguments):
        if done:
            await commit(board, *arguments)
        asked.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(ModelBoard, "commit", takes_long)
    async with start(folder, old) as worker:
        activating = asyncio.create_task(worker.activate(new))
        async with asyncio.timeout(10):
            await asked.wait()
            await worker.app.state.hook.models.activation.stop()
            assert (await activating).status_code == 503
        assert raw.hmget(keys.MODEL_KEY, "active", "candidate") == [(new if done else old).encode(), None]
        last = (await worker.models())["last_activation"]
        assert (last["model_id"], last["reason"]) == (new, "the worker that brought it was stopped")
        assert last["result"] == ("active" if done else "failed")


async def test_what_is_said_of_an_activation_by_a_service_that_stops_stays_true(start, two_models, raw, monkeypatch):
    folder, old, new = two_models
    commit, asked, goes_on = ModelBoard.commit, asyncio.Event(), asyncio.Event()

    async def takes_long(board, *arguments):
        asked.set()
        await goes_on.wait()
        return await commit(board, *arguments)

    monkeypatch.setattr(ModelBoard, "commit", takes_long)
    async with start(folder, old) as worker:
        activating = asyncio.create_task(worker.activate(new))
        async with asyncio.timeout(10):
            await asked.wait()
            worker.app.state.hook.bounds.stopping.set()
            answer = await activating
        assert answer.json()["detail"] == "shutting down; the running model keeps serving"
        goes_on.set()
        await asyncio.sleep(0.3)
        assert raw.hmget(keys.MODEL_KEY, "active", "candidate") == [old.encode(), None]
