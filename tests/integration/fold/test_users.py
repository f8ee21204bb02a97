"""Users as they are now, on a real store and a real model: each fold is done once, in parts, and never for nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from app.catalogue.catalogue import Catalogue
from app.errors import StorageError
from app.fold import Commits, Fold, LongTail, StateCache, Unfolded, Users
from app.fold.tensors import EventTensors
from app.runtime.bundle import read_bundle
from app.runtime.session import Runtime, open_runtime
from app.state import keys
from app.state.codec import Header, StateCodec
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.store import Append, CommitResult, Held, Loaded
from app.telemetry import Metrics

START_MS = 1_300_000_000_000
LONG = 1_000  # more than is folded between other requests


class CountingFold(Fold):
    """How many users and events each call had."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.calls: list[list[int]] = []

    def __call__(self, users: Sequence[Unfolded]) -> list[tuple[Header, bytes]]:
        self.calls.append([len(user.tail) for user in users])
        return super().__call__(users)


class WatchedStore(RedisStore):
    """Remembers what was loaded; may lose its answers, or refuse to keep states."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.loads: list[list[Loaded]] = []
        self.errors: list[Exception] = []
        self.full = False

    async def load(
        self,
        tenant: str,
        model_id: str,
        user_ids: Sequence[str],
        held: Sequence[Held | None] | None = None,
        most: int = 0,
        only: int | None = None,
    ) -> list[Loaded]:
        if self.errors:
            raise self.errors.pop(0)
        self.loads.append(await super().load(tenant, model_id, user_ids, held, most, only))
        return list(self.loads[-1])

    async def commit_many(
        self, tenant: str, model_id: str, blobs: Sequence[tuple[str, bytes]], only: int | None = None
    ) -> list[CommitResult]:
        if self.full:
            raise StorageError("out of memory")
        return await super().commit_many(tenant, model_id, blobs, only)


class Worker:
    """One worker's view of the users."""

    def __init__(self, runtime: Runtime, store: WatchedStore, cache_bytes: int, every: int, ttl_s: float) -> None:
        bundle = runtime.bundle
        ids = [item.id for item in bundle.items]
        catalogue = Catalogue(ids, ids, [()] * len(ids), bundle.vectors, bundle.bias)
        codec = StateCodec(bundle.manifest.state)
        self.store = store
        self.fold = CountingFold(runtime, catalogue, codec, EventTensors(bundle.manifest, catalogue, None))
        self.cache = StateCache(cache_bytes)
        self.commits = Commits(store, self.cache, "m", Metrics(), every=every, delay_s=0.0, ttl_s=ttl_s)
        self.users = Users(store, self.fold, self.cache, self.commits, "m", Metrics())

    async def state(self, user_id: str) -> tuple[Header, Mapping[str, Any]]:
        async with asyncio.timeout(10):
            user = await self.users.current("default", user_id)
        assert user is not None
        assert user.header.applied == user.meta.appended
        return user.header, self.fold.tensors([user.blob])

    def offline(self, events: Sequence[StoredEvent]) -> Mapping[str, Any]:
        ((_, blob),) = Fold.__call__(self.fold, [Unfolded(bytes(8), {}, None, events, 0)])
        return self.fold.tensors([blob])


@pytest.fixture(scope="session")
def runtime(tiny_bundle: Path) -> Runtime:
    return open_runtime(read_bundle(tiny_bundle), "cpu", 1)


@pytest.fixture
async def worker(runtime: Runtime, redis_url: str):
    workers: list[Worker] = []

    def start(cache_bytes: int = 10**7, every: int = 10_000, ttl_s: float = 1_000, **settings: Any) -> Worker:
        workers.append(Worker(runtime, WatchedStore(redis_url, **settings), cache_bytes, every, ttl_s))
        return workers[-1]

    yield start
    for one in workers:
        await one.commits.close()
        await one.store.close()


Start = Callable[..., Worker]


def history(n: int, seed: int = 0) -> list[StoredEvent]:
    rng = random.Random(seed)
    kinds = ["purchase", "view", "cancellation"]
    return [StoredEvent(rng.choice(kinds), START_MS + 60_000 * i, f"item-{rng.randrange(60):03d}") for i in range(n)]


async def append(store: RedisStore, user_id: str, events: Sequence[StoredEvent]) -> None:
    await store.append("default", [Append(user_id, events, [None] * len(events))])


def assert_same(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, array in state.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-4, err_msg=name)


