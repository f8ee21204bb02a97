"""Novelty@k = mean over the top k of -log2 p(i), in bits, p(i) = (c_i + 1) / (sum of c + N): the item's share of all events.

One is added to every count, so that an item nobody has met yet is very novel and not infinitely so.
Source: Zhou et al. 2010 (PNAS 107:4511), "Solving the apparent diversity-accuracy dilemma"; Vargas & Castells 2011.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.metrics.hits import Float64, Ranked


def novelty(ranked: Ranked, popularity: npt.NDArray[np.floating], k: int) -> Float64:
    """(Q,) bits; NaN for an empty list.

    Args:
        ranked: (Q, K) item rows, -1 from where a list ends.
        popularity: (N,) counts of the training events.
        k: ranks to look at.
    """
    bits = -np.log2((popularity + 1) / (popularity.sum() + len(popularity)))
    top = ranked[:, :k]
    length = (top >= 0).sum(1)
    total = np.append(bits, 0.0)[top].sum(1)  # row -1 is the appended zero
    return np.where(length > 0, total / np.maximum(length, 1), np.nan)
