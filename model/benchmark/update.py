"""What an update is worth and what it costs, beside a training from scratch on the same events, in one run.

old:        learns | chooses its epoch |
updated:                               | new: a hundredth |
retrained:  learns all of this, as many epochs as old kept |
asked:                                                    | the same questions of all three |
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from model.benchmark.heading import heading
from model.benchmark.names import as_asked, find
from model.benchmark.renewal import Cost, renew, train_anew, train_old
from model.benchmark.run import to_text
from model.checkpoint import Checkpoint
from model.data.build import Dataset
from model.data.dataset import to_sequences
from model.data.dense import dense_matrix
from model.data.sequences import Queries
from model.data.splits import together
from model.errors import TrainerError
from model.files import check_folder, write_whole
from model.history import best_epoch
from model.inputs import Inputs
from model.intervals import UserBootstrap
from model.ledger import append, check_ledger
from model.live import live_lists
from model.loop import Report
from model.metrics import ndcg, recall
from model.settings import load_settings
from model.task import Task, event_text, protocol_of
from model.text import TextEncoder
from model.update.newer import in_the_models_rows

FORMAT = 1
UPDATE = "update"
"""The folder of these results, within that of all."""
PARTS = {"valid": (0.87, 0.9), "test": (0.9, 1.0)}
"""Of which part the questions are: where they begin and end, as quantiles of the times of all positive events."""
NEW = 0.01
"""The usual share of new events."""
OLD, UPDATED, RETRAINED = "old", "updated", "retrained"


def measure_update(
    name: str,
    preset: str,
    seed: int,
    part: str,
    out: Path,
    work: Path,
    data: Path | None = None,
    new: float = NEW,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report | None = None,
) -> Path:
    """Train the old model, update it, train anew, ask all three; writes `out/update/NAME-PRESET-PART-SEED.json`, with
    `-new-PERCENT` behind the seed where it is not the usual share.

    Args:
        part: "valid", for whoever chooses settings, or "test", a look at which is noted in `out/ledger.jsonl`.
        new: the share of all events before the questions that is new, and, before those, that the old model chooses its epoch by.
        work: the folder of trained runs; a finished one of the same data and settings is kept, with its cost.

    Raises:
        TrainerError: bad input, or a stage failed; no result is written.
    """
    if part not in PARTS:
        raise TrainerError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if not 0 < new < 0.5:
        raise TrainerError(f"new must be a share above 0 and below 0.5, got {new}")
    settings = load_settings(preset)
    called, dataset, protocols = find(name, data, offline)
    protocol = protocols[-1] if protocols else protocol_of(settings.data, dataset.manifest)
    if protocol == "loo":
        raise TrainerError(f"{called}: leave-one-out has no common time, and so nothing that is new")
    settings = as_asked(settings, protocol, seed)
    check_folder(out / UPDATE)
    ledger = out / "ledger.jsonl"
    if part == "test":
        check_ledger(ledger)
    begin, end = PARTS[part]
    folder = work / f"{called}-{Path(preset).stem}-{part}-{seed}"
    say(f"{called}: training without what is new")
    old = train_old(dataset, settings, begin, new, folder / OLD, report)
    say(f"{called}: training with it")
    retrained = train_anew(dataset, settings, begin, end, best_epoch(old.checkpoint.history), folder / RETRAINED, report)
    say(f"{called}: updating")
    with tempfile.TemporaryDirectory() as place:
        renewed = renew(dataset, old, retrained.task.split.valid_cut_ms, settings, Path(place))
    models = {OLD: old.checkpoint, UPDATED: renewed.checkpoint, RETRAINED: retrained.checkpoint}
    asked = compare(dataset, retrained.task, asked_of(retrained.task, part), models)
    beside = "" if new == NEW else f"-new-{100 * new:g}"
    path = out / UPDATE / f"{called}-{Path(preset).stem}-{part}-{seed}{beside}.json"
    result = {
        **heading(FORMAT, called, preset=Path(preset).stem, part=part, seed=seed),
        "data": {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint},
        "protocol": protocol,
        "new": new,
        "moments_ms": {
            "old_learns_until": old.task.split.valid_cut_ms,
            "new_from": old.task.split.cut_ms,
            "asked_from": retrained.task.split.valid_cut_ms,
            "asked_until": retrained.task.split.cut_ms if part == "valid" else dataset.manifest.last_ms,
        },
        "settings": settings.as_dict() | {"update": dataclasses.asdict(settings.update)},
        "epochs": {"full_training": len(old.checkpoint.history), "kept": best_epoch(old.checkpoint.history)},
        "update": renewed.described,
        "served": UPDATED if renewed.published else OLD,
        "seconds": {
            "full_training": old.cost._asdict(),
            "retraining": retrained.cost._asdict(),
            "update": renewed.cost._asdict(),
        },
        "share": {
            "of_full_training": _share(renewed.cost, old.cost),
            "of_retraining": _share(renewed.cost, retrained.cost),
        },
        "asked": asked,
    }
    write_whole(path, to_text(result))
    if part == "test":
        append(ledger, _ledger_line(result))
    return path


def asked_of(task: Task, part: str) -> Queries:
    """The questions after what the retrained model has learned from."""
    return together(task.split.valid, task.split.test) if part == "test" else task.split.valid


def compare(dataset: Dataset, task: Task, queries: Queries, models: dict[str, Checkpoint]) -> dict[str, Any]:
    """All models on the same questions, live, by the code of `evaluate`, and the others against the retrained one, by ndcg.

    Args:
        task: of the retrained model, whose vocabulary is everything that can be asked for.
    """
    k = task.split.k
    lists = {name: _lists(checkpoint, dataset, task, queries) for name, checkpoint in models.items()}
    values = {name: {"ndcg": ndcg(ranked, queries, k), "recall": recall(ranked, queries, k)} for name, ranked in lists.items()}
    bootstrap = UserBootstrap(queries.user)
    best = values[RETRAINED]["ndcg"]
    return {
        "k": k,
        "queries": len(queries),
        "users": len(np.unique(queries.user)),
        "models": {
            name: {f"{metric}@{k}": dataclasses.asdict(bootstrap.estimate(of)) for metric, of in metrics.items()}
            for name, metrics in values.items()
        },
        "times_retrained": {
            name: dataclasses.asdict(bootstrap.ratio(metrics["ndcg"], best))
            for name, metrics in values.items()
            if name != RETRAINED
        },
        "updated_minus_old": dataclasses.asdict(bootstrap.difference(values[UPDATED]["ndcg"], values[OLD]["ndcg"])),
    }


def _lists(checkpoint: Checkpoint, dataset: Dataset, task: Task, queries: Queries) -> npt.NDArray[np.int32]:
    """(Q, k) lists of a model in its own vocabulary, then in rows of the task's."""
    seq = in_the_models_rows(to_sequences(dataset, checkpoint.item_ids), checkpoint)
    text, said = checkpoint.item_text, None
    if text is not None and seq.text:
        said = event_text(seq, TextEncoder(checkpoint.settings["data"]["text_encoder"]))
    features = None
    if checkpoint.net.config.feature_width:
        items = pl.DataFrame({"item_id": seq.item_ids}).join(dataset.items, on="item_id", how="left", maintain_order="left")
        features = dense_matrix(items, dataset.manifest.item_features, dataset.manifest.item_vectors)
    inputs = Inputs.of(seq, None if text is None else text.numpy(), said, features)
    split = task.split
    ranked = live_lists(checkpoint, seq, inputs, queries, split.k, split.train_end, split.filter_seen)
    row = {item: index for index, item in enumerate(task.seq.item_ids)}
    # -1, where a list ends, finds the last entry and stays what it is.
    return np.array([*(row.get(item, -1) for item in seq.item_ids), -1], np.int32)[ranked]


def _share(update: Cost, training: Cost) -> dict[str, float]:
    return {"wall": update.wall / training.wall, "cpu": update.cpu / training.cpu}


def _ledger_line(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": result["date"],
        "command": "measure-update",
        "data": result["data"]["name"],
        "fingerprint": result["data"]["fingerprint"],
        "protocol": result["protocol"],
        "part": result["part"],
        "queries": result["asked"]["queries"],
        "run": f"{result['name']}-{result['preset']}-{result['seed']}",
        "commit": result["commit"],
        "metrics": {
            model: {metric: round(estimate["mean"], 6) for metric, estimate in metrics.items()}
            for model, metrics in result["asked"]["models"].items()
        },
    }
