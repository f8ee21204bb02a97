from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import redis
import structlog

from app.errors import OverloadedError, StorageError, TooLargeError
from app.ingest.append import Increment, UserEvents
from app.ingest.count import PopularityCounter
from app.ingest.pipeline import Ingest
from app.runtime.manifest import EventType
from app.state import keys
from app.state.redis import RedisStore

NOW = 1_700_000_000_000
HALF_LIVES = [86_400.0]
TYPES = [
    EventType(name="purchase", polarity="positive", weight=2.0),
    EventType(name="view", polarity="neutral"),
    EventType(name="cancel", polarity="negative"),
]


class Heard:
    """What the readers were told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], list[tuple[str, float, int]]]] = []

    def __call__(self, tenant: str, users: Sequence[UserEvents], increments: Sequence[Increment]) -> None:
        self.calls.append((tenant, [user.appended.user_id for user in users], list(increments)))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def ingest(store: RedisStore, heard: Heard) -> Ingest:
    return Ingest(store, TYPES, heard, max_events=10)


def event(user: str = "alice", item: str | None = "a", kind: str = "purchase", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "type": kind, **more}


async def items(store: RedisStore, user: str) -> list[str | None]:
    return [stored.item_id for stored in await store.recent("default", user, 100)]


async def test_good_events_of_a_batch_are_stored_and_bad_ones_reported(ingest: Ingest, store: RedisStore):
    result = await ingest.accept("default", [event(item="a"), event(kind="buy"), "x", event(item="b")], NOW)
    assert [r.status for r in result.events] == ["stored", "rejected", "rejected", "stored"]
    assert [[(e.index, e.field) for e in r.errors] for r in result.events] == [[], [(1, "type")], [(2, "")], []]
    assert result.totals == {"alice": 2}
    assert await items(store, "alice") == ["a", "b"]


async def test_each_users_events_keep_the_order_of_the_request(ingest: Ingest, store: RedisStore):
    batch = [event("alice", "1"), event("bob", "2"), event("alice", "3"), event("bob", "4"), event("alice", "5")]
    result = await ingest.accept("default", batch, NOW)
    assert result.totals == {"alice": 3, "bob": 2}
    assert await items(store, "alice") == ["1", "3", "5"]
    assert await items(store, "bob") == ["2", "4"]


async def test_a_repeated_request_is_all_duplicates_and_moves_nothing(ingest: Ingest, store: RedisStore, heard: Heard):
    batch = [event("alice", "1", event_id="x"), event("bob", "2", event_id="y")]
    await ingest.accept("default", batch, NOW)
    again = await ingest.accept("default", batch, NOW + 5)
    assert [r.status for r in again.events] == ["duplicate", "duplicate"]
    assert again.totals == {"alice": 1, "bob": 1}
    assert len(heard.calls) == 1


async def test_only_fresh_positive_events_with_an_item_count_towards_popularity(ingest: Ingest, store: RedisStore, heard: Heard):
    batch = [
        event("alice", "a", event_id="x"),
        event("alice", "a", event_id="x"),
        event("bob", "b", "view"),
        event("bob", "c", "cancel"),
        event("bob", None, text="words"),
        event("carol", "d", timestamp=NOW - 1_000),
    ]
    await ingest.accept("default", batch, NOW)
    expected = [("a", 2.0, NOW), ("d", 2.0, NOW - 1_000)]
    assert heard.calls == [("default", ["alice", "bob", "carol"], expected)]


async def test_a_huge_batch_changes_nothing(ingest: Ingest, store: RedisStore):
    assert len((await ingest.accept("default", [event()] * 10, NOW)).events) == 10
    with pytest.raises(TooLargeError, match="11 events"):
        await ingest.accept("default", [event()] * 11, NOW)
    assert len(await items(store, "alice")) == 10


async def test_nothing_to_do_is_done(ingest: Ingest, heard: Heard):
    assert (await ingest.accept("default", [], NOW)).events == []
    result = await ingest.accept("default", [{}], NOW)
    assert (result.events[0].status, result.totals) == ("rejected", {})
    assert heard.calls == []


async def test_without_redis_nothing_is_acknowledged_and_nobody_told(tmp_path, heard: Heard):
    store = RedisStore(f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(StorageError):
        await Ingest(store, TYPES, heard).accept("default", [event()], NOW)
    assert heard.calls == []
    await store.close()


async def test_popularity_is_counted_behind_the_requests_each_event_once(store: RedisStore):
    counter = PopularityCounter(store, HALF_LIVES, 0.001)
    counter.add("default", [("a", 2.0, NOW)])
    counter.add("default", [("d", 2.0, NOW - 1_000), ("a", 1.0, NOW)])
    await counter.close()
    counter.add("default", [])
    await counter.close()
    assert await store.popularity("default", HALF_LIVES) == {"a": (NOW, (3.0,)), "d": (NOW - 1_000, (2.0,))}
    assert await store.popularity_events("default", HALF_LIVES) == 3


async def test_items_that_the_catalogue_does_not_know_leave_nothing_in_the_store(store: RedisStore):
    counter = PopularityCounter(store, HALF_LIVES, 0.001, {"a"}.__contains__)
    counter.add("default", [("a", 2.0, NOW), *((f"unknown {n}", 2.0, NOW) for n in range(100))])
    counter.add("default", [("unknown", 2.0, NOW)])
    await counter.close()
    assert await store.popularity("default", HALF_LIVES) == {"a": (NOW, (2.0,))}
    assert await store.popularity_events("default", HALF_LIVES) == 1


async def test_a_worker_knows_when_others_have_counted(store: RedisStore):
    ours, theirs = (PopularityCounter(store, HALF_LIVES, 0.001) for _ in range(2))
    assert await ours.others_counted("default")  # whatever was there before
    assert not await ours.others_counted("default")
    ours.add("default", [("a", 2.0, NOW)])
    await ours.close()
    assert not await ours.others_counted("default")
    theirs.add("default", [("b", 2.0, NOW)])
    await theirs.close()
    assert await ours.others_counted("default")
    theirs.add("default", [("b", 2.0, NOW)])
    await theirs.close()
    ours.add("default", [("a", 2.0, NOW)])  # hears of the others by its own count
    await ours.close()
    assert await ours.others_counted("default")
    assert not await ours.others_counted("default")


class CountsFail(RedisStore):
    async def count_popularity(self, *_: Any) -> None:
        raise StorageError("gone in between")


async def test_popularity_that_cannot_be_counted_is_given_up_and_logged(redis_url: str):
    store = CountsFail(redis_url)
    counter = PopularityCounter(store, HALF_LIVES, 0.0)
    with structlog.testing.capture_logs() as logs:
        counter.add("default", [("a", 2.0, NOW)])
        await counter.close()
    assert [log["event"] for log in logs] == ["popularity not counted"]
    await store.close()


async def test_an_idempotency_key_makes_the_same_request_a_retry_and_nothing_else(ingest: Ingest, store: RedisStore):
    batch = [event(item="a"), event(item="a"), event(item="b", event_id="mine"), event(kind="buy")]
    first = await ingest.accept("default", batch, NOW, "key 1")
    again = await ingest.accept("default", batch, NOW + 5_000, "key 1")
    assert [r.status for r in first.events] == ["stored", "stored", "stored", "rejected"]  # the two equal ones are two
    assert [r.status for r in again.events] == ["duplicate", "duplicate", "duplicate", "rejected"]
    other_key = await ingest.accept("default", batch[:1], NOW, "key 2")
    other_content = await ingest.accept("default", [event(item="c")], NOW, "key 1")
    assert [r.status for r in (*other_key.events, *other_content.events)] == ["stored", "stored"]
    assert await items(store, "alice") == ["a", "a", "b", "a", "c"]


async def test_an_event_that_is_nested_too_deeply_for_a_key_is_rejected(ingest: Ingest, store: RedisStore):
    nested: Any = 1
    for _ in range(5_000):  # more than the parser takes: what can be parsed may still be too deep to be written again
        nested = {"a": nested}
    result = await ingest.accept("default", [event() | {"context": nested}, nested, event()], NOW, "key")
    assert [r.status for r in result.events] == ["rejected", "rejected", "stored"]


async def test_no_room_means_that_nothing_is_stored(store: RedisStore, heard: Heard):
    async def full() -> None:
        raise OverloadedError("full")

    with pytest.raises(OverloadedError):
        await Ingest(store, TYPES, heard, room=full).accept("default", [event()], NOW)
    assert await items(store, "alice") == []


async def test_events_of_before_an_erasure_are_rejected_by_name(ingest: Ingest, store: RedisStore, raw: redis.Redis):
    raw.set(keys.user_keys("default", "alice").gone, NOW)
    result = await ingest.accept("default", [event(timestamp=NOW), event(timestamp=NOW + 1), event("bob")], NOW + 10)
    assert [r.status for r in result.events] == ["rejected", "stored", "stored"]
    assert [(e.index, e.field) for e in result.events[0].errors] == [(0, "timestamp")]
    assert len(await items(store, "alice")) == 1


async def test_requests_at_the_same_time_keep_their_results_apart(ingest: Ingest, store: RedisStore):
    requests = [
        [event(f"user {n % 7}", f"{n}", event_id=f"{n // 2}") for n in range(start, start + 6)] for start in range(0, 60, 6)
    ]
    results = await asyncio.gather(*(ingest.accept("default", request, NOW) for request in requests))
    for request, result in zip(requests, results, strict=True):
        assert len(result.events) == 6
        assert result.totals.keys() == {raw["user_id"] for raw in request}
    assert sum(r.status == "stored" for result in results for r in result.events) == 60
    assert sum([len(await items(store, f"user {n}")) for n in range(7)]) == 60
