"""A shop in which the picture of an item alone tells who likes it: a model trained on it in seconds, and items that it never saw.

Every item has the same title and no category; its picture is one of STYLES directions with noise; each user likes one style.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import Cleaning
from model.data.dataset import read_dataset, write_dataset
from model.data.schema import EventType
from model.publish import publish
from model.settings import DataSettings, Settings, TrainSettings
from model.task import Task, make_task
from model.train import Trainer

STYLES, WIDTH, USERS, ITEMS, NEW, DAYS = 3, 12, 72, 48, 18, 40
START_MS, DAY_MS = 1_300_000_000_000, 86_400_000
SETTINGS = Settings(
    DataSettings(protocol="time"),
    TrainSettings(
        epochs=16,
        least_steps=0,
        patience=16,
        lanes=16,
        chunk=32,
        warmup_steps=5,
        learning_rate=1e-2,
        unseen_items=0.6,
        content_weight=2.0,
        threads=1,
    ),
    {"width": 16, "ring": 8, "ring_width": 8, "accumulator_width": 8, "repeats": 0, "dropout": 0.0},
)


def pictures(count: int, seed: int) -> np.ndarray:
    """(count, WIDTH) float32 of unit length; picture i is of style i % STYLES."""
    styles = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, STYLES)))[0].T[np.arange(count) % STYLES]
    found = styles + np.random.default_rng(seed).normal(size=(count, WIDTH)) * 0.05
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def shop() -> Dataset:
    """USERS users, "u<n>" of style n % STYLES, who buy an item "i<n>" of theirs a day, and now and then any other."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(USERS):
        for day in range(DAYS):
            item = rng.integers(ITEMS // STYLES) * STYLES + user % STYLES if rng.random() < 0.9 else rng.integers(ITEMS)
            rows.append((f"u{user:02d}", f"i{item:02d}", "purchase", START_MS + day * DAY_MS + int(rng.integers(DAY_MS))))
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "type", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{item:02d}" for item in range(ITEMS)], "title": "Thing"}).with_columns(
        pl.Series("vector_image", pictures(ITEMS, 2)).cast(pl.List(pl.Float32))
    )
    return build_dataset(
        events,
        Cleaning(events).report(),
        name="pictured shop",
        source="drawn",
        licence="none",
        event_types=[EventType(name="purchase")],
        items=items,
        repeats=False,
    )


def write_shop(folder: Path) -> None:
    """Write `data`, a finished `run`, and `bundles` with the bundle of it."""
    write_dataset(shop(), folder / "data")
    Trainer(task_of(folder), SETTINGS, folder / "run").run()
    publish(folder / "run", folder / "data", folder / "bundles")


def task_of(folder: Path) -> Task:
    return make_task(read_dataset(folder / "data"), SETTINGS.data)