async def test_a_long_tail_is_folded_once_for_all_who_ask_at_the_same_time(worker: Start):
    one, events = worker(), history(LONG)
    await append(one.store, "u", events)
    states = await asyncio.gather(*(one.state("u") for _ in range(20)))
    assert one.fold.calls == [[LONG]]
    assert {header.applied for header, _ in states} == {LONG}
    assert_same(states[0][1], one.offline(events))


async def test_a_tail_of_more_than_one_part_is_folded_part_by_part_to_the_same_state(worker: Start):
    one, events = worker(), history(9_000)
    await append(one.store, "u", events)
    states = await asyncio.gather(*(one.state("u") for _ in range(3)))
    assert one.fold.calls == [[4_096], [4_096], [808]]
    assert max(len(user.tail) for loaded in one.store.loads for user in loaded) == 4_096
    assert (states[0][0].base, states[0][0].applied) == (0, 9_000)
    assert_same(states[0][1], one.offline(events))


@pytest.mark.parametrize("length", [128, 129, 4_096, 4_097])
async def test_at_every_bound_every_event_is_folded_once(worker: Start, length: int):
    one, events = worker(), history(length)
    await append(one.store, "u", events)
    assert_same((await one.state("u"))[1], one.offline(events))
    assert sum(map(sum, one.fold.calls)) == length


async def test_others_do_not_wait_for_a_long_fold(worker: Start):
    one = worker()
    await append(one.store, "long", history(4_000))
    await append(one.store, "short", history(3))
    long = asyncio.create_task(one.state("long"))
    await asyncio.sleep(0.01)
    await one.state("short")
    assert not long.done()
    await long


async def test_events_that_arrive_during_a_long_fold_are_in_the_state(worker: Start):
    one, events = worker(), history(3_000)
    await append(one.store, "u", events[:2_990])
    reading = asyncio.create_task(one.state("u"))
    for event in events[2_990:]:
        await asyncio.sleep(0.001)
        await append(one.store, "u", [event])
    await reading
    header, state = await one.state("u")
    assert header.applied == 3_000
    assert_same(state, one.offline(events))
    assert sum(map(sum, one.fold.calls)) == 3_000


async def test_whoever_gives_up_takes_nobody_elses_fold_along(worker: Start):
    one, events = worker(), history(4_000)
    await append(one.store, "u", events)
    impatient, patient = asyncio.create_task(one.state("u")), asyncio.create_task(one.state("u"))
    await asyncio.sleep(0.02)
    impatient.cancel()
    assert_same((await patient)[1], one.offline(events))
    assert one.fold.calls == [[4_000]]


