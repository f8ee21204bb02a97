"""Training: lanes of chunks, full softmax over the catalogue, AdamW with warm-up and cosine, early stop on validation.

A run can be killed at any time and resumed from its last finished epoch with the same result as if it had never stopped.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, names_of, save_checkpoint
from model.data.sequences import Queries
from model.data.splits import select
from model.errors import TrainerError
from model.lanes import LaneBatch, lane_batches
from model.losses import basket_cross_entropy
from model.memory import Memories, fold_memories
from model.metrics import ndcg
from model.nets import Longwave
from model.popularity import PopularityTable
from model.predict import Carried, logits, rank, read_out
from model.replay import seen_items
from model.settings import Settings
from model.task import Task

CHECKPOINT = "checkpoint.pt"
BOARD = "tensorboard"
METRIC_K = 20
DIRECT = ("repeats.", "item.bias", "readout.popularity.")
"""Parameters that score without a learned representation: few, well determined, and slow to move at the net's own rate."""


class TrainingError(TrainerError, FloatingPointError):
    """The data leave nothing to train on or to validate with, or the loss is no number any more."""


@dataclass(frozen=True)
class Progress:
    """What a run tells while it goes on: finished epochs, share done of the current one, and the latest figures."""

    epoch: int
    epochs: int
    done: float
    loss: float
    valid_ndcg: float | None


Report = Callable[[Progress], None]


