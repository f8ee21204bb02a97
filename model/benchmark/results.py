"""Results as `longwave-train benchmark` wrote them, read again and put together over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from model.benchmark import compression, platforms, run, speed, update
from model.benchmark.compression import COMPRESSION
from model.benchmark.platforms import PLATFORMS
from model.benchmark.shape import Benchmark, Headed
from model.benchmark.speed import SPEED
from model.benchmark.update import UPDATE
from model.data.sequences import headline_k
from model.errors import TrainerError


class ResultError(TrainerError, ValueError):
    """A result cannot be read or put beside the others; the message names the file."""


class Kind(NamedTuple):
    """A kind of result: the command that writes it, its format, and the fields that it has at least, with what is in them."""

    command: str
    format: int
    fields: frozenset[str]
    shape: type[Headed] = Headed


_COMMON = ("name", "preset", "date", "commit", "machine")
BENCHMARKS = Kind("benchmark", run.FORMAT, frozenset({*_COMMON, "seed", "data", "protocols"}), Benchmark)
COMPRESSIONS = Kind("compression", compression.FORMAT, frozenset({*_COMMON, "protocol", "k", "queries", "rounds", "measured"}))
SPEEDS = Kind("speed", speed.FORMAT, frozenset({*_COMMON, "steps", "measured"}))
UPDATES = Kind(
    "measure-update", update.FORMAT, frozenset({*_COMMON, "seed", "part", "new", "seconds", "share", "served", "asked"})
)
FINE_TUNINGS = Kind("measure-platforms", platforms.FORMAT, frozenset({*_COMMON, "seed", "data", "protocol", "k", "platforms"}))


@dataclass(frozen=True)
class Comparison:
    """The same benchmark, protocol, data and preset with several seeds, seeds ascending.

    Attributes:
        name, protocol, preset: of all results in it. fingerprint: of the data.
        results: the whole files. parts: what they say of the protocol, in the same order.
    """

    name: str
    protocol: str
    preset: str
    fingerprint: str
    results: list[dict[str, Any]]
    parts: list[dict[str, Any]]

    @property
    def headline(self) -> str:
        return self.parts[0].get("headline") or f"ndcg@{headline_k(self.protocol)}"

    @property
    def seeds(self) -> list[int]:
        return [result["seed"] for result in self.results]

    @property
    def models(self) -> list[str]:
        """All models that any seed has, best first by the headline."""
        names = {name: None for part in self.parts for name in part["report"]["models"]}
        return sorted(names, key=lambda name: -(self.mean(name, self.headline) or 0.0))

    def having(self, model: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The results that have the model, and what they say of the protocol."""
        pairs = zip(self.results, self.parts, strict=True)
        return [(result, part) for result, part in pairs if model in part["report"]["models"]]

    def figures(self, model: str, metric: str, kind: str = "mean") -> list[float]:
        """By seed; `kind` is a field of `Estimate`."""
        estimates = [part["report"]["models"][model]["metrics"].get(metric, {}) for _, part in self.having(model)]
        return [estimate[kind] for estimate in estimates if estimate.get(kind) is not None]

    def mean(self, model: str, metric: str, kind: str = "mean") -> float | None:
        figures = self.figures(model, metric, kind)
        return statistics.fmean(figures) if figures else None

    def spread(self, model: str, metric: str) -> float | None:
        """Standard deviation over seeds; None with a single one."""
        figures = self.figures(model, metric)
        return statistics.stdev(figures) if len(figures) > 1 else None

    def against(self, model: str) -> tuple[str, float, float] | None:
        """Who is compared with the model, how many times as good it is (mean over seeds), and the largest p of all seeds."""
        found = [
            (part["report"]["ours"], part["report"]["comparisons"][model][self.headline])
            for _, part in self.having(model)
            if model in part["report"]["comparisons"]
        ]
        found = [(ours, difference) for ours, difference in found if difference["ratio"] is not None]
        if not found:
            return None
        ratio = statistics.fmean(difference["ratio"] for _, difference in found)
        return found[0][0], ratio, max(difference["p"] for _, difference in found)


