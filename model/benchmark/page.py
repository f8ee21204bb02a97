"""Results as a part of docs/benchmarks.md: a table and a plot for each benchmark, between two marks that stay."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from model.assess import OURS
from model.baselines.nets.checkpoint import ARCHITECTURES
from model.benchmark.page_cold import cold_items, cold_users
from model.benchmark.plots import plot_comparison
from model.benchmark.results import Comparison, ResultError, read_compressions, read_results, read_speeds, read_updates
from model.benchmark.update import OLD, RETRAINED, UPDATED
from model.endurance import EVENTS, LAST, LONG
from model.export.bundle import SCALES, VECTORS
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
    others = read_speeds(results), read_compressions(results), read_updates(results)
    return section(read_results(results), figures, *others)


def section(
    found: list[Comparison],
    figures: str,
    speeds: list[dict[str, Any]],
    compressions: Sequence[dict[str, Any]] = (),
    updates: Sequence[dict[str, Any]] = (),
) -> str:
    """The text between the marks; `figures` is the folder of the plots, as the page calls it."""
    lines = [
        "Means over the seeds. ± is the standard error by bootstrap over users (queries of one user are not independent), the",
        "spread is the standard deviation over seeds. *times* says how many times as good the model in bold is as the one of the",
        "row, with the largest p of all seeds (paired bootstrap over users). The settings of the baselines and the best epoch of",
        "every net were chosen on validation.",
        "",
    ]
    for comparison in found:
        beside = [*cold_users(comparison), *cold_items(comparison)]
        lines += [*_table(comparison), *beside, "", f"![{_title(comparison)}]({figures}/{figure_name(comparison)})", ""]
    for speed in speeds:
        lines += [*_speed(speed), ""]
    for compression in compressions:
        lines += [*_compression(compression), ""]
    for _, same in groupby(updates, key=lambda result: (result["name"], result["preset"], result["part"], result["new"])):
        lines += [*_updates(list(same)), ""]
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
                *(_figure(comparison.mean(model, c), comparison.mean(model, c, "standard_error")) for c in columns),
                _figure(comparison.mean(model, headline, "per_user")),
                _figure(comparison.spread(model, headline)) if trained else "–",
                f"{against[1]:.2f}x, p {_p(against[2])}" if against else "–",
                f"{trained[0]['parameters']:,}" if trained else "–",
                _training(trained) if trained else "–",
            ]
        )
    return [
        f"### {_title(comparison)}",
        "",
        f"{_facts(comparison, report)}",
        "",
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
                    f"({_times(difference)})"
                    for name, difference in found["difference"].items()
                )
                lines.append(f"- Seed {seed}, {found['labels']} labels of next items, {found['queries']:,} queries: {figures}.")
    for seed, part in zip(comparison.seeds, comparison.parts, strict=True):
        for found in part.get("endurance", {}).values():
            growth = found["norm_late"] / found["norm_early"]
            said = f"after {EVENTS:,} events the state is {growth:.2f}x as large as after {LAST} (root mean square)"
            if found["difference"]:
                times = _times(found["difference"])
                said = (
                    f"{found['users']} users with more than {LONG} events, on validation: {comparison.headline} "
                    f"{found['whole']:.4f} from all, {found['last']:.4f} from the last {LAST} ({times}); {said}"
                )
            lines.append(f"- Seed {seed}, a long life: {said}.")
    return ["", *lines] if lines else []


def _speed(result: dict[str, Any]) -> list[str]:
    """A table of training speeds: a line for each net and precision, a column for each length, and how ours compares."""
    measured = result["measured"]
    lengths = list(dict.fromkeys((each["length"], each["histories"]) for each in measured))
    found = {(each["model"], each["precision"], (each["length"], each["histories"])): each for each in measured}
    head = ["model", "parameters", "factors", *(f"length {length:,}, histories {histories}" for length, histories in lengths)]
    rows = []
    for model, precision in dict.fromkeys((each["model"], each["precision"]) for each in measured):
        cells = []
        for length in lengths:
            one, ours = found[model, precision, length], found[OURS, precision, length]
            ratio = "" if model == OURS else f" (ours {ours['targets_per_second'] / one['targets_per_second']:.2f}x)"
            cells.append(f"{one['targets_per_second']:,}{ratio}")
        rows.append([f"**{model}**" if model == OURS else model, f"{one['parameters']:,}", precision, *cells])
    return [
        f"### {result['name']}, training speed, preset {result['preset']}",
        "",
        f"Training targets a second, medians of {result['steps']} steps of each net by turns in one process, full softmax. The "
        "length is how far an encoder looks back; ours folds whole histories, in chunks that hand on the state. Histories are as "
        "they are, or all events in a row, cut into histories of that very length. "
        f"{_machine(result['machine'])}; commit {_commit(result['commit'])}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)),
    ]


def _compression(result: dict[str, Any]) -> list[str]:
    """A table of exported bundles: a line for each run and way of exporting, held to the first."""
    k, first = result["k"], result["measured"][0]
    head = ["run", "item vectors", "weights", "bundle", "graphs", "vectors", f"ndcg@{k}", f"recall@{k}", "against the first"]
    head += ["step", "interest", "score"]
    rows = []
    for each in result["measured"]:
        sizes, against, times = each["bytes"], each["against_first"], each["microseconds"]
        graphs = sum(size for file, size in sizes.items() if file.endswith(".onnx"))
        weights = f"dynamic: {', '.join(each['dynamic'])} (not offered)" if each["dynamic"] else each["weights"]
        said = "" if each is first else f"{against['mean']:+.4f} ({against['low']:+.4f} to {against['high']:+.4f})"
        rows.append(
            [
                each["run"],
                each["item_vectors"],
                weights,
                f"{sum(sizes.values()) / 1e6:.2f} MB",
                f"{graphs / 1e6:.2f}",
                f"{sum(size for file, size in sizes.items() if file in (VECTORS, SCALES)) / 1e6:.2f}",
                _figure(each[f"ndcg@{k}"]),
                _figure(each[f"recall@{k}"]),
                said,
                *(f"{times[graph]['median']:.1f}" for graph in ("step", "interest", "score")),
            ]
        )
    return [
        f"### {result['name']}, compressed bundles, run {result['preset']}",
        "",
        f"{result['queries']:,} validation questions ({PROTOCOLS[result['protocol']]}), asked of the exported graphs in ONNX "
        f"Runtime; {result['items']:,} items. Against the first: difference of ndcg, 95% interval, paired by user. Times: "
        f"microseconds a user of a call for {result['users']} users on one thread, medians of {result['rounds']} by turns. "
        f"{_machine(result['machine'])}; commit {_commit(result['commit'])}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * 3 + ["---:"] * (len(head) - 3), *rows)),
    ]


def _updates(results: list[dict[str, Any]]) -> list[str]:
    """A line for each seed, and their means: quality of the three models and of what is served, and what the update costs."""
    first, k = results[0], results[0]["asked"]["k"]
    head = ["seed", OLD, UPDATED, RETRAINED, f"{UPDATED} / {RETRAINED}", "the gate", f"served / {RETRAINED}"]
    head += ["update", "full training", "share", f"share of {RETRAINED}"]
    rows = []
    for result in results:
        asked, seconds, share = result["asked"], result["seconds"], result["share"]
        times = asked["times_retrained"]
        rows.append(
            [
                str(result["seed"]),
                *(_figure(figure["mean"], figure["standard_error"]) for figure in _ndcg(result)),
                _interval(times[UPDATED]),
                "lets it pass" if result["served"] == UPDATED else "refuses it",
                _interval(times[result["served"]]),
                *(f"{seconds[what]['cpu']:.1f} s ({seconds[what]['wall']:.0f} s)" for what in ("update", "full_training")),
                *(f"{share[what]['cpu']:.1%} ({share[what]['wall']:.1%})" for what in ("of_full_training", "of_retraining")),
            ]
        )
    if len(results) > 1:
        means = [statistics.fmean(column) for column in zip(*([f["mean"] for f in _ndcg(r)] for r in results), strict=True)]
        served = [_served(result) for result in results]
        cpu = [statistics.fmean(r["share"][of]["cpu"] for r in results) for of in ("of_full_training", "of_retraining")]
        ratios = [f"{statistics.fmean(r['asked']['times_retrained'][UPDATED]['mean'] for r in results):.4f}", ""]
        ratios.append(f"{statistics.fmean(served):.4f}")
        rows.append(["mean", *map(_figure, means), *ratios, "", "", *(f"{share:.1%}" for share in cpu)])
    update, epochs = first["update"], first["epochs"]
    return [
        f"### {first['name']}, an update on {first['new']:.0%} new events, preset {first['preset']}, {first['part']} part",
        "",
        f"ndcg@{k} ± standard error on {first['asked']['queries']:,} later questions of {first['asked']['users']:,} users, live, "
        f"the same for all three: *{OLD}* knows nothing new, *{UPDATED}* is what `longwave-train update` makes of it, and "
        f"*{RETRAINED}* is trained from scratch on everything before the questions, for as many epochs as the old one kept. In "
        "brackets: 95% by paired bootstrap over users. What the gate refuses is not served: the old model is. Seconds are of the "
        "processor (of the clock), from reading the events to the end of the gate or of the last epoch; a full training is what "
        f"`train` does for the old model, choice of the epoch included ({epochs['full_training']} epochs, {epochs['kept']} kept, "
        f"with seed {first['seed']}). {update['events']['new']:,} of {sum(update['events'].values()):,} events are new, and "
        f"{update['items']['new']:,} items; {_machine(first['machine'])}; commit {_commit(first['commit'])}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)),
    ]


def _ndcg(result: dict[str, Any]) -> list[dict[str, Any]]:
    asked = result["asked"]
    return [asked["models"][model][f"ndcg@{asked['k']}"] for model in (OLD, UPDATED, RETRAINED)]


def _served(result: dict[str, Any]) -> float:
    mean: float = result["asked"]["times_retrained"][result["served"]]["mean"]
    return mean


def _interval(ratio: dict[str, Any]) -> str:
    if ratio["mean"] is None:
        return "–"
    return f"{ratio['mean']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]"


def _called(comparison: Comparison, model: str) -> str:
    """The model's name, with a warning where it is an opponent that was not well trained."""
    metric, least = WELL_TRAINED.get((comparison.name, comparison.protocol), {}).get(model, (comparison.headline, 0.0))
    reached = comparison.mean(model, metric)
    if reached is None or model not in ARCHITECTURES:
        return model
    if reached < least:
        return f"{model} (below {least:.3f}: does not count)"
    # A net that has learned anything from sequences beats what is read from none.
    popular = comparison.mean("recent popularity", metric)
    return f"{model} (below recent popularity: does not count)" if popular is not None and reached < popular else model


