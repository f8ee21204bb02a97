"""The demo's own recall and NDCG: by hand, and against the trainer's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.demo.score import Score, ndcg, recall, score
from model.data.sequences import Queries
from model.metrics import ndcg as trainers_ndcg
from model.metrics import recall as trainers_recall


def test_recall_and_ndcg_of_a_list_are_what_they_are_by_hand():
    ranked = ["a", "x", "b", "y", "c"]
    assert recall(ranked, ["b", "a", "z", "c"], 4) == 2 / 4  # c stands at place 5, z nowhere
    found = 1 + 1 / 2  # places 1 and 3: 1 / log2(2) and 1 / log2(4)
    ideal = 1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(5)
    assert ndcg(ranked, ["b", "a", "z", "c"], 4) == pytest.approx(found / ideal)


def test_a_basket_larger_than_the_list_can_reach_an_ndcg_of_1():
    assert ndcg(["a", "b"], ["a", "b", "c"], 2) == 1
    assert recall(["a", "b"], ["a", "b", "c"], 2) == 2 / 3


def test_the_mean_leaves_out_questions_without_an_answer():
    found = score([(["a"], ["a"]), (["a"], []), (["a"], ["b"])], 1)
    assert found == Score(0.5, 0.5)


def test_scores_agree_to_3_digits_or_not():
    assert Score(0.1, 0.2).agrees_with(Score(0.1004, 0.1996))
    assert not Score(0.1, 0.2).agrees_with(Score(0.1, 0.2006))


@pytest.mark.parametrize("seed", range(5))
def test_both_halves_measure_the_same(seed):
    rng = np.random.default_rng(seed)
    items, k, asked = 30, 7, 40
    ranked = np.stack([rng.permutation(items)[:k] for _ in range(asked)])
    ends = rng.integers(0, k + 1, asked)  # lists that end early
    ranked[np.arange(k) >= ends[:, None]] = -1
    targets = [np.sort(rng.permutation(items)[: rng.integers(1, 12)]) for _ in range(asked)]
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in targets])])
    nothing = np.zeros(asked, np.int64)
    queries = Queries(nothing.astype(np.int32), nothing, nothing, offsets, np.concatenate(targets).astype(np.int32))
    lists = [([f"i{row}" for row in rows if row >= 0], [f"i{row}" for row in t]) for rows, t in zip(ranked, targets, strict=True)]
    ours = score(lists, k)
    assert ours.recall == pytest.approx(trainers_recall(ranked, queries, k).mean(), abs=1e-12)
    assert ours.ndcg == pytest.approx(trainers_ndcg(ranked, queries, k).mean(), abs=1e-12)
