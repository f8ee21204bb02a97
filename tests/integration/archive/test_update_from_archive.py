"""The loop closed: what a service has archived since its bundle was made is learned from, but not from who was erased."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import redis
from log_world import LogWorld, place
from tiny_run import TinyRun

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.runtime.bundle import read_bundle
from app.state.events import StoredEvent
from model.data.dataset import read_dataset
from model.settings import UpdateSettings
from model.update.origin import read_origin
from model.update.run import refresh, update

FIELDS = ("item_id", "value", "quantity", "price", "platform", "session_id", "basket_id", "text")


@pytest.fixture
def archived(archive: Archive, make_archiver: Callable[..., Archiver], raw: redis.Redis, tiny_run: TinyRun) -> Path:
    """The tiny world as a service has archived it; the user with the most events was erased in the end."""
    events = read_dataset(tiny_run.data).events
    world = LogWorld()
    pipeline = raw.pipeline(transaction=False)
    for row in events.iter_rows(named=True):
        stored = StoredEvent(row["type"], row["timestamp"], **{name: row[name] for name in FIELDS})
        for record in world.event(row["user_id"], stored):
            pipeline.xadd(place(record)[1], record)
    for record in world.erase(most_active(events)):
        pipeline.xadd(place(record)[1], record)
    pipeline.execute()
    make_archiver().once()
    return archive.folder


def most_active(events: pl.DataFrame) -> str:
    user: str = events.group_by("user_id").len().sort("len", "user_id").get_column("user_id")[-1]
    return user


def test_what_was_archived_is_learned_from_without_the_erased(
    archived: Path, trained_bundle: Path, tiny_run: TinyRun, tmp_path: Path
):
    updated = update(trained_bundle, archived, tmp_path / "bundles", UpdateSettings(margin=0.5))
    assert updated.left_out == 0
    bundle = read_bundle(updated.exported.folder)
    old = read_bundle(trained_bundle)
    assert bundle.manifest.event_types == old.manifest.event_types
    assert bundle.manifest.seen_items == old.manifest.seen_items
    # An archive has no titles.
    assert [(item.id, item.title, item.categories) for item in list(bundle.items)[: len(old.items)]] == [
        (item.id, item.title, item.categories) for item in old.items
    ]
    erased = most_active(read_dataset(tiny_run.data).events)
    found = refresh(read_origin(trained_bundle), archived, UpdateSettings(passes=1))
    seq = found.newer.seq
    assert erased not in seq.user_ids
    assert len(seq.user_ids) == read_dataset(tiny_run.data).manifest.counts.users - 1
    assert json.dumps(erased) not in json.dumps([seq.user_ids[user] for user in found.task.train_queries.user.tolist()])