def _facts(comparison: Comparison, report: dict[str, Any]) -> str:
    seeds = ", ".join(map(str, comparison.seeds))
    machines = {_machine(result["machine"]): None for result in comparison.results}
    commits = {_commit(result["commit"]): None for result in comparison.results}
    return (
        f"{report['queries']:,} queries of {report['users']:,} users over {report['items']:,} items "
        f"(data {comparison.fingerprint[:12]}), {report['mean_targets']:.2f} true items a query; "
        f"seen items {'left out' if report['filter_seen'] else 'ranked like all others'}; baselines {report['state']}; "
        f"{report['refit']}. Seed{'s' if len(comparison.seeds) > 1 else ''} {seeds}; {'; '.join(machines)}; "
        f"commit {', '.join(commits)}."
    )


def _machine(machine: dict[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}"


def _commit(commit: dict[str, Any]) -> str:
    if not commit["id"]:
        return "unknown"
    return f"{commit['id'][:10]}{' with changes' if commit['dirty'] else ''}"


def _training(trained: list[dict[str, Any]]) -> str:
    minutes = sum(each["seconds"] for each in trained) / len(trained) / 60
    epochs = sorted({each["epochs"] for each in trained})
    said = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    return f"{minutes:.1f} min, {said} epochs"


def _figure(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _times(difference: dict[str, Any]) -> str:
    """How many times as good, and how sure that is; where the other is 0 there is no ratio."""
    times = "–" if difference["ratio"] is None else f"{difference['ratio']:.2f}x"
    return f"{times}, p {_p(difference['p'])}"


def _p(value: float) -> str:
    return "< .01" if value < 0.01 else f"{value:.2f}"
