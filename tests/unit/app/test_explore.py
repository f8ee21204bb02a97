"""What is drawn by chance, how often, and what is said of how likely it was."""

import numpy as np
import pytest

from app.recommend.explore import Exploration, draw, places_of

ROWS = [7, 3, 9, 4]
SCORES = [1.0, 0.5, 0.0, -1.0]


def drawn_by(seed, places=2, k=10):
    return draw(Exploration(np.ones(10, bool), places, k, seed), ROWS, SCORES)


def test_items_are_drawn_as_often_as_their_propensity_says():
    chances = np.exp(SCORES) / np.exp(SCORES).sum()
    first, second = np.zeros(4), np.zeros((4, 4))
    for seed in range(4_000):
        a, b = drawn_by(seed)
        assert a.propensity == pytest.approx(chances[ROWS.index(a.row)])
        assert b.propensity == pytest.approx(chances[ROWS.index(b.row)] / (1 - chances[ROWS.index(a.row)]))
        assert 1 <= a.position < b.position <= 10
        first[ROWS.index(a.row)] += 1
        second[ROWS.index(a.row), ROWS.index(b.row)] += 1
    assert first / 4_000 == pytest.approx(chances, abs=0.03)
    assert (second / second.sum(1, keepdims=True))[0, 1] == pytest.approx(chances[1] / (1 - chances[0]), abs=0.04)


def test_a_seed_draws_the_same_again_and_no_more_than_there_is():
    assert drawn_by(5) == drawn_by(5)
    assert {one.row for one in drawn_by(1, places=9)} == set(ROWS)
    assert draw(Exploration(np.zeros(10, bool), 3, 10, 1), [], []) == []
    assert len({one.position for seed in range(200) for one in drawn_by(seed, places=1)}) == 10


def test_what_is_drawn_gets_free_places_alone_each_as_likely():
    exploration = [Exploration(np.ones(10, bool), 2, 5, seed) for seed in range(600)]
    places = [[one.position for one in draw(each, ROWS, SCORES, taken={1, 4})] for each in exploration]
    assert {len(some) for some in places} == {2}
    counts = np.bincount(np.concatenate(places), minlength=6)
    assert counts[[0, 1, 4]].tolist() == [0, 0, 0]
    assert counts[[2, 3, 5]] / 600 == pytest.approx([2 / 3] * 3, abs=0.08)
    assert draw(exploration[0], ROWS, SCORES, taken={1, 2, 3, 4, 5}) == []


def test_a_share_is_rounded_and_never_lost():
    assert [places_of(share, 10) for share in (0, 0.01, 0.14, 0.26, 1)] == [0, 1, 1, 3, 10]
