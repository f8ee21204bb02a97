"""The training that all nets share: AdamW with warm-up and cosine, clipping, early stop on validation, and exact resumption.

A run can be killed at any time and resumed from its last finished epoch with the same result as if it had never stopped.
"""

from __future__ import annotations

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.checkpoint import CheckpointError
from model.data.sequences import Queries
from model.data.splits import select
from model.device import device_of
from model.distributed import group
from model.errors import TrainerError
from model.files import NO_SPACE, OutputError, check_place
from model.precision import factors
from model.seen import Seen, seen_of
from model.settings import TrainSettings, that_differ
from model.task import Task

CHECKPOINT = "checkpoint.pt"
UNFINISHED = (f".{CHECKPOINT}.*.tmp", "checkpoint.*.tmp")
"""Checkpoints that nobody has finished writing, of this version and of before."""
COLD = "cold.json"
"""What `measure-cold` chose for users with few events, in the folder of a run; `export` takes it along."""
BOARD = "tensorboard"


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
    k: int


Report = Callable[[Progress], None]


class Batch(Protocol):
    """What is learned from in a step; `part` is the share of one process of several."""

    @property
    def asked(self) -> int: ...
    def part(self, rank: int, size: int) -> Any: ...


class Stored(Protocol):
    """What every checkpoint has; `training` is empty once training is done."""

    @property
    def net(self) -> nn.Module: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def data(self) -> dict[str, Any]: ...
    @property
    def history(self) -> list[dict[str, Any]]: ...
    @property
    def training(self) -> dict[str, Any]: ...


Net = TypeVar("Net", bound=nn.Module)
Kept = TypeVar("Kept", bound=Stored)


