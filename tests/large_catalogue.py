"""What a large catalogue takes to train: `python tests/large_catalogue.py 1000000 FOLDER` prints a line of JSON per stage.

A process of its own, because the peak of a process never falls. The data are made up: every item is had once, and then some
are had again.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from model.data.build import Dataset, build_dataset
from model.data.clean import CleaningReport
from model.data.schema import EventType
from model.settings import DataSettings, Settings, TrainSettings
from model.task import make_task
from model.train import Trainer

SETTINGS = Settings(
    DataSettings(protocol="time", test_quantile=0.97, valid_quantile=0.95),
    TrainSettings(epochs=1, lanes=32, chunk=64, negatives=8192, valid_queries=256, threads=1),
    {"width": 64},
)
STEPS = 5


def catalogue(items: int, users: int, repeats: bool = True) -> Dataset:
    """So many items and users: a purchase of each item, then a ninth as many of items drawn by popularity."""
    rng = np.random.default_rng(0)
    again = np.minimum(rng.zipf(1.3, items // 9), items) - 1
    item = np.concatenate([rng.permutation(items), again])
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, users, len(item)),
            "item_id": item,
            "type": "purchase",
            "timestamp": 1_300_000_000_000 + 60_000 * np.arange(len(item)),
        }
    ).with_columns(pl.col("user_id", "item_id").cast(pl.String))
    types = [EventType(name="purchase", polarity="positive", weight=1.0)]
    read = CleaningReport(frame.height, frame.height, [])
    return build_dataset(frame, read, name="large", source="made up", licence="CC0-1.0", event_types=types, repeats=repeats)


def measure(items: int, folder: Path) -> None:
    """Print {"stage", "peak_gib", "seconds"} after the data are ready, the trainer is, each of a few steps, and so on."""
    began = time.monotonic()

    def say(stage: str, **more: float) -> None:
        nonlocal began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = time.monotonic() - began
        print(json.dumps({"stage": stage, "peak_gib": round(peak, 3), "seconds": round(seconds, 2), **more}), flush=True)
        began = time.monotonic()

    say("start")
    task = make_task(catalogue(items, max(100, items // 50)), SETTINGS.data)
    say("data", items=task.seq.items)
    run = Trainer(task, SETTINGS, folder)
    say("trainer", steps=run.steps_per_epoch)
    run.net.train()
    for batch, _ in zip(run.batches(np.random.default_rng(0)), range(STEPS), strict=False):
        run.step(batch)
        say("step", asked=batch.asked)
    say("validation", ndcg=float(np.nanmean(run._validate())))
    run._keep(run._kept(run._resumable()))
    say("checkpoint")


if __name__ == "__main__":
    measure(int(sys.argv[1]), Path(sys.argv[2]))