class Trainer:
    """One run: the net, its optimizer and everything that a resumed run needs to go on as if nothing had happened."""

    def __init__(self, task: Task, settings: Settings, folder: Path) -> None:
        """Build the net for a task; `folder` gets the checkpoint and the TensorBoard log.

        Raises:
            TrainingError: the task has no training query or no validation query.
        """
        train = settings.train
        for part, asked in (("training", task.train_queries), ("validation", task.split.valid)):
            if not len(asked):
                raise TrainingError(
                    f"{task.data['name']}: the {part} part of the {task.split.protocol!r} split asks nothing: too few events; "
                    "use more data, or other values of data.protocol, data.valid_quantile and data.test_quantile"
                )
        if train.threads:
            torch.set_num_threads(train.threads)
        torch.manual_seed(train.seed)
        self.task, self.settings, self.folder = task, settings, folder
        self.net = Longwave(task.model_config(settings))
        self.rng = np.random.default_rng(train.seed)
        direct = [p for name, p in self.net.named_parameters() if name.startswith(DIRECT)]
        learned = [p for name, p in self.net.named_parameters() if not name.startswith(DIRECT)]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": learned, "lr": train.learning_rate, "weight_decay": train.weight_decay},
                {"params": direct, "lr": train.direct_learning_rate, "weight_decay": train.weight_decay / 10},
            ]
        )
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.finished: Checkpoint | None = None
        self.queries = task.train_queries
        self.valid = _sample(task.split.valid, train.valid_queries, train.seed)
        self.table = PopularityTable(task.seq, self.net.config.popularity_half_lives_s)
        self.memories = self._memories(self.queries)
        self.valid_memories = self._memories(self.valid)
        self.steps_per_epoch = sum(1 for _ in self._batches(np.random.default_rng(train.seed)))
        steps = max(1, self.steps_per_epoch * train.epochs)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda s: min(1.0, (s + 1) / max(1, train.warmup_steps)) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps))),
        )

    def run(self, report: Report | None = None) -> Checkpoint:
        """Train to the last epoch or until validation has not improved for `patience` epochs; returns the best weights.

        Raises:
            TrainingError: the loss became infinite or no number.
        """
        from torch.utils.tensorboard import SummaryWriter  # seconds to import

        train = self.settings.train
        with SummaryWriter(str(self.folder / BOARD)) as board:
            while self.epoch < train.epochs and not self._exhausted():
                began = time.monotonic()
                loss = self._epoch(report)
                valid = self._validate()
                self.epoch += 1
                self.history.append({"epoch": self.epoch, "loss": loss, "valid_ndcg": valid, "seconds": time.monotonic() - began})
                if valid >= max(h["valid_ndcg"] for h in self.history):
                    self.best = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
                board.add_scalar("loss/train", loss, self.epoch)
                board.add_scalar(f"ndcg@{METRIC_K}/valid", valid, self.epoch)
                board.add_scalar("learning rate", self.optimizer.param_groups[0]["lr"], self.epoch)
                save_checkpoint(self._checkpoint(running=True), self.folder / CHECKPOINT)
                if report:
                    report(Progress(self.epoch, train.epochs, 0.0, loss, valid))
        if self.best:
            self.net.load_state_dict(self.best)
        self.net.eval()
        final = self._checkpoint(running=False)
        save_checkpoint(final, self.folder / CHECKPOINT)
        return final

    def resume(self) -> bool:
        """Take up the run in `folder`; False if there is none, or if it had finished and is in `finished` now.

        Raises:
            CheckpointError: the checkpoint there is of other data or other settings.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        with torch.random.fork_rng(devices=[]):  # building the stored net draws numbers that a run of its own must not miss
            stored = load_checkpoint(path)
        if stored.settings != self.settings.as_dict() or stored.data["fingerprint"] != self.task.data["fingerprint"]:
            raise CheckpointError(f"{path}: of other data or settings; train into another folder, or give --overwrite")
        if not stored.training:
            self.finished = stored
            return False
        self.net.load_state_dict(stored.net.state_dict())
        training = stored.training
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        self.rng.bit_generator.state = training["numpy"]
        torch.set_rng_state(training["torch"])
        self.epoch, self.history, self.best = training["epoch"], stored.history, training["best"]
        return True

    def _exhausted(self) -> bool:
        figures = [h["valid_ndcg"] for h in self.history]
        return bool(figures) and len(figures) - 1 - int(np.argmax(figures)) >= self.settings.train.patience

    def _batches(self, rng: np.random.Generator) -> Any:
        train, task = self.settings.train, self.task
        return lane_batches(task.seq.offsets, task.split.train_end, self.queries, train.lanes, train.chunk, rng)

    def _memories(self, queries: Queries) -> Memories | None:
        return fold_memories(self.net, self.task.seq, queries) if self.net.repeats is not None else None

    def _epoch(self, report: Report | None) -> float:
        self.net.train()
        carried, total, steps = Carried(), 0.0, 0
        for step, batch in enumerate(self._batches(self.rng)):
            loss = self._loss(batch, carried)
            if loss is None:
                continue
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.train.clip)
            self.optimizer.step()
            self.schedule.step()
            total, steps = total + float(loss.detach()), steps + 1
            if report and step % 5 == 0:
                last = self.history[-1]["valid_ndcg"] if self.history else None
                done = min(1.0, (step + 1) / self.steps_per_epoch)
                report(Progress(self.epoch, self.settings.train.epochs, done, total / steps, last))
        if not math.isfinite(total):
            raise TrainingError(f"the loss became {total} in epoch {self.epoch + 1}; lower train.learning_rate")
        return total / max(1, steps)

    def _loss(self, batch: LaneBatch, carried: Carried) -> Tensor | None:
        net, inputs = self.net, self.task.inputs
        item_matrix, item_bias = net.item(inputs.item_text, inputs.item_features)
        state = carried.enter(net, inputs, batch)
        query = torch.as_tensor(batch.query)
        asked = query[query >= 0]
        as_of = torch.as_tensor(self.queries.as_of)[asked]
        platform = inputs.platform[torch.as_tensor(self.queries.position)[asked]]
        events = inputs.events(torch.as_tensor(batch.rows), item_matrix)
        readout, state = net(events, torch.as_tensor(batch.valid), state, torch.as_tensor(batch.positions), as_of, platform)
        carried.leave(batch, state)
        if not len(asked):
            return None
        popularity = self.table.at(as_of)
        scores = logits(net, readout, item_matrix, item_bias, popularity, as_of, self.memories, asked)
        chosen = select(self.queries, asked.numpy())
        owner = np.repeat(np.arange(len(chosen)), np.diff(chosen.target_offsets))
        target = torch.as_tensor(chosen.target, dtype=torch.int64)
        return basket_cross_entropy(scores, torch.as_tensor(owner), target, self.settings.train.smoothing)

    def _validate(self) -> float:
        """Mean ndcg@20 over the validation queries, each from everything before it."""
        task = self.task
        predictions = read_out(self.net, task.inputs, task.seq, self.valid)
        lists = []
        for start in range(0, len(self.valid), 128):
            chosen = torch.arange(start, min(start + 128, len(self.valid)))
            popularity = self.table.at(torch.as_tensor(self.valid.as_of)[chosen])
            forbidden = None
            if task.split.filter_seen:
                forbidden = [seen_items(task.seq, int(self.valid.user[q]), int(self.valid.position[q])) for q in chosen.tolist()]
            lists.append(rank(self.net, predictions, self.valid, popularity, self.valid_memories, METRIC_K, chosen, forbidden))
        return float(np.nanmean(ndcg(np.concatenate(lists), self.valid, METRIC_K)))

    def _checkpoint(self, running: bool) -> Checkpoint:
        training: dict[str, Any] = {}
        if running:
            training = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "numpy": self.rng.bit_generator.state,
                "torch": torch.get_rng_state(),
                "epoch": self.epoch,
                "best": self.best,
            }
        return Checkpoint(
            self.net,
            self.settings.as_dict(),
            self.task.seq.item_ids,
            self.task.data,
            names_of(self.task.seq),
            None if self.task.item_text is None else torch.as_tensor(self.task.item_text),
            self.task.split.cut_ms,
            self.history,
            training,
        )


def check_free(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to train over a run, finished or not, that nobody asked to go on with or to replace.

    Raises:
        CheckpointError: the folder holds a run, is a file, or `resume` and `overwrite` are both asked for.
    """
    if resume and overwrite:
        raise CheckpointError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: a file, expected a folder for the run")
    if (folder / CHECKPOINT).exists() and not (resume or overwrite):
        raise CheckpointError(f"{folder}: holds a run; go on with --resume, train into another folder, or give --overwrite")


def remove_run(folder: Path) -> None:
    """Remove what an earlier run left in its folder, so that a killed one is never taken for the one before it."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    shutil.rmtree(folder / BOARD, ignore_errors=True)


def _sample(queries: Queries, most: int, seed: int) -> Queries:
    if len(queries) <= most:
        return queries
    return select(queries, np.sort(np.random.default_rng(seed).choice(len(queries), most, replace=False)))
