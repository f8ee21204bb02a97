"""What a page says of cold users and cold items, where a result has it."""

from __future__ import annotations

import statistics
from typing import Any

from model.benchmark.page_words import figure_words
from model.benchmark.results import Comparison


def cold_users(comparison: Comparison) -> list[str]:
    """A table of the headline after so many events; nothing where no result has it. Means over seeds."""
    parts = [part["cold_users"] for part in comparison.parts if part.get("cold_users")]
    if not parts:
        return []
    after = list(parts[0]["after"])
    models = list(parts[0]["after"][after[0]]["models"])
    rows = []
    for model in models:
        cells = []
        for count in after:
            figures = [part["after"][count]["models"][model][comparison.headline] for part in parts]
            cells.append(_figure(figures))
        rows.append([f"**{model}**" if model == comparison.parts[0]["report"]["ours"] else model, *cells])
    queries, users = (_range([part[what] for part in parts]) for what in ("queries", "users"))
    return [
        "",
        f"Cold users, {comparison.headline}: {queries} of these queries, of {users} users, each",
        "asked as if its user had come only so many events ago; the same queries in every column"
        f"{', others with every seed' if len(parts) > 1 else ''}.",
        "",
        *_lines(["events known", *after], rows),
    ]


def cold_items(comparison: Comparison) -> list[str]:
    """What was held out, and the figures of the cold items among themselves; nothing where no result has it. Means over seeds."""
    parts = [part for part in comparison.parts if "shelf" in part]
    if not parts:
        return []
    shelves = [part["shelf"] for part in parts]
    rows = []
    for model in shelves[0]["models"]:
        against = [shelf["comparisons"][model][comparison.headline] for shelf in shelves if model in shelf["comparisons"]]
        times = "–"
        if against:
            ratio, p = statistics.fmean(each["ratio"] for each in against), max(each["p"] for each in against)
            times = f"{ratio:.2f}x, p {'< .01' if p < 0.01 else f'{p:.2f}'}"
        figures = [shelf["models"][model]["metrics"][comparison.headline] for shelf in shelves]
        rows.append([f"**{model}**" if model == shelves[0]["ours"] else model, _figure(figures), times])
    return [
        "",
        f"{parts[0]['cold_items']:,} items were held out of training altogether, and the true items of a query are those of",
        "them that its basket has. Above, every item is ranked by its text alone, among all; *as served* is the list in which",
        "the others have all that is known of them. The cold items alone, as a shelf of new arrivals:",
        "",
        *_lines(["model", comparison.headline, "times"], rows),
    ]


def _range(counts: list[int]) -> str:
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _figure(figures: list[dict[str, Any]]) -> str:
    errors = [each["standard_error"] for each in figures if each["standard_error"] is not None]
    return figure_words(statistics.fmean(each["mean"] for each in figures), statistics.fmean(errors) if errors else None)


def _lines(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]
