"""Requests share round trips, but no round trip becomes so long that it cannot end in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import redis

import app.ingest.pipeline
from app.errors import DamagedError, OverloadedError, StorageError
from app.ingest.append import Appender, UserEvents
from app.ingest.pipeline import Ingest
from app.runtime.batcher import Patience
from app.runtime.manifest import EventType
from app.state import keys
from app.state.redis import RedisStore
from app.state.store import Append, Appended

OpenStore = Callable[..., Awaitable[RedisStore]]

NOW = 1_700_000_000_000
TYPES = [EventType(name="purchase", polarity="positive", weight=1.0)]


def request(name: str, users: int, each: int = 1, ids: bool = True) -> list[dict[str, Any]]:
    """`each` events of each of so many users that no other request has."""
    return [
        {"user_id": f"{name}-{user}", "item_id": "a", "type": "purchase"} | ({"event_id": f"{name}-{user}-{n}"} if ids else {})
        for user in range(users)
        for n in range(each)
    ]


def nobody(tenant: str, users: Sequence[UserEvents], increments: Any) -> None:
    pass


def in_the_logs(raw: redis.Redis) -> int:
    return sum(raw.xlen(key) for key in raw.scan_iter("lw:*:log", count=1_000))


class Watched(RedisStore):
    """Notes how many events each round trip carries, and can be told to fail one."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_ms=5_000)
        self.trips: list[int] = []
        self.fails_at = 0

    async def append(self, tenant: str, batches: Sequence[Append]) -> list[Appended | Exception]:
        self.trips.append(sum(len(batch.events) for batch in batches))
        if len(self.trips) == self.fails_at:
            raise StorageError("away")
        return await super().append(tenant, batches)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Watched]:
    store = Watched(redis_url)
    await store.open()
    yield store
    await store.close()


async def test_requests_of_many_users_at_one_time_are_all_acknowledged(open_store: OpenStore, raw: redis.Redis):
    # In one round trip they would take 2 s: all would hear 503, and all would be stored.
    store = await open_store(timeout_ms=1_000)
    told: list[int] = []
    ingest = Ingest(store, TYPES, lambda tenant, users, increments: told.append(len(increments)))
    results = await asyncio.gather(*(ingest.accept("default", request(f"{n}", 1_000), NOW) for n in range(16)))
    assert {event.status for result in results for event in result.events} == {"stored"}
    assert in_the_logs(raw) == 16_000
    assert told == [1_000] * 16  # which count towards popularity, and are folded


async def test_a_round_trip_carries_a_thousand_events_and_each_is_acknowledged_as_it_ends(store: Watched):
    ingest = Ingest(store, TYPES, nobody)
    trips_before: dict[int, int] = {}

    async def tell(place: int, users: int, each: int) -> None:
        result = await ingest.accept("default", request(f"{place}", users, each), NOW)
        assert {event.status for event in result.events} == {"stored"}
        trips_before[place] = len(store.trips)

    sizes = [(500, 1), (1, 500), (1, 1), (1_000, 1), (1, 999), (1, 1), (1, 1)]
    await asyncio.gather(*(tell(place, *size) for place, size in enumerate(sizes)))
    assert store.trips == [1_000, 1, 1_000, 1_000, 1]
    # Those of the first round trip hear when it has ended; by then the next may have begun.
    assert [trips <= most for trips, most in zip(trips_before.values(), [2, 2, 3, 4, 5, 5, 5], strict=True)] == [True] * 7
    assert list(trips_before) == list(range(7))


async def test_small_requests_still_share_a_round_trip(store: Watched):
    ingest = Ingest(store, TYPES, nobody)
    await asyncio.gather(*(ingest.accept("default", request(f"{n}", 1), NOW) for n in range(64)))
    assert store.trips == [64]


async def test_a_request_of_more_events_than_a_round_trip_takes_goes_in_several_and_keeps_its_results(
    store: Watched, raw: redis.Redis
):
    ingest = Ingest(store, TYPES, nobody, max_events=10_000)
    events = [*request("a", 700), *request("b", 1, 900), *request("c", 700), *request("a", 700)[:10]]
    result = await ingest.accept("default", events, NOW)
    assert store.trips == [710, 1_000, 600]
    assert [event.status for event in result.events] == ["stored"] * 2_300 + ["duplicate"] * 10
    assert (result.totals["a-0"], result.totals["b-0"], result.totals["c-699"]) == (1, 900, 1)
    # Half of it may be stored where Redis goes away in between; sent again, none of it is stored twice.
    store.fails_at = len(store.trips) + 2
    with pytest.raises(StorageError):
        await ingest.accept("default", events := [*request("d", 600), *request("e", 600)], NOW)
    assert in_the_logs(raw) == 2_300 + 1_000
    again = await ingest.accept("default", events, NOW)
    assert [event.status for event in again.events] == ["duplicate"] * 1_000 + ["stored"] * 200


