"""The trained models that a benchmark compares: how each is trained, found again, and asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from model.alone import alone
from model.assess import OURS, K, own_lists
from model.baselines.nets.checkpoint import ARCHITECTURES, described, load_encoder
from model.baselines.nets.train import EncoderTrainer, encoder_lists
from model.begin import as_begun
from model.checkpoint import CheckpointError, load_checkpoint
from model.distributed import group
from model.drifting import DriftReport, drift_report
from model.endurance import Endurance, endurance
from model.files import write_whole
from model.history import best_epoch, best_ndcg
from model.interests import InterestReport, interest_report
from model.loop import CHECKPOINT, Loop, Report, Stored, remove_run
from model.machine import measured
from model.nets import Longwave
from model.settings import Settings, model_defaults, that_differ
from model.task import Task
from model.train import Trainer
from model.update.origin import Origin

STARTED = "started.json"
MODELS = (OURS, *ARCHITECTURES)
Kept = TypeVar("Kept", bound=Stored)


@dataclass(frozen=True)
class Contender:
    """A finished run.

    Attributes:
        settings: all that the training went by.
        parameters: numbers that were learned.
        history: of each epoch loss, valid_ndcg and seconds.
        started: date, commit and machine of its training.
        lists: (Q, K) item rows for the test queries of a task.
        lists_after: the same from only so many events before each query; None for a model that is not asked so.
        item_vectors: (N, D), or None. net: ours.
        interests: of a task, how true the named interests are on the test part; None where there are none.
        drift: of a task, whether it tells who changed; None where there is none.
        endurance: of a task, what a long life does to the state; None where there is no state.
    """

    name: str
    settings: dict[str, Any]
    parameters: int
    history: list[dict[str, Any]]
    started: dict[str, Any]
    lists: Callable[[Task], npt.NDArray[np.int32]]
    item_vectors: npt.NDArray[np.float32] | None
    endurance: Callable[[Task], Endurance] | None = None
    interests: Callable[[Task], InterestReport | None] | None = None
    drift: Callable[[Task], DriftReport | None] | None = None
    lists_after: Callable[[Task, int], npt.NDArray[np.int32]] | None = None
    net: Longwave | None = None

    def describe(self) -> dict[str, Any]:
        """What a result says of the training."""
        return {
            "parameters": self.parameters,
            "seconds": round(sum(epoch["seconds"] for epoch in self.history), 1),
            "epochs": len(self.history),
            "best_epoch": best_epoch(self.history),
            "valid_ndcg": best_ndcg(self.history),
            "course": [{key: round(value, 6) for key, value in epoch.items()} for epoch in self.history],
            **self.started,
            "settings": self.settings,
        }


def contender(
    name: str,
    task: Task,
    settings: Settings,
    folder: Path,
    train: bool,
    overwrite: bool,
    report: Report | None,
    origin: Origin | None = None,
) -> Contender | None:
    """The run of one model in `folder`: taken up as it is, gone on with, or trained.

    Args:
        train: False: only what has finished is looked at, and None says that there is nothing.
        origin: of ours alone: begin with the weights of this bundle.

    Raises:
        TrainerError: the folder holds a run of other settings or data, another process trains there, or training failed.
    """
    if overwrite and train:
        with alone(folder):
            if group().first:
                remove_run(folder)
                (folder / STARTED).unlink(missing_ok=True)
    group().wait()
    if name == OURS:
        return _longwave(name, task, settings, folder, train, report, origin)
    return _encoder(name, task, settings, folder, train, report)


def _longwave(
    name: str, task: Task, settings: Settings, folder: Path, train: bool, report: Report | None, origin: Origin | None
) -> Contender | None:
    checkpoint = _finished(folder, task, as_begun(settings, origin), load_checkpoint)
    if checkpoint is None:
        if not train:
            return None
        checkpoint = _trained(folder, lambda: Trainer(task, settings, folder, origin), report)
    net = checkpoint.net
    vectors, _ = net.item(task.inputs.item_text, task.inputs.item_features)

    def lists(asked: Task) -> npt.NDArray[np.int32]:
        return own_lists(checkpoint, asked, asked.split)

    def lists_after(asked: Task, last: int) -> npt.NDArray[np.int32]:
        return own_lists(checkpoint, asked, asked.split, last=last)

    whole = checkpoint.settings | {"model": model_defaults() | checkpoint.settings["model"]}
    return Contender(
        name,
        whole,
        _parameters(net),
        checkpoint.history,
        _started(folder),
        lists,
        vectors.detach().numpy(),
        partial(endurance, checkpoint),
        lambda asked: interest_report(checkpoint, asked, asked.split.test),
        lambda asked: drift_report(net, asked),
        lists_after,
        net,
    )


def _encoder(name: str, task: Task, settings: Settings, folder: Path, train: bool, report: Report | None) -> Contender | None:
    checkpoint = _finished(folder, task, described(name, settings), load_encoder)
    if checkpoint is None:
        if not train:
            return None
        checkpoint = _trained(folder, lambda: EncoderTrainer(name, task, settings, folder), report)
    length = int(checkpoint.settings["model"]["length"])

    def lists(asked: Task) -> npt.NDArray[np.int32]:
        return encoder_lists(checkpoint.net, asked.seq, asked.split.test, length, K, asked.split.filter_seen)

    net, whole = checkpoint.net, checkpoint.settings
    return Contender(name, whole, _parameters(net), checkpoint.history, _started(folder), lists, None)


def _finished(folder: Path, task: Task, settings: dict[str, Any], load: Callable[[Path], Kept]) -> Kept | None:
    """The finished run of these settings in the folder, without building a trainer; None if it has to be trained."""
    if not (folder / CHECKPOINT).exists():
        return None
    checkpoint = load(folder / CHECKPOINT)
    other = that_differ(checkpoint.settings, settings)
    if other or checkpoint.data["fingerprint"] != task.data["fingerprint"]:
        which = f" ({', '.join(other)})" if other else ""
        raise CheckpointError(f"{folder}: of other data or settings{which}; name another --work, or remove that folder")
    return None if checkpoint.training else checkpoint


def _trained(folder: Path, trainer: Callable[[], Loop[Any, Kept]], report: Report | None) -> Kept:
    """The run gone on with, or begun; where and of what it began is kept beside it."""
    with alone(folder):
        run = trainer()
        run.resume()
        if run.finished is not None:  # since it was looked at, by another process
            return run.finished
        path = folder / STARTED
        if run.group.first and not path.exists():
            write_whole(path, json.dumps(measured() | {"processes": run.group.size}, indent=2) + "\n")
        return run.run(report)


def _started(folder: Path) -> dict[str, Any]:
    try:
        started = json.loads((folder / STARTED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # trained by `longwave-train train`, which does not keep it
    return started if isinstance(started, dict) else {}


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
