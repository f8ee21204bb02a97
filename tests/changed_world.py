"""The tiny world after its model was trained: from then on some items are sold in a new edition, with an id of its own."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.dataset import read_dataset

EDITION = "new-"
REPLACED = 4  # of so many items, by id, every one but the first has a new edition


def change(folder: Path, since_ms: int) -> Dataset:
    """The prepared world with the new editions, which have the titles of the old ones."""
    dataset = read_dataset(folder)
    ids = dataset.items.get_column("item_id").sort().to_list()
    replaced = [item for row, item in enumerate(ids) if row % REPLACED]
    late = (pl.col("timestamp") >= since_ms) & pl.col("item_id").is_in(replaced)
    events = dataset.events.with_columns(pl.when(late).then(EDITION + pl.col("item_id")).otherwise("item_id").alias("item_id"))
    sold = events.get_column("item_id").unique().drop_nulls().to_list()
    editions = dataset.items.with_columns((EDITION + pl.col("item_id")).alias("item_id"))
    return with_events(dataset, events, pl.concat([dataset.items, editions]).filter(pl.col("item_id").is_in(sold)))


def before(dataset: Dataset, until_ms: int) -> Dataset:
    """What was known at a moment: the events before it, their items and their users."""
    events = dataset.events.filter(pl.col("timestamp") < until_ms)
    items = dataset.items.join(events.select(pl.col("item_id").unique()), on="item_id", how="semi")
    return with_events(
        dataset, events, items, dataset.users.join(events.select(pl.col("user_id").unique()), on="user_id", how="semi")
    )


def with_events(dataset: Dataset, events: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame | None = None) -> Dataset:
    """The same data set with other events, and other users if there are any."""
    manifest = dataset.manifest
    return build_dataset(
        events,
        dataset.cleaning,
        name=manifest.name,
        source=manifest.source,
        licence=manifest.licence,
        event_types=manifest.event_types,
        items=items,
        users=dataset.users if users is None else users,
        baskets=manifest.baskets,
        timed=manifest.timed,
        repeats=manifest.repeats,
    )
