"""The training of an update: the running model's weights, some of them free, over the stretches of `windows`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from model.begin import extended
from model.checkpoint import Checkpoint
from model.data.sequences import Queries
from model.data.splits import together
from model.device import CPU
from model.lanes import LaneBatch, lane_batches
from model.memory import Memories, fold_memories
from model.nets import Longwave, ModelConfig, State
from model.settings import Settings, TrainSettings, UpdateSettings
from model.task import Task
from model.train import Trainer
from model.update.windows import Begun, Windows, fold_to

ITEMS = ("item.id.weight", "item.bias", "item.beside.weight")
"""What an item has of its own, a row each."""
HEADS = ("readout.", "repeats.")
"""What turns a state into scores, and what the ring keeps for that; the recurrence and what it reads are not among them."""


@dataclass(frozen=True)
class UpdateTask(Task):
    """A task whose net is given: that of a checkpoint, with rows for new items."""

    config: ModelConfig

    def model_config(self, settings: Settings) -> ModelConfig:
        """As the checkpoint has it: what training has measured then (bucket edges, say) stays."""
        return self.config


@dataclass(frozen=True)
class Learned:
    """What came out.

    Attributes:
        loss: mean of the last pass. learned, replayed: new and old questions. users: whose stretches they are.
        refreshed: parameters that were free, in numbers.
        memories: own repeats at the questions of the gate; None where the model has no memory of them.
        seconds: for preparing and for learning.
    """

    net: Longwave
    loss: float
    learned: int
    replayed: int
    users: int
    refreshed: int
    memories: Memories | None
    seconds: dict[str, float]


class Updater(Trainer):
    """A training that begins where another has ended; see `Trainer` and `Loop`."""

    def __init__(self, task: UpdateTask, checkpoint: Checkpoint, train: TrainSettings, refresh: str, windows: Windows) -> None:
        """Arguments: the task with its new items, the model before, what is free to learn (`REFRESHED`), and where from."""
        self.windows = windows
        self.states: dict[int, State] = {}
        self.start = task.seq.offsets[:-1].copy()
        self.start[windows.user] = windows.begin
        super().__init__(task, Settings(train=train, model=dict(checkpoint.settings["model"])), Path())
        self.net.load_state_dict(extended(checkpoint.net, self.net))
        self.refreshed = _free(self.net, refresh, checkpoint.net.config.items)
        self.states = fold_to(self.net, self.inputs, task.seq, windows, train.chunk)

    def learn(self) -> float:
        """All passes; returns the loss of the last. Raises TrainingError where it is no number any more."""
        loss = float("nan")
        for _ in range(self.train.epochs):
            loss = self._epoch(None)
            self.epoch += 1
        self.net.cpu().eval().requires_grad_(True)
        return loss

    def batches(self, rng: np.random.Generator) -> Iterator[LaneBatch]:
        task = self.task
        return lane_batches(self.start, task.split.train_end, self.queries, self.batch, self.train.chunk, rng)

    def _memories(self, queries: Queries) -> Memories | None:
        """One fold for what is learned and what the gate asks; nothing is validated in between."""
        if self.net.repeats is None or queries is not self.queries:
            return None
        return fold_memories(self.net, self.task.seq, together(queries, self.task.split.test))

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.carried = Begun(self.states)


def train_settings(checkpoint: Checkpoint, settings: UpdateSettings) -> TrainSettings:
    """Those of the run, with what an update does in another way."""
    before = {key: value for key, value in checkpoint.settings["train"].items() if key in TrainSettings.__dataclass_fields__}
    return replace(
        TrainSettings(**before),
        epochs=settings.passes,
        lanes=checkpoint.history[-1].get("batch", before["lanes"]) if checkpoint.history else before["lanes"],
        least_steps=0,
        learning_rate=settings.learning_rate,
        direct_learning_rate=settings.direct_learning_rate,
        weight_decay=0.0,  # it would pull at rows that nothing new speaks for
        warmup_steps=settings.warmup_steps,
        teacher="",  # was asked other questions
        average=0.0,  # passes are too short to average over
        device="cpu" if before.get("device") == "cpu" else "auto",  # that of the run may be of another machine
        compile=False,  # takes longer than the few steps
        valid_queries=1,  # nothing is chosen on validation: the gate judges the last pass
    )


def learn(task: UpdateTask, checkpoint: Checkpoint, train: TrainSettings, refresh: str, windows: Windows) -> Learned:
    """Refresh a checkpoint's net by the stretches of `windows`. Errors as of `Loop`."""
    began = time.monotonic()
    updater = Updater(task, checkpoint, train, refresh, windows)
    prepared = time.monotonic()
    loss = updater.learn()
    return Learned(
        updater.net,
        loss,
        len(windows.queries) - windows.replayed,
        windows.replayed,
        len(windows.user),
        updater.refreshed,
        None if updater.memories is None else updater.memories.since(len(windows.queries)).on(CPU),
        {"stretches": prepared - began, "learning": time.monotonic() - prepared},
    )


def _free(net: Longwave, refresh: str, old_items: int) -> int:
    """Let the parameters that `refresh` names learn, hold the others; returns how many numbers may change.

    Rows of new items always learn: nothing else speaks for them.
    """
    count = 0
    for name, parameter in net.named_parameters():
        item, head = name in ITEMS, name.startswith(HEADS)
        free = refresh == "all" or (item and "items" in refresh) or (head and "heads" in refresh)
        rows = parameter[old_items:].numel() if item and not free else 0
        parameter.requires_grad_(free or rows > 0)
        count += parameter.numel() if free else rows
        if rows:
            # Without decay, a row whose gradient is always zero is the same to the bit.
            parameter.register_hook(partial(_rows_from, old_items))  # type: ignore[no-untyped-call]
    return count


def _rows_from(first: int, gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[:first] = 0.0
    return gradient
