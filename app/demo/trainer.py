"""The offline half, as the command `longwave-train`: what it prints goes to the demo's own terminal."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final, Literal

import msgspec

from app.demo.children import Child, Children, console_script
from app.demo.errors import DemoError
from app.demo.folder import DemoFolder
from app.demo.score import Score

_BAD_INPUT: Final = 2  # its exit code where data cannot be had or used; the reason is on the terminal then
_NEEDS: Final = ("torch", "polars", "onnx")
_IDLE: Final = 10

Dataset = Literal["auto", "online-retail", "synthetic-demo"]
REAL: Final = "online-retail"
SYNTHETIC: Final = "synthetic-demo"


class Trainer:
    """Runs the trainer's commands on the demo's folder."""

    def __init__(self, children: Children, folder: DemoFolder) -> None:
        """Raises DemoError if the trainer is not installed."""
        missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise DemoError(f"the demo trains a model, and {missing[0]} is not installed: install the extra `train`")
        self._command = console_script("longwave-train")
        self._children = children
        self._folder = folder

    def prepare(self, dataset: Dataset, data: Path | None) -> bool:
        """Prepare the data set, or under `auto` the synthetic one where the real one cannot be had; True if that was so."""
        wanted = REAL if dataset == "auto" else dataset
        where = ["--data", str(data)] if data is not None and wanted == REAL else []
        code = self._run("prepare", wanted, "--out", str(self._folder.data), *where)
        if code == _BAD_INPUT and dataset == "auto":
            self._must("prepare", SYNTHETIC, "--out", str(self._folder.data))
            return True
        if code:
            raise _failed("prepare", code)
        return False

    def train(self, config: str) -> None:
        self._must("train", str(self._folder.data), "--out", str(self._folder.run), "--config", config)

    def export(self) -> None:
        """The bundle is at `folder.bundle` then."""
        self._must("export", *self._trained, "--out", str(self._folder.bundles))

    def rehearse(self) -> None:
        self._must("rehearse", *self._trained, "--out", str(self._folder.rehearsal))

    def start_evaluation(self, limit: int) -> Child:
        """The offline side of the comparison, beside the replay and without disturbing it. 0 asks everything."""
        options = ["--out", str(self._folder.report), "--limit", str(limit)]
        command = [str(self._command), "evaluate", *self._trained, *options]
        # One thread: a pool of low-priority threads on every core would still take the service's caches and turns.
        environment = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        log = self._folder.log("evaluate")
        return self._children.start("the offline evaluation", command, log=log, environment=environment, niceness=_IDLE)

    @property
    def _trained(self) -> tuple[str, str, str]:
        return str(self._folder.run), "--data", str(self._folder.data)

    def _must(self, *arguments: str) -> None:
        code = self._run(*arguments)
        if code:
            raise _failed(arguments[0], code)

    def _run(self, *arguments: str) -> int:
        return self._children.start(f"longwave-train {arguments[0]}", [str(self._command), *arguments]).process.wait()


def _failed(name: str, code: int) -> DemoError:
    return DemoError(f"`longwave-train {name}` failed with exit code {code}; what it said is above")


class _Estimate(msgspec.Struct):
    mean: float | None


class _Model(msgspec.Struct):
    metrics: dict[str, _Estimate]


class _Report(msgspec.Struct):
    ours: str
    queries: int
    models: dict[str, _Model]


class Offline(msgspec.Struct, frozen=True):
    """What the trainer measured on the same questions: its own torch forward(), and the baselines by name."""

    queries: int
    ours: Score
    baselines: dict[str, Score]


def read_report(folder: Path, k: int) -> Offline:
    """The report.json that `longwave-train evaluate` wrote. Raises DemoError if it is not there or not whole."""
    path = folder / "report.json"
    try:
        report = msgspec.json.decode(path.read_bytes(), type=_Report)
        scores = {name: _score(model, k) for name, model in report.models.items()}
        ours = scores.pop(report.ours)
        if not scores:
            raise ValueError("there is no baseline in it")
        return Offline(report.queries, ours, scores)
    except OSError as error:
        raise DemoError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, KeyError, ValueError) as error:
        raise DemoError(f"{path}: not a report on lists of {k}: {error}") from None


def _score(model: _Model, k: int) -> Score:
    recall, ndcg = model.metrics[f"recall@{k}"].mean, model.metrics[f"ndcg@{k}"].mean
    if recall is None or ndcg is None:
        raise ValueError("a figure is missing")
    return Score(recall, ndcg)
