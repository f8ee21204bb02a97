"""What an update costs and what it is worth, beside a full training on the same events: `longwave-train measure-update`.

Only what lies before the test part of the usual split is used: an older model, then so many new events, then questions.

    | old: what the base model is trained on | new: 1% | asked | (test part: never asked) |
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from model.assess import load_run
from model.benchmark.names import find
from model.benchmark.run import to_text
from model.checkpoint import Checkpoint, load_checkpoint
from model.data.build import Dataset, build_dataset
from model.data.dataset import to_sequences, write_dataset
from model.data.sequences import Queries, Sequences
from model.data.splits import every_question, select, split_at
from model.errors import TrainerError
from model.files import check_folder, write_whole
from model.inputs import Inputs
from model.intervals import UserBootstrap
from model.live import live_lists
from model.loop import CHECKPOINT, Report
from model.machine import describe_commit, describe_machine
from model.metrics import ndcg, recall
from model.publish import publish_task
from model.settings import Settings, UpdateSettings, load_settings
from model.task import load_task, protocol_of
from model.train import Trainer
from model.update.newer import in_the_models_rows
from model.update.origin import read_origin
from model.update.run import judged, refresh

NEW, ASKED = 0.86, 0.87
"""Places among all events, by time, where the new ones and the questions begin: a hundredth of all events is new."""
KEEP = {"valid_quantile": 0.99, "test_quantile": 0.9999}
"""How both trainings are cut: as one does who trains for tomorrow, with a little for the choice of the epoch."""
STAGES = "seconds.json"


@dataclass(frozen=True)
class Moments:
    """Unix ms: when the new events begin, when the questions begin, and when the test part does."""

    new: int
    asked: int
    test: int


def measure(
    name: str,
    preset: str,
    seed: int,
    data: Path | None,
    out: Path,
    work: Path,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report | None = None,
) -> Path:
    """Train without and with the new events, update the one, ask all three; writes `out/NAME-PRESET-SEED.json`.

    Args:
        work: folder of data and runs; a finished run there is kept.

    Raises:
        TrainerError: bad input, or a stage failed; no result is written.
    """
    settings = load_settings(preset)
    check_folder(out)
    called, dataset, _ = find(name, data, offline)
    settings = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, **KEEP),  # type: ignore[arg-type]
        train=dataclasses.replace(settings.train, seed=seed),
    )
    moments = cut(dataset, settings, load_settings(preset).data.test_quantile)
    folder = work / f"{called}-{Path(preset).stem}-{seed}"
    runs, seconds = {}, {}
    for which, until in (("base", moments.new), ("retrained", moments.asked)):
        say(f"{called}: training {which}")
        runs[which], seconds[which] = _trained(before(dataset, until), settings, folder / which, report)
    say(f"{called}: update")
    with tempfile.TemporaryDirectory() as bundles:
        _, task = load_run(folder / "base" / "run", folder / "base" / "data")
        exported = publish_task(runs["base"], task, task.seq.offsets[1:], Path(bundles), [])
        result, updated = updates(exported.folder, folder / "retrained" / "data", settings.update)
    seconds["update"] = result.pop("seconds")
    say(f"{called}: asking")
    figures = compare(before(dataset, moments.test), moments, {**runs, "updated": updated})
    full = seconds["retrained"]
    path = out / f"{called}-{Path(preset).stem}-{seed}.json"
    described = {
        "name": called,
        "preset": Path(preset).stem,
        "seed": seed,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "data": {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint},
        "cut": dataclasses.asdict(moments) | {"data": KEEP},
        "settings": {"update": dataclasses.asdict(settings.update), **settings.as_dict()},
        "update": result,
        "seconds": seconds,
        "share_of_full_training": {
            "cpu": seconds["update"]["cpu"] / full["training_cpu"],
            "wall": seconds["update"]["wall"] / full["training_wall"],
        },
        "asked": figures,
    }
    write_whole(path, to_text(described))
    return path


def cut(dataset: Dataset, settings: Settings, test_quantile: float) -> Moments:
    """Where the new events and the questions begin."""
    positive = {t.name for t in dataset.manifest.event_types if t.polarity == "positive"}
    bought = dataset.events.filter(pl.col("type").is_in(positive) & pl.col("item_id").is_not_null()).get_column("timestamp")
    test = int(np.quantile(bought.to_numpy(), test_quantile, method="higher"))
    times = dataset.events.get_column("timestamp").to_numpy()
    if protocol_of(settings.data, dataset.manifest) == "loo" or len(times) < 1000:
        raise TrainerError(f"{dataset.manifest.name}: has no common time, or too few events, to go on from one day to the next")
    new, asked = (int(times[int(place * len(times))]) for place in (NEW, ASKED))
    if not new < asked < test:
        raise TrainerError(f"{dataset.manifest.name}: its events are too close to each other in time")
    return Moments(new, asked, test)


def before(dataset: Dataset, until_ms: int) -> Dataset:
    """What was known at a moment: the events before it, their items and their users."""
    manifest = dataset.manifest
    events = dataset.events.filter(pl.col("timestamp") < until_ms)
    return build_dataset(
        events,
        dataset.cleaning,
        name=manifest.name,
        source=manifest.source,
        licence=manifest.licence,
        event_types=manifest.event_types,
        items=dataset.items.join(events.select(pl.col("item_id").unique()), on="item_id", how="semi"),
        users=dataset.users.join(events.select(pl.col("user_id").unique()), on="user_id", how="semi"),
        baskets=manifest.baskets,
        timed=manifest.timed,
        repeats=manifest.repeats,
    )


def updates(bundle: Path, events: Path, settings: UpdateSettings) -> tuple[dict[str, Any], Checkpoint]:
    """An update up to and with its gate, whatever that says, and the model that it made."""
    wall, cpu = time.monotonic(), time.process_time()
    refreshed = refresh(read_origin(bundle), events, settings)
    judging = time.monotonic()
    judgement = judged(refreshed)
    ended, learned = time.monotonic(), refreshed.learned
    return {
        "new_events": int(refreshed.newer.new_events.sum()),
        "old_events": int((~refreshed.newer.new_events).sum()),
        "new_items": refreshed.newer.seq.items - refreshed.newer.old_items,
        "learned": learned.learned,
        "replayed": learned.replayed,
        "users": learned.users,
        "refreshed_numbers": learned.refreshed,
        "gate": dataclasses.asdict(judgement),
        "published": judgement.after >= judgement.before * (1 - settings.margin),
        "seconds": {
            "wall": ended - wall,
            "cpu": time.process_time() - cpu,
            "stages": refreshed.seconds | {"gate": ended - judging},
        },
    }, refreshed.checkpoint


def compare(dataset: Dataset, moments: Moments, models: dict[str, Checkpoint]) -> dict[str, Any]:
    """All models on the questions after the new events, by item id: each has a vocabulary of its own."""
    protocol = protocol_of(load_settings("small").data, dataset.manifest)
    common = to_sequences(dataset, vocabulary_until_ms=moments.asked)
    split = split_at(
        common, protocol, every_question(common, protocol), moments.asked, moments.asked, filter_seen=not dataset.manifest.repeats
    )
    queries, k = split.test, split.k
    lists = {name: _lists(checkpoint, dataset, common, queries, split.train_end, k) for name, checkpoint in models.items()}
    values = {name: {"ndcg": ndcg(ranked, queries, k), "recall": recall(ranked, queries, k)} for name, ranked in lists.items()}
    recent = np.zeros(common.users, bool)
    recent[common.user[(common.time >= moments.new) & (common.time < moments.asked)]] = True
    groups = {
        "all": np.ones(len(queries), bool),
        "did_nothing_new": ~recent[queries.user],
        "did_something_new": recent[queries.user],
    }
    out: dict[str, Any] = {"k": k, "queries": len(queries), "users": len(np.unique(queries.user))}
    for group, chosen in groups.items():
        if not chosen.any():
            continue
        asked = select(queries, chosen)
        bootstrap = UserBootstrap(asked.user)
        of = {
            name: {f"{m}@{k}": dataclasses.asdict(bootstrap.estimate(v[chosen])) for m, v in metrics.items()}
            for name, metrics in values.items()
        }
        against = {
            f"updated - {other}": dataclasses.asdict(
                bootstrap.difference(values["updated"]["ndcg"][chosen], values[other]["ndcg"][chosen])
            )
            for other in models
            if other != "updated"
        }
        out[group] = {"queries": len(asked), "models": of, f"ndcg@{k}": against}
    return out


def _lists(
    checkpoint: Checkpoint, dataset: Dataset, common: Sequences, queries: Queries, known: npt.NDArray[np.int64], k: int
) -> npt.NDArray[np.int32]:
    """(Q, k) rows of the common vocabulary."""
    seq = in_the_models_rows(to_sequences(dataset, checkpoint.item_ids), checkpoint)
    ranked = live_lists(checkpoint, seq, Inputs.of(seq), queries, k, known, not dataset.manifest.repeats)
    row = {item: index for index, item in enumerate(common.item_ids)}
    # An item that only one model has would be a miss; -1 at the end of a row stays -1.
    rows = np.array([*(row.get(item, -1) for item in checkpoint.item_ids), -1], np.int32)
    return rows[ranked]


def _trained(dataset: Dataset, settings: Settings, folder: Path, report: Report | None) -> tuple[Checkpoint, dict[str, float]]:
    data, run, kept = folder / "data", folder / "run", folder / STAGES
    if kept.exists():
        return load_checkpoint(run / CHECKPOINT), json.loads(kept.read_text(encoding="utf-8"))
    write_dataset(dataset, data)
    wall, cpu = time.monotonic(), time.process_time()
    trainer = Trainer(load_task(data, settings.data), settings, run)
    prepared_wall, prepared_cpu = time.monotonic(), time.process_time()
    checkpoint = trainer.run(report)
    seconds = {
        "wall": time.monotonic() - wall,
        "cpu": time.process_time() - cpu,
        "training_wall": time.monotonic() - prepared_wall,
        "training_cpu": time.process_time() - prepared_cpu,
        "epochs": float(len(checkpoint.history)),
    }
    write_whole(kept, json.dumps(seconds, indent=2) + "\n")
    return checkpoint, seconds
