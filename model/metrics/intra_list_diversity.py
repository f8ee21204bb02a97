"""Intra-list diversity@k = 1 - mean over pairs i < j of the top k of cos(v_i, v_j).

Source: Ziegler, McNee, Konstan & Lausen 2005, with cosine as the similarity.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.metrics.hits import Float64, Ranked

CHUNK = 4096  # lists at a time: (CHUNK, k, D) vectors are in memory at once


def intra_list_diversity(ranked: Ranked, item_vectors: npt.NDArray[np.floating], k: int) -> Float64:
    """(Q,) in 0..2; NaN for a list of fewer than two items.

    Args:
        ranked: (Q, K) item rows, -1 from where a list ends.
        item_vectors: (N, D). A zero vector is orthogonal to all others.
        k: ranks to look at.
    """
    norm = np.linalg.norm(item_vectors, axis=1, keepdims=True)
    unit = item_vectors / np.where(norm > 0, norm, 1)
    # Row -1 is this row of zeros, so the end of a short list adds nothing.
    unit = np.vstack([unit, np.zeros((1, unit.shape[1]), unit.dtype)])
    diversity = np.empty(len(ranked))
    for begin in range(0, len(ranked), CHUNK):
        top = ranked[begin : begin + CHUNK, :k]
        vectors = unit[top].astype(np.float64)  # (C, k, D)
        # |sum v|^2 = sum |v|^2 + 2 * (sum of the cosines of the pairs)
        twice_pairs = (vectors.sum(1) ** 2).sum(1) - (vectors**2).sum((1, 2))
        length = (top >= 0).sum(1)
        ordered = length * (length - 1)
        diversity[begin : begin + CHUNK] = np.where(ordered > 0, 1 - twice_pairs / np.maximum(ordered, 1), np.nan)
    return diversity
