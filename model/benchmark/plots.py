"""The plot of a benchmark: every model with its error and its seeds, and quality by the length of the history."""

from __future__ import annotations

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from model.benchmark.results import Comparison
from model.plots import GREYS, MARKERS, OURS, PROTOCOLS, clean, save

BEST = 3
"""So many baselines have a line by history beside the trained models: more cannot be told apart."""


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """The headline as bars with 95% intervals by user and a dot a seed, best at the top; beside it ndcg@20 by history. A PNG."""
    models, headline = comparison.models, comparison.headline
    ours = comparison.parts[0]["report"]["ours"]
    figure = Figure(figsize=(12, 1.8 + 0.42 * len(models)), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for place, model in enumerate(reversed(models)):
        mean = comparison.mean(model, headline) or 0.0
        error = 1.96 * (comparison.mean(model, headline, "standard_error") or 0.0)
        colour = OURS if model == ours else GREYS[2]
        bars.barh(place, mean, xerr=error, color=colour, height=0.62, error_kw={"ecolor": "#22252c", "capsize": 3})
        seeds = comparison.figures(model, headline)
        if len(seeds) > 1:
            bars.plot(seeds, [place] * len(seeds), "o", color="white", markeredgecolor="#22252c", markersize=4)
        bars.text(mean + error, place, f"  {mean:.3f}", va="center", fontsize=9)
    bars.set_yticks(range(len(models)), list(reversed(models)))
    bars.set_xlim(0, 1.25 * max(comparison.mean(model, headline) or 0.0 for model in models) or 1)
    bars.set_xlabel(f"{headline} (0 to 1), 95% interval by user; dots: seeds")
    clean(bars)
    labels = list(comparison.parts[0]["report"]["history_queries"])
    trained = {name for part in comparison.parts for name in part["trained"]}
    best = [model for model in models if model not in trained][:BEST]
    for index, model in enumerate(model for model in models if model in trained or model in best):
        means = [_by_history(comparison, model, label) for label in labels]
        mine = model == ours
        lines.plot(
            range(len(labels)),
            means,
            color=OURS if mine else GREYS[index % len(GREYS)],
            marker="o" if mine else MARKERS[index % len(MARKERS)],
            linewidth=2.4 if mine else 1.2,
            label=model,
        )
    counts = comparison.parts[0]["report"]["history_queries"]
    lines.set_xticks(range(len(labels)), [f"{label}\n{counts[label]:,}" for label in labels], fontsize=9)
    lines.set_xlabel("events in the user's history at the query, and number of queries")
    lines.set_ylabel("ndcg@20 (0 to 1)")
    lines.set_ylim(bottom=0)
    lines.legend(frameon=False, fontsize=9)
    clean(lines)
    title = f"{comparison.name}: {PROTOCOLS[comparison.protocol]}, preset {comparison.preset}"
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    save(figure, path)


def _by_history(comparison: Comparison, model: str, label: str) -> float:
    found = [part["report"]["models"][model]["by_history"][label]["mean"] for _, part in comparison.having(model)]
    known = [mean for mean in found if mean is not None]
    return statistics.fmean(known) if known else float("nan")
