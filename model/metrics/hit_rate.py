"""Hit rate@k = 1 if any of the top k is a target, else 0.

Source: Deshpande & Karypis 2004, "Item-based top-N recommendation algorithms".
"""

from __future__ import annotations

import numpy as np

from model.data.sequences import Queries
from model.metrics.hits import Float64, Ranked, hits, relevant


def hit_rate(ranked: Ranked, queries: Queries, k: int) -> Float64:
    """(Q,) 0 or 1; NaN for a query without targets. `ranked` as in `hits`."""
    return np.where(np.isnan(relevant(queries)), np.nan, hits(ranked, queries, k).any(1))