async def test_a_write_that_has_waited_too_long_is_refused_and_not_stored(store: Watched, raw: redis.Redis):
    ingest = Ingest(store, TYPES, nobody, patience=Patience(wait_s=0.2))
    raw.client_pause(600)
    first = asyncio.create_task(ingest.accept("default", request("first", 1), NOW))
    await asyncio.sleep(0.05)
    late = [asyncio.create_task(ingest.accept("default", request(f"late {n}", 1), NOW)) for n in range(3)]
    answers = await asyncio.gather(first, *late, return_exceptions=True)
    assert [isinstance(answer, OverloadedError) for answer in answers] == [False, True, True, True]
    assert in_the_logs(raw) == 1
    assert [raw.exists(keys.user_keys("default", f"late {n}-0").seq) for n in range(3)] == [0, 0, 0]


async def test_a_request_of_many_round_trips_lets_others_in_between(store: Watched):
    ingest = Ingest(store, TYPES, nobody, max_events=10_000, patience=Patience(wait_s=5))
    done: list[str] = []

    async def tell(name: str, users: int) -> None:
        result = await ingest.accept("default", request(name, users), NOW)
        assert {event.status for event in result.events} == {"stored"}
        done.append(name)

    await asyncio.gather(tell("giant", 4_000), *(tell(f"small {n}", 1) for n in range(10)))
    assert sorted(store.trips) == [10, 1_000, 1_000, 1_000, 1_000]
    assert done[-1] == "giant"


async def test_a_request_that_is_late_halfway_does_not_say_that_nothing_was_done(store: Watched, raw: redis.Redis):
    ingest = Ingest(store, TYPES, nobody, max_events=10_000, patience=Patience(wait_s=0.3))
    await ingest.accept("default", request("warm", 1), NOW)
    append = store.append

    async def slow(tenant: str, batches: Sequence[Append]) -> list[Appended | Exception]:
        if batches[0].user_id.startswith("other"):
            await asyncio.sleep(0.6)
        return await append(tenant, batches)

    store.append = slow  # type: ignore[method-assign]
    giant = asyncio.create_task(ingest.accept("default", request("giant", 2_000), NOW))
    await asyncio.sleep(0)
    others = [asyncio.create_task(ingest.accept("default", request(f"other {n}", 500), NOW)) for n in range(2)]
    with pytest.raises(StorageError, match="a part of this request is stored") as failed:
        await giant
    assert not isinstance(failed.value, OverloadedError)
    await asyncio.gather(*others)
    assert in_the_logs(raw) == 1 + 1_000 + 1_000


async def test_a_damaged_user_of_one_part_stops_none_of_the_others(store: Watched, raw: redis.Redis):
    ingest = Ingest(store, TYPES, nobody, max_events=10_000)
    raw.set(keys.user_keys("default", "a-5").seq, "what is this")
    with pytest.raises(DamagedError, match="a-5"):
        await ingest.accept("default", request("a", 2_500), NOW)
    assert in_the_logs(raw) == 2_499


async def test_events_that_wait_to_be_stored_are_bounded_whoever_sent_them(
    store: Watched, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app.ingest.pipeline, "_MOST_WAITING", 1_000)
    ingest = Ingest(store, TYPES, nobody, max_events=2_000)
    raw.client_pause(300)
    sizes = [500, 500, 1, 300, 300]
    answers = await asyncio.gather(
        *(ingest.accept("default", request(f"{n}", size), NOW) for n, size in enumerate(sizes)), return_exceptions=True
    )
    assert [isinstance(answer, OverloadedError) for answer in answers] == [False, False, True, True, True]
    assert in_the_logs(raw) == 1_000
    await ingest.accept("default", request("alone", 1_500), NOW)  # finds room, whatever its size
    await ingest.accept("default", request("next", 1_000), NOW)


async def test_a_request_without_a_good_event_waits_for_nobody(store: Watched):
    async def never() -> None:
        raise OverloadedError("no room")

    result = await Ingest(store, TYPES, nobody, room=never).accept("default", [{"user_id": "u"}, 3], NOW)
    assert [event.status for event in result.events] == ["rejected"] * 2
    assert store.trips == []


async def test_a_connection_that_is_dead_fails_nobody_but_those_who_were_asked_on_it(open_store: OpenStore, raw: redis.Redis):
    store = await open_store(timeout_ms=400)
    await asyncio.gather(*(store.ping() for _ in range(3)))
    ingest = Ingest(store, TYPES, nobody, patience=Patience(5, 0.4, lambda: store.answered_s))
    (*_, dead) = store._transport._free  # type: ignore[attr-defined]
    dead._transport.pause_reading()  # as where the network drops what comes, and says nothing
    first = asyncio.create_task(ingest.accept("default", request("first", 1), NOW))
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(ingest.accept("default", request(f"{n}", 1), NOW)) for n in range(100)]
    while not first.done():
        await store.ping()  # as the readers do
        await asyncio.sleep(0.02)
    with pytest.raises(StorageError, match="did not answer"):
        await first
    answers = await asyncio.gather(*others, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert in_the_logs(raw) >= 100


async def test_an_appender_keeps_tenants_apart(store: Watched, raw: redis.Redis):
    one, other = (Ingest(store, TYPES, nobody) for _ in range(2))
    other._append = one._append = Appender(store)  # as two models of one worker might
    await asyncio.gather(one.accept("a", request("u", 1), NOW), other.accept("b", request("u", 1), NOW))
    assert store.trips == [1, 1]
    assert [raw.llen(keys.user_keys(tenant, "u-0").seq) for tenant in "ab"] == [1, 1]
