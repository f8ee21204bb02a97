"""Learning anew from all that lies before the test part, once validation has said for how many epochs.

What is chosen on a validation part has not learned from it, and those are the newest events and items that there are
(docs/adr/0030-refit.md says what that has been worth).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint import Checkpoint
from model.data.build import Dataset
from model.distributed import group
from model.history import best_epoch, best_ndcg
from model.loop import Report, check_free, remove_run
from model.settings import ConfigError, DataSettings, Settings
from model.task import make_task
from model.train import Trainer
from model.update.origin import Origin

CHOICE = "choice"
"""The folder, in that of a run, of the training that chose the epoch."""


def after_choice(settings: Settings, history: Sequence[dict[str, Any]]) -> Settings:
    """What is trained anew: no validation part, and as many epochs, on the same course of the rate, as were best."""
    train = replace(settings.train, refit=False, stop_after=best_epoch(history))
    return replace(settings, data=learned_whole(settings.data), train=train)


def learned_whole(data: DataSettings) -> DataSettings:
    """The same cut of the test part, and everything before it to learn from."""
    return replace(data, valid_quantile=data.test_quantile)


def with_validation(data: DataSettings) -> DataSettings:
    """The same cut of the test part; where there was no validation part, one half as long before it, to choose baselines on."""
    if data.valid_quantile < data.test_quantile:
        return data
    return replace(data, valid_quantile=data.test_quantile * (1 - (1 - data.test_quantile) / 2))


def train_run(
    dataset: Dataset,
    settings: Settings,
    out: Path,
    *,
    origin: Origin | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report | None = None,
) -> Checkpoint:
    """Train as the settings say; with `train.refit` twice, first in `out/choice`.

    Args:
        origin: as of `Trainer`. resume, overwrite: as of `check_free`, for what lies in `out`.

    Raises:
        TrainerError: bad input, or a training that failed; what was there before is there still.
    """
    for folder in (out, out / CHOICE):
        check_free(folder, resume, overwrite)
    if settings.train.refit:
        chosen = _train(dataset, settings, out / CHOICE, origin, resume, overwrite, say, report)
        if overwrite and group().first:
            remove_run(out)
        group().wait()
        epoch, figure = best_epoch(chosen.history), best_ndcg(chosen.history)
        say(f"epoch {epoch} is best on validation, {figure:.4f}; learning anew, so long, from all before the test part")
        settings, overwrite = after_choice(settings, chosen.history), False
    return _train(dataset, settings, out, origin, resume, overwrite, say, report)


def _train(
    dataset: Dataset,
    settings: Settings,
    folder: Path,
    origin: Origin | None,
    resume: bool,
    overwrite: bool,
    say: Callable[[str], None],
    report: Report | None,
) -> Checkpoint:
    task = make_task(dataset, settings.data)
    if settings.train.refit and task.split.protocol == "loo":
        raise ConfigError(
            "train.refit must be false where a data set is asked leave-one-out: what would be learned from is asked"
        )
    trainer = Trainer(task, settings, folder, origin)
    group().wait()
    if overwrite and group().first:
        remove_run(folder)
    group().wait()
    if resume and trainer.resume():
        say(f"going on after epoch {trainer.epoch}")
    if trainer.finished is None:
        return trainer.run(report)
    say(f"already finished after {len(trainer.finished.history)} epochs -> {folder}")
    return trainer.finished
