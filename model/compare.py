"""Runs, finished or not, beside each other on the validation part: what an ablation is decided by. No look at the test part."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from model.baselines.nets.checkpoint import EncoderCheckpoint, load_encoder
from model.baselines.nets.train import encoder_lists
from model.benchmark.page_words import figure_words
from model.benchmark.run import to_text
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.data.build import Dataset
from model.data.schema import DatasetManifest
from model.endurance import LAST, LONG, LongHistories, long_histories
from model.files import check_folder, write_whole
from model.history import best_epoch
from model.intervals import Difference, Estimate, UserBootstrap
from model.loop import CHECKPOINT
from model.machine import measured
from model.metrics import ndcg
from model.predict import ranked_lists
from model.settings import BEFORE, DataSettings, TrainSettings, model_defaults
from model.task import Task, make_task, protocol_of

FORMAT = 1
_TOLD = ("text_encoder", "items_only")
"""Of the settings of data those that say what a net is told; the others say what it is asked."""
Told = tuple[str, bool]


@dataclass(frozen=True)
class Compared:
    """A run on all validation queries, with its best weights so far.

    Attributes:
        settings: those that differ from the first run's, as "table.key"; of the first run none.
        epochs: how many it has had. course: of each, the ndcg on the validation queries that its trainer asked.
        batch: how much it learned from in a step, at most, users or tokens; None of runs from before that was kept.
        ndcg: at the split's k. against: this run minus the first, paired by user.
        long: what a state makes of long histories; None where there is no state.
    """

    run: str
    settings: dict[str, Any]
    epochs: int
    best_epoch: int
    loss: float
    course: list[float]
    batch: int | None
    ndcg: Estimate
    against: Difference | None
    long: LongHistories | None


def compare(dataset: Dataset, runs: Sequence[Path], seed: int = 0) -> list[Compared]:
    """Each run against the first.

    Raises:
        CheckpointError: a run is missing or damaged, or of other data, or cut in another way than the first.
    """
    loaded = [load_best(run) for run in runs]
    first = loaded[0]
    tasks: dict[Told, Task] = {}
    task = _task(dataset, first, tasks)
    values: list[npt.NDArray[np.float64]] = []
    compared = []
    bootstrap = UserBootstrap(task.split.valid.user, seed=seed)
    for run, checkpoint in zip(runs, loaded, strict=True):
        if checkpoint.data["fingerprint"] != task.data["fingerprint"]:
            raise CheckpointError(f"{run}: trained on other data than {task.data['name']}")
        if _cut(checkpoint, dataset) != _cut(first, dataset):
            raise CheckpointError(f"{run}: asked in another way than {runs[0]}: their [data] settings differ")
        asked = _task(dataset, checkpoint, tasks)
        lists = _lists(checkpoint, asked)
        values.append(np.asarray(ndcg(lists, task.split.valid, task.split.k), np.float64))
        best = best_epoch(checkpoint.history)
        compared.append(
            Compared(
                str(run),
                _differing(first.settings, checkpoint.settings),
                len(checkpoint.history),
                best,
                checkpoint.history[best - 1]["loss"],
                [round(epoch["valid_ndcg"], 4) for epoch in checkpoint.history],
                checkpoint.history[-1].get("batch"),
                bootstrap.estimate(values[-1]),
                bootstrap.difference(values[-1], values[0]) if len(values) > 1 else None,
                long_histories(checkpoint, asked, seed) if isinstance(checkpoint, Checkpoint) else None,
            )
        )
    return compared


def how_asked(data: DataSettings, manifest: DatasetManifest) -> dict[str, Any]:
    """How a run was cut and asked; a key that an older run does not have is its default, "auto" what that is of these data."""
    settings = dataclasses.asdict(data) | {"protocol": protocol_of(data, manifest)}
    return {key: value for key, value in settings.items() if key not in _TOLD}


def write_comparison(
    compared: list[Compared], task_name: str, fingerprint: str, path: Path, trained: Mapping[str, Any] | None = None
) -> None:
    """As JSON, whole or not at all; `trained`: what is known of how each run was trained, by its name. Raises TrainerError."""
    check_folder(path.parent)
    result = {
        "format": FORMAT,
        "name": task_name,
        "fingerprint": fingerprint,
        "part": "valid",
        **measured(),
        "runs": [dataclasses.asdict(each) | {"run": Path(each.run).name} for each in compared],
    }
    if trained:
        result["trained"] = trained
    write_whole(path, to_text(result))


def to_table(compared: list[Compared]) -> Table:
    """For the terminal."""
    table = Table()
    for head in ("run", "differs in", "epochs", "loss", "validation ndcg", "against the first", f"of all, of the last {LAST}"):
        table.add_column(head, overflow="fold")  # a name that is cut short names nothing
    for each in compared:
        differs = ", ".join(f"{key} = {value}" for key, value in each.settings.items())
        if "train.lanes" in each.settings and each.batch is not None:
            differs += f" (there were {each.batch})"
        found = each.against
        said = "" if found is None else f"{found.ratio:.3f}x ({found.interval()}), p {found.p:.3f}"
        figure = figure_words(each.ndcg.mean, each.ndcg.standard_error)
        beyond = each.long and each.long.difference
        long = f"{beyond.ratio:.3f}x, p {beyond.p:.3f}" if beyond else ""
        epochs = f"{each.epochs} (best {each.best_epoch})"
        table.add_row(Path(each.run).name, differs, epochs, f"{each.loss:.3f}", figure, said, long)
    if any(each.long and each.long.users for each in compared):
        table.caption = f"Last column: users with more than {LONG} events, all of them folded against the last {LAST}."
    return table


def load_best(run: Path) -> Checkpoint | EncoderCheckpoint:
    """A run of our net or of a neural baseline, finished or not, with its best weights so far. Raises CheckpointError."""
    path = run / CHECKPOINT
    try:
        found: Checkpoint | EncoderCheckpoint = load_checkpoint(path)
    except CheckpointError as error:
        if not path.exists():
            raise
        try:
            found = load_encoder(path)
        except CheckpointError:
            raise error from None
    if not found.history:
        raise CheckpointError(f"{path}: has not finished an epoch yet")
    if found.training:
        found.net.load_state_dict(found.training["best"])
    found.net.eval()
    return found


def _task(dataset: Dataset, checkpoint: Checkpoint | EncoderCheckpoint, known: dict[Told, Task]) -> Task:
    """What a run is asked, told what it was trained with; `known` is for runs that are cut alike."""
    settings = DataSettings(**checkpoint.settings["data"])
    told = settings.text_encoder, settings.items_only
    if told not in known:
        text = checkpoint.item_text if isinstance(checkpoint, Checkpoint) else None
        known[told] = make_task(dataset, settings, None if text is None else text.numpy())
    return known[told]


def _lists(checkpoint: Checkpoint | EncoderCheckpoint, task: Task) -> npt.NDArray[np.int32]:
    split = task.split
    if isinstance(checkpoint, Checkpoint):
        return ranked_lists(checkpoint.net, task.inputs, task.seq, split, split.valid)
    length = int(checkpoint.settings["model"]["length"])
    return encoder_lists(checkpoint.net, task.seq, split.valid, length, split.k, split.filter_seen)


def _cut(checkpoint: Checkpoint | EncoderCheckpoint, dataset: Dataset) -> dict[str, Any]:
    return how_asked(DataSettings(**checkpoint.settings["data"]), dataset.manifest)


def _differing(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What both have and have otherwise, as "table.key"; what a run of before did not know yet had its default."""
    if first.get("architecture") != other.get("architecture"):
        return {"architecture": other.get("architecture", "longwave")}
    defaults: dict[str, dict[str, Any]] = {"train": dataclasses.asdict(TrainSettings()) | BEFORE, "model": model_defaults()}
    data = dataclasses.asdict(DataSettings())
    before, now = (data | each["data"] for each in (first, other))
    found = {f"data.{key}": now[key] for key in _TOLD if before[key] != now[key]}
    for table, default in defaults.items():
        before, now = (default | each[table] for each in (first, other))
        found |= {f"{table}.{key}": now[key] for key in sorted(now) if key in before and before[key] != now[key]}
    if found.get("train.teacher"):
        found["train.teacher"] = Path(found["train.teacher"]).name  # where it lies on this machine says nothing
    return found
