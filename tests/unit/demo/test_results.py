"""What the demo says about its figures."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from app.demo.errors import DemoError
from app.demo.score import Score
from app.demo.show import show_results, verdict
from app.demo.trainer import Offline, read_report

BASELINES = {"popularity": Score(0.1, 0.30), "own frequency": Score(0.2, 0.25)}


def offline(ours):
    return Offline(queries=10, ours=ours, baselines=BASELINES)


def report(**models):
    plain = {
        name: {"metrics": {"recall@20": {"mean": recall}, "ndcg@20": {"mean": ndcg}}} for name, (recall, ndcg) in models.items()
    }
    return json.dumps({"ours": "longwave", "queries": 10, "models": plain})


def test_each_metric_is_held_against_its_own_best_baseline():
    lines = verdict(Score(0.3, 0.33), offline(Score(0.3, 0.33)), 20)
    assert lines == [
        "recall@20: the live service is ahead of the best baseline, own frequency: 0.3000 against 0.2000, 1.50x.",
        "ndcg@20: the live service is ahead of the best baseline, popularity: 0.3300 against 0.3000, 1.10x.",
        "Live equals offline to 3 digits: the service computes what the trainer's torch forward() computes.",
    ]


def test_a_baseline_that_wins_is_said_plainly():
    lines = verdict(Score(0.3, 0.24), offline(Score(0.3, 0.24)), 20)
    assert lines[1] == "ndcg@20: A BASELINE WINS, popularity: the live service has 0.2400 against 0.3000, 0.80x."


def test_a_difference_between_live_and_offline_is_said_plainly():
    lines = verdict(Score(0.3, 0.33), offline(Score(0.299, 0.33)), 20)
    assert lines[2].startswith("LIVE DIFFERS FROM OFFLINE: recall@20 +0.0010, ndcg@20 +0.0000")


def test_the_table_has_every_model_and_marks_the_best_baselines():
    console = Console(record=True, width=120)
    show_results(console, Score(0.3, 0.33), offline(Score(0.3, 0.33)), 20)
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if "│" in line}
    assert list(rows) == ["live service", "offline, torch forward()", "popularity", "own frequency"]
    assert "3.00x  1.10x" in rows["popularity"]
    assert "best baseline (ndcg)" in rows["popularity"]
    assert "best baseline (recall)" in rows["own frequency"]


def test_our_row_of_the_report_is_offline_and_the_others_are_baselines(tmp_path):
    (tmp_path / "report.json").write_text(report(longwave=(0.3, 0.2), popularity=(0.1, 0.05)))
    assert read_report(tmp_path, 20) == Offline(10, Score(0.3, 0.2), {"popularity": Score(0.1, 0.05)})


@pytest.mark.parametrize(
    "content", ["{", "{}", report(popularity=(0.1, 0.1)), report(longwave=(0.1, 0.1)), report(longwave=(0.1, None), x=(0.1, 0.1))]
)
def test_a_report_that_cannot_be_compared_with_is_refused_by_name(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DemoError, match=r"report\.json: not a report on lists of 20"):
        read_report(tmp_path, 20)
    with pytest.raises(DemoError, match="cannot be read"):
        read_report(tmp_path / "nowhere", 20)
