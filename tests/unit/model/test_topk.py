import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.nets.topk import best_in_blocks

INF = float("inf")


def reference(scores, k):
    return -np.sort(-scores, axis=1)[:, :k]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 4),
    blocks=st.integers(1, 12),
    block=st.sampled_from([1, 2, 3, 8]),
    k=st.integers(1, 96),
    levels=st.integers(1, 50),
    closed=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_two_stages_find_what_a_sort_finds(rows, blocks, block, k, levels, closed, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-levels, levels, (rows, blocks * block)).astype(np.float32)  # few levels: many ties
    scores[rng.random(scores.shape) < closed] = -INF
    k = min(k, blocks * block)
    values, columns = (each.numpy() for each in best_in_blocks(torch.from_numpy(scores), torch.tensor([k]), block))
    assert np.array_equal(values, reference(scores, k))
    for of_row, its, all_its in zip(columns, values, scores, strict=True):
        found = of_row[its > -INF]
        assert len(set(found.tolist())) == len(found)  # none twice
        assert np.array_equal(all_its[found], its[its > -INF])


@pytest.mark.parametrize("lowest", [-INF, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("junk", [-(2**40), 2**40, 0])
def test_what_a_device_says_of_columns_that_are_minus_infinity_is_not_believed(monkeypatch, lowest, junk):
    # As CUDA's does: its padding sorts before -inf, and has no index.
    topk = torch.topk

    def on_cuda(scores, k, dim):
        found = topk(scores, k, dim=dim)
        nothing = found.values == -INF
        return torch.return_types.topk((torch.where(nothing, lowest, found.values), torch.where(nothing, junk, found.indices)))

    monkeypatch.setattr(torch, "topk", on_cuda)
    scores = torch.full((2, 64), -INF)
    scores[0, 9], scores[0, 40], scores[1, 63] = 1.0, -5.0, 2.0
    values, columns = best_in_blocks(scores, torch.tensor([20]), 8)
    assert values[0, :2].tolist() == [1.0, -5.0]
    assert values[1, 0] == 2.0
    assert (columns[0, :2].tolist(), columns[1, 0].item()) == ([9, 40], 63)
    assert (values[0, 2:] == -INF).all()
    assert (values[1, 1:] == -INF).all()