class Loop(ABC, Generic[Net, Kept]):
    """One run: the net, its optimizer and everything that a resumed run needs to go on as if nothing had happened."""

    schedule: torch.optim.lr_scheduler.LambdaLR
    steps_per_epoch: int
    batch: int
    """How much is learned from in a step, at most: users, or tokens."""

    def __init__(
        self,
        task: Task,
        train: TrainSettings,
        described: dict[str, Any],
        folder: Path,
        build: Callable[[], Net],
        groups: Callable[[Net], list[dict[str, Any]]],
    ) -> None:
        """Build the net for a task; `folder` gets the checkpoint and the TensorBoard log. Subclasses end with `_plan`.

        Args:
            described: the settings as a checkpoint keeps them; a run goes on only with equal ones.
            groups: the parameter groups of AdamW, with "lr" and "weight_decay".

        Raises:
            DeviceError: `train.device` is not there.
            TrainingError: the task has no training query or no validation query.
        """
        for part, asked in (("training", task.train_queries), ("validation", task.split.valid)):
            if not len(asked):
                raise TrainingError(
                    f"{task.data['name']}: the {part} part of the {task.split.protocol!r} split asks nothing: too few events; "
                    "use more data, or other values of data.protocol, data.valid_quantile and data.test_quantile"
                )
        self.device = device_of(train.device)
        if train.threads:
            torch.set_num_threads(train.threads)
        torch.manual_seed(train.seed)
        self.task, self.train, self.described, self.folder = task, train, described, folder
        self.group = group()
        self.factor = factors(train.precision, self.device)
        # Built on the CPU: the same weights to begin with, wherever they learn.
        self.net = build().to(self.device)
        self.forward: Callable[..., Any] = torch.compile(self.net) if train.compile else self.net
        self.rng = np.random.default_rng(train.seed)
        self.optimizer = torch.optim.AdamW(groups(self.net))
        averaging = get_ema_multi_avg_fn(train.average)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(self.net, multi_avg_fn=averaging) if train.average else None
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.finished: Kept | None = None
        self.queries = task.train_queries
        valid = _sample(task.split.valid, train.valid_queries, train.seed)
        self.valid = select(valid, np.arange(len(valid)) % self.group.size == self.group.rank)

    def _plan(self, batch: int, least: int) -> None:
        """Choose how large a batch is, count the steps of an epoch, and lay the course of the learning rate.

        Args:
            batch: as the settings say. least: it is halved down to this while all epochs have fewer than `least_steps` steps.
        """
        chosen, self.steps_per_epoch = batch, self._count_steps(batch)
        while self.steps_per_epoch * self.train.epochs < self.train.least_steps and batch // 2 >= least:
            batch //= 2
            steps = self._count_steps(batch)
            if steps > self.steps_per_epoch:  # where users are fewer than that it is the same
                chosen, self.steps_per_epoch = batch, steps
        self.batch = chosen
        steps, warmup = max(1, self.steps_per_epoch * self.train.epochs), self.train.warmup_steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda s: min(1.0, (s + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps))),
        )

    def _count_steps(self, batch: int) -> int:
        self.batch = batch
        return sum(1 for _ in self.batches(np.random.default_rng(self.train.seed)))

    @abstractmethod
    def batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """The batches of one epoch, of `self.batch`, whole: every process has the same."""

    @abstractmethod
    def _loss(self, batch: Any) -> Tensor | None:
        """The loss of a batch, or of a part of one; None where it asks nothing."""

    @abstractmethod
    def _validate(self) -> npt.NDArray[np.floating]:
        """The ndcg at the split's k of this process's validation queries, each from everything before it; NaN has none."""

    @abstractmethod
    def _kept(self, training: dict[str, Any]) -> Kept:
        """The run as it is now."""

    @abstractmethod
    def _save(self, kept: Kept, path: Path) -> None:
        """Write a checkpoint whole or not at all."""

    @abstractmethod
    def _load(self, path: Path) -> Kept:
        """Read a checkpoint. Raises CheckpointError."""

    def begin_epoch(self) -> None:
        """Forget what belongs to one epoch alone."""

    def run(self, report: Report | None = None) -> Kept:
        """Train to the last epoch or until validation has not improved for `patience` epochs; returns the best weights.

        Raises:
            TrainerError: the loss became infinite or no number, or the folder cannot be written.
        """
        report = report if self.group.first else None
        with _board(self.folder / BOARD) if self.group.first else nullcontext() as board:
            while self.epoch < self.train.epochs and not self._exhausted():
                began = time.monotonic()
                loss = self._epoch(report)
                with self._averaged():
                    valid = self._mean(self._validate() if len(self.valid) else np.empty(0))  # fewer queries than processes
                    weights = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
                self.epoch += 1
                seconds = time.monotonic() - began
                self.history.append(
                    {"epoch": self.epoch, "loss": loss, "valid_ndcg": valid, "seconds": seconds, "batch": self.batch}
                )
                if valid >= max(h["valid_ndcg"] for h in self.history):
                    self.best = weights
                if board:
                    board.add_scalar("loss/train", loss, self.epoch)
                    board.add_scalar(f"ndcg@{self.task.split.k}/valid", valid, self.epoch)
                    board.add_scalar("learning rate", self.optimizer.param_groups[0]["lr"], self.epoch)
                self._keep(self._kept(self._resumable()))
                if report:
                    report(Progress(self.epoch, self.train.epochs, 0.0, loss, valid, self.task.split.k))
        if self.best:
            self.net.load_state_dict(self.best)
        elif self.average:  # nothing was validated to choose by: the last weights, averaged as those would be
            self.net.load_state_dict(self.average.module.state_dict())
        self.net.cpu().eval()  # what comes after training has its data there
        final = self._kept({})
        self._keep(final)
        return final

    def resume(self) -> bool:
        """Take up the run in `folder`; False if there is none, or if it had finished and is in `finished` now.

        Raises:
            CheckpointError: the checkpoint there is of other data or other settings.
        """
        if self.group.first:
            _clear_away(self.folder)
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        with torch.random.fork_rng(devices=[]):  # building the stored net draws numbers that a run of its own must not miss
            stored = self._load(path)
        if stored.data["fingerprint"] != self.task.data["fingerprint"]:
            raise CheckpointError(f"{path}: of other data or settings; train into another folder, or give --overwrite")
        if other := that_differ(stored.settings, self.described):
            raise CheckpointError(
                f"{path}: of other data or settings ({', '.join(other)}); train into another folder, or give --overwrite"
            )
        self._check(stored, path)
        if not stored.training:
            self.finished = stored
            return False
        self.net.load_state_dict(stored.net.state_dict())
        training = stored.training
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        self.rng.bit_generator.state = training["numpy"]
        torch.set_rng_state(training["torch"])
        if self.device.type == "cuda" and training.get("cuda") is not None:  # else it has gone on elsewhere: seeded, as a new run
            torch.cuda.set_rng_state(training["cuda"], self.device)
        self.epoch, self.history, self.best = training["epoch"], stored.history, training["best"]
        if self.average:
            self.average.load_state_dict(training["average"])
        return True

    def _check(self, stored: Kept, path: Path) -> None:
        """Raise CheckpointError if a run of the same data and settings is none to go on with after all."""

    def there(self, array: npt.NDArray[Any]) -> Tensor:
        """An array as a tensor on the run's device; on the CPU without a copy."""
        return torch.as_tensor(array, device=self.device)

    def _seen(self, queries: Queries) -> Seen | None:
        """What is left out of the softmax for these queries, if it is to be."""
        return seen_of(self.task.seq, queries, self.device) if self.train.mask_seen and self.task.split.filter_seen else None

    def _keep(self, kept: Kept) -> None:
        """Written once, and there for all."""
        if self.group.first:
            self._save(kept, self.folder / CHECKPOINT)
        self.group.wait()

    def _mean(self, values: npt.NDArray[np.floating]) -> float:
        """Over the values of all processes that are numbers."""
        total, count = self.group.total(
            torch.tensor([np.nansum(values), (~np.isnan(values)).sum()], dtype=torch.float64)
        ).tolist()
        return total / count if count else math.nan

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The net with the average of its weights, if one is kept."""
        if not self.average:
            yield
            return
        own = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.net.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.net.load_state_dict(own)

    def _exhausted(self) -> bool:
        figures = [h["valid_ndcg"] for h in self.history]
        return bool(figures) and len(figures) - 1 - int(np.argmax(figures)) >= self.train.patience

    def _epoch(self, report: Report | None) -> float:
        self.net.train()
        self.begin_epoch()
        if self.group.size > 1:  # each draws its own dropout, and a resumed run the same as if it had never stopped
            torch.manual_seed(hash((self.train.seed, self.epoch, self.group.rank)) % 2**63)
        total, steps = 0.0, 0
        for step, batch in enumerate(self.batches(self.rng)):
            loss = self.step(batch)
            if loss is None:
                continue
            total, steps = total + loss, steps + 1
            if report and step % 5 == 0:
                last = self.history[-1]["valid_ndcg"] if self.history else None
                done = min(1.0, (step + 1) / self.steps_per_epoch)
                report(Progress(self.epoch, self.train.epochs, done, total / steps, last, self.task.split.k))
        if not math.isfinite(total):
            raise TrainingError(f"the loss became {total} in epoch {self.epoch + 1}; lower train.learning_rate")
        return total / max(1, steps)

    def step(self, batch: Batch) -> float | None:
        """Learn from one batch, with all processes; its loss, or None where it asks nothing."""
        own = batch.part(self.group.rank, self.group.size)
        loss = self._loss(own)
        if not batch.asked:
            return None
        self.optimizer.zero_grad()
        if loss is not None:
            torch.autograd.backward(loss)
        found, _ = self.group.average(self.net.parameters(), 0.0 if loss is None else float(loss.detach()), own.asked)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.train.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.net)
        return found

    def _resumable(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "epoch": self.epoch,
            "best": self.best,
            "average": self.average.state_dict() if self.average else {},
        }


@contextmanager
def _board(folder: Path) -> Iterator[Any]:
    """The log of a run. Raises OutputError: the disk is full."""
    from torch.utils.tensorboard import SummaryWriter  # seconds to import

    try:
        with SummaryWriter(str(folder)) as board:
            yield board
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from error


def check_free(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to train over a run, finished or not, that nobody asked to go on with or to replace.

    Raises:
        CheckpointError: the folder holds a run, or `resume` and `overwrite` are both asked for.
        OutputError: it is a file, lies below one, or cannot be written.
    """
    if resume and overwrite:
        raise CheckpointError("--resume goes on with a run and --overwrite replaces it; give one of them")
    check_place(folder)
    if (folder / CHECKPOINT).exists() and not (resume or overwrite):
        raise CheckpointError(f"{folder}: holds a run; go on with --resume, train into another folder, or give --overwrite")


def remove_run(folder: Path) -> None:
    """Remove what an earlier run left in its folder, so that a killed one is never taken for the one before it."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
    (folder / COLD).unlink(missing_ok=True)
    shutil.rmtree(folder / BOARD, ignore_errors=True)
    _clear_away(folder)


def _clear_away(folder: Path) -> None:
    """Remove what processes that were killed had written of checkpoints: each is as large as one, and could fill the disk."""
    for pattern in UNFINISHED:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _sample(queries: Queries, most: int, seed: int) -> Queries:
    if len(queries) <= most:
        return queries
    return select(queries, np.sort(np.random.default_rng(seed).choice(len(queries), most, replace=False)))
