"""What waits in the service's queues: it hears in time, also where Redis hangs or is slow, and is told truly what was done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
import redis
from conftest import event

import app.ingest.append
import app.recommend.pipeline
from app.state import keys
from app.state.embedded import EmbeddedRedis
from app.state.wire import Wire

Start = Callable[..., AbstractAsyncContextManager[Any]]


def problem(response: httpx.Response) -> str:
    """The type of a 503 that says when to come again."""
    assert (response.status_code, int(response.headers["retry-after"]) >= 1) == (503, True), response.text
    kind: str = json.loads(response.content)["type"]
    return kind.removeprefix("urn:longwave:problem:")


def stored(raw: redis.Redis, user: str) -> int:
    count = raw.llen(keys.user_keys("default", user).seq)
    assert isinstance(count, int)
    return count


async def timed(call: Any) -> tuple[httpx.Response, float]:
    began_s = monotonic()
    return await call, monotonic() - began_s


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for thousands of requests, which one process takes too long to make for a test of how long they wait."""
    monkeypatch.setattr(app.recommend.pipeline, "_BATCH", 4)
    monkeypatch.setattr(app.ingest.append, "_BATCH", 8)


@pytest.mark.usefixtures("small_batches")
async def test_while_redis_hangs_all_who_wait_hear_of_it_within_three_timeouts(start: Start, tmp_path: Path):
    with EmbeddedRedis(tmp_path / "redis") as server:
        async with start(redis_url=server.url, redis_timeout_ms=1_000) as client:
            await client.tell(event("u", 1))
            assert (await client.ask("u"))["source"] == "model"
            os.kill(server.pid, signal.SIGSTOP)
            try:
                calls = []
                for n in range(150):
                    calls.append(timed(client.get(f"/v1/users/{'u' if n % 2 else n}/recommendations")))
                    calls.append(timed(client.post("/v1/events", json=event(f"writer {n}", 1, event_id="once"))))
                answers = await asyncio.gather(*calls)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert max(took_s for _, took_s in answers) < 3.0
            for read, _ in answers[::2]:
                answer = json.loads(read.content)
                assert (answer["degraded"], answer["reason"]) == (True, "storage_unavailable")
                assert len(answer["items"]) == 20
            writes = [write for write, _ in answers[1::2]]
            assert {problem(write) for write in writes} == {"storage-unavailable"}
            # All is well again, and nothing that was refused with "nothing was sent" is stored.
            assert (await client.ask("u"))["source"] == "model"
            again = await client.tell(*(event(f"writer {n}", 1, event_id="once") for n in range(150)))
            unsent = {n for n, write in enumerate(writes) if "nothing of this was sent" in json.loads(write.content)["detail"]}
            assert 100 < len(unsent) < 150
            assert {result["index"] for result in again["results"] if result["status"] == "stored"} >= unsent
            assert set(again["totals"].values()) == {1}  # and whatever was sent, once


class SlowLine:
    """A line to a Redis whose replies take a while."""

    def __init__(self, socket: str) -> None:
        self.delay_s = 0.0
        self._socket = socket
        self._carrying: set[asyncio.Task[Any]] = set()

    async def ended(self) -> None:
        """Return when nobody is connected any more."""
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=10)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        replies, requests = await asyncio.open_unix_connection(self._socket)
        await asyncio.gather(self._carry(reader, requests), self._carry(replies, writer, slow=True))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, slow: bool = False) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(2**16):
                if slow:
                    await asyncio.sleep(self.delay_s)
                sink.write(data)
        sink.close()


@pytest.fixture
async def slow_line(redis_url: str, tmp_path: Path) -> AsyncIterator[SlowLine]:
    """A line at `tmp_path / "line"`."""
    line = SlowLine(redis_url.removeprefix("unix://"))
    async with await asyncio.start_unix_server(line.connect, tmp_path / "line"):
        yield line
        await line.ended()


