"""Many settings of one net tried on the validation part, from one file: an ablation, or a search. No look at the test part.

The file, in TOML:

    benchmark = "ml-1m"        # as of `benchmark`
    preset = "base"            # what all begin with
    net = "sasrec"             # which net is tried; default longwave
    seed = 0                   # of all runs that have no train.seed of their own

    [all.train]                # what all runs have otherwise than the preset
    epochs = 6

    [runs.preset]              # the first run is what the others are held against

    [runs.narrow.sasrec]       # what a run has otherwise
    width = 64
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.assess import OURS
from model.baselines.nets.checkpoint import SHARED
from model.benchmark.contenders import MODELS, contender
from model.benchmark.names import BENCHMARKS, as_asked, find
from model.compare import Compared, compare, how_asked, write_comparison
from model.distributed import group
from model.files import check_folder
from model.history import best_ndcg
from model.loop import Report
from model.settings import ConfigError, DataSettings, Settings, read_toml, to_settings
from model.task import Task, make_task, protocol_of

LONGEST_NAME = 60  # four bytes each at most, and a folder's name has room for 255
KEYS = {"benchmark": str, "preset": str, "net": str, "seed": int, "all": dict, "runs": dict}


@dataclass(frozen=True)
class Sweep:
    """What a file asks for. settings: by the name of the run, in the file's order."""

    name: str
    benchmark: str
    net: str
    settings: dict[str, Settings]


def read_sweep(path: Path) -> Sweep:
    """The runs that a file asks for.

    Raises:
        ConfigError: no such file, not TOML, an unknown key or net, no run, or settings that no run may have.
    """
    said = read_toml(path)
    for key, value in said.items():
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key}; known are {', '.join(KEYS)}")
        if type(value) is not KEYS[key]:
            raise ConfigError(f"{path}: {key} must be of type {KEYS[key].__name__}, got {value!r}")
    if "benchmark" not in said:
        raise ConfigError(f"{path}: benchmark is missing")
    net = said.get("net", OURS)
    if net not in MODELS:
        raise ConfigError(f"{path}: net must be one of {', '.join(MODELS)}, got {net!r}")
    if not said.get("runs"):
        raise ConfigError(f"{path}: no [runs.NAME]")
    preset = said.get("preset", "small")
    shared = _over(read_toml(preset), {"train": {"seed": said.get("seed", 0)}}, str(preset))
    shared = _over(shared, said.get("all", {}), f"{path}: all")
    settings = {}
    for name, changes in said["runs"].items():
        if name in ("", "..") or Path(name).name != name or not name.isprintable() or len(name) > LONGEST_NAME:
            raise ConfigError(f"{path}: runs.{name[:LONGEST_NAME]!r} must name a folder, in at most {LONGEST_NAME} characters")
        settings[name] = to_settings(_over(shared, changes, f"{path}: runs.{name}"), Path(f"{path}, runs.{name}"))
        if idle := set(changes) - {"data", "train", "model" if net == OURS else net}:
            raise ConfigError(f"{path}: runs.{name}.{sorted(idle)[0]} says nothing to {net}")
        if net != OURS and (idle := set(changes.get("train", {})) - set(SHARED)):
            raise ConfigError(f"{path}: runs.{name}.train.{sorted(idle)[0]} says nothing to {net}")
    return Sweep(path.stem, said["benchmark"], net, settings)


def sweep(
    path: Path,
    out: Path,
    work: Path,
    data: Path | None = None,
    only: Sequence[str] = (),
    *,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report | None = None,
) -> list[Compared]:
    """Train what is not trained yet, in `work/NAME/RUN`, and hold all against the first; writes `out/NAME.json`.

    Args:
        only: train these runs and compare nothing, which returns an empty list: for several processes or machines, whose
            folders are put together before the last call.

    Raises:
        TrainerError: bad input, a folder that holds a run of other settings, or a training that failed.
    """
    asked = read_sweep(path)
    if unknown := set(only) - set(asked.settings):
        raise ConfigError(f"{path}: no run {sorted(unknown)[0]}; it has {', '.join(asked.settings)}")
    check_folder(out)
    check_folder(work)
    known = BENCHMARKS.get(asked.benchmark)
    if known and (known.cold or len(known.protocols) > 1):
        raise ConfigError(f"{path}: benchmark must be one that is asked in one way, for all items, got {asked.benchmark!r}")
    called, dataset, protocols = find(asked.benchmark, data, offline)
    folders = {name: work / asked.name / name for name in asked.settings}
    runs = {
        name: as_asked(chosen, protocols[0] if protocols else protocol_of(chosen.data, dataset.manifest), None)
        for name, chosen in asked.settings.items()
    }
    # Runs that cannot be compared, and a folder that holds another run, are better refused now than after hours.
    first, *others = runs
    for name in others:
        if how_asked(runs[name].data, dataset.manifest) != how_asked(runs[first].data, dataset.manifest):
            raise ConfigError(f"{path}: runs.{name} is asked in another way than runs.{first}: their [data] settings differ")
    wanted = {name: chosen for name, chosen in runs.items() if not only or name in only}
    tasks: dict[DataSettings, Task] = {}
    for name, chosen in wanted.items():
        if chosen.data not in tasks:
            tasks[chosen.data] = make_task(dataset, chosen.data)
        contender(asked.net, tasks[chosen.data], chosen, folders[name], False, False, None)
    trained = {}
    for name, chosen in wanted.items():
        found = contender(asked.net, tasks[chosen.data], chosen, folders[name], True, False, report)
        assert found  # it was to be trained
        # What it learned by and its course are in the file and in the comparison.
        trained[name] = {key: value for key, value in found.describe().items() if key not in ("settings", "course")}
        say(f"{asked.name}, {name}: best validation ndcg {best_ndcg(found.history):.4f}")
    if only or not group().first:
        return []
    compared = compare(dataset, list(folders.values()))
    write_comparison(compared, called, dataset.manifest.fingerprint, out / f"{asked.name}.json", trained)
    return compared


def _over(tables: dict[str, Any], changes: Any, where: str) -> dict[str, Any]:
    """The tables with some keys changed."""
    out = dict(tables)
    if not isinstance(changes, dict):
        raise ConfigError(f"{where} must be tables of keys, got {changes!r}")
    for table, keys in changes.items():
        if not isinstance(keys, dict):
            raise ConfigError(f"{where}.{table} must be a table of keys, got {keys!r}")
        before = out.get(table, {})
        if not isinstance(before, dict):
            raise ConfigError(f"{where}: what it changes in [{table}] is no table but {before!r}")
        out[table] = before | keys
    return out
