"""What a large catalogue takes to train: `python tests/large_catalogue.py 1000000 FOLDER` prints a line of JSON per stage.

A process of its own, because the peak of a process never falls. The data are made up: every item is had once, and then some
are had again. A file given after FOLDER gets all stages, with the machine and the commit.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from model.benchmark.heading import heading
from model.benchmark.run import to_text
from model.data.build import Dataset, build_dataset
from model.data.clean import CleaningReport
from model.data.schema import EventType
from model.files import write_whole
from model.loop import CHECKPOINT
from model.settings import DataSettings, Settings, TrainSettings
from model.task import make_task
from model.train import Trainer

SETTINGS = Settings(
    DataSettings(protocol="time", test_quantile=0.97, valid_quantile=0.95),
    TrainSettings(epochs=1, least_steps=0, lanes=32, chunk=64, negatives=8192, valid_queries=256, threads=1),
    {"width": 64},
)
STEPS = 5
FORMAT = 1


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


def measure(items: int, folder: Path) -> list[dict[str, Any]]:
    """Print and return {"stage", "peak_gib", "seconds", "cpu_seconds"} after the data are ready, the trainer is, each of a few
    steps, and so on; a step also has the questions that it asked and the events that it folded.
    """
    stages: list[dict[str, Any]] = []
    began, busy = time.monotonic(), time.process_time()

    def say(stage: str, **more: float) -> None:
        nonlocal began, busy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        taken = {"seconds": round(time.monotonic() - began, 2), "cpu_seconds": round(time.process_time() - busy, 2)}
        stages.append({"stage": stage, "peak_gib": round(peak, 3), **taken, **more})
        print(json.dumps(stages[-1]), flush=True)
        began, busy = time.monotonic(), time.process_time()

    say("start")
    task = make_task(catalogue(items, max(100, items // 50)), SETTINGS.data)
    say("data", items=task.seq.items, events=len(task.seq.item))
    run = Trainer(task, SETTINGS, folder)
    say("trainer", steps=run.steps_per_epoch)
    run.net.train()
    for batch, _ in zip(run.batches(np.random.default_rng(0)), range(STEPS), strict=False):
        run.step(batch)
        say("step", asked=batch.asked, folded=int(batch.valid.sum()))
    say("validation", ndcg=float(np.nanmean(run._validate())), asked=len(run.valid))
    run._keep(run._kept(run._resumable()))
    say("checkpoint", bytes=(folder / CHECKPOINT).stat().st_size)
    return stages


def summary(items: int, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """What a file keeps: the peak, all seconds, and the events that steps fold in a second of the clock and of the core."""
    steps = [each for each in stages if each["stage"] == "step"]
    folded = sum(each["folded"] for each in steps)
    return {
        **heading(FORMAT, "made up"),
        "items": items,
        "width": SETTINGS.model["width"],
        "negatives": SETTINGS.train.negatives,
        "peak_gib": max(each["peak_gib"] for each in stages),
        "seconds": sum(each["seconds"] for each in stages),
        "events_per_second": folded / sum(each["seconds"] for each in steps),
        "events_per_cpu_second": folded / sum(each["cpu_seconds"] for each in steps),
        "stages": stages,
    }


if __name__ == "__main__":
    catalogue_of, place, *file = sys.argv[1:]
    found = measure(int(catalogue_of), Path(place))
    if file:
        write_whole(Path(file[0]), to_text(summary(int(catalogue_of), found)))
