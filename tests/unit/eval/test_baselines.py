import math

import numpy as np
import pytest

from model.baselines.co_transition import CoTransition
from model.baselines.decayed_counts import DAY_MS, DecayedCounts
from model.baselines.own_frequency import OwnFrequency
from model.baselines.popularity import Popularity
from model.baselines.recent_popularity import RecentPopularity
from model.baselines.transition_counts import TAIL, TransitionCounts
from model.baselines.tuning import OWN_BASKETS, OWN_DAYS, OWN_WEIGHTS, tune
from model.data.splits import leave_one_out, next_basket

SEEDS = range(15)


def purchases(seq, known):
    return [row for u in range(seq.users) for row in range(seq.offsets[u], known[u]) if seq.positive[row]]


def recent_scores(seq, known, as_of, half_life_days):
    scores = np.zeros(seq.items)
    for row in purchases(seq, known):
        scores[seq.item[row]] += 2 ** (-(as_of - int(seq.time[row])) / (half_life_days * DAY_MS))
    return scores


def own_baskets(seq, user, end):
    """The user's purchases by basket, the latest first."""
    found = {}
    for row in range(seq.offsets[user], end):
        if seq.positive[row]:
            found.setdefault(int(seq.basket[row]), []).append(row)
    return [found[number] for number in sorted(found, reverse=True)]


@pytest.mark.parametrize("seed", SEEDS)
def test_popularity_counts_purchases_and_nothing_else(world, seed):
    seq = world(seed)
    known = next_basket(seq, 0.7, 0.4).train_end
    baseline = Popularity()
    baseline.fit(seq, known)
    expected = np.bincount(seq.item[purchases(seq, known)], minlength=seq.items)
    assert baseline.score(0, 0, 0).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_recent_popularity_agrees_with_its_formula(world, seed):
    seq = world(seed, late=True)
    split = next_basket(seq, 0.7, 0.4)
    baseline = RecentPopularity(2)
    baseline.fit(seq, split.train_end)
    np.testing.assert_allclose(baseline.score(0, 0, split.cut_ms), recent_scores(seq, split.train_end, split.cut_ms, 2))


