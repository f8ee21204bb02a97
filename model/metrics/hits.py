"""Which ranked items are true: what every accuracy metric counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.data.sequences import Queries

Ranked = npt.NDArray[np.integer]
Float64 = npt.NDArray[np.float64]


def hits(ranked: Ranked, queries: Queries, k: int) -> npt.NDArray[np.bool_]:
    """Whether the item at each rank is a target of its query.

    Args:
        ranked: (Q, K) item rows, best first, distinct within a row; -1 from where a list ends.
        queries: the Q queries.
        k: how many ranks to look at; lists end at K at the latest, as where the catalogue has fewer than k items.

    Returns:
        (Q, k); a rank beyond the end of a short list is no hit.

    Raises:
        ValueError: not a list per query.
    """
    if len(ranked) != len(queries):
        raise ValueError(f"expected ranked lists for {len(queries)} queries, got an array of shape {ranked.shape}")
    top = np.full((len(ranked), k), -1, np.int64)
    top[:, : ranked.shape[1]] = ranked[:, :k]
    if not len(queries.target):
        return np.zeros(top.shape, bool)
    # One ascending key per (query, target), so that all queries are looked up by one binary search.
    width = int(max(top.max(initial=0), queries.target.max())) + 1
    query = np.arange(len(queries), dtype=np.int64)
    keys = np.repeat(query, np.diff(queries.target_offsets)) * width + queries.target
    wanted = query[:, None] * width + top
    found: npt.NDArray[np.bool_] = keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted
    found &= top >= 0
    return found


def relevant(queries: Queries) -> Float64:
    """(Q,) number of targets; NaN where there is none, since such a query has no answer to be measured by."""
    count = np.diff(queries.target_offsets).astype(np.float64)
    return np.where(count > 0, count, np.nan)
