"""One benchmark from beginning to end: prepare -> train -> ask the test part -> note it in the ledger -> write the result."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.assess import OURS
from model.benchmark.cold_items import HEADLINE, ColdTask, cold_task, measure_cold_items
from model.benchmark.cold_users import measure_cold_users
from model.benchmark.contenders import MODELS, Contender, contender
from model.benchmark.heading import heading
from model.benchmark.names import BENCHMARKS, as_asked, find
from model.data.build import Dataset
from model.data.cold import hold_out
from model.distributed import group
from model.drifting import DriftReport
from model.errors import TrainerError
from model.evaluate import EvaluationReport, baseline_lists, evaluate
from model.files import check_folder, write_whole
from model.history import best_ndcg
from model.interests import InterestReport
from model.ledger import check_ledger, note
from model.loop import Report
from model.report import plain
from model.settings import Settings, load_settings
from model.task import Task, make_task, protocol_of

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders and files: results (`out`), trained runs (`work`), and the ledger; `data` is where data sets are looked for."""

    out: Path
    work: Path
    ledger: Path
    data: Path | None = None


def benchmark(
    name: str,
    preset: str,
    seed: int,
    places: Places,
    models: Sequence[str] = (OURS,),
    *,
    overwrite: bool = False,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report | None = None,
) -> Path:
    """Train the models that are not trained yet and measure all that are, with the baselines, on the test part.

    A model that an earlier call with the same name, preset and seed has trained stands in the result too, named or not.

    Returns:
        The result, `out/NAME-PRESET-SEED.json`: written whole, after the looks at the test part are in the ledger.

    Raises:
        TrainerError: bad input, a place that cannot be written, or a training that failed; no result is written.
    """
    for model in models:
        if model not in MODELS:
            raise TrainerError(f"{model}: no such model; known are {', '.join(MODELS)}")
    settings = load_settings(preset)
    check_folder(places.out)
    check_folder(places.work)
    check_ledger(places.ledger)
    called, dataset, protocols = find(name, places.data, offline)
    held_out = None
    if name in BENCHMARKS and BENCHMARKS[name].cold:
        if unfit := set(models) - {OURS}:
            raise TrainerError(f"{name}: {sorted(unfit)[0]} knows items by ID alone and cannot rank one that it never saw")
        held_out = hold_out(dataset)
        dataset = held_out.warm
    title = f"{called}-{Path(preset).stem}-{seed}"
    result: dict[str, Any] = {
        **heading(FORMAT, called, preset=Path(preset).stem, seed=seed),
        "data": _describe(dataset),
        "protocols": {},
    }
    for protocol in protocols or (protocol_of(settings.data, dataset.manifest),):
        asked = as_asked(settings, protocol, seed, held_out is not None)
        task = make_task(dataset, asked.data)
        trained = []
        for model in MODELS:
            if model in models:
                say(f"{title}, {protocol}: {model}")
            folder = places.work / title / protocol / model
            found = contender(model, task, asked, folder, model in models, overwrite and model in models, report)
            if found:
                trained.append(found)
                best = best_ndcg(found.history)
                say(f"{title}, {protocol}: {model} trained, best validation ndcg@{task.split.k} {best:.4f}")
        if not group().first:
            continue
        if held_out is None:
            say(f"{title}, {protocol}: asking {len(task.split.test):,} test queries")
            measured = _measure(task, trained, asked)
            note(places.ledger, "benchmark", measured.report, title)
            part: dict[str, Any] = {
                "tuned_on_validation": measured.tuned,
                "seconds": measured.seconds,
                "report": dataclasses.asdict(measured.report),
                "cold_users": measured.cold_users,
                "interests": {each.name: _fields(each.interests(task)) for each in trained if each.interests},
                "drift": {each.name: _fields(each.drift(task)) for each in trained if each.drift},
                "endurance": {each.name: dataclasses.asdict(each.endurance(task)) for each in trained if each.endurance},
            }
        else:
            cold = cold_task(held_out, task, asked.data.text_encoder)
            say(f"{title}, {protocol}: asking {len(cold.task.split.test):,} test queries for {len(held_out.cold)} cold items")
            part = _measure_cold(cold, trained)
            note(places.ledger, "benchmark", part["report"], title)
            note(places.ledger, "benchmark", part["shelf"], f"{title}, cold items alone")
            part |= {view: dataclasses.asdict(part[view]) for view in ("report", "shelf")}
        result["protocols"][protocol] = {"trained": {each.name: each.describe() for each in trained}} | part
    path = places.out / f"{title}.json"
    if not group().first:
        return path
    write_whole(path, to_text(result))
    return path


def to_text(result: dict[str, Any]) -> str:
    """JSON with a line for every object or list that holds no other: a figure and its errors are read, and compared, together."""
    text = json.dumps(_rounded(plain(result)), indent=1, allow_nan=False)
    return re.sub(r"\{[^{}]*\}|\[[^][{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


@dataclasses.dataclass(frozen=True)
class _Measured:
    report: EvaluationReport
    tuned: dict[str, Any]
    seconds: dict[str, float]
    cold_users: dict[str, Any] | None


def _measure(task: Task, trained: list[Contender], settings: Settings) -> _Measured:
    lists, seconds = {}, {}
    for each in trained:
        began = time.monotonic()
        lists[each.name] = each.lists(task)
        seconds[each.name] = round(time.monotonic() - began, 1)
    began = time.monotonic()
    train = settings.train
    ranked, chosen, tuned = baseline_lists(task.seq, task.split, queries=train.valid_queries, seed=train.seed, neighbours=True)
    seconds["baselines"] = round(time.monotonic() - began, 1)
    ours = next((each for each in trained if each.name == OURS), None)
    report = evaluate(
        task.seq,
        task.split,
        lists | ranked,
        dataset=task.data["name"],
        fingerprint=task.data["fingerprint"],
        ours=trained[0].name if trained else None,
        settings=chosen,
        item_vectors=None if ours is None else ours.item_vectors,
    )
    began = time.monotonic()
    cold_users = None
    if ours is not None and ours.lists_after is not None:
        cold_users = measure_cold_users(task, ours.lists_after, chosen, settings.train.seed)
    seconds["cold users"] = round(time.monotonic() - began, 1)
    return _Measured(report, {f"ndcg@{task.split.k}": tuned.valid_ndcg, "queries": tuned.queries}, seconds, cold_users)


def _measure_cold(cold: ColdTask, trained: list[Contender]) -> dict[str, Any]:
    ours = next((each for each in trained if each.name == OURS), None)
    lists = None if ours is None else ours.lists(cold.task)
    found = measure_cold_items(cold, lists, None if ours is None else ours.net)
    return {
        "headline": HEADLINE,
        "cold_items": cold.task.seq.items - cold.first,
        "tuned_on_validation": {HEADLINE: found["tuned"], "queries": len(cold.task.split.valid)},
        "report": found["report"],
        "shelf": found["shelf"],
    }


def _fields(report: InterestReport | DriftReport | None) -> dict[str, Any] | None:
    return None if report is None else dataclasses.asdict(report)


def _describe(dataset: Dataset) -> dict[str, Any]:
    manifest = dataset.manifest
    counts = {key: value for key, value in manifest.counts.model_dump().items() if key != "by_type"}
    return {"name": manifest.name, "fingerprint": manifest.fingerprint, "source": manifest.source, **counts}
