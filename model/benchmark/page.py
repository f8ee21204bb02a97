"""Results as a part of docs/benchmarks.md: a table and a plot for each benchmark, between two marks that stay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from model.baselines.nets.checkpoint import ARCHITECTURES
from model.benchmark.page_cold import cold_items, cold_users
from model.benchmark.page_drift import drift_lines
from model.benchmark.page_measured import compression_lines, speed_lines, update_lines
from model.benchmark.page_platforms import platform_lines
from model.benchmark.page_words import (
    commit_words,
    commits_words,
    figure_words,
    machine_words,
    machines_words,
    p_words,
    times_words,
)
from model.benchmark.plots import plot_comparison
from model.benchmark.results import (
    Comparison,
    ResultError,
    read_compressions,
    read_fine_tunings,
    read_results,
    read_speeds,
    read_updates,
)
from model.data import planted, turning
from model.endurance import EVENTS, LAST, LONG
from model.files import check_folder, write_whole
from model.interests import RECENT
from model.plots import PROTOCOLS

BEGIN = "<!-- Between these marks everything is written by `longwave-train report`. -->"
END = "<!-- End of what `longwave-train report` writes. -->"
COLUMNS = {
    "loo": ("hit_rate@10", "ndcg@10", "ndcg@20"),
    "time": ("hit_rate@10", "ndcg@10", "ndcg@20"),
    "basket": ("recall@20", "ndcg@20", "ndcg@10"),
}
WELL_TRAINED = {("ml-1m", "loo"): {"sasrec": ("ndcg@10", 0.180), "gru4rec": ("ndcg@10", 0.163)}}
"""What a neural baseline must reach to count, beside recent popularity: less is a training that went wrong."""
ABOUT = {
    planted.NAME: [
        f"A made-up world: users buy items of one topic, and {planted.LONG_USERS} of them come back to it after",
        f"{planted.DISTANCE:,} views that say nothing, before the last two purchases each. The line on a long life is about",
        "these, the table about all. On validation three items of the topic are left to a user, on the test part two, and",
        "which is next nobody can know: whoever knows the topic and nothing else has an ndcg of 0.71 and 0.82. The kNN and",
        "co-transition see purchases alone, and so have no views to forget them over.",
        "",
    ],
    turning.NAME: [
        "A made-up world: a user's interest is shares of twelve topics, and at one moment a part of it, a quarter to all, goes",
        "to others; for every other user it stays. It is there for the table of drift.",
        "",
    ],
}


def write_page(results: Path, page: Path, figures: Path) -> list[Path]:
    """Bring the page up to date with the results; returns what was written.

    Raises:
        TrainerError: a result cannot be read, the page has not both marks, or something cannot be written.
    """
    between = everything(results, figures.name)
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultError(f"{page}: cannot be read: {error.strerror}") from None
    new = replaced(text, between, page)
    check_folder(figures)
    written = []
    for comparison in read_results(results):
        written.append(figures / figure_name(comparison))
        plot_comparison(comparison, written[-1])
    write_whole(page, new)
    return [page, *written]


def replaced(text: str, between: str, page: Path) -> str:
    """The page with other text between the marks.

    Raises:
        ResultError: the page has not each mark once, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ResultError(f"{page}: must have the lines {BEGIN!r} and {END!r}, each once and in this order")
    return f"{before}{BEGIN}\n\n{between}\n{END}{after}"


def everything(results: Path, figures: str) -> str:
    """The text between the marks of all that a folder of results has. Raises ResultError."""
    others = read_speeds(results), read_compressions(results), read_updates(results), read_fine_tunings(results)
    return section(read_results(results), figures, *others)


def section(
    found: list[Comparison],
    figures: str,
    speeds: list[dict[str, Any]],
    compressions: Sequence[dict[str, Any]] = (),
    updates: Sequence[dict[str, Any]] = (),
    fine_tunings: Sequence[dict[str, Any]] = (),
) -> str:
    """The text between the marks; `figures` is the folder of the plots, as the page calls it."""
    lines = [
        "Means over the seeds. ± is the standard error by bootstrap over users (queries of one user are not independent), the",
        "spread is the standard deviation over seeds. *times* says how many times as good the model in bold is as the one of the",
        "row, with the largest p of all seeds (paired bootstrap over users). A p is of users, for the trainings that were made:",
        "what another training would have given is in the spread alone. The settings of the baselines and the best epoch of",
        "every net were chosen on validation.",
        "",
    ]
    for comparison in found:
        beside = [*drift_lines(comparison), *cold_users(comparison), *cold_items(comparison)]
        lines += [*_table(comparison), *beside, "", f"![{_title(comparison)}]({figures}/{figure_name(comparison)})", ""]
    for speed in speeds:
        lines += [*speed_lines(speed), ""]
    for compression in compressions:
        lines += [*compression_lines(compression), ""]
    for _, same in groupby(updates, key=lambda result: (result["name"], result["preset"], result["part"], result["new"])):
        lines += [*update_lines(list(same)), ""]
    for _, same in groupby(fine_tunings, key=lambda result: (result["name"], result["preset"], result["data"]["fingerprint"])):
        lines += [*platform_lines(list(same)), ""]
    return "\n".join(lines)


def figure_name(comparison: Comparison) -> str:
    return f"{comparison.name}-{comparison.protocol}-{comparison.preset}-{comparison.fingerprint[:6]}.png"


def _title(comparison: Comparison) -> str:
    return f"{comparison.name}, {PROTOCOLS[comparison.protocol]}, preset {comparison.preset}"


