"""Neighbours of an item, against a plain sort."""

import numpy as np
import pytest

from app.catalogue.catalogue import Catalogue
from app.recommend.similar import SimilarItems


def near(vectors, row, k):
    vectors = np.asarray(vectors, np.float32)
    ids = [f"i{row}" for row in range(len(vectors))]
    bias = np.zeros(len(ids), np.float32)
    return SimilarItems(Catalogue(ids, ids, [()] * len(ids), vectors, bias)).of(row, k, bias)


def test_best_first_and_ties_by_row():
    rows, cosines = near([[1, 0], [0, 2], [3, 0], [5, 0], [-1, 0], [1, 1]], 0, 5)
    assert rows == [2, 3, 5, 1, 4]
    assert cosines == pytest.approx([1, 1, 0.5**0.5, 0, -1], abs=1e-6)


def test_ties_at_the_edge_are_decided_by_row():
    assert near([[1, 0], [1, 0], [2, 0], [3, 0]], 3, 2)[0] == [0, 1]


def test_an_item_without_a_vector_is_like_nobody():
    assert near([[0, 0], [1, 0], [0, 1]], 0, 2) == ([1, 2], [0.0, 0.0])


def test_a_catalogue_of_one_item_has_no_neighbours():
    assert near([[1, 0]], 0, 3) == ([], [])
