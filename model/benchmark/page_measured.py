"""The tables of what was measured beside quality: training speed, compressed bundles, updates."""

from __future__ import annotations

import statistics
from typing import Any

from model.assess import OURS
from model.benchmark.page_words import commit_words, commits_words, figure_words, machine_words, machines_words
from model.benchmark.update import OLD, RETRAINED, UPDATED
from model.export.bundle import SCALES, VECTORS
from model.plots import PROTOCOLS


def speed_lines(result: dict[str, Any]) -> list[str]:
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
        sizes = dict.fromkeys(found[model, precision, length]["parameters"] for length in lengths)  # positions count
        parameters = ", ".join(f"{size:,}" for size in sizes)
        rows.append([f"**{model}**" if model == OURS else model, parameters, precision, *cells])
    return [
        f"### {result['name']}, training speed, preset {result['preset']}",
        "",
        f"Training targets a second, medians of {result['steps']} steps of each net by turns in one process, full softmax. The "
        "length is how far an encoder looks back; ours folds whole histories, in chunks that hand on the state. Histories are as "
        "they are, or all events in a row, cut into histories of that very length. "
        f"{machine_words(result['machine'])}; commit {commit_words(result['commit'])}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)),
    ]


def compression_lines(result: dict[str, Any]) -> list[str]:
    """A table of exported bundles: a line for each run and way of exporting, held to the first."""
    k, first = result["k"], result["measured"][0]
    head = ["run", "item vectors", "weights", "bundle", "graphs", "vectors", f"ndcg@{k}", f"recall@{k}", "against the first"]
    head += ["step", "interest", "score"]
    rows = []
    for each in result["measured"]:
        sizes, against, times = each["bytes"], each["against_first"], each["microseconds"]
        graphs = sum(size for file, size in sizes.items() if file.endswith(".onnx"))
        weights = f"dynamic: {', '.join(each['dynamic'])} (not offered)" if each["dynamic"] else each["weights"]
        said = "" if each is first else f"{against['mean']:+.4f}"
        if said and against["low"] is not None:
            said += f" ({against['low']:+.4f} to {against['high']:+.4f})"
        rows.append(
            [
                each["run"],
                each["item_vectors"],
                weights,
                f"{sum(sizes.values()) / 1e6:.2f} MB",
                f"{graphs / 1e6:.2f}",
                f"{sum(size for file, size in sizes.items() if file in (VECTORS, SCALES)) / 1e6:.2f}",
                figure_words(each[f"ndcg@{k}"]),
                figure_words(each[f"recall@{k}"]),
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
        f"{machine_words(result['machine'])}; commit {commit_words(result['commit'])}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * 3 + ["---:"] * (len(head) - 3), *rows)),
    ]


def update_lines(results: list[dict[str, Any]]) -> list[str]:
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
                *(figure_words(figure["mean"], figure["standard_error"]) for figure in _ndcg(result)),
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
        rows.append(["mean", *map(figure_words, means), *ratios, "", "", *(f"{share:.1%}" for share in cpu)])
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
        f"{update['items']['new']:,} items; {'; '.join(machines_words(results))}; "
        f"commit {commits_words(results)}.",
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
    if ratio["low"] is None:  # of fewer than two users
        return f"{ratio['mean']:.4f}"
    return f"{ratio['mean']:.4f} [{ratio['low']:.4f}, {ratio['high']:.4f}]"
