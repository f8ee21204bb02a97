"""The tables of drift: how well it tells who changed from who did not, beside plain statistics of labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from model.benchmark.page_words import figure_words
from model.benchmark.results import Comparison
from model.drifting import NET

FIGURES = {"auc": "AUC", "spearman": "rank correlation"}


def drift_lines(comparison: Comparison) -> list[str]:
    """Means over the seeds that have measured it; no lines if none has."""
    found = [each for part in comparison.parts for each in part.get("drift", {}).values() if each]
    if not found:
        return []
    first = found[0]
    moments = list(map(str, first["by_events"][NET]))
    lines = [
        "",
        f"Drift, asked of {first['users']:,} users whom the net never saw, so many events",
        f"after a moment at which the interest of {first['turned']:,} of them turned. AUC: the chance that of two users, one who",
        "turned and one who did not, it is larger for the first; then its rank correlation with how far the interest turned.",
        "",
    ]
    rows = [
        [f"{f'**{name}**' if name == NET else name}, {said}", *(_figure(found, name, at, figure) for at in moments)]
        for figure, said in FIGURES.items()
        for name in first["by_events"]
    ]
    rows += [
        [f"mean drift of who {group}", *(f"{_mean(each['by_events'][NET][at][group] for each in found):.3f}" for at in moments)]
        for group in ("stayed", "turned")
    ]
    head = ["events since the turn", *moments]
    return lines + [f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * len(moments), *rows)]


def _figure(found: list[dict[str, Any]], name: str, at: str, figure: str) -> str:
    told = [each["by_events"][name][at][figure] for each in found]
    return figure_words(_mean(each["mean"] for each in told), _mean(each["standard_error"] for each in told))


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
