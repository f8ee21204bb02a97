"""What a page says of fine-tuning for a platform."""

from __future__ import annotations

import statistics
from typing import Any

from model.benchmark.page_words import commits_words, figure_words, machines_words, p_words
from model.benchmark.platforms import ALONE, FINE_TUNED, GENERAL
from model.plots import PROTOCOLS

BESIDE = ("own frequency", "recent popularity", "popularity")


def platform_lines(results: list[dict[str, Any]]) -> list[str]:
    """A line for each platform and seed, and the means of each platform's; results of one name, preset and data."""
    first, metric = results[0], f"ndcg@{results[0]['k']}"
    models = (GENERAL, FINE_TUNED, ALONE, *BESIDE)
    head = ["asked on", "seed", *models, f"{FINE_TUNED} - {GENERAL}", f"{FINE_TUNED} - {ALONE}"]
    rows = []
    for platform in first["platforms"]:
        reports = [result["platforms"][platform]["report"] for result in results]
        figures = [[report["models"][model]["metrics"][metric] for model in models] for report in reports]
        against = [[report["comparisons"][other][metric] for other in (GENERAL, ALONE)] for report in reports]
        for result, figure, difference in zip(results, figures, against, strict=True):
            cells = [figure_words(each["mean"], each["standard_error"]) for each in figure]
            rows.append([platform, str(result["seed"]), *cells, *map(_difference, difference)])
        if len(results) > 1:
            cells = [figure_words(_mean(column)) for column in zip(*figures, strict=True)]
            rows.append([platform, "mean", *cells, *(f"{_mean(column):+.4f}" for column in zip(*against, strict=True))])
    return [
        f"### {first['name']}, fine-tuned for a platform, preset {first['preset']}",
        "",
        f"{metric} ± standard error on the test questions of each platform ({_questions(first)}; {PROTOCOLS[first['protocol']]}; "
        f"data {first['data']['fingerprint'][:12]}): of the *{GENERAL}* model, of the same *{FINE_TUNED}* for that platform "
        f"(`train --init-from BUNDLE --platform`), and of one that from the beginning has learned to answer *{ALONE}*; all three "
        "read what users did elsewhere. Differences: 95% in brackets, by paired bootstrap over users. "
        f"{'; '.join(machines_words(results))}; commit {commits_words(results)}.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)),
    ]


def _mean(estimates: tuple[dict[str, Any], ...]) -> float:
    return statistics.fmean(each["mean"] for each in estimates)


def _difference(found: dict[str, Any]) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:+.4f}, {found['high']:+.4f}]"  # None: of fewer than two users
    return f"{found['mean']:+.4f}{interval}, p {p_words(found['p'])}"


def _questions(result: dict[str, Any]) -> str:
    reports = {platform: each["report"] for platform, each in result["platforms"].items()}
    return ", ".join(f"{platform}: {r['queries']:,} of {r['users']:,} users" for platform, r in reports.items())
