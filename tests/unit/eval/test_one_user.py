"""What is said where a figure comes from one user alone: no interval, and nothing that seems sure."""

import dataclasses

import numpy as np

from model.benchmark.blend import cold_of
from model.benchmark.page_cold import _figure
from model.benchmark.page_measured import _interval
from model.benchmark.page_platforms import _difference
from model.benchmark.page_words import times_words
from model.compare import Compared, to_table
from model.endurance import LongHistories
from model.intervals import UserBootstrap
from model.update.gate import Judgement

BOOTSTRAP, GOOD, BAD = UserBootstrap(np.array([7, 7])), np.array([1.0, 0.5]), np.array([0.5, 0.25])
DIFFERENCE, FIGURE = BOOTSTRAP.difference(GOOD, BAD), BOOTSTRAP.estimate(GOOD)


def test_pages_leave_the_interval_out():
    assert _difference(dataclasses.asdict(DIFFERENCE)) == "+0.3750, p 1.00"
    assert times_words(dataclasses.asdict(DIFFERENCE)) == "2.00x, p 1.00"
    assert _figure([dataclasses.asdict(FIGURE)]) == "0.7500"
    assert _interval(dataclasses.asdict(BOOTSTRAP.ratio(GOOD, BAD))) == "2.0000"


def test_a_comparison_of_runs_says_that_there_is_none():
    long = LongHistories(1, 2, 0.75, 0.375, DIFFERENCE)
    against = Compared("runs/b", {}, 3, 2, 1.5, [0.1, 0.2, 0.1], 64, FIGURE, DIFFERENCE, long)
    said = [next(iter(column.cells)) for column in to_table([against]).columns]
    assert said[-3:] == ["0.7500", "2.000x (–), p 1.000", "2.000x, p 1.000"]


def test_the_gate_says_that_there_is_none():
    judgement = Judgement(20, 2, 1, 0.375, 0.75, 0.4, 0.8, DIFFERENCE, None)
    assert "difference +0.3750 [–] over the newest 2 questions of 1 users" in judgement.line()


def test_no_weight_of_a_blend_is_kept():
    after = {"1": {"context": {"chosen": 1.0, "all": {"ndcg@20": {"difference": dataclasses.asdict(DIFFERENCE)}}}}}
    assert cold_of(after, ["country"], 20) is None
