"""An evaluation as files: report.json for programs, report.md to read, PNG plots to look at."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.evaluate import EvaluationReport
from model.files import write_whole
from model.intervals import Estimate
from model.plots import PROTOCOLS, plot_history, plot_models


def write_report(report: EvaluationReport, folder: Path) -> list[Path]:
    """Write report.json, report.md, models.png and history.png into `folder`, which is created; returns their paths.

    Raises:
        OutputError: one of them cannot be written, of which there is then nothing, or what was there before.
    """
    paths = [folder / name for name in ("report.json", "report.md", "models.png", "history.png")]
    write_whole(paths[0], to_json(report))
    write_whole(paths[1], to_markdown(report))
    plot_models(report, paths[2])
    plot_history(report, paths[3])
    return paths


def to_json(report: EvaluationReport) -> str:
    """The whole report; a figure that does not exist is null, an infinite setting the string "inf"."""
    return json.dumps(plain(dataclasses.asdict(report)), indent=2, allow_nan=False) + "\n"


def to_markdown(report: EvaluationReport) -> str:
    """What was asked, a table of all metrics, the comparisons, quality by history and the settings."""
    top = max(report.ks)
    columns = [f"{metric}@{top}" for metric in ("recall", "ndcg", "hit_rate", "mrr", "precision", "f1", "coverage")]
    columns += [name for name in (f"intra_list_diversity@{top}", f"novelty@{top}") if _has(report, name)]
    columns += [f"{metric}@{k}" for k in report.ks if k != top for metric in ("recall", "ndcg")]
    lines = [f"# {report.dataset or 'Evaluation'}: {PROTOCOLS[report.protocol]}, {report.part}", "", *_facts(report), ""]

    lines += [
        f"## Quality at {top}",
        "",
        "Mean over queries; ± is half the width of its 95% interval, by bootstrap over users. Novelty is in bits.",
        "",
        *_table(
            ["model", *columns],
            [[_marked(report, name), *(_figure(result.metrics[c]) for c in columns)] for name, result in report.models.items()],
        ),
        "",
        "Mean over users of each user's mean:",
        "",
        *_table(
            ["model", f"recall@{top}", f"ndcg@{top}"],
            [
                [_marked(report, name), *(_number(result.metrics[f"{metric}@{top}"].per_user) for metric in ("recall", "ndcg"))]
                for name, result in report.models.items()
            ],
        ),
        "",
    ]
    if report.comparisons:
        lines += [f"## {report.ours} against the others, on the same queries", ""]
        lines += _table(
            ["against", "metric", "times", "difference", "95% interval", "p"],
            [
                [name, metric, f"{d.ratio:.2f}x", f"{d.mean:+.4f}", d.interval(), f"{d.p:.3f}"]
                for name, differences in report.comparisons.items()
                for metric, d in differences.items()
            ],
        )
        lines.append("")
    lines += [f"## ndcg@{top} by events in the user's history", ""]
    lines += _table(
        ["model", *(f"{label} ({count:,} queries)" for label, count in report.history_queries.items())],
        [
            [_marked(report, name), *(_figure(result.by_history[label]) for label in report.history_queries)]
            for name, result in report.models.items()
        ],
    )
    lines += ["", "![Quality of the models](models.png)", "", "![Quality by history](history.png)", ""]
    lines += ["## Settings, chosen on the validation queries", ""]
    lines += [
        f"- {name}: " + (", ".join(f"{key} {value}" for key, value in result.settings.items()) or "none")
        for name, result in report.models.items()
    ]
    return "\n".join(lines) + "\n"


def _facts(report: EvaluationReport) -> list[str]:
    facts = [
        f"{report.queries:,} queries of {report.users:,} users over {report.items:,} items",
        f"{report.mean_targets:.2f} true items a query",
        f"{report.unseen_targets:.1%} of the true items have no purchase in the training part",
        f"seen items are {'left out' if report.filter_seen else 'ranked like all others'}",
        "live: every baseline has met all earlier events of all users"
        if report.state == "live"
        else "frozen: the baselines know the training part and the asking user's own past",
        f"refit: {report.refit}",
        f"bootstrap: {report.resamples:,} resamples of users, seed {report.seed}",
    ]
    if report.protocol != "loo":
        facts.insert(0, f"train | {_date(report.valid_cut_ms)} | validation | {_date(report.cut_ms)} | test (UTC)")
    return [f"- {fact}" for fact in facts]


def _date(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _has(report: EvaluationReport, metric: str) -> bool:
    return all(metric in result.metrics for result in report.models.values())


def _marked(report: EvaluationReport, name: str) -> str:
    return f"**{name}**" if name == report.ours else name


def _figure(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _number(estimate.mean)
    return f"{_number(estimate.mean)} ± {(estimate.high - estimate.low) / 2:.4f}"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