def read_results(folder: Path) -> list[Comparison]:
    """All results of a folder, put together over seeds, by name, protocol and preset.

    Raises:
        ResultError: there is none, or a file is not one.
    """
    groups: dict[tuple[str, str, str, str], Comparison] = {}
    for path in sorted(folder.glob("*.json")):
        result = _read(path, BENCHMARKS)
        for protocol, part in result["protocols"].items():
            key = (result["name"], protocol, result["preset"], result["data"]["fingerprint"])
            group = groups.setdefault(key, Comparison(*key, [], []))
            if group.parts and (ours := part["report"]["ours"]) != (other := group.parts[0]["report"]["ours"]):
                raise ResultError(
                    f"{path}: compares {ours} with the others, where another seed of {result['name']}-{result['preset']} has "
                    f"{other} there: train {other} with this seed, too, or write the result into another folder"
                )
            group.results.append(result)
            group.parts.append(part)
    if not groups:
        raise ResultError(f"{folder}: no results there; `longwave-train benchmark` writes them")
    for group in groups.values():
        order = sorted(range(len(group.results)), key=lambda index: group.results[index]["seed"])
        group.results[:] = [group.results[index] for index in order]
        group.parts[:] = [group.parts[index] for index in order]
    return [groups[key] for key in sorted(groups)]


def read_speeds(folder: Path) -> list[dict[str, Any]]:
    """The results of `longwave-train speed` in a folder of results; there need not be any.

    Raises:
        ResultError: a file is not one.
    """
    return [_read(path, SPEEDS) for path in sorted((folder / SPEED).glob("*.json"))]


def read_compressions(folder: Path) -> list[dict[str, Any]]:
    """The results of `longwave-train compression` in a folder of results; there need not be any.

    Raises:
        ResultError: a file is not one.
    """
    return [_read(path, COMPRESSIONS) for path in sorted((folder / COMPRESSION).glob("*.json"))]


def read_updates(folder: Path) -> list[dict[str, Any]]:
    """The results of `longwave-train measure-update` in a folder of results; there need not be any.

    Raises:
        ResultError: a file is not one.
    """
    return [_read(path, UPDATES) for path in sorted((folder / UPDATE).glob("*.json"))]


def read_fine_tunings(folder: Path) -> list[dict[str, Any]]:
    """The results of `longwave-train measure-platforms` in a folder of results; there need not be any.

    Raises:
        ResultError: a file is not one.
    """
    return [_read(path, FINE_TUNINGS) for path in sorted((folder / PLATFORMS).glob("*.json"))]


def _read(path: Path, kind: Kind) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        result: dict[str, Any] = json.loads(text)
        if result["format"] != kind.format:
            raise ResultError(
                f"{path}: a result of format {result['format']!r}, expected {kind.format}; run {kind.command} again"
            )
        if missing := kind.fields - result.keys():
            raise ResultError(f"{path}: not a whole result: {sorted(missing)[0]!r} is missing")
        kind.shape.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        said = f"{where!r} is missing" if first["type"] == "missing" else f"{where}: {first['msg']}"
        raise ResultError(f"{path}: not a whole result: {said}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ResultError(f"{path}: not a result of `longwave-train {kind.command}`: {error!r}") from None
    if kind is BENCHMARKS and (absent := next(_absent(result), None)):
        raise ResultError(f"{path}: not a whole result: {absent!r} is missing")
    return result


def _absent(result: dict[str, Any]) -> Iterator[str]:
    """What a benchmark's result names in one place and lacks in another: the headline, and groups of queries by history."""
    for protocol, part in result["protocols"].items():
        headline = part.get("headline") or f"ndcg@{headline_k(protocol)}"
        for name in ("report", "shelf"):
            report, where = part.get(name), f"protocols.{protocol}.{name}"
            if not report:
                continue
            for model, told in report["models"].items():
                labels = report["history_queries"] if name == "report" else ()
                yield from (f"{where}.models.{model}.by_history.{label}" for label in labels if label not in told["by_history"])
                if headline not in told["metrics"]:
                    yield f"{where}.models.{model}.metrics.{headline}"
            for model, differences in report["comparisons"].items():
                if headline not in differences:
                    yield f"{where}.comparisons.{model}.{headline}"
