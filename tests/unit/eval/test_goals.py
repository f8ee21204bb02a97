"""The table of goals, which is written by hand, against the results that it is about."""

import json
import re
from pathlib import Path

import pytest

from model.benchmark.results import read_results
from model.drifting import NET

ROOT = Path(__file__).parents[3]
HEAD = "| | goal | aim | measured | |"
LABELS = "labels, last 30 against all before"


def short(value, digits):
    return f"{value:.{digits}f}".removeprefix("0")


def seeds(values, digits=2):
    return ", ".join(short(value, digits) for value in values)


def known():
    """How each row begins, and what its measured cell has to say."""
    found = {(one.name, one.protocol, one.preset): one for one in read_results(ROOT / "benchmarks")}
    base, timed = found["ml-1m", "loo", "base"], found["ml-1m-timed", "time", "base"]
    large, taught = found["ml-1m", "loo", "large"], found["ml-1m", "loo", "large-taught"]
    beauty, student = found["beauty", "loo", "sparse"], found["beauty", "loo", "sparse-taught"]
    retail = found["online-retail", "basket", "retail"]
    cold, turning = found["online-retail-cold", "basket", "cold"], found["turning", "time", "turning"]

    def ratios(one, other):
        return [part["report"]["comparisons"][other][one.headline]["ratio"] for part in one.parts]

    def times(one, other, digits=2):
        each = ratios(one, other)
        return f"{short(sum(each) / len(each), digits)}x ({seeds(each, digits)})"

    def ours(one, metric, digits=4):
        return short(one.mean("longwave", metric), digits)

    def long(one):
        return seeds(part["endurance"]["longwave"]["difference"]["ratio"] for part in one.parts)

    best = max((m for m in retail.models if m not in ("longwave", "sasrec", "gru4rec")), key=lambda m: retail.mean(m, "ndcg@20"))
    minutes = [round(part["trained"]["longwave"]["seconds"] / 60) for part in base.parts]
    updates = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks/update").glob("*-test-?.json"))]
    shares = sorted(100 * update["share"]["of_full_training"]["cpu"] for update in updates)
    drift = [part["drift"]["longwave"]["by_events"] for part in turning.parts]
    moments = list(drift[0][NET])
    aucs = {who: seeds([sum(d[who][m]["auc"]["mean"] for d in drift) / len(drift) for m in moments], 3) for who in (NET, LABELS)}
    return {
        "ML-1M, leave-one-out, `base`": [f"{ours(base, 'hit_rate@10')}, {ours(base, 'ndcg@10')}"],
        "against our own SASRec there": [f"{short(base.against('sasrec')[1], 2)}x, p < .01"],
        "the same with a larger net": [ours(taught, "ndcg@10"), ours(taught, "hit_rate@10"), ours(large, "ndcg@10")],
        "`large` against": [f"{short(large.against(name)[1], 2)}x" for name in ("gru4rec", "sasrec")],
        "ML-1M in time": [times(timed, "sasrec")],
        "Beauty, leave-one-out": [ours(beauty, "ndcg@10")],
        "the same against our own SASRec and GRU4Rec": [times(beauty, "sasrec"), times(beauty, "gru4rec")],
        "the same, taught by one run": [ours(student, "ndcg@10"), f"{short(student.against('sasrec')[1], 2)}x of SASRec"],
        f"Online Retail, ndcg@20 against the best baseline ({best})": [times(retail, best, 3)],
        "cold items of Online Retail": [times(cold, "content kNN")],
        "ML-1M `base`, minutes of training": [f"{minutes[0]}, {minutes[1]} and {minutes[2]} on one"],
        "an update by 1% new events": [f"{shares[0]:.1f} to {shares[-1]:.1f}%"],
        "users with over 400 events": [
            f"{long(base)} leave-one-out",
            f"{long(retail)} on Online Retail",
            f"{long(timed)} in time",
        ],
        "drift against the same labels": [f"{aucs[NET]} against {aucs[LABELS]}"],
    }


def problems(text):
    rows = text.partition(HEAD)[2].partition("\n\n")[0].splitlines()
    for begins, said in known().items():
        (cells,) = [row.strip("|").split("|") for row in rows if row.startswith(f"| {begins}")] or [None]
        if cells is None:
            yield f"{begins}: no such row"
        else:
            yield from (f"{begins}: {figure} is measured, the row has {cells[3]!r}" for figure in said if figure not in cells[3])


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_what_the_table_of_goals_says_is_measured_is_what_the_results_have(page):
    assert list(problems(page)) == []


def test_a_figure_of_the_table_that_is_changed_is_seen(page):
    before, head, after = page.partition(HEAD)
    for begins, said in known().items():
        row = next(line for line in after.splitlines() if line.startswith(f"| {begins}"))
        wrong = row.replace(said[0], re.sub(r"\d", "0", said[0]), 1)
        assert list(problems(before + head + after.replace(row, wrong, 1))), begins
