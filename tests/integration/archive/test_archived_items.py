"""The catalogue beside the archive: written by archivers, read by the trainer, put back by a restore."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from log_world import LogWorld, add

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.items import FILE, ItemsFile, read_items
from app.archive.restore import restore
from app.errors import ArchiveError, StorageError
from app.state import keys
from app.state.events import StoredEvent
from app.state.items import Change, Item, ItemStore
from app.state.redis import RedisStore
from model.data.errors import DataError
from model.data.prepare import prepare

MakeArchiver = Callable[..., Archiver]

LAMP = Item(
    title="Lamp",
    categories=("light",),
    attributes={"price": 2.5, "tags": ("a", "b")},
    features={"feature_w": 3.0},
    vectors={"image": struct.pack("<2f", 0.5, -1.0)},
)
CUP = Item(title="Cup", available_from=5)


async def said(redis_url: str) -> dict[str, object]:
    store = RedisStore(redis_url)
    try:
        items = ItemStore(store, "default")
        return {name: await items.get(name) for name in ("lamp", "cup", "gone", "only gone")}
    finally:
        await store.close()


@pytest.fixture
async def shop(redis_url: str, raw: redis.Redis) -> None:
    """Four items, two of them deleted, and events with two."""
    world = LogWorld()
    for n, item_id in enumerate(["lamp", "cup", "cup", "plain"]):
        add(raw, world.event("a", StoredEvent("view", 1_600_000_000_000 + n, item_id)))
    store = RedisStore(redis_url)
    items = ItemStore(store, "default")
    await items.change(
        [Change("lamp", Item(title="Old name")), Change("cup", CUP), Change("gone", Item(title="Gone"))], {}, 1_000
    )
    await items.change(
        [Change("lamp", LAMP), Change("gone", None), Change("only gone", None)], {"price": "number", "tags": "list"}, 2_000
    )
    await store.close()


@pytest.fixture
def archived(shop: None, archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis) -> Archive:
    make_archiver(items=ItemsFile(raw, archive.folder, "default")).once()
    return archive


async def test_a_restore_says_again_what_was_said(archived: Archive, raw: redis.Redis, redis_url: str):
    before = await said(redis_url)
    assert (before["lamp"].item, before["gone"].was) == (LAMP, Item(title="Gone"))
    raw.flushall()
    done = restore(archived, raw, max_sequence=100, dedupe_window=100, tombstone_ttl_s=100)
    assert done.items == 4
    after = await said(redis_url)
    for name in before:
        assert (after[name].item, after[name].was or Item()) == (before[name].item, before[name].was or Item())
        assert after[name].since_ms == before[name].since_ms


def test_the_trainer_reads_titles_categories_features_and_vectors(archived: Archive, tmp_path: Path):
    dataset = prepare(str(archived.folder), tmp_path / "out")
    rows = {row["item_id"]: row for row in dataset.items.to_dicts()}
    assert rows.keys() == {"lamp", "cup", "plain"}
    assert rows["lamp"] == {
        "item_id": "lamp",
        "title": "Lamp",
        "categories": ["light"],
        "feature_w": 3.0,
        "vector_image": [0.5, -1.0],
    }
    assert (rows["cup"]["title"], rows["cup"]["feature_w"], rows["plain"]["title"]) == ("Cup", None, None)
    assert (dataset.manifest.item_vectors, rows["cup"]["vector_image"]) == ({"image": 2}, None)


async def test_the_file_is_written_when_something_was_said_and_only_then(archived: Archive, raw: redis.Redis, redis_url: str):
    file = ItemsFile(raw, archived.folder, "default")
    assert file.refresh()
    assert not file.refresh()
    store = RedisStore(redis_url)
    await ItemStore(store, "default").change([Change("new", Item(title="New"))], {}, 3_000)
    await store.close()
    assert file.refresh()
    assert {record.id: record.item.title for record in read_items(archived.folder)}["new"] == "New"
    raw.flushall()
    assert not ItemsFile(raw, archived.folder, "default").refresh()  # an emptied store does not empty the file
    assert len(read_items(archived.folder)) == 5


async def test_a_damaged_item_stays_as_it_was_written_last_and_holds_up_no_archiver(
    archived: Archive, raw: redis.Redis, redis_url: str, make_archiver: MakeArchiver
):
    before = {record.id: record for record in read_items(archived.folder)}
    raw.hset("lw:default:items", mapping={"lamp": "4 1 {", "never written": "nonsense"})
    store = RedisStore(redis_url)
    await ItemStore(store, "default").change([Change("new", Item(title="New"))], {}, 3_000)
    await store.close()
    make_archiver(items=ItemsFile(raw, archived.folder, "default")).once()
    after = {record.id: record for record in read_items(archived.folder)}
    assert after.keys() == before.keys() | {"new"}
    assert after["lamp"] == before["lamp"]


def test_a_damaged_file_is_named_and_nothing_is_restored(archived: Archive, raw: redis.Redis, tmp_path: Path):
    (archived.folder / FILE).write_text(json.dumps({"id": "x"}) + "\n")
    raw.flushall()
    with pytest.raises(ArchiveError, match=FILE):
        restore(archived, raw, max_sequence=100, dedupe_window=100, tombstone_ttl_s=100)
    assert raw.dbsize() == 0
    with pytest.raises(DataError, match=FILE):
        prepare(str(archived.folder), tmp_path / "out")


@pytest.mark.parametrize("trouble", ["no catalogue", "no file"])
def test_a_catalogue_that_cannot_be_written_down_keeps_no_erasure_waiting(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, trouble: str
):
    world = LogWorld()
    add(raw, [*world.event("a", StoredEvent("view", 1, "cup")), *world.event("b", StoredEvent("view", 1, "cup"))])
    add(raw, world.erase("a"))
    if trouble == "no catalogue":
        raw.set(keys.items_key("default"), "a hand that slipped")
    else:
        raw.hset(keys.items_key("default"), mapping={"": "1 epoch", "cup": "damaged"})
        archive.folder.mkdir()
        (archive.folder / FILE).write_text("{")
    with pytest.raises(StorageError if trouble == "no catalogue" else ArchiveError):
        make_archiver(items=ItemsFile(raw, archive.folder, "default")).once(erase_now=True)
    assert archive.latest().rows == 1
    assert archive.latest().removals == ()


async def test_the_catalogue_of_another_redis_is_not_written_over_the_archives(
    archived: Archive, raw: redis.Redis, redis_url: str, make_archiver: MakeArchiver
):
    before = read_items(archived.folder)
    raw.flushall()  # until it is restored, it is not the one that the archive was made from
    store = RedisStore(redis_url)
    await ItemStore(store, "default").change([Change("only one", Item(title="Said since"))], {}, 3_000)
    await store.close()
    make_archiver(items=ItemsFile(raw, archived.folder, "default")).once()
    assert read_items(archived.folder) == before
    raw.flushall()
    assert restore(archived, raw, max_sequence=100, dedupe_window=100, tombstone_ttl_s=100).items == 4
    store = RedisStore(redis_url)
    await ItemStore(store, "default").change([Change("only one", Item(title="Said since"))], {}, 3_000)
    await store.close()
    add(raw, LogWorld().event("b", StoredEvent("view", 1_600_000_000_000, "cup")))  # with which it takes the archive over
    make_archiver(items=ItemsFile(raw, archived.folder, "default")).once()
    assert len(read_items(archived.folder)) == 5