async def test_storage_that_goes_away_during_a_long_fold_is_said_to_all_and_not_for_good(worker: Start):
    one, events = worker(), history(LONG)
    await append(one.store, "u", events)
    fold = one.users._fold_in_parts

    async def cut_off(long: LongTail) -> None:
        one.store.errors.append(StorageError("away"))
        await fold(long)

    one.users._fold_in_parts = cut_off  # type: ignore[method-assign]
    answers = await asyncio.gather(*(one.state("u") for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageError] * 5
    one.users._fold_in_parts = fold  # type: ignore[method-assign]
    assert_same((await one.state("u"))[1], one.offline(events))


async def test_what_a_worker_holds_is_neither_sent_nor_folded_again(worker: Start):
    one, events = worker(every=1), history(40)
    await append(one.store, "u", events[:39])
    await one.state("u")
    await one.commits.flush()
    await append(one.store, "u", events[39:])
    assert_same((await one.state("u"))[1], one.offline(events))
    await one.state("u")
    assert one.fold.calls == [[39], [1]]
    assert [(loaded[0].held, loaded[0].state is None) for loaded in one.store.loads[1:]] == [(True, True)] * 2
    other = worker()
    assert_same((await other.state("u"))[1], one.offline(events))  # goes on from what the first one stored
    assert other.fold.calls in ([], [[1]])


LONG_MEMORY = {"max_sequence": 20, "every": 32, "ttl_s": 0.2}  # of the worker alone: what it has stored lasts


async def remembered(one: Worker) -> list[StoredEvent]:
    """The events of a user of whom the sequence has forgotten the beginning, and the state that is stored has not."""
    events = history(45)
    for start in range(0, 40, 10):
        await append(one.store, "u", events[start : start + 10])
        await one.state("u")
        await one.commits.flush()
    await append(one.store, "u", events[40:])  # too few for another commit
    return events


@pytest.mark.parametrize("lost", [False, True])
async def test_who_is_read_from_the_cache_alone_is_remembered_by_others_for_as_long(worker: Start, raw: redis.Redis, lost: bool):
    one, key = worker(**LONG_MEMORY), keys.state_key("default", "m", "u")
    events = await remembered(one)
    await one.state("u")
    await asyncio.sleep(0.1)  # half of the time that it believes in
    raw.delete(key) if lost else raw.pexpire(key, 5_000)  # as if that were all of it, or more
    loads = len(one.store.loads)
    await one.state("u")
    await one.commits.flush()
    assert [loaded[0].held for loaded in one.store.loads[loads:]] == [True]
    assert raw.pttl(key) > 5_000
    header, state = await worker(**LONG_MEMORY).state("u")
    assert (header.base, header.applied) == (0, 45)
    assert_same(state, one.offline(events))


async def test_who_has_a_few_events_now_and_then_is_remembered_although_nobody_reads(worker: Start, raw: redis.Redis):
    one, key = worker(**LONG_MEMORY), keys.state_key("default", "m", "u")
    await remembered(one)
    await asyncio.sleep(0.1)
    raw.pexpire(key, 5_000)
    held = one.cache.get("default", "u")
    assert held is not None
    one.users.keep("default", "u", held.header, held.blob, held.stored, held.generation)  # as the background fold does
    await one.commits.flush()
    assert raw.pttl(key) > 5_000


async def test_a_state_is_renewed_now_and_then_and_not_with_every_read(worker: Start, raw: redis.Redis):
    one, key = worker(max_sequence=20, every=32), keys.state_key("default", "m", "u")
    await remembered(one)
    raw.pexpire(key, 5_000)
    for _ in range(3):
        await one.state("u")
    await one.commits.flush()
    assert raw.pttl(key) <= 5_000
    # Nor what was never stored: it is not worth that.
    few = worker(every=32, ttl_s=0.0)
    await append(few.store, "few", history(3))
    for _ in range(3):
        await few.state("few")
    await few.commits.flush()
    assert not raw.exists(keys.state_key("default", "m", "few"))


async def test_a_store_that_takes_no_states_is_not_asked_to_renew_them_with_every_read(worker: Start):
    one = worker(**LONG_MEMORY)
    await remembered(one)
    await one.state("u")
    one.store.full = True
    await asyncio.sleep(0.1)
    await one.state("u")
    assert one.commits._pending
    await one.commits.flush()
    await one.state("u")
    assert not one.commits._pending


async def test_what_a_worker_holds_is_not_used_if_another_server_answers_than_before(worker: Start):
    one, events = worker(), history(6)
    await append(one.store, "u", events)
    await one.state("u")
    ask = one.store.load

    async def fails_over(*arguments: Any) -> list[Loaded]:
        one.store.load = ask  # type: ignore[method-assign]
        one.store._transport.generation += 1  # type: ignore[misc]  # after the state was offered, before anything was read
        return await ask(*arguments)

    one.store.load = fails_over  # type: ignore[method-assign]
    assert_same((await one.state("u"))[1], one.offline(events))
    assert [loaded[0].held for loaded in one.store.loads] == [False, False]
    assert one.fold.calls == [[6], [6]]


async def test_many_users_at_once_share_round_trips_and_calls_of_the_model(worker: Start):
    one = worker()
    for n in range(50):
        await append(one.store, f"u{n}", history(n % 4, n))
    users = await asyncio.gather(*(one.users.current("default", f"u{n}") for n in range(50)))
    assert [user.meta.appended if user is not None else 0 for user in users] == [n % 4 for n in range(50)]
    assert len(one.store.loads) == 1
    assert one.fold.calls == [[n % 4 for n in range(50) if n % 4]]


@pytest.mark.parametrize("events", [5, LONG, 9_000])
async def test_a_merged_identity_is_answered_although_its_state_is_not_stored(worker: Start, events: int):
    # What a worker holds is held by the name of the target; asked by the other one, it must be found all the same.
    one, made = worker(), history(events)
    await append(one.store, "target", made)
    await one.store.merge("default", "target", "anonymous")
    header, state = await one.state("anonymous")
    assert header.applied == events
    assert_same(state, one.offline(made))
    assert sum(map(sum, one.fold.calls)) == events


@pytest.mark.parametrize("events", [LONG, 9_000])
async def test_a_long_tail_is_answered_where_its_state_can_be_kept_nowhere(worker: Start, events: int):
    one, made = worker(cache_bytes=0, every=1), history(events)
    one.store.full = True  # it answers, but takes no states
    await append(one.store, "u", made)
    states = await asyncio.gather(*(one.state("u") for _ in range(3)))
    assert_same(states[0][1], one.offline(made))
    assert sum(map(sum, one.fold.calls)) == events
