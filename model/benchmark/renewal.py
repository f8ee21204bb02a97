"""The stages of `longwave-train measure-update`: a training without what is new, one with it, an update; each with its cost."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from model.alone import alone
from model.assess import known_before
from model.checkpoint import Checkpoint, load_checkpoint, names_of
from model.data.build import Dataset, with_events
from model.data.dataset import write_dataset
from model.data.splits import by_time
from model.files import write_whole
from model.loop import CHECKPOINT, Report, remove_run
from model.publish import publish_task
from model.settings import WHERE, Settings, TrainSettings, UpdateSettings, that_decide
from model.task import Task, make_task
from model.train import Trainer
from model.update.newer import newer
from model.update.origin import Origin, read_origin
from model.update.run import judged, refresh

COST = "cost.json"


class Cost(NamedTuple):
    """Seconds of the clock on the wall, and of the processor (which those who share it disturb less)."""

    wall: float
    cpu: float


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        return Cost(time.perf_counter() - self.wall, time.process_time() - self.cpu)


@dataclass(frozen=True)
class Trained:
    """A training: what it was of, what came out, and what all of it cost, from the events to the weights."""

    task: Task
    checkpoint: Checkpoint
    cost: Cost


@dataclass(frozen=True)
class Renewed:
    """An update up to and with its gate: what it made, what the gate said of it, and what all of it cost.

    Attributes:
        published: whether the gate let it pass; the old model serves on, if not.
    """

    checkpoint: Checkpoint
    published: bool
    cost: Cost
    described: dict[str, Any]


class Refit(Trainer):
    """A training of so many epochs that nothing is held out to choose one by; the last weights are kept."""

    def __init__(self, task: Task, settings: Settings, folder: Path, epochs: int) -> None:
        """Arguments and errors as of `Loop`; epochs: of those that the settings lay the course of the rate over."""
        self.last = epochs
        super().__init__(task, dataclasses.replace(settings, train=dataclasses.replace(settings.train, valid_queries=1)), folder)

    def _exhausted(self) -> bool:
        return self.epoch >= self.last

    def _validate(self) -> npt.NDArray[np.floating]:
        return np.empty(0)


def train_old(
    dataset: Dataset, settings: Settings, begin: float, new: float, folder: Path, report: Report | None = None
) -> Trained:
    """As `train` does it: without what is new, its epoch chosen on as large a share before that.

    Args:
        begin: where the questions begin, see `PARTS`. new: as of `measure_update`.

    Raises:
        NothingNewError: an update will have too little to learn from or to be judged by; nothing was trained.
    """
    until = begin * (1 - new)
    settings = _cut(settings, until * (1 - new), until)

    def check(run: Trainer) -> None:
        _check_enough(dataset, run, begin, settings.update)

    return _trained(dataset, settings, folder, lambda task: Trainer(task, settings, folder), None, report, check)


def train_anew(
    dataset: Dataset, settings: Settings, begin: float, end: float, epochs: int, folder: Path, report: Report | None = None
) -> Trained:
    """From scratch on everything before the questions, the same number of epochs on the same course of the learning rate."""
    # The very end is no quantile: the questions of the last moment are behind the cut, and `asked_of` takes them, too.
    settings = _cut(settings, begin, min(end, 1 - 1e-9))
    return _trained(dataset, settings, folder, lambda task: Refit(task, settings, folder, epochs), epochs, report)


def renew(dataset: Dataset, old: Trained, until_ms: int, settings: Settings, folder: Path) -> Renewed:
    """Update the old model by what came before a moment, up to and with the gate, whatever that says.

    Args:
        folder: gets the bundle of the old model, and the events.
    """
    bundles, events = folder / "bundles", folder / "events"
    publish_task(old.checkpoint, old.task, known_before(old.task, old.task.split.cut_ms), bundles, [])
    write_dataset(before(dataset, until_ms), events)
    watch = Watch()
    refreshed = refresh(read_origin(bundles / "current"), events, settings.update)
    learned = watch.read()
    judgement = judged(refreshed)
    cost = watch.read()
    found = refreshed.newer
    return Renewed(
        refreshed.checkpoint,
        judgement.after >= judgement.before * (1 - settings.update.margin),
        cost,
        {
            "events": {"old": int((~found.new_events).sum()), "new": int(found.new_events.sum())},
            "items": {"old": found.old_items, "new": found.seq.items - found.old_items},
            "questions": {"learned": refreshed.learned.learned, "replayed": refreshed.learned.replayed},
            "refreshed": refreshed.learned.refreshed,
            "seconds_wall": refreshed.seconds | {"gate": cost.wall - learned.wall},
            "gate": dataclasses.asdict(judgement),
        },
    )


def before(dataset: Dataset, until_ms: int) -> Dataset:
    """What was known at a moment: the events before it, their items and their users."""
    events = dataset.events.filter(pl.col("timestamp") < until_ms)
    items = dataset.items.join(events.select(pl.col("item_id").unique()), on="item_id", how="semi")
    users = dataset.users.join(events.select(pl.col("user_id").unique()), on="user_id", how="semi")
    return with_events(dataset, events, items, users)


def _trained(
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    trainer: Callable[[Task], Trainer],
    epochs: int | None,
    report: Report | None,
    check: Callable[[Trainer], None] = lambda _: None,
) -> Trained:
    """Train, or take what lies in the folder, if it is finished, of the same data and settings, and of so many epochs.

    Args:
        check: of a training before it begins, which is no part of its cost.
    """
    watch = Watch()
    task = make_task(dataset, settings.data)
    run = trainer(task)
    prepared = watch.read()
    check(run)
    watch = Watch()
    if (folder / COST).exists():
        kept = load_checkpoint(folder / CHECKPOINT)
        if _decided(kept.settings) == _decided(run.described) and kept.data == task.data and epochs in (None, len(kept.history)):
            return Trained(task, kept, Cost(**json.loads((folder / COST).read_text(encoding="utf-8"))))
    with alone(folder):
        (folder / COST).unlink(missing_ok=True)  # first: it says that the training beside it has finished
        remove_run(folder)
        checkpoint = run.run(report)
        cost = Cost(*map(sum, zip(prepared, watch.read(), strict=True)))
        # Behind the checkpoint: where it is, the training has finished.
        write_whole(folder / COST, json.dumps(cost._asdict()) + "\n")
    return Trained(task, checkpoint, cost)


def _check_enough(dataset: Dataset, run: Trainer, begin: float, settings: UpdateSettings) -> None:
    """What `renew` will find to be new, by the same code. Raises NothingNewError."""
    task = run.task
    until_ms = by_time(task.seq, quantile=1 - 1e-9, valid_quantile=begin).valid_cut_ms
    cut_ms = task.split.cut_ms
    untrained = Checkpoint(run.net, run.described, task.seq.item_ids, task.data, names_of(task.seq), None, cut_ms, [], {})
    newer(before(dataset, until_ms), Origin(run.folder, "", untrained, [], [], task.repeats), settings.holdout)


def _decided(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the result of a training, and, for its cost, where it ran; a key that an older run does not have: default."""
    train = dataclasses.asdict(TrainSettings()) | settings["train"]
    return that_decide(settings), {key: train[key] for key in WHERE}


def _cut(settings: Settings, valid: float, test: float) -> Settings:
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, valid_quantile=valid, test_quantile=test))
