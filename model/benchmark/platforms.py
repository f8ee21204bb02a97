"""What it is worth to go on from a general model on one platform: both asked there, and one that learned there alone beside them.

general:      learns what was answered anywhere
fine-tuned:   goes on from its bundle (`train --init-from BUNDLE --platform P`)
there alone:  learns from the beginning what was answered on P (`train --platform P`)
asked:        the same questions of P's test part of all three. All three read what users did elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.assess import OURS
from model.baselines.tuning import Tuned
from model.benchmark.contenders import Contender, contender
from model.benchmark.heading import heading
from model.benchmark.names import as_asked, find
from model.benchmark.run import to_text
from model.checkpoint import load_checkpoint
from model.data.build import Dataset
from model.errors import TrainerError
from model.evaluate import EvaluationReport, baseline_lists, evaluate
from model.files import check_folder, write_whole
from model.ledger import check_ledger, note
from model.loop import CHECKPOINT, Report
from model.publish import publish_task
from model.settings import Settings, load_settings
from model.task import Task, make_task, protocol_of
from model.update.origin import Origin, read_origin

FORMAT = 1
PLATFORMS = "platforms"
"""The folder of these results, within that of all."""
GENERAL, FINE_TUNED, ALONE = "general", "fine-tuned", "there alone"


def measure_platforms(
    name: str,
    preset: str,
    seed: int,
    out: Path,
    work: Path,
    data: Path | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report | None = None,
) -> Path:
    """Train a general model, go on from it on each platform, train one there alone, and ask all of them there.

    Args:
        work: the folder of trained runs; a killed one goes on, a finished one is kept.

    Returns:
        The result, `out/platforms/NAME-PRESET-SEED.json`: written whole, after the looks are in `out/ledger.jsonl`.

    Raises:
        TrainerError: bad input, or a stage failed; no result is written.
    """
    settings = load_settings(preset)
    called, dataset, protocols = find(name, data, offline)
    settings = on_platform(as_asked(settings, (protocols or (protocol_of(settings.data, dataset.manifest),))[-1], seed), "")
    ledger, title = out / "ledger.jsonl", f"{called}-{Path(preset).stem}-{seed}"
    check_folder(out / PLATFORMS)
    check_ledger(ledger)
    everywhere = make_task(dataset, settings.data)
    tasks = tasks_of(dataset, settings, everywhere)
    heads = heading(FORMAT, called, preset=Path(preset).stem, seed=seed)

    def trained(what: str, task: Task, asked: Settings, origin: Origin | None = None) -> Contender:
        say(f"{title}: {what}")
        found = contender(OURS, task, asked, work / title / what.replace(" ", "-"), True, False, report, origin)
        assert found is not None  # whoever is to be trained is there in the end
        return found

    general = trained(GENERAL, everywhere, settings)
    bundle = publish_task(
        load_checkpoint(work / title / GENERAL / CHECKPOINT), everywhere, everywhere.split.train_end, work / title / "bundles", []
    )
    origin = read_origin(bundle.folder)
    models = {
        platform: {
            GENERAL: general,
            FINE_TUNED: trained(f"{FINE_TUNED}, {platform}", task, on_platform(settings, platform), origin),
            ALONE: trained(f"{ALONE}, {platform}", task, on_platform(settings, platform)),
        }
        for platform, task in tasks.items()
    }
    asked: dict[str, Any] = {}
    for platform, task in tasks.items():
        say(f"{title}: asking {len(task.split.test):,} test queries on {platform}")
        measured, tuned = ask(task, models[platform], settings)
        note(ledger, "measure-platforms", measured, f"{title}, {platform}")
        asked[platform] = {
            "trained": {each: models[platform][each].describe() for each in (FINE_TUNED, ALONE)},
            "tuned_on_validation": {f"ndcg@{task.split.k}": tuned.valid_ndcg, "queries": tuned.queries},
            "report": dataclasses.asdict(measured),
        }
    path = out / PLATFORMS / f"{title}.json"
    result = {
        **heads,
        "data": {"name": dataset.manifest.name, "fingerprint": dataset.manifest.fingerprint},
        "protocol": everywhere.split.protocol,
        "k": everywhere.split.k,
        "trained": {GENERAL: general.describe()},
        "platforms": asked,
    }
    write_whole(path, to_text(result))
    return path


def on_platform(settings: Settings, platform: str) -> Settings:
    """The same settings for one platform; "" is all of them."""
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, platform=platform))


def tasks_of(dataset: Dataset, settings: Settings, everywhere: Task) -> dict[str, Task]:
    """The task of each platform of a data set, in the order of its names.

    Raises:
        TrainerError: there is no choice between platforms, or one of them has nothing to learn from or to be asked.
    """
    names = sorted(everywhere.seq.platforms)
    if len(names) < 2:
        raise TrainerError(f"{dataset.manifest.name}: has {len(names)} platforms, expected two or more")
    tasks = {name: make_task(dataset, on_platform(settings, name).data, everywhere.item_text) for name in names}
    for name, task in tasks.items():
        parts = {"training": task.train_queries, "validation": task.split.valid, "test": task.split.test}
        for part, queries in parts.items():
            if not len(queries):
                raise TrainerError(f"{dataset.manifest.name}: the {part} part asks nothing on {name}: too few events")
    return tasks


def ask(task: Task, models: dict[str, Contender], settings: Settings) -> tuple[EvaluationReport, Tuned]:
    """The models and the simple baselines on the test part of one platform, the fine-tuned one against each of the others."""
    lists = {name: each.lists(task) for name, each in models.items()}
    train = settings.train
    ranked, chosen, tuned = baseline_lists(task.seq, task.split, queries=train.valid_queries, seed=train.seed)
    measured = evaluate(
        task.seq,
        task.split,
        lists | ranked,
        dataset=task.data["name"],
        fingerprint=task.data["fingerprint"],
        ours=FINE_TUNED,
        settings=chosen,
    )
    return measured, tuned
