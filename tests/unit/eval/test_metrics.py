from math import log2

import numpy as np
import pytest

from model.metrics import coverage, f1, hit_rate, intra_list_diversity, mrr, ndcg, novelty, precision, recall

# Per row: a hit at ranks 2 and 4 of 3 targets; a hit in a list that ended; no hit; a query without targets.
RANKED = np.array([[5, 1, 7, 2], [4, -1, -1, -1], [0, 1, 2, 3], [0, 1, 2, 3]])
TARGETS = [[1, 2, 9], [4], [8], []]


def test_metrics_agree_with_values_computed_by_hand(asked):
    queries = asked(TARGETS)
    np.testing.assert_allclose(recall(RANKED, queries, 4), [2 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(hit_rate(RANKED, queries, 4), [1, 1, 0, np.nan])
    np.testing.assert_allclose(precision(RANKED, queries, 4), [2 / 4, 1 / 4, 0, np.nan])
    np.testing.assert_allclose(f1(RANKED, queries, 4), [2 * (2 / 3) * 0.5 / (2 / 3 + 0.5), 2 * 0.25 / 1.25, 0, np.nan])
    np.testing.assert_allclose(mrr(RANKED, queries, 4), [1 / 2, 1, 0, np.nan])
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    np.testing.assert_allclose(ndcg(RANKED, queries, 4), [(1 / log2(3) + 1 / log2(5)) / ideal, 1, 0, np.nan])


def test_a_cut_off_looks_at_no_rank_beyond_it(asked):
    queries = asked(TARGETS)
    # The second hit of the first list stands at rank 4.
    np.testing.assert_allclose(recall(RANKED, queries, 3), [1 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(mrr(RANKED, queries, 1), [0, 1, 0, np.nan])


def test_ndcg_of_a_basket_larger_than_k_can_reach_one(asked):
    assert ndcg(np.array([[3, 1]]), asked([[0, 1, 2, 3, 4]]), 2) == pytest.approx([1.0])


def test_the_end_of_a_short_list_is_not_taken_for_an_item(asked):
    # -1 of the second query would look like the largest item of the first if rows were only added to a base.
    assert recall(np.array([[0, -1], [-1, -1]]), asked([[1], [0]]), 2).tolist() == [0, 0]


def test_queries_without_any_target_have_no_value(asked):
    assert np.isnan(ndcg(np.array([[0, 1]]), asked([[]]), 2)).all()


@pytest.mark.parametrize("metric", [recall, hit_rate, ndcg, mrr, precision, f1])
def test_lists_of_a_catalogue_smaller_than_k_count_as_lists_that_end(asked, metric):
    padded = np.hstack([RANKED, np.full((4, 16), -1)])
    np.testing.assert_array_equal(metric(RANKED, asked(TARGETS), 20), metric(padded, asked(TARGETS), 20))


def test_another_number_of_lists_than_queries_is_refused(asked):
    with pytest.raises(ValueError, match=r"expected ranked lists for 4 queries.*\(3, 4\)"):
        recall(RANKED[:3], asked(TARGETS), 4)


def test_coverage_counts_distinct_items_of_the_top_k():
    assert coverage(np.array([[0, 1, 9], [1, 2, 9], [-1, -1, -1]]), 10, 2) == pytest.approx(0.3)


def test_diversity_is_one_minus_the_mean_cosine_of_all_pairs():
    vectors = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    ranked = np.array([[0, 1, 2], [0, 2, -1], [1, -1, -1], [0, 3, 1]])
    expected = [1 - (0 + half + half) / 3, 1 - half, np.nan, 1.0]
    np.testing.assert_allclose(intra_list_diversity(ranked, vectors, 3), expected)


def test_novelty_is_the_mean_information_of_smoothed_shares():
    popularity = np.array([6.0, 0.0, 0.0, 6.0])  # shares 7/16, 1/16, 1/16, 7/16
    values = novelty(np.array([[0, 1], [2, -1], [-1, -1]]), popularity, 2)
    np.testing.assert_allclose(values, [(log2(16 / 7) + 4) / 2, 4, np.nan])
