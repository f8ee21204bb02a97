"""A history that is imported in parts is as if it had come in one piece, whatever comes between two of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from app.errors import StorageError
from app.state import history, keys
from app.state.events import StoredEvent, decode_event
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.store import Append

OpenStore = Callable[..., Awaitable[RedisStore]]
PART = 50
MANY = 4 * PART + 7


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PART", PART)


@pytest.fixture
def before_part(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has something done before the part with this number, from 0, is written."""

    def arrange(store: RedisStore, number: int, what: Callable[[], Awaitable[None]]) -> None:
        run, parts = store.run, iter(range(10**6))

        async def between(one: Any, calls: Any, **more: Any) -> list[Any]:
            if one is script("rewrite") and next(parts) == number:
                await what()
            return await run(one, calls, **more)

        monkeypatch.setattr(store, "run", between)

    return arrange


def event(time: int, item: str) -> StoredEvent:
    return StoredEvent(type="purchase", time_ms=time, item_id=item)


HISTORY = [event(1_000 + n // 7, f"h{n}") for n in range(MANY)]  # of the same time across the ends of parts
IDS = [one.item_id for one in HISTORY]


async def tell(store: RedisStore, user: str, *events: StoredEvent) -> str:
    (appended,) = await store.append("default", [Append(user, events, [one.item_id for one in events])])
    return appended.flags


async def known(store: RedisStore, user: str) -> tuple[list[StoredEvent], int, int | None, int | None]:
    (loaded,) = await store.load("default", "m", [user])
    assert loaded.meta is not None
    return list(loaded.tail), loaded.meta.appended, loaded.meta.first_time_ms, loaded.meta.last_time_ms


async def write(store: RedisStore, user: str = "alice", events: list[StoredEvent] = HISTORY) -> int | None:
    return await store.write_history("default", user, events, [one.item_id for one in events], "import")


@pytest.mark.parametrize("bound", [1_000, 120, 30])
async def test_it_is_there_as_in_one_piece(open_store: OpenStore, raw: redis.Redis, bound: int):
    store = await open_store(max_sequence=bound)
    live = [event(5_000, "now"), event(900, "late"), event(1_010, "between")]
    await tell(store, "alice", *live)
    assert await write(store) == MANY
    together = sorted([*live, *HISTORY], key=lambda one: one.time_ms)
    assert await known(store, "alice") == (together[-bound:], len(together), 900, 5_000)
    assert await tell(store, "alice", *live, *HISTORY) == "0" * len(together)
    assert await write(store) is None
    log = [fields for _, fields in raw.xrange(keys.user_keys("default", "alice").log)]
    assert [decode_event(fields[b"e"]) for fields in log if fields[b"k"] == b"h"] == HISTORY


async def test_no_call_has_more_than_a_part(store: RedisStore, monkeypatch: pytest.MonkeyPatch):
    run, counts = store.run, []

    async def counted(one: Any, calls: Any, **more: Any) -> list[Any]:
        if one is script("rewrite"):
            ((_, arguments),) = calls
            written, new = arguments[24 : 24 + arguments[14]], arguments[24 + arguments[14] :]
            counts.append((arguments[15], sum(map(len, written)), sum(map(len, new))))
        return await run(one, calls, **more)

    monkeypatch.setattr(store, "run", counted)
    await write(store)
    assert [new for new, _, _ in counts] == [50, 50, 50, 50, 7]
    # What is there already is not sent again.
    assert all(written < new for _, written, new in counts)


@pytest.mark.parametrize("cut", [0, 1, 4])
async def test_one_that_was_cut_off_goes_on(store: RedisStore, before_part: Callable[..., None], cut: int):
    async def away() -> None:
        raise StorageError("away")

    await tell(store, "alice", event(1_000, "h3"), event(1_029, "h206"))  # from the first part, and from the last
    before_part(store, cut, away)
    with pytest.raises(StorageError, match="away"):
        await write(store)
    _, appended, _, _ = await known(store, "alice")
    assert appended == 2 + max(0, cut * PART - 1)
    assert await write(store) is not None
    found, appended, _, _ = await known(store, "alice")
    assert (sorted(one.item_id or "" for one in found), appended) == (sorted(str(one) for one in IDS), MANY)
    assert await write(store) is None


async def test_one_that_an_earlier_version_did_in_one_piece_is_not_done_again(
    store: RedisStore, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "PART", 10**6)
    assert await write(store) == MANY
    monkeypatch.setattr(history, "PART", PART)
    raw.delete(keys.user_keys("default", "alice").ids)
    assert await write(store) is None
    assert (await known(store, "alice"))[1] == MANY


async def test_an_id_that_comes_twice_is_taken_once(open_store: OpenStore):
    for window, taken in ((20, MANY), (0, 2 * MANY)):
        store = await open_store(dedupe_window=window)
        again = [event(2_000 + n, f"h{n}") for n in range(MANY)]
        assert await write(store, f"alice {window}", [*HISTORY, *again]) == taken
        found, _, _, _ = await known(store, f"alice {window}")
        assert found[:MANY] == HISTORY


async def test_what_was_told_before_is_known_to_the_last_part(open_store: OpenStore):
    # As many ids as a window has come with each part before it.
    store = await open_store(dedupe_window=PART)
    told = [event(5_000 + n, f"h{MANY - 1 - n}") for n in range(7)]
    await tell(store, "alice", *told)
    assert await write(store) == MANY - 7
    assert (await known(store, "alice"))[0] == [*HISTORY[:-7], *told]


async def test_what_is_told_between_parts_is_there_once(store: RedisStore, before_part: Callable[..., None]):
    told = []

    async def tells() -> None:
        told.append(await tell(store, "alice", HISTORY[10], HISTORY[-1], event(5_000, "now")))

    before_part(store, 2, tells)
    assert await write(store) == MANY - 1
    assert told == ["011"]
    expected = sorted([HISTORY[-1], event(5_000, "now"), *HISTORY[:-1]], key=lambda one: one.time_ms)
    assert (await known(store, "alice"))[0] == expected


async def test_an_erasure_between_parts_takes_all(store: RedisStore, raw: redis.Redis, before_part: Callable[..., None]):
    async def erased() -> None:
        await store.erase("default", "alice", 2_000)

    before_part(store, 2, erased)
    assert await write(store) == 2 * PART
    assert raw.exists(keys.user_keys("default", "alice").seq) == 0
    assert await write(store) == 0


async def test_a_merge_between_parts_takes_them_along(store: RedisStore, before_part: Callable[..., None]):
    async def merged() -> None:
        await store.merge("default", "bob", "alice")

    await tell(store, "bob", event(1_005, "of bob"))
    before_part(store, 2, merged)
    assert await write(store) == MANY
    together = sorted([event(1_005, "of bob"), *HISTORY], key=lambda one: one.time_ms)
    assert await known(store, "bob") == (together, MANY + 1, 1_000, HISTORY[-1].time_ms)
    assert await write(store) is None


async def test_what_is_appended_while_a_part_is_worked_out_is_sorted_in(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch):
    store = await open_store(max_sequence=120)
    run, late = store.run, iter(range(10**6))
    told: list[StoredEvent] = []

    async def between(one: Any, calls: Any, **more: Any) -> list[Any]:
        if one is script("rewrite"):
            told.append(event(1_000 + 7 * next(late), f"late {len(told)}"))
            await tell(store, "alice", told[-1])
        return await run(one, calls, **more)

    monkeypatch.setattr(store, "run", between)
    assert await write(store) == MANY
    found, appended, _, _ = await known(store, "alice")
    together = sorted([*HISTORY, *told], key=lambda one: one.time_ms)[-120:]
    assert appended == MANY + len(told)
    assert [one.time_ms for one in found] == [one.time_ms for one in together]
    assert {one.item_id for one in found} == {one.item_id for one in together}
