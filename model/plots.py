"""The plots of an evaluation: figures with their 95% intervals, our model in colour, the others in grey."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.evaluate import EvaluationReport
from model.files import replacing
from model.intervals import Estimate

OURS = "#d1495b"
GREYS = ("#30343f", "#5c6370", "#868d9b", "#a9afbb", "#c6cad2")
MARKERS = ("s", "^", "D", "v", "P", "X")
PLOTTED = ("recall", "ndcg")
PROTOCOLS = {"loo": "leave-one-out", "time": "successive in time", "basket": "next basket"}


def plot_models(report: EvaluationReport, path: Path) -> None:
    """Recall and ndcg at the largest cut-off as bars, best at the top, into a PNG."""
    top = max(report.ks)
    order = sorted(report.models, key=lambda name: report.models[name].metrics[f"ndcg@{top}"].mean)
    figure = Figure(figsize=(10, 1.6 + 0.5 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(PLOTTED), sharey=True)
    for axis, metric in zip(axes, PLOTTED, strict=True):
        estimates = [report.models[name].metrics[f"{metric}@{top}"] for name in order]
        bars = axis.barh(
            order,
            [estimate.mean for estimate in estimates],
            xerr=_errors(estimates),
            color=[OURS if name == report.ours else GREYS[2] for name in order],
            error_kw={"ecolor": "#22252c", "elinewidth": 1.2, "capsize": 3},
            height=0.62,
        )
        reach = max((estimate.high or estimate.mean) for estimate in estimates)
        axis.set_xlim(0, reach * 1.2 or 1)
        for bar, estimate in zip(bars, estimates, strict=True):
            end = estimate.high or estimate.mean
            axis.text(end + reach * 0.02, bar.get_y() + bar.get_height() / 2, f"{estimate.mean:.3f}", va="center", fontsize=10)
        axis.set_xlabel(f"{metric}@{top} (0 to 1), mean over queries, 95% interval by user")
        clean(axis)
        axis.tick_params(axis="y", length=0)
    for label in axes[0].get_yticklabels():
        if label.get_text() == report.ours:
            label.set_fontweight("bold")
            label.set_color(OURS)
    figure.suptitle(_title(report), fontsize=12, x=0.01, ha="left")
    save(figure, path)


def plot_history(report: EvaluationReport, path: Path) -> None:
    """Ndcg at the largest cut-off by the number of events that the user had, into a PNG."""
    top = max(report.ks)
    labels = list(report.history_queries)
    figure = Figure(figsize=(10, 5), layout="constrained")
    axis = figure.subplots()
    others = [name for name in report.models if name != report.ours]
    drawn = others + ([report.ours] if report.ours else [])  # ours last, on top
    for index, name in enumerate(drawn):
        estimates = [report.models[name].by_history[label] for label in labels]
        ours = name == report.ours
        # Side by side within a bucket, so that no interval hides another.
        shift = min(0.12, 0.8 / len(drawn)) * (index - (len(drawn) - 1) / 2)
        axis.errorbar(
            [place + shift for place in range(len(labels))],
            [estimate.mean for estimate in estimates],
            yerr=_errors(estimates),
            color=OURS if ours else GREYS[index % len(GREYS)],
            marker="o" if ours else MARKERS[index % len(MARKERS)],
            linewidth=2.4 if ours else 1.2,
            markersize=7 if ours else 5,
            elinewidth=1,
            capsize=2,
            label=name,
        )
    axis.set_xticks(range(len(labels)), [f"{label}\n{report.history_queries[label]:,} queries" for label in labels])
    axis.set_xlabel("events in the user's history at the query")
    axis.set_ylabel(f"ndcg@{top} (0 to 1), 95% interval by user")
    axis.set_ylim(bottom=0)
    axis.yaxis.grid(True, color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    clean(axis)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    figure.suptitle(_title(report), fontsize=12, x=0.01, ha="left")
    save(figure, path)


def _errors(estimates: list[Estimate]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where there is no interval."""
    below = [0.0 if e.low is None else max(e.mean - e.low, 0.0) for e in estimates]
    return [below, [0.0 if e.high is None else max(e.high - e.mean, 0.0) for e in estimates]]


def _title(report: EvaluationReport) -> str:
    asked = f"{PROTOCOLS[report.protocol]}, {report.queries:,} {report.part} queries, {report.state} baselines"
    return f"{report.dataset or 'Evaluation'}: {asked}"


def clean(axis: object) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)  # type: ignore[attr-defined]


def save(figure: Figure, path: Path) -> None:
    """Into a PNG. Raises OutputError."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
