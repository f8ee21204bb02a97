"""From samples to figures: percentiles, ratios, limits, the table and the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.table import Table

LIMITS: Final = {"get_service_p50_ms": 5.0, "state_bytes": 16_384}
"""What a figure may be at most."""

STAGES: Final = ("load", "fold", "interest", "score")

_BUSY: Final = 0.95

_MEANINGS: Final = {
    "get_service_p50_ms": "GET recommendations at no load, in the service (Server-Timing)",
    "get_service_p99_ms": "",
    "get_client_p50_ms": "the same as the client sees it, HTTP included",
    "get_client_p99_ms": "",
    "floor_client_p50_ms": "the floor: a constant of the same size after one Redis GET",
    "get_floor_ratio": "get_client_p50_ms / floor_client_p50_ms",
    "get_floor_ratio_min": "the lowest of the rounds",
    "get_floor_ratio_max": "the highest of the rounds",
    "get_load_p50_ms": "stage: state and events from Redis",
    "get_fold_p50_ms": "stage: unpack the state, nothing to fold",
    "get_interest_p50_ms": "stage: interest vectors",
    "get_score_p50_ms": "stage: all items scored, top k",
    "post_client_p50_ms": "POST one event, as the client sees it",
    "post_floor_ratio": "post_client_p50_ms / floor_client_p50_ms",
    "get_after_post_p50_ms": "GET right after a POST, in the service: the event is folded on the way",
    "get_after_post_client_p50_ms": "the same as the client sees it",
    "fold_event_p50_ms": "stage fold of these: unpack the state, fold one event",
    "state_bytes": "one stored state, header included",
    "throughput_get_rps": "GET, closed loop",
    "throughput_floor_rps": "the floor, closed loop",
    "throughput_get_core_busy": "processor time of the service per second under that load",
    "throughput_floor_core_busy": "",
    "throughput_generator_busy": "the same of generator and Redis, the higher of both loads",
    "throughput_counts": "service's core at least 95% busy, the generator's less",
}


@dataclass(frozen=True, slots=True)
class Timed:
    """One answered question: seconds as the client saw them, and milliseconds per stage as the service booked them."""

    client_s: float
    stages_ms: dict[str, float]


@dataclass
class Load:
    """A saturated server, summed over the rounds: answers, wall seconds, processor seconds of it and of everything else."""

    answers: int = 0
    wall_s: float = 0.0
    server_s: float = 0.0
    generator_s: float = 0.0


@dataclass
class Round:
    """The samples of one round, in which everything was measured once; seconds."""

    get: list[Timed] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    post: list[float] = field(default_factory=list)
    get_after_post: list[Timed] = field(default_factory=list)


@dataclass
class Samples:
    rounds: list[Round] = field(default_factory=list)
    get_load: Load = field(default_factory=Load)
    floor_load: Load = field(default_factory=Load)
    state_bytes: int = 0


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q percent of the values do not exceed (nearest rank), 0 < q <= 100."""
    return sorted(values)[math.ceil(len(values) * q / 100) - 1]


def parse_server_timing(value: str) -> dict[str, float]:
    """Durations in milliseconds by name, of a Server-Timing header as the service writes it: `load;dur=0.512, ...`."""
    parts = (part.strip().partition(";dur=") for part in value.split(",") if part)
    return {name: float(duration) for name, _, duration in parts}


def figures(samples: Samples) -> dict[str, float | int | bool]:
    """Every figure by its key, in the order of the table; milliseconds, ratios, bytes, answers per second."""
    get = [one for round_ in samples.rounds for one in round_.get]
    after = [one for round_ in samples.rounds for one in round_.get_after_post]
    floor_p50 = _ms([seconds for round_ in samples.rounds for seconds in round_.floor], 50)
    post_p50 = _ms([seconds for round_ in samples.rounds for seconds in round_.post], 50)
    get_p50 = _ms([one.client_s for one in get], 50)
    ratios = [percentile([one.client_s for one in round_.get], 50) / percentile(round_.floor, 50) for round_ in samples.rounds]
    busy = {name: load.server_s / load.wall_s for name, load in _loads(samples).items()}
    generator_busy = max(load.generator_s / load.wall_s for load in _loads(samples).values())
    rps = {name: load.answers / load.wall_s for name, load in _loads(samples).items()}
    found: dict[str, float | int | bool] = {
        "get_service_p50_ms": percentile([one.stages_ms["service"] for one in get], 50),
        "get_service_p99_ms": percentile([one.stages_ms["service"] for one in get], 99),
        "get_client_p50_ms": get_p50,
        "get_client_p99_ms": _ms([one.client_s for one in get], 99),
        "floor_client_p50_ms": floor_p50,
        "get_floor_ratio": get_p50 / floor_p50,
        "get_floor_ratio_min": min(ratios),
        "get_floor_ratio_max": max(ratios),
        **{f"get_{stage}_p50_ms": percentile([one.stages_ms[stage] for one in get], 50) for stage in STAGES},
        "post_client_p50_ms": post_p50,
        "post_floor_ratio": post_p50 / floor_p50,
        "get_after_post_p50_ms": percentile([one.stages_ms["service"] for one in after], 50),
        "get_after_post_client_p50_ms": _ms([one.client_s for one in after], 50),
        "fold_event_p50_ms": percentile([one.stages_ms["fold"] for one in after], 50),
        "state_bytes": samples.state_bytes,
        "throughput_get_rps": rps["get"],
        "throughput_floor_rps": rps["floor"],
        "throughput_get_core_busy": busy["get"],
        "throughput_floor_core_busy": busy["floor"],
        "throughput_generator_busy": generator_busy,
        "throughput_counts": min(busy.values()) >= _BUSY > generator_busy,
    }
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


def missed(found: dict[str, Any]) -> list[str]:
    """The keys of the figures that are over their limits."""
    return [key for key, limit in LIMITS.items() if found[key] > limit]


def table(found: dict[str, Any], title: str, *, meanings: bool) -> Table:
    """The figures for people, with limits where there are any and, if asked for, what each figure is."""
    over = missed(found)
    shown = Table(title=title, title_justify="left")
    shown.add_column("figure", no_wrap=True)
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("limit", no_wrap=True)
    shown.add_column("", no_wrap=True)
    if meanings:
        shown.add_column("what it is")
    for key, value in found.items():
        limit = LIMITS.get(key)
        verdict = "" if limit is None else "[red]MISSED[/]" if key in over else "[green]pass[/]"
        row = [key, _text(value), "" if limit is None else f"<= {_text(limit)}", verdict]
        shown.add_row(*row, *([_MEANINGS[key]] if meanings else []))
    return shown


def write(document: dict[str, Any], path: Path) -> None:
    """The document as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _loads(samples: Samples) -> dict[str, Load]:
    return {"get": samples.get_load, "floor": samples.floor_load}


def _ms(seconds: Sequence[float], q: float) -> float:
    return percentile(seconds, q) * 1e3


def _text(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or value >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"