@pytest.mark.parametrize("seed", SEEDS)
def test_own_frequency_agrees_with_its_formula(world, seed):
    seq = world(seed, late=True)
    split = next_basket(seq, 0.7, 0.4)
    baseline = OwnFrequency(9, 2, 0.4, 3)
    baseline.fit(seq, split.train_end)
    for user, position, as_of in zip(split.test.user, split.test.position, split.test.as_of, strict=True):
        recent = recent_scores(seq, split.train_end, as_of, 3)
        expected = 0.6 * recent / recent.sum()
        own = np.zeros(seq.items)
        for age, rows in enumerate(own_baskets(seq, user, position)):
            for row in rows:
                own[seq.item[row]] += 2 ** -((as_of - seq.time[row]) / (9 * DAY_MS) + age / 2)
        if own.any():
            expected += 0.4 * own / own.sum()
        np.testing.assert_allclose(baseline.score(user, position, as_of), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_co_transition_agrees_with_its_formula(world, seed):
    seq = world(seed)
    split = next_basket(seq, 0.7, 0.4)
    baseline = CoTransition(window=2, context=3, decay=0.7, damping=0.5)
    baseline.fit(seq, split.train_end)
    counts = np.zeros((seq.items, seq.items))
    for user in range(seq.users):
        bought = own_baskets(seq, user, split.train_end[user])
        for late in range(len(bought)):
            for early in range(late + 1, min(late + 3, len(bought))):
                for a in bought[early]:
                    for b in bought[late]:
                        counts[seq.item[a], seq.item[b]] += 0.7 ** (early - late - 1)
    for user, position in zip(split.test.user, split.test.position, strict=True):
        context = own_baskets(seq, user, position)[:3]
        if not context:
            continue  # without a purchase it is popularity, tested by name below
        expected = np.zeros(seq.items)
        for age, rows in enumerate(context):
            for row in rows:
                out = counts[seq.item[row]]
                expected += 0.7**age * out / max(out.sum(), 1e-9) ** 0.5
        np.testing.assert_allclose(baseline.score(user, position, 0), expected, atol=1e-12)


def test_co_transition_falls_back_on_popularity_for_a_user_without_purchases(sequences):
    seq = sequences([(0, 2, 0, 0, 0), (0, 2, 0, 1, 1), (1, 0, 1, 5, 0), (1, 1, 2, 6, 1)], 3)
    baseline = CoTransition()
    baseline.fit(seq, seq.offsets[1:])
    # User 1 has viewed item 0 and cancelled item 1: neither is a purchase.
    assert baseline.score(1, 4, 7).tolist() == [0, 0, 2]


def test_transition_counts_stay_right_when_a_row_is_merged():
    counts, dense = TransitionCounts(5), np.zeros((5, 5))
    rng = np.random.default_rng(0)
    for _ in range(3 * TAIL):  # several merges of every row
        before, after = rng.integers(0, 5, 3).astype(np.int32), rng.integers(0, 5, 4).astype(np.int32)
        counts.add_block(before, after, 0.5)
        np.add.at(dense, (np.repeat(before, 4), np.tile(after, 3)), 0.5)
    rows = np.arange(5, dtype=np.int32)
    np.testing.assert_allclose(counts.total, dense.sum(1))
    np.testing.assert_allclose(counts.weighted_sum(rows, rows + 1.0), (rows + 1.0) @ dense)


def test_decayed_counts_survive_thousands_of_half_lives():
    counts = DecayedCounts(2, half_life_days=1)
    for day in (0, 5_000, 5_001):
        counts.add(np.array([day % 2]), np.array([day * DAY_MS]), np.ones(1))
    np.testing.assert_allclose(counts.at(5_001 * DAY_MS), [0.5, 1.0])


def test_decayed_counts_answer_thousands_of_half_lives_before_their_reference_in_the_same_order():
    counts = DecayedCounts(3, half_life_days=1)
    counts.add(np.array([0, 1, 2]), np.array([5_000, 4_999, 4_990]) * DAY_MS, np.array([1.0, 4.0, 1.0]))
    for day in (5_000, 4_000, 3_975, 0):  # 2^1024 is beyond float64
        assert np.argsort(-counts.at(day * DAY_MS)).tolist() == [1, 0, 2]


def test_counts_before_any_event_are_zero():
    assert DecayedCounts(2, half_life_days=1).at(10).tolist() == [0, 0]


def test_tuning_records_what_it_chose_and_never_looks_at_the_test(world):
    seq = world(5, users=40)
    split = next_basket(seq, 0.7, 0.4)
    tuned = tune(seq, split, queries=15)
    assert [b.name for b in tuned.baselines] == ["popularity", "recent popularity", "own frequency", "co-transition"]
    assert tuned.queries == 15
    assert set(tuned.valid_ndcg) == {b.name for b in tuned.baselines}
    own = tuned.baselines[2].parameters()
    assert own["half_life_days"] in OWN_DAYS
    assert own["half_life_baskets"] in OWN_BASKETS
    assert own["own_weight"] in OWN_WEIGHTS
    rng = np.random.default_rng(0)
    for user, position in zip(split.test.user, split.test.position, strict=True):
        rows = slice(position, seq.offsets[user + 1])
        seq.item[rows] = rng.integers(0, seq.items, rows.stop - rows.start)
    again = tune(seq, split, queries=15)
    assert again.valid_ndcg == tuned.valid_ndcg
    assert [b.parameters() for b in again.baselines] == [b.parameters() for b in tuned.baselines]


def test_leave_one_out_tunes_frozen_baselines_without_a_useless_search_for_own_frequency(world):
    seq = world(2, users=20)
    tuned = tune(seq, leave_one_out(seq))
    assert tuned.baselines[2].parameters()["half_life_days"] == OWN_DAYS[0]
    assert tuned.baselines[3].parameters()["window"] == 8
    assert not math.isnan(tuned.valid_ndcg["co-transition"])


def test_tuning_without_a_validation_query_is_refused(sequences):
    seq = sequences([(0, 0, 0, 0, 0), (0, 1, 0, 1, 1)], 2)
    with pytest.raises(ValueError, match="no validation query"):
        tune(seq, leave_one_out(seq))