@pytest.mark.usefixtures("small_batches")
async def test_a_redis_that_is_slow_and_never_fails_has_nobody_wait_long(
    start: Start, slow_line: SlowLine, raw: redis.Redis, tmp_path: Path
):
    async with start(redis_url=f"unix://{tmp_path}/line", redis_timeout_ms=1_000, write_wait_ms=1_000) as client:
        await client.tell(event("u", 1))
        # Opens connections, also for what the service does by itself: that takes several replies each.
        await asyncio.gather(*(client.get("/v1/users/u/events") for _ in range(20)))
        await asyncio.gather(*(client.ask("u") for _ in range(50)))
        slow_line.delay_s = 0.2  # so 200 reads and 200 writes would take 25 times that
        reads = [timed(client.get("/v1/users/u/recommendations")) for _ in range(200)]
        writes = [timed(client.post("/v1/events", json=event(f"writer {n}", 1))) for n in range(200)]
        answers = await asyncio.gather(*reads, *writes)
        slow_line.delay_s = 0.0
        assert max(took_s for _, took_s in answers) < 4
        said = [(answer["source"], answer["reason"]) for answer in (json.loads(read.content) for read, _ in answers[:200])]
        assert set(said) == {("model", None), ("fallback", "overloaded")}
        refused = {n for n, (write, _) in enumerate(answers[200:]) if write.status_code != 200}
        assert {problem(answers[200 + n][0]) for n in refused} == {"overloaded"}
        assert 0 < len(refused) < 200
        assert (await client.ask("u"))["source"] == "model"
        assert [stored(raw, f"writer {n}") for n in range(200)] == [int(n not in refused) for n in range(200)]


async def test_a_write_is_refused_while_too_many_events_wait_for_the_fold_and_nothing_is_stored(start: Start, raw: redis.Redis):
    async with start(background_fold=True, fold_delay_ms=60_000, max_unfolded_events=1, write_wait_ms=50) as client:
        await client.tell(event("u", 1))
        response = await client.post("/v1/events", json=event("u", 2))
        assert problem(response) == "overloaded"
        assert "1 events wait to be folded" in json.loads(response.content)["detail"]
        assert stored(raw, "u") == 1
        assert (await client.ask("u"))["applied_events"] == 1  # reads go on


async def test_a_read_is_refused_where_too_many_wait_already_and_the_others_are_answered(
    start: Start, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.recommend.pipeline, "_MOST_WAITING", 10)
    async with start() as client:
        await client.tell(event("u", 1))
        raw.client_pause(200)
        answers = await asyncio.gather(*(client.get("/v1/users/u/recommendations") for _ in range(100)))
        answered = [json.loads(answer.content) for answer in answers if answer.status_code == 200]
        assert {(answer["source"], answer["degraded"]) for answer in answered} == {("model", False)}
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {problem(answer) for answer in refused} == {"overloaded"}
        assert 10 <= len(answered) < 100
        assert (await client.ask("u"))["source"] == "model"


asked_here: ContextVar[list[list[str]] | None] = ContextVar("asked_here", default=None)


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of each exchange with Redis that what this test calls asks for; not those that the service makes by itself."""
    ask = Wire.ask

    async def counted(wire: Wire, commands: Sequence[tuple[Any, ...]], timeout_s: float) -> list[Any]:
        of_this_test = asked_here.get()
        if of_this_test is not None:
            of_this_test.append([command[0] for command in commands])
        return await ask(wire, commands, timeout_s)

    monkeypatch.setattr(Wire, "ask", counted)
    return []


@pytest.mark.parametrize("background_fold", [True, False])
async def test_a_single_event_is_one_round_trip(start: Start, exchanges: list[list[str]], background_fold: bool):
    async with start(background_fold=background_fold) as client:
        await client.tell(event("u", 1))  # Redis knows the script then
        asked_here.set(exchanges)
        await client.tell(event("u", 2, event_id="a"))
        assert exchanges == [["EVALSHA"]]
        await client.tell(event("new", 2))
        assert exchanges == [["EVALSHA"]] * 2


async def test_a_single_event_is_one_round_trip_also_where_replicas_must_confirm_it(
    start: Start, raw: redis.Redis, exchanges: list[list[str]]
):
    async with start() as client:
        await client.tell(event("u", 1))
    async with start(redis_wait_replicas=1, redis_wait_ms=20) as client:
        asked_here.set(exchanges)
        response = await client.post("/v1/events", json=event("u", 2))
    assert problem(response) == "storage-unavailable"
    assert "confirmed by 0 of 1 replicas" in json.loads(response.content)["detail"]
    assert exchanges[0] == ["EVALSHA", "SET", "WAIT"]
    assert stored(raw, "u") == 2
