"""The tiny world after its model was trained: from then on some items are sold in a new edition, with an id of its own."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from model.data.build import Dataset, with_events
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
