"""What happens to a user after a rewrite has read them and before it writes: nothing of it is lost, and the rewrite ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from line import Line

from app.errors import StorageError
from app.state import keys
from app.state.events import StoredEvent
from app.state.redis import RedisStore
from app.state.ring import ring_ids
from app.state.scripts import script
from app.state.store import Append

OpenStore = Callable[..., Awaitable[RedisStore]]
Before = Callable[[RedisStore, Callable[[], Awaitable[None]]], None]
TIMES = [0, 5, 200, 40_000, 2**31 + 5, 1_300_000_000_000]  # packed with 1 to 9 bytes


@pytest.fixture
def before_each_write(monkeypatch: pytest.MonkeyPatch) -> Before:
    """Has something done before each try of a rewrite to write."""

    def arrange(store: RedisStore, what: Callable[[], Awaitable[None]]) -> None:
        run = store.run

        async def late(one: Any, calls: Any, **more: Any) -> list[Any]:
            if one is script("rewrite"):
                await what()
            return await run(one, calls, **more)

        monkeypatch.setattr(store, "run", late)

    return arrange


def event(time: int, item: str, type: str = "purchase") -> StoredEvent:
    return StoredEvent(type=type, time_ms=time, item_id=item)


async def append(store: RedisStore, user: str, *events: StoredEvent) -> str:
    (appended,) = await store.append("default", [Append(user, events, [one.item_id for one in events])])
    return appended.flags


async def items(store: RedisStore, user: str) -> list[str | None]:
    (loaded,) = await store.load("default", "m", [user])
    return [one.item_id for one in loaded.tail]


async def test_a_writer_who_never_pauses_does_not_keep_a_merge_from_ending(store: RedisStore, before_each_write: Before):
    await append(store, "alice", event(10, "a"))
    await append(store, "cookie", event(5, "c"))
    told = 0

    async def writes() -> None:
        nonlocal told
        told += 1
        await append(store, "alice", event(100 + told, f"late {told}"))

    before_each_write(store, writes)
    await store.merge("default", "alice", "cookie")
    assert told == 1
    assert await items(store, "cookie") == ["c", "a", "late 1"]


@pytest.mark.parametrize("bound", [1_000, 7])
async def test_late_events_are_sorted_in_as_if_they_had_been_there(open_store: OpenStore, before_each_write: Before, bound: int):
    store = await open_store(max_sequence=bound)
    long = ["purchase", "x" * 40, "y" * 300]
    there = [event(time, f"there {time}") for time in (0, 200, 50, 10**6)]
    late = [event(time, f"late {time}", long[n % 3]) for n, time in enumerate(TIMES)]
    new = [
        event(time, f"new {time}", long[n % 3]) for n, time in enumerate([*reversed(TIMES), -1, -100, -200, -40_000, -(2**33)])
    ]
    await append(store, "alice", *there)

    async def writes() -> None:
        await append(store, "alice", *late)

    before_each_write(store, writes)
    assert await store.write_history("default", "alice", new, [one.item_id for one in new], "import 1") == len(new)
    expected = sorted([*there, *late, *new], key=lambda one: one.time_ms)  # stable
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert list(loaded.tail) == expected[-bound:]
    assert (loaded.meta.appended, loaded.meta.stored) == (len(expected), min(bound, len(expected)))
    assert (loaded.meta.first_time_ms, loaded.meta.last_time_ms) == (-(2**33), max(TIMES))
    assert "1" not in await append(store, "alice", *there, *late, *new)


async def test_the_ring_forgets_the_oldest_ids_where_late_ones_come(
    open_store: OpenStore, raw: redis.Redis, before_each_write: Before
):
    store = await open_store(dedupe_window=4)
    await append(store, "alice", *(event(n, f"there {n}") for n in range(6)))  # the ring has turned

    async def writes() -> None:
        await append(store, "alice", event(20, "late 1"), event(21, "late 2"))

    before_each_write(store, writes)
    await store.write_history("default", "alice", [event(10, "new")], ["new"], "import 1")
    assert len(ring_ids(raw.get(keys.user_keys("default", "alice").ids) or b"")) == 4
    retried = [event(n, item) for n, item in enumerate(["late 2", "late 1", "new", "there 5", "there 4"])]
    assert await append(store, "alice", *retried) == "00001"


async def test_a_merge_leaves_the_last_ids_of_both_known(open_store: OpenStore):
    store = await open_store(dedupe_window=10)
    for user in ("alice", "cookie"):
        await append(store, user, *(event(n, f"{user} {n}") for n in range(10)))
    await store.merge("default", "alice", "cookie")
    retried = [event(n, f"{user} {n}") for user in ("alice", "cookie") for n in range(5, 10)]
    assert await append(store, "alice", *retried) == "0" * 10


async def test_an_erasure_that_comes_in_between_is_seen_where_there_was_no_user(store: RedisStore, before_each_write: Before):
    moments = iter(range(1_000, 2_000))

    async def erased() -> None:
        await store.erase("default", "alice", next(moments))

    await append(store, "cookie", event(5, "c"))
    before_each_write(store, erased)
    assert await store.write_history("default", "alice", [event(10, "old")], [None], "import 1") == 0
    with pytest.raises(StorageError, match="was erased while it was merged"):
        await store.merge("default", "alice", "cookie")
    assert await items(store, "alice") == []


async def test_what_arrives_while_a_user_is_being_read_is_there_once(store: RedisStore, redis_url: str, tmp_path: Path):
    # Commands that are sent together are not done together where the network brings them in two pieces.
    await append(store, "alice", event(10, "a"))
    line = Line(redis_url.removeprefix("unix://").partition("?")[0])
    async with await asyncio.start_unix_server(line.connect, tmp_path / "line"):
        behind = RedisStore(f"unix://{tmp_path}/line")
        await behind.open()

        async def arrives() -> None:
            await asyncio.sleep(0.02)
            await append(store, "alice", event(20, "b"))

        line.halts_before = b":seq:", arrives
        assert await behind.write_history("default", "alice", [event(5, "old")], ["old"], "import") == 1
        assert line.halts_before is None
        assert await items(store, "alice") == ["old", "a", "b"]
        await behind.close()
        await asyncio.sleep(0.05)  # the line ends after its ends


async def test_an_import_leaves_out_what_the_user_has_by_its_id(open_store: OpenStore):
    for window, kept in ((1_000, ["old", "a", "b", "b"]), (0, ["old", "old", "a", "a", "b", "b"])):
        store = await open_store(dedupe_window=window)
        user = f"alice {window}"
        await append(store, user, event(10, "a"))
        history = [event(5, "old"), event(6, "old"), event(11, "a"), event(20, "b"), event(20, "b")]
        taken = await store.write_history("default", user, history, ["old", "old", "a", None, None], "import")
        assert taken == len(kept) - 1
        assert await items(store, user) == kept


async def test_what_is_told_while_it_is_imported_is_there_once(store: RedisStore, before_each_write: Before):
    await append(store, "alice", event(10, "a"))
    told: list[str] = []

    async def tells() -> None:
        told.append(await append(store, "alice", event(20, "b")))

    before_each_write(store, tells)
    history = [event(5, "old"), event(20, "b")]
    assert await store.write_history("default", "alice", history, ["old", "b"], "import") == 1
    assert told == ["1", "0"]
    assert await items(store, "alice") == ["old", "a", "b"]


async def test_attributes_that_are_replaced_while_users_are_joined_do_not_come_back(store: RedisStore, before_each_write: Before):
    await append(store, "alice", event(10, "a"))
    await store.set_attributes("default", "alice", {"country": "DE", "plan": "old"})
    await append(store, "cookie", event(5, "c"))
    await store.set_attributes("default", "cookie", {"country": "FR", "device": "phone"})
    replaced = []

    async def replace() -> None:
        if not replaced:
            replaced.append(await store.set_attributes("default", "alice", {"country": "IT"}))

    before_each_write(store, replace)
    await store.merge("default", "alice", "cookie")
    (loaded,) = await store.load("default", "m", ["alice"])
    assert loaded.meta is not None
    assert loaded.meta.attributes == {"country": "IT", "device": "phone"}
