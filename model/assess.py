"""`longwave-train evaluate`: a trained run on its test part, with the baselines from the same run beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.data.sequences import Split
from model.data.splits import select
from model.evaluate import EvaluationReport, baseline_lists, evaluate
from model.live import live_lists
from model.loop import CHECKPOINT
from model.rounding import with_stored_weights
from model.settings import ConfigError, DataSettings
from model.task import Task, load_task

OURS = "longwave"
K = 20


def assess(
    run: Path, data: Path, limit: int = 0, platform: str = "", item_vectors: str = "float32", weights: str = "float32"
) -> EvaluationReport:
    """Our lists come from `forward()` in torch; ours and the baselines meet every event in the order of one live schedule.

    Args:
        limit: ask only the first so many test queries in live order; 0 asks all.
        platform: ask only what was answered there; "" asks wherever the run was trained for.
        item_vectors, weights: as what the bundle stores them, float32 or int8.

    Raises:
        TrainerError: run or data cannot be used, or do not belong together.
    """
    checkpoint, task = load_run(run, data, platform)
    platform = platform or checkpoint.settings["data"].get("platform", "")
    for part, asked in (("validation", task.split.valid), ("test", task.split.test)):
        if not len(asked):
            where = f" on the platform {platform!r}" if platform else ""
            raise ConfigError(f"{data}: the {part} part of the {task.split.protocol!r} split asks nothing{where}: too few events")
    checkpoint = replace(checkpoint, net=with_stored_weights(checkpoint.net, weights))
    split = task.split
    if limit:
        split = replace(split, test=select(split.test, np.argsort(split.test.as_of, kind="stable")[:limit]))
    ours = own_lists(checkpoint, task, split, item_vectors)
    ranked, settings, _ = baseline_lists(task.seq, split, k=K)
    told = {"platform": platform, "item_vectors": item_vectors, "weights": weights}
    own = {key: value for key, value in told.items() if value not in ("", "float32")}
    vectors, _ = checkpoint.net.item(task.inputs.item_text, task.inputs.item_features)
    return evaluate(
        task.seq,
        split,
        {OURS: ours} | ranked,
        dataset=task.data["name"],
        fingerprint=task.data["fingerprint"],
        ours=OURS,
        settings={OURS: own, **settings},
        item_vectors=vectors.detach().numpy(),
    )


def own_lists(
    checkpoint: Checkpoint, task: Task, split: Split, item_vectors: str = "float32", last: int | None = None
) -> npt.NDArray[np.int32]:
    """(Q, K) lists of a trained net for the test queries of `split`, live but for leave-one-out; `last` as in `live_lists`."""
    live = split.protocol != "loo"
    known = known_before(task, split.cut_ms) if live else split.train_end
    asked = task.seq, task.inputs, split.test, K, known, split.filter_seen, live
    return live_lists(checkpoint, *asked, last=last, item_vectors=item_vectors)


def load_run(run: Path, data: Path, platform: str = "") -> tuple[Checkpoint, Task]:
    """A finished run and the task it was trained for, or that task on one platform.

    Raises:
        TrainerError: either is missing or damaged, the run has not finished, or the data are not those it was trained on.
    """
    checkpoint = load_checkpoint(run / CHECKPOINT)
    if checkpoint.training:
        raise CheckpointError(f"{run / CHECKPOINT}: training has not finished; go on with `longwave-train train --resume`")
    settings = DataSettings(**checkpoint.settings["data"])
    if platform:
        settings = replace(settings, platform=platform)
    task = load_task(data, settings, None if checkpoint.item_text is None else checkpoint.item_text.numpy())
    if task.data["fingerprint"] != checkpoint.data["fingerprint"]:
        raise CheckpointError(
            f"{run}: trained on data with fingerprint {checkpoint.data['fingerprint'][:12]}, "
            f"and {data} has {task.data['fingerprint'][:12]}"
        )
    return checkpoint, task


def known_before(task: Task, cut_ms: int) -> np.ndarray:
    """(U,) row after each user's last event before the test part: the baskets that begin before the cut, whole."""
    queries = task.split.test
    first = task.seq.offsets[1:].copy()
    np.minimum.at(first, queries.user, queries.position)
    # Events after the cut that nobody asks about (cancellations, say) are not known beforehand either.
    late = np.flatnonzero(task.seq.time >= cut_ms)
    np.minimum.at(first, task.seq.user[late], late)
    return first
