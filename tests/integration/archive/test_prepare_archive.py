from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import redis
from log_world import LogWorld, add

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.state.events import StoredEvent
from model.data.dataset import read_dataset
from model.data.errors import DataError, NoEventsError
from model.data.importers.registry import importer_for
from model.data.prepare import prepare

MakeArchiver = Callable[..., Archiver]
NOW_MS = 1_600_000_000_000


def event(n: int, kind: str = "view") -> StoredEvent:
    return StoredEvent(kind, NOW_MS + n, f"item {n}", basket_id=f"basket {n}")


@pytest.mark.parametrize("erase_now", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_prepare_reads_every_live_users_events_in_order_of_time(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, erase_now: bool, seed: int
):
    world = LogWorld(seed)
    for n in range(300):
        for script in world.step(users=8):
            add(raw, script)
        if n % 50 == 0:
            make_archiver().once(erase_now)
    make_archiver().once(erase_now)
    mapping = archive.folder.parent / "mapping.toml"
    mapping.write_text("[options]\nrobots_per_hour = 0\n")
    dataset = prepare(str(archive.folder), archive.folder.parent / "out", mapping=mapping)
    found: dict[str, list[tuple]] = {}
    for user, *row in dataset.events.select("user_id", "item_id", "type", "timestamp", "text").iter_rows():
        found.setdefault(user, []).append(tuple(row))
    done = {key: [e for e, _ in user.events] for key, user in world.live().items()}
    for key in done.keys() | world.rested.keys():  # who was idle and has left Redis is still learned from
        user, events = key[1], [*world.rested.get(key, []), *done.get(key, [])]
        kept = [(e.item_id, e.type, e.time_ms, e.text) for e in events if e.item_id is not None or e.text is not None]
        distinct = dict.fromkeys(kept)  # rows that say the same are taken for one
        assert sorted(distinct, key=str) == sorted(set(found.pop(user, [])), key=str)
    assert found == {}
    assert dataset.events.get_column("timestamp").is_sorted()
    attributes = {user: lived.attributes.get("country") for (_, user), lived in world.live().items()}
    for user, country in dataset.users.iter_rows():
        if ("default", user) not in world.rested:  # of those, the last ones from before count until they give others
            assert country == attributes[user]


def test_an_event_id_counts_once_the_first_time_and_tenants_are_apart(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    for tenant in ("one", "two"):
        for n in range(2):
            add(raw, world.event("a", event(n), "same id", tenant=tenant))
    add(raw, world.event("b", event(0), "same id", tenant="one"))
    make_archiver().once()
    dataset = importer_for(archive.folder)(archive.folder)
    assert sorted(dataset.events.select("user_id", "item_id").rows()) == [
        ("one/a", "item 0"),
        ("one/b", "item 0"),
        ("two/a", "item 0"),
    ]
    assert dataset.manifest.name == "archive"
    assert dataset.manifest.baskets


def test_event_types_and_options_come_from_a_mapping(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, tmp_path: Path
):
    world = LogWorld()
    for n, kind in enumerate(["purchase", "return"]):
        add(raw, world.event("a", event(n, kind)))
    make_archiver().once()
    (tmp_path / "m.toml").write_text('[[event_types]]\nname = "return"\npolarity = "negative"\n[options]\nname = "shop"\n')
    prepare(str(archive.folder), tmp_path / "out", mapping=tmp_path / "m.toml")
    manifest = read_dataset(tmp_path / "out").manifest
    assert manifest.name == "shop"
    assert {e.name: e.polarity for e in manifest.event_types} == {"return": "negative", "purchase": "positive"}


def test_an_archive_of_erased_users_alone_is_said_to_have_no_events(
    archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis
):
    world = LogWorld()
    add(raw, world.event("a", event(1)))
    add(raw, world.erase("a"))
    make_archiver().once()
    with pytest.raises(NoEventsError, match="no event of a user who is still there"):
        importer_for(archive.folder)(archive.folder)
    make_archiver().once(erase_now=True)
    with pytest.raises(NoEventsError, match="no event of a user who is still there"):
        importer_for(archive.folder)(archive.folder)


def test_a_damaged_archive_is_refused(archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis):
    add(raw, LogWorld().event("a", event(1)))
    make_archiver().once()
    read = importer_for(archive.folder)
    (file,) = archive.latest().files
    path = archive.folder / file.path
    pl.read_parquet(path).clear().write_parquet(path)
    with pytest.raises(DataError, match=f"{file.path}: damaged: is not the file that was committed"):
        read(archive.folder)
    path.unlink()
    with pytest.raises(DataError, match="damaged, or replaced while it was read"):
        read(archive.folder)
    manifest = next((archive.folder / "_manifests").iterdir())
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 2}))
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        read(archive.folder)
    manifest.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read(archive.folder)
