"""What adds to scores: each part against its formula, by hand."""

import math

import numpy as np
import pytest

from app.recommend.rules import (
    FULL,
    Boost,
    Cap,
    Leanings,
    Pin,
    Rules,
    Shown,
    additive_bias,
    prominence_of,
    spread_of,
    youth_of,
)

DAY_MS = 86_400_000
NOW = 1_700_000_000_000


def test_no_leanings_add_nothing_at_all():
    assert additive_bias(Leanings(), 5, 1.0) is None
    assert additive_bias(Leanings(rotation=0.5), 5, 1.0) is None  # nothing was shown
    assert additive_bias(Leanings(shown=[Shown(0, 1, 0.0)]), 5, 1.0) is None


def test_a_boosted_item_gains_on_the_others_by_its_factor_whatever_the_users_scores():
    bias = additive_bias(Leanings(boosts=[Boost([1], 2.0), Boost([3], 0.25)]), 5, 3.0)
    for seed in range(3):
        scores = np.random.default_rng(seed).normal(0, seed + 1, 5)
        likely, before = np.exp(scores + bias), np.exp(scores)
        odds = (likely / likely[0]) / (before / before[0])
        assert odds == pytest.approx([1, 2, 1, 0.25, 1], rel=1e-6)


def test_factors_of_several_boosts_multiply_and_a_row_given_twice_counts_once():
    mask = np.asarray([True, True, False])
    bias = additive_bias(Leanings(boosts=[Boost(mask, 2.0), Boost([1, 1], 3.0), Boost(np.asarray([2]), 0.5)]), 3, 1.0)
    assert np.exp(bias) == pytest.approx([2, 6, 0.5], rel=1e-6)
    assert bias.dtype == np.float32


def test_freshness_halves_with_every_half_life_and_what_has_no_date_gets_none():
    born = np.asarray([NOW, NOW - DAY_MS, NOW - 2 * DAY_MS, -1, NOW + DAY_MS, 0])
    youth = youth_of(born, NOW, 86_400.0)
    assert youth.tolist() == pytest.approx([1, 0.5, 0.25, 0, 1, 0], abs=1e-6)
    bias = additive_bias(Leanings(freshness=0.5), 6, 2.0, youth=youth)
    assert bias == pytest.approx(0.5 * FULL * 2.0 * youth, rel=1e-6)


def test_popularity_goes_by_ratios_alone():
    counts = np.asarray([1000.0, 100.0, 10.0, 1.0, 0.1, 0.0])
    assert prominence_of(counts).tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0], abs=1e-6)
    assert prominence_of(counts * 1e-30) == pytest.approx(prominence_of(counts), abs=1e-6)
    assert prominence_of(np.zeros(3)).tolist() == [0, 0, 0]
    assert prominence_of(np.zeros(0)).tolist() == []
    bias = additive_bias(Leanings(popularity=1.0), 6, 1.0, prominence=prominence_of(counts))
    assert bias[:2].tolist() == pytest.approx([FULL, FULL * 2 / 3])


def test_what_was_shown_sinks_the_more_often_the_more_and_comes_back_with_time():
    shown = [Shown(0, 1, 0.0), Shown(1, 2, 0.0), Shown(2, 1, 3600.0), Shown(3, 1, 0.0), Shown(3, 1, -5.0), Shown(4, 1, 1e9)]
    bias = additive_bias(Leanings(rotation=1.0, rotation_half_life_s=3600.0, shown=shown), 6, 1.0)
    assert (-bias / FULL).tolist() == pytest.approx([0.5, 0.75, 1 - 2**-0.5, 0.75, 0, 0], abs=1e-6)


def test_an_influence_of_one_lifts_the_average_item_over_nearly_all():
    scores = np.random.default_rng(0).normal(3, 2.5, (20, 10_000)).astype(np.float32)
    spread = spread_of(scores)
    assert spread == pytest.approx(2.5, rel=0.05)
    bias = additive_bias(Leanings(freshness=1.0), 2, spread, youth=np.asarray([1, 0], np.float32))
    assert np.mean(scores < scores.mean() + bias[0]) > 0.999


def test_the_spread_leaves_out_what_may_not_come_back():
    scores = np.asarray([[1.0, 3.0, -np.inf], [0.0, 2.0, 4.0]])
    assert spread_of(scores) == pytest.approx((1.0 + np.std([0, 2, 4])) / 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Boost([0], 0.0),
        lambda: Boost([0], -1.0),
        lambda: Boost([0], math.inf),
        lambda: Boost([0], math.nan),
        lambda: Leanings(freshness=1.1),
        lambda: Leanings(popularity=math.nan),
        lambda: Leanings(rotation=-0.1),
        lambda: Leanings(freshness_half_life_s=0.0),
        lambda: Leanings(rotation_half_life_s=math.inf),
        lambda: Rules(k=0),
        lambda: Rules(k=1, diversity=1.01),
        lambda: Rules(k=1, min_score=math.nan),
        lambda: Pin("a", 0, 0),
        lambda: Cap("brand", -1, np.zeros(3, np.int32)),
        lambda: additive_bias(Leanings(freshness=0.5), 3, 1.0),
        lambda: additive_bias(Leanings(popularity=0.5), 3, 1.0),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011  # a mistake of the caller: its words are nobody's contract
        wrong()
