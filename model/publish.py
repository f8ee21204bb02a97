"""`longwave-train export`: a trained run as a verified bundle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from model.assess import known_before, load_run
from model.checkpoint import Checkpoint
from model.data.sequences import Int64
from model.export.bundle import Catalogue, Exported, export_bundle, longest_sequences
from model.export.verify import ExportError
from model.history import best_ndcg
from model.loop import COLD
from model.popularity import known_popularity
from model.rounding import as_stored, with_stored_weights
from model.task import Task
from model.text import TextEncoder


def publish(
    run: Path, data: Path, out: Path, everything: bool = False, item_vectors: str = "float32", weights: str = "float32"
) -> Exported:
    """Export, verify and publish `out/<model_id>`.

    Args:
        everything: popularity starts from all events; by default from those before the held-out test part, so that the
            bundle can be measured on it.
        item_vectors, weights: how those of the items and those of the graphs are stored, float32 or int8.

    Raises:
        TrainerError: run or data cannot be used, or the verification failed; nothing was published.
    """
    check_destination(out)  # before the minutes of work, not after
    checkpoint, task = load_run(run, data)
    ends = task.seq.offsets[1:]
    if not everything:
        ends = task.split.train_end if task.split.protocol == "loo" else known_before(task, task.split.cut_ms)
    best = best_ndcg(checkpoint.history)
    metrics = []
    if not math.isnan(best):
        metrics.append({"protocol": f"{task.split.protocol}, validation", "name": f"ndcg@{task.split.k}", "value": best})
    cold = read_cold(run)
    return publish_task(checkpoint, task, ends, out, metrics, item_vectors=item_vectors, weights=weights, cold=cold)


def read_cold(run: Path) -> dict[str, Any] | None:
    """What `measure-cold` has left beside a run's checkpoint. Raises ExportError: it is damaged."""
    try:
        cold = json.loads((run / COLD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ExportError(f"{run / COLD}: cannot be read: {error}") from None
    if not isinstance(cold, dict):
        raise ExportError(f"{run / COLD}: not an object; measure again")
    return cold


def publish_task(
    checkpoint: Checkpoint,
    task: Task,
    ends: Int64,
    out: Path,
    metrics: Sequence[dict[str, Any]],
    encoder: TextEncoder | None = None,
    item_vectors: str = "float32",
    weights: str = "float32",
    cold: dict[str, Any] | None = None,
) -> Exported:
    """Export, verify and publish a net with the items of its task, popularity from each user's events before row `ends[u]`.

    Args:
        encoder: the model's, where it is loaded already. item_vectors, weights: as of `publish`.
        cold: as of `export_bundle`.

    Raises:
        ExportError: the verification failed; nothing was published.
    """
    checkpoint = replace(checkpoint, net=with_stored_weights(checkpoint.net, weights))
    seq, net = task.seq, checkpoint.net
    known = np.arange(len(seq.item)) < ends[seq.user]
    popularity = known_popularity(seq, net.config.popularity_half_lives_s, ends)
    as_of = int(seq.time[known].max())
    encoder_name = checkpoint.settings["data"]["text_encoder"]
    items = task.items
    catalogue = Catalogue(
        ids=seq.item_ids,
        titles=items.get_column("title").to_list(),
        categories=items.get_column("categories").fill_null(pl.lit([], dtype=pl.List(pl.String))).to_list(),
        text=task.item_text,
        features=task.item_features,
        feature_names=task.feature_names,
        vectors=task.vectors,
        popularity=popularity.at(as_of),
        as_of_ms=as_of,
        labels=task.labels,
    )
    with torch.no_grad():
        matrix, _ = net.item(task.inputs.item_text, task.inputs.item_features)
    if encoder is None and encoder_name:
        encoder = TextEncoder(encoder_name)
    return export_bundle(
        checkpoint,
        catalogue,
        longest_sequences(task.inputs, seq.offsets, as_stored(matrix, item_vectors)),
        out,
        encoder,
        metrics,
        "exclude" if task.split.filter_seen else "recommend",
        item_vectors,
        weights,
        cold,
    )


def check_destination(out: Path) -> None:
    """Refuse a folder that no bundle can be published in.

    Raises:
        ExportError: `out` is a file, lies below one or cannot be written, or `out/current` is no link.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ExportError(f"{there}: a file, expected the folder of bundles")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ExportError(f"{there}: cannot be written")
    current = out / "current"
    if current.exists() and not current.is_symlink():
        raise ExportError(f"{current}: not a link, which is what `export` makes there; move it away or take another --out")