def _table(comparison: Comparison) -> list[str]:
    report = comparison.parts[0]["report"]
    headline, columns = comparison.headline, COLUMNS[comparison.protocol]
    ours = report["ours"]
    head = ["model", *columns, f"{headline} by user", f"spread of {headline}", "times", "parameters", "training"]
    rows = []
    for model in comparison.models:
        trained = [part["trained"][model] for _, part in comparison.having(model) if model in part["trained"]]
        against = comparison.against(model)
        rows.append(
            [
                f"**{model}**" if model == ours else _called(comparison, model),
                *(figure_words(comparison.mean(model, c), comparison.mean(model, c, "standard_error")) for c in columns),
                figure_words(comparison.mean(model, headline, "per_user")),
                figure_words(comparison.spread(model, headline)) if trained else "–",
                f"{against[1]:.2f}x, p {p_words(against[2])}" if against else "–",
                f"{trained[0]['parameters']:,}" if trained else "–",
                _training(trained) if trained else "–",
            ]
        )
    return [
        f"### {_title(comparison)}",
        "",
        f"{_facts(comparison, report)}",
        "",
        *ABOUT.get(comparison.name, []),
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)),
        *_lines(comparison),
    ]


def _lines(comparison: Comparison) -> list[str]:
    """What is measured of our net alone, a line a seed; results from before it was measured say nothing."""
    lines = []
    for seed, part in zip(comparison.seeds, comparison.parts, strict=True):
        for found in part.get("interests", {}).values():
            if found:
                figures = "; ".join(
                    f"{name} {found['net'][name]['mean']:.3f}, {found['recent'][name]['mean']:.3f} of the last {RECENT}' "
                    f"({times_words(difference)})"
                    for name, difference in found["difference"].items()
                )
                lines.append(f"- Seed {seed}, {found['labels']} labels of next items, {found['queries']:,} queries: {figures}.")
    for seed, part in zip(comparison.seeds, comparison.parts, strict=True):
        for found in part.get("endurance", {}).values():
            growth = found["norm_late"] / found["norm_early"]
            said = (
                f"after {EVENTS:,} events the state (its counts and drift's means apart) is {growth:.2f}x as large as "
                f"after {LAST} by root mean square"
            )
            if found["difference"]:
                times = times_words(found["difference"])
                said = (
                    f"{found['users']} users with more than {LONG} events, {_asked(found)} on validation: {comparison.headline} "
                    f"{found['whole']:.4f} from all, {found['last']:.4f} from the last {LAST} ({times}); {said}"
                )
            lines.append(f"- Seed {seed}, a long life: {said}.")
    return ["", *lines] if lines else []


def _asked(found: dict[str, Any]) -> str:
    """How many queries they were asked; in results from before that was one each."""
    return f"{found['queries']:,} queries" if "queries" in found else "the last query of each"


def _called(comparison: Comparison, model: str) -> str:
    """The model's name, with its seeds if others have more, and a warning where it is an opponent that was not well trained."""
    metric, least = WELL_TRAINED.get((comparison.name, comparison.protocol), {}).get(model, (comparison.headline, 0.0))
    reached = comparison.mean(model, metric)
    notes = []
    if len(have := comparison.having(model)) < len(comparison.seeds):
        notes.append(f"seed{'s' * (len(have) > 1)} {', '.join(str(result['seed']) for result, _ in have)}")
    if reached is not None and model in ARCHITECTURES:
        # A net that has learned anything from sequences beats what is read from none.
        popular = comparison.mean("recent popularity", metric)
        if reached < least:
            notes.append(f"below {least:.3f}: does not count")
        elif popular is not None and reached < popular:
            notes.append("below recent popularity: does not count")
    return f"{model} ({'; '.join(notes)})" if notes else model


def _facts(comparison: Comparison, report: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    machines = machines_words(comparison.results)
    elsewhere = {  # where a net was trained, if that is not where it was asked
        f"{model} trained on {words}": None
        for result in comparison.results
        for model, trained in result["protocols"][comparison.protocol]["trained"].items()
        if "machine" in trained and (words := machine_words(trained["machine"])) not in machines
    }
    return (
        f"{report['queries']:,} queries of {report['users']:,} users over {report['items']:,} items "
        f"(data {comparison.fingerprint[:12]}), {report['mean_targets']:.2f} true items a query; "
        f"seen items {'left out' if report['filter_seen'] else 'ranked like all others'}; baselines {report['state']}; "
        f"{report['refit']}. Seed{'s' if len(comparison.seeds) > 1 else ''} {seeds}; {'; '.join([*machines, *elsewhere])}; "
        f"commit {commits_words(comparison.results)}{_trained_at(comparison)}."
    )


def _trained_at(comparison: Comparison) -> str:
    """The commits that nets were trained at, where these are others than those of the questions."""
    asked = {result["commit"]["id"] for result in comparison.results}
    trained = {
        commit_words(each["commit"]): None
        for part in comparison.parts
        for each in part["trained"].values()
        if "commit" in each and each["commit"]["id"] not in asked  # results of before do not say it
    }
    return f" (trained at {', '.join(trained)})" if trained else ""


def _training(trained: list[dict[str, Any]]) -> str:
    minutes = sum(each["seconds"] for each in trained) / len(trained) / 60
    epochs = sorted({each["epochs"] for each in trained})
    said = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return f"{minutes:.1f} min, {said} epochs"
