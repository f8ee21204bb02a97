"""Impressions go through the log into the archive like everything else: each once, and gone with its user."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from threading import Event

import msgspec
import polars as pl
import pytest
import redis
from archived import is_written_anywhere, rows

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.columns import SCHEMA, canonical, to_records, to_table
from app.archive.expiry import Expiry
from app.archive.histories import users
from app.archive.record import IMPRESSION, Record
from app.errors import ArchiveError
from app.state import keys
from app.state.events import StoredEvent
from app.state.impressions import Impression, ImpressionStore, Seen, decode_impression, encode_impression
from app.state.lists import new_list_id
from app.state.redis import RedisStore
from app.state.store import Append
from model.data.importers import archive as importer

MakeArchiver = Callable[..., Archiver]

MODEL = "c937343fc7a56a66"
NOW = time.time_ns() // 1_000_000


@pytest.fixture
def impressions(store: RedisStore) -> ImpressionStore:
    return ImpressionStore(store, "default", 0)


async def click(store: RedisStore, user: str, list_id: str | None, ms: int = NOW) -> None:
    event = StoredEvent("view", ms, "a", recommendation_id=list_id)
    await store.append("default", [Append(user, [event], [None])])


async def test_each_is_a_row_that_says_where_its_list_came_from_and_joins_with_its_events(
    store: RedisStore, impressions: ImpressionStore, archive: Archive, make_archiver: MakeArchiver
):
    cart, plain, popular = new_list_id(MODEL, False, "cart", 3), new_list_id(MODEL, False), new_list_id(MODEL, True)
    given = [
        Seen("u", Impression(cart, NOW, ("a", "\ufffeodd"), (2, 5)), [1, 2]),
        Seen("u", Impression(plain, NOW, ("b",)), [1]),
        Seen("", Impression(popular, NOW, ("b",)), [1]),
    ]
    assert await impressions.add([*given, *given]) == ["1"] * 3 + ["0"] * 3
    await click(store, "u", cart)
    await click(store, "u", None)
    assert make_archiver().once() == 5
    assert make_archiver().once() == 0
    found = rows(archive)
    shown = {row["recommendation_id"]: row for row in found if row["kind"] == IMPRESSION}
    assert len(shown) == 3
    row = shown[cart]
    assert (row["user_id"], row["time_ms"], row["list_positions"], len(row["list_items"])) == ("u", NOW, [2, 5], 2)
    assert (row["list_model"], row["list_scenario"], row["list_version"], row["list_source"]) == (MODEL, "cart", 3, "model")
    assert (shown[popular]["user_id"], shown[popular]["list_source"], shown[popular]["list_positions"]) == ("", "fallback", [1])
    table = pl.DataFrame({name: [row[name] for row in found] for name in ("kind", "list_model", "list_scenario")})
    rate = table.group_by("list_model", "list_scenario").agg(
        (pl.col("kind") == "e").sum().alias("events"), (pl.col("kind") == "v").sum().alias("shown")
    )
    assert sorted(rate.rows(), key=str) == sorted([(MODEL, "cart", 1, 1), (MODEL, None, 0, 2), (None, None, 1, 0)], key=str)


async def test_sequences_and_training_data_are_what_they_were(
    store: RedisStore, impressions: ImpressionStore, archive: Archive, make_archiver: MakeArchiver
):
    for number in range(5):
        await click(store, "u", None, NOW - number)
        await impressions.add([Seen(user, Impression(new_list_id(MODEL, False), NOW, ("b",)), [1]) for user in ("u", "w", "")])
    make_archiver().once()
    (user,) = users(archive, archive.latest())
    assert (user.user_id, user.n, len(user.events)) == ("u", 5, 5)
    dataset = importer.read(archive.folder)
    assert dataset.events.height == 5


async def test_an_erasure_takes_the_impressions_out_of_the_files(
    store: RedisStore, impressions: ImpressionStore, archive: Archive, make_archiver: MakeArchiver
):
    for user in ("alice", "cookie", "stranger", "other"):
        await impressions.add([Seen(user, Impression(new_list_id(MODEL, False), NOW, (f"of {user}",)), [1])])
    for user in ("alice", "cookie"):
        await click(store, user, None)
    make_archiver().once()
    await store.merge("default", "alice", "cookie")
    await store.erase("default", "alice", NOW + 10)
    await store.erase("default", "stranger", NOW + 10)
    make_archiver().once(erase_now=True)
    for user in ("alice", "cookie", "stranger"):
        assert not is_written_anywhere(archive, f"of {user}")
    assert is_written_anywhere(archive, "of other")


async def test_who_leaves_redis_leaves_nothing_of_what_was_shown(
    open_store: Callable[..., Awaitable[RedisStore]], archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    store = await open_store(log_max_length=0)
    impressions, user = ImpressionStore(store, "default", 0), keys.user_keys("default", "u")
    await click(store, "u", None)
    make_archiver().once()
    raw.hset(user.meta, "d", int(time.time() // 86_400) - 31)
    await impressions.add([Seen("u", Impression(new_list_id(MODEL, False), NOW, ("b",)), [1])])
    assert Expiry(raw, archive, 30).all(Event()) == 0  # the impression waits to be archived
    make_archiver().once()
    assert raw.exists(user.shown)
    assert Expiry(raw, archive, 30).all(Event()) == 1
    assert not raw.exists(user.shown, user.meta)


async def test_rows_say_of_which_arm_a_list_was_and_how_likely_its_items_were(
    store: RedisStore, impressions: ImpressionStore, archive: Archive, make_archiver: MakeArchiver
):
    of_arm = new_list_id(MODEL, False, "cart", 3, "rows/ü", 7, "new ones")
    held_out, plain = new_list_id(MODEL, True, None, 0, "rows/ü", 7, "holdout"), new_list_id(MODEL, False)
    given = [
        Impression(of_arm, NOW, ("a", "b"), (), (None, 0.125)),
        Impression(held_out, NOW, ("a", "b"), (2, 1)),
        Impression(plain, NOW, ("a",), (), (1.0,)),
    ]
    await impressions.add([Seen("u", one, [1]) for one in given])
    await click(store, "u", of_arm)
    await click(store, "u", plain)
    make_archiver().once()
    found = {(row["kind"], row["recommendation_id"]): row for row in rows(archive)}
    columns = ("list_experiment", "list_experiment_version", "list_arm", "list_propensities")
    assert {key: tuple(row[column] for column in columns) for key, row in found.items()} == {
        ("v", of_arm): ("rows/ü", 7, "new ones", [None, 0.125]),
        ("v", held_out): ("rows/ü", 7, "holdout", None),
        ("v", plain): (None, None, None, [1.0]),
        ("e", of_arm): ("rows/ü", 7, "new ones", None),
        ("e", plain): (None, None, None, None),
    }
    assert found["v", of_arm]["list_scenario"] == "cart"


NEW_COLUMNS = ["list_experiment", "list_experiment_version", "list_arm", "list_propensities"]


def some_records() -> list[Record]:
    impression = Impression(new_list_id(MODEL, False), NOW, ("a", "b"), (2, 1))
    event = StoredEvent("view", NOW, "a", recommendation_id=new_list_id(MODEL, False, "cart", 3), context={"x": 1})
    return [
        Record(IMPRESSION, "default", "", 3, 5, 7, impression=impression),
        Record("e", "default", "u", 3, 5, 8, epoch=b"e", n=1, event=event, event_id="1"),
    ]


def test_files_of_before_there_were_experiments_are_read_and_get_the_columns_when_they_are_merged():
    records = some_records()
    old = to_table(records).drop_columns(NEW_COLUMNS)
    assert list(to_records(old)) == records
    late = Record(IMPRESSION, "default", "", 3, 5, 9, impression=Impression(new_list_id(MODEL, False), NOW, ("a",), (), (0.5,)))
    merged = canonical([old, to_table([late])])
    assert list(to_records(merged)) == [*records, late]
    assert merged.column("list_propensities").to_pylist() == [None, None, [0.5]]
    assert merged.schema.names == SCHEMA.names


def test_a_file_whose_columns_are_in_another_order_is_read_by_their_names():
    records = some_records()
    table = to_table(records)
    assert list(to_records(table.select(sorted(table.schema.names)))) == records


def test_an_impression_of_before_there_were_propensities_is_decoded_and_those_of_now_begin_as_it_does():
    old = Impression(new_list_id(MODEL, False), NOW, ("a", "b"), (2, 1))
    raw = msgspec.msgpack.encode([old.recommendation_id, NOW, ["a", "b"], [2, 1]])
    assert decode_impression(raw) == old
    assert msgspec.msgpack.decode(encode_impression(old))[:4] == msgspec.msgpack.decode(raw)
    told = Impression(old.recommendation_id, NOW, ("a", "b"), (), (0.5, None))
    assert decode_impression(encode_impression(told)) == told
    assert msgspec.msgpack.decode(encode_impression(told)) == [told.recommendation_id, NOW, ["a", "b"], [], [0.5, None]]


@pytest.mark.parametrize("positions", [(), (3, 1)])
@pytest.mark.parametrize("propensities", [(), (0.25, None)])
def test_a_row_is_the_record_again(positions: tuple[int, ...], propensities: tuple[float | None, ...]):
    impression = Impression(new_list_id(MODEL, False), NOW, ("\ufffeodd", "b"), positions, propensities)
    record = Record(IMPRESSION, "default", "", 3, 5, 7, impression=impression)
    assert list(to_records(to_table([record]))) == [record]


async def test_a_log_that_was_archived_but_not_trimmed_is_found_whole_in_the_archive(
    store: RedisStore, impressions: ImpressionStore, archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    await impressions.add([Seen("u", Impression(new_list_id(MODEL, False), NOW, ("b",)), [1])])
    (log,) = raw.scan_iter("lw:*:log")
    copy = raw.dump(log)
    assert make_archiver().once() == 1
    raw.restore(log, 0, copy, replace=True)  # as if its archiver had been killed before it trimmed
    assert make_archiver().once() == 0
    assert raw.xlen(log) == 0
    assert len(rows(archive)) == 1
    # Another one at that place is not: Redis has lost the end of its log and gone on from there.
    ((entry_id, fields),) = _entry(raw, log, copy)
    raw.delete(log)
    raw.xadd(log, {**fields, "v": encode_impression(Impression(new_list_id(MODEL, False), NOW, ("b",)))}, id=entry_id)
    with pytest.raises(ArchiveError, match="lacks"):
        make_archiver().once()


def _entry(raw: redis.Redis, log: bytes, copy: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
    raw.restore(log, 0, copy, replace=True)
    return raw.xrange(log)
